//! The waiting line: bounded, in two lanes, shared by many callers and the model thread.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::oneshot;

use super::InferError;
use super::plan::{BatchLimits, Lane, Turn, next_batch};
use crate::domain::prediction::Prediction;
use crate::pipeline::Prepared;

/// Where an answer comes in.
pub(super) type Answer = oneshot::Receiver<Result<Prediction, InferError>>;

/// One item and where its answer goes.
pub(super) struct Pending {
    pub(super) prepared: Prepared,
    pub(super) reply: oneshot::Sender<Result<Prediction, InferError>>,
    pub(super) since: Instant,
    /// When the answer is of no use any more.
    pub(super) deadline: Option<Instant>,
}

impl Pending {
    fn is_late(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|it| it <= now)
    }

    /// The item, if anybody waits for it and it is not too late for it; else whoever waits hears so.
    pub(super) fn if_wanted(self, now: Instant) -> Option<Self> {
        if self.is_late(now) {
            let _ = self.reply.send(Err(InferError::TooLate));
            return None;
        }
        (!self.reply.is_closed()).then_some(self)
    }
}

/// Items of one lane, to be computed together.
pub(super) struct Batch {
    pub(super) lane: Lane,
    pub(super) items: Vec<Pending>,
}

pub(super) struct Line {
    lanes: Mutex<Lanes>,
    changed: Condvar,
    limits: BatchLimits,
    /// Items that may wait in each lane.
    max_waiting: usize,
}

#[derive(Default)]
struct Lanes {
    interactive: VecDeque<Pending>,
    bulk: VecDeque<Pending>,
    /// Batches since bulk last had its turn while it waited.
    passed_over: usize,
    is_closed: bool,
}

impl Lanes {
    fn lane(&mut self, lane: Lane) -> &mut VecDeque<Pending> {
        match lane {
            Lane::Interactive => &mut self.interactive,
            Lane::Bulk => &mut self.bulk,
        }
    }
}

/// Forgets the items of callers that hung up, and those it is too late for.
fn drop_unwanted(queue: &mut VecDeque<Pending>, now: Instant) {
    if !queue.iter().any(|it| it.reply.is_closed() || it.is_late(now)) {
        return; // As nearly always: a long line is not moved for nothing.
    }
    *queue = std::mem::take(queue).into_iter().filter_map(|it| it.if_wanted(now)).collect();
}

impl Line {
    pub(super) fn new(limits: BatchLimits, max_waiting: usize) -> Self {
        Self { lanes: Mutex::default(), changed: Condvar::new(), limits, max_waiting }
    }

    /// Puts items into `lane`, all or none.
    pub(super) fn push(
        &self,
        lane: Lane,
        rows: Vec<Prepared>,
        deadline: Option<Instant>,
    ) -> Result<Vec<Answer>, InferError> {
        let since = Instant::now();
        if deadline.is_some_and(|it| it <= since) {
            return Err(InferError::TooLate);
        }
        let mut lanes = self.lock();
        if lanes.is_closed {
            return Err(InferError::Stopped);
        }
        let queue = lanes.lane(lane);
        if queue.len() + rows.len() > self.max_waiting {
            drop_unwanted(queue, since);
            if queue.len() + rows.len() > self.max_waiting {
                return Err(InferError::Overloaded);
            }
        }
        let answers = rows.into_iter().map(|prepared| {
            let (reply, answer) = oneshot::channel();
            queue.push_back(Pending { prepared, reply, since, deadline });
            answer
        });
        let answers = answers.collect();
        drop(lanes);
        self.changed.notify_one();
        Ok(answers)
    }

    /// The next batch, never empty. Blocks while nobody waits; `None` when the line is closed and everything in
    /// it was handed out.
    pub(super) fn next_batch(&self) -> Option<Batch> {
        let mut lanes = self.lock();
        loop {
            let now = Instant::now();
            drop_unwanted(&mut lanes.interactive, now);
            drop_unwanted(&mut lanes.bulk, now);
            let costs = |it: &Pending| it.prepared.n_tokens();
            let turn = next_batch(
                lanes.interactive.iter().map(costs),
                lanes.bulk.iter().map(costs),
                lanes.passed_over,
                &self.limits,
            );
            if let Some(Turn { lane, len, passed_over }) = turn {
                lanes.passed_over = passed_over;
                let items = lanes.lane(lane).drain(..len).collect();
                return Some(Batch { lane, items });
            }
            if lanes.is_closed {
                return None;
            }
            lanes = self.changed.wait(lanes).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes no more items; what was taken is still handed out.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }

    /// Closes the line and forgets who waits, so that they hear that nothing comes any more.
    pub(super) fn abandon(&self) {
        let mut lanes = self.lock();
        lanes.is_closed = true;
        lanes.interactive.clear();
        lanes.bulk.clear();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.lock().is_closed
    }

    pub(super) fn n_waiting(&self, lane: Lane) -> usize {
        self.lock().lane(lane).len()
    }

    fn lock(&self) -> MutexGuard<'_, Lanes> {
        // Nothing panics while holding the lock, and a queue cannot be half changed.
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
