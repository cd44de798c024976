//! Routes other systems' clients already know, thin over the same engine: text-embeddings-inference,
//! Hugging Face text classification, and the Open Inference Protocol. Their scores are those of
//! `POST /v1/classify`; their errors have their own shapes.

pub mod hugging_face;
pub mod inference_v2;
pub mod tei;

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value};

use super::access::{Caller, UNCALIBRATED};
use super::error::ApiError;
use utoipa::openapi::schema::{ObjectBuilder, Type};

use crate::domain::author::is_author_field;
use crate::domain::case::MAX_TEXT_CHARS;
use crate::reply::ClassifiedItem;

/// The name our model goes by in protocols that name one.
pub const MODEL: &str = "triage";

/// A label with its score.
#[derive(Debug, Clone, PartialEq, serde::Serialize, utoipa::ToSchema)]
pub struct Scored {
    /// Code of the type.
    #[schema(example = "problem")]
    pub label: String,
    /// Its score.
    #[schema(example = 0.9645)]
    pub score: f32,
}

/// How scores are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Scores {
    /// Calibrated probabilities, as `POST /v1/classify` gives them.
    #[default]
    Probabilities,
    /// Uncalibrated scores.
    Raw,
    /// The logistic function of the uncalibrated scores.
    Sigmoid,
}

impl Scores {
    /// # Errors
    /// [`ApiError::Forbidden`] when `caller` may not see them.
    fn require(self, caller: &Caller) -> Result<(), ApiError> {
        match self {
            Self::Probabilities => Ok(()),
            Self::Raw | Self::Sigmoid => caller.require(UNCALIBRATED),
        }
    }
}

/// The labels of `item`, best first.
fn ranked(item: &ClassifiedItem<'_>, scores: Scores) -> Vec<Scored> {
    let logits = || item.logits.iter().flat_map(|it| it.0.iter().copied());
    let pairs: Vec<(&str, f32)> = match scores {
        Scores::Probabilities => item.probabilities.0.clone(),
        Scores::Raw => logits().collect(),
        Scores::Sigmoid => logits().map(|(code, it)| (code, 1.0 / (1.0 + (-it).exp()))).collect(),
    };
    let mut ranked: Vec<Scored> =
        pairs.into_iter().map(|(code, score)| Scored { label: code.into(), score }).collect();
    ranked.sort_by(|a, b| b.score.total_cmp(&a.score));
    ranked
}

/// The object `value`, after its field names were checked.
fn fields(value: Value, known: &[&str], at: &str) -> Result<Map<String, Value>, ApiError> {
    let Value::Object(fields) = value else {
        let detail = format!("this must be an object with some of {}", known.join(", "));
        return Err(semantic("not_an_object", detail, at.into()));
    };
    for name in fields.keys() {
        if is_author_field(name) {
            let detail =
                "triage is author-blind: leave out every field that names or describes the author";
            return Err(semantic("author_field", detail.into(), at.into()));
        }
        if !known.contains(&name.as_str()) {
            let detail = format!("fields here are {}", known.join(", "));
            return Err(semantic("unknown_field", detail, at.into()));
        }
    }
    Ok(fields)
}

/// # Errors
/// [`ApiError::Semantic`] when the field `name` of `fields` is there and no object.
fn skip_object(fields: &mut Map<String, Value>, name: &str, at: &str) -> Result<(), ApiError> {
    match fields.remove(name) {
        None | Some(Value::Null | Value::Object(_)) => Ok(()),
        Some(_) => {
            let detail = format!("`{name}` is an object, or left out");
            Err(semantic("wrong_type", detail, format!("{at}/{name}")))
        }
    }
}

/// A text, for the contract: with something visible in it.
fn text_schema() -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .min_length(Some(1))
        .max_length(Some(MAX_TEXT_CHARS))
        .pattern(Some(r"\S"))
}

/// The flag `name` of `fields`; false when absent or null.
fn flag(fields: &mut Map<String, Value>, name: &str) -> Result<bool, ApiError> {
    match fields.remove(name) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(it)) => Ok(it),
        Some(_) => {
            Err(semantic("wrong_type", format!("`{name}` is true or false"), format!("/{name}")))
        }
    }
}

fn semantic(code: &'static str, detail: String, pointer: String) -> ApiError {
    ApiError::Semantic { code, detail, pointer, bound: None }
}

/// `response` with `body` instead of the problem document, when it is one; its headers stay.
fn reshape(response: Response, body: impl FnOnce(&ApiError) -> (StatusCode, Value)) -> Response {
    let Some(error) = response.extensions().get::<ApiError>().cloned() else { return response };
    let (status, body) = body(&error);
    let mut reshaped = (status, Json(body)).into_response();
    for (name, value) in response.headers() {
        if ![header::CONTENT_TYPE, header::CONTENT_LENGTH].contains(name) {
            reshaped.headers_mut().insert(name, value.clone());
        }
    }
    // Whoever counts or logs errors further out still sees which one it was.
    reshaped.extensions_mut().insert(error);
    reshaped
}
