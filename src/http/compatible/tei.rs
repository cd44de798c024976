//! text-embeddings-inference's `POST /predict`.
//!
//! Source: text-embeddings-inference, `router/src/http/types.rs` (`PredictInput`) and its error shape.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header::HeaderName};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ArrayBuilder, OneOfBuilder, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::{Scored, Scores, fields, flag, ranked, semantic, text_schema};
use crate::http::Service;
use crate::http::access::Caller;
use crate::http::answer::{Submitted, all_or_none};
use crate::http::body::{self, Media};
use crate::http::documented;
use crate::http::error::ApiError;

/// `POST /predict`.
#[derive(Debug, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PredictRequest {
    /// A text, a text in a list, or a list of such lists.
    pub inputs: PredictInput,
    /// Accepted and without effect: nothing is ever cut off.
    pub truncate: Option<bool>,
    /// `Left` or `Right`; accepted and without effect.
    #[schema(pattern = "^(Left|Right)$")]
    pub truncation_direction: Option<String>,
    /// Uncalibrated scores instead of probabilities; where there are keys, for those with the role `train`.
    pub raw_scores: Option<bool>,
}

/// A text, a text in a list, or a list of such lists.
#[derive(Debug)]
pub struct PredictInput;

impl PartialSchema for PredictInput {
    fn schema() -> RefOr<Schema> {
        let one = || ArrayBuilder::new().items(text_schema()).min_items(Some(1)).max_items(Some(1));
        let batch = ArrayBuilder::new().items(one()).min_items(Some(1));
        let schema = OneOfBuilder::new().item(text_schema()).item(one()).item(batch);
        schema.description(Some("A text, a text in a list, or a list of such lists.")).into()
    }
}

impl ToSchema for PredictInput {}

/// Labels best first: of one text, or of each text of a batch.
#[derive(Debug, serde::Serialize, ToSchema)]
#[serde(untagged)]
pub enum TeiReply {
    /// Of one text.
    One(Vec<Scored>),
    /// Of each text.
    Batch(Vec<Vec<Scored>>),
}

/// Its error.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, ToSchema)]
pub struct TeiError {
    /// What is wrong and how to put it right.
    pub error: String,
    /// `Validation`, `Overloaded`, `Unhealthy` or `Backend`.
    pub error_type: &'static str,
}

struct Asked {
    is_batch: bool,
    scores: Scores,
}

/// Scores texts as text-embeddings-inference does.
#[utoipa::path(
    post,
    path = "/predict",
    tag = "compatible",
    request_body(content = PredictRequest, example = json!({"inputs": [["小区停水三天了，物业没人管"], ["谢谢"]]})),
    responses(
        (status = 200, description = "Labels best first: one list, or one a text", body = TeiReply, example = json!([[{"label": "problem", "score": 0.9645}, {"label": "disputed_claim", "score": 0.0133}, {"label": "suggestion", "score": 0.0079}, {"label": "none", "score": 0.006}, {"label": "emergency", "score": 0.0059}, {"label": "sensitive", "score": 0.0024}]])),
        documented::Tei,
    )
)]
pub async fn predict(
    State(service): State<Arc<Service>>,
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
    let mut rows: Vec<Vec<Scored>> = answer.items().map(|it| ranked(&it, asked.scores)).collect();
    let timing = [(HeaderName::from_static("server-timing"), answer.timing.header())];
    let reply = if asked.is_batch {
        TeiReply::Batch(rows)
    } else {
        TeiReply::One(rows.pop().unwrap_or_default())
    };
    Ok((timing, Json(reply)).into_response())
}

fn parse(bytes: &[u8]) -> Result<(Vec<Submitted>, Asked), ApiError> {
    const KNOWN: [&str; 4] = ["inputs", "truncate", "truncation_direction", "raw_scores"];
    let mut fields = fields(body::json(bytes)?, &KNOWN, "")?;
    flag(&mut fields, "truncate")?;
    let scores = if flag(&mut fields, "raw_scores")? { Scores::Raw } else { Scores::Probabilities };
    match fields.remove("truncation_direction") {
        None | Some(Value::Null) => {}
        Some(Value::String(it)) if ["Left", "Right"].contains(&it.as_str()) => {}
        Some(_) => {
            let detail = "`truncation_direction` is \"Left\" or \"Right\"".to_owned();
            return Err(semantic("wrong_type", detail, "/truncation_direction".into()));
        }
    }
    let at = || "/inputs".to_owned();
    let (texts, is_batch) = match fields.remove("inputs") {
        Some(Value::String(text)) => (vec![Submitted { text, pointer: at() }], false),
        Some(Value::Array(list)) if list.first().is_some_and(Value::is_array) => {
            let texts = list
                .into_iter()
                .enumerate()
                .map(|(idx, it)| match it {
                    Value::Array(it) => one(it, format!("/inputs/{idx}")),
                    _ => Err(wrong(format!("/inputs/{idx}"))),
                })
                .collect::<Result<Vec<_>, _>>()?;
            (texts, true)
        }
        Some(Value::Array(list)) if !list.is_empty() => (vec![one(list, at())?], false),
        _ => return Err(wrong(at())),
    };
    Ok((texts, Asked { is_batch, scores }))
}

fn one(mut list: Vec<Value>, pointer: String) -> Result<Submitted, ApiError> {
    if list.len() > 1 && list.iter().all(Value::is_string) {
        let detail = "several texts in one list are a sentence pair, which triage does not judge; \
                      write a batch as [[\"first\"], [\"second\"]]";
        return Err(semantic("sentence_pair", detail.into(), pointer));
    }
    match list.pop() {
        Some(Value::String(text)) if list.is_empty() => Ok(Submitted { text, pointer }),
        _ => Err(wrong(pointer)),
    }
}

fn wrong(pointer: String) -> ApiError {
    let detail = "`inputs` is a text, [\"a text\"], or a batch [[\"first\"], [\"second\"]]";
    semantic("invalid_inputs", detail.into(), pointer)
}

/// Errors in the shape its clients read.
pub async fn shape_errors(response: Response) -> Response {
    super::reshape(response, error_body)
}

/// Status and body of `error`.
pub fn error_body(error: &ApiError) -> (StatusCode, Value) {
    let (status, error_type) = match error {
        // Its clients wait and try again on this status.
        ApiError::Overloaded | ApiError::RateLimited { .. } => {
            (StatusCode::TOO_MANY_REQUESTS, "Overloaded")
        }
        ApiError::Loading | ApiError::Stopping => (error.status(), "Unhealthy"),
        ApiError::Internal | ApiError::DeadlineExceeded { .. } => (error.status(), "Backend"),
        _ => (error.status(), "Validation"),
    };
    (status, json!({ "error": error.problem().detail, "error_type": error_type }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_are_read_as_its_clients_write_them() {
        let cases = [
            (json!("a"), Ok((1, false))),
            (json!(["a"]), Ok((1, false))),
            (json!([["a"]]), Ok((1, true))),
            (json!([["a"], ["b"]]), Ok((2, true))),
            (json!(["a", "b"]), Err("sentence_pair")),
            (json!([["a"], ["b", "c"]]), Err("sentence_pair")),
            (json!([["a"], "b"]), Err("invalid_inputs")),
            (json!([]), Err("invalid_inputs")),
            (json!([[]]), Err("invalid_inputs")),
            (json!([7]), Err("invalid_inputs")),
            (json!({"text": "a"}), Err("invalid_inputs")),
        ];
        for (inputs, expected) in cases {
            let body = json!({ "inputs": inputs }).to_string();
            let actual = parse(body.as_bytes())
                .map(|(texts, asked)| (texts.len(), asked.is_batch))
                .map_err(|it| it.problem().code);
            assert_eq!(actual, expected, "{inputs}");
        }
    }
}
