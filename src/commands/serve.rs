//! `triage serve`: the HTTP service on the shipped or a named model.

use std::io::Write;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use tokio::net::TcpListener;

use super::watch::Watch;
use crate::config::{Config, ServeSettings};
use crate::http::{self, Limits, Live, Service};
use crate::inference::{Engine, EngineLimits};
use crate::pipeline::Pipeline;

/// Longest time for a request's body to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Deadline of a request that names none.
const MAX_DEADLINE: Duration = Duration::from_secs(60);

/// Arguments of `triage serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    pub(crate) settings: ServeSettings,
    /// 只打印生效的设置（TOML），不启动
    #[arg(long)]
    print_config: bool,
}

impl ServeArgs {
    /// The settings, for [`Config::load`].
    pub fn settings(&self) -> &ServeSettings {
        &self.settings
    }
}

/// Runs the command: until SIGTERM or ctrl-C, then finishes what was taken.
///
/// # Errors
/// When the model cannot be loaded or the address not be listened on.
pub fn run(args: &ServeArgs, config: &Config) -> anyhow::Result<()> {
    if args.print_config {
        let mut out = std::io::stdout().lock();
        if !config.is_model_named {
            // A comment, so that a copy of this file does not pin what is in production today.
            writeln!(out, "# model = {:?}", config.model)?;
        }
        out.write_all(config.to_toml().as_bytes())?;
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.threads.get())
        // Text work; more threads than cores would only queue inside the system.
        .max_blocking_threads(config.threads.get())
        .enable_all()
        .build()?;
    runtime.block_on(serve(config))
}

async fn serve(config: &Config) -> anyhow::Result<()> {
    let started = Instant::now();
    let serve = &config.serve;
    // The address first: a port in use is known before the model is loaded.
    let listener = TcpListener::bind(serve.address)
        .await
        .with_context(|| format!("cannot listen on {}", serve.address))?;
    let pipeline = Arc::new(Pipeline::load(&config.model, config.user_dict.as_deref())?);
    let at_least_one = |it| NonZeroUsize::new(it).unwrap_or(NonZeroUsize::MIN);
    let limits = EngineLimits {
        max_batch_tokens: at_least_one(serve.max_batch_tokens),
        max_waiting_items: at_least_one(serve.max_waiting_items),
        ..EngineLimits::default()
    };
    let (engine, thread) = Engine::start(pipeline.clone(), limits)?;
    let limits = Limits {
        max_body_bytes: serve.max_body_bytes,
        max_items: serve.max_items,
        max_waiting_items: serve.max_waiting_items,
        body_timeout: BODY_TIMEOUT,
        max_deadline: MAX_DEADLINE,
    };
    let identity = pipeline.identity();
    tracing::info!(
        model.name = identity.name,
        model.version = identity.version,
        model.digest = identity.digest,
        http.address = %listener.local_addr()?,
        start.duration_ms = started.elapsed().as_millis() as u64,
        "ready"
    );
    let digest = identity.digest.clone();
    // No handle on pipeline or engine stays here: the first version must be gone after a swap.
    let live = Live::from(Service::new(pipeline, engine, limits));
    let _watch = Watch::start(config, live.clone(), &digest)?;
    let drain_timeout = Duration::from_secs(serve.drain_seconds);
    http::serve(listener, live, stop_signal()?, drain_timeout).await?;
    tokio::task::spawn_blocking(move || thread.stop()).await?;
    tracing::info!("stopped");
    Ok(())
}

/// Resolves on ctrl-C, and on SIGTERM where there is one.
fn stop_signal() -> std::io::Result<impl Future<Output = ()> + Send + 'static> {
    #[cfg(unix)]
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    Ok(async move {
        #[cfg(unix)]
        let other = terminate.recv();
        #[cfg(not(unix))]
        let other = std::future::pending::<()>();
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = other => {}
        }
        tracing::info!("stopping: finishing what was taken");
    })
}
