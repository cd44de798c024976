//! The lexical half of the model: one linear layer per head on a text's hashed n-grams.
//!
//! A small encoder sees the gist of a text, n-grams see its exact wording; each is right where the other
//! is not, and [`super::calibration`] weighs them.

use candle_core::{Device, Result, Tensor};

use super::heads::{HeadSizes, TextLogits};
use super::weights::Weights;
use crate::text::ngrams::Ngrams;

const IDF: &str = "lexical.idf";
const WEIGHT: &str = "lexical.weight";
const BIAS: &str = "lexical.bias";

/// Inverse document frequencies and the layers of all heads, side by side.
#[derive(Debug, Clone, PartialEq)]
pub struct Lexical {
    /// One per bucket; 0 where training saw too few texts.
    pub idf: Vec<f32>,
    /// `(buckets, outputs)`, row by row: types, level thresholds, grounds.
    pub weight: Vec<f32>,
    /// `(outputs)`
    pub bias: Vec<f32>,
    /// How the outputs divide into heads.
    pub sizes: HeadSizes,
}

impl Lexical {
    /// # Errors
    /// When a tensor is missing from `weights` or has another shape.
    pub fn load(weights: &Weights, n_buckets: usize, sizes: HeadSizes) -> Result<Self> {
        let n_outputs = sizes.n_outputs();
        let values = |name, shape: &[usize]| weights.get(name, shape)?.flatten_all()?.to_vec1();
        Ok(Self {
            idf: values(IDF, &[n_buckets])?,
            weight: values(WEIGHT, &[n_buckets, n_outputs])?,
            bias: values(BIAS, &[n_outputs])?,
            sizes,
        })
    }

    /// Adds the tensors to `weights`, in place of any it has.
    ///
    /// # Errors
    /// When a tensor cannot be made.
    pub fn store(&self, weights: &mut Weights) -> Result<()> {
        let tensor = |it: &Vec<f32>, shape: &[usize]| Tensor::from_slice(it, shape, &Device::Cpu);
        weights.insert(IDF, tensor(&self.idf, &[self.idf.len()])?);
        weights.insert(WEIGHT, tensor(&self.weight, &[self.idf.len(), self.bias.len()])?);
        weights.insert(BIAS, tensor(&self.bias, &[self.bias.len()])?);
        Ok(())
    }

    /// Logits of one text. n-grams never seen in training say nothing.
    pub fn logits(&self, ngrams: &Ngrams) -> TextLogits {
        let row = weighted(ngrams, &self.idf);
        let outputs = outputs(&row, &self.weight, &self.bias);
        let (kind, rest) = outputs.split_at(self.sizes.n_types);
        let (level, grounds) = rest.split_at(self.sizes.n_levels - 1);
        TextLogits { kind: kind.to_vec(), level: level.to_vec(), grounds: grounds.to_vec() }
    }
}

/// `ngrams` times `idf`; those of characters and those of words each get length 1.
pub fn weighted(ngrams: &Ngrams, idf: &[f32]) -> Ngrams {
    let mut row: Ngrams =
        ngrams.iter().map(|&(at, count)| (at, count * idf[at as usize])).collect();
    row.retain(|it| it.1 > 0.0);
    let border = row.partition_point(|it| (it.0 as usize) < idf.len() / 2);
    let (characters, words) = row.split_at_mut(border);
    for family in [characters, words] {
        let length = family.iter().map(|it| it.1 * it.1).sum::<f32>().sqrt();
        family.iter_mut().for_each(|it| it.1 /= length);
    }
    row
}

/// One output per column of `weight` for a weighted row.
pub fn outputs(row: &Ngrams, weight: &[f32], bias: &[f32]) -> Vec<f32> {
    let mut sums = bias.to_vec();
    for &(at, value) in row {
        let begin = at as usize * bias.len();
        for (sum, weight) in sums.iter_mut().zip(&weight[begin..begin + bias.len()]) {
            *sum += value * weight;
        }
    }
    sums
}
