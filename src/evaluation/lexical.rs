//! The lexical baseline every model is judged against: TF-IDF of character 1–3-grams and word
//! 1–2-grams, and multinomial logistic regression. Never served.
//!
//! Sources: Wang and Manning 2012, "Baselines and Bigrams"; L-BFGS after Nocedal and Wright,
//! *Numerical Optimization*, algorithm 7.4, with backtracking line search.

use std::collections::VecDeque;

use ahash::{HashMap, RandomState};
use rayon::prelude::*;

use crate::text::{Segmenter, normalize, redact};

/// N-grams in fewer texts are left out.
const MIN_DOCUMENTS: u32 = 2;
/// Inverse strength of the L2 penalty.
const C: f32 = 10.0;
const MAX_ITERATIONS: usize = 100;
const LBFGS_MEMORY: usize = 6;

/// Ascending columns with their weights.
type SparseRow = Vec<(u32, f32)>;

/// N-grams seen in training, with their inverse document frequencies.
pub struct Vectorizer {
    segmenter: Segmenter,
    hasher: RandomState,
    columns: [HashMap<u64, (u32, f32)>; 2],
    n_columns: usize,
}

impl Vectorizer {
    /// Learns the n-grams of `texts`.
    pub fn fit(texts: &[&str], segmenter: Segmenter) -> Self {
        let mut this = Self {
            segmenter,
            hasher: RandomState::with_seeds(1, 2, 3, 4),
            columns: [HashMap::default(), HashMap::default()],
            n_columns: 0,
        };
        let counted: Vec<_> = texts.par_iter().map(|text| this.counts(text)).collect();
        for family in 0..2 {
            let mut documents: HashMap<u64, u32> = HashMap::default();
            for counts in &counted {
                for &key in counts[family].keys() {
                    *documents.entry(key).or_default() += 1;
                }
            }
            let mut kept: Vec<(u64, u32)> =
                documents.into_iter().filter(|it| it.1 >= MIN_DOCUMENTS).collect();
            kept.sort_unstable();
            for (key, n_documents) in kept {
                let idf = ((1.0 + texts.len() as f32) / (1.0 + n_documents as f32)).ln() + 1.0;
                this.columns[family].insert(key, (this.n_columns as u32, idf));
                this.n_columns += 1;
            }
        }
        this
    }

    /// The text's row: each family of n-grams has length 1.
    pub fn row(&self, text: &str) -> SparseRow {
        let mut row = SparseRow::new();
        for (counts, columns) in self.counts(text).iter().zip(&self.columns) {
            let begin = row.len();
            for (key, &count) in counts {
                if let Some(&(column, idf)) = columns.get(key) {
                    row.push((column, (1.0 + (count as f32).ln()) * idf));
                }
            }
            // In order of columns, so that the norm is the same sum on every run.
            row[begin..].sort_unstable_by_key(|it| it.0);
            let norm = row[begin..].iter().map(|it| it.1 * it.1).sum::<f32>().sqrt().max(1e-9);
            row[begin..].iter_mut().for_each(|it| it.1 /= norm);
        }
        row
    }

    /// How often each n-gram occurs: of characters, of words. Keys are 64-bit hashes; among a few
    /// million n-grams two alike are not to be expected.
    fn counts(&self, text: &str) -> [HashMap<u64, u32>; 2] {
        let text = redact(&normalize(text)).text;
        let mut counts = [HashMap::<u64, u32>::default(), HashMap::default()];
        let starts: Vec<usize> = text.char_indices().map(|it| it.0).chain([text.len()]).collect();
        for length in 1..=3 {
            for window in starts.windows(length + 1) {
                let key = self.hasher.hash_one(&text[window[0]..window[length]]);
                *counts[0].entry(key).or_default() += 1;
            }
        }
        let words = self.segmenter.segment(&text);
        for length in 1..=2 {
            for window in words.windows(length) {
                let words = window.iter().map(|it| it.text).collect::<Vec<_>>();
                *counts[1].entry(self.hasher.hash_one(words)).or_default() += 1;
            }
        }
        counts
    }
}

/// A trained classifier over rows of a [`Vectorizer`].
pub struct Classifier {
    /// `n_columns + 1` rows of `n_labels`; the last row is the intercept.
    weights: Vec<f32>,
    n_labels: usize,
}

impl Classifier {
    /// Learns `labels` (columns below `n_labels`) from `rows`; labels count alike, however rare.
    ///
    /// # Panics
    /// When there is not one label per row.
    pub fn fit(
        vectorizer: &Vectorizer,
        rows: &[SparseRow],
        labels: &[usize],
        n_labels: usize,
    ) -> Self {
        assert_eq!(rows.len(), labels.len(), "one label per row");
        let mut counts = vec![0.0_f32; n_labels];
        labels.iter().for_each(|&it| counts[it] += 1.0);
        let n_present = counts.iter().filter(|it| **it > 0.0).count() as f32;
        let case_weights: Vec<f32> =
            labels.iter().map(|&it| C * rows.len() as f32 / (n_present * counts[it])).collect();
        let n_weights = (vectorizer.n_columns + 1) * n_labels;
        let objective = |weights: &[f32]| loss(weights, rows, labels, &case_weights, n_labels);
        Self { weights: minimize(vec![0.0; n_weights], objective), n_labels }
    }

    /// Probability of each label.
    pub fn probabilities(&self, row: &SparseRow) -> Vec<f32> {
        softmax(&scores(&self.weights, row, self.n_labels))
    }
}

fn scores(weights: &[f32], row: &SparseRow, n_labels: usize) -> Vec<f32> {
    let mut scores = weights[weights.len() - n_labels..].to_vec();
    for &(column, value) in row {
        let begin = column as usize * n_labels;
        for (score, weight) in scores.iter_mut().zip(&weights[begin..begin + n_labels]) {
            *score += value * weight;
        }
    }
    scores
}

fn softmax(scores: &[f32]) -> Vec<f32> {
    let top = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exps: Vec<f32> = scores.iter().map(|it| (it - top).exp()).collect();
    let sum: f32 = exps.iter().sum();
    exps.iter().map(|it| it / sum).collect()
}

/// Weighted cross-entropy plus half the squared weights (intercepts free), and the gradient.
fn loss(
    weights: &[f32],
    rows: &[SparseRow],
    labels: &[usize],
    case_weights: &[f32],
    n_labels: usize,
) -> (f64, Vec<f32>) {
    let errors: Vec<(f64, Vec<f32>)> = rows
        .par_iter()
        .zip(labels)
        .zip(case_weights)
        .map(|((row, &label), &weight)| {
            let mut error = softmax(&scores(weights, row, n_labels));
            let loss = -f64::from(error[label].max(1e-30).ln() * weight);
            error[label] -= 1.0;
            error.iter_mut().for_each(|it| *it *= weight);
            (loss, error)
        })
        .collect();
    let n_free = weights.len() - n_labels;
    let mut gradient = weights.to_vec();
    gradient[n_free..].fill(0.0);
    let penalty: f64 = weights[..n_free].iter().map(|it| f64::from(it * it)).sum();
    let mut total = 0.5 * penalty;
    for (row, (loss, error)) in rows.iter().zip(&errors) {
        total += loss;
        for &(column, value) in row {
            let begin = column as usize * n_labels;
            for (slot, error) in gradient[begin..begin + n_labels].iter_mut().zip(error) {
                *slot += value * error;
            }
        }
        gradient[n_free..].iter_mut().zip(error).for_each(|(slot, error)| *slot += error);
    }
    (total, gradient)
}

/// The lowest point L-BFGS finds from `point`; `objective` gives value and gradient.
pub fn minimize(mut point: Vec<f32>, objective: impl Fn(&[f32]) -> (f64, Vec<f32>)) -> Vec<f32> {
    // Fixed parts, added in order: the same sum on every run.
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        const PART: usize = 1 << 14;
        let parts: Vec<f64> = a
            .par_chunks(PART)
            .zip(b.par_chunks(PART))
            .map(|(a, b)| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum())
            .collect();
        parts.iter().sum()
    };
    let axpy = |to: &mut [f32], scale: f64, by: &[f32]| {
        to.iter_mut().zip(by).for_each(|(to, by)| *to += scale as f32 * by);
    };
    let (mut value, mut gradient) = objective(&point);
    // Steps, changes of the gradient, and one over their product; newest last.
    let mut memory: VecDeque<(Vec<f32>, Vec<f32>, f64)> = VecDeque::new();
    for _ in 0..MAX_ITERATIONS {
        let mut direction = gradient.clone();
        let mut alphas = Vec::new();
        for (step, change, rho) in memory.iter().rev() {
            let alpha = rho * dot(step, &direction);
            axpy(&mut direction, -alpha, change);
            alphas.push(alpha);
        }
        let scale = memory.back().map_or_else(
            || 1.0 / dot(&gradient, &gradient).sqrt().max(1e-12),
            |(_, change, rho)| 1.0 / (rho * dot(change, change)),
        );
        direction.iter_mut().for_each(|it| *it *= scale as f32);
        for ((step, change, rho), alpha) in memory.iter().zip(alphas.iter().rev()) {
            let beta = rho * dot(change, &direction);
            axpy(&mut direction, alpha - beta, step);
        }
        let slope = -dot(&gradient, &direction);
        let mut length = 1.0;
        let (next, next_value, next_gradient) = loop {
            let mut next = point.clone();
            axpy(&mut next, -length, &direction);
            let (next_value, next_gradient) = objective(&next);
            if next_value <= value + 1e-4 * length * slope || length < 1e-6 {
                break (next, next_value, next_gradient);
            }
            length *= 0.5;
        };
        let gain = value - next_value;
        let difference = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a - b).collect();
        let step: Vec<f32> = difference(&next, &point);
        let change: Vec<f32> = difference(&next_gradient, &gradient);
        let curvature = dot(&step, &change);
        if gain <= 0.0 {
            break;
        }
        (point, gradient) = (next, next_gradient);
        let is_done = gain < 1e-6 * value.abs();
        value = next_value;
        if is_done {
            break;
        }
        if curvature > 1e-12 {
            if memory.len() == LBFGS_MEMORY {
                memory.pop_front();
            }
            memory.push_back((step, change, 1.0 / curvature));
        }
    }
    point
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minimize_finds_the_minimum_of_a_stretched_bowl() {
        let bowl = |x: &[f32]| {
            let scale = |idx: usize| 1.0 + idx as f32 * 10.0;
            let value: f32 =
                x.iter().enumerate().map(|(idx, it)| scale(idx) * (it - 1.0).powi(2)).sum();
            let gradient =
                x.iter().enumerate().map(|(idx, it)| 2.0 * scale(idx) * (it - 1.0)).collect();
            (f64::from(value), gradient)
        };
        for it in minimize(vec![0.0; 8], bowl) {
            assert!((it - 1.0).abs() < 0.01, "{it}");
        }
    }

    #[test]
    fn a_classifier_learns_words_and_leaves_the_unknown_open() {
        let texts = ["小区停水了", "小区停电了", "谢谢你们", "谢谢大家", "停水两天", "谢谢老师"];
        let labels = [0, 0, 1, 1, 0, 1];
        let vectorizer = Vectorizer::fit(&texts, Segmenter::default());
        let rows: Vec<SparseRow> = texts.iter().map(|it| vectorizer.row(it)).collect();
        let classifier = Classifier::fit(&vectorizer, &rows, &labels, 2);
        let probabilities = |text| classifier.probabilities(&vectorizer.row(text));
        assert!(probabilities("又停水了")[0] > 0.8);
        assert!(probabilities("谢谢")[1] > 0.8);
        assert!((probabilities("xyz")[0] - 0.5).abs() < 0.1);
    }
}
