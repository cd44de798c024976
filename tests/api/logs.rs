//! The canary: no text of an item reaches a log line, whatever happens to the item.

use std::io::Write;
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::http::{HeaderValue, Request};
use serde_json::json;
use tracing_subscriber::fmt::MakeWriter;

use crate::helpers::{BAD_TEXT, app, classify, metrics, post, post_to, send};

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Captured {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[test]
fn no_text_reaches_the_log_or_an_error() {
    const CANARY: &str = "金丝雀";
    let captured = Captured::default();
    // The most talkative log there is, dependencies included, on every thread.
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(captured.clone())
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let app = app();
        let good = json!({"items": [{"id": "a", "text": format!("{CANARY}停水")}]});
        assert_eq!(classify(&app, &good).await.status, 200);
        let items = json!([
            {"id": "a", "text": CANARY.repeat(10_000)},
            {"id": "b", "text": {"nested": CANARY}},
            {"id": "c", "text": CANARY, "昵称": CANARY},
            {"id": "d", "text": CANARY, "colour": CANARY},
            [CANARY],
        ]);
        let bad = classify(&app, &json!({"items": items})).await;
        assert!(!bad.body.to_string().contains(CANARY), "{}", bad.body);
        for body in [
            format!("{{\"items\":\"{CANARY}\"}}"),
            format!("{{\"items\":[{{\"id\":\"a\",\"text\":\"{CANARY}"),
            format!("{{\"items\":[{{}}],\"include\":[\"{CANARY}\"]}}"),
            format!("{{\"items\":[{{}}],\"deadline_ms\":\"{CANARY}\"}}"),
            format!("\"{CANARY}\""),
        ] {
            let reply = post(&app, body).await;
            assert!(!reply.body.to_string().contains(CANARY), "{}", reply.body);
        }
        for (path, body) in [
            ("/predict", json!({"inputs": [[CANARY], [CANARY]]})),
            ("/predict", json!({"inputs": [CANARY, CANARY]})),
            ("/predict", json!({"inputs": CANARY, CANARY: CANARY})),
            ("/predict", json!({"inputs": CANARY, "truncation_direction": CANARY})),
            ("/", json!({"inputs": [CANARY, {"x": CANARY}]})),
            ("/", json!({"inputs": CANARY, "parameters": {"function_to_apply": CANARY}})),
            ("/", json!({"inputs": CANARY.repeat(10_000)})),
            ("/v2/models/triage/infer", json!({"inputs": [{"name": CANARY, "data": [CANARY]}]})),
            ("/v2/models/triage/infer", json!({"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": [CANARY]}], "outputs": [{"name": CANARY}]})),
        ] {
            let reply = post_to(&app, path, body.to_string()).await;
            assert!(!reply.body.to_string().contains(CANARY), "{}", reply.body);
        }
        let metrics = metrics(&app).await;
        assert!(metrics.contains("triage_items_total") && !metrics.contains(CANARY), "{metrics}");
        // What callers name themselves is no way into the log either.
        for header in ["x-request-id", "traceparent", "x-triage-lane", "authorization", "idempotency-key"] {
            let request = Request::post("/predict")
                .header("content-type", "application/json")
                .header(header, HeaderValue::from_bytes(CANARY.as_bytes()).unwrap())
                .body(Body::from(json!({"inputs": "路灯坏了"}).to_string()))
                .unwrap();
            let reply = send(&app, request).await;
            assert!(!format!("{:?}", reply.headers).contains(CANARY));
        }
        let request = Request::get(format!("/{}", "%E9%87%91%E4%B8%9D%E9%9B%80"));
        let request = request.header("x-request-id", "seen-in-the-log").body(Body::empty()).unwrap();
        assert_eq!(send(&app, request).await.status, 404);
        // A panic's message may quote a text; here it does.
        let reply = post_to(&app, "/predict", json!({"inputs": BAD_TEXT}).to_string()).await;
        assert_eq!(reply.status, 500);
        assert!(!reply.body.to_string().contains(BAD_TEXT), "{}", reply.body);
    });
    let log = String::from_utf8_lossy(&captured.0.lock().unwrap()).into_owned();
    // The log must have been caught, or this test could not fail.
    assert!(log.contains("classified"), "{log}");
    assert!(log.contains("seen-in-the-log") && log.contains("the model panicked"), "{log}");
    assert!(!log.contains(CANARY), "{log}");
    assert!(!log.contains(BAD_TEXT), "{log}");
}
