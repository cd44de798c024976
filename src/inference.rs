//! Many callers, one model: a bounded waiting line, batches by token budget, one model thread.
//!
//! Knows nothing of HTTP, of texts or of labels. Items gather only while the model is busy, so
//! there is no timer to tune: an idle model takes one item at once, a busy one finds a batch.

mod batcher;
pub mod plan;
mod worker;

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;

use thiserror::Error;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};

use crate::domain::prediction::Prediction;
use crate::pipeline::{Pipeline, PipelineError, Prepared};
use batcher::{Batcher, Pending};
use plan::BatchLimits;

/// What the model thread runs: [`Pipeline`] when serving; tests put a gate before it.
pub trait Predictor: Send + Sync + 'static {
    /// One prediction per prepared text, in order.
    ///
    /// # Errors
    /// Whatever keeps the batch from being computed.
    fn predict(&self, batch: &[&Prepared]) -> Result<Vec<Prediction>, PipelineError>;
}

impl Predictor for Pipeline {
    fn predict(&self, batch: &[&Prepared]) -> Result<Vec<Prediction>, PipelineError> {
        Pipeline::predict(self, batch)
    }
}

/// How much is computed at once, and how much may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineLimits {
    /// Tokens in one forward pass; an item above it goes alone.
    pub max_batch_tokens: NonZeroUsize,
    /// Items in one forward pass.
    pub max_batch_items: NonZeroUsize,
    /// Items that may wait; above it callers hear [`InferError::Overloaded`] at once.
    pub max_waiting_items: NonZeroUsize,
}

impl Default for EngineLimits {
    fn default() -> Self {
        const fn at_least_one(value: usize) -> NonZeroUsize {
            NonZeroUsize::new(value).expect("a default limit is not zero")
        }
        Self {
            max_batch_tokens: at_least_one(2_048),
            max_batch_items: at_least_one(64),
            max_waiting_items: at_least_one(4_096),
        }
    }
}

/// Why there is no prediction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum InferError {
    /// The waiting line has no room for the items.
    #[error("the waiting line is full; try again in a moment")]
    Overloaded,
    /// The engine takes nothing any more.
    #[error("the service is stopping; send the request to another instance")]
    Stopped,
    /// The model failed on this item; the cause is in the log.
    #[error("the model failed on this item; the cause is in the service's log")]
    Model,
}

/// A handle on the model thread, for texts prepared by one model version. Cheap to clone; when the last
/// one is gone, the thread finishes what it took and ends.
#[derive(Clone)]
pub struct Engine {
    predictor: Arc<dyn Predictor>,
    // One sender behind a lock, not one a clone, so that `close` reaches every clone.
    line: Arc<Line>,
    limits: EngineLimits,
}

type Line = Mutex<Option<mpsc::Sender<Pending>>>;

/// The running model thread.
pub struct EngineThread {
    thread: JoinHandle<()>,
    // Weak: the thread's own keeper must not keep it running.
    line: Weak<Line>,
}

impl EngineThread {
    /// Blocks until the thread has ended: after [`Engine::close`] or when every handle is dropped.
    pub fn join(self) {
        // The loop catches panics of the model, so a panic here is a bug that was already printed.
        let _ = self.thread.join();
    }

    /// As [`Engine::close`] and then [`EngineThread::join`], for a caller that holds no handle: a handle
    /// would keep its model version in memory after a swap.
    pub fn stop(self) {
        if let Some(line) = self.line.upgrade() {
            line.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
        self.join();
    }
}

impl Engine {
    /// A handle on a model thread that was just started, and the thread.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn start(
        predictor: Arc<dyn Predictor>,
        limits: EngineLimits,
    ) -> std::io::Result<(Self, EngineThread)> {
        let (sender, inbox) = mpsc::channel(limits.max_waiting_items.get());
        let batch =
            BatchLimits { max_tokens: limits.max_batch_tokens, max_items: limits.max_batch_items };
        let mut batcher = Batcher::new(inbox, batch);
        let thread = std::thread::Builder::new()
            .name("model".to_owned())
            .spawn(move || worker::run(&mut batcher))?;
        let line = Arc::new(Mutex::new(Some(sender)));
        let keeper = EngineThread { thread, line: Arc::downgrade(&line) };
        Ok((Self { predictor, line, limits }, keeper))
    }

    /// A handle on the same thread and line for another version. What was submitted to the old handle is
    /// still computed by the old version: token ids of one vocabulary mean nothing to another.
    pub fn with_predictor(&self, predictor: Arc<dyn Predictor>) -> Self {
        Self { predictor, line: Arc::clone(&self.line), limits: self.limits }
    }

    /// The prediction for one item.
    ///
    /// # Errors
    /// [`InferError`].
    pub async fn predict(&self, prepared: Prepared) -> Result<Prediction, InferError> {
        let mut answers = self.submit(vec![prepared])?;
        let answer = answers.pop().ok_or(InferError::Stopped)?;
        answer.await.unwrap_or(Err(InferError::Stopped))
    }

    /// One result per item, in order. The items are taken all or none, and an item the model fails
    /// on fails alone.
    ///
    /// # Errors
    /// [`InferError::Overloaded`] or [`InferError::Stopped`] when the items were not taken.
    pub async fn predict_many(
        &self,
        prepared: Vec<Prepared>,
    ) -> Result<Vec<Result<Prediction, InferError>>, InferError> {
        let answers = self.submit(prepared)?;
        let mut results = Vec::with_capacity(answers.len());
        for answer in answers {
            results.push(answer.await.unwrap_or(Err(InferError::Stopped)));
        }
        Ok(results)
    }

    /// Takes no more items; what was taken is still computed, then the thread ends.
    pub fn close(&self) {
        self.sender().take();
    }

    /// Items in the waiting line, those in the model not counted.
    pub fn n_waiting(&self) -> usize {
        self.sender().as_ref().map_or(0, |it| it.max_capacity() - it.capacity())
    }

    /// The limits the engine was started with.
    pub fn limits(&self) -> EngineLimits {
        self.limits
    }

    fn submit(
        &self,
        prepared: Vec<Prepared>,
    ) -> Result<Vec<oneshot::Receiver<Result<Prediction, InferError>>>, InferError> {
        let sender = self.sender();
        let line = sender.as_ref().ok_or(InferError::Stopped)?;
        let places = line.try_reserve_many(prepared.len()).map_err(|error| match error {
            TrySendError::Full(()) => InferError::Overloaded,
            TrySendError::Closed(()) => InferError::Stopped,
        })?;
        let answers = places.zip(prepared).map(|(place, prepared)| {
            let (reply, answer) = oneshot::channel();
            let predictor = Arc::clone(&self.predictor);
            place.send(Pending { prepared, predictor, reply });
            answer
        });
        Ok(answers.collect())
    }

    fn sender(&self) -> MutexGuard<'_, Option<mpsc::Sender<Pending>>> {
        // Nothing panics while holding the lock, and a sender cannot be half changed.
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
