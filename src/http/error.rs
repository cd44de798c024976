//! Every inner error to a status, a stable code and safe text (RFC 9457).

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use utoipa::ToSchema;

use super::idempotency;
use crate::domain::case::TextError;
use crate::inference::InferError;

/// `application/problem+json`: why a request as a whole was refused.
#[derive(Debug, Clone, PartialEq, serde::Serialize, ToSchema)]
pub struct Problem {
    /// Stable URN made of the code.
    #[serde(rename = "type")]
    pub kind: String,
    /// The status in words.
    pub title: &'static str,
    /// HTTP status.
    pub status: u16,
    /// Stable code.
    pub code: &'static str,
    /// What is wrong and how to put it right.
    pub detail: String,
    /// The limit that was passed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// What was sent, in the limit's unit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actual: Option<u64>,
    /// JSON pointer to the place in the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pointer: Option<String>,
}

/// Why a request as a whole is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApiError {
    /// The body is not JSON.
    InvalidJson {
        /// Where it stops being JSON.
        line: usize,
        /// Where it stops being JSON.
        column: usize,
    },
    /// The body is nested too deeply to be meant.
    TooDeep {
        /// Levels allowed.
        limit: u64,
    },
    /// The body broke off.
    BrokenBody,
    /// The body took too long to arrive.
    SlowBody {
        /// Seconds allowed.
        limit: u64,
    },
    /// The body is too large.
    BodyTooLarge {
        /// Bytes allowed.
        limit: u64,
        /// Bytes announced, when they were.
        actual: Option<u64>,
    },
    /// The body is something else than JSON.
    UnsupportedMediaType,
    /// JSON of a wrong meaning.
    Semantic {
        /// Stable code.
        code: &'static str,
        /// What is wrong and how to put it right.
        detail: String,
        /// JSON pointer.
        pointer: String,
        /// Limit and actual value.
        bound: Option<(u64, u64)>,
    },
    /// An `Idempotency-Key` that is none.
    InvalidIdempotencyKey,
    /// An `Idempotency-Key` another request had.
    IdempotencyKeyReused,
    /// No key, or none that is known.
    Unauthorized,
    /// A key without the role.
    Forbidden {
        /// The role it takes.
        role: &'static str,
    },
    /// The key's requests of this minute are used up.
    RateLimited {
        /// Requests a minute allowed.
        limit: u64,
        /// Seconds until the next one is.
        retry_seconds: u64,
    },
    /// No such path.
    NotFound,
    /// No model of that name.
    UnknownModel,
    /// The path knows other methods.
    MethodNotAllowed,
    /// No model is loaded yet.
    Loading,
    /// No room for the request now.
    Overloaded,
    /// The service is stopping.
    Stopping,
    /// The answer would come too late.
    DeadlineExceeded {
        /// Milliseconds allowed.
        limit: u64,
    },
    /// A bug; the cause is in the log.
    Internal,
}

impl ApiError {
    /// Exhaustive on purpose: a new variant does not compile until it has a status.
    fn parts(&self) -> (StatusCode, &'static str, String) {
        match self {
            Self::InvalidJson { line, column } => (
                StatusCode::BAD_REQUEST,
                "invalid_json",
                format!("the body is not JSON (UTF-8) from line {line}, column {column} on"),
            ),
            Self::TooDeep { limit } => (
                StatusCode::BAD_REQUEST,
                "json_too_deep",
                format!(
                    "arrays and objects nest at most {limit} deep; send what the contract names"
                ),
            ),
            Self::BrokenBody => {
                (StatusCode::BAD_REQUEST, "broken_body", "the body broke off; send it again".into())
            }
            Self::SlowBody { limit } => (
                StatusCode::REQUEST_TIMEOUT,
                "slow_body",
                format!(
                    "the body did not arrive within {limit} seconds; send it faster or split it"
                ),
            ),
            Self::BodyTooLarge { limit, .. } => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "body_too_large",
                format!("a body has at most {limit} bytes; send fewer items at a time"),
            ),
            Self::UnsupportedMediaType => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_media_type",
                "send `Content-Type: application/json` and no Content-Encoding".into(),
            ),
            Self::Semantic { code, detail, .. } => {
                (StatusCode::UNPROCESSABLE_ENTITY, code, detail.clone())
            }
            Self::InvalidIdempotencyKey => (
                StatusCode::BAD_REQUEST,
                "invalid_idempotency_key",
                format!(
                    "`Idempotency-Key` is one key of 1 to {} letters, digits and `._~:/+=-`; a fresh UUID is a good one",
                    idempotency::MAX_KEY_CHARS
                ),
            ),
            Self::IdempotencyKeyReused => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "idempotency_key_reused",
                "another request had this `Idempotency-Key`; send a fresh key with every new request".into(),
            ),
            Self::Unauthorized => (
                StatusCode::UNAUTHORIZED,
                "unauthorized",
                "send a known key as `Authorization: Bearer KEY` or `X-API-Key: KEY`; \
                 `triage keys new` makes one"
                    .into(),
            ),
            Self::Forbidden { role } => (
                StatusCode::FORBIDDEN,
                "forbidden",
                format!(
                    "the key lacks the role `{role}`; use one that has it, or add it in the keys file"
                ),
            ),
            Self::RateLimited { limit, retry_seconds } => (
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limited",
                format!(
                    "the key may send {limit} requests a minute; try again in {retry_seconds} s"
                ),
            ),
            Self::UnknownModel => (
                StatusCode::NOT_FOUND,
                "unknown_model",
                "no model of that name is served here; use `triage`".into(),
            ),
            Self::Loading => (
                StatusCode::SERVICE_UNAVAILABLE,
                "loading",
                "the model is being loaded; try again after the time in Retry-After".into(),
            ),
            Self::NotFound => {
                (StatusCode::NOT_FOUND, "not_found", "no such path; see /openapi.json".into())
            }
            Self::MethodNotAllowed => (
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "the path has no such method; see the Allow header and /openapi.json".into(),
            ),
            Self::Overloaded => (
                StatusCode::SERVICE_UNAVAILABLE,
                "overloaded",
                "the waiting line is full; try again after the time in Retry-After".into(),
            ),
            Self::Stopping => (
                StatusCode::SERVICE_UNAVAILABLE,
                "stopping",
                "the service is stopping; try again after the time in Retry-After".into(),
            ),
            Self::DeadlineExceeded { limit } => (
                StatusCode::GATEWAY_TIMEOUT,
                "deadline_exceeded",
                format!("no answer within {limit} ms; try later, send fewer items or allow more"),
            ),
            Self::Internal => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal",
                "something failed here; the cause is in the service's log".into(),
            ),
        }
    }

    /// When to try again, where that is the cure.
    pub(super) fn retry_seconds(&self) -> Option<u64> {
        match self {
            Self::RateLimited { retry_seconds, .. } => Some(*retry_seconds),
            Self::Overloaded | Self::Stopping | Self::Loading => Some(1),
            _ => None,
        }
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        self.parts().0
    }

    /// What is wrong with the text at `pointer`.
    pub fn text(error: &TextError, pointer: String) -> Self {
        let (code, bound) = match *error {
            TextError::Empty => ("empty_text", None),
            TextError::TooLong { limit, actual } => {
                ("long_text", Some((limit as u64, actual as u64)))
            }
        };
        Self::Semantic { code, detail: error.to_string(), pointer, bound }
    }

    /// Why there is no prediction; `limit` is the time that was allowed for it.
    pub fn infer(error: InferError, limit: Duration) -> Self {
        match error {
            InferError::Overloaded => Self::Overloaded,
            InferError::Stopped => Self::Stopping,
            InferError::TooLate => Self::DeadlineExceeded { limit: limit.as_millis() as u64 },
            InferError::Model => Self::Internal,
        }
    }

    /// The problem document.
    pub fn problem(&self) -> Problem {
        let (status, code, detail) = self.parts();
        let (limit, actual, pointer) = match self {
            Self::BodyTooLarge { limit, actual } => (Some(*limit), *actual, None),
            Self::SlowBody { limit }
            | Self::DeadlineExceeded { limit }
            | Self::TooDeep { limit }
            | Self::RateLimited { limit, .. } => (Some(*limit), None, None),
            Self::Semantic { pointer, bound, .. } => {
                (bound.map(|it| it.0), bound.map(|it| it.1), Some(pointer.clone()))
            }
            _ => (None, None, None),
        };
        Problem {
            kind: format!("urn:opinion-triage:{code}"),
            title: status.canonical_reason().unwrap_or("error"),
            status: status.as_u16(),
            code,
            detail,
            limit,
            actual,
            pointer,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, _, _) = self.parts();
        let mut response = (status, Json(self.problem())).into_response();
        let headers = response.headers_mut();
        let problem = HeaderValue::from_static("application/problem+json");
        headers.insert(header::CONTENT_TYPE, problem);
        if let Some(seconds) = self.retry_seconds() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if matches!(self, Self::Unauthorized) {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if matches!(self, Self::SlowBody { .. } | Self::BodyTooLarge { .. } | Self::Stopping) {
            // What is left of the body is not read.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        // For whoever has to count it, log it or put it into another protocol's shape.
        response.extensions_mut().insert(self);
        response
    }
}
