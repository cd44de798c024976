//! A model version as a directory: what is in it, written whole and checked at load.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::DType;
use candle_transformers::models::bert::Config;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;
use tokenizers::Tokenizer;

use super::calibration::{Calibration, Mix};
use super::config;
use super::heads::{HeadSizes, Heads};
use super::learned::Learned;
use super::lexical::Lexical;
use super::weights::Weights;
use crate::domain::label::{InvalidLabelSet, LabelSet};
use crate::text::vocabulary::tokenizer_from;

/// The bundle format this binary reads and writes.
pub const FORMAT: u32 = 2;

pub(super) const MANIFEST: &str = "bundle.toml";
pub(super) const CONFIG: &str = "config.json";
pub(super) const TOKENIZER: &str = "tokenizer.json";
pub(super) const WEIGHTS: &str = "model.safetensors";
const METRICS: &str = "metrics.json";
/// Beside the others where the version says what it learned from.
const LEARNED: &str = "learned.bin";
const CARD: &str = "README.md";
/// Files whose digests the manifest holds.
const DIGESTED: [&str; 4] = [CONFIG, TOKENIZER, WEIGHTS, METRICS];

/// One model version in memory.
#[derive(Clone)]
pub struct Bundle {
    /// `bundle.toml`.
    pub manifest: Manifest,
    /// `config.json`: the encoder's shape.
    pub config: Config,
    /// Labels of the type head, in column order (`id2label`).
    pub types: LabelSet,
    /// `tokenizer.json`.
    pub tokenizer: Tokenizer,
    /// `model.safetensors`.
    pub weights: Weights,
    /// `metrics.json`, as written by the evaluation of this version.
    pub metrics: serde_json::Value,
    /// `learned.bin`: the texts that it and the versions it goes on from were trained or calibrated on.
    pub learned: Learned,
    /// `sha256:…` over the manifest, which holds the other files' digests.
    pub digest: String,
}

/// `bundle.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// Name of the model.
    pub name: String,
    /// Version of the model.
    pub version: String,
    /// How text becomes token ids.
    pub text: TextSettings,
    /// Heads beside the type head.
    pub heads: HeadSettings,
    /// Fitted on validation cases.
    pub calibration: CalibrationSettings,
    /// How it was made.
    pub training: TrainingRecord,
    /// `sha256:…` of each file.
    #[serde(default)]
    pub digests: BTreeMap<String, String>,
}

/// Text-pipeline settings a model was trained with and must be served with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextSettings {
    /// Tokens a chunk, `[CLS]` and `[SEP]` included.
    pub chunk_tokens: usize,
    /// Tokens neighbouring chunks share.
    pub overlap_tokens: usize,
    /// Buckets that n-grams fall into.
    pub ngram_buckets: usize,
    /// The segmenter and its dictionary.
    pub segmenter: String,
}

/// Sizes and labels of the heads that `config.json` has no place for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadSettings {
    /// Number of sensitivity levels.
    pub levels: usize,
    /// Codes of the grounds, in column order.
    pub grounds: Vec<String>,
}

/// [`Calibration`] as it is written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CalibrationSettings {
    /// How the type logits mix.
    pub kind: Mix,
    /// Added to the mixed type logits, one per type.
    #[serde(default)]
    pub type_bias: Vec<f32>,
    /// How the level logits mix.
    pub level: Mix,
    /// How the grounds logits mix.
    pub grounds: Mix,
    /// Least probability of a type in the prediction set.
    pub set_threshold: f32,
    /// Share of texts whose prediction set holds the true type, as asked for.
    pub coverage: f32,
}

/// How a version was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingRecord {
    /// `sha256:…` of the training file.
    pub data_digest: String,
    /// `sha256:…` over the identifiers of each part of the split.
    pub split_digest: String,
    /// How the held-out cases were chosen.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub split: String,
    /// Cases trained on.
    pub train_cases: usize,
    /// Cases held out for early stopping and calibration.
    pub validation_cases: usize,
    /// Seed of every random draw.
    pub seed: u64,
    /// Epoch whose weights were kept, from 1.
    pub epoch: usize,
    /// What the encoder started from.
    pub base: String,
    /// Version of this program.
    pub code_version: String,
    /// Whether the operator ended the training before it was done.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stopped_early: bool,
}

/// Why a bundle cannot be read or written.
#[derive(Debug, Error)]
pub enum BundleError {
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A file does not say what it should.
    #[error("{}: {reason}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Another bundle format.
    #[error("{} is of bundle format {actual}; this binary reads format {FORMAT}: use the triage version it was made with, or retrain", path.display())]
    Format {
        /// The manifest.
        path: PathBuf,
        /// Its format.
        actual: u32,
    },
    /// A file is not the one the manifest was written for.
    #[error("{} does not match its digest in {MANIFEST}: the bundle is damaged or was changed; copy it again", path.display())]
    Digest {
        /// The file.
        path: PathBuf,
    },
    /// Labels that are no label set.
    #[error("config.json id2label: {0}")]
    Labels(#[from] InvalidLabelSet),
}

impl Bundle {
    /// Reads and checks the bundle in `dir`.
    ///
    /// # Errors
    /// [`BundleError`], naming the file.
    pub fn load(dir: &Path) -> Result<Self, BundleError> {
        let manifest_path = dir.join(MANIFEST);
        let manifest_bytes = read(&manifest_path)?;
        let text = String::from_utf8(manifest_bytes).map_err(|it| content(&manifest_path, it))?;
        // The format first: another format may have other fields.
        let any: toml::Table = toml::from_str(&text).map_err(|it| content(&manifest_path, it))?;
        let format = any.get("format").and_then(toml::Value::as_integer).unwrap_or(0);
        if format != i64::from(FORMAT) {
            let actual = u32::try_from(format).unwrap_or(0);
            return Err(BundleError::Format { path: manifest_path, actual });
        }
        let manifest: Manifest = toml::from_str(&text).map_err(|it| content(&manifest_path, it))?;
        let mut files = BTreeMap::new();
        for name in DIGESTED {
            let path = dir.join(name);
            let bytes = read(&path)?;
            if manifest.digests.get(name).map(String::as_str) != Some(sha256(&bytes).as_str()) {
                return Err(BundleError::Digest { path });
            }
            files.insert(name, bytes);
        }
        let path = |name| dir.join(name);
        let learned = match manifest.digests.get(LEARNED) {
            None => Learned::default(),
            Some(digest) => {
                let bytes = read(&path(LEARNED))?;
                let learned = Learned::from_bytes(&bytes).filter(|_| &sha256(&bytes) == digest);
                learned.ok_or_else(|| BundleError::Digest { path: path(LEARNED) })?
            }
        };
        let config_json: serde_json::Value =
            serde_json::from_slice(&files[CONFIG]).map_err(|it| content(&path(CONFIG), it))?;
        let types = id2label(&config_json).ok_or_else(|| {
            content(&path(CONFIG), "`id2label` must name every column from \"0\" up")
        })?;
        let tokenizer =
            Tokenizer::from_bytes(&files[TOKENIZER]).map_err(|it| content(&path(TOKENIZER), it))?;
        let weights =
            Weights::from_bytes(&files[WEIGHTS]).map_err(|it| content(&path(WEIGHTS), it))?;
        if let Some(name) = weights.first_not_finite().map_err(|it| content(&path(WEIGHTS), it))? {
            return Err(content(
                &path(WEIGHTS),
                format!("tensor `{name}` holds a number that is not finite"),
            ));
        }
        Ok(Self {
            config: config::from_json(config_json).map_err(|it| content(&path(CONFIG), it))?,
            types: LabelSet::new(types)?,
            tokenizer,
            weights,
            metrics: serde_json::from_slice(&files[METRICS])
                .map_err(|it| content(&path(METRICS), it))?,
            learned,
            digest: sha256(text.as_bytes()),
            manifest,
        })
    }

    /// Writes the bundle to `dir`, weights as f16, `card` as its README; returns the digest.
    ///
    /// Written beside the final name and renamed when whole: a reader never sees half a bundle.
    ///
    /// # Errors
    /// [`BundleError`]; a `dir` that exists is refused, so that no version is overwritten.
    pub fn save(&self, dir: &Path, card: &str) -> Result<String, BundleError> {
        let fail = |path: &Path| {
            let path = path.to_owned();
            move |source| BundleError::File { path, source }
        };
        if dir.exists() {
            return Err(BundleError::Content {
                path: dir.to_owned(),
                reason: "already exists; a version is never overwritten: choose another name"
                    .into(),
            });
        }
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        let partial = dir.with_file_name(format!(".{name}.partial"));
        fs::create_dir_all(&partial).map_err(fail(&partial))?;
        let config = config::to_json(&self.config, &self.types);
        let tokenizer =
            self.tokenizer.to_string(false).map_err(|it| content(&dir.join(TOKENIZER), it))?;
        let weights =
            self.weights.to_bytes(DType::F16).map_err(|it| content(&dir.join(WEIGHTS), it))?;
        let mut files: Vec<(&str, Vec<u8>)> = vec![
            (CONFIG, format!("{config:#}\n").into_bytes()),
            (TOKENIZER, tokenizer.into_bytes()),
            (WEIGHTS, weights),
            (METRICS, format!("{:#}\n", self.metrics).into_bytes()),
        ];
        if !self.learned.is_empty() {
            files.push((LEARNED, self.learned.to_bytes()));
        }
        let mut manifest = self.manifest.clone();
        for (name, bytes) in &files {
            manifest.digests.insert((*name).to_owned(), sha256(bytes));
            fs::write(partial.join(name), bytes).map_err(fail(&partial.join(name)))?;
        }
        let manifest = toml::to_string(&manifest).map_err(|it| content(&dir.join(MANIFEST), it))?;
        fs::write(partial.join(MANIFEST), &manifest).map_err(fail(&partial.join(MANIFEST)))?;
        fs::write(partial.join(CARD), card).map_err(fail(&partial.join(CARD)))?;
        fs::rename(&partial, dir).map_err(fail(dir))?;
        Ok(sha256(manifest.as_bytes()))
    }

    /// Sizes of the heads.
    pub fn head_sizes(&self) -> HeadSizes {
        HeadSizes {
            n_types: self.types.len(),
            n_levels: self.manifest.heads.levels,
            n_grounds: self.manifest.heads.grounds.len(),
        }
    }
}

impl Bundle {
    /// A tiny random model over the embedded taxonomy, for tests.
    pub fn for_tests() -> Self {
        let taxonomy = crate::domain::taxonomy::Taxonomy::embedded();
        let words: Vec<String> = "小区停水三天了物业没人管谢谢建议听说着火救命的一是不在有我你他"
            .chars()
            .map(String::from)
            .chain(('a'..='z').map(String::from))
            .chain(["停水", "小区", "物业", "建议"].map(str::to_owned))
            .collect();
        let tokenizer = tokenizer_from(&words).expect("the template names special tokens");
        let config = Config {
            hidden_size: 16,
            num_attention_heads: 2,
            intermediate_size: 32,
            max_position_embeddings: 32,
            ..config::small(tokenizer.get_vocab_size(true))
        };
        let mut bundle = Self {
            manifest: Manifest {
                format: FORMAT,
                name: "test".into(),
                version: "0".into(),
                text: TextSettings {
                    chunk_tokens: 32,
                    overlap_tokens: 4,
                    ngram_buckets: 256,
                    segmenter: String::new(),
                },
                heads: HeadSettings {
                    levels: taxonomy.levels.len(),
                    grounds: taxonomy.ground_codes().codes().map(str::to_owned).collect(),
                },
                calibration: CalibrationSettings {
                    kind: Mix::ENCODER,
                    type_bias: Vec::new(),
                    level: Mix::ENCODER,
                    grounds: Mix::ENCODER,
                    set_threshold: 1.0,
                    coverage: 0.9,
                },
                training: TrainingRecord {
                    data_digest: String::new(),
                    split_digest: String::new(),
                    split: String::new(),
                    train_cases: 0,
                    validation_cases: 0,
                    seed: 0,
                    epoch: 0,
                    base: "random".into(),
                    code_version: env!("CARGO_PKG_VERSION").into(),
                    stopped_early: false,
                },
                digests: BTreeMap::new(),
            },
            types: taxonomy.type_codes().clone(),
            weights: Weights::random_encoder(&config, 0).expect("plain tensors can be made"),
            config,
            tokenizer,
            metrics: serde_json::Value::Null,
            learned: Learned::default(),
            digest: sha256(b"test"),
        };
        let sizes = bundle.head_sizes();
        Heads::start(&mut bundle.weights, bundle.config.hidden_size, sizes, 1)
            .expect("plain tensors can be made");
        let lexical = Lexical {
            idf: vec![1.0; 256],
            weight: vec![0.0; 256 * sizes.n_outputs()],
            bias: vec![0.0; sizes.n_outputs()],
            sizes,
        };
        lexical.store(&mut bundle.weights).expect("plain tensors can be made");
        bundle
    }
}

impl From<&CalibrationSettings> for Calibration {
    fn from(it: &CalibrationSettings) -> Self {
        Self {
            kind: it.kind,
            type_bias: it.type_bias.clone(),
            level: it.level,
            grounds: it.grounds,
            set_threshold: it.set_threshold,
        }
    }
}

/// `sha256:…` of `bytes`.
pub fn sha256(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let mut out = "sha256:".to_owned();
    for byte in Sha256::digest(bytes) {
        write!(out, "{byte:02x}").expect("writing to a string cannot fail");
    }
    out
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, BundleError> {
    fs::read(path).map_err(|source| BundleError::File { path: path.to_owned(), source })
}

pub(super) fn content(path: &Path, reason: impl std::fmt::Display) -> BundleError {
    BundleError::Content { path: path.to_owned(), reason: reason.to_string() }
}

fn id2label(config: &serde_json::Value) -> Option<Vec<String>> {
    let map = config.get("id2label")?.as_object()?;
    (0..map.len()).map(|idx| Some(map.get(&idx.to_string())?.as_str()?.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved() -> (tempfile::TempDir, PathBuf) {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("a");
        let digest = Bundle::for_tests().save(&dir, "card").unwrap();
        assert_eq!(Bundle::load(&dir).unwrap().digest, digest);
        (home, dir)
    }

    fn load_error(dir: &Path) -> String {
        Bundle::load(dir).err().expect("the bundle must be refused").to_string()
    }

    #[test]
    fn a_bundle_survives_the_disk() {
        let (_home, dir) = saved();
        let (before, after) = (Bundle::for_tests(), Bundle::load(&dir).unwrap());
        assert_eq!((&before.config, &before.types), (&after.config, &after.types));
        for (name, tensor) in before.weights.iter() {
            let other = after.weights.get(name, tensor.dims()).unwrap();
            let gap = (tensor - other).unwrap().abs().unwrap().max_all().unwrap();
            assert!(gap.to_scalar::<f32>().unwrap() < 1e-3, "{name}");
        }
    }

    #[test]
    fn a_damaged_or_foreign_bundle_is_refused_by_name() {
        let (_home, dir) = saved();
        for name in DIGESTED {
            let path = dir.join(name);
            let whole = fs::read(&path).unwrap();
            fs::write(&path, &whole[1..]).unwrap();
            assert!(load_error(&dir).contains(name), "{name}");
            fs::write(&path, &whole).unwrap();
        }
        let manifest = fs::read_to_string(dir.join(MANIFEST)).unwrap();
        fs::write(
            dir.join(MANIFEST),
            manifest.replace(&format!("format = {FORMAT}"), "format = 7"),
        )
        .unwrap();
        assert!(load_error(&dir).contains("format 7"));
    }

    #[test]
    fn weights_that_are_not_finite_are_refused() {
        let home = tempfile::tempdir().unwrap();
        let mut bundle = Bundle::for_tests();
        let nan = candle_core::Tensor::new(&[f32::NAN; 16], &candle_core::Device::Cpu).unwrap();
        bundle.weights.insert("bert.pooler.dense.bias", nan);
        bundle.save(&home.path().join("a"), "").unwrap();
        assert!(load_error(&home.path().join("a")).contains("bert.pooler.dense.bias"));
    }

    #[test]
    fn a_version_is_never_overwritten() {
        let (_home, dir) = saved();
        assert!(
            Bundle::for_tests().save(&dir, "").unwrap_err().to_string().contains("already exists")
        );
    }
}
