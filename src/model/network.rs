//! Encoder and heads as one: chunks of token ids in, logits of each text out.

use candle_core::{Result, Tensor};
use candle_transformers::models::bert::Config;
use rayon::prelude::*;

use super::heads::{HeadLogits, HeadSizes, Heads, TextLogits};
use super::transformer::{Mode, PaddedRows, Transformer};
use super::weights::Weights;
use crate::text::Encoding;

/// candle's error, under a name other rooms may use.
pub type NetworkError = candle_core::Error;

/// Rows computed together are at most this many times longer than the shortest of them (plus a few
/// tokens): padding is wasted work, small products are slow. A first guess, not yet measured.
const MAX_PADDED_SHARE: f32 = 1.25;
/// Padded tokens computed together, to bound the activations. A first guess, not yet measured.
const MAX_GROUP_TOKENS: usize = 2048;

/// An encoder with its heads.
pub struct Network {
    transformer: Transformer,
    heads: Heads,
    sizes: HeadSizes,
    pad_token_id: u32,
}

impl Network {
    /// # Errors
    /// When `weights` lacks a tensor of the shape, or has it in another shape; it is named.
    pub fn load(weights: &Weights, config: &Config, sizes: HeadSizes) -> Result<Self> {
        Ok(Self {
            transformer: Transformer::load(weights, config)?,
            heads: Heads::load(weights, config.hidden_size, sizes)?,
            sizes,
            pad_token_id: config.pad_token_id as u32,
        })
    }

    /// Logits of `rows`, one row of each tensor per row of ids.
    ///
    /// # Errors
    /// When a row is longer than the position table.
    pub fn forward(&self, rows: &[&[u32]], mode: &Mode<'_>) -> Result<HeadLogits> {
        let padded = PaddedRows::new(rows, self.pad_token_id)?;
        let pooled = mode.dropout(self.transformer.pooled(&padded, mode)?)?;
        self.heads.forward(&pooled)
    }

    /// The heads' logits on pooled vectors `(batch, hidden)`.
    ///
    /// # Errors
    /// When the width differs.
    pub fn answer(&self, pooled: &Tensor) -> Result<HeadLogits> {
        self.heads.forward(pooled)
    }

    /// Pooled vectors `(rows, hidden)`, without gradient.
    ///
    /// # Errors
    /// As [`Network::forward`].
    pub fn pooled(&self, rows: &[&[u32]]) -> Result<Tensor> {
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_by_key(|&it| rows[it].len());
        let mut groups = Vec::new();
        let mut rest = order.as_slice();
        while !rest.is_empty() {
            let (group, others) = rest.split_at(group_len(rest.iter().map(|&it| rows[it].len())));
            groups.push(group);
            rest = others;
        }
        let computed = groups
            .par_iter()
            .map(|group| {
                let ids: Vec<&[u32]> = group.iter().map(|&it| rows[it]).collect();
                let padded = PaddedRows::new(&ids, self.pad_token_id)?;
                Ok(self.transformer.pooled(&padded, &Mode::Eval)?.detach())
            })
            .collect::<Result<Vec<Tensor>>>()?;
        // Back into the order of `rows`.
        let mut places = vec![0_u32; rows.len()];
        order.iter().zip(0..).for_each(|(&idx, place)| places[idx] = place);
        let places = Tensor::from_vec(places, rows.len(), computed[0].device())?;
        Tensor::cat(&computed, 0)?.index_select(&places, 0)
    }

    /// Logits of each text; a text of several chunks gets the mean of theirs, weighted by tokens.
    ///
    /// # Errors
    /// As [`Network::forward`].
    pub fn logits(&self, texts: &[&[Encoding]]) -> Result<Vec<TextLogits>> {
        let mut rows: Vec<(usize, &[u32])> = texts
            .iter()
            .enumerate()
            .flat_map(|(text_idx, chunks)| {
                chunks.iter().map(move |it| (text_idx, it.ids.as_slice()))
            })
            .collect();
        rows.sort_by_key(|(_, ids)| ids.len());
        let n_tokens: Vec<usize> =
            texts.iter().map(|chunks| chunks.iter().map(|it| it.ids.len()).sum()).collect();
        let empty = TextLogits {
            kind: vec![0.0; self.sizes.n_types],
            level: vec![0.0; self.sizes.n_levels - 1],
            grounds: vec![0.0; self.sizes.n_grounds],
        };
        let mut out = vec![empty; texts.len()];
        let mut groups = Vec::new();
        let mut rest = rows.as_slice();
        while !rest.is_empty() {
            let (group, others) = rest.split_at(group_len(rest.iter().map(|(_, ids)| ids.len())));
            groups.push(group);
            rest = others;
        }
        // A group a core: most of the work between the matrix products knows one thread only.
        let computed = groups
            .par_iter()
            .map(|group| {
                let ids: Vec<&[u32]> = group.iter().map(|&(_, ids)| ids).collect();
                let logits = self.forward(&ids, &Mode::Eval)?;
                Ok([logits.kind.to_vec2()?, logits.level.to_vec2()?, logits.grounds.to_vec2()?])
            })
            .collect::<Result<Vec<[Vec<Vec<f32>>; 3]>>>()?;
        for (group, [kind, level, grounds]) in groups.into_iter().zip(computed) {
            let parts = kind.into_iter().zip(level).zip(grounds);
            for (&(text_idx, ids), ((kind, level), grounds)) in group.iter().zip(parts) {
                let share = ids.len() as f32 / n_tokens[text_idx] as f32;
                add(&mut out[text_idx].kind, &kind, share);
                add(&mut out[text_idx].level, &level, share);
                add(&mut out[text_idx].grounds, &grounds, share);
            }
        }
        Ok(out)
    }
}

fn add(sum: &mut [f32], values: &[f32], share: f32) {
    for (sum, value) in sum.iter_mut().zip(values) {
        *sum += value * share;
    }
}

/// How many of the next rows, shortest first, go together; at least one.
fn group_len(lengths: impl Iterator<Item = usize>) -> usize {
    let mut shortest = None;
    let fits = |(n_before, length): &(usize, usize)| {
        let shortest = *shortest.get_or_insert(*length);
        let is_padded_little = *length as f32 <= (shortest + 4) as f32 * MAX_PADDED_SHARE;
        *n_before == 0 || (is_padded_little && (n_before + 1) * length <= MAX_GROUP_TOKENS)
    };
    lengths.enumerate().take_while(fits).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::transformer::tiny;

    fn network() -> Network {
        let (config, mut weights) = tiny(4);
        let sizes = HeadSizes { n_types: 3, n_levels: 4, n_grounds: 2 };
        Heads::start(&mut weights, config.hidden_size, sizes, 5).unwrap();
        Network::load(&weights, &config, sizes).unwrap()
    }

    fn text(rows: &[&[u32]]) -> Vec<Encoding> {
        rows.iter().map(|ids| Encoding { ids: ids.to_vec() }).collect()
    }

    #[test]
    fn a_text_scores_the_same_alone_and_in_a_batch() {
        let network = network();
        let texts = [
            text(&[&[2, 7, 8, 9, 3]]),
            text(&[&[2, 11, 12, 13, 14, 15, 16, 17, 18, 3], &[2, 4, 5, 3]]),
            text(&[&[2, 3]]),
            text(&[&[2, 7, 8, 9, 10, 3]]),
        ];
        let batch: Vec<&[Encoding]> = texts.iter().map(Vec::as_slice).collect();
        let together = network.logits(&batch).unwrap();
        for (text, expected) in texts.iter().zip(&together) {
            let alone = network.logits(&[text.as_slice()]).unwrap();
            let pairs = alone[0].kind.iter().chain(&alone[0].level).chain(&alone[0].grounds);
            for (a, b) in
                pairs.zip(expected.kind.iter().chain(&expected.level).chain(&expected.grounds))
            {
                assert!((a - b).abs() < 1e-5, "{a} {b}");
            }
        }
    }

    #[test]
    fn group_len_limits_padding_and_size() {
        let cases: [(&str, &[usize], usize); 4] = [
            ("alike", &[10, 11, 12], 3),
            ("too much padding", &[10, 11, 40], 2),
            ("too many tokens", &[1000, 1000, 1000], 2),
            ("an oversized first row still goes", &[5000, 5000], 1),
        ];
        for (name, lengths, expected) in cases {
            assert_eq!(group_len(lengths.iter().copied()), expected, "{name}");
        }
    }
}
