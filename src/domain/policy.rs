//! Pure decision: what the prediction and the facts about the input mean for the reader's desk.
//!
//! There are three outcomes and none of them acts: a machine result is a proposal, a person decides.

use super::label::LabelSet;
use super::prediction::Prediction;

/// Thresholds of the review policy (from `taxonomy.toml`).
#[derive(Debug, Clone, PartialEq)]
pub struct ReviewPolicy {
    /// Below this probability of the top type, a person looks first.
    pub min_confidence: f32,
    /// From this sensitivity level on, a person looks first.
    pub review_level: usize,
    /// Codes of types that a person always looks at first.
    pub always_review: Vec<String>,
    /// Such a type is proposed only from this probability on; below it the next type is, and a person
    /// still looks first.
    pub min_accusation: f32,
    /// Fewer visible characters than this is too short to judge.
    pub min_chars: usize,
    /// A smaller share of Chinese characters than this is not Chinese text.
    pub min_chinese_share: f32,
    /// A larger share of words outside the vocabulary than this is off the model's domain.
    pub max_unknown_share: f32,
    /// Below this probability a ground is not shown.
    pub min_ground_probability: f32,
}

/// What the text steps found out about an input, as far as a decision needs it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct InputFacts {
    /// Visible characters after normalization and redaction.
    pub visible_chars: usize,
    /// Share of Chinese characters among letters of any script, `0.0..=1.0`; 0 when there are none.
    pub chinese_share: f32,
    /// Share of tokens the vocabulary does not know, `0.0..=1.0`.
    pub unknown_share: f32,
}

/// What is proposed to be done with an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Put it on the desk of the proposed type.
    Route,
    /// A person must look first.
    Review,
    /// The model has nothing to say about this input; a person must look.
    Abstain,
}

impl Verdict {
    /// Stable code.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Route => "route",
            Self::Review => "review",
            Self::Abstain => "abstain",
        }
    }
}

/// Why a person must look first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReviewReason {
    /// More than one type cannot be ruled out.
    PredictionSet,
    /// The top type's probability is low.
    LowConfidence,
    /// The proposed type always needs a person: nothing is called disputed by a machine alone.
    DisputedClaim,
    /// The sensitivity level is high.
    HighSensitivity,
    /// The text is not Chinese.
    NotChinese,
    /// The text is too short to judge.
    TooShort,
    /// Too many words are unknown to the model.
    OffDomain,
}

impl ReviewReason {
    /// Stable code.
    pub const fn code(self) -> &'static str {
        match self {
            Self::PredictionSet => "prediction_set",
            Self::LowConfidence => "low_confidence",
            Self::DisputedClaim => "disputed_claim",
            Self::HighSensitivity => "high_sensitivity",
            Self::NotChinese => "not_chinese",
            Self::TooShort => "too_short",
            Self::OffDomain => "off_domain",
        }
    }
}

/// Verdict with its reasons; `reasons` is empty exactly when the verdict is [`Verdict::Route`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// What is proposed.
    pub verdict: Verdict,
    /// Why a person must look first, gravest kind of doubt first.
    pub reasons: Vec<ReviewReason>,
}

/// Column of the type to propose: the most probable one, unless it is one that a person always looks at
/// and its probability is below [`ReviewPolicy::min_accusation`].
pub fn propose(policy: &ReviewPolicy, prediction: &Prediction, types: &LabelSet) -> usize {
    let top = prediction.type_idx();
    let is_guarded = |idx: usize| policy.always_review.iter().any(|it| it == types.code(idx));
    if !is_guarded(top) || prediction.confidence().get() >= policy.min_accusation {
        return top;
    }
    let p = |idx: usize| prediction.type_probabilities[idx].get();
    let others = (0..prediction.type_probabilities.len()).filter(|&it| !is_guarded(it));
    others.max_by(|&a, &b| p(a).total_cmp(&p(b)).then(b.cmp(&a))).unwrap_or(top)
}

/// The decision for one item whose types are columns of `types`.
pub fn decide(
    policy: &ReviewPolicy,
    facts: InputFacts,
    prediction: &Prediction,
    types: &LabelSet,
) -> Decision {
    // The most probable type, proposed or not: what may be a disputed claim goes to a person.
    let type_code = types.code(prediction.type_idx());
    let mut reasons = Vec::new();
    // First what makes the model's word worthless, then what makes it doubtful.
    if facts.chinese_share < policy.min_chinese_share {
        reasons.push(ReviewReason::NotChinese);
    } else if facts.visible_chars < policy.min_chars {
        reasons.push(ReviewReason::TooShort);
    } else if facts.unknown_share > policy.max_unknown_share {
        reasons.push(ReviewReason::OffDomain);
    }
    let abstain = !reasons.is_empty();
    if policy.always_review.iter().any(|it| it == type_code) {
        reasons.push(ReviewReason::DisputedClaim);
    }
    if prediction.level() >= policy.review_level {
        reasons.push(ReviewReason::HighSensitivity);
    }
    if prediction.confidence().get() < policy.min_confidence {
        reasons.push(ReviewReason::LowConfidence);
    }
    if prediction.prediction_set.len() > 1 {
        reasons.push(ReviewReason::PredictionSet);
    }
    let verdict = match (abstain, reasons.is_empty()) {
        (true, _) => Verdict::Abstain,
        (false, true) => Verdict::Route,
        (false, false) => Verdict::Review,
    };
    Decision { verdict, reasons }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::prediction::Probability;

    fn prediction(top: f32, set: &[usize], levels: [f32; 4]) -> Prediction {
        let p = |v: f32| Probability::new(v).unwrap();
        Prediction {
            type_logits: vec![0.0; 2],
            type_probabilities: vec![p(top), p(1.0 - top)],
            prediction_set: set.to_vec(),
            level_probabilities: levels.map(p).to_vec(),
            ground_probabilities: vec![],
        }
    }

    fn policy() -> ReviewPolicy {
        ReviewPolicy {
            min_confidence: 0.6,
            review_level: 3,
            always_review: vec!["disputed_claim".into()],
            min_accusation: 0.0,
            min_chars: 4,
            min_chinese_share: 0.3,
            max_unknown_share: 0.3,
            min_ground_probability: 0.5,
        }
    }

    #[test]
    fn an_unsure_accusation_is_not_proposed_and_still_goes_to_a_person() {
        let facts = InputFacts { visible_chars: 20, chinese_share: 1.0, unknown_share: 0.0 };
        let types = LabelSet::new(["disputed_claim", "problem"]).unwrap();
        let strict = ReviewPolicy { min_accusation: 0.8, min_confidence: 0.0, ..policy() };
        for (top, expected) in [(0.9, 0), (0.8, 0), (0.7, 1), (0.4, 1)] {
            let it = prediction(top, &[0], [1.0, 0.0, 0.0, 0.0]);
            assert_eq!(propose(&strict, &it, &types), expected, "{top}");
            let accused = it.type_idx() == 0;
            let decision = decide(&strict, facts, &it, &types);
            assert_eq!(decision.reasons.contains(&ReviewReason::DisputedClaim), accused, "{top}");
        }
        assert_eq!(propose(&policy(), &prediction(0.6, &[0], [1.0, 0.0, 0.0, 0.0]), &types), 0);
    }

    #[test]
    fn decide_names_every_reason() {
        use ReviewReason::*;
        let good = InputFacts { visible_chars: 20, chinese_share: 1.0, unknown_share: 0.0 };
        let calm = [1.0, 0.0, 0.0, 0.0];
        let grave = [0.0, 0.0, 0.0, 1.0];
        type Case =
            (&'static str, InputFacts, Prediction, &'static str, Verdict, &'static [ReviewReason]);
        let cases: [Case; 7] = [
            ("sure", good, prediction(0.9, &[0], calm), "problem", Verdict::Route, &[]),
            (
                "unsure",
                good,
                prediction(0.55, &[0], calm),
                "problem",
                Verdict::Review,
                &[LowConfidence],
            ),
            (
                "two types",
                good,
                prediction(0.7, &[0, 1], calm),
                "problem",
                Verdict::Review,
                &[PredictionSet],
            ),
            (
                "grave",
                good,
                prediction(0.9, &[0], grave),
                "problem",
                Verdict::Review,
                &[HighSensitivity],
            ),
            (
                "a sure disputed claim still needs a person",
                good,
                prediction(1.0, &[0], calm),
                "disputed_claim",
                Verdict::Review,
                &[DisputedClaim],
            ),
            (
                "english",
                InputFacts { chinese_share: 0.0, ..good },
                prediction(0.9, &[0], calm),
                "none",
                Verdict::Abstain,
                &[NotChinese],
            ),
            (
                "one character",
                InputFacts { visible_chars: 1, ..good },
                prediction(0.9, &[0], calm),
                "none",
                Verdict::Abstain,
                &[TooShort],
            ),
        ];
        for (name, facts, prediction, code, verdict, reasons) in cases {
            let types = LabelSet::new([code, "other"]).unwrap();
            let decision = decide(&policy(), facts, &prediction, &types);
            assert_eq!(
                (decision.verdict, decision.reasons.as_slice()),
                (verdict, reasons),
                "{name}"
            );
        }
    }
}
