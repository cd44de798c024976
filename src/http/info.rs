//! What the service says about itself: health, model, taxonomy, contract.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityRequirement, SecurityScheme,
};
use utoipa::{Modify, OpenApi, ToSchema};

use super::compatible::{hugging_face, inference_v2, tei};
use super::documented::Idempotency;
use super::error::ApiError;
use super::wire::Model;
use super::{Service, classify, documented, error, examples, page};
use crate::cache::PredictionCache;
use crate::inference::plan::Lane;
use crate::reply::Due;
use crate::telemetry::metrics::{MEDIA_TYPE, Metrics, NO_ROUTE};

/// State of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, ToSchema)]
pub struct Health {
    /// `ok`, or for readiness `ready`, `loading`, `full`, `draining` or `stopped`.
    pub status: &'static str,
    /// Panics the model thread survived since the start; only in readiness.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker_panics: Option<u64>,
}

/// The model in use.
#[derive(Debug, serde::Serialize, ToSchema)]
pub struct ModelReply<'a> {
    /// Which it is.
    #[serde(flatten)]
    pub identity: Model<'a>,
    /// How it was made: the bundle's manifest.
    #[schema(value_type = Object)]
    pub bundle: &'a Value,
    /// How good it is, as measured when it was trained; null when it was not.
    #[schema(value_type = Option<Object>)]
    pub metrics: &'a Value,
    /// Digest of the taxonomy and review policy in force.
    pub policy_digest: &'a str,
}

/// What the labels mean.
#[derive(Debug, serde::Serialize, ToSchema)]
pub struct TaxonomyReply<'a> {
    /// Incident types, in order.
    pub types: Vec<TypeReply<'a>>,
    /// Sensitivity levels from 0 up.
    pub levels: Vec<LevelReply<'a>>,
    /// Grounds for a level.
    pub grounds: Vec<NamedReply<'a>>,
    /// Digest of the taxonomy and review policy.
    pub policy_digest: &'a str,
}

/// An incident type.
#[derive(Debug, serde::Serialize, ToSchema)]
pub struct TypeReply<'a> {
    /// Stable code.
    pub code: &'a str,
    /// Chinese name.
    pub zh: &'a str,
    /// What belongs to it, in Chinese.
    pub definition: &'a str,
    /// How it is answered, in one Chinese sentence.
    pub principle: &'a str,
    /// What to do, in order, in Chinese.
    pub steps: &'a [String],
    /// Response clocks; advice.
    pub due: Due,
}

/// A sensitivity level.
#[derive(Debug, serde::Serialize, ToSchema)]
pub struct LevelReply<'a> {
    /// The level.
    pub level: usize,
    /// Chinese name.
    pub zh: &'a str,
}

/// A code with its Chinese name.
#[derive(Debug, serde::Serialize, ToSchema)]
pub struct NamedReply<'a> {
    /// Stable code.
    pub code: &'a str,
    /// Chinese name.
    pub zh: &'a str,
}

/// The contract, generated from the types.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "opinion-triage",
        description = "Triage of Chinese public-opinion items. A result is a proposal; a person decides.",
    ),
    modifiers(&Keys, &Idempotency),
    paths(
        classify::classify,
        model,
        model_card,
        taxonomy,
        healthz,
        readyz,
        metrics,
        openapi,
        page::index,
        page::script,
        page::style,
        tei::predict,
        hugging_face::root,
        hugging_face::model,
        inference_v2::server,
        inference_v2::live,
        inference_v2::ready,
        inference_v2::model,
        inference_v2::model_ready,
        inference_v2::infer,
    ),
    components(schemas(error::Problem, tei::TeiError, hugging_face::HuggingFaceError, inference_v2::InferenceError))
)]
pub struct ApiDoc;

/// The ways to send a key. A service without keys asks for none.
struct Keys;

impl Modify for Keys {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let components = openapi.components.get_or_insert_default();
        let bearer = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        let header = SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("X-API-Key")));
        components.add_security_scheme("bearer", bearer);
        components.add_security_scheme("header", header);
        let none: [&str; 0] = [];
        openapi.security = Some(vec![
            SecurityRequirement::default(),
            SecurityRequirement::new("bearer", none),
            SecurityRequirement::new("header", none),
        ]);
    }
}

/// Whether the process lives.
#[utoipa::path(get, path = "/healthz", responses((status = 200, description = "It lives", body = Health, example = json!({"status": "ok"}))))]
pub async fn healthz() -> Json<Health> {
    Json(Health { status: "ok", worker_panics: None })
}

/// Whether new items would be taken now.
#[utoipa::path(
    get,
    path = "/readyz",
    responses(
        (status = 200, description = "Ready", body = Health, example = json!({"status": "ready", "worker_panics": 0})),
        (status = 503, description = "Loading, full, draining or stopped", body = Health, example = json!({"status": "draining", "worker_panics": 0})),
    )
)]
pub async fn readyz(State(service): State<Arc<Service>>) -> Response {
    let readiness = service.readiness();
    let code = if readiness.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let worker_panics = Some(service.metrics.n_panics());
    (code, Json(Health { status: readiness.code(), worker_panics })).into_response()
}

/// The model in use.
#[utoipa::path(get, path = "/v1/model", responses((status = 200, description = "The model", body = ModelReply, example = json!(examples::model_reply())), documented::About))]
pub async fn model(State(service): State<Arc<Service>>) -> Result<Response, ApiError> {
    let serving = service.serving()?;
    let pipeline = &serving.pipeline;
    let identity = pipeline.identity();
    let metadata = pipeline.metadata();
    let reply = ModelReply {
        identity: Model {
            name: &identity.name,
            version: &identity.version,
            digest: &identity.digest,
        },
        bundle: &metadata["bundle"],
        metrics: &metadata["metrics"],
        policy_digest: pipeline.policy_digest(),
    };
    Ok(Json(reply).into_response())
}

/// The model card: what the version is for, how it was made, how good it is.
#[utoipa::path(get, path = "/v1/model/card", responses((status = 200, description = "Markdown", body = String, content_type = "text/markdown"), documented::About))]
pub async fn model_card(State(service): State<Arc<Service>>) -> Result<Response, ApiError> {
    let card = service.serving()?.pipeline.card().to_owned();
    Ok(([(header::CONTENT_TYPE, "text/markdown; charset=utf-8")], card).into_response())
}

/// What the labels mean, and how each type is handled.
#[utoipa::path(get, path = "/v1/taxonomy", responses((status = 200, description = "The taxonomy", body = TaxonomyReply, example = json!(examples::taxonomy())), documented::About))]
pub async fn taxonomy(State(service): State<Arc<Service>>) -> Result<Response, ApiError> {
    let serving = service.serving()?;
    let taxonomy = serving.pipeline.taxonomy();
    let reply = TaxonomyReply {
        types: taxonomy
            .types
            .iter()
            .map(|it| TypeReply {
                code: &it.code,
                zh: &it.zh,
                definition: &it.definition,
                principle: &it.principle,
                steps: &it.steps,
                due: it.due.into(),
            })
            .collect(),
        levels: taxonomy
            .levels
            .iter()
            .enumerate()
            .map(|(level, it)| LevelReply { level, zh: &it.zh })
            .collect(),
        grounds: taxonomy
            .grounds
            .iter()
            .map(|it| NamedReply { code: &it.code, zh: &it.zh })
            .collect(),
        policy_digest: serving.pipeline.policy_digest(),
    };
    Ok(Json(reply).into_response())
}

/// This contract.
#[utoipa::path(get, path = "/openapi.json", responses((status = 200, description = "OpenAPI", body = Object)))]
pub async fn openapi() -> Response {
    Json(ApiDoc::openapi()).into_response()
}

/// Counts and times for Prometheus.
#[utoipa::path(get, path = "/metrics", responses((status = 200, description = "OpenMetrics text", body = String, content_type = "application/openmetrics-text"), documented::Operate))]
pub async fn metrics(State(service): State<Arc<Service>>) -> Response {
    let metrics = &service.metrics;
    // What is a state and not an event is looked up when somebody asks.
    metrics.set_ready(service.readiness().is_ready());
    if let Some(serving) = service.current() {
        for lane in Lane::ALL {
            metrics.set_waiting(lane.code(), serving.engine.n_waiting(lane));
        }
        metrics.set_cache_bytes(serving.cache.as_ref().map_or(0, PredictionCache::bytes));
    }
    if let Some(replays) = &service.replays {
        metrics.set_replay_bytes(replays.bytes());
    }
    ([(header::CONTENT_TYPE, MEDIA_TYPE)], metrics.encode()).into_response()
}

/// Makes the series of every documented route and status, so that all are there from the start.
pub fn declare(metrics: &Metrics) {
    for (route, item) in &ApiDoc::openapi().paths.paths {
        for (method, operation) in [("GET", &item.get), ("POST", &item.post)] {
            let responses = operation.iter().flat_map(|it| it.responses.responses.keys());
            for status in responses.filter_map(|it| it.parse().ok()) {
                metrics.declare(method, route, status);
            }
        }
    }
    metrics.declare("GET", NO_ROUTE, 404);
}
