//! The loss of some cases, and its slope at each output: what each head should have said.

use crate::model::calibration::softmax;
use crate::model::trainable::Outputs;

/// Share of a case's type mass given to the annotators' alternative label.
const ALT_SHARE: f32 = 0.2;
/// Share of the type mass spread over all labels (label smoothing).
const SMOOTHING: f32 = 0.05;
/// Weights of the level and grounds losses beside the type loss.
const LEVEL_WEIGHT: f32 = 0.5;
const GROUNDS_WEIGHT: f32 = 1.0;

/// What a labelled case teaches; indices are columns of the label sets.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    /// The type.
    pub label: usize,
    /// A second type the annotator thought possible.
    pub alt: Option<usize>,
    /// The level, when labelled.
    pub level: Option<usize>,
    /// Truth of each ground, when labelled.
    pub grounds: Option<Vec<bool>>,
}

/// `share` times the mean loss of the cases, and its slope at each of `outputs`.
///
/// `class_weights` has one weight per type, mean 1 over cases, and holds for every head: levels are judged as
/// the types are, at a desk where rare ones are less rare. A case without level or grounds teaches the
/// other heads only; when no case has any, their slopes are zero.
pub fn loss(
    outputs: &Outputs,
    targets: &[&Target],
    class_weights: &[f32],
    share: f32,
) -> (f32, Outputs) {
    let [kinds, levels, grounds] = outputs;
    let n_types = class_weights.len();
    let scale = share / targets.len() as f32;
    let mut total = 0.0;
    let mut kind_slopes = Vec::with_capacity(kinds.len());
    for (logits, target) in kinds.chunks_exact(n_types).zip(targets) {
        let alt_share = if target.alt.is_some() { ALT_SHARE } else { 0.0 };
        let weight = class_weights[target.label] * scale;
        let mut wanted = vec![SMOOTHING / n_types as f32; n_types];
        wanted[target.label] += (1.0 - SMOOTHING) * (1.0 - alt_share);
        if let Some(alt) = target.alt {
            wanted[alt] += (1.0 - SMOOTHING) * alt_share;
        }
        let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let log_sum = top + logits.iter().map(|it| (it - top).exp()).sum::<f32>().ln();
        let pairs = logits.iter().zip(&wanted);
        total += weight * pairs.map(|(logit, wanted)| wanted * (log_sum - logit)).sum::<f32>();
        let probabilities = softmax(logits, 1.0);
        let pairs = probabilities.iter().zip(&wanted);
        kind_slopes.extend(pairs.map(|(p, wanted)| weight * (p - wanted)));
    }
    let n_thresholds = levels.len() / targets.len();
    let level =
        |it: &Target| it.level.map(|level| (0..n_thresholds).map(|it| level > it).collect());
    let weight = |it: &Target| class_weights[it.label];
    let (level_loss, level_slopes) =
        sigmoid_loss(levels, targets, level, |it| weight(it) * share * LEVEL_WEIGHT);
    let (ground_loss, ground_slopes) = sigmoid_loss(
        grounds,
        targets,
        |it| it.grounds.clone(),
        |it| weight(it) * share * GROUNDS_WEIGHT,
    );
    (total + level_loss + ground_loss, [kind_slopes, level_slopes, ground_slopes])
}

/// Each row's weight times the sum of its binary cross-entropies, averaged over the rows that have a truth.
fn sigmoid_loss(
    logits: &[f32],
    targets: &[&Target],
    truth: impl Fn(&Target) -> Option<Vec<bool>>,
    weight: impl Fn(&Target) -> f32,
) -> (f32, Vec<f32>) {
    let width = logits.len() / targets.len();
    let truths: Vec<Option<Vec<bool>>> = targets.iter().map(|it| truth(it)).collect();
    let n_known = truths.iter().flatten().count();
    let mut slopes = vec![0.0; logits.len()];
    if n_known == 0 || width == 0 {
        return (0.0, slopes);
    }
    let mut total = 0.0;
    let rows = logits.chunks_exact(width).zip(slopes.chunks_exact_mut(width));
    for (((logits, slopes), truths), target) in rows.zip(&truths).zip(targets) {
        let Some(truths) = truths else { continue };
        let scale = weight(target) / n_known as f32;
        for ((&x, slope), &is_true) in logits.iter().zip(slopes).zip(truths) {
            let y = f32::from(u8::from(is_true));
            // max(x, 0) - x y + ln(1 + exp(-|x|)): no exponential of a large number.
            let small = (-x.abs()).exp();
            total += scale * (x.max(0.0) - x * y + small.ln_1p());
            let p = if x >= 0.0 { 1.0 / (1.0 + small) } else { small / (1.0 + small) };
            *slope = scale * (p - y);
        }
    }
    (total, slopes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(level: Option<usize>, grounds: Option<Vec<bool>>, x: f32) -> f32 {
        let outputs = [vec![0.0, 0.0], vec![x, x], vec![x]];
        let target = Target { label: 0, alt: None, level, grounds };
        loss(&outputs, &[&target], &[1.0, 1.0], 1.0).0
    }

    #[test]
    fn unlabelled_heads_cost_nothing_and_labelled_ones_pull_the_right_way() {
        let ln2 = std::f32::consts::LN_2;
        assert!((value(None, None, 3.0) - ln2).abs() < 1e-6);
        assert!(value(Some(2), None, 3.0) < value(Some(2), None, -3.0));
        assert!(value(Some(0), None, -3.0) < value(Some(0), None, 3.0));
        assert!(value(None, Some(vec![true]), 3.0) < value(None, Some(vec![true]), -3.0));
        // Far out the loss is linear, not infinite: three wrong thresholds and grounds of 200 each.
        assert!(
            (value(Some(0), Some(vec![false]), 200.0) - (ln2 + 0.5 * 400.0 + 200.0)).abs() < 1e-3
        );
    }

    #[test]
    fn slopes_are_those_of_the_loss() {
        let targets = [
            Target { label: 0, alt: Some(1), level: Some(1), grounds: None },
            Target { label: 1, alt: None, level: None, grounds: Some(vec![true, false]) },
            Target { label: 0, alt: None, level: Some(3), grounds: Some(vec![false, false]) },
        ];
        let targets: Vec<&Target> = targets.iter().collect();
        let ramp = |n: usize| (0..n).map(|it| (it as f32 * 1.3).sin() * 2.0).collect::<Vec<f32>>();
        let outputs = [ramp(6), ramp(9), ramp(6)];
        let weights = [0.7, 1.3];
        let (_, slopes) = loss(&outputs, &targets, &weights, 0.5);
        for head in 0..3 {
            for at in 0..outputs[head].len() {
                let with = |shift: f32| {
                    let mut outputs = outputs.clone();
                    outputs[head][at] += shift;
                    loss(&outputs, &targets, &weights, 0.5).0
                };
                let expected = (with(1e-2) - with(-1e-2)) / 2e-2;
                let gap = (slopes[head][at] - expected).abs();
                assert!(gap < 2e-4, "head {head} at {at}: {} {expected}", slopes[head][at]);
            }
        }
    }

    #[test]
    fn cases_without_any_level_or_ground_leave_those_heads_alone() {
        let target = Target { label: 1, alt: None, level: None, grounds: None };
        let outputs = [vec![0.3, -0.2, 0.1, 0.4], vec![1.0; 6], vec![-1.0; 2]];
        let (value, [kinds, levels, grounds]) =
            loss(&outputs, &[&target, &target], &[1.0, 1.0], 1.0);
        assert!(value.is_finite() && kinds.iter().all(|it| *it != 0.0));
        assert_eq!((levels, grounds), (vec![0.0; 6], vec![0.0; 2]));
        // Nor need there be any grounds.
        let none = [outputs[0].clone(), outputs[1].clone(), Vec::new()];
        assert_eq!(loss(&none, &[&target, &target], &[1.0, 1.0], 1.0).0, value);
    }
}
