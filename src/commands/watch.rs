//! The running service follows the registry: a promoted version is loaded beside the old one and takes over
//! between two requests.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::Context;

use super::load_version;
use crate::config::Config;
use crate::http::Service;
use crate::inference::EngineLimits;
use crate::pipeline::Pipeline;
use crate::registry::{Entry, Registry};

/// How often the registry's file is looked at.
const INTERVAL: Duration = Duration::from_secs(1);

/// A thread that looks at the registry until this is dropped.
pub(super) struct Watch {
    _stop: Sender<()>,
}

impl Watch {
    /// Follows the registry of `config` from a service that runs the bundle with `digest`. None when the
    /// operator named a model: then nothing but that model is served.
    pub(super) fn start(
        config: &Config,
        service: Arc<Service>,
        limits: EngineLimits,
        digest: &str,
    ) -> std::io::Result<Option<Self>> {
        if config.is_model_named {
            return Ok(None);
        }
        let mut follower = Follower {
            registry: Registry::new(&config.models),
            shipped: config.shipped_model(),
            config: config.clone(),
            service,
            limits,
            served: digest.to_owned(),
            refused: None,
        };
        let (stop, stopped) = channel();
        std::thread::Builder::new().name("registry".to_owned()).spawn(move || {
            while stopped.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                follower.look();
            }
        })?;
        Ok(Some(Self { _stop: stop }))
    }
}

struct Follower {
    registry: Registry,
    shipped: PathBuf,
    config: Config,
    service: Arc<Service>,
    limits: EngineLimits,
    /// Digest of the bundle in use.
    served: String,
    /// What could not be used, so that it is tried and logged once, not every second.
    refused: Option<(u64, Option<Entry>)>,
}

impl Follower {
    /// Swaps when production changed; whatever goes wrong leaves the version in use where it is.
    fn look(&mut self) {
        let (generation, wanted) = match self.registry.aliases() {
            Ok(aliases) => (aliases.generation, aliases.production),
            Err(error) => {
                if self.refused.replace((u64::MAX, None)) != Some((u64::MAX, None)) {
                    tracing::error!(error = %error, model.digest = self.served, "registry unreadable; the version in use stays");
                }
                return;
            }
        };
        // Before any change nothing but a named production is followed: the model was given at the start.
        let is_served = match &wanted {
            Some(entry) => entry.digest == self.served,
            None => generation == 0,
        };
        if is_served || self.refused == Some((generation, wanted.clone())) {
            self.refused = self.refused.take().filter(|_| !is_served);
            return;
        }
        let started = Instant::now();
        match self.load(wanted.as_ref()) {
            Ok(pipeline) if pipeline.identity().digest == self.served => {
                self.refused = Some((generation, wanted)); // The shipped model is in use already.
            }
            Ok(pipeline) => {
                let identity = pipeline.identity().clone();
                if let Err(error) = self.service.swap(Arc::new(pipeline), self.limits) {
                    tracing::error!(error = %error, "no thread for the promoted version; trying again");
                    return;
                }
                self.served.clone_from(&identity.digest);
                self.refused = None;
                tracing::info!(
                    model.name = identity.name,
                    model.version = identity.version,
                    model.digest = identity.digest,
                    swap.duration_ms = started.elapsed().as_millis() as u64,
                    "model swapped"
                );
            }
            Err(error) => {
                tracing::error!(
                    error = format!("{error:#}"),
                    model.digest = self.served,
                    "promoted version refused; the version in use stays"
                );
                self.refused = Some((generation, wanted));
            }
        }
    }

    fn load(&self, wanted: Option<&Entry>) -> anyhow::Result<Pipeline> {
        let dir = wanted.map_or_else(|| self.shipped.clone(), |it| self.registry.path(it));
        let pipeline =
            load_version(&dir, &self.config).with_context(|| dir.display().to_string())?;
        if let Some(entry) = wanted {
            anyhow::ensure!(
                pipeline.identity().digest == entry.digest,
                "changed_bundle: {} is not the bundle that was promoted; copy that one back",
                dir.display()
            );
        }
        Ok(pipeline)
    }
}
