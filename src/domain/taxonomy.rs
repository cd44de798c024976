//! The incident types: what they mean and how each is answered (`models/taxonomy.toml`).

use serde::Deserialize;
use thiserror::Error;

use super::label::{InvalidLabelSet, LabelSet};
use super::policy::ReviewPolicy;

/// The taxonomy file this binary was built with.
pub const DEFAULT_TOML: &str = include_str!("../../models/taxonomy.toml");

/// Everything `taxonomy.toml` says, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Taxonomy {
    /// Incident types, in the file's order.
    pub types: Vec<IncidentType>,
    /// Sensitivity levels from 0 up.
    pub levels: Vec<Level>,
    /// Grounds for a level.
    pub grounds: Vec<Named>,
    /// What to monitor.
    pub topics: Vec<Named>,
    /// Thresholds for a person to look first.
    pub policy: ReviewPolicy,
    type_codes: LabelSet,
    ground_codes: LabelSet,
}

/// One incident type and how it is answered.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IncidentType {
    /// Stable code.
    pub code: String,
    /// Chinese name.
    pub zh: String,
    /// What the type means, in Chinese.
    pub definition: String,
    /// How it is answered, in one Chinese sentence.
    pub principle: String,
    /// What to do, in order, in Chinese.
    pub steps: Vec<String>,
    /// Response clocks; advice, not enforced.
    pub due: Due,
}

impl IncidentType {
    /// A type nobody explained: its code is its name, and there are no steps.
    fn unexplained(code: &str) -> Self {
        Self {
            code: code.to_owned(),
            zh: code.to_owned(),
            definition: String::new(),
            principle: String::new(),
            steps: Vec::new(),
            due: Due::default(),
        }
    }
}

/// Response clocks in hours; advice. `None` where the plan sets none.
#[derive(Debug, Clone, Copy, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Due {
    /// Until somebody answers the first time.
    pub first_response_hours: Option<u32>,
    /// Until the outcome is reported back.
    pub outcome_hours: Option<u32>,
}

/// A sensitivity level.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Level {
    /// Chinese name.
    pub zh: String,
    /// What it means, in Chinese.
    pub definition: String,
}

/// A code with its Chinese name and definition.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Named {
    /// Stable code.
    pub code: String,
    /// Chinese name.
    pub zh: String,
    /// What it means, in Chinese.
    pub definition: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: u32,
    types: Vec<IncidentType>,
    levels: Vec<Level>,
    grounds: Vec<Named>,
    topics: Vec<Named>,
    policy: Policy,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Policy {
    min_confidence: f32,
    review_level: usize,
    always_review: Vec<String>,
    #[serde(default)]
    min_accusation: f32,
    min_chars: usize,
    min_chinese_share: f32,
    max_unknown_share: f32,
    min_ground_probability: f32,
}

/// The format of `taxonomy.toml` this binary reads.
pub const FORMAT: u32 = 1;

impl Taxonomy {
    /// # Errors
    /// [`TaxonomyError`] when the text is not a taxonomy of format [`FORMAT`].
    pub fn parse(toml: &str) -> Result<Self, TaxonomyError> {
        let file: File = toml::from_str(toml)?;
        if file.format != FORMAT {
            return Err(TaxonomyError::Format { actual: file.format });
        }
        if file.levels.len() < 2 {
            return Err(TaxonomyError::Levels);
        }
        let type_codes = LabelSet::new(file.types.iter().map(|it| it.code.as_str()))?;
        let ground_codes = LabelSet::new(file.grounds.iter().map(|it| it.code.as_str()))?;
        if let Some(code) =
            file.policy.always_review.iter().find(|it| type_codes.index_of(it).is_none())
        {
            return Err(TaxonomyError::UnknownType { code: code.clone() });
        }
        let Policy {
            min_confidence,
            review_level,
            always_review,
            min_accusation,
            min_chars,
            min_chinese_share,
            max_unknown_share,
            min_ground_probability,
        } = file.policy;
        for (name, value) in [
            ("min_confidence", min_confidence),
            ("min_accusation", min_accusation),
            ("min_chinese_share", min_chinese_share),
            ("max_unknown_share", max_unknown_share),
            ("min_ground_probability", min_ground_probability),
        ] {
            if !(0.0..=1.0).contains(&value) {
                return Err(TaxonomyError::Share { name, value });
            }
        }
        Ok(Self {
            types: file.types,
            levels: file.levels,
            grounds: file.grounds,
            topics: file.topics,
            policy: ReviewPolicy {
                min_confidence,
                review_level,
                always_review,
                min_accusation,
                min_chars,
                min_chinese_share,
                max_unknown_share,
                min_ground_probability,
            },
            type_codes,
            ground_codes,
        })
    }

    /// The taxonomy this binary was built with.
    ///
    /// # Panics
    /// Never: a test parses the embedded file.
    pub fn embedded() -> Self {
        Self::parse(DEFAULT_TOML).expect("the embedded taxonomy parses (tested)")
    }

    /// This taxonomy for a model with these labels: what it explains stays as it is, what it does not
    /// explain is named by its code and has no handling steps, what the model lacks is left out.
    pub fn for_labels(mut self, types: &LabelSet, grounds: &LabelSet) -> Self {
        let known = std::mem::take(&mut self.types);
        self.types = types
            .codes()
            .map(|code| {
                let found = known.iter().find(|it| it.code == code).cloned();
                found.unwrap_or_else(|| IncidentType::unexplained(code))
            })
            .collect();
        let known = std::mem::take(&mut self.grounds);
        self.grounds = grounds
            .codes()
            .map(|code| {
                let found = known.iter().find(|it| it.code == code).cloned();
                found.unwrap_or_else(|| Named {
                    code: code.to_owned(),
                    zh: code.to_owned(),
                    definition: String::new(),
                })
            })
            .collect();
        self.policy.always_review.retain(|it| types.index_of(it).is_some());
        self.type_codes = types.clone();
        self.ground_codes = grounds.clone();
        self
    }

    /// The type with this code.
    pub fn incident_type(&self, code: &str) -> Option<&IncidentType> {
        self.types.iter().find(|it| it.code == code)
    }

    /// Codes of the types.
    pub fn type_codes(&self) -> &LabelSet {
        &self.type_codes
    }

    /// Codes of the grounds.
    pub fn ground_codes(&self) -> &LabelSet {
        &self.ground_codes
    }
}

/// Why a file is not a taxonomy.
#[derive(Debug, Error)]
pub enum TaxonomyError {
    /// Not TOML of the right shape.
    #[error("taxonomy: {0}")]
    Toml(#[from] toml::de::Error),
    /// Another format.
    #[error("taxonomy: format {actual} is not the format {FORMAT} this binary reads")]
    Format {
        /// The file's format.
        actual: u32,
    },
    /// Fewer than two levels.
    #[error("taxonomy: at least two levels are needed")]
    Levels,
    /// Codes that are no label set.
    #[error("taxonomy: {0}")]
    Codes(#[from] InvalidLabelSet),
    /// A policy entry that names no type.
    #[error("taxonomy: policy.always_review names `{code}`, which is no type")]
    UnknownType {
        /// The code.
        code: String,
    },
    /// A share outside `0.0..=1.0`.
    #[error("taxonomy: policy.{name} is {value}, it must lie between 0 and 1")]
    Share {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: f32,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_nobody_explained_have_no_steps_and_no_policy() {
        let labels = |codes: &[&str]| LabelSet::new(codes.iter().copied()).unwrap();
        let foreign =
            Taxonomy::embedded().for_labels(&labels(&["照明", "problem"]), &labels(&["x"]));
        assert_eq!(foreign.types[0].zh, "照明");
        assert!(foreign.types[0].steps.is_empty() && !foreign.types[1].steps.is_empty());
        assert!(foreign.policy.always_review.is_empty());
        assert_eq!((foreign.type_codes().len(), foreign.ground_codes().len()), (2, 1));
        let embedded = Taxonomy::embedded();
        let (types, grounds) = (embedded.type_codes().clone(), embedded.ground_codes().clone());
        assert_eq!(embedded.clone().for_labels(&types, &grounds), embedded);
    }

    #[test]
    fn embedded_taxonomy_has_the_five_types_and_none() {
        let taxonomy = Taxonomy::embedded();
        let codes: Vec<&str> = taxonomy.type_codes().codes().collect();
        assert_eq!(
            codes,
            ["problem", "emergency", "sensitive", "suggestion", "disputed_claim", "none"]
        );
        assert_eq!((taxonomy.levels.len(), taxonomy.grounds.len()), (4, 7));
        assert!(taxonomy.policy.always_review.contains(&"disputed_claim".to_owned()));
    }
}
