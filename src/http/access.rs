//! Who may call which route: the key's roles and its requests a minute, before the body is read.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::Response;

use super::Service;
use super::error::ApiError;
use crate::keys::Role;

/// The role a key needs to see scores that are not calibrated: they are for fitting and comparing models, and whoever
/// acts on them acts on the wrong numbers.
pub const UNCALIBRATED: Role = Role::Train;

/// What a route takes.
#[derive(Clone)]
pub struct Guard {
    /// Where the keys are.
    pub service: Arc<Service>,
    /// The role a key needs; any known key will do when there is none.
    pub role: Option<Role>,
}

/// Whose key a request came with; nobody's, where the service has no keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caller(Option<(String, Vec<Role>)>);

impl Caller {
    /// The key's name; empty for nobody.
    pub fn name(&self) -> &str {
        self.0.as_ref().map_or("", |it| &it.0)
    }

    /// # Errors
    /// [`ApiError::Forbidden`] when the caller has a key and it lacks `role`.
    pub fn require(&self, role: Role) -> Result<(), ApiError> {
        match &self.0 {
            Some((_, roles)) if !roles.contains(&role) => {
                Err(ApiError::Forbidden { role: role.code() })
            }
            _ => Ok(()),
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Infallible> {
        Ok(parts.extensions.get().cloned().unwrap_or_default())
    }
}

/// Lets a request pass whose key has the role and requests left; every request when the service has no keys.
///
/// # Errors
/// [`ApiError::Unauthorized`], [`ApiError::Forbidden`] or [`ApiError::RateLimited`].
pub async fn require(
    State(Guard { service, role }): State<Guard>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    if let Some(access) = &service.access {
        let keys = access.keys.current();
        let key = presented(request.headers()).and_then(|it| keys.find(it));
        let key = key.ok_or(ApiError::Unauthorized)?;
        let caller = Caller(Some((key.name.clone(), key.roles.clone())));
        role.map_or(Ok(()), |it| caller.require(it))?;
        access.quotas.take(key, Instant::now()).map_err(|(limit, retry_seconds)| {
            ApiError::RateLimited { limit: limit.get().into(), retry_seconds }
        })?;
        tracing::debug!(key.name = key.name, "key accepted");
        request.extensions_mut().insert(caller);
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
