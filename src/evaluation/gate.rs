//! Pure: may a candidate replace production? Fails closed: a figure that is missing is a failed gate.

use serde::Serialize;
use thiserror::Error;

use super::report::Report;
use super::suite::Protection;

/// What one version showed on one file of cases and on the protection suite.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Assessment {
    /// `sha256:…` of the cases.
    pub cases_digest: String,
    /// `sha256:…` of the suite.
    pub suite_digest: String,
    /// How many of the cases the version has learned from.
    pub n_learned: usize,
    /// Quality on the cases.
    pub report: Report,
    /// What became of harsh but legitimate criticism.
    pub protection: Protection,
}

/// How much worse than production a candidate may be, and what it may never be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Margins {
    /// Most loss of F1, each type.
    pub f1: f64,
    /// Most loss of emergency recall.
    pub emergency_recall: f64,
    /// Most gain of the false-accusation rate.
    pub false_accusation: f64,
    /// Greatest upper bound of the false-accusation rate, whatever production does.
    pub max_false_accusation_upper: f64,
    /// Most gain of the share of legitimate criticism that is accused, or given too high a level.
    pub criticism: f64,
    /// Most gain of the calibration error.
    pub ece: f64,
    /// Most loss of the sensitivity level's kappa; none asks for none, for cases without levels.
    pub level_kappa: Option<f64>,
    /// Least macro-F1 of a version with other types than production's, which nothing can be compared with.
    pub min_macro_f1: f64,
}

impl Default for Margins {
    fn default() -> Self {
        Self {
            f1: 0.02,
            emergency_recall: 0.01,
            false_accusation: 0.005,
            max_false_accusation_upper: 0.05,
            criticism: 0.0,
            ece: 0.02,
            level_kappa: Some(0.05),
            min_macro_f1: 0.5,
        }
    }
}

/// One gate and what it found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Gate {
    /// Stable name, such as `f1.problem`.
    pub name: String,
    /// Whether the candidate may pass.
    pub passed: bool,
    /// Production's figure.
    pub production: Option<f64>,
    /// The candidate's figure.
    pub candidate: Option<f64>,
    /// What the candidate's figure must reach or stay below.
    pub limit: Option<f64>,
    /// How far it is beyond the limit; 0 when it passed, none when a figure is missing.
    pub missed_by: Option<f64>,
}

impl Gate {
    /// In words, for people and logs.
    pub fn describe(&self) -> String {
        let show = |it: Option<f64>| it.map_or("missing".into(), |it| format!("{it:.4}"));
        format!(
            "{}: candidate {}, production {}, limit {}, missed by {}",
            self.name,
            show(self.candidate),
            show(self.production),
            show(self.limit),
            show(self.missed_by)
        )
    }
}

/// Why two assessments say nothing about each other.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Incomparable {
    /// Different cases.
    #[error(
        "different_cases: production was assessed on {production}, the candidate on {candidate}; assess both on one file"
    )]
    Cases {
        /// Production's digest.
        production: String,
        /// The candidate's digest.
        candidate: String,
    },
    /// Different suites.
    #[error(
        "different_suite: production was assessed with suite {production}, the candidate with {candidate}; assess both with one binary"
    )]
    Suite {
        /// Production's digest.
        production: String,
        /// The candidate's digest.
        candidate: String,
    },
    /// The cases taught one of the two.
    #[error(
        "trained_on_cases: the {who} has learned from {n} of these cases, so its figures would flatter; give held-out ones"
    )]
    TrainedOn {
        /// `candidate` or `production`.
        who: &'static str,
        /// How many.
        n: usize,
    },
    /// Other types.
    #[error(
        "different_types: production and candidate have different types and cannot be compared; with --other-labels \
         the candidate is judged by itself"
    )]
    Types,
}

/// Every gate, in a fixed order.
///
/// # Errors
/// [`Incomparable`] when the figures are not of the same cases.
pub fn gates(
    production: &Assessment,
    candidate: &Assessment,
    margins: &Margins,
) -> Result<Vec<Gate>, Incomparable> {
    comparable(production, candidate)?;
    if codes(production) != codes(candidate) {
        return Err(Incomparable::Types);
    }
    let (old, new) = (&production.report, &candidate.report);
    let mut gates = Vec::new();
    for (old, new) in old.types.iter().zip(&new.types) {
        // Without cases of a type nothing is known about it.
        let known = |f1: f64| (new.support > 0).then_some(f1);
        let limit = known(old.f1).map(|it| it - margins.f1);
        gates.push(at_least(format!("f1.{}", new.code), known(old.f1), known(new.f1), limit));
    }
    if new.types.iter().any(|it| it.code == "emergency") {
        let value = |it: &Report| it.emergency_recall.map(|it| it.value);
        let limit = value(old).map(|it| it - margins.emergency_recall);
        gates.push(at_least("emergency_recall".into(), value(old), value(new), limit));
    }
    if new.types.iter().any(|it| it.code == "disputed_claim") {
        let value = |it: &Report| it.false_accusation_rate.map(|it| it.value);
        let limit = value(old).map(|it| it + margins.false_accusation);
        gates.push(at_most("false_accusation_rate".into(), value(old), value(new), limit));
        gates.push(false_accusation_upper(Some(old), new, margins));
        type Share = fn(&Protection) -> Option<f64>;
        let shares: [(&str, Share); 2] = [
            ("criticism_accused", Protection::accused_share),
            ("criticism_level", Protection::raised_share),
        ];
        for (name, share) in shares {
            let (old, new) = (share(&production.protection), share(&candidate.protection));
            gates.push(at_most(name.into(), old, new, old.map(|it| it + margins.criticism)));
        }
    }
    if let Some(margin) = margins.level_kappa {
        let value = |it: &Report| it.level_kappa.map(|it| it.value);
        let limit = value(old).map(|it| it - margin);
        gates.push(at_least("level_kappa".into(), value(old), value(new), limit));
    }
    let value = |it: &Report| it.type_ece.map(|it| it.value);
    let limit = value(old).map(|it| it + margins.ece);
    gates.push(at_most("type_ece".into(), value(old), value(new), limit));
    Ok(gates)
}

/// The gates of a candidate with other types than production's: what it must reach by itself.
///
/// # Errors
/// [`Incomparable::TrainedOn`].
pub fn gates_alone(candidate: &Assessment, margins: &Margins) -> Result<Vec<Gate>, Incomparable> {
    not_learned("candidate", candidate)?;
    let new = &candidate.report;
    let macro_f1 = new.macro_f1.map(|it| it.value);
    let mut gates = vec![at_least("macro_f1".into(), None, macro_f1, Some(margins.min_macro_f1))];
    if new.types.iter().any(|it| it.code == "disputed_claim") {
        gates.push(false_accusation_upper(None, new, margins));
    }
    Ok(gates)
}

fn false_accusation_upper(old: Option<&Report>, new: &Report, margins: &Margins) -> Gate {
    let old = old.and_then(|it| it.false_accusation_upper);
    let limit = Some(margins.max_false_accusation_upper);
    at_most("false_accusation_upper".into(), old, new.false_accusation_upper, limit)
}

fn codes(it: &Assessment) -> Vec<&str> {
    it.report.types.iter().map(|it| it.code.as_str()).collect()
}

fn not_learned(who: &'static str, it: &Assessment) -> Result<(), Incomparable> {
    match it.n_learned {
        0 => Ok(()),
        n => Err(Incomparable::TrainedOn { who, n }),
    }
}

fn comparable(production: &Assessment, candidate: &Assessment) -> Result<(), Incomparable> {
    let pair = |of: fn(&Assessment) -> &String| (of(production).clone(), of(candidate).clone());
    let (a, b) = pair(|it| &it.cases_digest);
    if a != b {
        return Err(Incomparable::Cases { production: a, candidate: b });
    }
    let (a, b) = pair(|it| &it.suite_digest);
    if a != b {
        return Err(Incomparable::Suite { production: a, candidate: b });
    }
    not_learned("candidate", candidate)?;
    not_learned("production", production)
}

fn at_least(
    name: String,
    production: Option<f64>,
    candidate: Option<f64>,
    limit: Option<f64>,
) -> Gate {
    let gap = candidate.zip(limit).map(|(it, limit)| limit - it);
    gate(name, production, candidate, limit, gap)
}

fn at_most(
    name: String,
    production: Option<f64>,
    candidate: Option<f64>,
    limit: Option<f64>,
) -> Gate {
    let gap = candidate.zip(limit).map(|(it, limit)| it - limit);
    gate(name, production, candidate, limit, gap)
}

fn gate(
    name: String,
    production: Option<f64>,
    candidate: Option<f64>,
    limit: Option<f64>,
    gap: Option<f64>,
) -> Gate {
    // Figures of the same counts may differ in the last bit.
    const ROUNDING: f64 = 1e-9;
    let passed = gap.is_some_and(|it| it <= ROUNDING);
    let missed_by = gap.map(|it| if passed { 0.0 } else { it });
    Gate { name, passed, production, candidate, limit, missed_by }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::label::LabelSet;
    use crate::evaluation::report::Outcome;

    const CODES: [&str; 6] =
        ["problem", "emergency", "sensitive", "suggestion", "disputed_claim", "none"];

    /// 100 cases of each type, all right but `wrong`: (type, predicted, how many).
    fn assessment(wrong: &[(usize, usize, usize)], n_accused: usize) -> Assessment {
        let types = LabelSet::new(CODES).unwrap();
        let mut outcomes = Vec::new();
        for label in 0..6 {
            for idx in 0..100 {
                let mut before = 0;
                let mut predicted = label;
                for &(_, to, n) in wrong.iter().filter(|it| it.0 == label) {
                    if (before..before + n).contains(&idx) {
                        predicted = to;
                    }
                    before += n;
                }
                outcomes.push(Outcome {
                    label,
                    predicted,
                    confidence: 1.0,
                    set: None,
                    levels: Some((label % 4, label % 4)),
                });
            }
        }
        Assessment {
            cases_digest: "sha256:c".into(),
            suite_digest: "sha256:s".into(),
            n_learned: 0,
            report: Report::new(&outcomes, &types, 4),
            protection: Protection {
                n: 50,
                accused: (0..n_accused).map(|it| it.to_string()).collect(),
                raised: vec![],
            },
        }
    }

    fn failed(production: &Assessment, candidate: &Assessment) -> Vec<String> {
        let gates = gates(production, candidate, &Margins::default()).unwrap();
        gates.into_iter().filter(|it| !it.passed).map(|it| it.name).collect()
    }

    #[test]
    fn each_gate_closes_for_its_own_reason() {
        let good = assessment(&[(0, 5, 4)], 1);
        let cases: [(&str, Assessment, &[&str]); 6] = [
            ("the same", assessment(&[(0, 5, 4)], 1), &[]),
            ("better", assessment(&[], 0), &[]),
            (
                "one type lost",
                assessment(&[(0, 5, 4), (3, 2, 9)], 1),
                &["f1.sensitive", "f1.suggestion"],
            ),
            ("emergencies missed", assessment(&[(0, 5, 4), (1, 0, 2)], 1), &["emergency_recall"]),
            ("complainants accused", assessment(&[(0, 4, 3)], 1), &["false_accusation_rate"]),
            ("critics accused", assessment(&[(0, 5, 4)], 2), &["criticism_accused"]),
        ];
        for (name, candidate, expected) in cases {
            assert_eq!(failed(&good, &candidate), expected, "{name}");
        }
        let gates = gates(&good, &assessment(&[(0, 5, 4)], 2), &Margins::default()).unwrap();
        let gate = gates.iter().find(|it| !it.passed).unwrap();
        assert!((gate.missed_by.unwrap() - 0.02).abs() < 1e-9);
        assert!(gate.describe().contains("missed by 0.0200"), "{}", gate.describe());
    }

    #[test]
    fn a_bound_counts_whatever_production_does() {
        let bad = assessment(&[(0, 4, 30)], 1);
        assert_eq!(failed(&bad, &bad), ["false_accusation_upper"]);
    }

    #[test]
    fn other_types_are_judged_by_themselves() {
        let mut other = assessment(&[(0, 5, 4)], 1);
        for (idx, it) in other.report.types.iter_mut().enumerate() {
            it.code = idx.to_string();
        }
        let refused = gates(&assessment(&[], 0), &other, &Margins::default()).unwrap_err();
        assert_eq!(refused, Incomparable::Types);
        let alone = |it: &Assessment, min_macro_f1| {
            gates_alone(it, &Margins { min_macro_f1, ..Margins::default() }).unwrap()
        };
        assert!(alone(&other, 0.9).iter().all(|it| it.passed));
        assert!(!alone(&other, 0.999)[0].passed);
        // Types that accuse keep the bound.
        let accusing = assessment(&[(0, 4, 30)], 1);
        assert!(alone(&accusing, 0.5).iter().any(|it| !it.passed));
        other.n_learned = 1;
        assert!(gates_alone(&other, &Margins::default()).is_err());
    }

    #[test]
    fn what_is_not_known_fails() {
        let good = assessment(&[], 0);
        let mut blind = good.clone();
        blind.report.types[2].support = 0;
        blind.report.type_ece = None;
        blind.report.level_kappa = None;
        blind.protection.n = 0;
        let expected =
            ["f1.sensitive", "criticism_accused", "criticism_level", "level_kappa", "type_ece"];
        assert_eq!(failed(&good, &blind), expected);
    }

    #[test]
    fn figures_of_other_cases_are_not_compared() {
        let good = assessment(&[], 0);
        let with = |change: fn(&mut Assessment)| {
            let mut other = good.clone();
            change(&mut other);
            gates(&good, &other, &Margins::default()).unwrap_err().to_string()
        };
        type Change = fn(&mut Assessment);
        let cases: [(Change, &str); 4] = [
            (|it| it.cases_digest = "x".into(), "different_cases"),
            (|it| it.suite_digest = "x".into(), "different_suite"),
            (|it| it.n_learned = 3, "trained_on_cases: the candidate has learned from 3"),
            (|it| it.report.types[0].code = "x".into(), "different_types"),
        ];
        for (change, expected) in cases {
            assert!(with(change).starts_with(expected), "{expected}");
        }
    }
}
