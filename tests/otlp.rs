//! Spans sent to an OpenTelemetry collector: the caller's trace goes on, no text is in it, and a collector that is
//! dead or never answers is not noticed by anybody who asks the service.
//!
//! `cargo test --features otlp --test otlp`

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::http::Uri;
use serde_json::Value;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";
const TEXT: &str = "金丝雀小区停水";

/// A running service and its address.
struct Service {
    child: Child,
    address: SocketAddr,
}

impl Service {
    /// Started with `args`, a settings variable or two, and ready.
    fn start(args: &[&str], env: &[(&str, &str)]) -> Self {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/triage-base");
        let mut child = Command::new(env!("CARGO_BIN_EXE_triage"))
            .args(["serve", "--port", "0", "--log-format", "json", "--cache-mib", "0"])
            .args(args)
            .env_clear()
            .env("TRIAGE_MODEL", model)
            .envs(env.iter().copied())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let address = loop {
            let mut line = String::new();
            assert!(log.read_line(&mut line).unwrap() > 0, "it did not start");
            let line: Value = serde_json::from_str(&line).unwrap();
            if line["message"] == "ready" {
                break line["http.address"].as_str().unwrap().parse().unwrap();
            }
        };
        // The pipe must not fill up.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Self { child, address }
    }

    /// The status of an answer to one text.
    fn classify(&self, flags: &str) -> String {
        let body = format!(r#"{{"items":[{{"id":"a","text":"{TEXT}"}}]}}"#);
        let request = format!(
            "POST /v1/classify HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n\
             traceparent: 00-{TRACE}-{PARENT}-{flags}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        reply.split(' ').nth(1).unwrap_or_default().to_owned()
    }

    /// Ends it as an operator does.
    fn stop(mut self) {
        let kill = Command::new("kill").arg(self.child.id().to_string()).status().unwrap();
        assert!(kill.success() && self.child.wait().unwrap().success());
    }
}

/// A collector that hands over what it is sent, and its address.
fn collector() -> (String, Receiver<(String, Vec<u8>)>) {
    let (sender, received) = channel();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let collect = move |uri: Uri, body: Bytes| async move {
                let _ = sender.send((uri.path().to_owned(), body.to_vec()));
            };
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            axum::serve(listener, Router::new().fallback(collect)).await.unwrap();
        });
    });
    (format!("http://{address}"), received)
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len() / 2).map(|it| u8::from_str_radix(&hex[2 * it..2 * it + 2], 16).unwrap()).collect()
}

fn holds(all: &[u8], part: &[u8]) -> bool {
    all.windows(part.len()).any(|it| it == part)
}

#[test]
fn the_callers_trace_goes_on_and_holds_no_text() {
    let (endpoint, received) = collector();
    let (flag, variable) = (
        ["--otlp-endpoint", endpoint.as_str()],
        [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str())],
    );
    for service in [Service::start(&flag, &[]), Service::start(&[], &variable)] {
        assert_eq!(service.classify("01"), "200");
        service.stop();
        let (path, spans) = received.recv_timeout(Duration::from_secs(20)).unwrap();
        assert_eq!(path, "/v1/traces");
        for part in [bytes(TRACE), bytes(PARENT)] {
            assert!(holds(&spans, &part), "the caller's ids are not in it");
        }
        for part in ["POST /v1/classify", "opinion-triage", "http.status", "items.count"] {
            assert!(holds(&spans, part.as_bytes()), "{part}");
        }
        assert!(!holds(&spans, TEXT.as_bytes()) && !holds(&spans, "金丝雀".as_bytes()));
    }
    // What the caller does not keep is not sent.
    let service = Service::start(&flag, &[]);
    assert_eq!(service.classify("00"), "200");
    service.stop();
    assert!(received.recv_timeout(Duration::from_secs(1)).is_err());
}

#[test]
fn a_dead_collector_is_not_noticed() {
    // One that takes connections and never answers, and one that is not there.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let gone = TcpListener::bind("127.0.0.1:0").unwrap();
    let addresses = [silent.local_addr().unwrap(), gone.local_addr().unwrap()];
    drop(gone);
    for address in addresses {
        let service = Service::start(&["--otlp-endpoint", &format!("http://{address}")], &[]);
        let begun = Instant::now();
        for _ in 0..20 {
            assert_eq!(service.classify("01"), "200");
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
        let begun = Instant::now();
        service.stop();
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    }
}
