//! The contract replayed: every documented request, every documented refusal, every documented status.

use std::convert::Infallible;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, Request};
use hyper::body::Frame;
use opinion_triage::http::{Limits, Service, router};
use opinion_triage::keys::{KeysFile, Role, fresh};
use opinion_triage::replay::ReplayLimits;
use serde_json::{Value, json};

use crate::helpers::{BAD_TEXT, LIMITS, Reply, app, get, post, send, service, service_with};

/// A body of which nothing ever comes.
struct Never;

impl hyper::body::Body for Never {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Pending
    }
}

/// One documented operation.
struct Operation<'a> {
    method: &'a str,
    path: &'a str,
    document: &'a Value,
}

impl Operation<'_> {
    /// Its documented request bodies.
    fn bodies(&self) -> Vec<&Value> {
        let content = &self.document["requestBody"]["content"]["application/json"];
        match content["examples"].as_object() {
            Some(examples) => examples.values().map(|it| &it["value"]).collect(),
            None => content.get("example").into_iter().collect(),
        }
    }

    fn request(&self, body: Body, change: impl FnOnce(&mut Request<Body>)) -> Request<Body> {
        let path = self.path.replace("{model}", "triage");
        let mut request = Request::builder().method(self.method).uri(path).body(body).unwrap();
        if self.method == "POST" {
            let kind = "application/json".parse().unwrap();
            request.headers_mut().insert("content-type", kind);
        }
        change(&mut request);
        request
    }

    /// Sends the first documented body.
    async fn call(&self, app: &Router, change: impl FnOnce(&mut Request<Body>)) -> Reply {
        let body = self.bodies().first().map_or(Body::empty(), |it| Body::from(it.to_string()));
        send(app, self.request(body, change)).await
    }

    async fn call_with(&self, app: &Router, body: impl Into<Body>) -> Reply {
        send(app, self.request(body.into(), |_| {})).await
    }

    /// A body whose one text is `text`.
    fn about(&self, text: &str) -> String {
        let body = match self.path {
            "/v1/classify" => json!({"items": [{"id": "a", "text": text}]}),
            "/v2/models/{model}/infer" => json!({"inputs": [
                {"name": "text", "datatype": "BYTES", "shape": [1], "data": [text]}
            ]}),
            _ => json!({ "inputs": text }),
        };
        body.to_string()
    }

    /// A reply with the documented refusal `code`.
    async fn provoke(&self, code: &str) -> Reply {
        match code {
            "invalid_json" => self.call_with(&app(), "{").await,
            "json_too_deep" => self.call_with(&app(), "[".repeat(50)).await,
            "slow_body" => self.call_with(&app(), Body::new(Never)).await,
            "body_too_large" => {
                let too_long = "99999999".parse().unwrap();
                let change = |it: &mut Request<Body>| {
                    it.headers_mut().insert("content-length", too_long);
                };
                self.call(&app(), change).await
            }
            "unsupported_media_type" => {
                let kind = "text/plain".parse().unwrap();
                let change = |it: &mut Request<Body>| {
                    it.headers_mut().insert("content-type", kind);
                };
                self.call(&app(), change).await
            }
            "invalid_idempotency_key" | "idempotency_key_reused" => self.call_again(code).await,
            "no_items" => self.call_with(&app(), "{}").await,
            "empty_text" => self.call_with(&app(), self.about(" ")).await,
            "invalid_inputs" => self.call_with(&app(), r#"{"inputs": 7}"#).await,
            "unknown_model" => {
                let path = self.path.replace("{model}", "other").parse().unwrap();
                self.call(&app(), |it: &mut Request<Body>| *it.uri_mut() = path).await
            }
            "internal" => self.call_with(&app(), self.about(BAD_TEXT)).await,
            "loading" => {
                let app = router::router(Service::loading(LIMITS));
                self.call(&app, |_| {}).await
            }
            "stopping" => {
                let test = service(true);
                test.service.drain();
                self.call(&router::router(test.service), |_| {}).await
            }
            "overloaded" => self.call_when_full().await,
            "deadline_exceeded" => {
                let limits = Limits { max_deadline: Duration::from_millis(30), ..LIMITS };
                let test = service_with(false, |it| it.limits = limits);
                let body = self.about("路灯坏了");
                let reply = self.call_with(&router::router(test.service), body).await;
                test.gate.open();
                reply
            }
            "unauthorized" | "forbidden" | "rate_limited" => self.call_with_key(code).await,
            _ => panic!("{code} is documented and no test provokes it"),
        }
    }

    async fn call_when_full(&self) -> Reply {
        let test = service(false);
        let app = router::router(test.service);
        let items: Vec<Value> = (0..LIMITS.max_waiting_items)
            .map(|it| json!({"id": it.to_string(), "text": "路灯坏了"}))
            .collect();
        let waiting = tokio::spawn({
            let app = app.clone();
            async move { post(&app, json!({ "items": items }).to_string()).await }
        });
        while get(&app, "/readyz").await.status == 200 {
            tokio::task::yield_now().await;
        }
        let reply = self.call(&app, |_| {}).await;
        test.gate.open();
        assert_eq!(waiting.await.unwrap().status, 200);
        reply
    }

    /// With a key that is none, or that another request had.
    async fn call_again(&self, code: &str) -> Reply {
        let limits = ReplayLimits { max_bytes: 1 << 20, max_age: Duration::from_secs(60) };
        let app = router::router(service_with(true, |it| it.replays = Some(limits)).service);
        let send = async |text: &str, key: &'static str| {
            let with_key = |it: &mut Request<Body>| {
                it.headers_mut().insert("idempotency-key", HeaderValue::from_static(key));
            };
            send(&app, self.request(Body::from(self.about(text)), with_key)).await
        };
        if code == "invalid_idempotency_key" {
            return send("路灯坏了", "two keys").await;
        }
        assert_eq!(send("路灯坏了", "k").await.status, 200);
        send("路灯又坏了", "k").await
    }

    async fn call_with_key(&self, code: &str) -> Reply {
        let roles: &[Role] = match code {
            "forbidden" => &[Role::Review],
            _ => &Role::ALL,
        };
        let (key, line) = fresh("a", roles, NonZeroU32::new(1)).unwrap();
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("keys.toml");
        std::fs::write(&path, line).unwrap();
        let keys = Arc::new(KeysFile::load(&path).unwrap());
        let app = router::router(service_with(true, |it| it.keys = Some(keys)).service);
        let with_key = |it: &mut Request<Body>| {
            it.headers_mut().insert("x-api-key", key.parse().unwrap());
        };
        match code {
            "unauthorized" => self.call(&app, |_| {}).await,
            "forbidden" => self.call(&app, with_key).await,
            _ => {
                assert_eq!(self.call(&app, with_key).await.status, 200);
                self.call(&app, with_key).await
            }
        }
    }
}

async fn each(mut check: impl AsyncFnMut(Operation<'_>)) {
    let document = get(&app(), "/openapi.json").await.body;
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, document) in methods.as_object().unwrap() {
            let method = method.to_uppercase();
            check(Operation { method: &method, path, document }).await;
        }
    }
}

/// Fails unless `actual` has everything `example` shows, of the same kind.
fn assert_shape(actual: &Value, example: &Value, at: &str) {
    if at == "/v1/model/metrics" {
        return; // A random model was never measured.
    }
    match (actual, example) {
        (Value::Object(actual), Value::Object(example)) => {
            for (name, example) in example {
                let at = format!("{at}/{name}");
                let actual = actual.get(name).unwrap_or_else(|| panic!("{at} is missing"));
                assert_shape(actual, example, &at);
            }
        }
        (Value::Array(actual), Value::Array(example)) => {
            if let (Some(actual), Some(example)) = (actual.first(), example.first()) {
                assert_shape(actual, example, &format!("{at}/0"));
            }
        }
        _ => assert_eq!(
            std::mem::discriminant(actual),
            std::mem::discriminant(example),
            "{at}: {actual} is not like {example}"
        ),
    }
}

#[tokio::test]
async fn every_documented_request_is_answered_as_documented() {
    let mut n_requests = 0;
    each(async |it| {
        let content = &it.document["responses"]["200"]["content"];
        assert_eq!(content.as_object().unwrap().len(), 1, "{} has one kind of answer", it.path);
        let (media_type, content) = content.as_object().unwrap().iter().next().unwrap();
        let bodies = it.bodies();
        assert_eq!(bodies.is_empty(), it.method == "GET", "{} lacks an example", it.path);
        let bodies: Vec<Body> = match bodies.as_slice() {
            [] => vec![Body::empty()],
            bodies => bodies.iter().map(|it| Body::from(it.to_string())).collect(),
        };
        for body in bodies {
            let reply = it.call_with(&app(), body).await;
            assert_eq!(reply.status, 200, "{} {}: {}", it.method, it.path, reply.body);
            let kind = reply.headers["content-type"].to_str().unwrap();
            assert!(kind.starts_with(media_type), "{}: {kind}", it.path);
            if let Some(example) = content.get("example") {
                assert_shape(&reply.body, example, it.path);
            } else {
                let has_none = media_type != "application/json" || it.path == "/openapi.json";
                assert!(has_none, "{} lacks an example of its answer", it.path);
            }
            n_requests += 1;
        }
    })
    .await;
    assert!(n_requests >= 19, "{n_requests}");
}

#[tokio::test]
async fn every_documented_refusal_can_be_provoked() {
    let mut n_refusals = 0;
    each(async |it| {
        for (status, response) in it.document["responses"].as_object().unwrap() {
            let contents = response["content"].as_object().unwrap();
            for (media_type, content) in contents {
                let Some(examples) = content.get("examples") else { continue };
                for (code, example) in examples.as_object().unwrap() {
                    let reply = it.provoke(code).await;
                    let name = format!("{} {} {code}: {}", it.method, it.path, reply.body);
                    assert_eq!(reply.status.as_str(), status, "{name}");
                    assert_eq!(reply.headers["content-type"], media_type.as_str(), "{name}");
                    let (actual, example) = (&reply.body, &example["value"]);
                    for field in ["code", "status", "type", "title", "error_type"] {
                        assert_eq!(actual.get(field), example.get(field), "{name}");
                    }
                    let is_documented = response["headers"].get("Retry-After").is_some();
                    if reply.headers.contains_key("retry-after") {
                        assert!(is_documented, "{name}");
                    }
                    n_refusals += 1;
                }
            }
        }
    })
    .await;
    assert!(n_refusals > 80, "{n_refusals}");
}

/// Statuses without named refusals: answers, and a readiness that says no.
#[tokio::test]
async fn every_other_documented_status_is_given() {
    each(async |it| {
        for (status, response) in it.document["responses"].as_object().unwrap() {
            let contents = response["content"].as_object().unwrap();
            if contents.values().any(|it| it.get("examples").is_some()) {
                continue;
            }
            let reply = match status.as_str() {
                "200" => it.call(&app(), |_| {}).await,
                "503" => it.provoke("stopping").await,
                _ => panic!("{}: nobody gives {status}", it.path),
            };
            assert_eq!(reply.status.as_str(), status, "{}", it.path);
            if let Some(example) = contents.values().find_map(|it| it.get("example")) {
                assert_shape(&reply.body, example, it.path);
            }
        }
    })
    .await;
}

#[tokio::test]
async fn the_page_needs_nothing_from_elsewhere() {
    let app = app();
    for path in ["/docs", "/docs/page.js", "/docs/page.css"] {
        let reply = get(&app, path).await;
        assert_eq!(reply.status, 200);
        let policy = reply.headers["content-security-policy"].to_str().unwrap();
        assert!(policy.contains("default-src 'none'") && !policy.contains("http"), "{policy}");
        for source in ["src=\"http", "href=\"http", "src=\"//", "import(", "url("] {
            let text = crate::helpers::text(&app, path).await;
            assert!(!text.contains(source), "{path}: {source}");
        }
    }
}
