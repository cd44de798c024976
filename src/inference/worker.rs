//! The loop of the model thread: it owns all computation and outlives a failing batch.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::batcher::{Batcher, Pending};
use super::{InferError, Predictor};
use crate::domain::prediction::Prediction;
use crate::pipeline::Prepared;

/// Computes batches until the waiting line ends.
pub(super) fn run(batcher: &mut Batcher) {
    while let Some(batch) = batcher.next_batch() {
        compute(batch);
    }
}

/// `batch` is of one version: the first item's.
fn compute(batch: Vec<Pending>) {
    let Some(predictor) = batch.first().map(|it| Arc::clone(&it.predictor)) else { return };
    let predictor = &*predictor;
    let rows: Vec<&Prepared> = batch.iter().map(|it| &it.prepared).collect();
    let results = match predict(predictor, &rows) {
        Ok(predictions) => predictions.into_iter().map(Ok).collect(),
        Err(error) if rows.len() == 1 => vec![Err(error)],
        // One bad row must not take its neighbours along: compute each alone.
        Err(_) => rows.iter().map(|row| predict_one(predictor, row)).collect::<Vec<_>>(),
    };
    drop(rows);
    for (pending, result) in batch.into_iter().zip(results) {
        // A caller that hung up meanwhile wants no answer.
        let _ = pending.reply.send(result);
    }
}

fn predict_one(predictor: &dyn Predictor, row: &Prepared) -> Result<Prediction, InferError> {
    predict(predictor, &[row])?.pop().ok_or(InferError::Model)
}

/// One prediction per row. The cause of a failure is logged here, once; callers get only the fact.
fn predict(predictor: &dyn Predictor, rows: &[&Prepared]) -> Result<Vec<Prediction>, InferError> {
    // The predictor is only read, so a panic leaves nothing half changed.
    match catch_unwind(AssertUnwindSafe(|| predictor.predict(rows))) {
        Ok(Ok(predictions)) if predictions.len() == rows.len() => return Ok(predictions),
        Ok(Ok(predictions)) => {
            tracing::error!(
                batch.items = rows.len(),
                batch.predictions = predictions.len(),
                "batch failed: wrong number of predictions"
            );
        }
        Ok(Err(error)) => {
            tracing::error!(batch.items = rows.len(), error = %error, "batch failed");
        }
        // The payload is not logged: it may hold anything.
        Err(_) => tracing::error!(batch.items = rows.len(), "batch failed: the model panicked"),
    }
    Err(InferError::Model)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;
    use std::sync::{Condvar, Mutex};

    use super::super::{Engine, EngineLimits};
    use super::*;
    use crate::domain::case::CaseText;
    use crate::pipeline::{Pipeline, PipelineError};

    const BAD_CHARS: usize = 3;

    /// A pipeline that waits for a gate, notes the size of every batch, and panics on texts of
    /// [`BAD_CHARS`] characters.
    struct Gated {
        pipeline: Pipeline,
        open: Mutex<bool>,
        opened: Condvar,
        batches: Mutex<Vec<usize>>,
    }

    impl Gated {
        fn new(open: bool) -> Arc<Self> {
            Arc::new(Self {
                pipeline: Pipeline::for_tests(),
                open: Mutex::new(open),
                opened: Condvar::new(),
                batches: Mutex::new(Vec::new()),
            })
        }

        fn open(&self) {
            *self.open.lock().unwrap() = true;
            self.opened.notify_all();
        }

        fn prepare(&self, text: &str) -> Prepared {
            self.pipeline.prepare(&CaseText::parse(text).unwrap()).unwrap()
        }

        fn batches(&self) -> Vec<usize> {
            self.batches.lock().unwrap().clone()
        }
    }

    impl Predictor for Gated {
        fn predict(&self, batch: &[&Prepared]) -> Result<Vec<Prediction>, PipelineError> {
            self.batches.lock().unwrap().push(batch.len());
            let open = self.open.lock().unwrap();
            drop(self.opened.wait_while(open, |open| !*open).unwrap());
            assert!(batch.iter().all(|it| it.report.characters != BAD_CHARS), "a bad row");
            self.pipeline.predict(batch)
        }
    }

    fn limits(max_waiting_items: usize) -> EngineLimits {
        EngineLimits {
            max_waiting_items: NonZeroUsize::new(max_waiting_items).unwrap(),
            ..EngineLimits::default()
        }
    }

    async fn until(condition: impl Fn() -> bool) {
        while !condition() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_bad_row_fails_alone_and_the_thread_survives() {
        let model = Gated::new(true);
        let (engine, thread) = Engine::start(model.clone(), limits(8)).unwrap();
        let rows = ["小区停水三天", "坏坏坏", "路灯不亮了"].map(|it| model.prepare(it));
        let results = engine.predict_many(rows.to_vec()).await.unwrap();
        let failed: Vec<_> = results.iter().map(|it| it.as_ref().err().copied()).collect();
        assert_eq!(failed, [None, Some(InferError::Model), None]);
        assert_eq!(engine.predict(model.prepare("小区停水三天")).await, results[0]);
        engine.close();
        thread.join();
    }

    #[tokio::test]
    async fn a_batch_holds_items_of_one_version_only() {
        let (old, new) = (Gated::new(false), Gated::new(true));
        let (engine, thread) = Engine::start(old.clone(), limits(8)).unwrap();
        let row = old.prepare("小区停水");
        let spawn = |engine: &Engine, n_rows: usize| {
            let (engine, rows) = (engine.clone(), vec![row.clone(); n_rows]);
            tokio::spawn(async move { engine.predict_many(rows).await })
        };
        let busy = spawn(&engine, 1);
        until(|| old.batches().len() == 1).await;
        let mut asked = Vec::new();
        for (version, n_rows, n_waiting) in
            [(&engine, 2, 2), (&engine.with_predictor(new.clone()), 3, 5), (&engine, 1, 6)]
        {
            asked.push(spawn(version, n_rows));
            until(|| engine.n_waiting() == n_waiting).await;
        }
        old.open();
        for answer in asked.into_iter().chain([busy]) {
            assert!(answer.await.unwrap().unwrap().iter().all(Result::is_ok));
        }
        assert_eq!((old.batches(), new.batches()), (vec![1, 2, 1], vec![3]));
        engine.close();
        thread.join();
    }

    #[tokio::test]
    async fn a_full_line_is_overloaded_at_once_and_takes_all_or_none() {
        let model = Gated::new(false);
        let (engine, thread) = Engine::start(model.clone(), limits(2)).unwrap();
        let row = model.prepare("小区停水");
        let spawn = |rows: Vec<Prepared>| {
            let engine = engine.clone();
            tokio::spawn(async move { engine.predict_many(rows).await })
        };
        let busy = spawn(vec![row.clone()]);
        until(|| model.batches().len() == 1).await;
        let waiting = spawn(vec![row.clone()]);
        until(|| engine.n_waiting() == 1).await;
        let too_many = engine.predict_many(vec![row.clone(); 2]).await;
        assert_eq!(too_many, Err(InferError::Overloaded));
        assert_eq!(engine.n_waiting(), 1);
        model.open();
        assert!(busy.await.unwrap().is_ok() && waiting.await.unwrap().is_ok());
        drop(engine);
        thread.join();
    }

    #[tokio::test]
    async fn callers_that_hung_up_are_not_computed_and_close_drains_the_rest() {
        let model = Gated::new(false);
        let (engine, thread) = Engine::start(model.clone(), limits(8)).unwrap();
        let row = model.prepare("小区停水");
        let spawn = |n_rows: usize| {
            let (engine, rows) = (engine.clone(), vec![row.clone(); n_rows]);
            tokio::spawn(async move { engine.predict_many(rows).await })
        };
        let busy = spawn(1);
        until(|| model.batches().len() == 1).await;
        let hung_up = spawn(4);
        until(|| engine.n_waiting() == 4).await;
        hung_up.abort();
        assert!(hung_up.await.is_err());
        let waiting = spawn(2);
        until(|| engine.n_waiting() == 6).await;
        engine.close();
        assert_eq!(engine.predict(row.clone()).await, Err(InferError::Stopped));
        model.open();
        assert_eq!(busy.await.unwrap().unwrap().len(), 1);
        assert!(waiting.await.unwrap().unwrap().iter().all(Result::is_ok));
        thread.join();
        assert_eq!(model.batches(), [1, 2]);
    }
}
