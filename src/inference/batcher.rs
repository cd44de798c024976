//! The waiting line, as the model thread sees it.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::plan::{BatchLimits, next_batch_len};
use super::{InferError, Predictor};
use crate::domain::prediction::Prediction;
use crate::pipeline::Prepared;

/// One item, the version that prepared it, and where its answer goes.
pub(super) struct Pending {
    pub(super) prepared: Prepared,
    pub(super) predictor: Arc<dyn Predictor>,
    pub(super) reply: oneshot::Sender<Result<Prediction, InferError>>,
}

pub(super) struct Batcher {
    inbox: mpsc::Receiver<Pending>,
    waiting: VecDeque<Pending>,
    limits: BatchLimits,
}

impl Batcher {
    pub(super) fn new(inbox: mpsc::Receiver<Pending>, limits: BatchLimits) -> Self {
        Self { inbox, waiting: VecDeque::new(), limits }
    }

    /// The next batch, never empty, all of one version. Blocks while nobody waits; `None` when every caller is gone and
    /// everything taken was handed out.
    pub(super) fn next_batch(&mut self) -> Option<Vec<Pending>> {
        loop {
            if self.waiting.is_empty() {
                self.waiting.push_back(self.inbox.blocking_recv()?);
            }
            // Take one batch at most, so that a full inbox is what callers feel.
            while self.waiting.len() < self.limits.max_items.get() {
                let Ok(pending) = self.inbox.try_recv() else { break };
                self.waiting.push_back(pending);
            }
            self.waiting.retain(|it| !it.reply.is_closed()); // That caller hung up.
            let Some(first) = self.waiting.front() else { continue };
            // A batch ends where the version changes.
            let same =
                self.waiting.iter().take_while(|it| Arc::ptr_eq(&it.predictor, &first.predictor));
            let n_tokens = same.map(|it| it.prepared.n_tokens());
            let len = next_batch_len(n_tokens, &self.limits);
            if len > 0 {
                return Some(self.waiting.drain(..len).collect());
            }
        }
    }
}
