//! `Idempotency-Key`: a request sent again is answered with the bytes of the first time, whatever version is in
//! service by then, and computed once.
//!
//! Source: draft-ietf-httpapi-idempotency-key-header. Nothing is kept of a request without the header.

use std::sync::Arc;
use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use tracing::Instrument;

use super::answer::on_cpu;
use super::compatible::inference_v2;
use super::error::ApiError;
use super::{Service, access, body};
use crate::replay::{Running, Turn, fingerprint};
use crate::telemetry::metrics::Keyed;

/// Header that names a request, whenever it is sent.
pub const KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Header of an answer that was computed for an earlier request.
pub const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
/// What a key looks like, in quotes or without.
pub const KEY_PATTERN: &str = r#"^("[A-Za-z0-9._~:/+=-]+"|[A-Za-z0-9._~:/+=-]+)$"#;
/// Longest key.
pub const MAX_KEY_CHARS: usize = 255;

/// Marks an answer, good as a whole, that the same request may better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transient;

/// An answer as it can be given again.
#[derive(Debug, Clone)]
pub struct Kept {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
    /// Why it is a refusal, for those who write it in their protocol's shape.
    error: Option<ApiError>,
    is_transient: bool,
}

impl Kept {
    async fn from_response(response: Response) -> Result<Self, ApiError> {
        let (parts, body) = response.into_parts();
        let body = body.collect().await.map_err(|_| ApiError::Internal)?.to_bytes();
        let error = parts.extensions.get().cloned();
        let is_transient = parts.extensions.get::<Transient>().is_some();
        Ok(Self { status: parts.status, headers: parts.headers, body, error, is_transient })
    }

    /// Its size, when it is worth keeping: trying again may cure a refusal.
    fn n_bytes(&self) -> Option<usize> {
        let headers = self.headers.iter().map(|it| it.0.as_str().len() + it.1.len());
        let is_good = self.status.is_success() && !self.is_transient;
        is_good.then(|| self.body.len() + headers.sum::<usize>())
    }

    fn again(self) -> Response {
        let mut response = self.into_response();
        // The time that was taken then says nothing now.
        response.headers_mut().remove("server-timing");
        response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
        response
    }
}

impl IntoResponse for Kept {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.body));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        if let Some(error) = self.error {
            response.extensions_mut().insert(error);
        }
        response
    }
}

/// Answers a request with a key once; every other request goes on untouched.
///
/// # Errors
/// [`ApiError::InvalidIdempotencyKey`], [`ApiError::IdempotencyKeyReused`], or what is wrong with the body.
pub async fn once(
    State(service): State<Arc<Service>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let Some(replays) = &service.replays else { return Ok(next.run(request).await) };
    if request.method() != Method::POST || !request.headers().contains_key(&KEY) {
        return Ok(next.run(request).await);
    }
    let key = key(request.headers()).ok_or(ApiError::InvalidIdempotencyKey)?;
    let caller = request.extensions().get().map_or("", access::Caller::name);
    let key = fingerprint(&[caller.as_bytes(), key.as_bytes()]);
    let (parts, body) = request.into_parts();
    let (body, in_memory) = body::read(&service, &parts.headers, body).await?;
    let head = [
        parts.uri.path_and_query().map_or("", |it| it.as_str()).as_bytes().to_vec(),
        value(&parts.headers, inference_v2::HEADER_LENGTH),
    ];
    let asked = on_cpu({
        let body = body.clone();
        move || fingerprint(&[&head[0], &head[1], &body])
    })
    .await?;
    let metrics = &service.metrics;
    match replays.begin(key, asked, Instant::now()) {
        Turn::Reused => {
            metrics.keyed(Keyed::Reused);
            Err(ApiError::IdempotencyKeyReused)
        }
        Turn::Again(kept) => {
            metrics.keyed(Keyed::Replayed);
            Ok(kept.again())
        }
        Turn::Wait(waiting) => {
            metrics.keyed(Keyed::Waited);
            let kept = waiting.answer().await.ok_or(ApiError::Internal)?;
            Ok(kept.again())
        }
        Turn::First(running) => {
            metrics.keyed(Keyed::First);
            // The handler takes the body's memory for itself.
            drop(in_memory);
            let request = Request::from_parts(parts, Body::from(body));
            // A task of its own: who sends a key comes back for the answer, even when the connection broke.
            let task = tokio::spawn(run(request, next, running).in_current_span());
            Ok(task.await.map_err(|_| ApiError::Internal)??.into_response())
        }
    }
}

/// The answer, kept when it is good, given to those who wait in any case.
async fn run(request: Request, next: Next, running: Running<Kept>) -> Result<Kept, ApiError> {
    let kept = Kept::from_response(next.run(request).await).await?;
    running.done(kept.clone(), kept.n_bytes(), Instant::now());
    Ok(kept)
}

/// The key, in quotes as the draft writes it or without.
fn key(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(&KEY).iter();
    let value = values.next()?.to_str().ok()?.trim();
    let inner = value.strip_prefix('"').and_then(|it| it.strip_suffix('"')).unwrap_or(value);
    let is_plain = |it: u8| it.is_ascii_alphanumeric() || b"._~:/+=-".contains(&it);
    let is_right = (1..=MAX_KEY_CHARS).contains(&inner.len()) && inner.bytes().all(is_plain);
    (is_right && values.next().is_none()).then_some(inner)
}

fn value(headers: &HeaderMap, name: &str) -> Vec<u8> {
    headers.get(name).map(|it| it.as_bytes().to_vec()).unwrap_or_default()
}

/// The replies of a service, by caller and key.
pub type Replays = crate::replay::Replays<Kept>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_the_draft_and_as_most_callers_write_them() {
        let long = "k".repeat(256);
        let cases = [
            ("8e03978e-40d5-43dd-bc93-6894a57f9324", Some("8e03978e-40d5-43dd-bc93-6894a57f9324")),
            ("\"8e03978e\"", Some("8e03978e")),
            ("", None),
            ("\"\"", None),
            ("a b", None),
            ("{}", None),
            ("aGk/+=", Some("aGk/+=")),
            ("\"a", None),
            ("\"a\", \"b\"", None),
            ("停水", None),
            (&long, None),
            (&long[1..], Some(&long[1..])),
        ];
        for (value, expected) in cases {
            let mut headers = HeaderMap::new();
            headers.insert(KEY, HeaderValue::from_bytes(value.as_bytes()).unwrap());
            assert_eq!(key(&headers), expected, "{value}");
        }
        let mut twice = HeaderMap::new();
        twice.append(KEY, HeaderValue::from_static("a"));
        twice.append(KEY, HeaderValue::from_static("a"));
        assert_eq!(key(&twice), None);
    }
}
