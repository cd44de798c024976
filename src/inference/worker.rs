//! The loop of the model thread: it owns all computation and outlives a failing batch.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use super::line::{Batch, Line, Pending};
use super::{InferError, Predictor};
use crate::domain::prediction::Prediction;
use crate::pipeline::Prepared;
use crate::telemetry::metrics::Metrics;

/// Computes batches until the waiting line ends.
pub(super) fn run(predictor: &dyn Predictor, line: &Line, metrics: &Metrics) {
    while let Some(batch) = line.next_batch() {
        compute(predictor, batch, metrics);
    }
}

fn compute(predictor: &dyn Predictor, batch: Batch, metrics: &Metrics) {
    let Batch { lane, items } = batch;
    // Some time may have passed since they were taken out of the line.
    let now = Instant::now();
    let items: Vec<Pending> = items.into_iter().filter_map(|it| it.if_wanted(now)).collect();
    if items.is_empty() {
        return;
    }
    let started = Instant::now();
    for item in &items {
        metrics.waited(lane.code(), started - item.since);
    }
    let rows: Vec<&Prepared> = items.iter().map(|it| &it.prepared).collect();
    let (n_items, n_tokens) = (rows.len(), rows.iter().map(|it| it.n_tokens()).sum());
    let predictions = predict(predictor, &rows, metrics);
    drop(rows);
    let answered: Vec<(Pending, Result<Prediction, InferError>)> = match predictions {
        Ok(predictions) => items.into_iter().zip(predictions.into_iter().map(Ok)).collect(),
        Err(error) if n_items == 1 => items.into_iter().map(|it| (it, Err(error))).collect(),
        // One bad row must not take its neighbours along: compute each alone, as far as there is time.
        Err(_) => items
            .into_iter()
            .filter_map(|it| {
                let pending = it.if_wanted(Instant::now())?;
                let result = predict_one(predictor, &pending.prepared, metrics);
                Some((pending, result))
            })
            .collect(),
    };
    // Counted first: whoever has an answer finds it counted.
    metrics.batch(n_items, n_tokens, started.elapsed());
    for (pending, result) in answered {
        // A caller that hung up meanwhile wants no answer.
        let _ = pending.reply.send(result);
    }
}

fn predict_one(
    predictor: &dyn Predictor,
    row: &Prepared,
    metrics: &Metrics,
) -> Result<Prediction, InferError> {
    predict(predictor, &[row], metrics)?.pop().ok_or(InferError::Model)
}

/// One prediction per row. The cause of a failure is logged here, once; callers get only the fact.
fn predict(
    predictor: &dyn Predictor,
    rows: &[&Prepared],
    metrics: &Metrics,
) -> Result<Vec<Prediction>, InferError> {
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
        Err(_) => {
            metrics.panicked();
            tracing::error!(batch.items = rows.len(), "batch failed: the model panicked");
        }
    }
    Err(InferError::Model)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;
    use std::sync::{Arc, Condvar, Mutex};
    use std::time::Duration;

    use super::super::plan::{Lane, MAX_PASSED_OVER};
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
        let metrics = Metrics::new();
        let (engine, thread) = Engine::start(model.clone(), limits(8), metrics.clone()).unwrap();
        let rows = ["小区停水三天", "坏坏坏", "路灯不亮了"].map(|it| model.prepare(it));
        let results = engine.predict_many(Lane::Interactive, rows.to_vec(), None).await.unwrap();
        assert_eq!(metrics.n_panics(), 2, "in the batch, and alone");
        let failed: Vec<_> = results.iter().map(|it| it.as_ref().err().copied()).collect();
        assert_eq!(failed, [None, Some(InferError::Model), None]);
        assert_eq!(engine.predict(model.prepare("小区停水三天")).await, results[0]);
        engine.close();
        thread.join();
    }

    #[tokio::test]
    async fn a_full_line_is_overloaded_at_once_and_takes_all_or_none() {
        let model = Gated::new(false);
        let (engine, thread) = Engine::start(model.clone(), limits(2), Metrics::new()).unwrap();
        let row = model.prepare("小区停水");
        let spawn = |rows: Vec<Prepared>| {
            let engine = engine.clone();
            tokio::spawn(async move { engine.predict_many(Lane::Interactive, rows, None).await })
        };
        let busy = spawn(vec![row.clone()]);
        until(|| model.batches().len() == 1).await;
        let waiting = spawn(vec![row.clone()]);
        until(|| engine.n_waiting(Lane::Interactive) == 1).await;
        let too_many = engine.predict_many(Lane::Interactive, vec![row.clone(); 2], None).await;
        assert_eq!(too_many, Err(InferError::Overloaded));
        assert_eq!(engine.n_waiting(Lane::Interactive), 1);
        model.open();
        assert!(busy.await.unwrap().is_ok() && waiting.await.unwrap().is_ok());
        drop(engine);
        thread.join();
    }

    #[tokio::test]
    async fn callers_that_hung_up_are_not_computed_and_close_drains_the_rest() {
        let model = Gated::new(false);
        let (engine, thread) = Engine::start(model.clone(), limits(8), Metrics::new()).unwrap();
        let row = model.prepare("小区停水");
        let spawn = |n_rows: usize| {
            let (engine, rows) = (engine.clone(), vec![row.clone(); n_rows]);
            tokio::spawn(async move { engine.predict_many(Lane::Interactive, rows, None).await })
        };
        let busy = spawn(1);
        until(|| model.batches().len() == 1).await;
        let hung_up = spawn(4);
        until(|| engine.n_waiting(Lane::Interactive) == 4).await;
        hung_up.abort();
        assert!(hung_up.await.is_err());
        let waiting = spawn(2);
        until(|| engine.n_waiting(Lane::Interactive) == 6).await;
        engine.close();
        assert_eq!(engine.predict(row.clone()).await, Err(InferError::Stopped));
        model.open();
        assert_eq!(busy.await.unwrap().unwrap().len(), 1);
        assert!(waiting.await.unwrap().unwrap().iter().all(Result::is_ok));
        thread.join();
        assert_eq!(model.batches(), [1, 2]);
    }

    #[tokio::test]
    async fn interactive_items_overtake_bulk_which_still_gets_its_turn() {
        let model = Gated::new(false);
        let limits = EngineLimits { max_batch_items: NonZeroUsize::MIN, ..limits(32) };
        let (engine, thread) = Engine::start(model.clone(), limits, Metrics::new()).unwrap();
        let row = model.prepare("小区停水");
        let order = Arc::new(Mutex::new(Vec::new()));
        let spawn = |lane: Lane| {
            let (engine, row, order) = (engine.clone(), row.clone(), order.clone());
            tokio::spawn(async move {
                engine.predict_many(lane, vec![row], None).await.unwrap();
                order.lock().unwrap().push(lane);
            })
        };
        let mut callers = vec![spawn(Lane::Interactive)];
        until(|| model.batches().len() == 1).await;
        callers.extend((0..2).map(|_| spawn(Lane::Bulk)));
        until(|| engine.n_waiting(Lane::Bulk) == 2).await;
        callers.extend((0..10).map(|_| spawn(Lane::Interactive)));
        until(|| engine.n_waiting(Lane::Interactive) == 10).await;
        model.open();
        for caller in callers {
            caller.await.unwrap();
        }
        let order = order.lock().unwrap().clone();
        let bulk: Vec<usize> = (0..order.len()).filter(|&it| order[it] == Lane::Bulk).collect();
        // One was in the model already; then bulk has its turn after those that may pass it, and at the end.
        assert_eq!(bulk, [1 + MAX_PASSED_OVER, order.len() - 1]);
        drop(engine);
        thread.join();
    }

    /// A deadline that has passed, and one that is far away.
    fn deadlines() -> [Option<Instant>; 2] {
        let now = Instant::now();
        [now.checked_sub(Duration::from_millis(1)), Some(now + Duration::from_secs(60))]
    }

    #[tokio::test]
    async fn what_is_too_late_when_it_comes_is_not_queued() {
        let model = Gated::new(false);
        let (engine, _thread) = Engine::start(model.clone(), limits(8), Metrics::new()).unwrap();
        let row = model.prepare("小区停水");
        let [past, _] = deadlines();
        assert!(past.is_some());
        let late = engine.predict_many(Lane::Interactive, vec![row], past).await;
        assert_eq!(late, Err(InferError::TooLate));
        assert_eq!(engine.n_waiting(Lane::Interactive), 0);
        assert_eq!(model.batches(), [] as [usize; 0]);
    }

    #[tokio::test]
    async fn what_became_too_late_in_the_line_is_not_taken() {
        let model = Gated::new(false);
        let (engine, thread) = Engine::start(model.clone(), limits(8), Metrics::new()).unwrap();
        let row = model.prepare("小区停水");
        let spawn = |n_rows: usize, deadline: Option<Instant>| {
            let (engine, rows) = (engine.clone(), vec![row.clone(); n_rows]);
            tokio::spawn(
                async move { engine.predict_many(Lane::Interactive, rows, deadline).await },
            )
        };
        let busy = spawn(1, None);
        until(|| model.batches().len() == 1).await;
        // Nobody hangs up: it is the deadline alone that counts.
        let soon = Instant::now() + Duration::from_millis(100);
        let late = spawn(4, Some(soon));
        let [_, far] = deadlines();
        let in_time = spawn(2, far);
        until(|| engine.n_waiting(Lane::Interactive) == 6).await;
        tokio::time::sleep_until(soon.into()).await;
        model.open();
        assert!(busy.await.unwrap().unwrap()[0].is_ok());
        let late = late.await.unwrap().unwrap();
        assert!(late.iter().all(|it| *it == Err(InferError::TooLate)) && late.len() == 4);
        assert!(in_time.await.unwrap().unwrap().iter().all(Result::is_ok));
        drop(engine);
        thread.join();
        assert_eq!(model.batches(), [1, 2]);
    }

    #[test]
    fn what_became_too_late_after_it_was_taken_is_not_computed() {
        let model = Gated::new(true);
        let [past, far] = deadlines();
        let mut answers = Vec::new();
        let mut batch = |deadlines: &[Option<Instant>]| {
            let mut item = |deadline: &Option<Instant>| {
                let (reply, answer) = tokio::sync::oneshot::channel();
                answers.push(answer);
                let (prepared, since) = (model.prepare("小区停水"), Instant::now());
                Pending { prepared, reply, since, deadline: *deadline }
            };
            Batch { lane: Lane::Bulk, items: deadlines.iter().map(&mut item).collect() }
        };
        let (mixed, all_late) = (batch(&[past, far, past, None]), batch(&[past, past]));
        compute(&*model, mixed, &Metrics::new());
        compute(&*model, all_late, &Metrics::new());
        assert_eq!(model.batches(), [2]);
        let outcome = |mut it: super::super::line::Answer| it.try_recv().unwrap().err();
        let outcomes: Vec<_> = answers.into_iter().map(outcome).collect();
        let late = Some(InferError::TooLate);
        assert_eq!(outcomes, [late, None, late, None, late, late]);
    }

    /// Panics on a batch of several, after a while.
    struct SlowToFail(Arc<Gated>, Duration);

    impl Predictor for SlowToFail {
        fn predict(&self, batch: &[&Prepared]) -> Result<Vec<Prediction>, PipelineError> {
            if batch.len() > 1 {
                std::thread::sleep(self.1);
                panic!("a bad batch");
            }
            self.0.predict(batch)
        }
    }

    #[tokio::test]
    async fn what_became_too_late_while_its_batch_failed_is_not_computed_alone() {
        let model = Gated::new(true);
        let slow = Arc::new(SlowToFail(model.clone(), Duration::from_millis(150)));
        let (engine, thread) = Engine::start(slow, limits(8), Metrics::new()).unwrap();
        let rows = vec![model.prepare("小区停水"); 3];
        let soon = Some(Instant::now() + Duration::from_millis(100));
        let late = engine.predict_many(Lane::Interactive, rows.clone(), soon).await.unwrap();
        assert!(late.iter().all(|it| *it == Err(InferError::TooLate)), "{late:?}");
        assert_eq!(model.batches(), [] as [usize; 0]);
        let in_time = engine.predict_many(Lane::Interactive, rows, None).await.unwrap();
        assert!(in_time.iter().all(Result::is_ok));
        assert_eq!(model.batches(), [1, 1, 1]);
        drop(engine);
        thread.join();
    }
}
