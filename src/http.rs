//! The only room that knows axum, status codes and requests. Knows no model and no files.

pub mod answer;
pub mod body;
pub mod classify;
pub mod compatible;
pub mod error;
pub mod info;
pub mod router;
pub mod wire;

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use error::ApiError;

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

/// One model version in service: what it takes to answer.
pub struct Serving {
    /// The version.
    pub pipeline: Arc<Pipeline>,
    /// Its model thread.
    pub engine: Engine,
}

/// Whether new items would be taken now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// They would.
    Ready,
    /// No model yet.
    Loading,
    /// No room for one more item.
    Full,
    /// The service is stopping.
    Draining,
    /// The model thread has ended; only a restart helps.
    Stopped,
}

impl Readiness {
    /// Whether it is [`Readiness::Ready`].
    pub fn is_ready(self) -> bool {
        self == Self::Ready
    }

    /// Stable code.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Loading => "loading",
            Self::Full => "full",
            Self::Draining => "draining",
            Self::Stopped => "stopped",
        }
    }
}

/// What handlers share.
pub struct Service {
    /// None while the first version is loaded. A request keeps the version it began with.
    serving: RwLock<Option<Arc<Serving>>>,
    limits: Limits,
    is_draining: AtomicBool,
    /// Items that may still be taken.
    items: Arc<Semaphore>,
    /// Body bytes that may still be taken, in steps.
    bodies: Arc<Semaphore>,
}

impl Service {
    /// A service over a loaded model and its running engine.
    pub fn new(pipeline: Arc<Pipeline>, engine: Engine, limits: Limits) -> Arc<Self> {
        let service = Self::loading(limits);
        service.open(pipeline, engine);
        service
    }

    /// A service that answers health and waits for [`Service::open`].
    pub fn loading(limits: Limits) -> Arc<Self> {
        let n_steps = BODIES_IN_MEMORY * limits.max_body_bytes.div_ceil(BODY_STEP);
        Arc::new(Self {
            serving: RwLock::new(None),
            limits,
            is_draining: AtomicBool::new(false),
            items: Arc::new(Semaphore::new(limits.max_waiting_items)),
            bodies: Arc::new(Semaphore::new(n_steps)),
        })
    }

    /// New requests are answered by this version from now on.
    pub fn open(&self, pipeline: Arc<Pipeline>, engine: Engine) {
        let serving = Arc::new(Serving { pipeline, engine });
        // Nothing panics while holding the lock, and an `Option` cannot be half changed.
        *self.serving.write().unwrap_or_else(PoisonError::into_inner) = Some(serving);
    }

    /// Takes no new items from now on; `/readyz` says so.
    pub fn drain(&self) {
        self.is_draining.store(true, Ordering::Release);
    }

    /// Whether new items would be taken now.
    pub fn readiness(&self) -> Readiness {
        let serving = self.current();
        if self.is_draining.load(Ordering::Acquire) {
            Readiness::Draining
        } else if serving.is_none() {
            Readiness::Loading
        } else if serving.is_some_and(|it| it.engine.is_stopped()) {
            Readiness::Stopped
        } else if self.items.available_permits() == 0 {
            Readiness::Full
        } else {
            Readiness::Ready
        }
    }

    /// The version to answer with.
    fn serving(&self) -> Result<Arc<Serving>, ApiError> {
        if self.is_draining.load(Ordering::Acquire) {
            return Err(ApiError::Stopping);
        }
        self.current().ok_or(ApiError::Loading)
    }

    fn current(&self) -> Option<Arc<Serving>> {
        self.serving.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Serves until `stop` resolves, then finishes what was taken, for `drain_timeout` at most.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    service: Arc<Service>,
    stop: impl Future<Output = ()> + Send + 'static,
    drain_timeout: Duration,
) -> std::io::Result<()> {
    let router = router::router(Arc::clone(&service));
    let (stopped, is_stopped) = tokio::sync::oneshot::channel();
    let stop = async move {
        stop.await;
        service.drain();
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
