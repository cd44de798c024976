//! The fast body: the same function as [`super::transformer`], for serving.
//!
//! Rows of any lengths lie one after the other without padding. Only the first token's state leaves
//! the last layer, so the last layer computes nothing else. Matrix products are `rten-gemm`'s and
//! `rten-vecmath`'s kernels, chosen for the CPU at run time; buffers are kept between calls.
//!
//! Does not know texts, gradients or padding.

mod kernels;
mod linear;

use std::cell::Cell;
use std::ops::Range;

use candle_core::Result;
use candle_transformers::models::bert::{Config, HiddenAct};
use rayon::prelude::*;
use rten_simd::{SimdOp, SimdUnaryOp};
use rten_tensor::NdTensorView;
use rten_vecmath::{ApproxGelu, Gelu, Softmax, Tanh};

use self::linear::{Input, Linear, Products, room, values};
use super::config::check_heads;
use super::heads::{HeadSizes, TextLogits};
use super::weights::Weights;
use crate::text::Encoding;

pub use self::linear::Precision;

/// Tokens computed together: their activations should stay in a core's cache.
const GROUP_TOKENS: usize = 256;

/// An encoder with its heads.
pub struct Runtime {
    precision: Precision,
    /// `(vocabulary, hidden)`
    words: Vec<f32>,
    /// `(positions, hidden)`, the only segment's vector added.
    positions: Vec<f32>,
    norm: LayerNorm,
    layers: Vec<Layer>,
    pooler: Linear,
    /// All heads side by side.
    heads: Linear,
    sizes: HeadSizes,
    hidden: usize,
}

struct LayerNorm {
    weight: Vec<f32>,
    bias: Vec<f32>,
    eps: f32,
}

impl LayerNorm {
    fn load(weights: &Weights, name: &str, config: &Config) -> Result<Self> {
        let part =
            |part: &str| values(&weights.get(&format!("{name}.{part}"), &[config.hidden_size])?);
        Ok(Self { weight: part("weight")?, bias: part("bias")?, eps: config.layer_norm_eps as f32 })
    }

    /// `xs = norm(xs + ys)`
    fn add(&self, xs: &mut [f32], ys: &[f32]) {
        kernels::add_and_normalize(xs, ys, &self.weight, &self.bias, self.eps);
    }
}

struct Layer {
    projections: Projections,
    attention_output: Linear,
    attention_norm: LayerNorm,
    intermediate: Linear,
    output: Linear,
    output_norm: LayerNorm,
    n_heads: usize,
    hidden_act: HiddenAct,
}

/// What makes queries, keys and values of states.
enum Projections {
    /// All three side by side, of every token.
    EveryToken(Linear),
    /// The last layer's: nobody reads the states of the tokens after the first.
    FirstToken { query: Linear, key_value: Linear },
}

/// Rows of floats, `stride` apart, from some column on.
#[derive(Clone, Copy)]
struct Rows<'a> {
    data: &'a [f32],
    stride: usize,
}

impl<'a> Rows<'a> {
    fn at_column(self, column: usize) -> Self {
        Self { data: &self.data[column..], ..self }
    }

    /// `n_columns` of `rows`.
    fn block(self, rows: &Range<usize>, n_columns: usize) -> NdTensorView<'a, f32, 2> {
        let (shape, strides) = ([rows.len(), n_columns], [self.stride, 1]);
        NdTensorView::from_data_with_strides(shape, &self.data[rows.start * self.stride..], strides)
            .expect("a head's columns lie inside its row")
    }
}

/// Buffers of one thread.
#[derive(Default)]
struct Scratch {
    products: Products,
    /// Where each row of tokens begins, and the end of the last.
    bounds: Vec<usize>,
    input: Input,
    /// States of all tokens; in the last layer, of each row's first token.
    xs: Vec<f32>,
    ys: Vec<f32>,
    projected: [Vec<f32>; 2],
    context: Vec<f32>,
    attention: Attention,
}

/// Buffers of one row's attention by one head.
#[derive(Default)]
struct Attention {
    scores: Vec<f32>,
    head: Vec<f32>,
}

thread_local! {
    /// Taken while in use: a thread that waits inside a product may be given another group.
    static SCRATCH: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
}

fn with_scratch(work: impl FnOnce(&mut Scratch)) {
    let mut scratch = SCRATCH.take().unwrap_or_default();
    work(&mut scratch);
    SCRATCH.set(Some(scratch));
}

impl Layer {
    fn load(
        weights: &Weights,
        name: &str,
        config: &Config,
        products: &Products,
        precision: Precision,
        is_last: bool,
    ) -> Result<Self> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let linear = |parts: &[&str], n_in, n_out| {
            let names: Vec<_> = parts.iter().map(|it| (format!("{name}.{it}"), n_out)).collect();
            Linear::load(weights, &names, n_in, products, precision)
        };
        let norm = |part: &str| LayerNorm::load(weights, &format!("{name}.{part}"), config);
        let [query, key, value] =
            ["attention.self.query", "attention.self.key", "attention.self.value"];
        Ok(Self {
            projections: if is_last {
                Projections::FirstToken {
                    query: linear(&[query], hidden, hidden)?,
                    key_value: linear(&[key, value], hidden, hidden)?,
                }
            } else {
                Projections::EveryToken(linear(&[query, key, value], hidden, hidden)?)
            },
            attention_output: linear(&["attention.output.dense"], hidden, hidden)?,
            attention_norm: norm("attention.output.LayerNorm")?,
            intermediate: linear(&["intermediate.dense"], hidden, inner)?,
            output: linear(&["output.dense"], inner, hidden)?,
            output_norm: norm("output.LayerNorm")?,
            n_heads: config.num_attention_heads,
            hidden_act: config.hidden_act,
        })
    }

    /// States in `scratch.xs` to the next ones; in the last layer, to each row's first token's.
    fn forward(&self, scratch: &mut Scratch, runtime: &Runtime) {
        let hidden = runtime.hidden;
        let Scratch { products, bounds, input, xs, ys, projected, context, attention } = scratch;
        let [projected, queries] = projected;
        input.set(xs, hidden, runtime.precision);
        let (query, key, is_last) = match &self.projections {
            Projections::EveryToken(all) => {
                let all =
                    Rows { data: all.forward(input, products, projected), stride: 3 * hidden };
                (all, all.at_column(hidden), false)
            }
            Projections::FirstToken { query, key_value } => {
                let key_value = key_value.forward(input, products, projected);
                for (row_idx, &begin) in bounds[..bounds.len() - 1].iter().enumerate() {
                    xs.copy_within(begin * hidden..(begin + 1) * hidden, row_idx * hidden);
                }
                xs.truncate((bounds.len() - 1) * hidden);
                input.set(xs, hidden, runtime.precision);
                let query = query.forward(input, products, queries);
                let query = Rows { data: query, stride: hidden };
                (query, Rows { data: key_value, stride: 2 * hidden }, true)
            }
        };
        let context = room(context, xs.len());
        for (row_idx, row) in bounds.windows(2).enumerate() {
            let tokens = row[0]..row[1];
            let queries = if is_last { row_idx..row_idx + 1 } else { tokens.clone() };
            let out = &mut context[queries.start * hidden..queries.end * hidden];
            let value = key.at_column(hidden);
            self.attend([query, key, value], &queries, &tokens, products, attention, out);
        }
        input.set(context, hidden, runtime.precision);
        self.attention_norm.add(xs, self.attention_output.forward(input, products, ys));
        input.set(xs, hidden, runtime.precision);
        self.intermediate.forward_within(input, products, |row| match self.hidden_act {
            HiddenAct::Gelu => Gelu {}.map_mut(row),
            HiddenAct::GeluApproximate => ApproxGelu {}.map_mut(row),
            HiddenAct::Relu => row.iter_mut().for_each(|it| *it = it.max(0.0)),
        });
        self.output_norm.add(xs, self.output.forward(input, products, ys));
    }

    /// Attention of one row's `queries` to its `tokens`, by queries, keys and values of all rows; `out` is
    /// `(queries, hidden)`.
    fn attend(
        &self,
        [query, key, value]: [Rows<'_>; 3],
        queries: &Range<usize>,
        tokens: &Range<usize>,
        products: &Products,
        Attention { scores, head }: &mut Attention,
        out: &mut [f32],
    ) {
        let hidden = out.len() / queries.len();
        let size = hidden / self.n_heads;
        let scores = room(scores, queries.len() * tokens.len());
        let head = room(head, queries.len() * size);
        for begin in (0..hidden).step_by(size) {
            let [query, key, value] = [query, key, value].map(|it| it.at_column(begin));
            let key = key.block(tokens, size);
            let scale = 1.0 / (size as f32).sqrt();
            products.matmul(scores, query.block(queries, size), key.transposed(), scale);
            scores.chunks_exact_mut(tokens.len()).for_each(|it| {
                Softmax::new_mut(it).dispatch();
            });
            let scores = NdTensorView::from_data([queries.len(), tokens.len()], &*scores);
            products.matmul(head, scores, value.block(tokens, size), 1.0);
            for (out, head) in out.chunks_exact_mut(hidden).zip(head.chunks_exact(size)) {
                out[begin..begin + size].copy_from_slice(head);
            }
        }
    }
}

impl Runtime {
    /// # Errors
    /// When a tensor the shape asks for is missing or misshapen; it is named.
    pub fn load(
        weights: &Weights,
        config: &Config,
        sizes: HeadSizes,
        precision: Precision,
    ) -> Result<Self> {
        let hidden = config.hidden_size;
        check_heads(config)?;
        let products = Products::default();
        let table = |name: &str, n_rows| {
            values(&weights.get(&format!("bert.embeddings.{name}.weight"), &[n_rows, hidden])?)
        };
        let mut positions = table("position_embeddings", config.max_position_embeddings)?;
        // Every token is of segment 0: an item is one text.
        let segments = table("token_type_embeddings", config.type_vocab_size)?;
        for row in positions.chunks_exact_mut(hidden) {
            row.iter_mut().zip(&segments).for_each(|(it, segment)| *it += segment);
        }
        // One row a text: their cost does not show, their rounding would.
        let exact = |names: &[(String, usize)]| {
            Linear::load(weights, names, hidden, &products, Precision::F32)
        };
        Ok(Self {
            words: table("word_embeddings", config.vocab_size)?,
            positions,
            norm: LayerNorm::load(weights, "bert.embeddings.LayerNorm", config)?,
            layers: (0..config.num_hidden_layers)
                .map(|it| {
                    let name = format!("bert.encoder.layer.{it}");
                    let is_last = it + 1 == config.num_hidden_layers;
                    Layer::load(weights, &name, config, &products, precision, is_last)
                })
                .collect::<Result<_>>()?,
            pooler: exact(&[("bert.pooler.dense".to_owned(), hidden)])?,
            heads: exact(&sizes.layers().map(|(name, n_out)| (name.to_owned(), n_out)))?,
            precision,
            sizes,
            hidden,
        })
    }

    /// Logits of each text; a text of several chunks gets the mean of theirs, weighted by tokens.
    ///
    /// # Panics
    /// When a chunk is empty, longer than the position table, or has an id beyond the vocabulary: the
    /// bundle's own encoder makes none.
    pub fn logits(&self, texts: &[&[Encoding]]) -> Vec<TextLogits> {
        let rows: Vec<&[u32]> = texts.iter().copied().flatten().map(|it| &*it.ids).collect();
        let pooled = self.pooled(&rows);
        let mut chunks = rows.iter().zip(pooled.chunks_exact(self.hidden));
        let mut means = Vec::with_capacity(texts.len() * self.hidden);
        for text in texts {
            let n_tokens: usize = text.iter().map(|it| it.ids.len()).sum();
            let begin = means.len();
            means.resize(begin + self.hidden, 0.0);
            for (ids, pooled) in chunks.by_ref().take(text.len()) {
                // The heads are linear: the mean of their answers is their answer to the mean.
                let share = ids.len() as f32 / n_tokens as f32;
                means[begin..].iter_mut().zip(pooled).for_each(|(it, value)| *it += value * share);
            }
        }
        let mut out = Vec::new();
        with_scratch(|Scratch { products, input, .. }| {
            input.set(&means, self.hidden, Precision::F32);
            self.heads.forward(input, products, &mut out);
        });
        let HeadSizes { n_types, n_levels, .. } = self.sizes;
        out.chunks_exact(self.sizes.n_outputs())
            .map(|row| {
                let (kind, rest) = row.split_at(n_types);
                let (level, grounds) = rest.split_at(n_levels - 1);
                TextLogits { kind: kind.to_vec(), level: level.to_vec(), grounds: grounds.to_vec() }
            })
            .collect()
    }

    /// Pooled vectors of `rows` of token ids, one after the other: `(rows, hidden)`.
    ///
    /// # Panics
    /// As [`Runtime::logits`].
    pub fn pooled(&self, rows: &[&[u32]]) -> Vec<f32> {
        let n_tokens: usize = rows.iter().map(|it| it.len()).sum();
        // Every core gets a share, also of a small batch.
        let limit = GROUP_TOKENS.min(n_tokens.div_ceil(rayon::current_num_threads()));
        let mut rest = rows;
        let mut groups = Vec::new();
        while !rest.is_empty() {
            let (group, others) = rest.split_at(group_len(rest.iter().map(|it| it.len()), limit));
            groups.push(group);
            rest = others;
        }
        let mut out = vec![0.0; rows.len() * self.hidden];
        let mut parts = Vec::with_capacity(groups.len());
        let mut rest = out.as_mut_slice();
        for group in groups {
            let (part, others) = rest.split_at_mut(group.len() * self.hidden);
            parts.push((group, part));
            rest = others;
        }
        parts.into_par_iter().for_each(|(group, part)| {
            with_scratch(|scratch| self.pooled_group(group, scratch, part));
        });
        out
    }

    /// Pooled vectors of one group, into `out`.
    fn pooled_group(&self, rows: &[&[u32]], scratch: &mut Scratch, out: &mut [f32]) {
        let hidden = self.hidden;
        scratch.bounds.clear();
        scratch.bounds.push(0);
        scratch.xs.clear();
        scratch.ys.clear();
        for row in rows {
            for (position, &id) in row.iter().enumerate() {
                let id = id as usize;
                scratch.xs.extend_from_slice(&self.words[id * hidden..(id + 1) * hidden]);
                let position = &self.positions[position * hidden..(position + 1) * hidden];
                scratch.ys.extend_from_slice(position);
            }
            scratch.bounds.push(scratch.xs.len() / hidden);
        }
        self.norm.add(&mut scratch.xs, &scratch.ys);
        self.layers.iter().for_each(|it| it.forward(scratch, self));
        let Scratch { products, input, xs, ys, .. } = scratch;
        input.set(xs, hidden, Precision::F32);
        out.copy_from_slice(self.pooler.forward(input, products, ys));
        Tanh {}.map_mut(out);
    }
}

/// How many of the next rows go together; at least one.
fn group_len(lengths: impl Iterator<Item = usize>, max_tokens: usize) -> usize {
    let mut n_tokens = 0;
    let fits = |length: &usize| {
        let is_first = n_tokens == 0;
        n_tokens += length;
        is_first || n_tokens <= max_tokens
    };
    lengths.take_while(fits).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::heads::Heads;
    use crate::model::network::Network;
    use crate::model::transformer::{Mode, tiny};

    const SIZES: HeadSizes = HeadSizes { n_types: 3, n_levels: 4, n_grounds: 2 };

    fn weights(seed: u64, hidden_act: HiddenAct) -> (Config, Weights) {
        let (config, mut weights) = tiny(seed);
        Heads::start(&mut weights, config.hidden_size, SIZES, seed + 1).unwrap();
        (Config { hidden_act, ..config }, weights)
    }

    fn text(rows: &[&[u32]]) -> Vec<Encoding> {
        rows.iter().map(|ids| Encoding { ids: ids.to_vec() }).collect()
    }

    fn all(logits: &TextLogits) -> Vec<f32> {
        [logits.kind.as_slice(), &logits.level, &logits.grounds].concat()
    }

    fn greatest_gap(a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len());
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }

    const ROWS: [&[u32]; 4] =
        [&[2, 7, 8, 9, 3], &[2, 11, 12, 13, 14, 15, 16, 17, 18, 3], &[2, 3], &[2, 29, 5, 1, 3]];

    #[test]
    fn f32_equals_the_differentiable_body() {
        for hidden_act in [HiddenAct::Gelu, HiddenAct::GeluApproximate, HiddenAct::Relu] {
            let (config, weights) = weights(1, hidden_act);
            let network = Network::load(&weights, &config, SIZES).unwrap();
            let expected = network.forward(&ROWS, &Mode::Eval).unwrap();
            let runtime = Runtime::load(&weights, &config, SIZES, Precision::F32).unwrap();
            let texts = ROWS.map(|it| text(&[it]));
            let actual = runtime.logits(&texts.each_ref().map(Vec::as_slice));
            for (row_idx, actual) in actual.iter().enumerate() {
                let row = |it: &candle_core::Tensor| it.get(row_idx).unwrap().to_vec1().unwrap();
                for (actual, expected) in [
                    (&actual.kind, row(&expected.kind)),
                    (&actual.level, row(&expected.level)),
                    (&actual.grounds, row(&expected.grounds)),
                ] {
                    let gap = greatest_gap(actual, &expected);
                    assert!(gap < 1e-4, "{hidden_act:?} row {row_idx}: {gap}");
                }
            }
        }
    }

    #[test]
    fn int8_stays_near_f32() {
        for seed in 0..20 {
            let (config, weights) = weights(seed, HiddenAct::Gelu);
            let load = |precision| Runtime::load(&weights, &config, SIZES, precision).unwrap();
            let (exact, whole) = (load(Precision::F32), load(Precision::Int8));
            let (a, b) = (exact.pooled(&ROWS), whole.pooled(&ROWS));
            let gap = greatest_gap(&a, &b);
            assert!(0.0 < gap && gap < 0.15, "seed {seed}: {gap}");
        }
    }

    #[test]
    fn a_text_scores_the_same_alone_and_in_a_batch() {
        let texts = [
            text(&[ROWS[0]]),
            text(&[ROWS[1], ROWS[3]]),
            text(&[ROWS[2]]),
            text(&[&[2, 7, 8, 9, 10, 3]]),
        ];
        let (config, weights) = weights(4, HiddenAct::Gelu);
        for precision in [Precision::F32, Precision::Int8] {
            let runtime = Runtime::load(&weights, &config, SIZES, precision).unwrap();
            let together = runtime.logits(&texts.each_ref().map(Vec::as_slice));
            for (text, expected) in texts.iter().zip(&together) {
                let alone = runtime.logits(&[text.as_slice()]);
                let gap = greatest_gap(&all(&alone[0]), &all(expected));
                assert!(gap < 1e-5, "{precision:?}: {gap}");
            }
        }
    }

    #[test]
    fn chunks_count_by_their_tokens() {
        let (config, weights) = weights(5, HiddenAct::Gelu);
        let runtime = Runtime::load(&weights, &config, SIZES, Precision::F32).unwrap();
        let parts = [text(&[ROWS[0]]), text(&[ROWS[1]])];
        let parts = runtime.logits(&parts.each_ref().map(Vec::as_slice));
        let whole = runtime.logits(&[text(&ROWS[..2]).as_slice()]);
        let mixed: Vec<f32> = all(&parts[0])
            .iter()
            .zip(all(&parts[1]))
            .map(|(a, b)| (5.0 * a + 10.0 * b) / 15.0)
            .collect();
        assert!(greatest_gap(&all(&whole[0]), &mixed) < 1e-5);
    }

    #[test]
    fn group_len_keeps_the_limit_and_always_goes_on() {
        let cases: [(&str, &[usize], usize); 4] = [
            ("all fit", &[10, 20, 30], 3),
            ("exactly at the limit", &[60, 40, 1], 2),
            ("one over", &[60, 41], 1),
            ("an oversized first row still goes, alone", &[500, 1], 1),
        ];
        for (name, lengths, expected) in cases {
            assert_eq!(group_len(lengths.iter().copied(), 100), expected, "{name}");
        }
    }
}
