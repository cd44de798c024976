//! Connections: taken up to a limit, given up when slow, with TLS when there is a certificate, and finished
//! before the service stops.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ServerConfig};

use super::patience::Patient;
use super::{Service, router};

/// How long to wait before accepting again when the system has no file left for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How connections are dealt with.
#[derive(Clone)]
pub struct Connections {
    /// Longest time for a request's head to arrive, and for a connection to say nothing at all.
    pub head_timeout: Duration,
    /// Longest time a caller takes to read an answer.
    pub write_timeout: Duration,
    /// Connections at once; others wait to be accepted.
    pub max_connections: usize,
    /// Longest time a stopping service finishes what it took.
    pub drain_timeout: Duration,
    /// TLS, when the service speaks it.
    pub tls: Option<Tls>,
}

/// A certificate and its key, ready for use.
#[derive(Clone)]
pub struct Tls(TlsAcceptor);

/// Why a certificate cannot be used.
#[derive(Debug, Error)]
pub enum TlsError {
    /// No certificate in the file.
    #[error(
        "the certificate file holds no PEM certificate; give the chain, your own certificate first"
    )]
    NoCertificate,
    /// No key in the file.
    #[error("the key file holds no PEM private key; give the key of the certificate, unencrypted")]
    NoKey,
    /// They do not go together.
    #[error("certificate and key: {0}")]
    Unusable(#[from] rustls::Error),
}

impl Tls {
    /// From PEM texts: the certificate chain and its private key.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn from_pem(certificates: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let chain: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(certificates).filter_map(Result::ok).collect();
        if chain.is_empty() {
            return Err(TlsError::NoCertificate);
        }
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| TlsError::NoKey)?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(TlsAcceptor::from(Arc::new(config))))
    }
}

/// Serves until `stop` resolves, then finishes what was taken, for the drain time at most.
///
/// # Errors
/// None at present; a listener that fails is tried again.
pub async fn serve(
    listener: TcpListener,
    service: Arc<Service>,
    connections: Connections,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let router = router::router(Arc::clone(&service));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(connections.head_timeout);
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(connections.max_connections));
    // Dropped at the end of the drain time, which cuts what is left.
    let mut tasks = JoinSet::new();
    let mut stop = pin!(stop);
    loop {
        let accept = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            it = accept => it,
            () = &mut stop => break,
        };
        while tasks.try_join_next().is_some() {} // Forget the finished.
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(error = %error, "no connection could be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let connection =
            talk(stream, connections.clone(), http.clone(), router.clone(), graceful.watcher());
        tasks.spawn(async move {
            connection.await;
            drop(place);
        });
    }
    service.drain();
    drop(listener);
    let drain_timeout = connections.drain_timeout;
    if tokio::time::timeout(drain_timeout, graceful.shutdown()).await.is_err() {
        tracing::warn!(
            drain.seconds = drain_timeout.as_secs(),
            "connections left open at the end of the drain time were cut"
        );
    }
    Ok(())
}

async fn talk(
    stream: TcpStream,
    connections: Connections,
    http: http1::Builder,
    router: Router,
    watcher: Watcher,
) {
    // Answers are small and written whole: waiting for more to send only delays them.
    let _ = stream.set_nodelay(true);
    let stream = Patient::new(stream, connections.write_timeout);
    match connections.tls {
        None => answer(stream, http, router, watcher).await,
        Some(Tls(acceptor)) => {
            let handshake = tokio::time::timeout(connections.head_timeout, acceptor.accept(stream));
            // A caller that cannot shake hands gets no answer and needs no log line.
            if let Ok(Ok(stream)) = handshake.await {
                answer(stream, http, router, watcher).await;
            }
        }
    }
}

async fn answer(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    http: http1::Builder,
    router: Router,
    watcher: Watcher,
) {
    let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    // What goes wrong here is the caller's: it hung up, was too slow, or does not speak HTTP.
    let _ = watcher.watch(connection).await;
}
