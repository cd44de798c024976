//! The canary: no text of an item reaches a log line, whatever happens to the item.

use std::io::Write;
use std::sync::{Arc, Mutex};

use serde_json::json;
use tracing_subscriber::fmt::MakeWriter;

use crate::helpers::{app, classify, post, post_to};

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
    });
    let log = String::from_utf8_lossy(&captured.0.lock().unwrap()).into_owned();
    // The log must have been caught, or this test could not fail.
    assert!(log.contains("classified"), "{log}");
    assert!(!log.contains(CANARY), "{log}");
}
