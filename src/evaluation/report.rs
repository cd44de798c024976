//! The quality table of one model on one set of cases, with bootstrap intervals.
//!
//! Source of the intervals: Efron 1979, percentile bootstrap over cases; of differences, the same over pairs.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::details::Details;
use super::metrics;
use crate::domain::label::LabelSet;

const N_RESAMPLES: usize = 1000;
pub(super) const N_BINS: usize = 15;
/// Chance that a one-sided bound is wrong.
const ALPHA: f64 = 0.05;
/// The type that accuses.
pub const ACCUSED: &str = "disputed_claim";
/// Types whose authors must not be called rumour-mongers.
pub const PROTECTED: [&str; 3] = ["problem", "sensitive", "suggestion"];

/// Truth and prediction of one case; numbers are columns of the label set.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// True type.
    pub label: usize,
    /// Predicted type.
    pub predicted: usize,
    /// Probability of the predicted type.
    pub confidence: f32,
    /// Size of the prediction set and whether it holds the true type, when there is one.
    pub set: Option<(usize, bool)>,
    /// True and predicted level, when labelled.
    pub levels: Option<(usize, usize)>,
}

/// A figure with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    /// On the cases as they are.
    pub value: f64,
    /// 2.5th percentile over resamples.
    pub low: f64,
    /// 97.5th percentile over resamples.
    pub high: f64,
}

/// Scores of one type.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TypeScores {
    /// Code of the type.
    pub code: String,
    /// True cases.
    pub support: usize,
    /// Share of what was called so that is so.
    pub precision: f64,
    /// Share of what is so that was called so.
    pub recall: f64,
    /// Their harmonic mean.
    pub f1: f64,
    /// 95 % intervals of the three, in the same order; none without cases of the type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub intervals: Option<[[f64; 2]; 3]>,
}

/// Everything that is said about a model's quality. Figures that the cases cannot give are `None`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Cases evaluated.
    pub n_cases: usize,
    /// Share of types predicted right.
    pub accuracy: Option<Estimate>,
    /// Mean F1 over the types that have cases.
    pub macro_f1: Option<Estimate>,
    /// Share of true emergencies that were called so.
    pub emergency_recall: Option<Estimate>,
    /// Share of true problem, sensitive and suggestion items called `disputed_claim`.
    pub false_accusation_rate: Option<Estimate>,
    /// One-sided 95 % upper bound of that share (Clopper-Pearson): what few cases cannot rule out.
    pub false_accusation_upper: Option<f64>,
    /// Quadratic-weighted kappa of the level.
    pub level_kappa: Option<Estimate>,
    /// Expected calibration error of the type, 15 bins of equal mass.
    pub type_ece: Option<Estimate>,
    /// Share of prediction sets that hold the true type.
    pub set_coverage: Option<f64>,
    /// Mean number of types in a prediction set.
    pub mean_set_size: Option<f64>,
    /// Scores of each type.
    pub types: Vec<TypeScores>,
    /// Counts `[truth][predicted]`, in the order of `types`.
    pub confusion: Vec<Vec<usize>>,
    /// What needs more than the top type of each case.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<Details>,
}

impl Report {
    /// The report on `outcomes`, whose types are columns of `types`, with levels below `n_levels`.
    pub fn new(outcomes: &[Outcome], types: &LabelSet, n_levels: usize) -> Self {
        let emergency = types.index_of("emergency");
        let disputed = types.index_of(ACCUSED);
        let protected: Vec<usize> = PROTECTED.iter().filter_map(|it| types.index_of(it)).collect();
        let emergency_recall = |sample: &[&Outcome]| {
            let (truth, predicted) = columns(sample);
            let scores = metrics::label_scores(&truth, &predicted, types.len());
            emergency.map(|it| scores[it]).filter(|it| it.support > 0).map(|it| it.recall)
        };
        let false_accusation = |sample: &[&Outcome]| {
            let (truth, predicted) = columns(sample);
            metrics::false_accusation_rate(&truth, &predicted, &protected, disputed?)
        };
        let ece = |sample: &[&Outcome]| {
            let scored: Vec<(f32, bool)> =
                sample.iter().map(|it| (it.confidence, it.label == it.predicted)).collect();
            metrics::expected_calibration_error(&scored, N_BINS)
        };
        let all: Vec<&Outcome> = outcomes.iter().collect();
        let accusations = disputed.map(|disputed| {
            let at_risk = || outcomes.iter().filter(|it| protected.contains(&it.label));
            (at_risk().filter(|it| it.predicted == disputed).count(), at_risk().count())
        });
        let intervals = type_intervals(&all, types.len());
        let (truth, predicted) = columns(&all);
        let scores = metrics::label_scores(&truth, &predicted, types.len());
        let sets: Vec<(usize, bool)> = outcomes.iter().filter_map(|it| it.set).collect();
        let mean = |total: usize| (!sets.is_empty()).then(|| total as f64 / sets.len() as f64);
        Self {
            n_cases: outcomes.len(),
            accuracy: estimate(&all, accuracy),
            macro_f1: estimate(&all, macro_f1(&all, types.len())),
            emergency_recall: estimate(&all, emergency_recall),
            false_accusation_rate: estimate(&all, false_accusation),
            false_accusation_upper: accusations
                .filter(|it| it.1 > 0)
                .map(|(k, n)| metrics::clopper_pearson_upper(k, n, ALPHA)),
            level_kappa: estimate(&all, |it| level_kappa(it, n_levels)),
            type_ece: estimate(&all, ece),
            set_coverage: mean(sets.iter().filter(|it| it.1).count()),
            mean_set_size: mean(sets.iter().map(|it| it.0).sum()),
            types: types
                .codes()
                .zip(scores.iter().zip(intervals))
                .map(|(code, (it, intervals))| TypeScores {
                    code: code.to_owned(),
                    support: it.support,
                    precision: it.precision,
                    recall: it.recall,
                    f1: it.f1,
                    intervals,
                })
                .collect(),
            confusion: metrics::confusion_matrix(&truth, &predicted, types.len()),
            details: None,
        }
    }

    /// Name and value of every single figure, as gates name them.
    pub fn figures(&self) -> [(&'static str, Option<Estimate>); 6] {
        [
            ("macro_f1", self.macro_f1),
            ("accuracy", self.accuracy),
            ("emergency_recall", self.emergency_recall),
            ("false_accusation_rate", self.false_accusation_rate),
            ("level_kappa", self.level_kappa),
            ("type_ece", self.type_ece),
        ]
    }
}

/// Intervals of precision, recall and F1 of each type, over the same resamples as every other figure.
fn type_intervals(all: &[&Outcome], n_types: usize) -> Vec<Option<[[f64; 2]; 3]>> {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut values = vec![[const { Vec::new() }; 3]; n_types];
    for _ in 0..N_RESAMPLES {
        let sample = all.iter().map(|_| all[rng.random_range(0..all.len())]);
        let (truth, predicted): (Vec<_>, Vec<_>) =
            sample.map(|it| (it.label, it.predicted)).unzip();
        for (values, it) in
            values.iter_mut().zip(metrics::label_scores(&truth, &predicted, n_types))
        {
            if it.support > 0 {
                let scores = [it.precision, it.recall, it.f1];
                values.iter_mut().zip(scores).for_each(|(values, it)| values.push(it));
            }
        }
    }
    let interval = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        let at = |share: f64| values[((values.len() - 1) as f64 * share).round() as usize];
        (!values.is_empty()).then(|| [at(0.025), at(0.975)])
    };
    values.into_iter().map(|[a, b, c]| Some([interval(a)?, interval(b)?, interval(c)?])).collect()
}

/// How much more a model reaches than another on the same cases, with the interval of that difference: each
/// resample holds the same cases for both (paired bootstrap). Names as in [`Report::figures`].
///
/// # Panics
/// When the two were not asked the same cases.
pub fn differences(ours: &[Outcome], theirs: &[Outcome]) -> [(&'static str, Option<Estimate>); 3] {
    assert_eq!(ours.len(), theirs.len(), "the same cases");
    // The two may know different types: only those that occur count.
    let all = || ours.iter().chain(theirs);
    let n_types = all().map(|it| it.label.max(it.predicted) + 1).max().unwrap_or(0);
    let n_levels = all().filter_map(|it| it.levels).map(|(a, b)| a.max(b) + 1).max().unwrap_or(0);
    let pairs: Vec<(&Outcome, &Outcome)> = ours.iter().zip(theirs).collect();
    let f1_of = |all: &[Outcome]| macro_f1(&all.iter().collect::<Vec<_>>(), n_types);
    let kappa = |sample: &[&Outcome]| level_kappa(sample, n_levels);
    [
        ("macro_f1", difference(&pairs, f1_of(ours), f1_of(theirs))),
        ("accuracy", difference(&pairs, accuracy, accuracy)),
        ("level_kappa", difference(&pairs, kappa, kappa)),
    ]
}

fn difference(
    pairs: &[(&Outcome, &Outcome)],
    of_ours: impl Fn(&[&Outcome]) -> Option<f64>,
    of_theirs: impl Fn(&[&Outcome]) -> Option<f64>,
) -> Option<Estimate> {
    estimate(pairs, |sample| {
        let (ours, theirs): (Vec<_>, Vec<_>) = sample.iter().copied().unzip();
        Some(of_ours(&ours)? - of_theirs(&theirs)?)
    })
}

/// True and predicted types.
fn columns(sample: &[&Outcome]) -> (Vec<usize>, Vec<usize>) {
    sample.iter().map(|it| (it.label, it.predicted)).unzip()
}

fn accuracy(sample: &[&Outcome]) -> Option<f64> {
    let (truth, predicted) = columns(sample);
    metrics::accuracy(&truth, &predicted)
}

/// Macro-F1 on resamples of `whole`, always over the types that have cases in `whole`.
///
/// A resample that drew none of a type says nothing about it, so the type keeps its F1 of `whole`. With 0
/// instead, types of one case (missing from a third of the resamples) would push the interval below its
/// estimate; without those resamples, a dozen such types would leave hardly any.
fn macro_f1(whole: &[&Outcome], n_types: usize) -> impl Fn(&[&Outcome]) -> Option<f64> + use<> {
    let scores = move |sample: &[&Outcome]| {
        let (truth, predicted) = columns(sample);
        metrics::label_scores(&truth, &predicted, n_types)
    };
    let of_whole = scores(whole);
    move |sample| {
        let drawn = scores(sample);
        let counted = of_whole.iter().zip(&drawn).filter(|it| it.0.support > 0);
        metrics::mean(counted.map(|(it, drawn)| if drawn.support > 0 { drawn.f1 } else { it.f1 }))
    }
}

fn level_kappa(sample: &[&Outcome], n_levels: usize) -> Option<f64> {
    let (truth, predicted): (Vec<_>, Vec<_>) = sample.iter().filter_map(|it| it.levels).unzip();
    metrics::quadratic_weighted_kappa(&truth, &predicted, n_levels)
}

fn estimate<T: Copy>(all: &[T], figure: impl Fn(&[T]) -> Option<f64>) -> Option<Estimate> {
    let value = figure(all)?;
    // The same seed for every figure and model: their resamples are the same cases.
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut values: Vec<f64> = (0..N_RESAMPLES)
        .filter_map(|_| {
            let sample: Vec<T> = all.iter().map(|_| all[rng.random_range(0..all.len())]).collect();
            figure(&sample)
        })
        .collect();
    values.sort_by(f64::total_cmp);
    let at = |share: f64| values[((values.len() - 1) as f64 * share).round() as usize];
    (!values.is_empty()).then(|| Estimate { value, low: at(0.025), high: at(0.975) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(label: usize, predicted: usize) -> Outcome {
        Outcome {
            label,
            predicted,
            confidence: 0.9,
            set: Some((1, label == predicted)),
            levels: Some((label.min(3), predicted.min(3))),
        }
    }

    #[test]
    fn figures_follow_from_the_outcomes_and_lie_in_their_intervals() {
        let types = LabelSet::new(["problem", "emergency", "disputed_claim"]).unwrap();
        let outcomes: Vec<Outcome> =
            [(0, 0), (0, 2), (1, 1), (1, 0), (2, 2)].map(|(a, b)| outcome(a, b)).repeat(20);
        let report = Report::new(&outcomes, &types, 4);
        let value = |it: Option<Estimate>| it.unwrap().value;
        assert!((value(report.accuracy) - 0.6).abs() < 1e-9);
        assert!((value(report.emergency_recall) - 0.5).abs() < 1e-9);
        assert!((value(report.false_accusation_rate) - 0.5).abs() < 1e-9);
        assert_eq!(report.set_coverage, Some(0.6));
        assert_eq!(report.confusion[0], [20, 0, 20]);
        for it in &report.types {
            for (value, [low, high]) in
                [it.precision, it.recall, it.f1].into_iter().zip(it.intervals.unwrap())
            {
                assert!(low <= value && value <= high, "{}: {low} {value} {high}", it.code);
            }
        }
        // 20 of 40: the bound lies above the share, and further above it with fewer cases.
        let upper = report.false_accusation_upper.unwrap();
        let few = Report::new(&outcomes[..10], &types, 4).false_accusation_upper.unwrap();
        assert!(0.5 < upper && upper < few, "{upper} {few}");
        for (name, figure) in report.figures() {
            let Estimate { value, low, high } = figure.unwrap();
            assert!(low < high && low <= value && value <= high, "{name}: {low} {value} {high}");
        }
    }

    #[test]
    fn a_difference_is_surer_than_its_parts() {
        // Half right; the other model is wrong on one case in ten more, and on the same cases otherwise.
        let ours: Vec<Outcome> = (0..200).map(|it| outcome(0, it % 2)).collect();
        let theirs: Vec<Outcome> =
            (0..200).map(|it| outcome(0, if it % 10 == 0 { 1 } else { it % 2 })).collect();
        let [macro_f1, (_, accuracy), kappa] = differences(&ours, &theirs);
        assert_eq!((macro_f1.0, kappa.0), ("macro_f1", "level_kappa"));
        let Estimate { value, low, high } = accuracy.unwrap();
        assert!((value - 0.1).abs() < 1e-9 && low > 0.05 && high < 0.15, "{low} {value} {high}");
        let [_, (_, itself), _] = differences(&ours, &ours);
        assert_eq!(itself, Some(Estimate { value: 0.0, low: 0.0, high: 0.0 }));
        let none = differences(&[], &[]);
        assert!(none.iter().all(|it| it.1.is_none()));
    }

    #[test]
    fn macro_f1_and_its_interval_are_over_the_same_types() {
        let types = LabelSet::new(["a", "b", "c", "d"]).unwrap();
        let macro_f1 = |outcomes: &[Outcome]| Report::new(outcomes, &types, 4).macro_f1.unwrap();
        let repeated = |pairs: &[((usize, usize), usize)]| -> Vec<Outcome> {
            let copies = |&((a, b), n): &((usize, usize), usize)| vec![outcome(a, b); n];
            pairs.iter().flat_map(copies).collect()
        };
        // One type and two stray answers, as in a file of one type: no resample may do without the strays' type.
        let Estimate { value, low, high } = macro_f1(&repeated(&[((0, 0), 58), ((0, 1), 2)]));
        assert!((value - 116.0 / 118.0).abs() < 1e-9 && high <= 1.0, "{value} {high}");
        assert!(low < value && value < high && low > 0.9, "{low} {value} {high}");
        // A type whose only case is missed stays in every resample: its F1 of 0 caps them all.
        let missed = repeated(&[((0, 0), 30), ((1, 1), 30), ((2, 0), 1)]);
        let Estimate { value, low, high } = macro_f1(&missed);
        assert!(high <= 2.0 / 3.0 + 1e-9 && low < value && value < high, "{low} {value} {high}");
        // Rare types that are right: no resample lacks them, and none is worse.
        let rare = repeated(&[((0, 0), 40), ((1, 1), 1), ((2, 2), 1), ((3, 3), 1)]);
        assert_eq!(macro_f1(&rare), Estimate { value: 1.0, low: 1.0, high: 1.0 });
        let [(_, gain), ..] = differences(&rare, &rare);
        assert_eq!(gain, Some(Estimate { value: 0.0, low: 0.0, high: 0.0 }));
    }

    #[test]
    fn no_cases_give_no_figure() {
        let types = LabelSet::new(["a", "b"]).unwrap();
        let report = Report::new(&[], &types, 4);
        assert!(report.figures().iter().all(|it| it.1.is_none()));
    }
}
