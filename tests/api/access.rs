//! Keys, roles, limits, other origins.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, Request};
use opinion_triage::http::router;
use opinion_triage::keys::{KeysFile, Role, fresh};
use serde_json::json;

use crate::helpers::{Reply, get, send, service_with};

struct Keyed {
    app: Router,
    file: Arc<KeysFile>,
    path: PathBuf,
    _home: tempfile::TempDir,
}

/// A service whose keys file has these lines.
fn keyed(lines: &[&str]) -> Keyed {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("keys.toml");
    std::fs::write(&path, lines.join("\n")).unwrap();
    let file = Arc::new(KeysFile::load(&path).unwrap());
    let test = service_with(true, |it| it.keys = Some(file.clone()));
    Keyed { app: router::router(test.service), file, path, _home: home }
}

async fn call(app: &Router, method: &str, path: &str, key: Option<&str>) -> Reply {
    let body = match path {
        "/v1/classify" => json!({"items": [{"id": "a", "text": "路灯"}]}),
        "/v2/models/triage/infer" => json!({"inputs": [
            {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["路灯"]}
        ]}),
        _ => json!({"inputs": "路灯"}),
    };
    let mut request =
        Request::builder().method(method).uri(path).header("content-type", "application/json");
    if let Some(key) = key {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    send(app, request.body(Body::from(body.to_string())).unwrap()).await
}

const CLASSIFY: [(&str, &str); 5] = [
    ("POST", "/v1/classify"),
    ("POST", "/predict"),
    ("POST", "/"),
    ("POST", "/models/triage"),
    ("POST", "/v2/models/triage/infer"),
];

#[tokio::test]
async fn every_route_takes_the_role_it_says() {
    let (classify, classify_line) = fresh("c", &[Role::Classify], None).unwrap();
    let (operate, operate_line) = fresh("o", &[Role::Operate], None).unwrap();
    let (train, train_line) = fresh("t", &[Role::Train, Role::Review], None).unwrap();
    let app = keyed(&[&classify_line, &operate_line, &train_line]).app;
    let (stranger, _) = fresh("c", &[Role::Classify], None).unwrap();
    for (method, path) in CLASSIFY.into_iter().chain([("GET", "/metrics")]) {
        let (good, bad) =
            if path == "/metrics" { (&operate, &classify) } else { (&classify, &operate) };
        let status = async |key: Option<&str>| call(&app, method, path, key).await.status.as_u16();
        assert_eq!(status(Some(good)).await, 200, "{path}");
        assert_eq!(status(Some(bad)).await, 403, "{path}");
        assert_eq!(status(Some(&train)).await, 403, "{path}");
        assert_eq!(status(Some(&stranger)).await, 401, "{path}");
        assert_eq!(status(None).await, 401, "{path}");
    }
    for path in ["/v1/model", "/v1/model/card", "/v1/taxonomy", "/v2", "/v2/models/triage"] {
        assert_eq!(call(&app, "GET", path, Some(&train)).await.status, 200, "{path}");
        assert_eq!(get(&app, path).await.status, 401, "{path}");
    }
    // What a load balancer and a newcomer ask.
    for path in ["/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/openapi.json"] {
        assert_eq!(get(&app, path).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn refusals_are_problem_documents_or_their_protocols_errors() {
    let (operate, line) = fresh("o", &[Role::Operate], None).unwrap();
    let app = keyed(&[&line]).app;
    let unknown = call(&app, "POST", "/v1/classify", None).await;
    assert_eq!(unknown.problem(), (401, "unauthorized"));
    assert_eq!(unknown.headers["www-authenticate"], "Bearer");
    let forbidden = call(&app, "POST", "/v1/classify", Some(&operate)).await;
    assert_eq!(forbidden.problem(), (403, "forbidden"));
    assert!(forbidden.body["detail"].as_str().unwrap().contains("`classify`"));
    let tei = call(&app, "POST", "/predict", None).await;
    assert_eq!(tei.body["error_type"], "Validation");
    assert!(call(&app, "POST", "/", None).await.body["error"].is_string());
    // The body of a stranger is not read: this one is no JSON.
    let request = Request::post("/v1/classify").body(Body::from("{")).unwrap();
    assert_eq!(send(&app, request).await.status, 401);
    // The other header, and schemes that are none.
    let with = async |name: &str, value: String| {
        let request = Request::get("/metrics").header(name, value).body(Body::empty()).unwrap();
        send(&app, request).await.status.as_u16()
    };
    assert_eq!(with("x-api-key", operate.clone()).await, 200);
    assert_eq!(with("authorization", format!("bearer {operate}")).await, 200);
    assert_eq!(with("authorization", format!("Basic {operate}")).await, 401);
    assert_eq!(with("authorization", operate).await, 401);
}

#[tokio::test]
async fn uncalibrated_scores_are_for_those_who_train() {
    let (classify, classify_line) = fresh("c", &[Role::Classify], None).unwrap();
    let (train, train_line) = fresh("t", &[Role::Classify, Role::Train], None).unwrap();
    let keyed_app = keyed(&[&classify_line, &train_line]).app;
    let open_app = router::router(service_with(true, |_| {}).service);
    let cases = [
        ("/v1/classify", json!({"items": [{"id": "a", "text": "路灯"}], "include": ["logits"]})),
        ("/predict", json!({"inputs": "路灯", "raw_scores": true})),
        ("/", json!({"inputs": "路灯", "parameters": {"function_to_apply": "none"}})),
        (
            "/models/triage",
            json!({"inputs": "路灯", "parameters": {"function_to_apply": "sigmoid"}}),
        ),
    ];
    for (path, body) in cases {
        let ask = async |app: &Router, key: &str| {
            let request = Request::post(path)
                .header("content-type", "application/json")
                .header("x-api-key", key)
                .body(Body::from(body.to_string()));
            send(app, request.unwrap()).await
        };
        let refused = ask(&keyed_app, &classify).await;
        assert_eq!(refused.status, 403, "{path}");
        assert!(refused.body.to_string().contains("`train`"), "{path}: {}", refused.body);
        assert_eq!(ask(&keyed_app, &train).await.status, 200, "{path}");
        assert_eq!(ask(&open_app, "").await.status, 200, "{path}: no keys, no roles");
    }
}

#[tokio::test]
async fn a_key_has_so_many_requests_a_minute() {
    let (limited, line) = fresh("a", &[Role::Classify], NonZeroU32::new(2)).unwrap();
    let (other, other_line) = fresh("b", &[Role::Classify], None).unwrap();
    let app = keyed(&[&line, &other_line]).app;
    for (_, path) in &CLASSIFY[..2] {
        assert_eq!(call(&app, "POST", path, Some(&limited)).await.status, 200);
    }
    let reply = call(&app, "POST", "/v1/classify", Some(&limited)).await;
    assert_eq!(reply.problem(), (429, "rate_limited"));
    assert_eq!(reply.body["limit"], 2);
    let seconds: u64 = reply.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=30).contains(&seconds), "{seconds}");
    assert_eq!(call(&app, "POST", "/predict", Some(&limited)).await.status, 429);
    assert_eq!(call(&app, "POST", "/v1/classify", Some(&other)).await.status, 200);
}

#[tokio::test]
async fn keys_rotate_while_the_service_runs() {
    let (old, old_line) = fresh("a", &[Role::Classify], None).unwrap();
    let (new, new_line) = fresh("a2", &[Role::Classify], None).unwrap();
    let keyed = keyed(&[&old_line]);
    let status =
        async |key: &str| call(&keyed.app, "POST", "/predict", Some(key)).await.status.as_u16();
    assert_eq!((status(&old).await, status(&new).await), (200, 401));
    std::fs::write(&keyed.path, format!("{old_line}\n{new_line}")).unwrap();
    assert_eq!(keyed.file.refresh().unwrap(), Some(2));
    assert_eq!((status(&old).await, status(&new).await), (200, 200));
    std::fs::write(&keyed.path, new_line).unwrap();
    assert_eq!(keyed.file.refresh().unwrap(), Some(1));
    assert_eq!((status(&old).await, status(&new).await), (401, 200));
}

#[tokio::test]
async fn pages_of_other_origins_may_not_call_unless_named() {
    let ask = async |app: &Router, origin: &str, method: &str| {
        let request = Request::builder()
            .method(method)
            .uri("/v1/taxonomy")
            .header("origin", origin)
            .header("access-control-request-method", "GET")
            .body(Body::empty())
            .unwrap();
        let reply = send(app, request).await;
        reply.headers.get("access-control-allow-origin").map(|it| it.to_str().unwrap().to_owned())
    };
    let ours = "https://console.example.org";
    let closed = router::router(service_with(true, |_| {}).service);
    let origins = vec![HeaderValue::from_static(ours)];
    let open = router::router(service_with(true, |it| it.cors_origins = origins).service);
    for method in ["GET", "OPTIONS"] {
        assert_eq!(ask(&closed, ours, method).await, None);
        assert_eq!(ask(&open, ours, method).await.as_deref(), Some(ours));
        assert_eq!(ask(&open, "https://other.example.org", method).await, None);
    }
}
