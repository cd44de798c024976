//! The log: on stderr, as text or JSON. Field names are grouped (`model.version`, `http.status`);
//! the text of an item is never a field. What is counted is in [`metrics`], what is sent to a collector of traces in
//! [`export`].

pub mod export;
pub mod metrics;

use export::{ExportError, Exporter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

use crate::config::{LogConfig, LogFormat, LogLevel};

/// Starts the log and, when an OpenTelemetry collector is named, sends it spans until the exporter is dropped. A
/// second call in one process does nothing.
///
/// # Errors
/// [`ExportError`] when spans cannot be sent to `otlp_endpoint`.
pub fn init(
    config: LogConfig,
    otlp_endpoint: Option<&str>,
) -> Result<Option<Exporter>, ExportError> {
    let level = match config.level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    };
    // Dependencies only warn: their debug lines may show bytes of a request.
    let filter = EnvFilter::new(format!("warn,opinion_triage={level},triage={level}"));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match config.format {
        LogFormat::Text => {
            let is_terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
            lines.with_ansi(is_terminal).with_target(false).with_filter(filter).boxed()
        }
        LogFormat::Json => lines.json().flatten_event(true).with_filter(filter).boxed(),
    };
    let registry = tracing_subscriber::registry().with(lines);
    let exporter = match otlp_endpoint {
        #[cfg(feature = "otlp")]
        Some(endpoint) => {
            let (spans, exporter) = export::start(endpoint)?;
            drop(registry.with(spans).try_init());
            Some(exporter)
        }
        _ => {
            drop(registry.try_init());
            None
        }
    };
    std::panic::set_hook(Box::new(|panic| {
        // The place only: a panic's message may quote a text.
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(panic.place = place, "panic");
    }));
    Ok(exporter)
}
