//! Who may call which route: the key's roles and its requests a minute, before the body is read.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::Response;

use super::Service;
use super::error::ApiError;
use crate::keys::Role;

/// What a route takes.
#[derive(Clone)]
pub struct Guard {
    /// Where the keys are.
    pub service: Arc<Service>,
    /// The role a key needs; any known key will do when there is none.
    pub role: Option<Role>,
}

/// Lets a request pass whose key has the role and requests left; every request when the service has no keys.
///
/// # Errors
/// [`ApiError::Unauthorized`], [`ApiError::Forbidden`] or [`ApiError::RateLimited`].
pub async fn require(
    State(Guard { service, role }): State<Guard>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    if let Some(access) = &service.access {
        let keys = access.keys.current();
        let key = presented(request.headers()).and_then(|it| keys.find(it));
        let key = key.ok_or(ApiError::Unauthorized)?;
        if let Some(role) = role
            && !key.roles.contains(&role)
        {
            return Err(ApiError::Forbidden { role: role.code() });
        }
        access.quotas.take(key, Instant::now()).map_err(|(limit, retry_seconds)| {
            ApiError::RateLimited { limit: limit.get().into(), retry_seconds }
        })?;
        tracing::debug!(key.name = key.name, "key accepted");
    }
    Ok(next.run(request).await)
}

/// The key in `Authorization: Bearer` or `X-API-Key`.
fn presented(headers: &HeaderMap) -> Option<&str> {
    let bearer = || {
        let (scheme, key) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(key.trim())
    };
    bearer().or_else(|| headers.get("x-api-key")?.to_str().ok())
}
