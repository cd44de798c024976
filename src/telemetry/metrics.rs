//! What the service counts, for Prometheus. Labels are codes, routes and versions: never an id, a key or a text.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// Media type of [`Metrics::encode`].
pub const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper bounds in seconds, from a cache hit to the longest deadline.
const SECONDS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];
const BATCH_ITEMS: [f64; 8] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];
const BATCH_TOKENS: [f64; 8] = [16.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0];

/// Route of a request no route was found for.
pub const NO_ROUTE: &str = "none";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: String,
    route: String,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    method: String,
    route: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

/// What became of a request with an `Idempotency-Key`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keyed {
    /// It was the first with its key.
    First,
    /// It got an answer that was kept.
    Replayed,
    /// It waited for the first, which was being computed.
    Waited,
    /// Another request had the key.
    Reused,
}

impl Keyed {
    const ALL: [Self; 4] = [Self::First, Self::Replayed, Self::Waited, Self::Reused];

    const fn labels(self) -> OutcomeLabels {
        let outcome = match self {
            Self::First => "first",
            Self::Replayed => "replayed",
            Self::Waited => "waited",
            Self::Reused => "reused",
        };
        OutcomeLabels { outcome }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LaneLabels {
    lane: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelLabels {
    name: String,
    version: String,
    digest: String,
    policy_digest: String,
}

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// Everything counted. Cheap to clone; all clones count together.
#[derive(Clone)]
pub struct Metrics(Arc<Counted>);

struct Counted {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    request_duration: Histograms<RouteLabels>,
    received: Counter,
    items: Family<OutcomeLabels, Counter>,
    waiting: Family<LaneLabels, Gauge>,
    wait_duration: Histograms<LaneLabels>,
    batch_items: Histogram,
    batch_tokens: Histogram,
    batch_duration: Histogram,
    panics: Counter,
    cache_hits: Counter,
    cache_misses: Counter,
    cache_bytes: Gauge<i64, AtomicI64>,
    keyed: Family<OutcomeLabels, Counter>,
    replay_bytes: Gauge<i64, AtomicI64>,
    ready: Gauge,
    model: Family<ModelLabels, Gauge>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All series that do not depend on routes, at zero.
    pub fn new() -> Self {
        let seconds: fn() -> Histogram = || Histogram::new(SECONDS);
        let counted = Counted {
            registry: Registry::default(),
            requests: Family::default(),
            request_duration: Family::new_with_constructor(seconds),
            received: Counter::default(),
            items: Family::default(),
            waiting: Family::default(),
            wait_duration: Family::new_with_constructor(seconds),
            batch_items: Histogram::new(BATCH_ITEMS),
            batch_tokens: Histogram::new(BATCH_TOKENS),
            batch_duration: Histogram::new(SECONDS),
            panics: Counter::<u64, AtomicU64>::default(),
            cache_hits: Counter::default(),
            cache_misses: Counter::default(),
            cache_bytes: Gauge::default(),
            keyed: Family::default(),
            replay_bytes: Gauge::default(),
            ready: Gauge::default(),
            model: Family::default(),
        };
        for outcome in ["ok", "error"] {
            drop(counted.items.get_or_create(&OutcomeLabels { outcome }));
        }
        for keyed in Keyed::ALL {
            drop(counted.keyed.get_or_create(&keyed.labels()));
        }
        Self(Arc::new(counted.registered()))
    }

    /// Makes the series of a route and a status it documents, at zero.
    pub fn declare(&self, method: &str, route: &str, status: u16) {
        let (method, route) = (method.to_owned(), route.to_owned());
        let labels = RouteLabels { method: method.clone(), route: route.clone() };
        drop(self.0.request_duration.get_or_create(&labels));
        drop(self.0.requests.get_or_create(&RequestLabels { method, route, status }));
    }

    /// Makes the series of a lane, at zero.
    pub fn declare_lane(&self, lane: &'static str) {
        drop(self.0.waiting.get_or_create(&LaneLabels { lane }));
        drop(self.0.wait_duration.get_or_create(&LaneLabels { lane }));
    }

    /// A request was answered.
    pub fn request(&self, method: &str, route: &str, status: u16, duration: Duration) {
        let (method, route) = (method.to_owned(), route.to_owned());
        let labels = RouteLabels { method: method.clone(), route: route.clone() };
        self.0.request_duration.get_or_create(&labels).observe(duration.as_secs_f64());
        self.0.requests.get_or_create(&RequestLabels { method, route, status }).inc();
    }

    /// `n` items were received; each will be counted as `ok` or `error`, come what may.
    pub fn receive(&self, n: usize) -> Received {
        self.0.received.inc_by(n as u64);
        Received { metrics: self.clone(), n_open: n as u64 }
    }

    /// Items waiting in `lane`, as found when somebody asks.
    pub fn set_waiting(&self, lane: &'static str, n_items: usize) {
        self.0.waiting.get_or_create(&LaneLabels { lane }).set(n_items as i64);
    }

    /// Bytes the answer cache holds, as found when somebody asks.
    pub fn set_cache_bytes(&self, bytes: u64) {
        self.0.cache_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// Whether new items would be taken, as found when somebody asks.
    pub fn set_ready(&self, ready: bool) {
        self.0.ready.set(i64::from(ready));
    }

    /// An item left the line of `lane` for the model.
    pub fn waited(&self, lane: &'static str, duration: Duration) {
        self.0.wait_duration.get_or_create(&LaneLabels { lane }).observe(duration.as_secs_f64());
    }

    /// A forward pass ended.
    pub fn batch(&self, n_items: usize, n_tokens: usize, duration: Duration) {
        self.0.batch_items.observe(n_items as f64);
        self.0.batch_tokens.observe(n_tokens as f64);
        self.0.batch_duration.observe(duration.as_secs_f64());
    }

    /// The model panicked, and its thread went on.
    pub fn panicked(&self) {
        self.0.panics.inc();
    }

    /// Panics the model thread survived.
    pub fn n_panics(&self) -> u64 {
        self.0.panics.get()
    }

    /// Items were looked up in the answer cache.
    pub fn cache(&self, n_hits: usize, n_misses: usize) {
        self.0.cache_hits.inc_by(n_hits as u64);
        self.0.cache_misses.inc_by(n_misses as u64);
    }

    /// A request came with an `Idempotency-Key`.
    pub fn keyed(&self, what: Keyed) {
        self.0.keyed.get_or_create(&what.labels()).inc();
    }

    /// Bytes kept for requests sent again, as found when somebody asks.
    pub fn set_replay_bytes(&self, bytes: usize) {
        self.0.replay_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// The version that answers from now on.
    pub fn set_model(&self, name: &str, version: &str, digest: &str, policy_digest: &str) {
        self.0.model.clear();
        let labels = ModelLabels {
            name: name.into(),
            version: version.into(),
            digest: digest.into(),
            policy_digest: policy_digest.into(),
        };
        self.0.model.get_or_create(&labels).set(1);
    }

    /// All series in the OpenMetrics text format.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.0.registry)
            .expect("writing to a string cannot fail");
        text
    }
}

impl Counted {
    fn registered(mut self) -> Self {
        let mut registry = Registry::with_prefix("triage");
        let it = &self;
        registry.register("http_requests", "Requests answered", it.requests.clone());
        registry.register_with_unit(
            "http_request_duration",
            "Time from a request's head to its answer",
            Unit::Seconds,
            it.request_duration.clone(),
        );
        registry.register("items_received", "Items received", it.received.clone());
        registry.register(
            "items",
            "Items answered, by outcome; together they are the items received",
            it.items.clone(),
        );
        registry.register("items_waiting", "Items waiting for the model", it.waiting.clone());
        registry.register_with_unit(
            "item_wait_duration",
            "Time an item waited for the model",
            Unit::Seconds,
            it.wait_duration.clone(),
        );
        registry.register("batch_items", "Items in a forward pass", it.batch_items.clone());
        registry.register("batch_tokens", "Tokens in a forward pass", it.batch_tokens.clone());
        registry.register_with_unit(
            "batch_duration",
            "Time of a forward pass",
            Unit::Seconds,
            it.batch_duration.clone(),
        );
        registry.register("worker_panics", "Panics the model thread survived", it.panics.clone());
        registry.register("cache_hits", "Items answered from the cache", it.cache_hits.clone());
        registry.register("cache_misses", "Items the cache did not know", it.cache_misses.clone());
        registry.register_with_unit(
            "cache_size",
            "Memory the answer cache holds",
            Unit::Bytes,
            it.cache_bytes.clone(),
        );
        registry.register(
            "idempotent_requests",
            "Requests with an Idempotency-Key, by what became of them",
            it.keyed.clone(),
        );
        registry.register_with_unit(
            "replay_size",
            "Memory kept for requests sent again",
            Unit::Bytes,
            it.replay_bytes.clone(),
        );
        registry.register("ready", "1 when new items would be taken", it.ready.clone());
        registry.register("model_info", "The version that answers", it.model.clone());
        self.registry = registry;
        self
    }
}

/// Items received whose outcome is open. What is still open when this is dropped (a caller hung up, a
/// deadline passed, a request was refused) counts as an error, so that received is always ok plus error.
#[derive(Debug)]
pub struct Received {
    metrics: Metrics,
    n_open: u64,
}

impl Received {
    /// The request was answered with `n_ok` good items; the others were errors.
    pub fn answered(mut self, n_ok: usize) {
        let n_ok = (n_ok as u64).min(self.n_open);
        self.n_open -= n_ok;
        self.metrics.0.items.get_or_create(&OutcomeLabels { outcome: "ok" }).inc_by(n_ok);
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        let labels = OutcomeLabels { outcome: "error" };
        self.metrics.0.items.get_or_create(&labels).inc_by(self.n_open);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str, series: &str) -> Option<u64> {
        let rest = text.lines().find_map(|it| it.strip_prefix(series))?;
        rest.trim().parse().ok()
    }

    #[test]
    fn every_received_item_has_one_outcome() {
        let metrics = Metrics::new();
        metrics.receive(3).answered(2);
        drop(metrics.receive(4));
        metrics.receive(1).answered(9);
        let text = metrics.encode();
        assert_eq!(value(&text, "triage_items_received_total"), Some(8));
        assert_eq!(value(&text, "triage_items_total{outcome=\"ok\"}"), Some(3));
        assert_eq!(value(&text, "triage_items_total{outcome=\"error\"}"), Some(5));
    }

    #[test]
    fn one_model_is_named_at_a_time() {
        let metrics = Metrics::new();
        metrics.set_model("a", "1", "d", "p");
        metrics.set_model("b", "2", "d", "p");
        let text = metrics.encode();
        assert_eq!(text.lines().filter(|it| it.starts_with("triage_model_info{")).count(), 1);
        assert!(text.contains("name=\"b\""), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }
}
