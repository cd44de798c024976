//! Quality of predicted columns against true ones.

use serde::Serialize;

/// Precision, recall and F1 of one label.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LabelScores {
    /// True cases of the label.
    pub support: usize,
    /// Share of what was called so that is so; 0 when nothing was.
    pub precision: f64,
    /// Share of what is so that was called so; 0 when nothing is.
    pub recall: f64,
    /// Their harmonic mean; 0 when both are.
    pub f1: f64,
}

/// Counts `[truth][predicted]`.
///
/// # Panics
/// When the slices differ in length, or a column is not below `n_labels`.
pub fn confusion_matrix(truth: &[usize], predicted: &[usize], n_labels: usize) -> Vec<Vec<usize>> {
    assert_eq!(truth.len(), predicted.len(), "one prediction per case");
    let mut matrix = vec![vec![0; n_labels]; n_labels];
    for (&truth, &predicted) in truth.iter().zip(predicted) {
        matrix[truth][predicted] += 1;
    }
    matrix
}

/// Scores of each label, in column order.
///
/// # Panics
/// As [`confusion_matrix`].
pub fn label_scores(truth: &[usize], predicted: &[usize], n_labels: usize) -> Vec<LabelScores> {
    let matrix = confusion_matrix(truth, predicted, n_labels);
    let ratio =
        |part: usize, whole: usize| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
    (0..n_labels)
        .map(|label| {
            let hits = matrix[label][label];
            let support: usize = matrix[label].iter().sum();
            let called: usize = matrix.iter().map(|row| row[label]).sum();
            LabelScores {
                support,
                precision: ratio(hits, called),
                recall: ratio(hits, support),
                f1: ratio(2 * hits, support + called),
            }
        })
        .collect()
}

/// Mean F1 over the labels that have true cases, whatever is predicted: two models on the same cases are
/// judged on the same labels. None without cases.
///
/// # Panics
/// As [`confusion_matrix`].
pub fn macro_f1(truth: &[usize], predicted: &[usize], n_labels: usize) -> Option<f64> {
    let scores = label_scores(truth, predicted, n_labels);
    mean(scores.iter().filter(|it| it.support > 0).map(|it| it.f1))
}

/// The mean; none of nothing.
pub(super) fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (total, n) = values.fold((0.0, 0), |(total, n), it| (total + it, n + 1));
    (n > 0).then(|| total / f64::from(n))
}

/// Share of cases predicted right; none without cases.
pub fn accuracy(truth: &[usize], predicted: &[usize]) -> Option<f64> {
    let hits = truth.iter().zip(predicted).filter(|(a, b)| a == b).count();
    (!truth.is_empty()).then(|| hits as f64 / truth.len() as f64)
}

/// Share of the cases whose truth is in `protected` that were predicted `accused`: the false
/// accusation rate. None when no case is protected.
pub fn false_accusation_rate(
    truth: &[usize],
    predicted: &[usize],
    protected: &[usize],
    accused: usize,
) -> Option<f64> {
    let at_risk = || truth.iter().zip(predicted).filter(|(truth, _)| protected.contains(truth));
    let n = at_risk().count();
    (n > 0).then(|| at_risk().filter(|(_, it)| **it == accused).count() as f64 / n as f64)
}

/// Cohen's kappa with quadratic weights, for ordered columns; none without cases, or when both sides
/// always say the same one column.
///
/// # Panics
/// As [`confusion_matrix`].
pub fn quadratic_weighted_kappa(
    truth: &[usize],
    predicted: &[usize],
    n_levels: usize,
) -> Option<f64> {
    let matrix = confusion_matrix(truth, predicted, n_levels);
    let n = truth.len() as f64;
    let rows: Vec<f64> = matrix.iter().map(|row| row.iter().sum::<usize>() as f64).collect();
    let columns: Vec<f64> =
        (0..n_levels).map(|it| matrix.iter().map(|row| row[it]).sum::<usize>() as f64).collect();
    let (mut observed, mut expected) = (0.0, 0.0);
    for (i, row) in matrix.iter().enumerate() {
        for (j, &count) in row.iter().enumerate() {
            let weight = (i as f64 - j as f64).powi(2);
            observed += weight * count as f64;
            expected += weight * rows[i] * columns[j] / n;
        }
    }
    (expected > 0.0).then(|| 1.0 - observed / expected)
}

/// Expected calibration error over `n_bins` bins of equal mass: mean distance between confidence and
/// accuracy. `scored` holds (confidence, was right). None without cases.
pub fn expected_calibration_error(scored: &[(f32, bool)], n_bins: usize) -> Option<f64> {
    if scored.is_empty() || n_bins == 0 {
        return None;
    }
    let gap = |bin: Bin| bin.n as f64 * (bin.confidence - bin.accuracy).abs();
    let total: f64 = reliability(scored, n_bins).into_iter().map(gap).sum();
    Some(total / scored.len() as f64)
}

/// One bin of a reliability curve.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Bin {
    /// Cases in it.
    pub n: usize,
    /// Their mean confidence.
    pub confidence: f64,
    /// Share of them that was right.
    pub accuracy: f64,
}

/// Confidence against accuracy in `n_bins` bins of equal mass, ascending; empty bins are left out.
/// `scored` holds (confidence, was right).
pub fn reliability(scored: &[(f32, bool)], n_bins: usize) -> Vec<Bin> {
    let mut sorted = scored.to_vec();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
    let n = sorted.len();
    (0..n_bins)
        .map(|it| &sorted[it * n / n_bins..(it + 1) * n / n_bins])
        .filter(|bin| !bin.is_empty())
        .map(|bin| Bin {
            n: bin.len(),
            confidence: bin.iter().map(|it| f64::from(it.0)).sum::<f64>() / bin.len() as f64,
            accuracy: bin.iter().filter(|it| it.1).count() as f64 / bin.len() as f64,
        })
        .collect()
}

/// Squared distance between the probabilities and the truth, summed over the labels: 0 is best, 2 is
/// worst. None without cases.
///
/// Source: Brier 1950, "Verification of forecasts expressed in terms of probability".
pub fn brier(scored: &[(&[f32], usize)]) -> Option<f64> {
    let of_case = |(probabilities, truth): &(&[f32], usize)| -> f64 {
        let gap = |(idx, p): (usize, &f32)| f64::from(*p) - f64::from(u8::from(idx == *truth));
        probabilities.iter().enumerate().map(|it| gap(it).powi(2)).sum()
    };
    (!scored.is_empty()).then(|| scored.iter().map(of_case).sum::<f64>() / scored.len() as f64)
}

/// Area under the precision-recall steps: mean precision at each true case, best score first. Equal
/// scores count as one step, so that the order of the cases does not matter. `scored` holds (score, is
/// true); none when nothing is true.
pub fn average_precision(scored: &[(f32, bool)]) -> Option<f64> {
    let n_true = scored.iter().filter(|it| it.1).count();
    let mut sorted = scored.to_vec();
    sorted.sort_by(|a, b| b.0.total_cmp(&a.0));
    let (mut area, mut seen, mut hits) = (0.0, 0, 0);
    for step in sorted.chunk_by(|a, b| a.0 == b.0) {
        let new = step.iter().filter(|it| it.1).count();
        (seen, hits) = (seen + step.len(), hits + new);
        area += new as f64 * hits as f64 / seen as f64;
    }
    (n_true > 0).then(|| area / n_true as f64)
}

/// One-sided upper bound of a share of which `k` of `n` cases were seen: with probability `1 - alpha`
/// the true share is not above it. 1 without cases.
///
/// Source: Clopper and Pearson 1934, "The use of confidence or fiducial limits".
pub fn clopper_pearson_upper(k: usize, n: usize, alpha: f64) -> f64 {
    if k >= n {
        return 1.0;
    }
    // The share at which seeing k or fewer has probability alpha; that probability falls as it grows.
    let (mut low, mut high) = (k as f64 / n as f64, 1.0);
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if binomial_cdf(k, n, middle) > alpha { low = middle } else { high = middle }
    }
    high
}

/// Probability of `k` or fewer of `n` at share `p`, in logarithms, so that large `n` do not underflow.
fn binomial_cdf(k: usize, n: usize, p: f64) -> f64 {
    if p >= 1.0 {
        return if k >= n { 1.0 } else { 0.0 };
    }
    if p <= 0.0 {
        return 1.0;
    }
    let odds = (p / (1.0 - p)).ln();
    let mut log_term = n as f64 * (1.0 - p).ln();
    let mut total = log_term.exp();
    for idx in 0..k {
        log_term += ((n - idx) as f64 / (idx + 1) as f64).ln() + odds;
        total += log_term.exp();
    }
    total.min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_near(actual: Option<f64>, expected: f64) {
        assert!((actual.unwrap() - expected).abs() < 1e-9, "{actual:?} {expected}");
    }

    #[test]
    fn scores_equal_hand_counts() {
        let (truth, predicted) = ([0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 2, 2]);
        let scores = label_scores(&truth, &predicted, 4);
        assert_near(Some(scores[0].f1), 0.8);
        assert_near(Some(scores[1].precision), 0.5);
        assert_near(Some(scores[2].recall), 1.0);
        // Label 3 never occurs and is left out; so is one that is only predicted.
        assert_near(macro_f1(&truth, &predicted, 4), (0.8 + 0.5 + 2.0 / 3.0) / 3.0);
        assert_near(macro_f1(&[0, 0, 0], &[0, 0, 1], 2), 0.8);
        assert_near(accuracy(&truth, &predicted), 4.0 / 6.0);
        assert_near(false_accusation_rate(&truth, &predicted, &[0, 2], 1), 0.25);
    }

    #[test]
    fn kappa_is_one_zero_and_negative_where_it_should_be() {
        assert_near(quadratic_weighted_kappa(&[0, 1, 2, 3], &[0, 1, 2, 3], 4), 1.0);
        assert_near(quadratic_weighted_kappa(&[0, 1, 0, 1], &[0, 0, 1, 1], 2), 0.0);
        assert_near(quadratic_weighted_kappa(&[0, 3], &[3, 0], 4), -1.0);
        assert_eq!(quadratic_weighted_kappa(&[1, 1], &[1, 1], 4), None);
    }

    #[test]
    fn calibration_error_is_the_gap_between_confidence_and_accuracy() {
        assert_near(expected_calibration_error(&[(1.0, true), (1.0, true)], 1), 0.0);
        assert_near(expected_calibration_error(&[(1.0, true), (1.0, false)], 1), 0.5);
        // One bin would hide what two show.
        let split = [(0.0, true), (1.0, false)];
        assert_near(expected_calibration_error(&split, 1), 0.0);
        assert_near(expected_calibration_error(&split, 2), 1.0);
    }

    #[test]
    fn brier_reliability_and_average_precision_equal_hand_counts() {
        let (sure, unsure) = ([1.0, 0.0], [0.5, 0.5]);
        assert_near(brier(&[(&sure, 0), (&sure, 1), (&unsure, 0)]), (0.0 + 2.0 + 0.5) / 3.0);
        let bins = reliability(&[(0.9, true), (0.5, false), (0.7, true), (0.9, false)], 2);
        assert_eq!((bins[0].n, bins[0].accuracy, bins[1].accuracy), (2, 0.5, 0.5));
        assert!((bins[1].confidence - 0.9).abs() < 1e-6);
        let scored = [(0.9, true), (0.8, false), (0.7, true), (0.1, false)];
        assert_near(average_precision(&scored), (1.0 + 2.0 / 3.0) / 2.0);
        // All alike: as good as chance, in whatever order they come.
        assert_near(average_precision(&[(0.5, true), (0.5, false)]), 0.5);
        assert_near(average_precision(&[(0.5, false), (0.5, true)]), 0.5);
    }

    #[test]
    fn upper_bounds_equal_the_tables() {
        // No event: 1 - alpha^(1/n); the rest by exact sums and bisection in Python.
        let cases = [
            (0, 100, 1.0 - 0.05_f64.powf(0.01)),
            (0, 1497, 1.0 - 0.05_f64.powf(1.0 / 1497.0)),
            (1, 10, 0.394_163),
            (5, 50, 0.198_833),
            (10, 10, 1.0),
        ];
        for (k, n, expected) in cases {
            let actual = clopper_pearson_upper(k, n, 0.05);
            assert!((actual - expected).abs() < 1e-4, "{k} of {n}: {actual} {expected}");
        }
        assert!((clopper_pearson_upper(100_000, 1_000_000, 0.05) - 0.1005).abs() < 1e-4);
        assert_eq!(clopper_pearson_upper(0, 0, 0.05), 1.0);
    }

    #[test]
    fn no_cases_give_no_number() {
        assert_eq!(brier(&[]), None);
        assert_eq!(average_precision(&[(0.5, false)]), None);
        assert!(reliability(&[], 15).is_empty());
        assert_eq!(accuracy(&[], &[]), None);
        assert_eq!(macro_f1(&[], &[], 3), None);
        assert_eq!(expected_calibration_error(&[], 15), None);
        assert_eq!(quadratic_weighted_kappa(&[], &[], 4), None);
        assert_eq!(false_accusation_rate(&[0], &[1], &[2], 1), None);
    }
}
