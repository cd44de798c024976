//! Pure: what became of texts that test one duty each: harsh but legitimate criticism must not be accused,
//! and who is spoken of must not change the answer.

use std::collections::BTreeMap;

use serde::Serialize;

/// What became of criticism that deserves an answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Protection {
    /// Texts tested.
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
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Answer {
    /// Column of the type.
    pub type_idx: usize,
    /// Sensitivity score, 0 to 1.
    pub score: f32,
    /// Sensitivity level.
    pub level: usize,
    /// Probability of `disputed_claim`, where there is such a type.
    pub accusation: f32,
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
    /// Greatest difference of sensitivity scores.
    pub score: f32,
    /// Greatest difference of levels.
    pub level: usize,
    /// Greatest difference of the probability of `disputed_claim`.
    pub accusation: f32,
    /// Whether the type changed.
    pub type_changed: bool,
    /// The wordings with the lowest and the highest score.
    pub extremes: [String; 2],
}

/// The spread over one template's wordings, each with the value that was put in; none without any.
pub fn spread(id: &str, dimension: &str, answers: &[(String, Answer)]) -> Option<Spread> {
    let by_score = |a: &&(String, Answer), b: &&(String, Answer)| a.1.score.total_cmp(&b.1.score);
    let (low, high) = (answers.iter().min_by(by_score)?, answers.iter().max_by(by_score)?);
    let range = |of: fn(&Answer) -> f32| {
        let values = || answers.iter().map(|it| of(&it.1));
        values().fold(f32::MIN, f32::max) - values().fold(f32::MAX, f32::min)
    };
    let levels = || answers.iter().map(|it| it.1.level);
    Some(Spread {
        id: id.to_owned(),
        dimension: dimension.to_owned(),
        n: answers.len(),
        score: high.1.score - low.1.score,
        level: levels().max()? - levels().min()?,
        accusation: range(|it| it.accusation),
        type_changed: answers.iter().any(|it| it.1.type_idx != low.1.type_idx),
        extremes: [low.0.clone(), high.0.clone()],
    })
}

/// The worst of each dimension.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Dimension {
    /// Templates.
    pub templates: usize,
    /// Greatest change of the score over its templates.
    pub max_score: f32,
    /// Greatest change of the level.
    pub max_level: usize,
    /// Greatest change of the probability of `disputed_claim`.
    pub max_accusation: f32,
    /// Templates whose type changed.
    pub type_changes: usize,
}

/// The worst of each dimension, by its name.
pub fn by_dimension(spreads: &[Spread]) -> BTreeMap<String, Dimension> {
    let mut found = BTreeMap::new();
    for it in spreads {
        let worst = found.entry(it.dimension.clone()).or_insert(Dimension {
            templates: 0,
            max_score: 0.0,
            max_level: 0,
            max_accusation: 0.0,
            type_changes: 0,
        });
        worst.templates += 1;
        worst.max_score = worst.max_score.max(it.score);
        worst.max_level = worst.max_level.max(it.level);
        worst.max_accusation = worst.max_accusation.max(it.accusation);
        worst.type_changes += usize::from(it.type_changed);
    }
    found
}

/// What became of the suites.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SuiteResults {
    /// Criticism that deserves an answer.
    pub protection: Protection,
    /// The worst of each kind of swap.
    pub dimensions: BTreeMap<String, Dimension>,
    /// Every template.
    pub swaps: Vec<Spread>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spread_is_the_largest_difference() {
        let answer =
            |type_idx, score, level, accusation| Answer { type_idx, score, level, accusation };
        let answers = [
            ("甲".to_owned(), answer(0, 0.25, 1, 0.0)),
            ("乙".to_owned(), answer(0, 0.75, 2, 0.125)),
            ("丙".to_owned(), answer(1, 0.5, 1, 0.0)),
        ];
        let spread = spread("t1", "region", &answers).unwrap();
        assert_eq!((spread.score, spread.level, spread.accusation), (0.5, 1, 0.125));
        assert!(spread.type_changed);
        assert_eq!(spread.extremes, ["甲", "乙"]);
        let same = super::spread("t2", "region", &answers[..1]).unwrap();
        assert!(!same.type_changed && same.score == 0.0);
        assert_eq!(super::spread("t3", "region", &[]), None);
        let worst = by_dimension(&[spread, same]);
        assert_eq!((worst["region"].templates, worst["region"].type_changes), (2, 1));
    }
}
