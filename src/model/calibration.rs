//! Logits to probabilities a reader can take at their word: one temperature per head and a conformal
//! threshold for the type, both fitted on cases the model was not trained on.
//!
//! Sources: Guo et al. 2017, "On Calibration of Modern Neural Networks" (temperature scaling);
//! Sadinle, Lei and Wasserman 2019 (least ambiguous sets: a label is in the set when its probability
//! is at least one minus the calibration quantile).

use super::heads::TextLogits;
use crate::domain::prediction::{Prediction, Probability};

/// What turns logits into probabilities.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Calibration {
    /// Divides the type logits.
    pub type_temperature: f32,
    /// Divides the level logits.
    pub level_temperature: f32,
    /// Divides the grounds logits.
    pub grounds_temperature: f32,
    /// A type is in the prediction set when its probability is at least this.
    pub set_threshold: f32,
}

impl Calibration {
    /// No calibration: temperatures 1 and sets of the top type alone.
    pub const NONE: Self = Self {
        type_temperature: 1.0,
        level_temperature: 1.0,
        grounds_temperature: 1.0,
        set_threshold: 1.0,
    };

    /// The calibrated prediction for one text's logits.
    pub fn apply(&self, logits: &TextLogits) -> Prediction {
        let types = softmax(&logits.kind, self.type_temperature);
        let mut by_probability: Vec<usize> = (0..types.len()).collect();
        by_probability.sort_by(|&a, &b| types[b].total_cmp(&types[a]).then(a.cmp(&b)));
        let mut prediction_set: Vec<usize> =
            by_probability.iter().copied().filter(|&it| types[it] >= self.set_threshold).collect();
        if prediction_set.is_empty() {
            prediction_set.push(by_probability[0]);
        }
        Prediction {
            type_logits: logits.kind.clone(),
            type_probabilities: probabilities(types),
            prediction_set,
            level_probabilities: probabilities(level_probabilities(
                &logits.level,
                self.level_temperature,
            )),
            ground_probabilities: probabilities(
                logits.grounds.iter().map(|it| sigmoid(it / self.grounds_temperature)).collect(),
            ),
        }
    }
}

/// Softmax of `logits / temperature`: the largest value is subtracted first, so that neither very
/// large nor very negative logits overflow.
pub fn softmax(logits: &[f32], temperature: f32) -> Vec<f32> {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exps: Vec<f32> = logits.iter().map(|it| ((it - top) / temperature).exp()).collect();
    let sum: f32 = exps.iter().sum();
    exps.into_iter().map(|it| it / sum).collect()
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// Probability of each level from the logits of "above level 0", "above level 1", …
fn level_probabilities(logits: &[f32], temperature: f32) -> Vec<f32> {
    // "Above 2" cannot be likelier than "above 1"; the head does not know, so it is enforced here.
    let mut above = 1.0_f32;
    let mut levels = Vec::with_capacity(logits.len() + 1);
    for logit in logits {
        let next = sigmoid(logit / temperature).min(above);
        levels.push(above - next);
        above = next;
    }
    levels.push(above);
    levels
}

fn probabilities(values: Vec<f32>) -> Vec<Probability> {
    // Rounding may leave the unit interval by an ulp; a NaN comes from broken weights only, which
    // loading refuses.
    let checked =
        |it: f32| Probability::new(it.clamp(0.0, 1.0)).expect("finite logits give a probability");
    values.into_iter().map(checked).collect()
}

/// Fits a [`Calibration`] on held-out logits.
///
/// `types` holds `(logits, true type)`, `levels` `(logits, true level)`, `grounds` `(logits, truth of
/// each ground)`; `coverage` is the share of texts whose prediction set must hold the true type.
/// An empty part leaves its head uncalibrated.
pub fn fit(
    types: &[(&[f32], usize)],
    levels: &[(&[f32], usize)],
    grounds: &[(&[f32], Vec<bool>)],
    coverage: f32,
) -> Calibration {
    let nll = |p: f32| f64::from(-p.max(1e-12).ln());
    let type_temperature = best_temperature(|temperature| {
        types.iter().map(|(logits, truth)| nll(softmax(logits, temperature)[*truth])).sum()
    });
    let level_temperature = best_temperature(|temperature| {
        levels
            .iter()
            .map(|(logits, truth)| nll(level_probabilities(logits, temperature)[*truth]))
            .sum()
    });
    let grounds_temperature = best_temperature(|temperature| {
        let of_row = |(logits, truth): &(&[f32], Vec<bool>)| -> f64 {
            let pairs = logits.iter().zip(truth);
            pairs
                .map(|(logit, &is_true)| {
                    nll(sigmoid(if is_true { *logit } else { -logit } / temperature))
                })
                .sum()
        };
        grounds.iter().map(of_row).sum()
    });
    let mut true_probabilities: Vec<f32> =
        types.iter().map(|(logits, truth)| softmax(logits, type_temperature)[*truth]).collect();
    true_probabilities.sort_by(f32::total_cmp);
    let n = true_probabilities.len();
    // Split conformal: of n calibration texts at most floor((n + 1)(1 - coverage)) may fall below.
    let n_below = ((n as f32 + 1.0) * (1.0 - coverage)).floor() as usize;
    let set_threshold = match n_below.checked_sub(1) {
        Some(idx) if idx < n => true_probabilities[idx],
        _ => 0.0,
    };
    Calibration { type_temperature, level_temperature, grounds_temperature, set_threshold }
}

/// The temperature in 0.25..=8 with the least loss: a coarse grid in the logarithm, then golden
/// section around its best point. 1 when the loss does not depend on it.
fn best_temperature(loss: impl Fn(f32) -> f64) -> f32 {
    const STEPS: i32 = 20;
    let at = |step: f64| (0.25_f64.ln() + (8.0_f64 / 0.25).ln() * step / f64::from(STEPS)).exp();
    let loss = |step: f64| loss(at(step) as f32);
    let (mut low, mut high) = (0.0, f64::from(STEPS));
    if loss(low) == loss(high) {
        return 1.0;
    }
    let best =
        (0..=STEPS).map(f64::from).min_by(|&a, &b| loss(a).total_cmp(&loss(b))).unwrap_or(0.0);
    (low, high) = ((best - 1.0).max(low), (best + 1.0).min(high));
    let golden = (5_f64.sqrt() - 1.0) / 2.0;
    for _ in 0..30 {
        let (left, right) = (high - golden * (high - low), low + golden * (high - low));
        if loss(left) < loss(right) { high = right } else { low = left }
    }
    at((low + high) / 2.0) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn softmax_survives_extreme_logits() {
        let cases: [(&str, &[f32], &[f32]); 4] = [
            ("very negative", &[-1000.0, -1000.0], &[0.5, 0.5]),
            ("very negative and apart", &[-900.0, -2000.0], &[1.0, 0.0]),
            ("very large", &[1000.0, 0.0], &[1.0, 0.0]),
            ("mixed", &[-1e30, 1e30], &[0.0, 1.0]),
        ];
        for (name, logits, expected) in cases {
            assert_eq!(softmax(logits, 1.0), expected, "{name}");
        }
    }

    #[test]
    fn levels_sum_to_one_even_when_thresholds_cross() {
        for logits in [[2.0, 0.0, -2.0], [-2.0, 0.0, 2.0], [90.0, -90.0, 90.0]] {
            let levels = level_probabilities(&logits, 1.0);
            assert!((levels.iter().sum::<f32>() - 1.0).abs() < 1e-6, "{logits:?}");
            assert!(levels.iter().all(|it| *it >= 0.0), "{logits:?}");
        }
    }

    #[test]
    fn fit_finds_overconfidence() {
        // Logits claim 95 % but are right 3 times in 4: the honest margin is ln 3.
        let logits = [3.0_f32, 0.0];
        let types: Vec<(&[f32], usize)> =
            (0..400).map(|it| (logits.as_slice(), usize::from(it % 4 == 0))).collect();
        let calibration = fit(&types, &[], &[], 0.9);
        let p = softmax(&logits, calibration.type_temperature)[0];
        assert!((p - 0.75).abs() < 0.01, "{p}");
        assert_eq!(calibration.level_temperature, 1.0);
        // A quarter of the truths has probability 0.25, so 90 % coverage needs both labels.
        let text = TextLogits { kind: logits.to_vec(), level: vec![0.0], grounds: vec![] };
        assert_eq!(calibration.apply(&text).prediction_set, [0, 1]);
    }

    #[test]
    fn no_calibration_gives_sets_of_one() {
        let text = TextLogits { kind: vec![0.0, 0.1, 0.0], level: vec![0.0], grounds: vec![5.0] };
        assert_eq!(Calibration::NONE.apply(&text).prediction_set, [1]);
    }
}
