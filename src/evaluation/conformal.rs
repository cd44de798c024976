//! Pure: thresholds of the review policy from held-out cases, each with a one-sided bound that holds
//! whatever the model.
//!
//! Sources: Bates et al. 2021, "Distribution-Free, Risk-Controlling Prediction Sets" (a monotone loss, an
//! upper bound at each threshold, the least strict threshold before the first that breaks the promise);
//! Angelopoulos et al. 2021, "Learn then Test" (fixed-sequence testing for a loss that is not monotone).
//! The bounds are Clopper and Pearson's. They hold for cases like the held-out ones, each with probability
//! `1 - alpha`, not all at once; the bound of what is routed takes the set threshold as given, although the
//! same cases chose it.

use thiserror::Error;

use super::metrics::clopper_pearson_upper;

/// Chance that a bound is wrong, each.
pub const ALPHA: f64 = 0.05;

/// A held-out case as the policy sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct HeldOut {
    /// True type's column.
    pub label: usize,
    /// Most probable type's column.
    pub top: usize,
    /// Its probability.
    pub confidence: f32,
    /// Probability of the next type.
    pub second: f32,
    /// Probability of the true type.
    pub true_probability: f32,
    /// Whether calling it the accused type would accuse somebody.
    pub is_protected: bool,
    /// Whether the most probable type is the accused one.
    pub is_accused: bool,
    /// A person looks first, whatever the confidence.
    pub is_held: bool,
}

/// Thresholds and their bounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Thresholds {
    /// A type is in the prediction set from this probability on.
    pub set_threshold: f32,
    /// Bound of the share of sets without the true type.
    pub missed_upper: f64,
    /// The accused type is proposed from this probability on.
    pub min_accusation: f32,
    /// Bound of the share of protected cases that are accused.
    pub false_accusation_upper: f64,
    /// Without a person from this probability on; 1 sends everything to a person.
    pub min_confidence: f32,
    /// Bound of the share of routed cases of the wrong type; none when nothing may be routed.
    pub routed_error_upper: Option<f64>,
}

/// Why no thresholds keep the promise.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum CannotPromise {
    /// Even a policy that never errs on these cases could not be told from one that does.
    #[error(
        "too_few_cases: {n} held-out {what} cannot show a share of at most {limit} with {:.0} % confidence; {needed} are needed even without a single error: label more, or promise less",
        100.0 * (1.0 - ALPHA)
    )]
    TooFew {
        /// What is counted.
        what: &'static str,
        /// How many there are.
        n: usize,
        /// How many are needed at least.
        needed: usize,
        /// The share promised.
        limit: f64,
    },
    /// A promise that is no share.
    #[error("invalid_promise: {name} is {value}, it must lie between 0 and 1, both excluded")]
    NoShare {
        /// The promise.
        name: &'static str,
        /// Its value.
        value: f64,
    },
}

/// Fits the thresholds: at most `max_false_accusation` of protected cases accused, `coverage` of the sets
/// with the true type, and at least `coverage` of the routed cases of the right type.
///
/// # Errors
/// [`CannotPromise`]; fails closed rather than promising what the cases cannot show.
pub fn fit(
    cases: &[HeldOut],
    max_false_accusation: f64,
    coverage: f64,
) -> Result<Thresholds, CannotPromise> {
    for (name, value) in [("max_false_accusation", max_false_accusation), ("coverage", coverage)] {
        if !(value > 0.0 && value < 1.0) {
            return Err(CannotPromise::NoShare { name, value });
        }
    }
    let max_error = 1.0 - coverage;
    let protected: Vec<&HeldOut> = cases.iter().filter(|it| it.is_protected).collect();
    enough("cases", cases.len(), max_error)?;
    // A taxonomy that accuses nobody needs no promise about it.
    if cases.iter().any(|it| it.is_accused || it.is_protected) {
        let what = "true problem, sensitive and suggestion cases";
        enough(what, protected.len(), max_false_accusation)?;
    }
    // The prediction set always holds the top type: only other true types can be missed.
    let mut missable: Vec<f32> =
        cases.iter().filter(|it| it.label != it.top).map(|it| it.true_probability).collect();
    missable.sort_by(f32::total_cmp);
    let (set_threshold, missed_upper) = highest(&missable, cases.len(), max_error);
    let mut accusations: Vec<f32> =
        protected.iter().filter(|it| it.is_accused).map(|it| it.confidence).collect();
    accusations.sort_by(|a, b| b.total_cmp(a));
    let (min_accusation, false_accusation_upper) =
        lowest(&accusations, protected.len(), max_false_accusation);
    let (min_confidence, routed_error_upper) = routed(cases, set_threshold, max_error);
    Ok(Thresholds {
        set_threshold,
        missed_upper,
        min_accusation,
        false_accusation_upper,
        min_confidence,
        routed_error_upper,
    })
}

/// The least number of cases that can show a share of at most `limit` without a single error.
pub fn least_cases(limit: f64) -> usize {
    (ALPHA.ln() / (1.0 - limit).ln()).ceil() as usize
}

fn enough(what: &'static str, n: usize, limit: f64) -> Result<(), CannotPromise> {
    let needed = least_cases(limit);
    if n < needed { Err(CannotPromise::TooFew { what, n, needed, limit }) } else { Ok(()) }
}

/// The highest threshold below which the promise holds, when each of `ascending` is an error as soon as
/// the threshold is above it; and the bound there.
fn highest(ascending: &[f32], n: usize, limit: f64) -> (f32, f64) {
    let mut bound = clopper_pearson_upper(0, n, ALPHA);
    for (idx, &at) in ascending.iter().enumerate() {
        // At a threshold just above `at` all cases up to and with its equals are errors.
        let k = idx + ascending[idx..].iter().take_while(|it| **it == at).count();
        let next = clopper_pearson_upper(k, n, ALPHA);
        if next > limit {
            return (at, bound);
        }
        bound = next;
    }
    // No threshold up to 1 breaks the promise: sets of the top type alone.
    (1.0, bound)
}

/// The lowest threshold above which the promise holds, when each of `descending` is an error as soon as
/// the threshold is not above it; and the bound there.
fn lowest(descending: &[f32], n: usize, limit: f64) -> (f32, f64) {
    let mut bound = clopper_pearson_upper(0, n, ALPHA);
    for (idx, &at) in descending.iter().enumerate() {
        let k = idx + descending[idx..].iter().take_while(|it| **it == at).count();
        let next = clopper_pearson_upper(k, n, ALPHA);
        if next > limit {
            return (at.next_up().min(1.0), bound);
        }
        bound = next;
    }
    (0.0, bound)
}

/// The lowest confidence from which cases with one type in their set may go without a person. The sequence begins where there are
/// twice the cases that could show the promise, a number that no label changes, and ends at the first
/// confidence that breaks it.
fn routed(cases: &[HeldOut], set_threshold: f32, limit: f64) -> (f32, Option<f64>) {
    const STEPS: usize = 100;
    let mut free: Vec<&HeldOut> =
        cases.iter().filter(|it| !it.is_held && it.second < set_threshold).collect();
    free.sort_by(|a, b| b.confidence.total_cmp(&a.confidence));
    let first = (2 * least_cases(limit)).min(free.len());
    let mut found = (1.0, None);
    for step in 0..=STEPS {
        let mut n = first + (free.len() - first) * step / STEPS;
        let Some(last) = n.checked_sub(1).and_then(|it| free.get(it)) else { break };
        // Cases of the same confidence go together.
        n += free[n..].iter().take_while(|it| it.confidence == last.confidence).count();
        let k = free[..n].iter().filter(|it| it.label != it.top).count();
        let bound = clopper_pearson_upper(k, n, ALPHA);
        if bound > limit {
            break;
        }
        found = (last.confidence, Some(bound));
    }
    found
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// Cases of a model that is right with the probability it says.
    fn honest(n: usize, seed: u64) -> Vec<HeldOut> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (0..n)
            .map(|_| {
                let confidence = rng.random_range(0.5..1.0_f32);
                let is_right = rng.random::<f32>() < confidence;
                let is_accused = rng.random::<f32>() < 0.1;
                HeldOut {
                    label: usize::from(!is_right),
                    top: 0,
                    confidence,
                    second: 1.0 - confidence,
                    true_probability: if is_right { confidence } else { 1.0 - confidence },
                    is_protected: !is_accused || !is_right,
                    is_accused,
                    is_held: is_accused,
                }
            })
            .collect()
    }

    #[test]
    fn promises_are_kept_on_cases_that_were_not_seen() {
        let (max_accused, coverage) = (0.02, 0.9);
        let mut n_broken = [0; 3];
        let rounds = 200;
        for seed in 0..rounds {
            let it = fit(&honest(1500, seed), max_accused, coverage).unwrap();
            // What the thresholds do to all cases there could be: the model is wrong with probability
            // `1 - c`, and `c` is spread evenly over 0.5 to 1.
            let wrong_above = |c: f64| (1.0 - c.max(0.5)).powi(2);
            let missed = wrong_above(1.0 - f64::from(it.set_threshold));
            let accused = 0.1 * wrong_above(f64::from(it.min_accusation)) / (0.9 + 0.1 * 0.25);
            let least = f64::from(it.min_confidence.max(1.0 - it.set_threshold));
            let routed_wrong = (1.0 - least.max(0.5)) / 2.0;
            n_broken[0] += usize::from(missed > 1.0 - coverage);
            n_broken[1] += usize::from(accused > max_accused);
            n_broken[2] += usize::from(routed_wrong > 1.0 - coverage);
        }
        // Each may be broken one time in twenty; half as much again allows for chance.
        assert!(n_broken.iter().all(|it| *it <= 15), "{n_broken:?}");
    }

    #[test]
    fn thresholds_are_not_stricter_than_they_need_be() {
        let it = fit(&honest(20_000, 1), 0.02, 0.9).unwrap();
        // An honest model of these confidences is right 9 times in 10 among those above 0.8.
        assert!((it.min_confidence - 0.8).abs() < 0.03, "{it:?}");
        assert!(it.routed_error_upper.unwrap() <= 0.1 && it.missed_upper <= 0.1, "{it:?}");
        assert!(it.false_accusation_upper <= 0.02 && it.false_accusation_upper > 0.015, "{it:?}");
        assert!(it.set_threshold > 0.2 && it.set_threshold < 0.5, "{it:?}");
    }

    #[test]
    fn what_cannot_be_shown_is_not_promised() {
        assert_eq!(least_cases(0.002), 1497);
        let error = fit(&honest(1000, 1), 0.002, 0.95).unwrap_err();
        assert!(error.to_string().contains("1497"), "{error}");
        let error = fit(&honest(20, 1), 0.5, 0.95).unwrap_err();
        assert!(matches!(error, CannotPromise::TooFew { what: "cases", .. }), "{error}");
        assert!(matches!(fit(&[], 0.0, 0.9), Err(CannotPromise::NoShare { .. })));
        assert!(matches!(fit(&[], 0.1, f64::NAN), Err(CannotPromise::NoShare { .. })));
    }

    #[test]
    fn a_model_that_is_always_wrong_routes_nothing() {
        let mut cases = honest(500, 1);
        cases.iter_mut().for_each(|it| (it.label, it.is_accused) = (1, false));
        let it = fit(&cases, 0.1, 0.9).unwrap();
        assert_eq!((it.min_confidence, it.routed_error_upper), (1.0, None));
        assert_eq!(it.min_accusation, 0.0);
    }
}
