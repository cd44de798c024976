//! The loss of a batch: what each head should have said.

use candle_core::{Device, Result, Tensor};
use candle_nn::ops::log_softmax;

use crate::model::heads::HeadLogits;

/// Share of a case's type mass given to the annotators' alternative label.
const ALT_SHARE: f32 = 0.2;
/// Share of the type mass spread over all labels (label smoothing).
const SMOOTHING: f32 = 0.05;
/// Weights of the level and grounds losses beside the type loss.
const LEVEL_WEIGHT: f64 = 0.5;
const GROUNDS_WEIGHT: f64 = 1.0;

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

/// Mean loss of the batch, a scalar that carries gradients.
///
/// `class_weights` has one weight per type, mean 1 over cases.
///
/// # Errors
/// When shapes differ.
pub fn loss(logits: &HeadLogits, targets: &[&Target], class_weights: &[f32]) -> Result<Tensor> {
    let n_types = class_weights.len();
    let mut kinds = Vec::with_capacity(targets.len() * n_types);
    for target in targets {
        let alt_share = if target.alt.is_some() { ALT_SHARE } else { 0.0 };
        let weight = class_weights[target.label];
        for type_idx in 0..n_types {
            let mut mass = SMOOTHING / n_types as f32;
            if type_idx == target.label {
                mass += (1.0 - SMOOTHING) * (1.0 - alt_share);
            }
            if Some(type_idx) == target.alt {
                mass += (1.0 - SMOOTHING) * alt_share;
            }
            kinds.push(mass * weight);
        }
    }
    let kinds = Tensor::from_vec(kinds, (targets.len(), n_types), &Device::Cpu)?;
    let kind_loss = (log_softmax(&logits.kind, 1)? * kinds)?.sum_all()?.neg()?;
    let mut total = (kind_loss / targets.len() as f64)?;

    let n_thresholds = logits.level.dim(1)?;
    let level =
        |it: &Target| it.level.map(|level| (0..n_thresholds).map(|it| level > it).collect());
    if let Some(loss) = masked_sigmoid_loss(&logits.level, targets, level)? {
        total = (total + loss * LEVEL_WEIGHT)?;
    }
    if let Some(loss) = masked_sigmoid_loss(&logits.grounds, targets, |it| it.grounds.clone())? {
        total = (total + loss * GROUNDS_WEIGHT)?;
    }
    Ok(total)
}

/// Sum of binary cross-entropies of a row, averaged over the rows that have a truth; none without any.
fn masked_sigmoid_loss(
    logits: &Tensor,
    targets: &[&Target],
    truth: impl Fn(&Target) -> Option<Vec<bool>>,
) -> Result<Option<Tensor>> {
    let (n_rows, width) = logits.dims2()?;
    let (mut truths, mut mask, mut n_known) = (Vec::new(), Vec::new(), 0);
    for target in targets {
        let row = truth(target);
        n_known += usize::from(row.is_some());
        mask.extend(std::iter::repeat_n(f32::from(u8::from(row.is_some())), width));
        truths.extend(
            row.unwrap_or_else(|| vec![false; width]).into_iter().map(|it| f32::from(u8::from(it))),
        );
    }
    if n_known == 0 || width == 0 {
        return Ok(None);
    }
    let truths = Tensor::from_vec(truths, (n_rows, width), &Device::Cpu)?;
    let mask = Tensor::from_vec(mask, (n_rows, width), &Device::Cpu)?;
    // max(x, 0) - x y + ln(1 + exp(-|x|)): no exponential of a large number.
    let tail = (logits.abs()?.neg()?.exp()? + 1.0)?.log()?;
    let losses = ((logits.relu()? - (logits * truths)?)? + tail)?;
    Ok(Some(((losses * mask)?.sum_all()? / n_known as f64)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(level: Option<usize>, grounds: Option<Vec<bool>>, x: f32) -> f32 {
        let row = |values: &[f32]| Tensor::new(values, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let logits = HeadLogits { kind: row(&[0.0, 0.0]), level: row(&[x, x]), grounds: row(&[x]) };
        let target = Target { label: 0, alt: None, level, grounds };
        loss(&logits, &[&target], &[1.0, 1.0]).unwrap().to_scalar().unwrap()
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
}
