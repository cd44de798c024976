//! Which labels are probably wrong: each case is judged by a model that did not see it.
//!
//! Source: Northcutt, Jiang and Chuang 2021, "Confident Learning" (out-of-sample probabilities, ranked by
//! normalized margin). The judge is the lexical baseline: quick to train many times, and no relative of the
//! model that the labels will train.

use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::split::near_duplicate_groups;
use crate::evaluation::lexical::{Classifier, Vectorizer};
use crate::text::Segmenter;

/// What the judge thinks of one case's label.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Judgement {
    /// The case.
    pub idx: usize,
    /// Probability of its label, by a model that did not see it.
    pub given: f32,
    /// Column of the most probable other label.
    pub other: usize,
    /// Its probability.
    pub other_probability: f32,
}

impl Judgement {
    /// How much more the judge believes in the given label: low means probably wrong.
    fn margin(&self) -> f32 {
        self.given - self.other_probability
    }
}

/// A judgement per case, the most probably wrong label first. Near-duplicates are judged together, so that
/// no copy vouches for another.
///
/// # Panics
/// When there is not one label per text, or `n_folds` is below 2.
pub fn audit(
    texts: &[&str],
    labels: &[usize],
    n_labels: usize,
    n_folds: usize,
    segmenter: &Segmenter,
    seed: u64,
) -> Vec<Judgement> {
    assert_eq!(texts.len(), labels.len(), "one label per text");
    assert!(n_folds >= 2, "a judge needs cases it did not see");
    let folds = folds(texts, n_folds, seed);
    let judge_fold = |fold: usize| {
        let part = |is_held_out: bool| -> Vec<usize> {
            (0..texts.len()).filter(|&it| (folds[it] == fold) == is_held_out).collect()
        };
        let (seen, unseen) = (part(false), part(true));
        if seen.is_empty() {
            return Vec::new();
        }
        let seen_texts: Vec<&str> = seen.iter().map(|&it| texts[it]).collect();
        let seen_labels: Vec<usize> = seen.iter().map(|&it| labels[it]).collect();
        let vectorizer = Vectorizer::fit(&seen_texts, segmenter.clone());
        let rows: Vec<_> = seen_texts.iter().map(|it| vectorizer.row(it)).collect();
        let judge = Classifier::fit(&vectorizer, &rows, &seen_labels, n_labels);
        let judge_case = |idx: usize| {
            let probabilities = judge.probabilities(&vectorizer.row(texts[idx]));
            let other = (0..n_labels)
                .filter(|&it| it != labels[idx])
                .max_by(|&a, &b| probabilities[a].total_cmp(&probabilities[b]))?;
            let (given, other_probability) = (probabilities[labels[idx]], probabilities[other]);
            Some(Judgement { idx, given, other, other_probability })
        };
        unseen.into_iter().filter_map(judge_case).collect::<Vec<_>>()
    };
    let mut judgements: Vec<Judgement> =
        (0..n_folds).into_par_iter().flat_map_iter(judge_fold).collect();
    judgements.sort_by(|a, b| a.margin().total_cmp(&b.margin()).then(a.idx.cmp(&b.idx)));
    judgements
}

/// Replaces `share` of `labels` by a random other one; returns which.
pub fn spoil(labels: &mut [usize], n_labels: usize, share: f64, seed: u64) -> Vec<usize> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut order: Vec<usize> = (0..labels.len()).collect();
    order.shuffle(&mut rng);
    order.truncate((labels.len() as f64 * share).round() as usize);
    for &idx in &order {
        labels[idx] = (labels[idx] + rng.random_range(1..n_labels)) % n_labels;
    }
    order
}

/// Fold of each text.
fn folds(texts: &[&str], n_folds: usize, seed: u64) -> Vec<usize> {
    let groups = near_duplicate_groups(texts);
    let mut leaders: Vec<usize> = (0..texts.len()).filter(|&it| groups[it] == it).collect();
    leaders.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    let mut fold_of = vec![0; texts.len()];
    for (place, &leader) in leaders.iter().enumerate() {
        fold_of[leader] = place % n_folds;
    }
    groups.iter().map(|&leader| fold_of[leader]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spoiled_labels_are_among_the_first() {
        // Each text has characters of its own, so that none is a near-duplicate of another.
        let filler = |idx: u32| -> String {
            let at = |place: u32| char::from_u32(0x4e00 + (idx * 331 + place * 17) % 9000);
            (0_u32..12).filter_map(at).collect()
        };
        let texts: Vec<String> = (0_u32..200)
            .map(|it| {
                format!("{}{}", if it % 2 == 0 { "停水停电" } else { "谢谢大家" }, filler(it))
            })
            .collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let mut labels: Vec<usize> = (0..200).map(|it| it % 2).collect();
        let spoiled = spoil(&mut labels, 2, 0.05, 1);
        assert_eq!(spoiled.len(), 10);
        let judged = audit(&texts, &labels, 2, 5, &Segmenter::default(), 1);
        let mut all: Vec<usize> = judged.iter().map(|it| it.idx).collect();
        let first: Vec<usize> = all[..20].to_vec();
        all.sort_unstable();
        assert_eq!(all, (0..200).collect::<Vec<_>>());
        let n_found = spoiled.iter().filter(|it| first.contains(it)).count();
        assert!(n_found >= 9, "{n_found} of 10 in the first 20");
    }
}
