//! The only room that knows axum, status codes and requests. Knows no model and no files.

pub mod classify;
pub mod error;
pub mod info;
pub mod router;
pub mod wire;

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::extract::FromRef;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::inference::Engine;
use crate::pipeline::Pipeline;

/// Requests in progress may hold this many times the largest body together.
const BODIES_IN_MEMORY: usize = 64;
/// Bodies are counted in steps of this size.
const BODY_STEP: usize = 1024;

/// What one request may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest body, in bytes.
    pub max_body_bytes: usize,
    /// Most items.
    pub max_items: usize,
    /// Most items in progress, all requests together.
    pub max_waiting_items: usize,
    /// Longest time for a body to arrive.
    pub body_timeout: Duration,
    /// Deadline of a request that names none, and the longest it may name.
    pub max_deadline: Duration,
}

/// What handlers share, for one model version: a request keeps the version it began with.
pub struct Service {
    pipeline: Arc<Pipeline>,
    engine: Engine,
    limits: Limits,
    is_draining: Arc<AtomicBool>,
    /// Items that may still be taken.
    items: Arc<Semaphore>,
    /// Body bytes that may still be taken, in steps.
    bodies: Arc<Semaphore>,
}

impl Service {
    /// A service over a loaded model and its running engine.
    pub fn new(pipeline: Arc<Pipeline>, engine: Engine, limits: Limits) -> Arc<Self> {
        let n_steps = BODIES_IN_MEMORY * limits.max_body_bytes.div_ceil(BODY_STEP);
        Arc::new(Self {
            pipeline,
            engine,
            limits,
            is_draining: Arc::default(),
            items: Arc::new(Semaphore::new(limits.max_waiting_items)),
            bodies: Arc::new(Semaphore::new(n_steps)),
        })
    }

    /// The same service, its limits and its waiting line, on another model version.
    pub fn with_pipeline(&self, pipeline: Arc<Pipeline>) -> Arc<Self> {
        Arc::new(Self {
            engine: self.engine.with_predictor(pipeline.clone()),
            pipeline,
            limits: self.limits,
            is_draining: Arc::clone(&self.is_draining),
            items: Arc::clone(&self.items),
            bodies: Arc::clone(&self.bodies),
        })
    }

    /// Takes no new items from now on; `/readyz` says so.
    pub fn drain(&self) {
        self.is_draining.store(true, Ordering::Release);
    }

    fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Acquire)
    }
}

/// The service of the version in force; cheap to clone, and every clone sees a swap.
#[derive(Clone)]
pub struct Live(Arc<RwLock<Arc<Service>>>);

impl Live {
    /// The service of the version in force now.
    pub fn current(&self) -> Arc<Service> {
        // A pointer cannot be half changed.
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// New requests go to `pipeline` from now on; those that began keep their version.
    pub fn swap(&self, pipeline: Arc<Pipeline>) {
        let mut current = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let next = current.with_pipeline(pipeline);
        *current = next;
    }
}

impl From<Arc<Service>> for Live {
    fn from(service: Arc<Service>) -> Self {
        Self(Arc::new(RwLock::new(service)))
    }
}

/// Handlers ask for the `Service` and get the version in force when their request came.
impl FromRef<Live> for Arc<Service> {
    fn from_ref(live: &Live) -> Self {
        live.current()
    }
}

/// Serves until `stop` resolves, then finishes what was taken, for `drain_timeout` at most.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    service: impl Into<Live>,
    stop: impl Future<Output = ()> + Send + 'static,
    drain_timeout: Duration,
) -> std::io::Result<()> {
    let live = service.into();
    let router = router::router(live.clone());
    let (stopped, is_stopped) = tokio::sync::oneshot::channel();
    let stop = async move {
        stop.await;
        live.current().drain();
        let _ = stopped.send(()); // The server may have failed meanwhile.
    };
    let server = axum::serve(listener, router).with_graceful_shutdown(stop);
    let deadline = async {
        match is_stopped.await {
            Ok(()) => tokio::time::sleep(drain_timeout).await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        result = server => result,
        () = deadline => {
            tracing::warn!(drain.seconds = drain_timeout.as_secs(), "connections left open at the end of the drain time were cut");
            Ok(())
        }
    }
}
