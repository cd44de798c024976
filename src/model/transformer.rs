//! The reference body: a BERT encoder with its pooler, in candle. Tests hold training's and serving's
//! bodies to it; neither goes through it.
//!
//! candle-transformers' `BertModel` gives no slopes: its fused layer norm and softmax record no
//! gradient, and its dropout does nothing. This one computes the same function from the same
//! weights (a parity test holds it to 1e-4) with two ways through: [`Mode::Train`] uses only
//! operations that carry gradients, [`Mode::Eval`] the fused ones.

use std::cell::RefCell;

use candle_core::{Device, Result, Tensor};
use candle_nn::ops;
use candle_transformers::models::bert::{Config, HiddenAct};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::config::check_heads;
use super::weights::Weights;

/// How to go through the model.
pub enum Mode<'a> {
    /// Fused operations, no dropout, no gradient.
    Eval,
    /// Operations that carry gradients; dropout from the given generator.
    Train(&'a Dropout),
}

/// Seeded dropout: candle's own draws from a generator that cannot be seeded on the CPU.
pub struct Dropout {
    probability: f32,
    rng: RefCell<ChaCha8Rng>,
}

impl Dropout {
    /// Dropout that zeroes each value with `probability`.
    pub fn new(probability: f32, seed: u64) -> Self {
        Self { probability, rng: RefCell::new(ChaCha8Rng::seed_from_u64(seed)) }
    }
}

impl Mode<'_> {
    /// `xs` with dropout in training, `xs` otherwise.
    ///
    /// # Errors
    /// When the mask cannot be made.
    pub fn dropout(&self, xs: Tensor) -> Result<Tensor> {
        let Self::Train(dropout) = self else { return Ok(xs) };
        if dropout.probability <= 0.0 {
            return Ok(xs);
        }
        let mut rng = dropout.rng.borrow_mut();
        let threshold = (f64::from(dropout.probability) * 65536.0) as u16;
        let scale = 1.0 / (1.0 - dropout.probability);
        let mut mask = Vec::with_capacity(xs.elem_count());
        // Four draws of 16 bits from each 64-bit word.
        while mask.len() < xs.elem_count() {
            let mut bits: u64 = rng.random();
            for _ in 0..4.min(xs.elem_count() - mask.len()) {
                mask.push(if (bits as u16) < threshold { 0.0 } else { scale });
                bits >>= 16;
            }
        }
        xs.mul(&Tensor::from_vec(mask, xs.shape(), xs.device())?)
    }
}

/// A linear layer on tensors whose last dimension is `n_in`.
pub struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    /// # Errors
    /// When `name.weight` (`(n_out, n_in)`) or `name.bias` (`(n_out)`) is missing or misshapen.
    pub fn load(weights: &Weights, name: &str, n_in: usize, n_out: usize) -> Result<Self> {
        Ok(Self {
            weight: weights.get(&format!("{name}.weight"), &[n_out, n_in])?,
            bias: weights.get(&format!("{name}.bias"), &[n_out])?,
        })
    }

    /// `(.., n_in)` to `(.., n_out)`.
    ///
    /// # Errors
    /// When the last dimension is not `n_in`.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        // One flat product: a batched one would repeat the weight for every row.
        let mut shape = xs.dims().to_vec();
        let n_in = shape.pop().unwrap_or(0);
        let flat = xs.reshape(((), n_in))?.matmul(&self.weight.t()?)?.broadcast_add(&self.bias)?;
        shape.push(self.bias.dims1()?);
        flat.reshape(shape)
    }
}

struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f32,
}

impl LayerNorm {
    fn load(weights: &Weights, name: &str, config: &Config) -> Result<Self> {
        Ok(Self {
            weight: weights.get(&format!("{name}.weight"), &[config.hidden_size])?,
            bias: weights.get(&format!("{name}.bias"), &[config.hidden_size])?,
            eps: config.layer_norm_eps as f32,
        })
    }

    fn forward(&self, xs: &Tensor, mode: &Mode<'_>) -> Result<Tensor> {
        match mode {
            Mode::Eval => ops::layer_norm(&xs.contiguous()?, &self.weight, &self.bias, self.eps),
            Mode::Train(_) => ops::layer_norm_slow(xs, &self.weight, &self.bias, self.eps),
        }
    }
}

struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    attention_output: Linear,
    attention_norm: LayerNorm,
    intermediate: Linear,
    output: Linear,
    output_norm: LayerNorm,
    n_heads: usize,
    hidden_act: HiddenAct,
}

impl Layer {
    fn load(weights: &Weights, name: &str, config: &Config) -> Result<Self> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let linear =
            |part: &str, n_in, n_out| Linear::load(weights, &format!("{name}.{part}"), n_in, n_out);
        let norm = |part: &str| LayerNorm::load(weights, &format!("{name}.{part}"), config);
        Ok(Self {
            query: linear("attention.self.query", hidden, hidden)?,
            key: linear("attention.self.key", hidden, hidden)?,
            value: linear("attention.self.value", hidden, hidden)?,
            attention_output: linear("attention.output.dense", hidden, hidden)?,
            attention_norm: norm("attention.output.LayerNorm")?,
            intermediate: linear("intermediate.dense", hidden, inner)?,
            output: linear("output.dense", inner, hidden)?,
            output_norm: norm("output.LayerNorm")?,
            n_heads: config.num_attention_heads,
            hidden_act: config.hidden_act,
        })
    }

    /// `xs` is `(batch, seq, hidden)`, `bias` is `(batch, 1, 1, seq)` and added to the scores.
    fn forward(&self, xs: &Tensor, bias: &Tensor, mode: &Mode<'_>) -> Result<Tensor> {
        let (n_rows, n_tokens, hidden) = xs.dims3()?;
        let head_size = hidden / self.n_heads;
        let split = |it: Tensor| {
            it.reshape((n_rows, n_tokens, self.n_heads, head_size))?.transpose(1, 2)?.contiguous()
        };
        let query = (split(self.query.forward(xs)?)? * (1.0 / (head_size as f64).sqrt()))?;
        let key = split(self.key.forward(xs)?)?;
        let value = split(self.value.forward(xs)?)?;
        let scores = query.matmul(&key.transpose(2, 3)?.contiguous()?)?.broadcast_add(bias)?;
        let attention = match mode {
            Mode::Eval => ops::softmax_last_dim(&scores)?,
            Mode::Train(_) => ops::softmax(&scores, candle_core::D::Minus1)?,
        };
        let context =
            attention.matmul(&value)?.transpose(1, 2)?.reshape((n_rows, n_tokens, hidden))?;
        let context = mode.dropout(self.attention_output.forward(&context)?)?;
        let xs = self.attention_norm.forward(&(xs + context)?, mode)?;
        let inner = self.intermediate.forward(&xs)?;
        let inner = match self.hidden_act {
            HiddenAct::Gelu => inner.gelu_erf()?,
            HiddenAct::GeluApproximate => inner.gelu()?,
            HiddenAct::Relu => inner.relu()?,
        };
        let inner = mode.dropout(self.output.forward(&inner)?)?;
        self.output_norm.forward(&(&xs + inner)?, mode)
    }
}

/// A BERT encoder with its pooler.
pub struct Transformer {
    word_embeddings: Tensor,
    position_embeddings: Tensor,
    token_type_embeddings: Tensor,
    norm: LayerNorm,
    layers: Vec<Layer>,
    pooler: Linear,
    max_tokens: usize,
}

/// Rows of token ids padded to the longest.
pub struct PaddedRows {
    /// `(batch, seq)`, u32.
    pub input_ids: Tensor,
    /// `(batch, 1, 1, seq)`: 0 at a token, a large negative number at padding.
    pub bias: Tensor,
}

impl PaddedRows {
    /// # Errors
    /// When the tensors cannot be made.
    pub fn new(rows: &[&[u32]], pad_token_id: u32) -> Result<Self> {
        let longest = rows.iter().map(|it| it.len()).max().unwrap_or(0);
        let mut ids = Vec::with_capacity(rows.len() * longest);
        let mut bias = Vec::with_capacity(rows.len() * longest);
        for row in rows {
            ids.extend_from_slice(row);
            ids.extend(std::iter::repeat_n(pad_token_id, longest - row.len()));
            bias.extend(std::iter::repeat_n(0_f32, row.len()));
            bias.extend(std::iter::repeat_n(-1e9, longest - row.len()));
        }
        Ok(Self {
            input_ids: Tensor::from_vec(ids, (rows.len(), longest), &Device::Cpu)?,
            bias: Tensor::from_vec(bias, (rows.len(), 1, 1, longest), &Device::Cpu)?,
        })
    }
}

impl Transformer {
    /// # Errors
    /// When a tensor the shape asks for is missing or misshapen; it is named.
    pub fn load(weights: &Weights, config: &Config) -> Result<Self> {
        let hidden = config.hidden_size;
        check_heads(config)?;
        let table = |name: &str, n_rows| {
            weights.get(&format!("bert.embeddings.{name}.weight"), &[n_rows, hidden])
        };
        Ok(Self {
            word_embeddings: table("word_embeddings", config.vocab_size)?,
            position_embeddings: table("position_embeddings", config.max_position_embeddings)?,
            token_type_embeddings: table("token_type_embeddings", config.type_vocab_size)?,
            norm: LayerNorm::load(weights, "bert.embeddings.LayerNorm", config)?,
            layers: (0..config.num_hidden_layers)
                .map(|it| Layer::load(weights, &format!("bert.encoder.layer.{it}"), config))
                .collect::<Result<_>>()?,
            pooler: Linear::load(weights, "bert.pooler.dense", hidden, hidden)?,
            max_tokens: config.max_position_embeddings,
        })
    }

    /// Hidden states `(batch, seq, hidden)` of the last layer.
    ///
    /// # Errors
    /// When a row is longer than the position table.
    pub fn forward(&self, rows: &PaddedRows, mode: &Mode<'_>) -> Result<Tensor> {
        let (n_rows, n_tokens) = rows.input_ids.dims2()?;
        if n_tokens > self.max_tokens {
            candle_core::bail!(
                "a row of {n_tokens} tokens exceeds the encoder's {}",
                self.max_tokens
            )
        }
        let words = self.word_embeddings.embedding(&rows.input_ids.flatten_all()?)?;
        let words = words.reshape((n_rows, n_tokens, ()))?;
        let positions = self.position_embeddings.narrow(0, 0, n_tokens)?;
        // Every token is of segment 0: an item is one text.
        let segment = self.token_type_embeddings.narrow(0, 0, 1)?;
        let xs = words.broadcast_add(&positions.broadcast_add(&segment)?)?;
        let mut xs = mode.dropout(self.norm.forward(&xs, mode)?)?;
        for layer in &self.layers {
            xs = layer.forward(&xs, &rows.bias, mode)?;
        }
        Ok(xs)
    }

    /// Pooled vectors `(batch, hidden)`: the tanh of a linear layer on the first token's state.
    ///
    /// # Errors
    /// As [`Transformer::forward`].
    pub fn pooled(&self, rows: &PaddedRows, mode: &Mode<'_>) -> Result<Tensor> {
        let first = self.forward(rows, mode)?.narrow(1, 0, 1)?.squeeze(1)?;
        self.pooler.forward(&first)?.tanh()
    }
}

/// A small config and random weights, for tests.
#[cfg(test)]
pub fn tiny(seed: u64) -> (Config, Weights) {
    let config = Config {
        hidden_size: 16,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        intermediate_size: 24,
        max_position_embeddings: 12,
        ..super::config::small(30)
    };
    let weights = Weights::random_encoder(&config, seed).unwrap();
    // Wider than a real start and with biases, so that a wrong term shows.
    let mut wide = Weights::default();
    for (name, tensor) in weights.iter() {
        let tensor = match tensor.dims() {
            &[width] => {
                let ramp: Vec<f32> = (0..width).map(|it| (it as f32 * 0.7).sin() * 0.2).collect();
                tensor + Tensor::from_vec(ramp, width, &Device::Cpu).unwrap()
            }
            _ => tensor * 8.0,
        };
        wide.insert(name, tensor.unwrap());
    }
    (config, wide)
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;

    fn max_abs(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
    }

    const ROWS: [&[u32]; 3] = [&[2, 7, 8, 9, 3], &[2, 11, 3], &[2, 29, 5, 6, 1, 1, 4, 3]];

    #[test]
    fn forward_equals_candle_transformers_bert() {
        for hidden_act in [HiddenAct::Gelu, HiddenAct::GeluApproximate, HiddenAct::Relu] {
            let (config, weights) = tiny(1);
            let config = Config { hidden_act, ..config };
            let tensors = weights.iter().map(|(name, it)| (name.to_owned(), it.clone())).collect();
            let vb = candle_nn::VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
            let theirs =
                candle_transformers::models::bert::BertModel::load(vb.pp("bert"), &config).unwrap();
            let rows = PaddedRows::new(&ROWS, 0).unwrap();
            let mask = rows.bias.squeeze(1).unwrap().squeeze(1).unwrap().ge(-1.0).unwrap();
            let segments = rows.input_ids.zeros_like().unwrap();
            let expected = theirs.forward(&rows.input_ids, &segments, Some(&mask)).unwrap();
            let ours = Transformer::load(&weights, &config).unwrap();
            let no_dropout = Dropout::new(0.0, 0);
            for mode in [Mode::Eval, Mode::Train(&no_dropout)] {
                let actual = ours.forward(&rows, &mode).unwrap();
                for (row_idx, row) in ROWS.iter().enumerate() {
                    let part =
                        |it: &Tensor| it.get(row_idx).unwrap().narrow(0, 0, row.len()).unwrap();
                    let gap = max_abs(&part(&actual), &part(&expected));
                    assert!(gap < 1e-4, "{hidden_act:?} row {row_idx}: {gap}");
                }
            }
        }
    }

    #[test]
    fn a_row_scores_the_same_alone_and_in_a_batch() {
        let (config, weights) = tiny(2);
        let model = Transformer::load(&weights, &config).unwrap();
        let together = model.pooled(&PaddedRows::new(&ROWS, 0).unwrap(), &Mode::Eval).unwrap();
        for (row_idx, row) in ROWS.iter().enumerate() {
            let alone = model.pooled(&PaddedRows::new(&[row], 0).unwrap(), &Mode::Eval).unwrap();
            assert!(max_abs(&alone.get(0).unwrap(), &together.get(row_idx).unwrap()) < 1e-5);
        }
    }

    #[test]
    fn dropout_is_seeded_and_keeps_the_mean() {
        let ones = Tensor::ones((100, 100), DType::F32, &Device::Cpu).unwrap();
        let draw = |seed| Mode::Train(&Dropout::new(0.25, seed)).dropout(ones.clone()).unwrap();
        assert_eq!(max_abs(&draw(1), &draw(1)), 0.0);
        assert!(max_abs(&draw(1), &draw(2)) > 1.0);
        let mean: f32 = draw(1).mean_all().unwrap().to_scalar().unwrap();
        assert!((mean - 1.0).abs() < 0.05, "{mean}");
    }

    #[test]
    fn a_row_longer_than_the_position_table_is_refused() {
        let (config, weights) = tiny(3);
        let model = Transformer::load(&weights, &config).unwrap();
        let rows = PaddedRows::new(&[&[2; 13]], 0).unwrap();
        assert!(model.forward(&rows, &Mode::Eval).unwrap_err().to_string().contains("13 tokens"));
    }
}
