//! Spans for an OpenTelemetry collector, when one is named: each request's route, status, counts and time, as a child
//! of the caller's span. Never a text.
//!
//! Spans wait in a bounded queue of their own thread; when the collector is slow or gone they are dropped, and
//! serving does not notice. Built only with the feature `otlp`.

use thiserror::Error;

/// The caller's place in a trace, as W3C `traceparent` tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent<'a> {
    /// 32 hexadecimal digits.
    pub trace_id: &'a str,
    /// 16 hexadecimal digits: the caller's span.
    pub parent_id: &'a str,
    /// Whether the caller's span is kept.
    pub is_sampled: bool,
}

/// Why spans cannot be sent.
#[derive(Debug, Error)]
pub enum ExportError {
    /// The endpoint is no address, or the exporter does not take it.
    #[error(
        "`serve.otlp_endpoint`: {0}; write the collector's address, such as http://127.0.0.1:4318"
    )]
    Endpoint(String),
    /// No thread for it.
    #[error("no thread to send spans with: {0}")]
    Thread(#[from] std::io::Error),
}

#[cfg(feature = "otlp")]
mod sending {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use opentelemetry::trace::{
        SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState, TracerProvider,
    };
    use opentelemetry::{Context, KeyValue};
    use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response, hyper::HyperClient};
    use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig};
    use opentelemetry_sdk::Resource;
    use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
    use tokio::runtime::{Builder, Handle, Runtime};
    use tracing::{Span, Subscriber};
    use tracing_opentelemetry::OpenTelemetrySpanExt;
    use tracing_subscriber::Layer;
    use tracing_subscriber::filter::filter_fn;
    use tracing_subscriber::registry::LookupSpan;

    use super::{ExportError, TraceParent};

    /// Longest time one delivery may take.
    const TIMEOUT: Duration = Duration::from_secs(5);
    /// Longest time the last spans have to reach the collector when the program ends.
    const SHUTDOWN: Duration = Duration::from_secs(2);
    /// The only span sent; see `http::observe`.
    const SENT: &str = "request";

    static IS_ON: AtomicBool = AtomicBool::new(false);

    /// What sends spans, until it is dropped.
    pub struct Exporter {
        provider: SdkTracerProvider,
        runtime: Option<Runtime>,
    }

    impl Drop for Exporter {
        fn drop(&mut self) {
            // What cannot be sent now is lost; the program ends all the same.
            let _ = self.provider.shutdown_with_timeout(SHUTDOWN);
            if let Some(runtime) = self.runtime.take() {
                runtime.shutdown_background();
            }
        }
    }

    /// A client whose connections live on a runtime of their own, whoever asks.
    #[derive(Debug)]
    struct OwnRuntime {
        client: HyperClient,
        handle: Handle,
        is_failing: std::sync::Arc<AtomicBool>,
    }

    #[async_trait::async_trait]
    impl HttpClient for OwnRuntime {
        async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
            let client = self.client.clone();
            let sent = self.handle.spawn(async move { client.send_bytes(request).await }).await?;
            let is_failing = !sent.as_ref().is_ok_and(|it| it.status().is_success());
            // Said once, not with every delivery.
            if self.is_failing.swap(is_failing, Ordering::Relaxed) != is_failing {
                if is_failing {
                    tracing::warn!(
                        "spans do not reach the OpenTelemetry collector and are dropped"
                    );
                } else {
                    tracing::info!("spans reach the OpenTelemetry collector again");
                }
            }
            sent
        }
    }

    /// A layer that sends spans to the collector at `endpoint`, and what keeps it going.
    pub(in crate::telemetry) fn start<S>(
        endpoint: &str,
    ) -> Result<(impl Layer<S> + Send + Sync + use<S>, Exporter), ExportError>
    where
        S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("otlp")
            .enable_all()
            .build()?;
        let client = OwnRuntime {
            client: HyperClient::with_default_connector(TIMEOUT, None),
            handle: runtime.handle().clone(),
            is_failing: Default::default(),
        };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
            .with_timeout(TIMEOUT)
            .build()
            .map_err(|it| ExportError::Endpoint(it.to_string()))?;
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let resource =
            Resource::builder().with_service_name("opinion-triage").with_attribute(version).build();
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            // What the caller does not keep is not kept here either.
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::AlwaysOn)))
            .with_resource(resource)
            .build();
        let layer = tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("opinion-triage"))
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_filter(filter_fn(|it| it.is_span() && it.name() == SENT));
        IS_ON.store(true, Ordering::Relaxed);
        Ok((layer, Exporter { provider, runtime: Some(runtime) }))
    }

    /// Names `span` and makes it a child of the caller's.
    pub fn adopt(span: &Span, name: &str, parent: Option<TraceParent<'_>>) {
        if !IS_ON.load(Ordering::Relaxed) {
            return;
        }
        span.record("otel.name", name);
        span.record("otel.kind", "server");
        let Some(parent) = parent else { return };
        let (Ok(trace_id), Ok(span_id)) =
            (TraceId::from_hex(parent.trace_id), SpanId::from_hex(parent.parent_id))
        else {
            return;
        };
        let flags = TraceFlags::default().with_sampled(parent.is_sampled);
        let context = SpanContext::new(trace_id, span_id, flags, true, TraceState::default());
        // It fails only where the span is not sent anyway.
        let _ = span.set_parent(Context::new().with_remote_span_context(context));
    }
}

#[cfg(not(feature = "otlp"))]
mod sending {
    use super::TraceParent;

    /// Without the feature nothing sends spans, and the settings refuse an endpoint.
    pub enum Exporter {}

    /// Without the feature spans have no parents.
    pub fn adopt(_span: &tracing::Span, _name: &str, _parent: Option<TraceParent<'_>>) {}
}

#[cfg(feature = "otlp")]
pub(super) use sending::start;
pub use sending::{Exporter, adopt};
