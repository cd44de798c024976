//! The values training changes, and where the encoder's parts are among them.

use candle_core::{Device, Result, Tensor};
use candle_transformers::models::bert::{Config, HiddenAct};

use super::kernels::Products;
use crate::model::config::check_heads;
use crate::model::heads::HeadSizes;
use crate::model::weights::Weights;

/// Name of the word table.
pub const WORDS: &str = "bert.embeddings.word_embeddings.weight";

/// The values of [`Weights`], tensor by tensor in order of names.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameters {
    /// Names, ascending.
    pub names: Vec<String>,
    /// Shape of each tensor.
    pub shapes: Vec<Vec<usize>>,
    /// Values of each tensor, row by row.
    pub values: Vec<Vec<f32>>,
}

impl Parameters {
    /// # Errors
    /// When a tensor cannot be read.
    pub fn new(weights: &Weights) -> Result<Self> {
        let mut this = Self { names: Vec::new(), shapes: Vec::new(), values: Vec::new() };
        for (name, tensor) in weights.iter() {
            this.names.push(name.to_owned());
            this.shapes.push(tensor.dims().to_vec());
            this.values.push(tensor.flatten_all()?.to_vec1()?);
        }
        Ok(this)
    }

    /// `values`, shaped and named as these.
    ///
    /// # Errors
    /// When a length does not fit its shape.
    pub fn weights<'a>(&self, values: impl IntoIterator<Item = &'a [f32]>) -> Result<Weights> {
        let mut weights = Weights::default();
        for ((name, shape), values) in self.names.iter().zip(&self.shapes).zip(values) {
            weights.insert(name, Tensor::from_slice(values, shape.as_slice(), &Device::Cpu)?);
        }
        Ok(weights)
    }

    /// Index of the tensor called `name`.
    pub fn position(&self, name: &str) -> Option<usize> {
        self.names.binary_search_by(|it| it.as_str().cmp(name)).ok()
    }
}

/// Slopes of a loss.
#[derive(Debug, Clone, PartialEq)]
pub struct Gradients {
    /// One per tensor of the [`Parameters`]; that of the word table is empty.
    pub dense: Vec<Vec<f32>>,
    /// Word of each token, and the slope at its vector, token by token.
    pub words: (Vec<u32>, Vec<f32>),
}

#[derive(Clone, Copy)]
pub(super) struct Linear {
    pub(super) weight: usize,
    pub(super) bias: usize,
    pub(super) n_in: usize,
    pub(super) n_out: usize,
}

#[derive(Clone, Copy)]
pub(super) struct Norm {
    pub(super) weight: usize,
    pub(super) bias: usize,
}

pub(super) struct Layer {
    pub(super) query: Linear,
    pub(super) key: Linear,
    pub(super) value: Linear,
    pub(super) attention_output: Linear,
    pub(super) attention_norm: Norm,
    pub(super) intermediate: Linear,
    pub(super) output: Linear,
    pub(super) output_norm: Norm,
}

/// Where the parts of an encoder with heads are among its [`Parameters`].
pub struct Trainable {
    pub(super) words: usize,
    pub(super) positions: usize,
    pub(super) segments: usize,
    pub(super) norm: Norm,
    pub(super) layers: Vec<Layer>,
    pub(super) pooler: Linear,
    pub(super) heads: [Linear; 3],
    pub(super) hidden: usize,
    pub(super) n_heads: usize,
    pub(super) act: HiddenAct,
    pub(super) eps: f32,
    pub(super) products: Products,
}

impl Trainable {
    /// # Errors
    /// When `weights`, which `parameters` are the values of, lack a tensor or have it in another shape; it
    /// is named.
    pub fn new(
        weights: &Weights,
        parameters: &Parameters,
        config: &Config,
        sizes: HeadSizes,
    ) -> Result<Self> {
        let hidden = config.hidden_size;
        check_heads(config)?;
        let find = |name: &str, shape: &[usize]| -> Result<usize> {
            weights.get(name, shape)?;
            parameters
                .position(name)
                .ok_or_else(|| candle_core::Error::msg(format!("`{name}` is no parameter")))
        };
        let linear = |name: &str, n_in, n_out| -> Result<Linear> {
            let weight = find(&format!("{name}.weight"), &[n_out, n_in])?;
            let bias = find(&format!("{name}.bias"), &[n_out])?;
            Ok(Linear { weight, bias, n_in, n_out })
        };
        let norm = |name: &str| -> Result<Norm> {
            let part = |part: &str| find(&format!("{name}.{part}"), &[hidden]);
            Ok(Norm { weight: part("weight")?, bias: part("bias")? })
        };
        let layer = |idx: usize| -> Result<Layer> {
            let name = |part: &str| format!("bert.encoder.layer.{idx}.{part}");
            Ok(Layer {
                query: linear(&name("attention.self.query"), hidden, hidden)?,
                key: linear(&name("attention.self.key"), hidden, hidden)?,
                value: linear(&name("attention.self.value"), hidden, hidden)?,
                attention_output: linear(&name("attention.output.dense"), hidden, hidden)?,
                attention_norm: norm(&name("attention.output.LayerNorm"))?,
                intermediate: linear(
                    &name("intermediate.dense"),
                    hidden,
                    config.intermediate_size,
                )?,
                output: linear(&name("output.dense"), config.intermediate_size, hidden)?,
                output_norm: norm(&name("output.LayerNorm"))?,
            })
        };
        let table =
            |name: &str, n_rows| find(&format!("bert.embeddings.{name}.weight"), &[n_rows, hidden]);
        let [kind, level, grounds] =
            sizes.layers().map(|(name, n_out)| linear(name, hidden, n_out));
        Ok(Self {
            words: table("word_embeddings", config.vocab_size)?,
            positions: table("position_embeddings", config.max_position_embeddings)?,
            segments: table("token_type_embeddings", config.type_vocab_size)?,
            norm: norm("bert.embeddings.LayerNorm")?,
            layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_>>()?,
            pooler: linear("bert.pooler.dense", hidden, hidden)?,
            heads: [kind?, level?, grounds?],
            hidden,
            n_heads: config.num_attention_heads,
            act: config.hidden_act,
            eps: config.layer_norm_eps as f32,
            products: Products::default(),
        })
    }

    /// Slopes of zero.
    pub fn no_gradients(&self, parameters: &Parameters) -> Gradients {
        let mut dense: Vec<Vec<f32>> =
            parameters.values.iter().map(|it| vec![0.0; it.len()]).collect();
        dense[self.words] = Vec::new();
        Gradients { dense, words: (Vec::new(), Vec::new()) }
    }
}
