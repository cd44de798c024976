//! Two opinions to probabilities a reader can take at their word: for each head a temperature for the
//! encoder's logits and a weight for the lexical half's; for the type also a bias per label and a
//! conformal threshold; all fitted on cases that neither was trained on.
//!
//! Types weigh in the fit of every head as they do in training: the probabilities are those of a desk where
//! rare types are less rare than among the cases.
//!
//! Sources: Guo et al. 2017, "On Calibration of Modern Neural Networks" (temperature and bias scaling); Genest and
//! Zidek 1986, "Combining Probability Distributions" (logarithmic pooling: weighted sums of logits);
//! Sadinle, Lei and Wasserman 2019 (least ambiguous sets: a label is in the set when its probability
//! is at least one minus the calibration quantile).

use serde::{Deserialize, Serialize};

use super::heads::TextLogits;
use crate::domain::prediction::{Prediction, Probability};

/// Rounds of fitting the type's mix and biases in turn.
const BIAS_ROUNDS: usize = 3;
/// Largest bias, and what a bias costs in nats of one text.
const MAX_BIAS: f64 = 2.0;
const BIAS_PENALTY: f64 = 2.0;
/// What it costs, in nats of one text, to leave an earlier calibration by a factor e of temperature, or by 1 of
/// a weight or bias: a few dozen cases must not overrule thousands.
const PULL: f64 = 40.0;

/// What turns logits into probabilities.
#[derive(Debug, Clone, PartialEq)]
pub struct Calibration {
    /// How the type logits mix.
    pub kind: Mix,
    /// Added to the mixed type logits, one per type; empty adds nothing.
    pub type_bias: Vec<f32>,
    /// How the level logits mix.
    pub level: Mix,
    /// How the grounds logits mix.
    pub grounds: Mix,
    /// A type is in the prediction set when its probability is at least this.
    pub set_threshold: f32,
}

/// How the two halves' logits become one: `encoder / temperature + lexical * lexical_weight`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mix {
    /// Divides the encoder's logits.
    pub temperature: f32,
    /// Multiplies the lexical half's.
    pub lexical_weight: f32,
}

impl Mix {
    /// The encoder's logits as they are.
    pub const ENCODER: Self = Self { temperature: 1.0, lexical_weight: 0.0 };

    /// Squared, the temperature by its logarithm.
    fn distance(self, other: Self) -> f64 {
        let temperature = f64::from(self.temperature / other.temperature).ln();
        temperature.powi(2) + f64::from(self.lexical_weight - other.lexical_weight).powi(2)
    }

    fn apply(self, encoder: &[f32], lexical: &[f32]) -> Vec<f32> {
        let mixed = encoder.iter().zip(lexical);
        mixed.map(|(a, b)| a / self.temperature + b * self.lexical_weight).collect()
    }
}

/// One head's logits for one text, by each half.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TwoLogits<'a> {
    /// The encoder's.
    pub encoder: &'a [f32],
    /// The lexical half's.
    pub lexical: &'a [f32],
}

impl TwoLogits<'_> {
    fn mix(self, mix: Mix) -> Vec<f32> {
        mix.apply(self.encoder, self.lexical)
    }
}

impl Calibration {
    /// No calibration: the encoder alone, and sets of the top type alone.
    pub const NONE: Self = Self {
        kind: Mix::ENCODER,
        type_bias: Vec::new(),
        level: Mix::ENCODER,
        grounds: Mix::ENCODER,
        set_threshold: 1.0,
    };

    /// The calibrated prediction for one text's logits.
    pub fn apply(&self, encoder: &TextLogits, lexical: &TextLogits) -> Prediction {
        let mut type_logits = self.kind.apply(&encoder.kind, &lexical.kind);
        add(&mut type_logits, &self.type_bias);
        let types = softmax(&type_logits, 1.0);
        let mut by_probability: Vec<usize> = (0..types.len()).collect();
        by_probability.sort_by(|&a, &b| types[b].total_cmp(&types[a]).then(a.cmp(&b)));
        let mut prediction_set: Vec<usize> =
            by_probability.iter().copied().filter(|&it| types[it] >= self.set_threshold).collect();
        if prediction_set.is_empty() {
            prediction_set.push(by_probability[0]);
        }
        let level = self.level.apply(&encoder.level, &lexical.level);
        let grounds = self.grounds.apply(&encoder.grounds, &lexical.grounds);
        Prediction {
            type_logits,
            type_probabilities: probabilities(types),
            prediction_set,
            level_probabilities: probabilities(level_probabilities(&level)),
            ground_probabilities: probabilities(grounds.into_iter().map(sigmoid).collect()),
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
fn level_probabilities(logits: &[f32]) -> Vec<f32> {
    // "Above 2" cannot be likelier than "above 1"; the head does not know, so it is enforced here.
    let mut above = 1.0_f32;
    let mut levels = Vec::with_capacity(logits.len() + 1);
    for logit in logits {
        let next = sigmoid(*logit).min(above);
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
/// `types` holds `(logits, true type)`, `levels` `(logits, true level, true type)`, `grounds` `(logits, truth of
/// each ground, true type)`; `type_weights` says what a text of each type counts, `coverage` is the share of texts
/// whose prediction set must hold the true type. Few cases move it little from `prior`. An empty part leaves
/// its head as `prior` had it, or uncalibrated.
pub fn fit(
    types: &[(TwoLogits<'_>, usize)],
    levels: &[(TwoLogits<'_>, usize, usize)],
    grounds: &[(TwoLogits<'_>, Vec<bool>, usize)],
    type_weights: &[f32],
    coverage: f32,
    prior: Option<&Calibration>,
) -> Calibration {
    let nll = |p: f32| f64::from(-p.max(1e-12).ln());
    let type_probabilities = |logits: &TwoLogits<'_>, mix: Mix, bias: &[f32]| {
        let mut logits = logits.mix(mix);
        add(&mut logits, bias);
        softmax(&logits, 1.0)
    };
    let type_loss = |mix: Mix, bias: &[f32]| -> f64 {
        let of_text = |(logits, truth): &(TwoLogits<'_>, usize)| {
            f64::from(type_weights[*truth]) * nll(type_probabilities(logits, mix, bias)[*truth])
        };
        types.iter().map(of_text).sum()
    };
    let no_bias = vec![0.0; type_weights.len()];
    let (start, penalty) = match prior {
        Some(it) if !it.type_bias.is_empty() => (&it.type_bias, PULL),
        _ => (&no_bias, BIAS_PENALTY),
    };
    let mut type_bias = start.clone();
    let mut kind = prior.map_or(Mix::ENCODER, |it| it.kind);
    if !types.is_empty() {
        for _ in 0..BIAS_ROUNDS {
            kind = best_mix(prior.map(|it| it.kind), |mix| type_loss(mix, &type_bias));
            for idx in 0..type_bias.len() {
                let with = |value: f64| {
                    let mut bias = type_bias.clone();
                    bias[idx] = value as f32;
                    // A type without held-out cases must not be argued away.
                    type_loss(kind, &bias) + penalty * (value - f64::from(start[idx])).powi(2)
                };
                type_bias[idx] = golden_section(-MAX_BIAS, MAX_BIAS, with) as f32;
            }
        }
    }
    let level = best_mix(prior.map(|it| it.level), |mix| {
        let of_text = |(logits, truth, kind): &(TwoLogits<'_>, usize, usize)| {
            f64::from(type_weights[*kind]) * nll(level_probabilities(&logits.mix(mix))[*truth])
        };
        levels.iter().map(of_text).sum()
    });
    let ground_mix = best_mix(prior.map(|it| it.grounds), |mix| {
        let of_text = |(logits, truth, kind): &(TwoLogits<'_>, Vec<bool>, usize)| -> f64 {
            let mixed = logits.mix(mix).into_iter().zip(truth);
            let of_ground =
                mixed.map(|(logit, &is_true)| nll(sigmoid(if is_true { logit } else { -logit })));
            f64::from(type_weights[*kind]) * of_ground.sum::<f64>()
        };
        grounds.iter().map(of_text).sum()
    });
    let mut true_probabilities: Vec<f32> =
        types.iter().map(|(it, truth)| type_probabilities(it, kind, &type_bias)[*truth]).collect();
    true_probabilities.sort_by(f32::total_cmp);
    let n = true_probabilities.len();
    // Split conformal: of n calibration texts at most floor((n + 1)(1 - coverage)) may fall below.
    let n_below = ((n as f32 + 1.0) * (1.0 - coverage)).floor() as usize;
    let set_threshold = match n_below.checked_sub(1) {
        Some(idx) if idx < n => true_probabilities[idx],
        _ => 0.0,
    };
    Calibration { kind, type_bias, level, grounds: ground_mix, set_threshold }
}

fn add(logits: &mut [f32], bias: &[f32]) {
    logits.iter_mut().zip(bias).for_each(|(it, bias)| *it += bias);
}

/// The mix with the least loss, one number at a time: the loss of mixed logits has one valley.
/// [`Mix::ENCODER`] when the loss depends on neither.
fn best_mix(prior: Option<Mix>, loss: impl Fn(Mix) -> f64) -> Mix {
    const ROUNDS: usize = 8;
    const MAX_WEIGHT: f64 = 4.0;
    let loss = |mix: Mix| loss(mix) + prior.map_or(0.0, |it| PULL * it.distance(mix));
    let mut mix = prior.unwrap_or(Mix::ENCODER);
    for _ in 0..ROUNDS {
        let with = |lexical_weight: f64| Mix { lexical_weight: lexical_weight as f32, ..mix };
        if loss(with(0.0)) != loss(with(MAX_WEIGHT)) {
            mix.lexical_weight = golden_section(0.0, MAX_WEIGHT, |it| loss(with(it))) as f32;
        }
        mix.temperature = best_temperature(|temperature| loss(Mix { temperature, ..mix }));
    }
    mix
}

/// The temperature in 0.25..=8 with the least loss: a coarse grid in the logarithm, then golden
/// section around its best point. 1 when the loss does not depend on it.
fn best_temperature(loss: impl Fn(f32) -> f64) -> f32 {
    const STEPS: i32 = 20;
    let at = |step: f64| (0.25_f64.ln() + (8.0_f64 / 0.25).ln() * step / f64::from(STEPS)).exp();
    let loss = |step: f64| loss(at(step) as f32);
    let (low, high) = (0.0, f64::from(STEPS));
    if loss(low) == loss(high) {
        return 1.0;
    }
    let best =
        (0..=STEPS).map(f64::from).min_by(|&a, &b| loss(a).total_cmp(&loss(b))).unwrap_or(0.0);
    let (low, high) = ((best - 1.0).max(low), (best + 1.0).min(high));
    at(golden_section(low, high, loss)) as f32
}

/// Where `loss` is least between `low` and `high`, if it has one valley there.
fn golden_section(mut low: f64, mut high: f64, loss: impl Fn(f64) -> f64) -> f64 {
    let golden = (5_f64.sqrt() - 1.0) / 2.0;
    for _ in 0..20 {
        let (left, right) = (high - golden * (high - low), low + golden * (high - low));
        if loss(left) < loss(right) { high = right } else { low = left }
    }
    (low + high) / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_cases_move_an_earlier_calibration_little_and_many_move_it() {
        // Two types the encoder tells apart with ease, and is far too modest about.
        const SAYS: [[f32; 2]; 2] = [[0.5, 0.0], [0.0, 0.5]];
        let case =
            |idx: usize| (TwoLogits { encoder: &SAYS[idx % 2], lexical: &[0.0, 0.0] }, idx % 2);
        let cases = |n: usize| (0..n).map(case).collect::<Vec<_>>();
        let prior = Calibration { type_bias: vec![0.1, -0.1], ..Calibration::NONE };
        let after = |n| fit(&cases(n), &[], &[], &[1.0, 1.0], 0.9, Some(&prior));
        let (none, few, many) = (after(0), after(10), after(10_000));
        assert_eq!((none.kind, &none.type_bias), (prior.kind, &prior.type_bias));
        assert!((none.level.temperature - 1.0).abs() < 0.01, "{:?}", none.level);
        assert!((few.kind.temperature - 1.0).abs() < 0.1, "{:?}", few.kind);
        assert!(many.kind.temperature < 0.5, "{:?}", many.kind);
    }

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
            let levels = level_probabilities(&logits);
            assert!((levels.iter().sum::<f32>() - 1.0).abs() < 1e-6, "{logits:?}");
            assert!(levels.iter().all(|it| *it >= 0.0), "{logits:?}");
        }
    }

    #[test]
    fn fit_finds_overconfidence() {
        // Logits claim 95 % but are right 3 times in 4: the honest margin is ln 3.
        let two = TwoLogits { encoder: &[3.0, 0.0], lexical: &[0.0, 0.0] };
        let types: Vec<_> = (0..400).map(|it| (two, usize::from(it % 4 == 0))).collect();
        let calibration = fit(&types, &[], &[], &[1.0, 1.0], 0.9, None);
        let text =
            |kind: &[f32]| TextLogits { kind: kind.to_vec(), level: vec![0.0], grounds: vec![] };
        let prediction = calibration.apply(&text(two.encoder), &text(two.lexical));
        let p = prediction.type_probabilities[0].get();
        assert!((p - 0.75).abs() < 0.01, "{p}");
        assert_eq!(calibration.level, Mix::ENCODER);
        // A quarter of the truths has probability 0.25, so 90 % coverage needs both labels.
        assert_eq!(prediction.prediction_set, [0, 1]);
    }

    #[test]
    fn fit_gives_a_neglected_type_its_share() {
        // The halves know nothing but say type 0; it is true three times in four.
        let two = TwoLogits { encoder: &[2.0, 0.0], lexical: &[0.0, 0.0] };
        let types: Vec<_> = (0..400).map(|it| (two, usize::from(it % 4 == 0))).collect();
        let probability = |weights: &[f32]| {
            let calibration = fit(&types, &[], &[], weights, 0.9, None);
            let text =
                |it: &[f32]| TextLogits { kind: it.to_vec(), level: vec![0.0], grounds: vec![] };
            calibration.apply(&text(two.encoder), &text(two.lexical)).type_probabilities[1].get()
        };
        // Alike, type 1 has its quarter; counted three times, its half.
        assert!((probability(&[1.0, 1.0]) - 0.25).abs() < 0.02, "{}", probability(&[1.0, 1.0]));
        assert!((probability(&[1.0, 3.0]) - 0.5).abs() < 0.02, "{}", probability(&[1.0, 3.0]));
    }

    #[test]
    fn fit_trusts_the_half_that_is_right() {
        let (a, b) = ([1.0, 0.0], [0.0, 1.0]);
        // One half knows; the other says `a` whatever the truth.
        let knows = |truth: usize| if truth == 0 { a.as_slice() } else { b.as_slice() };
        // It errs one time in ten, so that no weight is best at infinity.
        let truths: Vec<(usize, usize)> =
            (0..200).map(|it| (it % 2, if it % 20 < 2 { 1 - it % 2 } else { it % 2 })).collect();
        let lexical: Vec<_> = truths
            .iter()
            .map(|&(said, truth)| (TwoLogits { encoder: &a, lexical: knows(said) }, truth))
            .collect();
        let mix = fit(&lexical, &[], &[], &[1.0, 1.0], 0.9, None).kind;
        assert!(mix.lexical_weight > 2.0 * mix.temperature.recip(), "{mix:?}");
        let encoder: Vec<_> = truths
            .iter()
            .map(|&(said, truth)| (TwoLogits { encoder: knows(said), lexical: &a }, truth))
            .collect();
        let mix = fit(&encoder, &[], &[], &[1.0, 1.0], 0.9, None).kind;
        assert!(mix.temperature.recip() > 2.0 * mix.lexical_weight, "{mix:?}");
    }

    #[test]
    fn no_calibration_gives_sets_of_one() {
        let text = TextLogits { kind: vec![0.0, 0.1, 0.0], level: vec![0.0], grounds: vec![5.0] };
        assert_eq!(Calibration::NONE.apply(&text, &text).prediction_set, [1]);
    }
}
