//! Every path on one screen, and what a key needs for it. None of them acts on a text or on a person.

use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::middleware::{from_fn_with_state, map_response};
use axum::routing::{get, post};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowOrigin, CorsLayer};
use tower_http::set_header::SetResponseHeaderLayer;

use super::access::{self, Guard};
use super::compatible::{hugging_face, inference_v2, tei};
use super::error::ApiError;
use super::{Service, answer, classify, idempotency, info, observe, page};
use crate::keys::Role;

type Routes = Router<Arc<Service>>;

/// The routes over `service`.
pub fn router(service: Arc<Service>) -> Router {
    let classify = Some(Role::Classify);
    let open = Router::new()
        .route("/healthz", get(info::healthz))
        .route("/readyz", get(info::readyz))
        .route("/openapi.json", get(info::openapi))
        .route("/docs", get(page::index))
        .route("/docs/page.js", get(page::script))
        .route("/docs/page.css", get(page::style));
    let own =
        guarded(Router::new().route("/v1/classify", post(classify::classify)), &service, classify);
    let about = guarded(
        Router::new()
            .route("/v1/model", get(info::model))
            .route("/v1/model/card", get(info::model_card))
            .route("/v1/taxonomy", get(info::taxonomy)),
        &service,
        None,
    );
    let operate =
        guarded(Router::new().route("/metrics", get(info::metrics)), &service, Some(Role::Operate));
    let tei = guarded(Router::new().route("/predict", post(tei::predict)), &service, classify)
        .layer(map_response(tei::shape_errors));
    let hugging_face = guarded(
        Router::new()
            .route("/", post(hugging_face::root))
            .route("/models/{model}", post(hugging_face::model)),
        &service,
        classify,
    )
    .layer(map_response(hugging_face::shape_errors));
    let inference_v2 = guarded(
        Router::new().route("/v2/models/{model}/infer", post(inference_v2::infer)),
        &service,
        classify,
    )
    .merge(guarded(
        Router::new()
            .route("/v2", get(inference_v2::server))
            .route("/v2/models/{model}", get(inference_v2::model))
            .route("/v2/models/{model}/ready", get(inference_v2::model_ready)),
        &service,
        None,
    ))
    .route("/v2/health/live", get(inference_v2::live))
    .route("/v2/health/ready", get(inference_v2::ready))
    .layer(map_response(inference_v2::shape_errors));
    open.merge(own)
        .merge(about)
        .merge(operate)
        .merge(tei)
        .merge(hugging_face)
        .merge(inference_v2)
        .fallback(async || ApiError::NotFound)
        .method_not_allowed_fallback(async || ApiError::MethodNotAllowed)
        .layer(CatchPanicLayer::custom(|_panic: Box<dyn std::any::Any + Send>| {
            // The payload is not shown: it may hold anything.
            use axum::response::IntoResponse;
            ApiError::Internal.into_response()
        }))
        .layer(cors(&service.cors_origins))
        .layer(SetResponseHeaderLayer::if_not_present(
            HeaderName::from_static("x-content-type-options"),
            HeaderValue::from_static("nosniff"),
        ))
        .layer(from_fn_with_state(Arc::clone(&service), observe::observe))
        .with_state(service)
}

/// `routes` for keys with `role`, or for any known key. Wrong methods are refused in the same place, so that
/// they take the shape their protocol has for errors.
fn guarded(routes: Routes, service: &Arc<Service>, role: Option<Role>) -> Routes {
    let guard = Guard { service: Arc::clone(service), role };
    routes
        .method_not_allowed_fallback(async || ApiError::MethodNotAllowed)
        .route_layer(from_fn_with_state(Arc::clone(service), idempotency::once))
        // Outside: whose key it is must be known before what was kept for it.
        .route_layer(from_fn_with_state(guard, access::require))
}

/// Pages of other origins may call only when named.
fn cors(origins: &[HeaderValue]) -> CorsLayer {
    let own = |it| HeaderName::from_static(it);
    CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins.iter().cloned()))
        .allow_methods([Method::GET, Method::POST])
        .allow_headers([
            header::AUTHORIZATION,
            header::CONTENT_TYPE,
            own("x-api-key"),
            own("x-request-id"),
            own("traceparent"),
            idempotency::KEY,
            own(answer::LANE),
        ])
        .expose_headers([
            header::RETRY_AFTER,
            own("x-request-id"),
            own("server-timing"),
            idempotency::REPLAYED,
        ])
}
