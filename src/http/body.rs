//! A request's body: its kind, size, speed and depth are checked before any of it is understood.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;

use super::error::ApiError;
use super::{BODY_STEP, Service};

/// Deepest nesting of arrays and objects; no request of ours needs half of it.
pub const MAX_DEPTH: usize = 16;

/// What a body may be announced as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Media {
    /// JSON only.
    Json,
    /// JSON, raw bytes, or nothing said: clients of the Open Inference Protocol say little.
    Any,
}

/// # Errors
/// [`ApiError::UnsupportedMediaType`] when the announced kind is none of `media`, or compressed.
pub fn require(media: Media, headers: &HeaderMap) -> Result<(), ApiError> {
    let text = |name| headers.get(name).map(|it: &HeaderValue| it.to_str().unwrap_or(""));
    let kind = text(header::CONTENT_TYPE);
    let kind = kind.map(|it| it.split(';').next().unwrap_or("").trim().to_ascii_lowercase());
    let is_right = match (media, kind.as_deref()) {
        (_, Some("application/json")) => true,
        (Media::Any, None | Some("application/octet-stream")) => true,
        (Media::Json | Media::Any, _) => false,
    };
    let is_plain =
        text(header::CONTENT_ENCODING).is_none_or(|it| it.eq_ignore_ascii_case("identity"));
    if is_right && is_plain { Ok(()) } else { Err(ApiError::UnsupportedMediaType) }
}

/// The body, and its share of the memory all bodies may take together.
///
/// # Errors
/// [`ApiError`] when it is too large, too slow, broken off, or finds no room.
pub async fn read(
    service: &Service,
    headers: &HeaderMap,
    body: Body,
) -> Result<(Bytes, OwnedSemaphorePermit), ApiError> {
    let limit = service.limits.max_body_bytes;
    let announced: Option<usize> = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|it| it.to_str().ok())
        .and_then(|it| it.parse().ok());
    let too_large = |actual: Option<usize>| ApiError::BodyTooLarge {
        limit: limit as u64,
        actual: actual.map(|it| it as u64),
    };
    if announced.is_some_and(|it| it > limit) {
        return Err(too_large(announced));
    }
    let n_steps = announced.unwrap_or(limit).div_ceil(BODY_STEP).max(1);
    let in_memory = Arc::clone(&service.bodies)
        .try_acquire_many_owned(n_steps as u32)
        .map_err(|_| ApiError::Overloaded)?;
    let timeout = service.limits.body_timeout;
    let collected = tokio::time::timeout(timeout, Limited::new(body, limit).collect())
        .await
        .map_err(|_| ApiError::SlowBody { limit: timeout.as_secs() })?;
    match collected {
        Ok(body) => Ok((body.to_bytes(), in_memory)),
        Err(error) if error.is::<LengthLimitError>() => Err(too_large(None)),
        Err(_) => Err(ApiError::BrokenBody),
    }
}

/// `body` as JSON of bounded depth.
///
/// # Errors
/// [`ApiError::TooDeep`] before anything is built, [`ApiError::InvalidJson`] by place and never by content.
pub fn json(body: &[u8]) -> Result<Value, ApiError> {
    if depth_exceeds(body, MAX_DEPTH) {
        return Err(ApiError::TooDeep { limit: MAX_DEPTH as u64 });
    }
    serde_json::from_slice(body)
        .map_err(|it| ApiError::InvalidJson { line: it.line(), column: it.column() })
}

/// One pass over the bytes, without building anything. Right for valid JSON; what is not JSON may be judged
/// either way, and is refused by the parser anyway.
fn depth_exceeds(body: &[u8], limit: usize) -> bool {
    let (mut depth, mut in_string, mut is_escaped) = (0_usize, false, false);
    for &byte in body {
        if in_string {
            match byte {
                _ if is_escaped => is_escaped = false,
                b'\\' => is_escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'[' | b'{' => {
                depth += 1;
                if depth > limit {
                    return true;
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn depth_is_counted_outside_strings_only() {
        let cases = [
            ("[[1]]", false),
            ("[[[1]]]", true),
            (r#"["[[[[",{"]":"\"[[["}]"#, false),
            ("[1],[1],[1]", false),
            ("]]][[", false),
        ];
        for (body, expected) in cases {
            assert_eq!(depth_exceeds(body.as_bytes(), 2), expected, "{body}");
        }
    }

    /// The depth of `value`; a scalar has none.
    fn depth(value: &Value) -> usize {
        match value {
            Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
            Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
            _ => 0,
        }
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![any::<bool>().prop_map(Value::from), ".{0,8}".prop_map(Value::from)];
        leaf.prop_recursive(6, 32, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::vec((".{0,4}", inner), 0..4)
                    .prop_map(|it| Value::Object(it.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn the_quick_depth_is_the_depth_of_the_value(value in any_json(), limit in 0_usize..6) {
            let body = value.to_string();
            prop_assert_eq!(depth_exceeds(body.as_bytes(), limit), depth(&value) > limit);
        }

        #[test]
        fn hostile_bytes_are_refused_without_panic(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Err(error) = json(&body) {
                prop_assert_eq!(error.status().as_u16(), 400);
            }
        }
    }
}
