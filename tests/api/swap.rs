//! A version that takes over under load: nothing fails, and no reply mixes two versions.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opinion_triage::domain::taxonomy::Taxonomy;
use opinion_triage::http::connection::{self, Connections};
use opinion_triage::http::{self, Service};
use opinion_triage::inference::{Engine, EngineLimits};
use opinion_triage::model::Bundle;
use opinion_triage::model::calibration::Mix;
use opinion_triage::model::runtime::Precision;
use opinion_triage::pipeline::Pipeline;
use opinion_triage::telemetry::metrics::Metrics;
use opinion_triage::text::Segmenter;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::helpers::LIMITS;

/// A version of its own, whose probabilities tell which it is.
fn version(name: &str, temperature: f32) -> Arc<Pipeline> {
    let mut bundle = Bundle::for_tests();
    bundle.manifest.name = name.into();
    bundle.digest = format!("sha256:{name}");
    bundle.manifest.calibration.kind = Mix { temperature, lexical_weight: 0.0 };
    let (segmenter, taxonomy) = (Segmenter::default(), Taxonomy::embedded());
    Arc::new(Pipeline::from_bundle(bundle, segmenter, taxonomy, Precision::F32).unwrap())
}

async fn ask(stream: &mut TcpStream, body: &str) -> (u16, Value) {
    let request = format!(
        "POST /v1/classify HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut reply = Vec::new();
    loop {
        let mut part = [0; 4096];
        let n = stream.read(&mut part).await.unwrap();
        assert!(n > 0, "the connection was cut");
        reply.extend_from_slice(&part[..n]);
        let text = String::from_utf8_lossy(&reply);
        let Some((head, rest)) = text.split_once("\r\n\r\n") else { continue };
        let head = head.to_ascii_lowercase();
        let length: usize = head
            .lines()
            .find_map(|it| it.strip_prefix("content-length: "))
            .and_then(|it| it.parse().ok())
            .unwrap();
        if rest.len() >= length {
            let status = head.split(' ').nth(1).and_then(|it| it.parse().ok()).unwrap();
            return (status, serde_json::from_str(rest).unwrap());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_swap_under_load_without_a_failed_or_mixed_reply() {
    let versions = [version("old", 1.0), version("new", 0.05)];
    let limits = http::Limits { max_waiting_items: 256, ..LIMITS };
    let (engine, thread) =
        Engine::start(versions[0].clone(), EngineLimits::default(), Metrics::new()).unwrap();
    let service = Service::new(versions[0].clone(), engine, limits);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = tokio::spawn({
        let service = Arc::clone(&service);
        async move {
            let stop = async move { drop(stopped.await) };
            let connections = Connections {
                head_timeout: Duration::from_secs(5),
                write_timeout: Duration::from_secs(5),
                max_connections: 64,
                drain_timeout: Duration::from_secs(5),
                tls: None,
            };
            connection::serve(listener, service, connections, stop).await.unwrap();
        }
    });
    let is_done = Arc::new(AtomicBool::new(false));
    let body = json!({"items": (0..3).map(|it| json!({"id": it.to_string(), "text": "小区停水三天了"})).collect::<Vec<_>>()}).to_string();
    let callers: Vec<_> = (0..16)
        .map(|_| {
            let (body, is_done) = (body.clone(), Arc::clone(&is_done));
            tokio::spawn(async move {
                let mut stream = TcpStream::connect(address).await.unwrap();
                let mut seen: BTreeMap<String, (usize, Value)> = BTreeMap::new();
                while !is_done.load(Ordering::Relaxed) {
                    let (status, reply) = ask(&mut stream, &body).await;
                    assert_eq!(status, 200, "{reply}");
                    let name = reply["model"]["name"].as_str().unwrap().to_owned();
                    let entry = seen.entry(name).or_insert_with(|| (0, reply["results"].clone()));
                    entry.0 += 1;
                    // One version, one answer: whoever predicted is who is named.
                    assert_eq!(reply["results"], entry.1);
                }
                seen
            })
        })
        .collect();
    for round in 0..40 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        service.swap(versions[(round + 1) % 2].clone(), EngineLimits::default()).unwrap();
    }
    is_done.store(true, Ordering::Relaxed);
    let mut totals = BTreeMap::new();
    let mut answers: BTreeMap<String, Value> = BTreeMap::new();
    for caller in callers {
        for (name, (n, answer)) in caller.await.unwrap() {
            *totals.entry(name.clone()).or_insert(0) += n;
            assert_eq!(answers.entry(name).or_insert_with(|| answer.clone()), &answer);
        }
    }
    assert!(totals.len() == 2 && totals.values().all(|it| *it > 16), "{totals:?}");
    assert_ne!(answers["old"], answers["new"]);
    stop.send(()).unwrap();
    server.await.unwrap();
    // The first version is not kept by anybody but this test and the service's handle on it.
    service.swap(versions[1].clone(), EngineLimits::default()).unwrap();
    tokio::task::spawn_blocking(move || thread.join()).await.unwrap();
    // Engines swapped in later end by themselves, soon after their last request.
    for _ in 0..500 {
        if Arc::strong_count(&versions[0]) == 1 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{} others still hold the old version", Arc::strong_count(&versions[0]) - 1);
}
