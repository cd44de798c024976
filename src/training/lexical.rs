//! Fits the lexical half: all heads in one convex problem, by L-BFGS.

use rayon::prelude::*;

use super::loss::Target;
use crate::evaluation::linear::{Columns, minimize};
use crate::model::calibration::softmax;
use crate::model::heads::HeadSizes;
use crate::model::lexical::{Lexical, outputs, weighted};
use crate::text::ngrams::Ngrams;

/// Buckets in fewer texts are left out.
const MIN_DOCUMENTS: u32 = 2;
/// Inverse strength of the L2 penalty.
const C: f32 = 10.0;

/// Learns from texts' n-grams and what they teach. Types count alike, however rare, in every head; a case
/// without level or grounds teaches the other heads only. The penalty pulls towards `prior`, or towards nothing: what
/// these cases are silent about stays as it was.
///
/// # Panics
/// When there is not one target per text, or `prior` is of another shape.
pub fn fit(
    texts: &[&Ngrams],
    targets: &[&Target],
    sizes: HeadSizes,
    n_buckets: usize,
    prior: Option<&Lexical>,
) -> Lexical {
    assert_eq!(texts.len(), targets.len(), "one target per text");
    assert!(prior.is_none_or(|it| it.idf.len() == n_buckets && it.sizes == sizes), "one shape");
    let mut documents = vec![0_u32; n_buckets];
    texts.iter().for_each(|text| text.iter().for_each(|it| documents[it.0 as usize] += 1));
    let idf: Vec<f32> = documents
        .into_iter()
        .enumerate()
        // A prior's weights are of texts weighed in its way.
        .map(|(at, n)| match prior.map_or(0.0, |it| it.idf[at]) {
            known if known > 0.0 => known,
            _ if n < MIN_DOCUMENTS => 0.0,
            _ => ((1.0 + texts.len() as f32) / (1.0 + n as f32)).ln() + 1.0,
        })
        .collect();
    let rows: Vec<Ngrams> = texts.par_iter().map(|it| weighted(it, &idf)).collect();
    let mut counts = vec![0.0_f32; sizes.n_types];
    targets.iter().for_each(|it| counts[it.label] += 1.0);
    let n_present = counts.iter().filter(|it| **it > 0.0).count() as f32;
    let case_weights: Vec<f32> =
        targets.iter().map(|it| C * rows.len() as f32 / (n_present * counts[it.label])).collect();
    let n_outputs = sizes.n_outputs();
    let start = match prior {
        Some(it) => [it.weight.as_slice(), &it.bias].concat(),
        None => vec![0.0; (n_buckets + 1) * n_outputs],
    };
    let columns = Columns::of(&rows, n_buckets);
    let mut weight = minimize(start.clone(), |point| {
        let (weight, bias) = point.split_at(n_buckets * n_outputs);
        let (losses, errors): (Vec<f64>, Vec<Vec<f32>>) = rows
            .par_iter()
            .zip(targets)
            .zip(&case_weights)
            .map(|((row, target), &case_weight)| {
                error(outputs(row, weight, bias), target, case_weight, sizes)
            })
            .unzip();
        let mut gradient: Vec<f32> = point.iter().zip(&start).map(|(a, b)| a - b).collect();
        if prior.is_none() {
            gradient[n_buckets * n_outputs..].fill(0.0); // The intercepts are free.
        }
        let penalty = gradient.iter().map(|it| f64::from(it * it)).sum::<f64>();
        columns.add_products(&errors.concat(), &mut gradient);
        (0.5 * penalty + losses.iter().sum::<f64>(), gradient)
    });
    let bias = weight.split_off(n_buckets * n_outputs);
    Lexical { idf, weight, bias, sizes }
}

/// The loss of one case, and its slope at each output: cross-entropy over the types, binary
/// cross-entropy for each threshold between levels and each ground.
fn error(
    outputs: Vec<f32>,
    target: &Target,
    case_weight: f32,
    sizes: HeadSizes,
) -> (f64, Vec<f32>) {
    let (kind, rest) = outputs.split_at(sizes.n_types);
    let (level, grounds) = rest.split_at(sizes.n_levels - 1);
    let mut errors = softmax(kind, 1.0);
    let mut loss = -f64::from(errors[target.label].max(1e-30).ln() * case_weight);
    errors[target.label] -= 1.0;
    errors.iter_mut().for_each(|it| *it *= case_weight);
    let mut binary = |logit: f32, truth: Option<bool>| {
        let Some(truth) = truth else { return 0.0 };
        let right = 1.0 / (1.0 + (if truth { -logit } else { logit }).exp());
        loss -= f64::from(case_weight * right.max(1e-30).ln());
        case_weight * if truth { right - 1.0 } else { 1.0 - right }
    };
    for (threshold, &logit) in level.iter().enumerate() {
        errors.push(binary(logit, target.level.map(|it| it > threshold)));
    }
    for (idx, &logit) in grounds.iter().enumerate() {
        errors.push(binary(logit, target.grounds.as_ref().map(|it| it[idx])));
    }
    (loss, errors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::Segmenter;
    use crate::text::ngrams::ngrams;

    #[test]
    fn every_head_learns_from_words_and_the_unknown_says_little() {
        let sizes = HeadSizes { n_types: 2, n_levels: 4, n_grounds: 1 };
        let of = |text: &str| ngrams(&Segmenter::default().segment(text), 1 << 12);
        let cases = [
            ("小区停水了", 0),
            ("小区停电了", 0),
            ("停水两天", 0),
            ("谢谢你们", 1),
            ("谢谢大家", 1),
            ("谢谢老师", 1),
        ];
        let texts: Vec<Ngrams> = cases.iter().map(|it| of(it.0)).collect();
        let targets: Vec<Target> = cases
            .iter()
            .map(|&(_, label)| Target {
                label,
                alt: None,
                level: Some(if label == 0 { 2 } else { 0 }),
                // The last case does not say.
                grounds: Some(vec![label == 0]),
            })
            .collect();
        let texts: Vec<&Ngrams> = texts.iter().collect();
        let targets: Vec<&Target> = targets.iter().collect();
        let lexical = fit(&texts, &targets, sizes, 1 << 12, None);
        let water = lexical.logits(&of("又停水了"));
        assert!(water.kind[0] - water.kind[1] > 1.0, "{water:?}");
        assert!(
            water.level[1] > 0.5 && water.level[2] < -0.5 && water.grounds[0] > 0.5,
            "{water:?}"
        );
        let thanks = lexical.logits(&of("谢谢"));
        assert!(thanks.kind[1] - thanks.kind[0] > 1.0 && thanks.level[0] < -0.5, "{thanks:?}");
        let unknown = lexical.logits(&of("xyz"));
        assert!((unknown.kind[0] - unknown.kind[1]).abs() < 0.5, "{unknown:?}");
        // Two more cases say nothing of water and thanks.
        let more = [of("好评好评"), of("漏气了漏气")];
        let (texts, targets) = ([&more[0], &more[1]], [targets[3], targets[0]]);
        let later = fit(&texts, &targets, sizes, 1 << 12, Some(&lexical));
        let water = later.logits(&of("又停水了"));
        assert!(water.kind[0] - water.kind[1] > 0.5, "{water:?}");
        let praise = [&lexical, &later].map(|it| it.logits(&of("好评")).kind);
        assert!(praise[1][1] - praise[1][0] > praise[0][1] - praise[0][0] + 0.5, "{praise:?}");
    }
}
