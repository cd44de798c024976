//! Pure: which waiting items form the next batch. Touches no clock and no channel.

use std::num::NonZeroUsize;

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

    proptest! {
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
