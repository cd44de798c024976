//! Pure: what changes for the readers when a candidate replaces production.

use serde::Serialize;

use super::details::Detail;
use super::report::Outcome;
use crate::domain::label::LabelSet;

/// Cases named in the table.
const N_NAMED: usize = 20;

/// The score-migration table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Migration {
    /// Cases both versions answered.
    pub n: usize,
    /// Cases whose type changes.
    pub n_flipped: usize,
    /// Codes of the types, in the order of `flips`.
    pub types: Vec<String>,
    /// Counts `[production's type][candidate's type]`.
    pub flips: Vec<Vec<usize>>,
    /// Cases that a person looks at only under production, and only under the candidate.
    pub review: [usize; 2],
    /// Mean change of the sensitivity score.
    pub mean_score_change: f64,
    /// The cases that change most.
    pub most_changed: Vec<Change>,
}

/// One case's change. Names the case, never its text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Change {
    /// Identifier of the case.
    pub id: String,
    /// Its label.
    pub label: String,
    /// Production's type.
    pub from: String,
    /// The candidate's type.
    pub to: String,
    /// Share of probability that moves between types, 0 to 1.
    pub moved: f64,
    /// Change of the sensitivity score.
    pub score_change: f64,
}

impl Migration {
    /// The table over `cases`: identifier, production's answer, the candidate's.
    pub fn new<'a>(
        cases: impl Iterator<Item = (&'a str, &'a (Outcome, Detail), &'a (Outcome, Detail))>,
        types: &LabelSet,
    ) -> Self {
        let mut flips = vec![vec![0; types.len()]; types.len()];
        let mut review = [0, 0];
        let mut changes = Vec::new();
        for (id, (old, old_detail), (new, new_detail)) in cases {
            flips[old.predicted][new.predicted] += 1;
            review[0] += usize::from(old_detail.is_reviewed && !new_detail.is_reviewed);
            review[1] += usize::from(new_detail.is_reviewed && !old_detail.is_reviewed);
            let pairs = old_detail.probabilities.iter().zip(&new_detail.probabilities);
            let moved: f64 = pairs.map(|(a, b)| f64::from((a - b).abs())).sum();
            changes.push(Change {
                id: id.to_owned(),
                label: types.code(old.label).to_owned(),
                from: types.code(old.predicted).to_owned(),
                to: types.code(new.predicted).to_owned(),
                moved: moved / 2.0,
                score_change: f64::from(new_detail.score) - f64::from(old_detail.score),
            });
        }
        let n = changes.len();
        let total: f64 = changes.iter().map(|it| it.score_change).sum();
        let n_flipped = changes.iter().filter(|it| it.from != it.to).count();
        let weight = |it: &Change| it.moved.max(it.score_change.abs());
        changes.sort_by(|a, b| weight(b).total_cmp(&weight(a)).then_with(|| a.id.cmp(&b.id)));
        changes.truncate(N_NAMED);
        Self {
            n,
            n_flipped,
            types: types.codes().map(str::to_owned).collect(),
            flips,
            review,
            mean_score_change: total / n.max(1) as f64,
            most_changed: changes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(predicted: usize, probabilities: [f32; 2], score: f32) -> (Outcome, Detail) {
        let is_reviewed = probabilities[predicted] < 0.6;
        let outcome = Outcome {
            label: 0,
            predicted,
            confidence: probabilities[predicted],
            set: None,
            levels: None,
        };
        let detail = Detail {
            probabilities: probabilities.to_vec(),
            score,
            grounds: None,
            is_held: false,
            is_reviewed,
            slices: vec![],
        };
        (outcome, detail)
    }

    #[test]
    fn the_table_counts_flips_and_names_the_largest_first() {
        let types = LabelSet::new(["a", "b"]).unwrap();
        let old = [
            answer(0, [0.75, 0.25], 0.5),
            answer(0, [0.5, 0.5], 0.5),
            answer(1, [0.25, 0.75], 0.0),
        ];
        let new = [
            answer(0, [0.75, 0.25], 0.5),
            answer(1, [0.0, 1.0], 0.5),
            answer(1, [0.25, 0.75], 0.25),
        ];
        let ids = ["x", "y", "z"];
        let cases = ids.iter().zip(old.iter().zip(&new)).map(|(id, (a, b))| (*id, a, b));
        let table = Migration::new(cases, &types);
        assert_eq!((table.n, table.n_flipped), (3, 1));
        assert_eq!(table.flips, [[1, 1], [0, 1]]);
        assert_eq!(table.review, [1, 0]);
        let named: Vec<_> = table
            .most_changed
            .iter()
            .map(|it| (it.id.as_str(), it.moved, it.score_change))
            .collect();
        assert_eq!(named, [("y", 0.5, 0.0), ("z", 0.0, 0.25), ("x", 0.0, 0.0)]);
        assert!((table.mean_score_change - 0.25 / 3.0).abs() < 1e-9);
    }
}
