//! `triage serve`: the HTTP service on the shipped or a named model.

use std::io::Write;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use tokio::net::TcpListener;

use super::load_pipeline;
use super::watch::Watch;
use crate::config::{Config, ServeSettings};
use crate::http::connection::{self, Connections, Tls};
use crate::http::{Limits, Service, Settings};
use crate::inference::{Engine, EngineLimits, EngineThread};
use crate::keys::KeysFile;
use crate::pipeline::Pipeline;
use crate::replay::ReplayLimits;
use crate::telemetry::metrics::Metrics;

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
    let metrics = Metrics::new();
    let keys = serve.keys.as_deref().map(KeysFile::load).transpose()?.map(Arc::new);
    let limits = Limits {
        max_body_bytes: serve.max_body_bytes,
        max_items: serve.max_items,
        max_waiting_items: serve.max_waiting_items,
        body_timeout: BODY_TIMEOUT,
        max_deadline: MAX_DEADLINE,
    };
    let settings = Settings {
        limits,
        cache_bytes: serve.cache_mib << 20,
        replays: (serve.replay_mib > 0).then(|| ReplayLimits {
            max_bytes: serve.replay_mib << 20,
            max_age: Duration::from_secs(serve.replay_seconds),
        }),
        cors_origins: serve.cors_origins.iter().map(|it| it.parse()).collect::<Result<_, _>>()?,
        keys: keys.clone(),
        metrics: metrics.clone(),
    };
    let connections = Connections {
        head_timeout: Duration::from_secs(serve.head_seconds),
        write_timeout: Duration::from_secs(serve.write_seconds),
        max_connections: serve.max_connections,
        drain_timeout: Duration::from_secs(serve.drain_seconds),
        tls: serve.tls.as_ref().map(|(cert, key)| tls(cert, key)).transpose()?,
    };
    let service = Service::loading(settings);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let signal = stop_signal()?;
    let stop_reason = async move {
        tokio::select! {
            () = signal => {}
            _ = stopped => {}
        }
    };
    let address = listener.local_addr()?;
    // Health is answered while the model is loaded.
    let server =
        tokio::spawn(connection::serve(listener, Arc::clone(&service), connections, stop_reason));
    if let Some(keys) = keys {
        tokio::spawn(watch(keys));
    }
    let loaded = load(config, metrics).await;
    let (pipeline, engine, thread) = match loaded {
        Ok(it) => it,
        Err(error) => {
            drop(stop);
            return Err(error);
        }
    };
    let identity = pipeline.identity().clone();
    // No handle on pipeline or engine stays here: the first version must be gone after a swap.
    service.open(pipeline, engine);
    // Said when it is true: whoever waits for this line is answered.
    tracing::info!(
        model.name = identity.name,
        model.version = identity.version,
        model.digest = identity.digest,
        http.address = %address,
        start.duration_ms = started.elapsed().as_millis() as u64,
        "ready"
    );
    let limits = engine_limits(config);
    let _watch = Watch::start(config, Arc::clone(&service), limits, &identity.digest)?;
    server.await??;
    drop(stop);
    service.close();
    tokio::task::spawn_blocking(move || thread.join()).await?;
    tracing::info!("stopped");
    Ok(())
}

/// The model in `config`, and its running thread.
async fn load(
    config: &Config,
    metrics: Metrics,
) -> anyhow::Result<(Arc<Pipeline>, Engine, EngineThread)> {
    let own = config.clone();
    let pipeline = tokio::task::spawn_blocking(move || load_pipeline(&own).map(Arc::new)).await??;
    let (engine, thread) = Engine::start(pipeline.clone(), engine_limits(config), metrics)?;
    Ok((pipeline, engine, thread))
}

fn engine_limits(config: &Config) -> EngineLimits {
    let at_least_one = |it| NonZeroUsize::new(it).unwrap_or(NonZeroUsize::MIN);
    EngineLimits {
        max_batch_tokens: at_least_one(config.serve.max_batch_tokens),
        max_waiting_items: at_least_one(config.serve.max_waiting_items),
        ..EngineLimits::default()
    }
}

/// The certificate chain and private key in these files.
fn tls(cert: &Path, key: &Path) -> anyhow::Result<Tls> {
    let read = |path: &Path| {
        std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
    };
    Ok(Tls::from_pem(&read(cert)?, &read(key)?)?)
}

/// Reads the keys again whenever their file changes. A bad change is logged once and the old keys stay.
async fn watch(keys: Arc<KeysFile>) {
    const PERIOD: Duration = Duration::from_secs(1);
    loop {
        tokio::time::sleep(PERIOD).await;
        let keys = Arc::clone(&keys);
        match tokio::task::spawn_blocking(move || keys.refresh()).await {
            Ok(Ok(None)) => {}
            Ok(Ok(Some(n_keys))) => tracing::info!(keys.count = n_keys, "keys read again"),
            Ok(Err(error)) => {
                tracing::error!(error = %error, "keys not read again; the old ones stay");
            }
            Err(_) => return, // The runtime is stopping.
        }
    }
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
