//! What the service says about itself, and what it has no way to do.

use std::collections::BTreeSet;

use axum::body::Body;
use axum::http::Request;
use opinion_triage::pipeline::Pipeline;
use serde_json::json;

use crate::helpers::{app, classify, get, send, service};

#[tokio::test]
async fn health_model_and_taxonomy() {
    let app = app();
    assert_eq!(get(&app, "/healthz").await.body, json!({"status": "ok"}));
    assert_eq!(get(&app, "/readyz").await.body, json!({"status": "ready", "worker_panics": 0}));
    let model = get(&app, "/v1/model").await.body;
    for field in ["name", "version", "digest", "bundle", "metrics", "policy_digest"] {
        assert!(model.get(field).is_some(), "{field}");
    }
    let taxonomy = get(&app, "/v1/taxonomy").await.body;
    let codes: Vec<&str> = taxonomy["types"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["code"].as_str().unwrap())
        .collect();
    assert_eq!(
        codes,
        ["problem", "emergency", "sensitive", "suggestion", "disputed_claim", "none"]
    );
    let disputed = &taxonomy["types"][4];
    assert!(disputed["zh"].as_str().unwrap().contains("待核查"));
    let reply = classify(&app, &json!({"items": [{"id": "a", "text": "路灯坏了"}]})).await;
    assert_eq!(reply.body["model"]["digest"], model["digest"]);
    assert_eq!(reply.body["policy_digest"], taxonomy["policy_digest"]);
}

#[tokio::test]
async fn the_model_has_a_card() {
    let app = app();
    let reply = get(&app, "/v1/model/card").await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.headers["content-type"], "text/markdown; charset=utf-8");
    let card = crate::helpers::text(&app, "/v1/model/card").await;
    let name = get(&app, "/v1/model").await.body["name"].as_str().unwrap().to_owned();
    assert!(card.starts_with("# ") && card.contains(&name), "{card}");
    // The shipped version brings its own.
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/models/triage-base");
    let precision = opinion_triage::model::runtime::Precision::F32;
    let pipeline = Pipeline::load(std::path::Path::new(shipped), None, precision).unwrap();
    let readme = std::fs::read_to_string(std::path::Path::new(shipped).join("README.md")).unwrap();
    assert_eq!(pipeline.card(), readme);
}

#[tokio::test]
async fn unknown_paths_and_methods_are_problem_documents() {
    let app = app();
    assert_eq!(get(&app, "/v1/nothing").await.problem(), (404, "not_found"));
    let reply = get(&app, "/v1/classify").await;
    assert_eq!(reply.problem(), (405, "method_not_allowed"));
    assert_eq!(reply.headers["allow"], "POST");
}

/// The whole contract names exactly these paths: nothing takes down, blocks, reports or ranks.
#[tokio::test]
async fn no_path_acts_on_a_text_or_a_person() {
    let app = app();
    let document = get(&app, "/openapi.json").await.body;
    let paths = document["paths"].as_object().unwrap();
    let operations: BTreeSet<String> = paths
        .iter()
        .flat_map(|(path, it)| {
            it.as_object().unwrap().keys().map(move |method| format!("{method} {path}"))
        })
        .collect();
    let expected = [
        "get /docs",
        "get /docs/page.css",
        "get /docs/page.js",
        "get /healthz",
        "get /metrics",
        "get /openapi.json",
        "get /readyz",
        "get /v1/model",
        "get /v1/model/card",
        "get /v1/taxonomy",
        "get /v2",
        "get /v2/health/live",
        "get /v2/health/ready",
        "get /v2/models/{model}",
        "get /v2/models/{model}/ready",
        "post /",
        "post /models/{model}",
        "post /predict",
        "post /v1/classify",
        "post /v2/models/{model}/infer",
    ];
    assert_eq!(operations, expected.map(str::to_owned).into());
    for verb in
        ["delete", "takedown", "block", "report", "ban", "rank", "webhook", "users", "authors"]
    {
        for path in [format!("/v1/{verb}"), format!("/{verb}")] {
            let request = Request::post(&path).body(Body::empty()).unwrap();
            assert_eq!(send(&app, request).await.status, 404, "{path}");
        }
    }
}

/// Every documented path answers as documented.
#[tokio::test]
async fn the_contract_is_true_to_the_code() {
    let app = app();
    let document = get(&app, "/openapi.json").await.body;
    for (path, operations) in document["paths"].as_object().unwrap() {
        if operations.get("get").is_some() {
            let path = path.replace("{model}", "triage");
            let status = get(&app, &path).await.status.as_u16().to_string();
            assert!(operations["get"]["responses"].get(&status).is_some(), "{path}: {status}");
        }
    }
    let item = &document["components"]["schemas"]["ClassifiedItem"]["properties"];
    let body = json!({"items": [{"id": "a", "text": "路灯"}], "include": ["evidence", "logits"]});
    let reply = classify(&app, &body).await.body;
    let names = |it: &serde_json::Value| -> BTreeSet<String> {
        it.as_object().unwrap().keys().cloned().collect()
    };
    assert_eq!(names(item), names(&reply["results"][0]));
}

#[tokio::test]
async fn a_draining_service_says_so_and_takes_nothing() {
    let test = service(true);
    let app = opinion_triage::http::router::router(test.service.clone());
    test.service.drain();
    let ready = get(&app, "/readyz").await;
    assert_eq!(
        (ready.status.as_u16(), &ready.body),
        (503, &json!({"status": "draining", "worker_panics": 0}))
    );
    assert_eq!(get(&app, "/healthz").await.status, 200);
    let reply = classify(&app, &json!({"items": [{"id": "a", "text": "路灯"}]})).await;
    assert_eq!(reply.problem(), (503, "stopping"));
    assert!(reply.headers.contains_key("retry-after"));
}
