//! A full service, a late answer, a slow caller, a stop in the middle of work.

use std::sync::Arc;
use std::time::Duration;

use opinion_triage::http::{self, router};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::helpers::{LIMITS, TestService, classify, get, service};

fn items(n: usize) -> serde_json::Value {
    let items: Vec<_> =
        (0..n).map(|it| json!({"id": it.to_string(), "text": "路灯坏了"})).collect();
    json!({ "items": items })
}

#[tokio::test]
async fn a_full_service_says_so_at_once_and_recovers() {
    let test = service(false);
    let app = router::router(test.service.clone());
    let waiting = tokio::spawn({
        let app = app.clone();
        async move { classify(&app, &items(LIMITS.max_waiting_items)).await }
    });
    while get(&app, "/readyz").await.status == 200 {
        tokio::task::yield_now().await;
    }
    assert_eq!(get(&app, "/readyz").await.body["status"], "full");
    let reply = classify(&app, &items(1)).await;
    assert_eq!(reply.problem(), (503, "overloaded"));
    assert_eq!(reply.headers["retry-after"], "1");
    test.gate.open();
    let done = waiting.await.unwrap();
    assert_eq!(done.body["results"].as_array().unwrap().len(), LIMITS.max_waiting_items);
    assert_eq!(classify(&app, &items(1)).await.status, 200);
    assert_eq!(get(&app, "/readyz").await.status, 200);
}

#[tokio::test]
async fn an_answer_that_would_be_late_is_not_waited_for() {
    let test = service(false);
    let app = router::router(test.service.clone());
    let mut body = items(1);
    body["deadline_ms"] = json!(30);
    let reply = classify(&app, &body).await;
    assert_eq!(reply.problem(), (504, "deadline_exceeded"));
    assert_eq!(reply.body["limit"], 30);
    test.gate.open();
    assert_eq!(classify(&app, &items(1)).await.status, 200);
}

/// A server on a free port, and what stops it.
async fn server(
    test: &TestService,
) -> (std::net::SocketAddr, tokio::sync::oneshot::Sender<()>, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let service = Arc::clone(&test.service);
    let server = tokio::spawn(async move {
        let stop = async move { drop(stopped.await) };
        http::serve(listener, service, stop, Duration::from_secs(5)).await.unwrap();
    });
    (address, stop, server)
}

async fn send_raw(address: std::net::SocketAddr, request: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

fn request(body: &str) -> String {
    format!(
        "POST /v1/classify HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

async fn read_all(mut stream: TcpStream) -> String {
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).await.unwrap();
    String::from_utf8(reply).unwrap()
}

#[tokio::test]
async fn a_stop_finishes_what_was_taken() {
    let test = service(false);
    let (address, stop, server) = server(&test).await;
    let app = router::router(test.service.clone());
    let sizes = [3, LIMITS.max_waiting_items - 3];
    let streams = [
        send_raw(address, &request(&items(sizes[0]).to_string())).await,
        send_raw(address, &request(&items(sizes[1]).to_string())).await,
    ];
    // Together they fill the service, so it is not ready once both are in it.
    while get(&app, "/readyz").await.status == 200 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    stop.send(()).unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!server.is_finished());
    test.gate.open();
    for (stream, n) in streams.into_iter().zip(sizes) {
        let reply = read_all(stream).await;
        assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
        assert_eq!(reply.matches("\"status\":\"ok\"").count(), n);
    }
    server.await.unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_body_that_never_comes_is_given_up() {
    let test = service(true);
    let (address, _stop, _server) = server(&test).await;
    let head = request("{}").replace("content-length: 2", "content-length: 500");
    let reply = read_all(send_raw(address, &head).await).await;
    assert!(reply.starts_with("HTTP/1.1 408") && reply.contains("slow_body"), "{reply}");
}

#[tokio::test]
async fn callers_that_hang_up_free_their_places() {
    let test = service(false);
    let (address, _stop, _server) = server(&test).await;
    let app = router::router(test.service.clone());
    let stream = send_raw(address, &request(&items(LIMITS.max_waiting_items).to_string())).await;
    while get(&app, "/readyz").await.status == 200 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    drop(stream);
    for _ in 0..500 {
        if get(&app, "/readyz").await.status == 200 {
            test.gate.open();
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the places are still taken");
}
