//! Every inner error to a status, a stable code and safe text (RFC 9457).

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use utoipa::ToSchema;

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
    /// No such path.
    NotFound,
    /// The path knows other methods.
    MethodNotAllowed,
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

    /// The problem document.
    pub fn problem(&self) -> Problem {
        let (status, code, detail) = self.parts();
        let (limit, actual, pointer) = match self {
            Self::BodyTooLarge { limit, actual } => (Some(*limit), *actual, None),
            Self::SlowBody { limit } | Self::DeadlineExceeded { limit } => {
                (Some(*limit), None, None)
            }
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

impl From<InferError> for ApiError {
    fn from(error: InferError) -> Self {
        match error {
            InferError::Overloaded => Self::Overloaded,
            InferError::Stopped => Self::Stopping,
            InferError::Model => Self::Internal,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        const RETRY_SECONDS: HeaderValue = HeaderValue::from_static("1");
        let (status, _, _) = self.parts();
        let mut response = (status, Json(self.problem())).into_response();
        let headers = response.headers_mut();
        let problem = HeaderValue::from_static("application/problem+json");
        headers.insert(header::CONTENT_TYPE, problem);
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, RETRY_SECONDS);
        }
        if matches!(self, Self::SlowBody { .. } | Self::BodyTooLarge { .. } | Self::Stopping) {
            // What is left of the body is not read.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}
