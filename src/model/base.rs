//! What training starts from: a directory with `config.json`, `tokenizer.json` and, when there are
//! any, weights. A bundle is such a directory; so is the output of `scripts/warm_start.py`.

use std::path::Path;

use candle_transformers::models::bert::Config;
use tokenizers::Tokenizer;

use super::bundle::{BundleError, CONFIG, TOKENIZER, WEIGHTS, content, read, sha256};
use super::config;
use super::weights::Weights;

/// The encoder to start from.
pub struct Base {
    /// Shape of the encoder.
    pub config: Config,
    /// Its vocabulary.
    pub tokenizer: Tokenizer,
    /// Every tensor of the encoder; none of a head.
    pub weights: Weights,
    /// Name of the directory, how many tensors came from it, and the digest of their file.
    pub origin: String,
}

impl Base {
    /// Reads `dir`; tensors it lacks are drawn at random with `seed`.
    ///
    /// # Errors
    /// [`BundleError`], naming the file; a tensor of another shape than `config.json` asks for is
    /// refused.
    pub fn load(dir: &Path, seed: u64) -> Result<Self, BundleError> {
        let path = |name| dir.join(name);
        let json = serde_json::from_slice(&read(&path(CONFIG))?)
            .map_err(|it| content(&path(CONFIG), it))?;
        let config = config::from_json(json).map_err(|it| content(&path(CONFIG), it))?;
        let tokenizer = Tokenizer::from_bytes(read(&path(TOKENIZER))?)
            .map_err(|it| content(&path(TOKENIZER), it))?;
        let vocab_size = tokenizer.get_vocab_size(true);
        if vocab_size != config.vocab_size {
            let reason =
                format!("vocab_size is {}, tokenizer.json has {vocab_size}", config.vocab_size);
            return Err(content(&path(CONFIG), reason));
        }
        let mut weights =
            Weights::random_encoder(&config, seed).map_err(|it| content(&path(CONFIG), it))?;
        let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !path(WEIGHTS).exists() {
            return Ok(Self { config, tokenizer, weights, origin: format!("{name}: random") });
        }
        let bytes = read(&path(WEIGHTS))?;
        let fail = |it| content(&path(WEIGHTS), it);
        let given = Weights::from_bytes(&bytes).map_err(fail)?;
        let names: Vec<String> = weights.iter().map(|it| it.0.to_owned()).collect();
        let mut n_given = 0;
        for name in &names {
            if given.contains(name) {
                let shape = weights.iter().find(|it| it.0 == name).map(|it| it.1.dims().to_vec());
                let tensor = given.get(name, &shape.unwrap_or_default()).map_err(fail)?;
                weights.insert(name, tensor);
                n_given += 1;
            }
        }
        let origin = format!("{name}: {n_given} of {} tensors, {}", names.len(), sha256(&bytes));
        Ok(Self { config, tokenizer, weights, origin })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Bundle;

    #[test]
    fn a_base_gives_what_it_has_and_draws_the_rest() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("a");
        let bundle = Bundle::for_tests();
        bundle.save(&dir, "").unwrap();
        let base = Base::load(&dir, 7).unwrap();
        assert!(base.weights.iter().all(|it| it.0.starts_with("bert.")));
        let name = "bert.embeddings.word_embeddings.weight";
        let mut few = Weights::default();
        let given = base.weights.iter().find(|it| it.0 == name).unwrap().1.clone();
        few.insert(name, given.clone());
        std::fs::write(dir.join(WEIGHTS), few.to_bytes(candle_core::DType::F32).unwrap()).unwrap();
        let partial = Base::load(&dir, 7).unwrap();
        let same = |it: &Base, name: &str| {
            let find =
                |weights: &Weights| weights.iter().find(|it| it.0 == name).unwrap().1.clone();
            let gap = (find(&it.weights) - find(&base.weights)).unwrap().abs().unwrap();
            gap.max_all().unwrap().to_scalar::<f32>().unwrap() == 0.0
        };
        assert!(same(&partial, name) && !same(&partial, "bert.pooler.dense.weight"));
        assert!(partial.origin.contains(": 1 of "), "{}", partial.origin);
    }
}
