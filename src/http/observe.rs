//! Every request seen from outside: its id, its place in the caller's trace, its count and its time.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;
use tracing::Instrument;
use tracing::field::Empty;

use super::Service;
use super::error::ApiError;
use crate::telemetry::export::{self, TraceParent};
use crate::telemetry::metrics::NO_ROUTE;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest request id taken over from a caller.
const MAX_ID_CHARS: usize = 64;

/// Counts a request, names it in the log, and sends its id back.
pub async fn observe(
    State(service): State<Arc<Service>>,
    request: Request,
    next: Next,
) -> Response {
    let started = Instant::now();
    let method = method_label(request.method());
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| NO_ROUTE.to_owned(), |it| it.as_str().to_owned());
    let id = accepted_id(request.headers()).unwrap_or_else(fresh_id);
    let parent = trace_parent(request.headers());
    let span = tracing::info_span!(
        "request",
        http.method = method,
        http.route = route,
        request.id = id,
        trace.id = parent.map_or("", |it| it.trace_id),
        http.status = Empty,
        error.code = Empty,
        items.count = Empty,
        otel.name = Empty,
        otel.kind = Empty,
    );
    export::adopt(&span, &format!("{method} {route}"), parent);
    let mut response = next.run(request).instrument(span.clone()).await;
    let status = response.status().as_u16();
    let duration = started.elapsed();
    service.metrics.request(method, &route, status, duration);
    let code = response.extensions().get::<ApiError>().map_or("", |it| it.problem().code);
    span.record("http.status", status);
    if !code.is_empty() {
        span.record("error.code", code);
    }
    span.in_scope(|| {
        tracing::debug!(
            http.status = status,
            http.duration_ms = duration.as_millis() as u64,
            error.code = code,
            "answered"
        );
    });
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

/// A method's name as a label: callers may invent methods, so the others are one.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "OTHER",
    }
}

/// The caller's id for the request. Anything else than a plain id could carry a text into the log, so it is
/// not taken over.
fn accepted_id(headers: &HeaderMap) -> Option<String> {
    let id = headers.get(&REQUEST_ID)?.to_str().ok()?;
    let is_plain = |it: char| it.is_ascii_alphanumeric() || matches!(it, '-' | '_' | '.');
    ((1..=MAX_ID_CHARS).contains(&id.len()) && id.chars().all(is_plain)).then(|| id.to_owned())
}

fn fresh_id() -> String {
    let mut bytes = [0; 16];
    // Without randomness the id is all zeros: still an answer, only less telling.
    let _ = getrandom::fill(&mut bytes);
    bytes.iter().map(|it| format!("{it:02x}")).collect()
}

/// W3C `traceparent`: `00-TRACE-PARENT-FLAGS`.
fn trace_parent(headers: &HeaderMap) -> Option<TraceParent<'_>> {
    let mut parts = headers.get("traceparent")?.to_str().ok()?.split('-');
    let (version, trace, parent, flags) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let is_hex = |it: &str, length: usize| {
        it.len() == length && it.bytes().all(|it| matches!(it, b'0'..=b'9' | b'a'..=b'f'))
    };
    let is_some = |it: &str| it.bytes().any(|it| it != b'0');
    let is_right = is_hex(version, 2)
        && version != "ff"
        && is_hex(trace, 32)
        && is_some(trace)
        && is_hex(parent, 16)
        && is_some(parent)
        && is_hex(flags, 2)
        && (version != "00" || parts.next().is_none());
    let is_sampled = u8::from_str_radix(flags, 16).is_ok_and(|it| it & 1 == 1);
    is_right.then_some(TraceParent { trace_id: trace, parent_id: parent, is_sampled })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        headers
    }

    #[test]
    fn only_plain_ids_are_taken_over() {
        let long = "a".repeat(65);
        let cases =
            [("a-1_b.2", true), ("", false), ("a b", false), ("停水", false), (&long, false)];
        for (id, expected) in cases {
            assert_eq!(accepted_id(&headers("x-request-id", id)).is_some(), expected, "{id}");
        }
        assert_eq!(fresh_id().len(), 32);
        assert_ne!(fresh_id(), fresh_id());
    }

    #[test]
    fn traces_are_read_as_the_standard_writes_them() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        let good = format!("00-{trace}-00f067aa0ba902b7-01");
        let kept = TraceParent { trace_id: trace, parent_id: "00f067aa0ba902b7", is_sampled: true };
        assert_eq!(trace_parent(&headers("traceparent", &good)), Some(kept));
        let dropped = good.replace("-01", "-00");
        let expected = TraceParent { is_sampled: false, ..kept };
        assert_eq!(trace_parent(&headers("traceparent", &dropped)), Some(expected));
        let newer = format!("01-{trace}-00f067aa0ba902b7-01-more");
        assert_eq!(trace_parent(&headers("traceparent", &newer)), Some(kept));
        for bad in [
            "",
            "00",
            &format!("{good}-more"),
            &good.to_uppercase(),
            &good.replace(trace, &"0".repeat(32)),
            &good.replace("00f067aa0ba902b7", &"0".repeat(16)),
            &good.replacen("00", "ff", 1),
        ] {
            assert_eq!(trace_parent(&headers("traceparent", bad)), None, "{bad}");
        }
    }
}
