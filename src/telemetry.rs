//! The log: on stderr, as text or JSON. Field names are grouped (`model.version`, `http.status`);
//! the text of an item is never a field. What is counted is in [`metrics`].

pub mod metrics;

use tracing_subscriber::EnvFilter;

use crate::config::{LogConfig, LogFormat, LogLevel};

/// Starts the log. A second call in one process does nothing.
pub fn init(config: LogConfig) {
    let level = match config.level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    };
    // Dependencies only warn: their debug lines may show bytes of a request.
    let filter = EnvFilter::new(format!("warn,opinion_triage={level},triage={level}"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match config.format {
        LogFormat::Text => {
            let is_terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
            builder.with_ansi(is_terminal).with_target(false).try_init()
        }
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    drop(started);
    std::panic::set_hook(Box::new(|panic| {
        // The place only: a panic's message may quote a text.
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(panic.place = place, "panic");
    }));
}
