//! A request sent again under its `Idempotency-Key`: the same bytes, computed once.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use opinion_triage::http::{Limits, Service, Settings, router};
use opinion_triage::inference::{Engine, EngineLimits};
use opinion_triage::keys::{KeysFile, Role, fresh};
use opinion_triage::pipeline::Pipeline;
use opinion_triage::replay::ReplayLimits;
use serde_json::json;
use tower::ServiceExt;

use crate::helpers::{BAD_TEXT, LIMITS, TestService, get, metric, service_with};

const REPLAYS: ReplayLimits =
    ReplayLimits { max_bytes: 1 << 20, max_age: Duration::from_millis(700) };

fn keep(settings: &mut Settings) {
    settings.replays = Some(REPLAYS);
}

/// A service that keeps answers for a while.
fn keeping(is_open: bool) -> (Router, TestService) {
    let test = service_with(is_open, keep);
    (router::router(test.service.clone()), test)
}

struct Raw {
    status: StatusCode,
    headers: HeaderMap,
    bytes: Bytes,
}

impl Raw {
    fn is_replayed(&self) -> bool {
        self.headers.get("idempotency-replayed").is_some_and(|it| it == "true")
    }

    fn text(&self) -> String {
        String::from_utf8(self.bytes.to_vec()).unwrap()
    }
}

fn body(text: &str) -> String {
    json!({"items": [{"id": "a", "text": text}]}).to_string()
}

async fn send(app: &Router, path: &str, headers: &[(&str, &str)], body: String) -> Raw {
    let mut request = Request::post(path).header("content-type", "application/json");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = app.clone().oneshot(request.body(Body::from(body)).unwrap()).await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    Raw { status, headers, bytes: response.into_body().collect().await.unwrap().to_bytes() }
}

async fn classify(app: &Router, key: &str, text: &str) -> Raw {
    send(app, "/v1/classify", &[("idempotency-key", key)], body(text)).await
}

/// Requests with a key: first ones, replayed, waiting and reused ones.
async fn keyed(app: &Router) -> [f64; 4] {
    let mut counts = [0.0; 4];
    for (count, outcome) in counts.iter_mut().zip(["first", "replayed", "waited", "reused"]) {
        let series = format!("triage_idempotent_requests_total{{outcome=\"{outcome}\"}}");
        *count = metric(app, &series).await.unwrap();
    }
    counts
}

async fn n_computed(app: &Router) -> f64 {
    metric(app, "triage_batch_items_sum").await.unwrap()
}

async fn until_waiting(app: &Router, keyed_counts: [f64; 4]) {
    while keyed(app).await != keyed_counts {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_request_sent_again_gets_the_same_bytes_even_from_another_version() {
    let (app, test) = keeping(true);
    let first = classify(&app, "k1", "路灯坏了").await;
    assert_eq!((first.status, first.is_replayed()), (StatusCode::OK, false));
    assert!(first.headers.contains_key("server-timing"));
    // Another version, whose answers name it.
    let mut bundle = opinion_triage::model::Bundle::for_tests();
    bundle.digest = "sha256:other".into();
    let other = Pipeline::from_bundle(
        bundle,
        opinion_triage::text::Segmenter::default(),
        opinion_triage::domain::taxonomy::Taxonomy::embedded(),
        opinion_triage::model::runtime::Precision::F32,
    );
    test.service.swap(Arc::new(other.unwrap()), EngineLimits::default()).unwrap();
    let again = classify(&app, "k1", "路灯坏了").await;
    assert_eq!((again.status, again.is_replayed()), (StatusCode::OK, true));
    assert_eq!(again.bytes, first.bytes);
    assert_eq!(again.headers["content-type"], first.headers["content-type"]);
    assert!(!again.headers.contains_key("server-timing"));
    assert_ne!(again.headers["x-request-id"], first.headers["x-request-id"]);
    // In quotes, as the draft writes it, it is the same key.
    assert_eq!(classify(&app, "\"k1\"", "路灯坏了").await.bytes, first.bytes);
    assert_eq!((n_computed(&app).await, keyed(&app).await), (1.0, [1.0, 2.0, 0.0, 0.0]));
    assert_eq!(metric(&app, "triage_items_received_total").await, Some(1.0));
    assert!(metric(&app, "triage_replay_size_bytes").await.unwrap() > first.bytes.len() as f64);
    let fresh = classify(&app, "k2", "路灯坏了").await;
    assert!(fresh.text().contains("sha256:other") && !first.text().contains("sha256:other"));
    // After its time the key is free.
    tokio::time::sleep(REPLAYS.max_age).await;
    assert!(classify(&app, "k1", "路灯坏了").await.text().contains("sha256:other"));
}

#[tokio::test]
async fn nothing_is_kept_of_a_request_that_does_not_ask_for_it() {
    let (app, _test) = keeping(true);
    for _ in 0..2 {
        assert!(!send(&app, "/v1/classify", &[], body("路灯坏了")).await.is_replayed());
    }
    assert_eq!(n_computed(&app).await, 2.0);
    assert_eq!(metric(&app, "triage_replay_size_bytes").await, Some(0.0));
    // Without room for it the header is overlooked.
    let plain = router::router(service_with(true, |_| {}).service);
    for _ in 0..2 {
        assert!(!classify(&plain, "k", "路灯坏了").await.is_replayed());
    }
    assert_eq!(n_computed(&plain).await, 2.0);
}

#[tokio::test]
async fn the_key_of_another_request_is_refused_in_the_shape_of_the_route() {
    let (app, _test) = keeping(true);
    assert_eq!(classify(&app, "k", "路灯坏了").await.status, 200);
    let reused = classify(&app, "k", "路灯又坏了").await;
    assert_eq!(reused.status, 422);
    assert_eq!(reused.headers["content-type"], "application/problem+json");
    assert!(reused.text().contains("\"idempotency_key_reused\""), "{}", reused.text());
    let inputs = json!({"inputs": "路灯坏了"}).to_string();
    let tei = send(&app, "/predict", &[("idempotency-key", "k")], inputs.clone()).await;
    assert_eq!(tei.status, 422);
    assert!(tei.text().contains("\"error_type\":\"Validation\""), "{}", tei.text());
    // The same body at another route is another request.
    assert_eq!(
        send(&app, "/predict", &[("idempotency-key", "p")], inputs.clone()).await.status,
        200
    );
    assert_eq!(send(&app, "/", &[("idempotency-key", "p")], inputs).await.status, 422);
    for bad in ["", "a b", "a,b", "\"a", &"k".repeat(256)] {
        let reply = classify(&app, bad, "路灯坏了").await;
        assert_eq!(reply.status, 400, "{bad}");
        assert!(reply.text().contains("\"invalid_idempotency_key\""), "{}", reply.text());
    }
    assert_eq!(keyed(&app).await, [2.0, 0.0, 0.0, 3.0]);
}

#[tokio::test]
async fn who_comes_while_the_first_is_computed_waits_for_it() {
    let (app, test) = keeping(false);
    let spawn = || {
        let app = app.clone();
        tokio::spawn(async move { classify(&app, "k", "路灯坏了").await })
    };
    let first = spawn();
    until_waiting(&app, [1.0, 0.0, 0.0, 0.0]).await;
    let others = [spawn(), spawn()];
    until_waiting(&app, [1.0, 0.0, 2.0, 0.0]).await;
    assert_eq!(classify(&app, "k", "路灯又坏了").await.status, 422);
    test.gate.open();
    let first = first.await.unwrap();
    assert!(first.status == 200 && !first.is_replayed());
    for other in others {
        let other = other.await.unwrap();
        assert!(other.is_replayed());
        assert_eq!(other.bytes, first.bytes);
    }
    assert_eq!(n_computed(&app).await, 1.0);
}

#[tokio::test]
async fn a_caller_that_lost_its_connection_finds_its_answer() {
    let (app, test) = keeping(false);
    let lost = tokio::spawn({
        let app = app.clone();
        async move { classify(&app, "k", "路灯坏了").await.status }
    });
    while metric(&app, "triage_items_received_total").await != Some(1.0) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    lost.abort();
    assert!(lost.await.is_err());
    test.gate.open();
    let again = classify(&app, "k", "路灯坏了").await;
    assert!(again.status == 200 && again.is_replayed());
    assert_eq!((n_computed(&app).await, keyed(&app).await[0]), (1.0, 1.0));
}

#[tokio::test]
async fn failures_are_shared_with_those_who_wait_and_not_kept() {
    let limits = Limits { max_deadline: Duration::from_millis(150), ..LIMITS };
    let test = service_with(false, |it| {
        keep(it);
        it.limits = limits;
    });
    let app = router::router(test.service.clone());
    let spawn = || {
        let app = app.clone();
        tokio::spawn(async move {
            let inputs = json!({"inputs": "路灯坏了"}).to_string();
            send(&app, "/predict", &[("idempotency-key", "k")], inputs).await
        })
    };
    let first = spawn();
    until_waiting(&app, [1.0, 0.0, 0.0, 0.0]).await;
    for late in [first, spawn()] {
        let late = late.await.unwrap();
        assert_eq!(late.status, 504);
        assert!(late.text().contains("\"error_type\":\"Backend\""), "{}", late.text());
    }
    test.gate.open();
    let inputs = json!({"inputs": "路灯坏了"}).to_string();
    let again = send(&app, "/predict", &[("idempotency-key", "k")], inputs).await;
    assert!(again.status == 200 && !again.is_replayed());
}

#[tokio::test]
async fn what_failed_is_judged_anew_each_time() {
    let app = router::router(service_with(true, keep).service);
    for _ in 0..2 {
        let wrong = send(&app, "/v1/classify", &[("idempotency-key", "w")], "{}".into()).await;
        assert!(wrong.status == 422 && !wrong.is_replayed());
        let failed = classify(&app, "f", BAD_TEXT).await;
        assert!(failed.text().contains("model_failed") && !failed.is_replayed());
    }
}

#[tokio::test]
async fn a_full_service_is_not_remembered() {
    let limits = EngineLimits { max_waiting_items: NonZeroUsize::MIN, ..EngineLimits::default() };
    let pipeline = Arc::new(Pipeline::for_tests());
    let mut settings = Settings::from(LIMITS);
    keep(&mut settings);
    let (engine, _thread) =
        Engine::start(pipeline.clone(), limits, settings.metrics.clone()).unwrap();
    let app = router::router(Service::new(pipeline, engine, settings));
    let many: Vec<_> = ["1", "2"].map(|id| json!({"id": id, "text": "路灯"})).to_vec();
    for _ in 0..2 {
        let many = json!({ "items": many }).to_string();
        let full = send(&app, "/v1/classify", &[("idempotency-key", "k")], many).await;
        assert!(full.status == 503 && !full.is_replayed());
        assert_eq!(full.headers["retry-after"], "1");
    }
    assert_eq!(keyed(&app).await, [2.0, 0.0, 0.0, 0.0]);
}

#[tokio::test]
async fn callers_never_see_each_others_answers() {
    let (a, a_line) = fresh("a", &[Role::Classify], None).unwrap();
    let (b, b_line) = fresh("b", &[Role::Classify], None).unwrap();
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("keys.toml");
    std::fs::write(&path, format!("{a_line}\n{b_line}\n")).unwrap();
    let keys = Arc::new(KeysFile::load(&path).unwrap());
    let test = service_with(true, |it| {
        keep(it);
        it.keys = Some(keys);
    });
    let app = router::router(test.service);
    let ask = async |key: &str, text: &str| {
        let headers = [("idempotency-key", "same"), ("x-api-key", key)];
        send(&app, "/v1/classify", &headers, body(text)).await
    };
    assert!(!ask(&a, "路灯坏了").await.is_replayed());
    let other = ask(&b, "谢谢").await;
    assert!(other.status == 200 && !other.is_replayed());
    assert!(ask(&a, "路灯坏了").await.is_replayed() && ask(&b, "谢谢").await.is_replayed());
    // Without a known key nothing is looked up at all.
    let stranger = ask("nobody", "路灯坏了").await;
    assert!(stranger.status == 401 && !stranger.is_replayed());
    assert_eq!(get(&app, "/healthz").await.status, 200);
}
