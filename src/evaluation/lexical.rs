//! The lexical baseline every model is judged against: TF-IDF of character 1–3-grams and word
//! 1–2-grams, and multinomial logistic regression. Never served.
//!
//! Source: Wang and Manning 2012, "Baselines and Bigrams".

use ahash::{HashMap, RandomState};
use rayon::prelude::*;

use super::linear::{Columns, SparseRow, minimize};
use crate::text::{Segmenter, normalize, redact};

/// N-grams in fewer texts are left out.
const MIN_DOCUMENTS: u32 = 2;
/// Inverse strength of the L2 penalty.
const C: f32 = 10.0;

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
        let columns = Columns::of(rows, vectorizer.n_columns);
        let objective =
            |weights: &[f32]| loss(weights, rows, &columns, labels, &case_weights, n_labels);
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
    columns: &Columns,
    labels: &[usize],
    case_weights: &[f32],
    n_labels: usize,
) -> (f64, Vec<f32>) {
    let (losses, errors): (Vec<f64>, Vec<Vec<f32>>) = rows
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
        .unzip();
    let n_free = weights.len() - n_labels;
    let mut gradient = weights.to_vec();
    gradient[n_free..].fill(0.0);
    let penalty: f64 = weights[..n_free].iter().map(|it| f64::from(it * it)).sum();
    columns.add_products(&errors.concat(), &mut gradient);
    (0.5 * penalty + losses.iter().sum::<f64>(), gradient)
}

#[cfg(test)]
mod tests {
    use super::*;

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
