//! The one JSON shape of a classified item, shared by `http`, `classify` and `score`.
//!
//! Knows no transport: no status codes, no files, no errors.

use serde::ser::{Serialize, SerializeMap, Serializer};
use utoipa::openapi::schema::{AdditionalProperties, ObjectBuilder, Schema, Type};
use utoipa::openapi::{RefOr, SchemaFormat};
use utoipa::{PartialSchema, ToSchema};

use crate::domain::label::LabelSet;
use crate::domain::policy::Verdict;
use crate::domain::prediction::Prediction;
use crate::domain::taxonomy;
use crate::evidence;
use crate::pipeline::{InputReport, Pipeline, Probe};

/// One classified item: a proposal, not a decision.
#[derive(Debug, Clone, PartialEq, serde::Serialize, ToSchema)]
pub struct ClassifiedItem<'a> {
    /// The caller's name for the item.
    pub id: &'a str,
    /// Always `ok`.
    pub status: &'static str,
    /// The most probable type.
    #[serde(rename = "type")]
    pub incident_type: TopType<'a>,
    /// Calibrated probability of every type, by code; they sum to 1 up to rounding.
    pub probabilities: ByCode<'a>,
    /// Codes of the types that cannot be ruled out, most probable first; never empty.
    pub prediction_set: Vec<&'a str>,
    /// How much care a public answer needs.
    pub sensitivity: Sensitivity<'a>,
    /// `route`, `review` or `abstain`.
    pub decision: &'static str,
    /// Whether a person must look first.
    pub review: Review,
    /// What the plan says to do about the most probable type.
    pub handling: Handling<'a>,
    /// What became of the text on its way to the model.
    pub input: Input,
    /// Words that carried the type; only when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evidence: Option<Evidence<'a>>,
    /// Uncalibrated scores of the types, by code; only when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logits: Option<ByCode<'a>>,
}

/// Words that carried the type, or why they are withheld.
#[derive(Debug, Clone, PartialEq, serde::Serialize, ToSchema)]
pub struct Evidence<'a> {
    /// `leave_one_word_out`, or `withheld`.
    pub method: &'static str,
    /// Why it is withheld: `too_short`, `too_long`, `poor_fidelity` or `overloaded`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// How far the words can be trusted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fidelity: Option<Fidelity>,
    /// The words, greatest effect first.
    pub words: Vec<EvidenceWord<'a>>,
}

/// The test of the words: what the type's probability loses when they go.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, ToSchema)]
pub struct Fidelity {
    /// Without the three top words.
    pub top: f32,
    /// Without three random words, on average.
    pub random: f32,
}

impl<'a> Evidence<'a> {
    /// The reply's form of `evidence` about the words of `probe`.
    pub fn new(evidence: &evidence::Evidence, probe: &'a Probe) -> Self {
        match evidence {
            evidence::Evidence::Withheld(reason) => Self {
                method: "withheld",
                reason: Some(reason.code()),
                fidelity: None,
                words: Vec::new(),
            },
            evidence::Evidence::Words { words, fidelity } => Self {
                method: "leave_one_word_out",
                reason: None,
                fidelity: Some(Fidelity {
                    top: round(fidelity.top),
                    random: round(fidelity.random),
                }),
                words: words
                    .iter()
                    .map(|&(idx, effect)| {
                        let (text, span) = probe.word(idx);
                        EvidenceWord {
                            text,
                            begin: span.begin,
                            end: span.end,
                            effect: round(effect),
                        }
                    })
                    .collect(),
            },
        }
    }
}

/// A word and its effect on the probability of the type.
#[derive(Debug, Clone, PartialEq, serde::Serialize, ToSchema)]
pub struct EvidenceWord<'a> {
    /// The word as the model saw it, normalized.
    pub text: &'a str,
    /// First character inside.
    pub begin: usize,
    /// First character after.
    pub end: usize,
    /// What the type's probability loses without it.
    pub effect: f32,
}

/// A type with its probability.
#[derive(Debug, Clone, PartialEq, serde::Serialize, ToSchema)]
pub struct TopType<'a> {
    /// Stable code.
    pub code: &'a str,
    /// Chinese name.
    pub zh: &'a str,
    /// Calibrated probability.
    pub probability: f32,
}

/// How much care a public answer needs, and why.
#[derive(Debug, Clone, PartialEq, serde::Serialize, ToSchema)]
pub struct Sensitivity<'a> {
    /// Expected level divided by the highest level: 0 routine, 1 gravest.
    pub score: f32,
    /// The level nearest to the expected level, from 0.
    pub level: usize,
    /// Chinese name of the level.
    pub zh: &'a str,
    /// Grounds for the level, most probable first; empty at level 0.
    pub grounds: Vec<Ground<'a>>,
}

/// A ground for a sensitivity level.
#[derive(Debug, Clone, PartialEq, serde::Serialize, ToSchema)]
pub struct Ground<'a> {
    /// Stable code.
    pub code: &'a str,
    /// Calibrated probability.
    pub probability: f32,
}

/// Whether a person must look first.
#[derive(Debug, Clone, PartialEq, serde::Serialize, ToSchema)]
pub struct Review {
    /// True unless the decision is `route`.
    pub required: bool,
    /// Codes of the reasons, gravest kind of doubt first.
    pub reasons: Vec<&'static str>,
}

/// What the plan says to do.
#[derive(Debug, Clone, PartialEq, serde::Serialize, ToSchema)]
pub struct Handling<'a> {
    /// How the type is answered, in one Chinese sentence.
    pub principle: &'a str,
    /// What to do, in order, in Chinese.
    pub steps: &'a [String],
    /// Response clocks; advice.
    pub due: Due,
}

/// Response clocks in hours; advice. A clock the plan does not set is absent.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, ToSchema)]
pub struct Due {
    /// Until somebody answers the first time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_response_hours: Option<u32>,
    /// Until the outcome is reported back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome_hours: Option<u32>,
}

impl From<taxonomy::Due> for Due {
    fn from(due: taxonomy::Due) -> Self {
        Self { first_response_hours: due.first_response_hours, outcome_hours: due.outcome_hours }
    }
}

/// What became of the text on its way to the model.
#[derive(Debug, Clone, PartialEq, serde::Serialize, ToSchema)]
pub struct Input {
    /// Characters submitted.
    pub characters: usize,
    /// Words after segmentation.
    pub words: usize,
    /// Overlapping chunks the text was cut into.
    pub chunks: usize,
    /// Always false: long texts become chunks, nothing is cut off.
    pub truncated: bool,
    /// Kinds of normalization that changed something.
    pub normalizations: Vec<&'static str>,
    /// Personal data masked before the model.
    pub redactions: Vec<RedactionSpan>,
}

/// One masked place, in characters of the submitted text, half-open.
#[derive(Debug, Clone, PartialEq, serde::Serialize, ToSchema)]
pub struct RedactionSpan {
    /// What was masked.
    pub kind: &'static str,
    /// First character inside.
    pub begin: usize,
    /// First character after.
    pub end: usize,
}

/// Numbers by label code, written as one JSON object in column order.
#[derive(Debug, Clone, PartialEq)]
pub struct ByCode<'a>(pub Vec<(&'a str, f32)>);

impl<'a> ByCode<'a> {
    fn new(labels: &'a LabelSet, values: impl Iterator<Item = f32>) -> Self {
        Self(labels.codes().zip(values.map(round)).collect())
    }
}

impl Serialize for ByCode<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (code, value) in &self.0 {
            map.serialize_entry(code, value)?;
        }
        map.end()
    }
}

impl ToSchema for ByCode<'_> {
    fn name() -> std::borrow::Cow<'static, str> {
        "NumbersByCode".into()
    }
}

impl PartialSchema for ByCode<'_> {
    fn schema() -> RefOr<Schema> {
        let number = ObjectBuilder::new()
            .schema_type(Type::Number)
            .format(Some(SchemaFormat::KnownFormat(utoipa::openapi::KnownFormat::Float)));
        ObjectBuilder::new()
            .description(Some("Numbers by label code, in the model's column order."))
            .additional_properties(Some(AdditionalProperties::<Schema>::RefOr(number.into())))
            .into()
    }
}

/// The reply for one item, its evidence still to be added. `report` and `prediction` come from this `pipeline`.
pub fn reply<'a>(
    pipeline: &'a Pipeline,
    id: &'a str,
    report: &InputReport,
    prediction: &Prediction,
    include_logits: bool,
) -> ClassifiedItem<'a> {
    let types = pipeline.type_labels();
    let taxonomy = pipeline.taxonomy();
    let type_idx = pipeline.propose(prediction);
    let code = types.code(type_idx);
    let incident_type = taxonomy.incident_type(code);
    let decision = pipeline.decide(report, prediction);
    let level = prediction.level();
    ClassifiedItem {
        id,
        status: "ok",
        incident_type: TopType {
            code,
            zh: incident_type.map_or(code, |it| it.zh.as_str()),
            probability: round(prediction.type_probabilities[type_idx].get()),
        },
        probabilities: ByCode::new(types, prediction.type_probabilities.iter().map(|it| it.get())),
        prediction_set: prediction.prediction_set.iter().map(|&idx| types.code(idx)).collect(),
        sensitivity: Sensitivity {
            score: round(prediction.sensitivity_score()),
            level,
            zh: taxonomy.levels.get(level).map_or("", |it| it.zh.as_str()),
            grounds: if level == 0 { Vec::new() } else { grounds(pipeline, prediction) },
        },
        decision: decision.verdict.code(),
        review: Review {
            required: decision.verdict != Verdict::Route,
            reasons: decision.reasons.iter().map(|it| it.code()).collect(),
        },
        handling: Handling {
            principle: incident_type.map_or("", |it| it.principle.as_str()),
            steps: incident_type.map_or(&[], |it| it.steps.as_slice()),
            due: incident_type.map(|it| it.due).unwrap_or_default().into(),
        },
        input: Input {
            characters: report.characters,
            words: report.words,
            chunks: report.chunks,
            truncated: false,
            normalizations: report.normalizations.iter().map(|it| it.code()).collect(),
            redactions: report
                .redactions
                .iter()
                .map(|it| RedactionSpan {
                    kind: it.kind.code(),
                    begin: it.span.begin,
                    end: it.span.end,
                })
                .collect(),
        },
        evidence: None,
        logits: include_logits.then(|| ByCode::new(types, prediction.type_logits.iter().copied())),
    }
}

fn grounds<'a>(pipeline: &'a Pipeline, prediction: &Prediction) -> Vec<Ground<'a>> {
    let min_probability = pipeline.taxonomy().policy.min_ground_probability;
    let mut grounds: Vec<Ground<'a>> = pipeline
        .ground_labels()
        .codes()
        .zip(&prediction.ground_probabilities)
        .filter(|(_, probability)| probability.get() >= min_probability)
        .map(|(code, probability)| Ground { code, probability: round(probability.get()) })
        .collect();
    grounds.sort_by(|a, b| b.probability.total_cmp(&a.probability));
    grounds
}

/// `value` with four decimals: more would only be noise, and the shortest form prints no more.
fn round(value: f32) -> f32 {
    (value * 10_000.0).round() / 10_000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::case::CaseText;

    #[test]
    fn numbers_print_with_at_most_four_decimals() {
        for (value, expected) in
            [(0.933_333_3, "0.9333"), (0.1 + 0.2, "0.3"), (1.0, "1.0"), (-2.345_67, "-2.3457")]
        {
            assert_eq!(serde_json::to_string(&round(value)).unwrap(), expected);
        }
    }

    #[test]
    fn reply_agrees_with_the_prediction_and_the_policy() {
        let pipeline = Pipeline::for_tests();
        for text in ["小区停水三天了，物业没人管", "hello", "谢谢", "着火了，快来人啊，有人被困"]
        {
            let prepared = pipeline.prepare(&CaseText::parse(text).unwrap()).unwrap();
            let mut prediction = pipeline.predict(&[&prepared]).unwrap().remove(0);
            for level in [0, 3] {
                for (idx, probability) in prediction.level_probabilities.iter_mut().enumerate() {
                    let value = if idx == level { 1.0 } else { 0.0 };
                    *probability = crate::domain::prediction::Probability::new(value).unwrap();
                }
                let item = reply(&pipeline, "a", &prepared.report, &prediction, false);
                assert_eq!(item.review.required, item.decision != "route");
                assert_eq!(item.review.required, !item.review.reasons.is_empty());
                assert_eq!(item.sensitivity.level, level);
                assert!(level > 0 || item.sensitivity.grounds.is_empty());
                assert!(
                    item.sensitivity.grounds.is_sorted_by(|a, b| a.probability >= b.probability)
                );
                let sum: f32 = item.probabilities.0.iter().map(|it| it.1).sum();
                assert!((sum - 1.0).abs() < 1e-3, "{sum}");
                let best = item.probabilities.0.iter().map(|it| it.1).fold(0.0, f32::max);
                assert_eq!(best, item.incident_type.probability);
                assert!(item.logits.is_none());
            }
        }
    }
}
