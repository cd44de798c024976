//! One model version made usable: `prepare` a text, `predict` a batch.
//!
//! Serving, scoring, evaluation and training share this way from text to token ids, so that they
//! cannot drift apart. Knows nothing of files to score, requests or users.

pub mod sidecar;

use std::path::Path;

use sha2::{Digest, Sha256};
use sidecar::PolicyFile;
use thiserror::Error;

use crate::domain::case::CaseText;
use crate::domain::label::LabelSet;
use crate::domain::policy::{self, Decision, InputFacts};
use crate::domain::prediction::Prediction;
use crate::domain::span::CharSpan;
use crate::domain::taxonomy::Taxonomy;
use crate::model::bundle::{Bundle, BundleError, TextSettings, sha256};
use crate::model::calibration::Calibration;
use crate::model::lexical::Lexical;
use crate::model::runtime::{Precision, Runtime};
use crate::model::{Learned, ModelError};
use crate::text::encode::EncoderError;
use crate::text::ngrams::{Ngrams, ngrams};
use crate::text::normalize::Change;
use crate::text::redact::{PersonalData, Redaction};
use crate::text::segment::DictionaryError;
use crate::text::{Encoder, Encoding, Segmenter, Word, normalize, redact};

/// A text made ready for the model.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// Token ids, one entry per chunk, never empty.
    pub chunks: Vec<Encoding>,
    /// Its n-grams, all chunks together.
    pub ngrams: Ngrams,
    /// What the reply and the decision need to know about the input.
    pub report: InputReport,
    /// SHA-256 of the normalized, masked text; none when words were taken away. The same one gets the same
    /// prediction from the same model.
    pub fingerprint: Option<[u8; 32]>,
}

impl Prepared {
    /// Cost in tokens, all chunks together.
    pub fn n_tokens(&self) -> usize {
        self.chunks.iter().map(|it| it.ids.len()).sum()
    }
}

/// What became of one input on its way to the model.
#[derive(Debug, Clone, PartialEq)]
pub struct InputReport {
    /// Characters submitted.
    pub characters: usize,
    /// Words after segmentation.
    pub words: usize,
    /// Chunks the text was cut into.
    pub chunks: usize,
    /// Kinds of normalization that changed something.
    pub normalizations: Vec<Change>,
    /// Personal data masked.
    pub redactions: Vec<Redaction>,
    /// What the policy looks at.
    pub facts: InputFacts,
}

/// A text taken apart, to ask what the model would say without some of its words.
#[derive(Debug, Clone)]
pub struct Probe {
    /// The text without personal data, and the bytes of each of its words.
    text: String,
    words: Vec<std::ops::Range<usize>>,
    /// The words that may be taken away.
    removable: Vec<Removable>,
    report: InputReport,
}

#[derive(Debug, Clone)]
struct Removable {
    word_idx: usize,
    /// Where it is in the submitted text.
    span: CharSpan,
}

impl Probe {
    /// Number of words that may be taken away: those with a letter or a digit that are no placeholder.
    pub fn n_words(&self) -> usize {
        self.removable.len()
    }

    /// Removable word `idx` and where it is in the submitted text.
    pub fn word(&self, idx: usize) -> (&str, CharSpan) {
        let it = &self.removable[idx];
        (&self.text[self.words[it.word_idx].clone()], it.span)
    }
}

/// Identity of a loaded model version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelIdentity {
    /// Bundle name.
    pub name: String,
    /// Bundle version.
    pub version: String,
    /// `sha256:…` over the bundle.
    pub digest: String,
}

/// From text to token ids: everything before the model.
pub struct TextPipeline {
    segmenter: Segmenter,
    encoder: Encoder,
    n_buckets: usize,
}

impl TextPipeline {
    /// The steps with this segmenter and encoder; n-grams fall into `n_buckets`.
    pub fn new(segmenter: Segmenter, encoder: Encoder, n_buckets: usize) -> Self {
        Self { segmenter, encoder, n_buckets }
    }

    /// `text` made ready.
    ///
    /// # Errors
    /// [`PrepareError`], which harms this text only.
    pub fn prepare(&self, text: &CaseText) -> Result<Prepared, PrepareError> {
        let normalized = normalize(text.as_str());
        let redacted = redact(&normalized);
        let words = self.segmenter.segment(&redacted.text);
        if words.is_empty() {
            return Err(PrepareError::NothingVisible);
        }
        let encoded = self.encoder.encode(&words);
        let facts = InputFacts {
            visible_chars: redacted.text.chars().filter(|it| !it.is_whitespace()).count(),
            chinese_share: chinese_share(&redacted.text),
            unknown_share: encoded.n_unknown as f32 / encoded.n_tokens.max(1) as f32,
        };
        let report = InputReport {
            characters: text.as_str().chars().count(),
            words: words.len(),
            chunks: encoded.chunks.len(),
            normalizations: normalized.changes,
            redactions: redacted.redactions,
            facts,
        };
        let ngrams = ngrams(&words, self.n_buckets);
        let fingerprint = Some(Sha256::digest(redacted.text.as_bytes()).into());
        Ok(Prepared { chunks: encoded.chunks, ngrams, report, fingerprint })
    }

    /// `text` taken apart.
    ///
    /// # Errors
    /// [`PrepareError`], which harms this text only.
    pub fn probe(&self, text: &CaseText) -> Result<Probe, PrepareError> {
        let report = self.prepare(text)?.report;
        let redacted = redact(&normalize(text.as_str()));
        let words = self.segmenter.segment(&redacted.text);
        let removable = words
            .iter()
            .enumerate()
            .filter(|(_, word)| word.text.chars().any(char::is_alphanumeric))
            .map(|(word_idx, word)| {
                let begin = redacted.origins[word.span.begin].begin;
                let end = redacted.origins[word.span.end - 1].end;
                Removable { word_idx, span: CharSpan::new(begin, end) }
            })
            .filter(|it| {
                let is_apart =
                    |other: CharSpan| it.span.end <= other.begin || other.end <= it.span.begin;
                redacted.redactions.iter().all(|other| is_apart(other.span))
                    && PersonalData::ALL
                        .iter()
                        .all(|kind| words[it.word_idx].text != kind.placeholder())
            })
            .collect();
        let words = words.iter().map(|it| it.byte..it.byte + it.text.len()).collect();
        Ok(Probe { text: redacted.text, words, removable, report })
    }

    /// The probed text without the removable words `removed`.
    pub fn without(&self, probe: &Probe, removed: &[usize]) -> Prepared {
        let removed: Vec<usize> = removed.iter().map(|&it| probe.removable[it].word_idx).collect();
        let mut n_chars = 0;
        let words: Vec<Word<'_>> = probe
            .words
            .iter()
            .enumerate()
            .filter(|(idx, _)| !removed.contains(idx))
            .map(|(_, bytes)| {
                let text = &probe.text[bytes.clone()];
                let begin = n_chars;
                n_chars += text.chars().count();
                Word { text, span: CharSpan::new(begin, n_chars), byte: bytes.start }
            })
            .collect();
        Prepared {
            chunks: self.encoder.encode(&words).chunks,
            ngrams: ngrams(&words, self.n_buckets),
            report: probe.report.clone(),
            fingerprint: None,
        }
    }

    /// The encoder.
    pub fn encoder(&self) -> &Encoder {
        &self.encoder
    }
}

/// Share of Chinese characters among letters of any script.
fn chinese_share(text: &str) -> f32 {
    let is_chinese =
        |it: char| matches!(it, '\u{3400}'..='\u{9fff}' | '\u{20000}'..='\u{3134f}' | '〇');
    let (mut chinese, mut letters) = (0_usize, 0_usize);
    for character in text.chars() {
        if is_chinese(character) {
            chinese += 1;
            letters += 1;
        } else if character.is_alphabetic() {
            letters += 1;
        }
    }
    chinese as f32 / letters.max(1) as f32
}

/// A loaded bundle with its text pipeline. Cheap to share behind an `Arc`; all methods take `&self`.
pub struct Pipeline {
    text: TextPipeline,
    runtime: Runtime,
    lexical: Lexical,
    calibration: Calibration,
    identity: ModelIdentity,
    types: LabelSet,
    grounds: LabelSet,
    taxonomy: Taxonomy,
    policy_digest: String,
    metadata: serde_json::Value,
    card: String,
    learned: Learned,
}

/// Why a bundle cannot be used, or a batch not be computed.
#[derive(Debug, Error)]
pub enum PipelineError {
    /// The bundle itself.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// Its tokenizer.
    #[error(transparent)]
    Encoder(#[from] EncoderError),
    /// The user dictionary.
    #[error(transparent)]
    Dictionary(#[from] DictionaryError),
    /// A file beside the bundle.
    #[error(transparent)]
    Sidecar(#[from] sidecar::SidecarError),
    /// Weights that do not fit the bundle's own `config.json`.
    #[error("model: {0}")]
    Model(#[from] ModelError),
}

/// Why one text cannot be prepared. Harms that text only.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PrepareError {
    /// Nothing is left after normalization.
    #[error("the text has no visible characters; send at least one")]
    NothingVisible,
}

impl Pipeline {
    /// As [`Pipeline::load`], without the policy that was fitted to it: for fitting another.
    ///
    /// # Errors
    /// As there.
    pub fn unruled(
        dir: &Path,
        segmenter: Segmenter,
        precision: Precision,
    ) -> Result<Self, PipelineError> {
        let bundle = Bundle::load(dir)?;
        let taxonomy = sidecar::taxonomy(dir, &bundle)?;
        let mut pipeline = Self::from_bundle(bundle, segmenter, taxonomy.0, precision)?;
        pipeline.policy_digest = sha256(taxonomy.1.as_bytes());
        // Nothing is held back by an earlier threshold of the built-in policy.
        pipeline.taxonomy.policy.min_accusation = 0.0;
        Ok(pipeline)
    }

    /// Loads and checks the bundle in `dir`. `user_dict` is an extra jieba dictionary for local names.
    ///
    /// # Errors
    /// [`PipelineError`], naming what does not fit.
    pub fn load(
        dir: &Path,
        user_dict: Option<&Path>,
        precision: Precision,
    ) -> Result<Self, PipelineError> {
        let mut pipeline = Self::unruled(dir, segmenter(user_dict)?, precision)?;
        if let Ok(card) = std::fs::read_to_string(dir.join("README.md")) {
            pipeline.card = card;
        }
        if let Some(policy) = sidecar::policy(dir, &pipeline.identity.digest)? {
            pipeline.apply_policy(&policy);
        }
        Ok(pipeline)
    }

    /// Thresholds fitted on this version's held-out cases, instead of the taxonomy's.
    pub fn apply_policy(&mut self, policy: &PolicyFile) {
        let thresholds = &mut self.taxonomy.policy;
        thresholds.min_confidence = policy.min_confidence;
        thresholds.min_accusation = policy.min_accusation;
        self.calibration.set_threshold = policy.set_threshold;
        let both = format!("{}\n{}", self.policy_digest, policy.to_toml());
        self.policy_digest = sha256(both.as_bytes());
    }

    /// A pipeline over a bundle in memory.
    ///
    /// # Errors
    /// As [`Pipeline::load`].
    pub fn from_bundle(
        bundle: Bundle,
        segmenter: Segmenter,
        taxonomy: Taxonomy,
        precision: Precision,
    ) -> Result<Self, PipelineError> {
        let manifest = &bundle.manifest;
        let TextSettings { chunk_tokens, overlap_tokens, ngram_buckets, .. } = manifest.text;
        let encoder = Encoder::new(bundle.tokenizer.clone(), chunk_tokens, overlap_tokens)?;
        let grounds =
            LabelSet::new(manifest.heads.grounds.iter().cloned()).map_err(BundleError::Labels)?;
        let taxonomy = taxonomy.for_labels(&bundle.types, &grounds);
        let mut metadata = serde_json::json!({ "metrics": bundle.metrics });
        metadata["bundle"] = serde_json::to_value(manifest).expect("a manifest is plain data");
        Ok(Self {
            text: TextPipeline::new(segmenter, encoder, ngram_buckets),
            lexical: Lexical::load(&bundle.weights, ngram_buckets, bundle.head_sizes())?,
            runtime: Runtime::load(
                &bundle.weights,
                &bundle.config,
                bundle.head_sizes(),
                precision,
            )?,
            calibration: Calibration::from(&manifest.calibration),
            identity: ModelIdentity {
                name: manifest.name.clone(),
                version: manifest.version.clone(),
                digest: bundle.digest.clone(),
            },
            types: bundle.types,
            grounds,
            policy_digest: sha256(crate::domain::taxonomy::DEFAULT_TOML.as_bytes()),
            taxonomy,
            metadata,
            // A bundle is whole without its card.
            card: format!("# {} {}\n", manifest.name, manifest.version),
            learned: bundle.learned,
        })
    }

    /// A tiny seeded random model over the embedded taxonomy, for tests: no files, no downloads.
    pub fn for_tests() -> Self {
        let taxonomy = Taxonomy::embedded();
        Self::from_bundle(Bundle::for_tests(), Segmenter::default(), taxonomy, Precision::Int8)
            .expect("the test bundle fits the embedded taxonomy")
    }

    /// Digest of the cases it was trained on.
    pub fn training_digest(&self) -> Option<&str> {
        self.metadata.pointer("/bundle/training/data_digest")?.as_str()
    }

    /// The texts this version has learned from.
    pub fn learned(&self) -> &Learned {
        &self.learned
    }

    /// Text to token ids; safe to call from many threads.
    ///
    /// # Errors
    /// [`PrepareError`], which harms this text only.
    pub fn prepare(&self, text: &CaseText) -> Result<Prepared, PrepareError> {
        self.text.prepare(text)
    }

    /// `text` taken apart.
    ///
    /// # Errors
    /// [`PrepareError`], which harms this text only.
    pub fn probe(&self, text: &CaseText) -> Result<Probe, PrepareError> {
        self.text.probe(text)
    }

    /// The probed text without the removable words `removed`.
    pub fn without(&self, probe: &Probe, removed: &[usize]) -> Prepared {
        self.text.without(probe, removed)
    }

    /// One prediction per prepared text, in order.
    ///
    /// # Errors
    /// [`PipelineError::Model`] when the computation fails.
    pub fn predict(&self, batch: &[&Prepared]) -> Result<Vec<Prediction>, PipelineError> {
        let texts: Vec<&[Encoding]> = batch.iter().map(|it| it.chunks.as_slice()).collect();
        let by_encoder = self.runtime.logits(&texts);
        let pairs = by_encoder.iter().zip(batch);
        Ok(pairs
            .map(|(it, row)| self.calibration.apply(it, &self.lexical.logits(&row.ngrams)))
            .collect())
    }

    /// The policy's word on one prediction.
    pub fn decide(&self, report: &InputReport, prediction: &Prediction) -> Decision {
        policy::decide(&self.taxonomy.policy, report.facts, prediction, &self.types)
    }

    /// Column of the type the policy lets us propose.
    pub fn propose(&self, prediction: &Prediction) -> usize {
        policy::propose(&self.taxonomy.policy, prediction, &self.types)
    }

    /// Which model this is.
    pub fn identity(&self) -> &ModelIdentity {
        &self.identity
    }

    /// Labels of the type head in column order.
    pub fn type_labels(&self) -> &LabelSet {
        &self.types
    }

    /// Labels of the grounds head in column order.
    pub fn ground_labels(&self) -> &LabelSet {
        &self.grounds
    }

    /// The taxonomy in force.
    pub fn taxonomy(&self) -> &Taxonomy {
        &self.taxonomy
    }

    /// `sha256:…` over the taxonomy and policy in force.
    pub fn policy_digest(&self) -> &str {
        &self.policy_digest
    }

    /// What `GET /v1/model` shows beyond the identity: the bundle's manifest and metrics.
    pub fn metadata(&self) -> &serde_json::Value {
        &self.metadata
    }

    /// The model card, in Markdown: what the version is for, how it was made, how good it is.
    pub fn card(&self) -> &str {
        &self.card
    }
}

/// A segmenter with the default dictionary and, when given, a user dictionary.
///
/// # Errors
/// [`DictionaryError`] when the user dictionary cannot be read.
pub fn segmenter(user_dict: Option<&Path>) -> Result<Segmenter, DictionaryError> {
    let Some(path) = user_dict else { return Ok(Segmenter::default()) };
    let file = std::fs::File::open(path)?;
    Segmenter::with_user_dict(&mut std::io::BufReader::new(file))
}
