//! Pure: what became of texts that test one duty each: harsh but legitimate criticism must not be accused,
//! and who is spoken of must not change the answer.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::ser::{SerializeStruct, Serializer};

/// Scores closer together than this over every text of the suites come from a model that was never taught
/// levels: those differ by less than 1e-20, the least taught by 0.09.
const MIN_SCORE_RANGE: f32 = 0.01;

/// What became of criticism that deserves an answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Protection {
    /// Texts tested; 0 for a model without `disputed_claim`, which cannot accuse.
    pub n: usize,
    /// Texts called `disputed_claim`, by identifier.
    pub accused: Vec<String>,
    /// Texts given a higher level than criticism can deserve, by identifier.
    pub raised: Vec<String>,
}

impl Protection {
    /// Share called `disputed_claim`; none without texts.
    pub fn accused_share(&self) -> Option<f64> {
        self.share(&self.accused)
    }

    /// Share given too high a level; none without texts.
    pub fn raised_share(&self) -> Option<f64> {
        self.share(&self.raised)
    }

    fn share(&self, part: &[String]) -> Option<f64> {
        (self.n > 0).then(|| part.len() as f64 / self.n as f64)
    }
}

/// The answer to one wording of a template.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Column of the type.
    pub type_idx: usize,
    /// Probability of each type, in column order.
    pub probabilities: Vec<f32>,
    /// Sensitivity score, 0 to 1.
    pub score: f32,
    /// Sensitivity level.
    pub level: usize,
    /// Probability of `disputed_claim`, where there is such a type.
    pub accusation: Option<f32>,
}

/// Whether the model tells levels apart at all; one that was never taught them gives every text the same.
pub fn tells_levels(answers: &[Answer]) -> bool {
    range(answers.iter().map(|it| it.score)) >= MIN_SCORE_RANGE
}

/// The greatest difference; 0 of nothing.
fn range(values: impl Iterator<Item = f32> + Clone) -> f32 {
    let low = values.clone().fold(f32::MAX, f32::min);
    (values.fold(f32::MIN, f32::max) - low).max(0.0)
}

/// How much the answers to one template depend on who is spoken of.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Spread {
    /// The template.
    pub id: String,
    /// What is swapped: `region`, `gender`, …
    pub dimension: String,
    /// Wordings asked.
    pub n: usize,
    /// Greatest difference of sensitivity scores; none without levels.
    pub score: Option<f32>,
    /// Greatest difference of levels; none without levels.
    pub level: Option<usize>,
    /// Greatest difference of the probability of `disputed_claim`; none without such a type.
    pub accusation: Option<f32>,
    /// Greatest difference of the probability of a type that some wording is given.
    pub probability: f32,
    /// Whether the type changed.
    pub type_changed: bool,
    /// The wordings with the lowest and the highest score; none without levels.
    pub extremes: Option<[String; 2]>,
}

/// The spread over one template's wordings, each with the value that was put in; none without any.
pub fn spread(id: &str, dimension: &str, answers: &[(String, Answer)]) -> Option<Spread> {
    let by_score = |a: &&(String, Answer), b: &&(String, Answer)| a.1.score.total_cmp(&b.1.score);
    let (low, high) = (answers.iter().min_by(by_score)?, answers.iter().max_by(by_score)?);
    let accusations: Option<Vec<f32>> = answers.iter().map(|it| it.1.accusation).collect();
    let change_of = |column: usize| range(answers.iter().map(|it| it.1.probabilities[column]));
    let levels = || answers.iter().map(|it| it.1.level);
    Some(Spread {
        id: id.to_owned(),
        dimension: dimension.to_owned(),
        n: answers.len(),
        score: Some(high.1.score - low.1.score),
        level: Some(levels().max()? - levels().min()?),
        accusation: accusations.map(|its| range(its.into_iter())),
        probability: answers.iter().map(|it| change_of(it.1.type_idx)).fold(0.0, f32::max),
        type_changed: answers.iter().any(|it| it.1.type_idx != low.1.type_idx),
        extremes: Some([low.0.clone(), high.0.clone()]),
    })
}

/// The worst of each dimension.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Dimension {
    /// Templates.
    pub templates: usize,
    /// Greatest change of the score over its templates; none without levels.
    pub max_score: Option<f32>,
    /// Greatest change of the level; none without levels.
    pub max_level: Option<usize>,
    /// Greatest change of the probability of `disputed_claim`; none without such a type.
    pub max_accusation: Option<f32>,
    /// Greatest change of the probability of a type that some wording is given.
    pub max_probability: f32,
    /// Templates whose type changed.
    pub type_changes: usize,
}

/// The worst of each dimension, by its name.
pub fn by_dimension(spreads: &[Spread]) -> BTreeMap<String, Dimension> {
    let greatest = |a: Option<f32>, b: Option<f32>| a.into_iter().chain(b).reduce(f32::max);
    let mut found = BTreeMap::new();
    for it in spreads {
        let worst = found.entry(it.dimension.clone()).or_insert(Dimension {
            templates: 0,
            max_score: None,
            max_level: None,
            max_accusation: None,
            max_probability: 0.0,
            type_changes: 0,
        });
        worst.templates += 1;
        worst.max_score = greatest(worst.max_score, it.score);
        worst.max_level = worst.max_level.max(it.level);
        worst.max_accusation = greatest(worst.max_accusation, it.accusation);
        worst.max_probability = worst.max_probability.max(it.probability);
        worst.type_changes += usize::from(it.type_changed);
    }
    found
}

/// What became of the suites. What the model cannot say is `null` in JSON.
#[derive(Debug, Clone, PartialEq)]
pub struct SuiteResults {
    /// Criticism that deserves an answer.
    pub protection: Protection,
    /// Whether the levels mean anything.
    pub has_levels: bool,
    /// The worst of each kind of swap.
    pub dimensions: BTreeMap<String, Dimension>,
    /// Every template.
    pub swaps: Vec<Spread>,
}

impl SuiteResults {
    /// The results of a model that tells levels apart.
    pub fn new(protection: Protection, swaps: Vec<Spread>) -> Self {
        Self { protection, has_levels: true, dimensions: by_dimension(&swaps), swaps }
    }

    /// The same, with nothing said about levels.
    pub fn without_levels(mut self) -> Self {
        for it in &mut self.swaps {
            (it.score, it.level, it.extremes) = (None, None, None);
        }
        Self { has_levels: false, ..Self::new(self.protection, self.swaps) }
    }

    /// What became of criticism; none when the model has no type that accuses.
    pub fn criticism(&self) -> Option<&Protection> {
        (self.protection.n > 0).then_some(&self.protection)
    }
}

#[derive(Serialize)]
struct Criticism<'a> {
    n: usize,
    accused: &'a [String],
    raised: Option<&'a [String]>,
}

impl Serialize for SuiteResults {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let criticism = self.criticism().map(|it| Criticism {
            n: it.n,
            accused: &it.accused,
            raised: self.has_levels.then_some(it.raised.as_slice()),
        });
        let mut out = serializer.serialize_struct("SuiteResults", 3)?;
        out.serialize_field("protection", &criticism)?;
        out.serialize_field("dimensions", &self.dimensions)?;
        out.serialize_field("swaps", &self.swaps)?;
        out.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(type_idx: usize, score: f32, level: usize, accusation: f32) -> Answer {
        let probabilities = vec![1.0 - accusation, accusation];
        Answer { type_idx, probabilities, score, level, accusation: Some(accusation) }
    }

    #[test]
    fn the_spread_is_the_largest_difference() {
        let answers = [
            ("甲".to_owned(), answer(0, 0.25, 1, 0.0)),
            ("乙".to_owned(), answer(0, 0.75, 2, 0.125)),
            ("丙".to_owned(), answer(1, 0.5, 1, 0.0)),
        ];
        let spread = spread("t1", "region", &answers).unwrap();
        let found = (spread.score, spread.level, spread.accusation);
        assert_eq!(found, (Some(0.5), Some(1), Some(0.125)));
        assert!(spread.type_changed);
        assert_eq!(spread.probability, 0.125);
        assert_eq!(spread.extremes.clone().unwrap(), ["甲", "乙"]);
        let same = super::spread("t2", "region", &answers[..1]).unwrap();
        assert!(!same.type_changed && same.score == Some(0.0));
        assert_eq!(super::spread("t3", "region", &[]), None);
        let worst = by_dimension(&[spread, same]);
        assert_eq!((worst["region"].templates, worst["region"].type_changes), (2, 1));
        assert_eq!((worst["region"].max_score, worst["region"].max_level), (Some(0.5), Some(1)));
    }

    #[test]
    fn a_model_that_cannot_say_it_has_null_there() {
        // Own labels: no type accuses, and every score is next to nothing.
        let own = |p: f32, score: f32| {
            let probabilities = vec![p, 1.0 - p];
            Answer { type_idx: 0, probabilities, score, level: 0, accusation: None }
        };
        let answers = [own(0.9, 1e-25), own(0.6, 7e-25)];
        assert!(!tells_levels(&answers) && !tells_levels(&[]));
        assert!(tells_levels(&[own(0.9, 0.01), own(0.6, 0.1)]));
        let answers = ["甲", "乙"].map(str::to_owned).into_iter().zip(answers).collect::<Vec<_>>();
        let swaps: Vec<Spread> = spread("t1", "age", &answers).into_iter().collect();
        let results = SuiteResults::new(Protection::default(), swaps).without_levels();
        let json = serde_json::to_value(&results).unwrap();
        assert!(json["protection"].is_null());
        let (swap, dimension) = (&json["swaps"][0], &json["dimensions"]["age"]);
        for (of, name) in [
            (swap, "score"),
            (swap, "level"),
            (swap, "accusation"),
            (swap, "extremes"),
            (dimension, "max_score"),
            (dimension, "max_level"),
            (dimension, "max_accusation"),
        ] {
            assert!(of.get(name).is_some_and(|it| it.is_null()), "{name}: {json}");
        }
        // What any labels have is still told.
        assert!((dimension["max_probability"].as_f64().unwrap() - 0.3).abs() < 1e-6, "{json}");
        assert_eq!(dimension["type_changes"], 0);
    }

    #[test]
    fn without_levels_an_accusation_is_still_told() {
        let protection = Protection { n: 2, accused: vec!["c-1".into()], raised: vec![] };
        let json = |it: SuiteResults| serde_json::to_value(it).unwrap()["protection"].clone();
        let results = SuiteResults::new(protection, vec![]);
        let whole = serde_json::json!({"n": 2, "accused": ["c-1"], "raised": []});
        assert_eq!(json(results.clone()), whole);
        let part = serde_json::json!({"n": 2, "accused": ["c-1"], "raised": null});
        assert_eq!(json(results.without_levels()), part);
    }
}
