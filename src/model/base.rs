//! What training starts from: a directory with `config.json`, `tokenizer.json` and, when there are
//! any, weights. A bundle is such a directory; so is the output of `scripts/warm_start.py`.

use std::path::Path;

use candle_transformers::models::bert::Config;
use tokenizers::Tokenizer;

use super::bundle::{
    Bundle, BundleError, CONFIG, HeadSettings, MANIFEST, TOKENIZER, TextSettings, WEIGHTS, content,
    read, sha256,
};
use super::config;
use super::weights::Weights;
use crate::domain::label::LabelSet;

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
    /// The whole bundle, when the directory is one.
    pub bundle: Option<Bundle>,
}

impl Base {
    /// Reads `dir`; tensors it lacks are drawn at random with `seed`.
    ///
    /// # Errors
    /// [`BundleError`], naming the file; a tensor of another shape than `config.json` asks for is
    /// refused, and so is a damaged bundle.
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
        let bundle = path(MANIFEST).exists().then(|| Bundle::load(dir)).transpose()?;
        let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !path(WEIGHTS).exists() {
            let origin = format!("{name}: random");
            return Ok(Self { config, tokenizer, weights, origin, bundle });
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
        Ok(Self { config, tokenizer, weights, origin, bundle })
    }

    /// The bundle, when it answers the very questions asked here of texts prepared in the very same way: then
    /// its heads and its lexical half can be gone on from.
    pub fn same_questions(
        &self,
        types: &LabelSet,
        heads: &HeadSettings,
        text: &TextSettings,
    ) -> Option<&Bundle> {
        self.bundle.as_ref().filter(|it| {
            &it.types == types && &it.manifest.heads == heads && &it.manifest.text == text
        })
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
        let (heads, text) = (&bundle.manifest.heads, &bundle.manifest.text);
        assert!(base.same_questions(&bundle.types, heads, text).is_some());
        let others = LabelSet::new(["a", "b"]).unwrap();
        assert!(base.same_questions(&others, heads, text).is_none());
        let name = "bert.embeddings.word_embeddings.weight";
        let mut few = Weights::default();
        let given = base.weights.iter().find(|it| it.0 == name).unwrap().1.clone();
        few.insert(name, given.clone());
        std::fs::remove_file(dir.join(MANIFEST)).unwrap(); // Else it would be a damaged bundle.
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
