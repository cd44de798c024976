//! Many callers, one model: a bounded waiting line, batches by token budget, one model thread.
//!
//! Knows nothing of HTTP, of texts or of labels. Items gather only while the model is busy, so
//! there is no timer to tune: an idle model takes one item at once, a busy one finds a batch.

mod line;
pub mod plan;
mod worker;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use thiserror::Error;

use crate::domain::prediction::Prediction;
use crate::pipeline::{Pipeline, PipelineError, Prepared};
use crate::telemetry::metrics::Metrics;
use line::{Answer, Line};
use plan::{BatchLimits, Lane};

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
    /// Items that may wait in each lane; above it callers hear [`InferError::Overloaded`] at once.
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
    /// The deadline passed before the model came to this item.
    #[error("the deadline passed before the model came to this item")]
    TooLate,
    /// The model failed on this item; the cause is in the log.
    #[error("the model failed on this item; the cause is in the service's log")]
    Model,
}

/// A handle on the model thread. Cheap to clone; when the last one is gone, the thread finishes what
/// it took and ends.
#[derive(Clone)]
pub struct Engine {
    line: Arc<Callers>,
    limits: EngineLimits,
}

/// The callers' end of the line: when the last handle is gone, so is the line.
struct Callers(Arc<Line>);

impl Drop for Callers {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// The model's end of the line.
struct ModelEnd(Arc<Line>);

impl Drop for ModelEnd {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

/// The running model thread.
pub struct EngineThread(JoinHandle<()>);

impl EngineThread {
    /// Blocks until the thread has ended: after [`Engine::close`] or when every handle is dropped.
    pub fn join(self) {
        // The loop catches panics of the model, so a panic here is a bug that was already printed.
        let _ = self.0.join();
    }
}

impl Engine {
    /// A handle on a model thread that was just started, and the thread. What it does is counted in `metrics`.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn start(
        predictor: Arc<dyn Predictor>,
        limits: EngineLimits,
        metrics: Metrics,
    ) -> std::io::Result<(Self, EngineThread)> {
        let batch =
            BatchLimits { max_tokens: limits.max_batch_tokens, max_items: limits.max_batch_items };
        let line = Arc::new(Line::new(batch, limits.max_waiting_items.get()));
        for lane in Lane::ALL {
            metrics.declare_lane(lane.code());
        }
        let thread = std::thread::Builder::new().name("model".to_owned()).spawn({
            let line = Arc::clone(&line);
            move || {
                // Whoever waits when the thread ends, however it ends, hears so.
                let line = ModelEnd(line);
                worker::run(&*predictor, &line.0, &metrics);
            }
        })?;
        Ok((Self { line: Arc::new(Callers(line)), limits }, EngineThread(thread)))
    }

    /// The prediction for one item.
    ///
    /// # Errors
    /// [`InferError`].
    pub async fn predict(&self, prepared: Prepared) -> Result<Prediction, InferError> {
        let mut answers = self.line.0.push(Lane::Interactive, vec![prepared], None)?;
        let answer = answers.pop().ok_or(InferError::Stopped)?;
        answer.await.unwrap_or(Err(InferError::Stopped))
    }

    /// One result per item, in order. The items are taken all or none, and an item the model fails
    /// on fails alone. Nothing is computed after `deadline`: it is looked at when the items are queued, when they are
    /// taken out of the line, and before each computation.
    ///
    /// # Errors
    /// [`InferError::Overloaded`], [`InferError::TooLate`] or [`InferError::Stopped`] when the items were not taken.
    pub async fn predict_many(
        &self,
        lane: Lane,
        prepared: Vec<Prepared>,
        deadline: Option<Instant>,
    ) -> Result<Vec<Result<Prediction, InferError>>, InferError> {
        let answers: Vec<Answer> = self.line.0.push(lane, prepared, deadline)?;
        let mut results = Vec::with_capacity(answers.len());
        for answer in answers {
            results.push(answer.await.unwrap_or(Err(InferError::Stopped)));
        }
        Ok(results)
    }

    /// Takes no more items; what was taken is still computed, then the thread ends.
    pub fn close(&self) {
        self.line.0.close();
    }

    /// Items waiting in `lane`, those in the model not counted.
    pub fn n_waiting(&self, lane: Lane) -> usize {
        self.line.0.n_waiting(lane)
    }

    /// Whether nothing will be taken any more: after [`Engine::close`], or when the thread has ended.
    pub fn is_stopped(&self) -> bool {
        self.line.0.is_closed()
    }

    /// The limits the engine was started with.
    pub fn limits(&self) -> EngineLimits {
        self.limits
    }
}
