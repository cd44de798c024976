//! Named tensors: safetensors in and out under the names the checkpoint uses, and seeded starts.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_transformers::models::bert::Config;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Named tensors of one model, in name order. In training each is a [`Var`]'s tensor.
#[derive(Debug, Clone, Default)]
pub struct Weights(BTreeMap<String, Tensor>);

impl Weights {
    /// The tensors in `bytes` (safetensors), widened to f32.
    ///
    /// # Errors
    /// When `bytes` is not a safetensors file.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let tensors = candle_core::safetensors::load_buffer(bytes, &Device::Cpu)?;
        let widen = |(name, tensor): (String, Tensor)| Ok((name, tensor.to_dtype(DType::F32)?));
        Ok(Self(tensors.into_iter().map(widen).collect::<Result<_>>()?))
    }

    /// The tensors as a safetensors file; `dtype` is the storage type.
    ///
    /// # Errors
    /// When a tensor cannot be converted.
    pub fn to_bytes(&self, dtype: DType) -> Result<Vec<u8>> {
        let narrow =
            |(name, tensor): (&String, &Tensor)| Ok((name.clone(), tensor.to_dtype(dtype)?));
        let tensors = self.0.iter().map(narrow).collect::<Result<BTreeMap<_, _>>>()?;
        // Python's transformers asks for this entry.
        let metadata = [("format".to_owned(), "pt".to_owned())].into_iter().collect();
        safetensors::serialize(&tensors, Some(metadata)).map_err(candle_core::Error::wrap)
    }

    /// The tensor called `name`.
    ///
    /// # Errors
    /// When there is none, or when its shape is not `shape`; both are named.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let Some(tensor) = self.0.get(name) else {
            candle_core::bail!("model.safetensors has no tensor `{name}`")
        };
        if tensor.dims() != shape {
            candle_core::bail!(
                "tensor `{name}` has shape {:?}, config.json asks for {shape:?}",
                tensor.dims()
            )
        }
        Ok(tensor.clone())
    }

    /// Names and tensors in name order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.0.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// Adds a tensor, or replaces the one of that name.
    pub fn insert(&mut self, name: impl Into<String>, tensor: Tensor) {
        self.0.insert(name.into(), tensor);
    }

    /// True when a tensor is called `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Name of the first tensor with a NaN or an infinity, if any.
    ///
    /// # Errors
    /// When a tensor cannot be read.
    pub fn first_not_finite(&self) -> Result<Option<&str>> {
        for (name, tensor) in self.iter() {
            // One such value makes the whole sum not finite; so would an overflow, which no sane
            // weight comes near.
            if !tensor.abs()?.sum_all()?.to_scalar::<f32>()?.is_finite() {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    /// A trainable copy: the variables by name, and the same tensors as weights.
    ///
    /// # Errors
    /// When a tensor cannot be copied.
    pub fn trainable(&self) -> Result<(BTreeMap<String, Var>, Self)> {
        let vars = self
            .0
            .iter()
            .map(|(name, tensor)| Ok((name.clone(), Var::from_tensor(&tensor.copy()?)?)))
            .collect::<Result<BTreeMap<_, _>>>()?;
        let tensors =
            vars.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect();
        Ok((vars, Self(tensors)))
    }

    /// A copy whose tensors no longer change when training goes on.
    ///
    /// # Errors
    /// When a tensor cannot be copied.
    pub fn snapshot(&self) -> Result<Self> {
        let copy = |(name, tensor): (&String, &Tensor)| Ok((name.clone(), tensor.copy()?));
        Ok(Self(self.0.iter().map(copy).collect::<Result<_>>()?))
    }

    /// A random start for a BERT encoder of shape `config`: normal with `initializer_range`, biases
    /// zero, layer norms one. The same seed gives the same weights on every machine.
    ///
    /// # Errors
    /// When a tensor cannot be made.
    pub fn random_encoder(config: &Config, seed: u64) -> Result<Self> {
        let mut init = Init {
            rng: ChaCha8Rng::seed_from_u64(seed),
            std: config.initializer_range,
            out: Self::default(),
        };
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        init.normal("bert.embeddings.word_embeddings.weight", &[config.vocab_size, hidden])?;
        init.normal(
            "bert.embeddings.position_embeddings.weight",
            &[config.max_position_embeddings, hidden],
        )?;
        init.normal(
            "bert.embeddings.token_type_embeddings.weight",
            &[config.type_vocab_size, hidden],
        )?;
        init.layer_norm("bert.embeddings.LayerNorm", hidden)?;
        for layer_idx in 0..config.num_hidden_layers {
            let layer = format!("bert.encoder.layer.{layer_idx}");
            for name in ["query", "key", "value"] {
                init.linear(&format!("{layer}.attention.self.{name}"), hidden, hidden)?;
            }
            init.linear(&format!("{layer}.attention.output.dense"), hidden, hidden)?;
            init.layer_norm(&format!("{layer}.attention.output.LayerNorm"), hidden)?;
            init.linear(&format!("{layer}.intermediate.dense"), hidden, inner)?;
            init.linear(&format!("{layer}.output.dense"), inner, hidden)?;
            init.layer_norm(&format!("{layer}.output.LayerNorm"), hidden)?;
        }
        init.linear("bert.pooler.dense", hidden, hidden)?;
        Ok(init.out)
    }

    /// Adds a random linear layer called `name`, from `n_in` to `n_out`.
    ///
    /// # Errors
    /// When a tensor cannot be made.
    pub fn add_random_linear(
        &mut self,
        name: &str,
        n_in: usize,
        n_out: usize,
        seed: u64,
    ) -> Result<()> {
        let mut init =
            Init { rng: ChaCha8Rng::seed_from_u64(seed), std: 0.02, out: Self::default() };
        init.linear(name, n_in, n_out)?;
        self.0.extend(init.out.0);
        Ok(())
    }
}

struct Init {
    rng: ChaCha8Rng,
    std: f64,
    out: Weights,
}

impl Init {
    fn normal(&mut self, name: &str, shape: &[usize]) -> Result<()> {
        let values: Vec<f32> = (0..shape.iter().product())
            .map(|_| {
                // Box-Muller; the first draw is kept off zero, whose logarithm is infinite.
                let (u, v): (f64, f64) = (1.0 - self.rng.random::<f64>(), self.rng.random());
                ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos() * self.std) as f32
            })
            .collect();
        self.out.insert(name, Tensor::from_vec(values, shape, &Device::Cpu)?);
        Ok(())
    }

    fn linear(&mut self, name: &str, n_in: usize, n_out: usize) -> Result<()> {
        self.normal(&format!("{name}.weight"), &[n_out, n_in])?;
        self.out.insert(format!("{name}.bias"), Tensor::zeros(n_out, DType::F32, &Device::Cpu)?);
        Ok(())
    }

    fn layer_norm(&mut self, name: &str, width: usize) -> Result<()> {
        self.out.insert(format!("{name}.weight"), Tensor::ones(width, DType::F32, &Device::Cpu)?);
        self.out.insert(format!("{name}.bias"), Tensor::zeros(width, DType::F32, &Device::Cpu)?);
        Ok(())
    }
}
