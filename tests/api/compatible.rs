//! Routes of other protocols: their shapes, their errors, and scores equal to those of `/v1/classify`.

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};

use crate::helpers::{LIMITS, Reply, app, classify, get, post_to, send, service};

const TEXTS: [&str; 3] = ["小区停水三天了，物业没人管", "化工厂着火了，有人被困", "谢谢"];

async fn post(app: &Router, path: &str, body: &Value) -> Reply {
    post_to(app, path, body.to_string()).await
}

/// Each text's numbers by label, from `/v1/classify`.
async fn expected(app: &Router, field: &str) -> Vec<serde_json::Map<String, Value>> {
    let items: Vec<Value> = TEXTS.iter().map(|it| json!({"id": it, "text": it})).collect();
    let reply = classify(app, &json!({"items": items, "include": ["logits"]})).await;
    let results = reply.body["results"].as_array().unwrap().iter();
    results.map(|it| it[field].as_object().unwrap().clone()).collect()
}

/// Fails unless `row` holds exactly these numbers, best first.
fn assert_row(row: &Value, expected: &serde_json::Map<String, Value>) {
    let row = row.as_array().unwrap();
    assert_eq!(row.len(), expected.len());
    for it in row {
        assert_eq!(it["score"], expected[it["label"].as_str().unwrap()]);
    }
    assert!(row.is_sorted_by(|a, b| a["score"].as_f64() >= b["score"].as_f64()));
}

#[tokio::test]
async fn text_embeddings_inference_scores_are_ours() {
    let app = app();
    for (field, raw_scores) in [("probabilities", false), ("logits", true)] {
        let expected = expected(&app, field).await;
        let batch = TEXTS.map(|it| [it]);
        let body = json!({"inputs": batch, "raw_scores": raw_scores, "truncate": true});
        let reply = post(&app, "/predict", &body).await;
        assert_eq!(reply.status, 200);
        for (row, expected) in reply.body.as_array().unwrap().iter().zip(&expected) {
            assert_row(row, expected);
        }
        for single in [json!(TEXTS[0]), json!([TEXTS[0]])] {
            let body = json!({"inputs": single, "raw_scores": raw_scores});
            assert_row(&post(&app, "/predict", &body).await.body, &expected[0]);
        }
        assert!(reply.headers["server-timing"].to_str().unwrap().contains("model;dur="));
    }
}

#[tokio::test]
async fn hugging_face_scores_are_ours() {
    let app = app();
    let (probabilities, logits) =
        (expected(&app, "probabilities").await, expected(&app, "logits").await);
    for path in ["/", "/models/triage"] {
        let reply = post(&app, path, &json!({"inputs": TEXTS})).await;
        for (row, expected) in reply.body.as_array().unwrap().iter().zip(&probabilities) {
            assert_row(row, expected);
        }
        let body = json!({"inputs": TEXTS[0], "parameters": {"function_to_apply": "none"}});
        assert_row(&post(&app, path, &body).await.body[0], &logits[0]);
    }
    let parameters = json!({"function_to_apply": "sigmoid", "top_k": 2});
    let body =
        json!({"inputs": TEXTS[0], "parameters": parameters, "options": {"wait_for_model": true}});
    let reply = post(&app, "/", &body).await;
    let row = reply.body[0].as_array().unwrap();
    assert_eq!(row.len(), 2);
    let logit = logits[0][row[0]["label"].as_str().unwrap()].as_f64().unwrap();
    let sigmoid = 1.0 / (1.0 + (-logit).exp());
    assert!((row[0]["score"].as_f64().unwrap() - sigmoid).abs() < 1e-6);
}

fn tensor(texts: &[&str]) -> Value {
    json!({"name": "text", "datatype": "BYTES", "shape": [texts.len()], "data": texts})
}

fn assert_inference(body: &Value, expected: &[serde_json::Map<String, Value>]) {
    let n_labels = expected[0].len();
    let [labels, probabilities] = body["outputs"].as_array().unwrap().as_slice() else {
        panic!("{body}")
    };
    assert_eq!(probabilities["shape"], json!([expected.len(), n_labels]));
    let columns: Vec<&str> = body["parameters"]["labels"].as_str().unwrap().split(',').collect();
    let numbers = probabilities["data"].as_array().unwrap();
    for (idx, expected) in expected.iter().enumerate() {
        let row = &numbers[idx * n_labels..(idx + 1) * n_labels];
        for (column, number) in columns.iter().zip(row) {
            assert_eq!(number, &expected[*column]);
        }
        let label = labels["data"][idx].as_str().unwrap();
        let best = expected.values().map(|it| it.as_f64().unwrap()).fold(0.0, f64::max);
        assert_eq!(expected[label].as_f64().unwrap(), best);
    }
}

#[tokio::test]
async fn open_inference_protocol_scores_are_ours() {
    let app = app();
    let expected = expected(&app, "probabilities").await;
    let path = "/v2/models/triage/infer";
    let reply = post(&app, path, &json!({"id": "r1", "inputs": [tensor(&TEXTS)]})).await;
    assert_eq!((reply.status.as_u16(), &reply.body["id"]), (200, &json!("r1")));
    assert_inference(&reply.body, &expected);

    // As Triton's clients send it: the JSON, then the texts, each after its length.
    let packed: Vec<u8> = TEXTS
        .iter()
        .flat_map(|it| [&(it.len() as u32).to_le_bytes(), it.as_bytes()].concat())
        .collect();
    let input = json!({"name": "text", "datatype": "BYTES", "shape": [3, 1], "parameters": {"binary_data_size": packed.len()}});
    let head = json!({"inputs": [input], "parameters": {"binary_data_output": true}}).to_string();
    let request = Request::post(path)
        .header("inference-header-content-length", head.len())
        .body(Body::from([head.as_bytes(), &packed].concat()))
        .unwrap();
    assert_inference(&send(&app, request).await.body, &expected);

    let body = json!({"inputs": [tensor(&TEXTS)], "outputs": [{"name": "label"}]});
    let reply = post(&app, path, &body).await;
    assert_eq!(reply.body["outputs"].as_array().unwrap().len(), 1);

    assert_eq!(get(&app, "/v2").await.body["name"], "opinion-triage");
    assert_eq!(get(&app, "/v2/health/live").await.body, json!({"live": true}));
    assert_eq!(get(&app, "/v2/health/ready").await.body, json!({"ready": true}));
    let ready = get(&app, "/v2/models/triage/ready").await;
    assert_eq!(ready.body, json!({"name": "triage", "ready": true}));
    let model = get(&app, "/v2/models/triage").await.body;
    assert_eq!(model["outputs"][1]["shape"], json!([-1, expected[0].len()]));
}

#[tokio::test]
async fn errors_have_each_protocols_shape() {
    let app = app();
    let long = "字".repeat(20_001);
    let many = vec!["x"; LIMITS.max_items + 1];
    let infer = "/v2/models/triage/infer";
    let cases = [
        ("/predict", json!({"inputs": ["a", "b"]}), 422, Some("Validation")),
        ("/predict", json!({"inputs": long}), 422, Some("Validation")),
        ("/predict", json!({"inputs": " "}), 422, Some("Validation")),
        ("/predict", json!({"inputs": "路灯", "nickname": "x"}), 422, Some("Validation")),
        ("/predict", json!({"inputs": "路灯", "return_all": true}), 422, Some("Validation")),
        ("/", json!({"inputs": ["路灯", 7]}), 422, None),
        ("/", json!({"inputs": many}), 422, None),
        ("/", json!({"inputs": "路灯", "parameters": {"top_k": 0}}), 422, None),
        ("/models/other", json!({"inputs": "路灯"}), 404, None),
        (infer, json!({"inputs": [tensor(&[])]}), 422, None),
        (infer, json!({"inputs": [tensor(&["路灯"]), tensor(&["路灯"])]}), 422, None),
        ("/v2/models/other/infer", json!({"inputs": [tensor(&["路灯"])]}), 404, None),
    ];
    for (path, body, status, error_type) in cases {
        let reply = post(&app, path, &body).await;
        let keys: Vec<&String> = reply.body.as_object().unwrap().keys().collect();
        assert_eq!(reply.status, status, "{path}: {}", reply.body);
        assert_eq!(reply.headers["content-type"], "application/json");
        assert_eq!(keys.len(), 1 + usize::from(error_type.is_some()), "{path}");
        assert_eq!(reply.body.get("error_type").and_then(Value::as_str), error_type);
        assert!(reply.body["error"].as_str().unwrap().len() > 10);
    }
    for path in ["/predict", "/models/triage", infer] {
        let reply = get(&app, path).await;
        assert_eq!(reply.status, 405, "{path}");
        assert_eq!(reply.headers["allow"], "POST");
        assert!(reply.body["error"].is_string(), "{path}: {}", reply.body);
    }
}

#[tokio::test]
async fn a_full_or_stopping_service_says_so_in_each_protocol() {
    let test = service(false);
    let app = opinion_triage::http::router::router(test.service.clone());
    let waiting = tokio::spawn({
        let app = app.clone();
        async move {
            post(&app, "/", &json!({"inputs": vec!["路灯"; LIMITS.max_waiting_items]})).await
        }
    });
    while get(&app, "/v2/health/ready").await.status == 200 {
        tokio::task::yield_now().await;
    }
    let tensor = json!({"inputs": [tensor(&["路灯"])]});
    let calls = [
        ("/predict", json!({"inputs": "路灯"}), 429),
        ("/", json!({"inputs": "路灯"}), 503),
        ("/v2/models/triage/infer", tensor, 503),
    ];
    for (path, body, status) in &calls {
        let reply = post(&app, path, body).await;
        assert_eq!(reply.status, *status, "{path}");
        assert_eq!(reply.headers["retry-after"], "1");
    }
    test.gate.open();
    assert_eq!(waiting.await.unwrap().status, 200);
    test.service.drain();
    for (path, body, _) in &calls {
        assert_eq!(post(&app, path, body).await.status, 503, "{path}");
    }
    assert_eq!(get(&app, "/v2/models/triage/ready").await.status, 503);
}
