//! What the service shows of itself while it works: counts, times, request ids, and what a panic leaves behind.

use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};

use crate::helpers::{
    BAD_TEXT, LIMITS, app, classify, get, metric, metrics, post, post_to, send, service,
    service_with,
};

/// Items received, answered well, and not.
async fn items(app: &axum::Router) -> (f64, f64, f64) {
    let number = async |series: &str| metric(app, series).await.unwrap();
    (
        number("triage_items_received_total").await,
        number("triage_items_total{outcome=\"ok\"}").await,
        number("triage_items_total{outcome=\"error\"}").await,
    )
}

#[tokio::test]
async fn all_series_are_there_from_the_start() {
    let app = app();
    let text = metrics(&app).await;
    for series in [
        "triage_http_requests_total{method=\"POST\",route=\"/v1/classify\",status=\"200\"} 0",
        "triage_http_requests_total{method=\"POST\",route=\"/predict\",status=\"200\"} 0",
        "triage_http_request_duration_seconds_count{method=\"POST\",route=\"/v1/classify\"} 0",
        "triage_items_total{outcome=\"error\"} 0",
        "triage_items_waiting{lane=\"interactive\"} 0",
        "triage_items_waiting{lane=\"bulk\"} 0",
        "triage_item_wait_duration_seconds_count{lane=\"bulk\"} 0",
        "triage_batch_items_count 0",
        "triage_batch_tokens_count 0",
        "triage_batch_duration_seconds_count 0",
        "triage_worker_panics_total 0",
        "triage_cache_hits_total 0",
        "triage_cache_misses_total 0",
        "triage_cache_size_bytes 0",
        "triage_ready 1",
        "triage_model_info{name=",
    ] {
        assert!(text.lines().any(|it| it.starts_with(series)), "{series}\n{text}");
    }
    let names = |text: &str| -> std::collections::BTreeSet<String> {
        text.lines().filter_map(|it| Some(it.rsplit_once(' ')?.0.to_owned())).collect()
    };
    classify(&app, &json!({"items": [{"id": "a", "text": "路灯坏了"}]})).await;
    let known = names(&text);
    let new: Vec<String> =
        names(&metrics(&app).await).into_iter().filter(|it| !known.contains(it)).collect();
    assert_eq!(new, [] as [String; 0], "series that came only with the first request");
}

#[tokio::test]
async fn every_item_received_is_answered_ok_or_error() {
    let test = service(true);
    let app = opinion_triage::http::router::router(test.service.clone());
    let good = json!({"id": "a", "text": "路灯坏了"});
    classify(&app, &json!({"items": [good, {"id": "b", "text": " "}, 7]})).await;
    assert_eq!(items(&app).await, (3.0, 1.0, 2.0));
    post_to(&app, "/predict", json!({"inputs": [["路灯坏了"], ["谢谢"]]}).to_string()).await;
    assert_eq!(items(&app).await, (5.0, 3.0, 2.0));
    // One bad text spoils the request where the protocol has no place for its error.
    post_to(&app, "/", json!({"inputs": ["路灯坏了", " "]}).to_string()).await;
    assert_eq!(items(&app).await, (7.0, 3.0, 4.0));
    // Nothing was received of what could not be read.
    post(&app, "{").await;
    assert_eq!(items(&app).await, (7.0, 3.0, 4.0));
    assert_eq!(
        metric(
            &app,
            "triage_http_requests_total{method=\"POST\",route=\"/v1/classify\",status=\"400\"}"
        )
        .await,
        Some(1.0)
    );
}

#[tokio::test]
async fn items_that_came_too_late_or_found_no_room_are_errors() {
    let test = service(false);
    let app = opinion_triage::http::router::router(test.service.clone());
    let many: Vec<Value> =
        (0..LIMITS.max_items).map(|it| json!({"id": it.to_string(), "text": "路灯坏了"})).collect();
    let late = json!({"items": many, "deadline_ms": 300});
    let waiting = tokio::spawn({
        let app = app.clone();
        async move { classify(&app, &late).await }
    });
    while get(&app, "/readyz").await.status == 200 {
        tokio::task::yield_now().await;
    }
    let refused = classify(&app, &json!({"items": [{"id": "a", "text": "路灯坏了"}]})).await;
    assert_eq!(refused.status, 503);
    assert_eq!(waiting.await.unwrap().status, 504);
    let n = LIMITS.max_items as f64 + 1.0;
    assert_eq!(items(&app).await, (n, 0.0, n));
    test.gate.open();
}

#[tokio::test]
async fn a_panic_is_survived_counted_and_shown() {
    let app = app();
    let items = json!([{"id": "good", "text": "路灯坏了"}, {"id": "bad", "text": BAD_TEXT}]);
    let reply = classify(&app, &json!({"items": items})).await;
    assert_eq!(reply.body["results"][0]["status"], "ok");
    assert_eq!(reply.body["results"][1]["error"]["code"], "model_failed");
    let ready = get(&app, "/readyz").await;
    assert_eq!(ready.status, 200);
    let n_panics = ready.body["worker_panics"].as_f64().unwrap();
    assert!(n_panics >= 1.0);
    assert_eq!(metric(&app, "triage_worker_panics_total").await, Some(n_panics));
    let again = classify(&app, &json!({"items": [{"id": "a", "text": "路灯坏了"}]})).await;
    assert_eq!(again.body["results"][0]["status"], "ok");
}

#[tokio::test]
async fn a_loading_service_lives_and_takes_nothing() {
    let service = opinion_triage::http::Service::loading(LIMITS);
    let app = opinion_triage::http::router::router(service);
    assert_eq!(get(&app, "/healthz").await.status, 200);
    let ready = get(&app, "/readyz").await;
    assert_eq!((ready.status.as_u16(), &ready.body["status"]), (503, &json!("loading")));
    let reply = classify(&app, &json!({"items": [{"id": "a", "text": "路灯"}]})).await;
    assert_eq!(reply.problem(), (503, "loading"));
    assert!(reply.headers.contains_key("retry-after"));
    assert_eq!(get(&app, "/v1/model").await.problem(), (503, "loading"));
    assert_eq!(metric(&app, "triage_ready").await, Some(0.0));
}

#[tokio::test]
async fn the_same_normalized_text_is_answered_from_the_cache() {
    let test = service_with(true, |it| it.cache_bytes = 1 << 20);
    let app = opinion_triage::http::router::router(test.service.clone());
    let hits = async || metric(&app, "triage_cache_hits_total").await.unwrap();
    let ask = async |text: &str| {
        let body = json!({"items": [{"id": "a", "text": text}], "include": ["logits"]});
        classify(&app, &body).await.body["results"][0].clone()
    };
    let first = ask("路灯坏了，没人修").await;
    assert_eq!(hits().await, 0.0);
    assert_eq!(ask("路灯坏了，没人修").await, first);
    assert_eq!(hits().await, 1.0);
    // Normalized it is the same text; what was submitted is reported as it was.
    let wide = ask("路灯坏了,\u{200b}没人修").await;
    assert_eq!(hits().await, 2.0);
    assert_eq!(wide["logits"], first["logits"]);
    assert_eq!(wide["input"]["characters"], 9);
    assert_ne!(wide["input"]["normalizations"], first["input"]["normalizations"]);
    ask("路灯坏了，没有人修").await;
    assert_eq!(hits().await, 2.0);
    // Other protocols ask the same cache; a failure is not kept.
    post_to(&app, "/predict", json!({"inputs": "路灯坏了，没人修"}).to_string()).await;
    assert_eq!(hits().await, 3.0);
    for _ in 0..2 {
        assert_eq!(ask(BAD_TEXT).await["status"], "error");
    }
    assert_eq!(hits().await, 3.0);
    let n_batched = metric(&app, "triage_batch_items_sum").await.unwrap();
    assert_eq!(n_batched, 4.0, "two texts, and twice the bad one");
    assert!(metric(&app, "triage_cache_size_bytes").await.unwrap() > 500.0);
}

#[tokio::test]
async fn request_ids_are_echoed_and_time_is_told() {
    let app = app();
    let send_id = async |id: Option<&str>| {
        let mut request = Request::post("/v1/classify").header("content-type", "application/json");
        if let Some(id) = id {
            request = request.header("x-request-id", id);
        }
        let body = json!({"items": [{"id": "a", "text": "路灯"}]}).to_string();
        send(&app, request.body(Body::from(body)).unwrap()).await.headers
    };
    assert_eq!(send_id(Some("job-7.42")).await["x-request-id"], "job-7.42");
    let made = send_id(Some("not an id")).await["x-request-id"].clone();
    assert_eq!(made.len(), 32);
    assert_ne!(send_id(None).await["x-request-id"], made);
    let headers = send_id(None).await;
    let timing = headers["server-timing"].to_str().unwrap();
    for part in timing.split(", ") {
        let (name, duration) = part.split_once(";dur=").unwrap();
        assert!(["text", "model"].contains(&name), "{timing}");
        assert!(duration.parse::<f64>().unwrap() >= 0.0);
    }
    assert!(get(&app, "/nothing").await.headers.contains_key("x-request-id"));
}

#[tokio::test]
async fn the_lane_is_a_field_or_a_header() {
    let app = app();
    let waited = async |lane: &str| {
        let series = format!("triage_item_wait_duration_seconds_count{{lane=\"{lane}\"}}");
        metric(&app, &series).await.unwrap()
    };
    let send_lane = async |header: Option<&str>, field: Option<&str>| {
        let mut request = Request::post("/v1/classify").header("content-type", "application/json");
        if let Some(header) = header {
            request = request.header("x-triage-lane", header);
        }
        let body = json!({"items": [{"id": "a", "text": "路灯"}], "lane": field}).to_string();
        send(&app, request.body(Body::from(body)).unwrap()).await
    };
    assert_eq!(send_lane(None, None).await.status, 200);
    assert_eq!((waited("interactive").await, waited("bulk").await), (1.0, 0.0));
    assert_eq!(send_lane(Some("bulk"), None).await.status, 200);
    assert_eq!(send_lane(None, Some("bulk")).await.status, 200);
    assert_eq!(send_lane(Some("bulk"), Some("interactive")).await.status, 200);
    assert_eq!((waited("interactive").await, waited("bulk").await), (2.0, 2.0));
    assert_eq!(send_lane(Some("fast"), None).await.problem(), (422, "unknown_lane"));
    assert_eq!(send_lane(None, Some("fast")).await.problem(), (422, "unknown_lane"));
}
