//! Answers kept for callers who asked for it, so that a request sent again is answered with the same bytes and
//! computed once.
//!
//! In memory only; bounded in bytes and in time. Holds digests instead of names. Knows no HTTP and no texts: what an
//! answer is, and whether it is worth keeping, is its caller's affair.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tokio::sync::watch;

/// A digest of who asks under which key, or of what is asked.
pub type Fingerprint = [u8; 32];

/// Table overhead of an entry, estimated.
const ENTRY_OVERHEAD: usize = 256;

/// Digest of `parts`, each told from the next.
pub fn fingerprint(parts: &[&[u8]]) -> Fingerprint {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    }
    digest.finalize().into()
}

/// How much is kept, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplayLimits {
    /// Memory for answers, all callers together.
    pub max_bytes: usize,
    /// Longest time an answer is kept.
    pub max_age: Duration,
}

/// The answers kept. Cheap to clone; all clones are one.
pub struct Replays<T>(Arc<Shared<T>>);

impl<T> Clone for Replays<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

struct Shared<T> {
    kept: Mutex<Kept<T>>,
    limits: ReplayLimits,
}

struct Kept<T> {
    entries: HashMap<Fingerprint, Entry<T>>,
    /// What is done, oldest first. All live equally long, so this is the order in which they expire.
    order: VecDeque<(Instant, Fingerprint)>,
    n_bytes: usize,
}

struct Entry<T> {
    request: Fingerprint,
    state: State<T>,
}

enum State<T> {
    Running(watch::Receiver<Option<T>>),
    Done { answer: T, n_bytes: usize },
}

/// What a request under a key is to do.
pub enum Turn<T> {
    /// Compute, and say so when done.
    First(Running<T>),
    /// Wait for the same request, which is being computed.
    Wait(Waiting<T>),
    /// Take this answer.
    Again(T),
    /// Nothing: another request had the key.
    Reused,
}

/// The computation others with the same key wait for. When it is dropped they hear that nothing comes.
pub struct Running<T> {
    shared: Arc<Shared<T>>,
    key: Fingerprint,
    answer: watch::Sender<Option<T>>,
}

/// A place where the answer of a running computation comes in.
pub struct Waiting<T>(watch::Receiver<Option<T>>);

impl<T: Clone> Waiting<T> {
    /// The answer; none when the computation ended without one.
    pub async fn answer(mut self) -> Option<T> {
        self.0.wait_for(Option::is_some).await.ok()?.clone()
    }
}

impl<T: Clone> Replays<T> {
    /// Nothing kept yet.
    pub fn new(limits: ReplayLimits) -> Self {
        let kept = Kept { entries: HashMap::new(), order: VecDeque::new(), n_bytes: 0 };
        Self(Arc::new(Shared { kept: Mutex::new(kept), limits }))
    }

    /// Whose turn it is when `request` comes under `key` at `now`.
    pub fn begin(&self, key: Fingerprint, request: Fingerprint, now: Instant) -> Turn<T> {
        let mut kept = self.0.lock();
        kept.expire(now, self.0.limits.max_age);
        if let Some(entry) = kept.entries.get(&key) {
            if entry.request != request {
                return Turn::Reused;
            }
            return match &entry.state {
                State::Running(answer) => Turn::Wait(Waiting(answer.clone())),
                State::Done { answer, .. } => Turn::Again(answer.clone()),
            };
        }
        let (answer, waiting) = watch::channel(None);
        kept.entries.insert(key, Entry { request, state: State::Running(waiting) });
        Turn::First(Running { shared: Arc::clone(&self.0), key, answer })
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.0.lock().n_bytes
    }
}

impl<T: Clone> Running<T> {
    /// Gives `answer` to those who wait, and keeps it when `n_bytes`, its size, is said and there is room for it.
    pub fn done(self, answer: T, n_bytes: Option<usize>, now: Instant) {
        let n_bytes = n_bytes.map(|it| it + ENTRY_OVERHEAD);
        if let Some(n_bytes) = n_bytes.filter(|it| *it <= self.shared.limits.max_bytes) {
            let mut kept = self.shared.lock();
            while kept.n_bytes + n_bytes > self.shared.limits.max_bytes && kept.drop_oldest() {}
            if let Some(entry) = kept.entries.get_mut(&self.key) {
                entry.state = State::Done { answer: answer.clone(), n_bytes };
                kept.n_bytes += n_bytes;
                kept.order.push_back((now, self.key));
            }
        }
        self.answer.send_replace(Some(answer));
    }
}

impl<T> Drop for Running<T> {
    fn drop(&mut self) {
        let mut kept = self.shared.lock();
        if kept.entries.get(&self.key).is_some_and(|it| matches!(it.state, State::Running(_))) {
            kept.entries.remove(&self.key);
        }
    }
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, Kept<T>> {
        // Nothing panics while holding the lock.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Kept<T> {
    fn expire(&mut self, now: Instant, max_age: Duration) {
        while self.order.front().is_some_and(|it| now.saturating_duration_since(it.0) >= max_age) {
            self.drop_oldest();
        }
    }

    /// Whether there was one.
    fn drop_oldest(&mut self) -> bool {
        let Some((_, key)) = self.order.pop_front() else { return false };
        if let Some(Entry { state: State::Done { n_bytes, .. }, .. }) = self.entries.remove(&key) {
            self.n_bytes -= n_bytes;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: ReplayLimits =
        ReplayLimits { max_bytes: 4 * (ENTRY_OVERHEAD + 100), max_age: Duration::from_secs(60) };

    fn key(n: u64) -> Fingerprint {
        fingerprint(&[&n.to_le_bytes()])
    }

    /// What the turn is, in a word, and its answer.
    fn word(turn: Turn<u64>) -> (&'static str, Option<u64>) {
        match turn {
            Turn::First(_) => ("first", None),
            Turn::Wait(_) => ("wait", None),
            Turn::Again(answer) => ("again", Some(answer)),
            Turn::Reused => ("reused", None),
        }
    }

    /// Answers under key `n` with `n`.
    fn answer(replays: &Replays<u64>, n: u64, n_bytes: Option<usize>, now: Instant) {
        let Turn::First(running) = replays.begin(key(n), key(0), now) else {
            panic!("{n} was answered before")
        };
        running.done(n, n_bytes, now);
    }

    #[test]
    fn what_was_kept_is_given_again_to_the_same_request_only() {
        let (replays, now) = (Replays::new(LIMITS), Instant::now());
        answer(&replays, 1, Some(10), now);
        assert_eq!(word(replays.begin(key(1), key(0), now)), ("again", Some(1)));
        assert_eq!(word(replays.begin(key(1), key(9), now)), ("reused", None));
        assert_eq!(word(replays.begin(key(2), key(0), now)), ("first", None));
        // Not worth keeping.
        answer(&replays, 3, None, now);
        assert_eq!(word(replays.begin(key(3), key(9), now)), ("first", None));
        assert_ne!(fingerprint(&[b"ab", b""]), fingerprint(&[b"a", b"b"]));
    }

    #[test]
    fn answers_go_with_time_and_the_oldest_for_want_of_room() {
        let (replays, start) = (Replays::new(LIMITS), Instant::now());
        for n in 1..=100 {
            let now = start + Duration::from_millis(n);
            answer(&replays, n, Some(100), now);
            assert!(replays.bytes() <= LIMITS.max_bytes, "{n}: {}", replays.bytes());
        }
        let later = start + Duration::from_secs(1);
        assert_eq!(word(replays.begin(key(97), key(0), later)), ("again", Some(97)));
        assert_eq!(word(replays.begin(key(96), key(0), later)), ("first", None));
        answer(&replays, 200, Some(LIMITS.max_bytes), later);
        assert_eq!(word(replays.begin(key(97), key(0), later)), ("again", Some(97)));
        assert_eq!(word(replays.begin(key(200), key(0), later)), ("first", None));
        let late = start + Duration::from_millis(97) + LIMITS.max_age;
        assert_eq!(word(replays.begin(key(97), key(0), late)), ("first", None));
        assert_eq!(word(replays.begin(key(98), key(0), late)), ("again", Some(98)));
        replays.begin(key(1), key(0), late + LIMITS.max_age);
        assert_eq!(replays.bytes(), 0);
        assert!(replays.0.lock().entries.is_empty(), "a dropped computation leaves nothing");
    }

    #[tokio::test]
    async fn those_who_wait_hear_the_answer_or_that_none_comes() {
        let (replays, now) = (Replays::new(LIMITS), Instant::now());
        for is_answered in [true, false] {
            let Turn::First(running) = replays.begin(key(1), key(0), now) else {
                panic!("nobody was before")
            };
            let Turn::Wait(waiting) = replays.begin(key(1), key(0), now) else {
                panic!("it is running")
            };
            assert_eq!(word(replays.begin(key(1), key(9), now)), ("reused", None));
            if is_answered {
                running.done(7, None, now);
            } else {
                drop(running);
            }
            assert_eq!(waiting.answer().await, is_answered.then_some(7));
        }
    }
}
