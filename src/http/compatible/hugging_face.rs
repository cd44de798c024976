//! Hugging Face text classification: `POST /` and `POST /models/{model}`.
//!
//! Source: the text-classification task of Hugging Face's inference API, as `huggingface_hub` writes and reads it.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header::HeaderName};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ArrayBuilder, OneOfBuilder, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::{MODEL, Scored, Scores, fields, flag, ranked, semantic, text_schema};
use crate::http::Service;
use crate::http::access::Caller;
use crate::http::answer::{Submitted, all_or_none};
use crate::http::body::{self, Media};
use crate::http::documented;
use crate::http::error::ApiError;

/// A text-classification request.
#[derive(Debug, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClassificationRequest {
    /// A text, or several.
    pub inputs: ClassificationInput,
    /// How to answer.
    pub parameters: Option<Parameters>,
    /// Accepted and without effect.
    pub options: Option<Options>,
}

/// A text, or several.
#[derive(Debug)]
pub struct ClassificationInput;

impl PartialSchema for ClassificationInput {
    fn schema() -> RefOr<Schema> {
        let several = ArrayBuilder::new().items(text_schema()).min_items(Some(1));
        let schema = OneOfBuilder::new().item(text_schema()).item(several);
        schema.description(Some("A text, or several.")).into()
    }
}

impl ToSchema for ClassificationInput {}

/// How to answer.
#[derive(Debug, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    /// Labels shown; all when absent.
    #[schema(minimum = 1)]
    pub top_k: Option<i64>,
    /// `softmax` for calibrated probabilities (when absent), `sigmoid`, or `none` for uncalibrated scores; where
    /// there are keys, the last two are for those with the role `train`.
    #[schema(example = "softmax", pattern = "^(softmax|sigmoid|none)$")]
    pub function_to_apply: Option<String>,
}

/// Options of Hugging Face's own service.
#[derive(Debug, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Without effect.
    pub use_cache: Option<bool>,
    /// Without effect.
    pub wait_for_model: Option<bool>,
}

/// Its error.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, ToSchema)]
pub struct HuggingFaceError {
    /// What is wrong and how to put it right.
    pub error: String,
}

struct Asked {
    top_k: usize,
    scores: Scores,
}

/// Classifies texts as Hugging Face's inference API does.
#[utoipa::path(
    post,
    path = "/models/{model}",
    tag = "compatible",
    params(("model" = String, Path, description = "`triage`, or the bundle's name", example = "triage")),
    request_body(content = ClassificationRequest, example = json!({"inputs": "小区停水三天了，物业没人管", "parameters": {"top_k": 2}})),
    responses(
        (status = 200, description = "One list a text, labels best first", body = Vec<Vec<Scored>>, example = json!([[{"label": "problem", "score": 0.9645}, {"label": "disputed_claim", "score": 0.0133}]])),
        documented::HuggingFaceModel,
    )
)]
pub async fn model(
    State(service): State<Arc<Service>>,
    Path(name): Path<String>,
    caller: Caller,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    if name != MODEL && name != service.serving()?.pipeline.identity().name {
        return Err(ApiError::UnknownModel);
    }
    classify(service, caller, headers, body).await
}

/// The same at the root, where its clients send when given only an address.
#[utoipa::path(
    post,
    path = "/",
    tag = "compatible",
    request_body(content = ClassificationRequest, example = json!({"inputs": ["小区停水三天了，物业没人管", "谢谢"]})),
    responses(
        (status = 200, description = "One list a text, labels best first", body = Vec<Vec<Scored>>, example = json!([[{"label": "problem", "score": 0.9645}, {"label": "disputed_claim", "score": 0.0133}]])),
        documented::HuggingFaceRoot,
    )
)]
pub async fn root(
    State(service): State<Arc<Service>>,
    caller: Caller,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    classify(service, caller, headers, body).await
}

async fn classify(
    service: Arc<Service>,
    caller: Caller,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let (answer, asked) = all_or_none(&service, &headers, body, Media::Json, move |it| {
        let (texts, asked) = parse(it)?;
        asked.scores.require(&caller)?;
        Ok((texts, asked))
    })
    .await?;
    let rows: Vec<Vec<Scored>> = answer
        .items()
        .map(|it| {
            let mut row = ranked(&it, asked.scores);
            row.truncate(asked.top_k);
            row
        })
        .collect();
    let timing = [(HeaderName::from_static("server-timing"), answer.timing.header())];
    Ok((timing, Json(rows)).into_response())
}

fn parse(bytes: &[u8]) -> Result<(Vec<Submitted>, Asked), ApiError> {
    let mut fields_ = fields(body::json(bytes)?, &["inputs", "parameters", "options"], "")?;
    match fields_.remove("options") {
        None | Some(Value::Null) => {}
        Some(options) => {
            let known = ["use_cache", "wait_for_model"];
            let mut options = fields(options, &known, "/options")?;
            for name in known {
                flag(&mut options, name)?;
            }
        }
    }
    let asked = match fields_.remove("parameters") {
        None | Some(Value::Null) => Asked { top_k: usize::MAX, scores: Scores::default() },
        Some(it) => parameters(it)?,
    };
    let texts = match fields_.remove("inputs") {
        Some(Value::String(text)) => vec![Submitted { text, pointer: "/inputs".into() }],
        Some(Value::Array(list)) if !list.is_empty() => list
            .into_iter()
            .enumerate()
            .map(|(idx, it)| match it {
                Value::String(text) => Ok(Submitted { text, pointer: format!("/inputs/{idx}") }),
                _ => Err(wrong(format!("/inputs/{idx}"))),
            })
            .collect::<Result<_, _>>()?,
        _ => return Err(wrong("/inputs".into())),
    };
    Ok((texts, asked))
}

fn parameters(value: Value) -> Result<Asked, ApiError> {
    let mut fields = fields(value, &["top_k", "function_to_apply"], "/parameters")?;
    let top_k = match fields.remove("top_k") {
        None | Some(Value::Null) => usize::MAX,
        Some(it) => match it.as_i64() {
            Some(it) if it > 0 => usize::try_from(it).unwrap_or(usize::MAX),
            _ => {
                let detail = "`top_k` is a whole number from 1 on".to_owned();
                return Err(semantic("wrong_type", detail, "/parameters/top_k".into()));
            }
        },
    };
    let scores = match fields.remove("function_to_apply") {
        None | Some(Value::Null) => Scores::Probabilities,
        Some(it) => match it.as_str() {
            Some("softmax") => Scores::Probabilities,
            Some("sigmoid") => Scores::Sigmoid,
            Some("none") => Scores::Raw,
            _ => {
                let detail = "`function_to_apply` is \"softmax\", \"sigmoid\" or \"none\"";
                let at = "/parameters/function_to_apply";
                return Err(semantic("wrong_type", detail.into(), at.into()));
            }
        },
    };
    Ok(Asked { top_k, scores })
}

fn wrong(pointer: String) -> ApiError {
    semantic("invalid_inputs", "`inputs` is a text or a list of texts".into(), pointer)
}

/// Errors in the shape its clients read.
pub async fn shape_errors(response: Response) -> Response {
    super::reshape(response, error_body)
}

/// Status and body of `error`.
pub fn error_body(error: &ApiError) -> (StatusCode, Value) {
    (error.status(), json!({ "error": error.problem().detail }))
}
