//! What is said about a model beyond its top types: are its probabilities true, where is it weak, and how
//! much work does the review policy leave to people.

use std::collections::BTreeMap;

use serde::Serialize;

use super::metrics::{self, Bin, LabelScores};
use super::report::{N_BINS, Outcome};

/// Slices, and types within a slice, with fewer cases say nothing.
const MIN_SLICE: usize = 5;
/// Points of a curve.
const N_POINTS: usize = 40;

/// What one prediction said beyond its top type.
#[derive(Debug, Clone, PartialEq)]
pub struct Detail {
    /// Probability of each type, in column order.
    pub probabilities: Vec<f32>,
    /// Sensitivity score, 0 to 1.
    pub score: f32,
    /// Probability and truth of each ground, in column order, when grounds were labelled.
    pub grounds: Option<Vec<(f32, bool)>>,
    /// The policy asks for a person, whatever the confidence.
    pub is_held: bool,
    /// The policy asks for a person.
    pub is_reviewed: bool,
    /// What the case belongs to: (kind of slice, its value).
    pub slices: Vec<(&'static str, String)>,
}

/// Everything about probabilities, slices and review.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Details {
    /// Brier score of the types: 0 is best, 2 is worst.
    pub brier: Option<f64>,
    /// Confidence against accuracy.
    pub reliability: Vec<Bin>,
    /// Each ground.
    pub grounds: Vec<GroundScores>,
    /// What is routed without a person, and what is wrong with it, at falling confidence.
    pub risk_coverage: Vec<Risk>,
    /// The policy in force.
    pub policy: Risk,
    /// Parts of the cases.
    pub slices: Vec<Slice>,
}

/// How well one ground is found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GroundScores {
    /// Its code.
    pub code: String,
    /// Cases that have it.
    pub support: usize,
    /// Average precision; a guesser's is the share of cases that have it.
    pub average_precision: Option<f64>,
}

/// A point of the risk-coverage curve.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Risk {
    /// Least confidence of what is routed.
    pub min_confidence: f64,
    /// Share of all cases routed without a person.
    pub coverage: f64,
    /// Share of the routed whose type is wrong; none when nothing is routed.
    pub risk: Option<f64>,
}

/// Figures on a part of the cases.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Slice {
    /// Kind: `source`, `length` or `register`.
    pub kind: &'static str,
    /// Which.
    pub value: String,
    /// Cases.
    pub n: usize,
    /// Share of types predicted right.
    pub accuracy: f64,
    /// Mean F1 over the types with cases enough here; none when no type has.
    pub macro_f1: Option<f64>,
}

impl Details {
    /// The details of `cases`, whose types are columns below `n_types`; `grounds` are the grounds' codes.
    pub fn new<'a>(
        cases: &[(Outcome, Detail)],
        n_types: usize,
        grounds: impl Iterator<Item = &'a str>,
    ) -> Self {
        let scored: Vec<(f32, bool)> =
            cases.iter().map(|(it, _)| (it.confidence, it.label == it.predicted)).collect();
        let by_type: Vec<(&[f32], usize)> =
            cases.iter().map(|(it, detail)| (detail.probabilities.as_slice(), it.label)).collect();
        let grounds = grounds
            .enumerate()
            .map(|(idx, code)| {
                let scored: Vec<(f32, bool)> = cases
                    .iter()
                    .filter_map(|(_, it)| it.grounds.as_ref()?.get(idx).copied())
                    .collect();
                GroundScores {
                    code: code.to_owned(),
                    support: scored.iter().filter(|it| it.1).count(),
                    average_precision: metrics::average_precision(&scored),
                }
            })
            .collect();
        Self {
            brier: metrics::brier(&by_type),
            reliability: metrics::reliability(&scored, N_BINS),
            grounds,
            risk_coverage: risk_coverage(cases),
            policy: routed(cases, |_, detail| !detail.is_reviewed),
            slices: slices(cases, n_types),
        }
    }
}

/// The case texts' lengths, in parts a reader knows: a headline, a post, a letter, a long letter.
pub fn length_slice(characters: usize) -> &'static str {
    match characters {
        0..=14 => "1–14",
        15..=60 => "15–60",
        61..=200 => "61–200",
        _ => "201+",
    }
}

fn risk_coverage(cases: &[(Outcome, Detail)]) -> Vec<Risk> {
    let mut confidences: Vec<f32> =
        cases.iter().filter(|it| !it.1.is_held).map(|it| it.0.confidence).collect();
    confidences.sort_by(|a, b| b.total_cmp(a));
    let mut last = None;
    (1..=N_POINTS)
        .filter_map(|point| confidences.get((confidences.len() * point / N_POINTS).max(1) - 1))
        .filter(|it| last.replace(**it) != Some(**it))
        .map(|&least| {
            let mut risk = routed(cases, |it, detail| !detail.is_held && it.confidence >= least);
            risk.min_confidence = f64::from(least);
            risk
        })
        .collect()
}

fn routed(cases: &[(Outcome, Detail)], is_routed: impl Fn(&Outcome, &Detail) -> bool) -> Risk {
    let routed: Vec<&Outcome> =
        cases.iter().filter(|(it, detail)| is_routed(it, detail)).map(|it| &it.0).collect();
    let n_wrong = routed.iter().filter(|it| it.label != it.predicted).count();
    let least = routed.iter().map(|it| it.confidence).fold(1.0, f32::min);
    Risk {
        min_confidence: f64::from(least),
        coverage: routed.len() as f64 / cases.len().max(1) as f64,
        risk: (!routed.is_empty()).then(|| n_wrong as f64 / routed.len() as f64),
    }
}

fn slices(cases: &[(Outcome, Detail)], n_types: usize) -> Vec<Slice> {
    let mut members: BTreeMap<(&'static str, &str), Vec<&Outcome>> = BTreeMap::new();
    for (outcome, detail) in cases {
        for (kind, value) in &detail.slices {
            members.entry((kind, value)).or_default().push(outcome);
        }
    }
    let slice = |((kind, value), outcomes): ((&'static str, &str), Vec<&Outcome>)| {
        let (truth, predicted): (Vec<_>, Vec<_>) =
            outcomes.iter().map(|it| (it.label, it.predicted)).unzip();
        Some(Slice {
            kind,
            value: value.to_owned(),
            n: outcomes.len(),
            accuracy: metrics::accuracy(&truth, &predicted)?,
            macro_f1: mean_f1(&metrics::label_scores(&truth, &predicted, n_types)),
        })
    };
    let mut kept: Vec<_> = members.into_iter().filter(|it| it.1.len() >= MIN_SLICE).collect();
    // By the number they begin with, short texts first; names have none and stay in their order.
    kept.sort_by_key(|((kind, value), _)| {
        let n_digits = value.bytes().take_while(u8::is_ascii_digit).count();
        (*kind, value[..n_digits].parse::<u64>().unwrap_or(u64::MAX))
    });
    kept.into_iter().filter_map(slice).collect()
}

/// A type with one case in a slice would weigh as much as one with hundreds.
fn mean_f1(scores: &[LabelScores]) -> Option<f64> {
    metrics::mean(scores.iter().filter(|it| it.support >= MIN_SLICE).map(|it| it.f1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(confidence: f32, is_right: bool, is_held: bool, source: &str) -> (Outcome, Detail) {
        let outcome = Outcome {
            label: 0,
            predicted: usize::from(!is_right),
            confidence,
            set: None,
            levels: None,
        };
        let detail = Detail {
            probabilities: vec![confidence, 1.0 - confidence],
            score: 0.0,
            grounds: Some(vec![(confidence, is_right)]),
            is_held,
            is_reviewed: is_held || confidence < 0.6,
            slices: vec![("source", source.to_owned())],
        };
        (outcome, detail)
    }

    #[test]
    fn details_equal_hand_counts() {
        let mut cases = Vec::new();
        for _ in 0..5 {
            cases.push(case(0.9, true, false, "a"));
            cases.push(case(0.5, false, false, "b"));
            cases.push(case(0.95, false, true, "b"));
        }
        cases.push(case(0.8, true, false, "rare"));
        let details = Details::new(&cases, 2, ["life"].into_iter());
        // What always goes to a person is never routed, however sure the model is.
        assert!((details.policy.coverage - 6.0 / 16.0).abs() < 1e-9);
        assert_eq!(details.policy.risk, Some(0.0));
        let last = details.risk_coverage.last().unwrap();
        assert!((last.coverage - 11.0 / 16.0).abs() < 1e-9);
        assert!((last.risk.unwrap() - 5.0 / 11.0).abs() < 1e-9);
        assert!(details.risk_coverage.is_sorted_by(|a, b| a.coverage < b.coverage));
        let names: Vec<_> = details.slices.iter().map(|it| (it.value.as_str(), it.n)).collect();
        assert_eq!(names, [("a", 5), ("b", 10)]);
        assert_eq!((details.slices[0].accuracy, details.slices[1].accuracy), (1.0, 0.0));
        assert_eq!(details.grounds[0].support, 6);
        assert!(details.grounds[0].average_precision.unwrap() < 1.0);
        assert_eq!(details.reliability.iter().map(|it| it.n).sum::<usize>(), 16);
    }

    #[test]
    fn a_type_with_few_cases_has_no_say_in_its_slice() {
        let truth = [0, 0, 0, 0, 0, 1];
        let of = |predicted: &[usize]| mean_f1(&metrics::label_scores(&truth, predicted, 3));
        assert_eq!(of(&[0, 0, 0, 0, 0, 2]), Some(1.0));
        assert_eq!(mean_f1(&metrics::label_scores(&truth[4..], &[0, 1], 3)), None);
    }

    #[test]
    fn no_cases_give_no_details() {
        let details = Details::new(&[], 2, ["life"].into_iter());
        assert_eq!((details.brier, details.policy.risk), (None, None));
        assert!(details.slices.is_empty() && details.risk_coverage.is_empty());
    }
}
