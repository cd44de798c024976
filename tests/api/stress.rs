//! A full service, a late answer, a slow caller, a stop in the middle of work.

use std::sync::Arc;
use std::time::Duration;

use opinion_triage::http::connection::{self, Connections, Tls};
use opinion_triage::http::router;
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
    server_with(test, None).await
}

/// Longest time for a head to arrive at these servers.
const HEAD_TIMEOUT: Duration = Duration::from_millis(300);
/// Longest time they wait for an answer to be read.
const WRITE_TIMEOUT: Duration = Duration::from_millis(400);

async fn server_with(
    test: &TestService,
    tls: Option<Tls>,
) -> (std::net::SocketAddr, tokio::sync::oneshot::Sender<()>, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let service = Arc::clone(&test.service);
    let server = tokio::spawn(async move {
        let stop = async move { drop(stopped.await) };
        let connections = Connections {
            head_timeout: HEAD_TIMEOUT,
            write_timeout: WRITE_TIMEOUT,
            max_connections: 16,
            drain_timeout: Duration::from_secs(5),
            tls,
        };
        connection::serve(listener, service, connections, stop).await.unwrap();
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

#[tokio::test]
async fn a_connection_that_says_nothing_is_closed_and_others_are_served() {
    let test = service(true);
    let (address, _stop, _server) = server(&test).await;
    // A head that never ends, a caller that never begins, and one that is idle after its answer.
    let get = "GET /healthz HTTP/1.1\r\nhost: x\r\n";
    let slow = send_raw(address, get).await;
    let silent = TcpStream::connect(address).await.unwrap();
    let idle = send_raw(address, &format!("{get}\r\n")).await;
    let begun = std::time::Instant::now();
    let (slow, silent, idle) = tokio::join!(read_all(slow), read_all(silent), read_all(idle));
    assert!(begun.elapsed() >= HEAD_TIMEOUT / 2, "{:?}", begun.elapsed());
    assert!(slow.is_empty() || slow.starts_with("HTTP/1.1 408"), "{slow}");
    assert!(silent.is_empty() || silent.starts_with("HTTP/1.1 408"), "{silent}");
    assert!(idle.starts_with("HTTP/1.1 200"), "{idle}");
    let reply = read_all(send_raw(address, &request(&items(1).to_string())).await).await;
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
}

/// Big answers are asked for, one after the other, by somebody who reads none of them.
#[tokio::test]
async fn a_caller_that_does_not_read_is_given_up() {
    let test = service(true);
    let (address, _stop, server) = server(&test).await;
    let asking = "GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n".repeat(500);
    let stream = send_raw(address, &asking).await;
    let (mut reader, mut writer) = stream.into_split();
    let begun = std::time::Instant::now();
    let more = asking.as_bytes();
    // As long as somebody is there, what was sent is taken or waits: only a closed connection refuses it.
    let refused = async {
        loop {
            tokio::time::sleep(Duration::from_millis(20)).await;
            if let Err(error) = writer.try_write(&more[..1])
                && error.kind() != std::io::ErrorKind::WouldBlock
            {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), refused).await.expect("it still holds on");
    assert!(begun.elapsed() >= WRITE_TIMEOUT / 2, "{:?}", begun.elapsed());
    // What had been sent before is short of what was asked for.
    let mut read = Vec::new();
    let _ = reader.read_to_end(&mut read).await;
    let one = get(&router::router(test.service.clone()), "/openapi.json").await.body.to_string();
    assert!(read.len() < 500 * one.len(), "{} bytes", read.len());
    drop(writer.shutdown().await);
    assert!(!server.is_finished());
    let reply = read_all(send_raw(address, &request(&items(1).to_string())).await).await;
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
}

#[tokio::test]
async fn more_connections_than_allowed_wait_their_turn() {
    let test = service(true);
    let (address, _stop, _server) = server(&test).await;
    let mut silent = Vec::new();
    for _ in 0..16 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    // Served once a silent one was given up.
    let reply = read_all(send_raw(address, &request(&items(1).to_string())).await).await;
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
}

#[tokio::test]
async fn tls_is_spoken_when_there_is_a_certificate() {
    use tokio_rustls::TlsConnector;
    use tokio_rustls::rustls::crypto::ring;
    use tokio_rustls::rustls::pki_types::ServerName;
    use tokio_rustls::rustls::{ClientConfig, RootCertStore};

    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (cert, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let tls = Tls::from_pem(cert.as_bytes(), key.as_bytes()).unwrap();
    let test = service(true);
    let (address, _stop, _server) = server_with(&test, Some(tls)).await;

    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    stream.write_all(request(&items(1).to_string()).as_bytes()).await.unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.unwrap();
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");

    // Plain HTTP gets no answer there, and a wrong pair of files is refused.
    let plain = read_all(send_raw(address, &request("{}")).await).await;
    assert!(!plain.starts_with("HTTP"), "{plain}");
    assert!(Tls::from_pem(b"", key.as_bytes()).is_err());
    assert!(Tls::from_pem(cert.as_bytes(), cert.as_bytes()).is_err());
    let other = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    assert!(Tls::from_pem(cert.as_bytes(), other.signing_key.serialize_pem().as_bytes()).is_err());
}

#[tokio::test]
async fn bulk_cannot_take_every_place() {
    let limits = opinion_triage::http::Limits { max_items: 4, ..LIMITS };
    let test = crate::helpers::service_with(false, |it| it.limits = limits);
    let app = router::router(test.service.clone());
    let spawn = |n: usize, lane: &'static str| {
        let app = app.clone();
        tokio::spawn(async move {
            let mut body = items(n);
            body["lane"] = json!(lane);
            classify(&app, &body).await
        })
    };
    // Three quarters of eight places.
    let bulk = [spawn(3, "bulk"), spawn(3, "bulk")];
    let waiting = [r#"triage_items_received_total"#];
    while crate::helpers::metric(&app, waiting[0]).await != Some(6.0) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(spawn(1, "bulk").await.unwrap().problem(), (503, "overloaded"));
    let person = spawn(2, "interactive");
    while get(&app, "/readyz").await.status == 200 {
        tokio::task::yield_now().await;
    }
    test.gate.open();
    assert_eq!(person.await.unwrap().status, 200);
    for it in bulk {
        assert_eq!(it.await.unwrap().status, 200);
    }
}
