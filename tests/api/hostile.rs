//! Whatever is sent, to whatever route: an answer the contract knows, no panic, and the service goes on.

use axum::body::Body;
use axum::http::Request;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::helpers::{app, classify, metric, send};

const ROUTES: [&str; 5] =
    ["/v1/classify", "/predict", "/", "/models/triage", "/v2/models/triage/infer"];

/// JSON made of the names and values our routes look for, and of others.
fn any_json() -> impl Strategy<Value = Value> {
    let name = prop_oneof![
        Just("items"),
        Just("id"),
        Just("text"),
        Just("include"),
        Just("deadline_ms"),
        Just("lane"),
        Just("inputs"),
        Just("parameters"),
        Just("top_k"),
        Just("outputs"),
        Just("name"),
        Just("shape"),
        Just("datatype"),
        Just("data"),
        Just("nickname"),
        Just("raw_scores"),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop_oneof![Just("evidence"), Just("bulk"), Just("text"), Just("BYTES"), Just("小区停水")]
            .prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 40, 4, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec((name.clone(), inner), 0..5).prop_map(|fields| {
                fields.into_iter().map(|(name, it)| (name.to_owned(), it)).collect()
            }),
        ]
    })
}

fn any_body() -> impl Strategy<Value = Vec<u8>> {
    let json = any_json().prop_map(|it| it.to_string().into_bytes()).boxed();
    let cut = (json.clone(), any::<prop::sample::Index>()).prop_map(|(mut it, at)| {
        it.truncate(at.index(it.len() + 1));
        it
    });
    prop_oneof![4 => json, 1 => cut, 1 => proptest::collection::vec(any::<u8>(), 0..200)]
}

#[test]
fn any_body_gets_a_documented_answer() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let app = runtime.block_on(async { app() });
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(400));
    let case = (any_body(), 0..ROUTES.len(), proptest::option::of(0_usize..250));
    let result = runner.run(&case, |(body, route, json_length)| {
        let mut request = Request::post(ROUTES[route]).header("content-type", "application/json");
        if let Some(length) = json_length {
            request = request.header("inference-header-content-length", length);
        }
        let reply = runtime.block_on(send(&app, request.body(Body::from(body)).unwrap()));
        prop_assert!([200, 400, 422].contains(&reply.status.as_u16()), "{}", reply.status);
        prop_assert!(reply.body.is_object() || reply.body.is_array());
        Ok(())
    });
    result.unwrap();
    runtime.block_on(async {
        assert_eq!(metric(&app, "triage_worker_panics_total").await, Some(0.0));
        let again = classify(&app, &json!({"items": [{"id": "a", "text": "路灯坏了"}]})).await;
        assert_eq!(again.body["results"][0]["status"], "ok");
    });
}
