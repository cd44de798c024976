//! Every path on one screen. None of them acts on a text or on a person.

use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::map_response;
use axum::routing::{get, post};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::set_header::SetResponseHeaderLayer;

use super::compatible::{hugging_face, inference_v2, tei};
use super::error::ApiError;
use super::{Service, classify, info};

/// The routes over `service`.
pub fn router(service: Arc<Service>) -> Router {
    let tei = Router::new()
        .route("/predict", post(tei::predict))
        .method_not_allowed_fallback(async || ApiError::MethodNotAllowed)
        .layer(map_response(tei::shape_errors));
    let hugging_face = Router::new()
        .route("/", post(hugging_face::root))
        .route("/models/{model}", post(hugging_face::model))
        .method_not_allowed_fallback(async || ApiError::MethodNotAllowed)
        .layer(map_response(hugging_face::shape_errors));
    let inference_v2 = Router::new()
        .route("/v2", get(inference_v2::server))
        .route("/v2/health/live", get(inference_v2::live))
        .route("/v2/health/ready", get(inference_v2::ready))
        .route("/v2/models/{model}", get(inference_v2::model))
        .route("/v2/models/{model}/ready", get(inference_v2::model_ready))
        .route("/v2/models/{model}/infer", post(inference_v2::infer))
        .method_not_allowed_fallback(async || ApiError::MethodNotAllowed)
        .layer(map_response(inference_v2::shape_errors));
    Router::new()
        .merge(tei)
        .merge(hugging_face)
        .merge(inference_v2)
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
        .with_state(service)
}
