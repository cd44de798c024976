//! Every path on one screen. None of them acts on a text or on a person.

use axum::Router;
use axum::http::{HeaderName, HeaderValue};
use axum::routing::{get, post};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::set_header::SetResponseHeaderLayer;

use super::error::ApiError;
use super::{Live, classify, info};

/// The routes over `service`.
pub fn router(service: impl Into<Live>) -> Router {
    Router::new()
        .route("/v1/classify", post(classify::classify))
        .route("/v1/model", get(info::model))
        .route("/v1/taxonomy", get(info::taxonomy))
        .route("/healthz", get(info::healthz))
        .route("/readyz", get(info::readyz))
        .route("/openapi.json", get(info::openapi))
        .fallback(async || ApiError::NotFound)
        .method_not_allowed_fallback(async || ApiError::MethodNotAllowed)
        .layer(CatchPanicLayer::custom(|_panic: Box<dyn std::any::Any + Send>| {
            // The payload is not shown: it may hold anything.
            use axum::response::IntoResponse;
            ApiError::Internal.into_response()
        }))
        .layer(SetResponseHeaderLayer::if_not_present(
            HeaderName::from_static("x-content-type-options"),
            HeaderValue::from_static("nosniff"),
        ))
        .with_state(service.into())
}
