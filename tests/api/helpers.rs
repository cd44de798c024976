//! A service over a tiny random model, with a gate before it for tests about waiting.

use std::num::NonZeroUsize;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use opinion_triage::domain::prediction::Prediction;
use opinion_triage::http::{Limits, Service, Settings, router};
use opinion_triage::inference::{Engine, EngineLimits, Predictor};
use opinion_triage::pipeline::{Pipeline, PipelineError, Prepared};
use serde_json::Value;
use tower::ServiceExt;

pub const LIMITS: Limits = Limits {
    max_body_bytes: 1 << 20,
    max_items: 8,
    max_waiting_items: 8,
    body_timeout: Duration::from_secs(1),
    max_deadline: Duration::from_secs(20),
};

/// A pipeline behind a gate.
pub struct Gated {
    pipeline: Arc<Pipeline>,
    is_open: Mutex<bool>,
    opened: Condvar,
}

impl Gated {
    pub fn open(&self) {
        *self.is_open.lock().unwrap() = true;
        self.opened.notify_all();
    }
}

/// A text the model panics on: it has [`BAD_CHARS`] characters, as no other text of these tests.
pub const BAD_TEXT: &str = "坏坏坏坏坏坏坏";
const BAD_CHARS: usize = 7;

impl Predictor for Gated {
    fn predict(&self, batch: &[&Prepared]) -> Result<Vec<Prediction>, PipelineError> {
        assert!(batch.iter().all(|it| it.report.characters != BAD_CHARS), "{BAD_TEXT}");
        let is_open = self.is_open.lock().unwrap();
        drop(self.opened.wait_while(is_open, |it| !*it).unwrap());
        self.pipeline.predict(batch)
    }
}

pub struct TestService {
    pub service: Arc<Service>,
    pub gate: Arc<Gated>,
}

pub fn service(is_open: bool) -> TestService {
    service_with(is_open, |_| {})
}

/// A service whose settings were changed.
pub fn service_with(is_open: bool, change: impl FnOnce(&mut Settings)) -> TestService {
    let pipeline = Arc::new(Pipeline::for_tests());
    let gate = Arc::new(Gated {
        pipeline: pipeline.clone(),
        is_open: Mutex::new(is_open),
        opened: Condvar::new(),
    });
    let limits = EngineLimits {
        max_waiting_items: NonZeroUsize::new(LIMITS.max_waiting_items).unwrap(),
        ..EngineLimits::default()
    };
    let mut settings = Settings::from(LIMITS);
    change(&mut settings);
    let (engine, _thread) = Engine::start(gate.clone(), limits, settings.metrics.clone()).unwrap();
    TestService { service: Service::new(pipeline, engine, settings), gate }
}

/// The number of one series of `/metrics`; none when there is no such series.
pub async fn metric(app: &Router, series: &str) -> Option<f64> {
    let text = metrics(app).await;
    let line = text.lines().find_map(|it| it.strip_prefix(series)?.strip_prefix(' '))?;
    line.parse().ok()
}

pub async fn metrics(app: &Router) -> String {
    text(app, "/metrics").await
}

/// What is not JSON.
pub async fn text(app: &Router, path: &str) -> String {
    let request = Request::get(path).body(Body::empty()).unwrap();
    let response = app.clone().oneshot(request).await.unwrap();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

pub fn app() -> Router {
    router::router(service(true).service)
}

pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Value,
}

impl Reply {
    /// Status, code and whether the reply is a problem document.
    pub fn problem(&self) -> (u16, &str) {
        assert_eq!(self.headers["content-type"], "application/problem+json");
        assert_eq!(self.body["status"], self.status.as_u16());
        (self.status.as_u16(), self.body["code"].as_str().unwrap())
    }
}

pub async fn send(app: &Router, request: Request<Body>) -> Reply {
    let response = app.clone().oneshot(request).await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    Reply { status, headers, body: serde_json::from_slice(&bytes).unwrap_or(Value::Null) }
}

pub async fn get(app: &Router, path: &str) -> Reply {
    send(app, Request::get(path).body(Body::empty()).unwrap()).await
}

pub async fn post(app: &Router, body: impl Into<Body>) -> Reply {
    post_to(app, "/v1/classify", body).await
}

pub async fn post_to(app: &Router, path: &str, body: impl Into<Body>) -> Reply {
    let request =
        Request::post(path).header("content-type", "application/json").body(body.into()).unwrap();
    send(app, request).await
}

pub async fn classify(app: &Router, body: &Value) -> Reply {
    post(app, body.to_string()).await
}
