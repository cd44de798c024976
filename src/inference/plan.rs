//! Pure: which waiting items form the next batch. Touches no clock and no lock.

use std::num::NonZeroUsize;

/// Batches that interactive items may take in a row while bulk waits; then one is bulk's.
pub const MAX_PASSED_OVER: usize = 7;
/// A bulk batch has this fraction of the token budget: who comes next waits until it is done.
const BULK_FRACTION: usize = 4;

/// Who waits: a person for one answer, or a job for many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Lane {
    /// Goes first.
    #[default]
    Interactive,
    /// Goes when nobody is before it, and every so often anyway.
    Bulk,
}

impl Lane {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Interactive, Self::Bulk];

    /// Stable code.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Interactive => "interactive",
            Self::Bulk => "bulk",
        }
    }

    /// The lane of `code`.
    pub fn from_code(code: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|it| it.code() == code)
    }
}

/// The first `len` items of a lane are next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// Whose turn it is.
    pub lane: Lane,
    /// How many items.
    pub len: usize,
    /// How often bulk was passed over, after this turn.
    pub passed_over: usize,
}

/// Whose turn it is, and how many items go; none when nobody waits.
///
/// Both iterators give each item's cost in waiting order, `passed_over` is what the last turn left. Lanes are not
/// mixed: a batch takes as long as its tokens, and a person should not wait for a job's.
pub fn next_batch(
    interactive: impl IntoIterator<Item = usize>,
    bulk: impl IntoIterator<Item = usize>,
    passed_over: usize,
    limits: &BatchLimits,
) -> Option<Turn> {
    let mut bulk = bulk.into_iter().peekable();
    let bulk_waits = bulk.peek().is_some();
    let is_bulks_turn = bulk_waits && passed_over >= MAX_PASSED_OVER;
    if !is_bulks_turn {
        let len = next_batch_len(interactive, limits);
        if len > 0 {
            let passed_over = if bulk_waits { passed_over + 1 } else { 0 };
            return Some(Turn { lane: Lane::Interactive, len, passed_over });
        }
    }
    let max_tokens = NonZeroUsize::new(limits.max_tokens.get() / BULK_FRACTION);
    let limits = BatchLimits { max_tokens: max_tokens.unwrap_or(NonZeroUsize::MIN), ..*limits };
    let len = next_batch_len(bulk, &limits);
    (len > 0).then_some(Turn { lane: Lane::Bulk, len, passed_over: 0 })
}

/// What one forward pass may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    /// Tokens, all items together. Rows are packed, so there is no padding to count.
    pub max_tokens: NonZeroUsize,
    /// Items.
    pub max_items: NonZeroUsize,
}

/// How many of the first waiting items form the next batch; 0 only when nothing waits.
///
/// `n_tokens` is each item's cost in waiting order. Nobody is overtaken, and an item above the
/// budget still goes, alone.
pub fn next_batch_len(n_tokens: impl IntoIterator<Item = usize>, limits: &BatchLimits) -> usize {
    let mut total = 0_usize;
    let mut len = 0;
    for cost in n_tokens.into_iter().take(limits.max_items.get()) {
        total = total.saturating_add(cost);
        if len > 0 && total > limits.max_tokens.get() {
            break;
        }
        len += 1;
    }
    len
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limits(max_items: usize, max_tokens: usize) -> BatchLimits {
        BatchLimits {
            max_items: NonZeroUsize::new(max_items).unwrap(),
            max_tokens: NonZeroUsize::new(max_tokens).unwrap(),
        }
    }

    #[test]
    fn next_batch_len_respects_both_limits() {
        let cases: [(&str, &[usize], usize); 6] = [
            ("nothing waits", &[], 0),
            ("item limit binds", &[10, 10, 10, 10], 3),
            ("token limit binds", &[60, 41], 1),
            ("exactly at the token limit", &[50, 50, 1], 2),
            ("an oversized first item still goes, alone", &[500, 1], 1),
            ("an oversized later item waits for its turn", &[1, 500, 1], 1),
        ];
        for (name, costs, expected) in cases {
            assert_eq!(next_batch_len(costs.iter().copied(), &limits(3, 100)), expected, "{name}");
        }
    }

    #[test]
    fn interactive_goes_first_and_bulk_every_so_often() {
        let limits = limits(10, 100);
        let turn = |lane, len, passed_over| Some(Turn { lane, len, passed_over });
        type Case<'a> = (&'a str, &'a [usize], &'a [usize], usize, Option<Turn>);
        let cases: [Case<'_>; 6] = [
            ("nobody waits", &[], &[], 3, None),
            ("bulk does not wait", &[9], &[], 3, turn(Lane::Interactive, 1, 0)),
            ("bulk is passed over", &[9, 9], &[9], 3, turn(Lane::Interactive, 2, 4)),
            ("bulk's turn at last", &[9], &[9], MAX_PASSED_OVER, turn(Lane::Bulk, 1, 0)),
            ("nobody is before bulk", &[], &[9, 9, 9], 0, turn(Lane::Bulk, 2, 0)),
            ("an oversized bulk item goes too", &[], &[500], 0, turn(Lane::Bulk, 1, 0)),
        ];
        for (name, interactive, bulk, passed_over, expected) in cases {
            let actual =
                next_batch(interactive.iter().copied(), bulk.iter().copied(), passed_over, &limits);
            assert_eq!(actual, expected, "{name}");
        }
    }

    proptest! {
        /// Interactive items that keep coming neither wait behind more than one bulk batch nor starve bulk.
        #[test]
        fn nobody_starves(
            bulk in proptest::collection::vec(1_usize..300, 1..30),
            arrivals in proptest::collection::vec(0_usize..4, 400),
        ) {
            let limits = limits(2, 100);
            let (mut interactive, mut bulk) = (0_usize, std::collections::VecDeque::from(bulk));
            let (mut passed_over, mut since_bulk, mut bulk_in_a_row) = (0, 0, 0);
            for n_new in arrivals {
                interactive += n_new;
                let costs = std::iter::repeat_n(10, interactive);
                let Some(turn) = next_batch(costs, bulk.iter().copied(), passed_over, &limits) else {
                    prop_assert!(interactive == 0 && bulk.is_empty());
                    continue;
                };
                passed_over = turn.passed_over;
                prop_assert!(turn.len > 0);
                if turn.lane == Lane::Bulk {
                    bulk_in_a_row = if interactive > 0 { bulk_in_a_row + 1 } else { 0 };
                    since_bulk = 0;
                    bulk.drain(..turn.len);
                } else {
                    since_bulk = if bulk.is_empty() { 0 } else { since_bulk + 1 };
                    bulk_in_a_row = 0;
                    interactive -= turn.len;
                }
                prop_assert!(since_bulk <= MAX_PASSED_OVER);
                prop_assert!(bulk_in_a_row <= 1);
            }
        }

        #[test]
        fn never_over_budget_always_progress(
            costs in proptest::collection::vec(0_usize..300, 0..40),
            max_items in 1_usize..20,
            max_tokens in 1_usize..400,
        ) {
            let len = next_batch_len(costs.iter().copied(), &limits(max_items, max_tokens));
            prop_assert_eq!(len == 0, costs.is_empty());
            prop_assert!(len <= max_items);
            prop_assert!(len <= 1 || costs[..len].iter().sum::<usize>() <= max_tokens);
            // Never smaller than it could be.
            let fits_one_more = len < costs.len()
                && len < max_items
                && costs[..=len].iter().sum::<usize>() <= max_tokens;
            prop_assert!(!fits_one_more);
        }
    }
}
