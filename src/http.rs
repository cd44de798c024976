//! The only room that knows axum, status codes and requests. Knows no model and no files.

pub mod access;
pub mod answer;
pub mod body;
pub mod classify;
pub mod compatible;
pub mod connection;
pub mod documented;
pub mod error;
mod examples;
pub mod idempotency;
pub mod info;
pub mod observe;
pub mod page;
mod patience;
pub mod router;
pub mod wire;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::http::HeaderValue;
use tokio::sync::Semaphore;

use error::ApiError;

use crate::cache::PredictionCache;
use crate::inference::{Engine, EngineLimits};
use crate::keys::{KeysFile, Quotas};
use crate::pipeline::Pipeline;
use crate::replay::ReplayLimits;
use crate::telemetry::metrics::Metrics;

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

/// How a service is set up.
pub struct Settings {
    /// What one request may ask for.
    pub limits: Limits,
    /// Memory for answers already given, in bytes; 0 for none.
    pub cache_bytes: usize,
    /// How much is kept of requests with an `Idempotency-Key`; the header is without effect when there is none.
    pub replays: Option<ReplayLimits>,
    /// Origins whose pages may call; none when empty.
    pub cors_origins: Vec<HeaderValue>,
    /// Who may call; everybody when there are no keys.
    pub keys: Option<Arc<KeysFile>>,
    /// Where everything is counted; the engine's batches too.
    pub metrics: Metrics,
}

impl From<Limits> for Settings {
    /// No cache, no replays, no other origins, no keys.
    fn from(limits: Limits) -> Self {
        Self {
            limits,
            cache_bytes: 0,
            replays: None,
            cors_origins: Vec::new(),
            keys: None,
            metrics: Metrics::new(),
        }
    }
}

/// One model version in service: what it takes to answer.
pub struct Serving {
    /// The version.
    pub pipeline: Arc<Pipeline>,
    /// Its model thread.
    pub engine: Engine,
    /// Its answers already given.
    pub cache: Option<PredictionCache>,
}

/// The keys in force and what they have left.
struct Access {
    keys: Arc<KeysFile>,
    quotas: Quotas,
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
    cache_bytes: usize,
    replays: Option<idempotency::Replays>,
    cors_origins: Vec<HeaderValue>,
    access: Option<Access>,
    metrics: Metrics,
    is_draining: AtomicBool,
    /// Items that may still be taken.
    items: Arc<Semaphore>,
    /// Of these, the ones bulk may have: a job must not lock people out.
    bulk_items: Arc<Semaphore>,
    /// Body bytes that may still be taken, in steps.
    bodies: Arc<Semaphore>,
}

impl Service {
    /// A service over a loaded model and its running engine.
    pub fn new(
        pipeline: Arc<Pipeline>,
        engine: Engine,
        settings: impl Into<Settings>,
    ) -> Arc<Self> {
        let service = Self::loading(settings);
        service.open(pipeline, engine);
        service
    }

    /// A service that answers health and waits for [`Service::open`].
    pub fn loading(settings: impl Into<Settings>) -> Arc<Self> {
        let Settings { limits, cache_bytes, replays, cors_origins, keys, metrics } =
            settings.into();
        // At least one request of allowed size.
        let n_bulk = (limits.max_waiting_items / 4 * 3).max(limits.max_items);
        info::declare(&metrics);
        let n_steps = BODIES_IN_MEMORY * limits.max_body_bytes.div_ceil(BODY_STEP);
        Arc::new(Self {
            serving: RwLock::new(None),
            limits,
            cache_bytes,
            replays: replays.map(idempotency::Replays::new),
            cors_origins,
            access: keys.map(|keys| Access { keys, quotas: Quotas::default() }),
            metrics,
            is_draining: AtomicBool::new(false),
            items: Arc::new(Semaphore::new(limits.max_waiting_items)),
            bulk_items: Arc::new(Semaphore::new(n_bulk)),
            bodies: Arc::new(Semaphore::new(n_steps)),
        })
    }

    /// New requests are answered by this version from now on.
    pub fn open(&self, pipeline: Arc<Pipeline>, engine: Engine) {
        let (identity, policy_digest) = (pipeline.identity(), pipeline.policy_digest());
        self.metrics.set_model(&identity.name, &identity.version, &identity.digest, policy_digest);
        let cache = PredictionCache::new(self.cache_bytes, &identity.digest, policy_digest);
        let serving = Arc::new(Serving { pipeline, engine, cache });
        // Nothing panics while holding the lock, and an `Option` cannot be half changed.
        *self.serving.write().unwrap_or_else(PoisonError::into_inner) = Some(serving);
    }

    /// As [`Service::open`], with an engine of the version's own: what was submitted to the old version is
    /// still computed by it, since token ids of one vocabulary mean nothing to another.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn swap(&self, pipeline: Arc<Pipeline>, limits: EngineLimits) -> std::io::Result<()> {
        // The thread ends by itself when the last request of its version is answered.
        let (engine, _thread) = Engine::start(pipeline.clone(), limits, self.metrics.clone())?;
        self.open(pipeline, engine);
        Ok(())
    }

    /// Lets go of the version in service: its thread ends when what it took is computed.
    pub fn close(&self) {
        *self.serving.write().unwrap_or_else(PoisonError::into_inner) = None;
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
