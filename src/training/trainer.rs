//! Epochs: fine-tunes encoder and heads together, or the heads alone, beside a lexical half; keeps the
//! epoch whose averaged weights, mixed and calibrated, have the best validation macro-F1.

use candle_core::backprop::GradStore;
use candle_core::{Device, Result, Tensor};
use candle_transformers::models::bert::Config;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::adamw::AdamW;
use super::lexical;
use super::loss::{Target, loss};
use crate::domain::prediction::Prediction;
use crate::evaluation::metrics;
use crate::model::calibration::{self, Calibration, TwoLogits};
use crate::model::heads::{HeadSizes, TextLogits};
use crate::model::network::Network;
use crate::model::runtime::{Precision, Runtime};
use crate::model::transformer::{Dropout, Mode};
use crate::model::weights::Weights;
use crate::text::Encoding;
use crate::text::ngrams::Ngrams;

/// How to train.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Most passes over the training cases.
    pub epochs: usize,
    /// Stop after this many epochs without a better validation score.
    pub patience: usize,
    /// Tokens of one step, padding included.
    pub batch_tokens: usize,
    /// Peak learning rate of the encoder.
    pub learning_rate: f32,
    /// The heads' learning rate relative to the encoder's.
    pub head_rate: f32,
    /// Tokens of a case seen in training; evaluation sees all of them.
    pub max_tokens: usize,
    /// The word embeddings' learning rate relative to the encoder's: words rare in the cases should
    /// stay near the place the base gave them.
    pub embedding_rate: f32,
    /// Dropout probability.
    pub dropout: f32,
    /// Share of a case's tokens hidden behind `[MASK]` in training, so that no single word decides.
    pub token_dropout: f32,
    /// Id of `[MASK]`; none hides nothing.
    pub mask_token_id: Option<u32>,
    /// Share of texts whose prediction set must hold the true type.
    pub coverage: f32,
    /// Buckets that the cases' n-grams fall into.
    pub ngram_buckets: usize,
    /// Leave the encoder as it is and train the heads only: minutes become seconds.
    pub is_frozen: bool,
    /// Seed of every random draw.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            epochs: 6,
            patience: 2,
            batch_tokens: 4096,
            learning_rate: 5e-4,
            head_rate: 2.0,
            max_tokens: 160,
            embedding_rate: 0.3,
            dropout: 0.1,
            token_dropout: 0.15,
            mask_token_id: None,
            coverage: 0.95,
            ngram_buckets: 1 << 17,
            is_frozen: false,
            seed: 42,
        }
    }
}

/// A case ready for the model.
#[derive(Debug, Clone)]
pub struct Example {
    /// Its chunks.
    pub chunks: Vec<Encoding>,
    /// Its n-grams.
    pub ngrams: Ngrams,
    /// What it teaches.
    pub target: Target,
}

/// What happens while training, for a progress bar.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Event {
    /// A step was taken.
    Step {
        /// Epoch, from 1.
        epoch: usize,
        /// Cases seen in this epoch.
        n_done: usize,
        /// Loss of the step.
        loss: f32,
    },
    /// An epoch ended.
    Epoch {
        /// Epoch, from 1.
        epoch: usize,
        /// Validation macro-F1 of the type.
        macro_f1: f32,
        /// Whether it is the best so far.
        is_best: bool,
    },
}

/// The best epoch's model.
pub struct Trained {
    /// Encoder, heads and lexical half.
    pub weights: Weights,
    /// Epoch they come from, from 1.
    pub epoch: usize,
    /// Fitted on the validation cases.
    pub calibration: Calibration,
    /// Calibrated validation predictions of the best epoch, in order.
    pub validation: Vec<Prediction>,
}

/// Trains `start` (encoder and heads) on `train`.
///
/// # Errors
/// When the weights do not fit `config`, or the loss stops being finite.
///
/// # Panics
/// When `train` or `validation` is empty.
pub fn train(
    start: &Weights,
    config: &Config,
    sizes: HeadSizes,
    train: &[Example],
    validation: &[Example],
    settings: &Settings,
    mut on_event: impl FnMut(Event),
) -> Result<Trained> {
    assert!(!train.is_empty() && !validation.is_empty(), "both parts of the split need cases");
    let (mut vars, tensors) = start.trainable()?;
    vars.retain(|name, _| !(settings.is_frozen && name.starts_with("bert.")));
    let network = Network::load(&tensors, config, sizes)?;
    let mut adamw = AdamW::new(&vars, |name| match name {
        "bert.embeddings.word_embeddings.weight" => settings.embedding_rate,
        name if name.starts_with("bert.") => 1.0,
        _ => settings.head_rate,
    });
    let class_weights = class_weights(train, sizes.n_types);
    let mut rng = ChaCha8Rng::seed_from_u64(settings.seed);
    let rows: Vec<&[u32]> = train.iter().map(|it| first_tokens(it, settings.max_tokens)).collect();
    let lexical = {
        let ngrams: Vec<&Ngrams> = train.iter().map(|it| &it.ngrams).collect();
        let targets: Vec<&Target> = train.iter().map(|it| &it.target).collect();
        lexical::fit(&ngrams, &targets, sizes, settings.ngram_buckets)
    };
    let by_words: Vec<TextLogits> =
        validation.iter().map(|it| lexical.logits(&it.ngrams)).collect();
    let pooled = settings.is_frozen.then(|| {
        let runtime = Runtime::load(&tensors, config, sizes, Precision::default())?;
        let pooled = runtime.pooled(&rows);
        Tensor::from_vec(pooled, (rows.len(), config.hidden_size), &Device::Cpu)
    });
    let pooled = pooled.transpose()?;
    let mut steps = 0.0_f32;
    let expected_steps = settings.epochs as f32
        * batches(&rows, settings.batch_tokens, &mut rng.clone()).len() as f32;
    let mut best: Option<Trained> = None;
    let mut best_score = f32::NEG_INFINITY;
    for epoch in 1..=settings.epochs {
        let mut n_done = 0;
        for batch in batches(&rows, settings.batch_tokens, &mut rng) {
            // Chance is drawn before the parts go their own ways, so that a seed gives one result.
            let parts: Vec<Part> = (0..N_PARTS.min(batch.len()))
                .map(|part| {
                    let cases: Vec<usize> =
                        batch.iter().copied().skip(part).step_by(N_PARTS).collect();
                    let ids = cases.iter().map(|&it| hide(rows[it], settings, &mut rng)).collect();
                    Part { cases, ids, seed: rng.random() }
                })
                .collect();
            let done = parts
                .par_iter()
                .map(|part| {
                    let dropout = Dropout::new(settings.dropout, part.seed);
                    let mode = Mode::Train(&dropout);
                    let logits = if let Some(pooled) = &pooled {
                        let rows: Vec<u32> = part.cases.iter().map(|&it| it as u32).collect();
                        let rows = Tensor::from_vec(rows, part.cases.len(), &Device::Cpu)?;
                        network.answer(&mode.dropout(pooled.index_select(&rows, 0)?)?)?
                    } else {
                        let ids: Vec<&[u32]> = part.ids.iter().map(Vec::as_slice).collect();
                        network.forward(&ids, &mode)?
                    };
                    let targets: Vec<&Target> =
                        part.cases.iter().map(|&it| &train[it].target).collect();
                    let share = part.cases.len() as f64 / batch.len() as f64;
                    let loss = (loss(&logits, &targets, &class_weights)? * share)?;
                    Ok((loss.backward()?, loss.to_scalar::<f32>()?))
                })
                .collect::<Result<Vec<_>>>()?;
            let (gradients, losses): (Vec<GradStore>, Vec<f32>) = done.into_iter().unzip();
            adamw.step(&gradients, settings.learning_rate * schedule(steps / expected_steps))?;
            steps += 1.0;
            n_done += batch.len();
            on_event(Event::Step { epoch, n_done, loss: losses.iter().sum() });
        }
        let texts: Vec<&[Encoding]> = validation.iter().map(|it| it.chunks.as_slice()).collect();
        let mut averaged = tensors.snapshot()?;
        for average in adamw.averages() {
            let (name, tensor) = average?;
            averaged.insert(name, tensor);
        }
        // As served: the calibration must fit what serving computes.
        let runtime = Runtime::load(&averaged, config, sizes, Precision::default())?;
        let by_encoder = runtime.logits(&texts);
        let calibration =
            calibrate(&by_encoder, &by_words, validation, &class_weights, settings.coverage);
        let pairs = by_encoder.iter().zip(&by_words);
        let predictions: Vec<Prediction> = pairs.map(|(a, b)| calibration.apply(a, b)).collect();
        let score = macro_f1(&predictions, validation, sizes.n_types);
        // On a tie the later epoch: its level and grounds heads have learned longer.
        let is_best = score >= best_score;
        on_event(Event::Epoch { epoch, macro_f1: score, is_best });
        if is_best {
            best_score = score;
            best = Some(Trained { weights: averaged, epoch, calibration, validation: predictions });
        } else if best.as_ref().is_some_and(|it| epoch - it.epoch >= settings.patience) {
            break;
        }
    }
    let Some(mut best) = best else {
        candle_core::bail!("no epoch was trained; set epochs to 1 or more")
    };
    lexical.store(&mut best.weights)?;
    Ok(best)
}

/// A part of a batch: most of candle's work between the matrix products knows one thread only, so each
/// core gets a part.
struct Part {
    cases: Vec<usize>,
    /// Token ids of each case, some hidden.
    ids: Vec<Vec<u32>>,
    seed: u64,
}

/// Parts of a batch. Not the number of cores: the sums of a step must not depend on the machine.
const N_PARTS: usize = 2;

/// Linear warm-up over the first tenth, then linear decay to a twentieth.
fn schedule(progress: f32) -> f32 {
    const WARM_UP: f32 = 0.1;
    if progress < WARM_UP {
        (progress + 0.005) / WARM_UP
    } else {
        (1.0 - (progress - WARM_UP) / (1.0 - WARM_UP)).max(0.05)
    }
}

/// Square roots of inverse frequencies, mean 1 over the cases: rare types count more, not wildly so.
fn class_weights(train: &[Example], n_types: usize) -> Vec<f32> {
    let mut counts = vec![0.0_f32; n_types];
    for example in train {
        counts[example.target.label] += 1.0;
    }
    let raw: Vec<f32> = counts.iter().map(|it| it.max(1.0).sqrt().recip()).collect();
    let mean = raw.iter().zip(&counts).map(|(w, n)| w * n).sum::<f32>() / train.len() as f32;
    raw.into_iter().map(|it| it / mean).collect()
}

/// `ids` with some tokens behind `[MASK]`; the first, `[CLS]`, stays.
fn hide(ids: &[u32], settings: &Settings, rng: &mut ChaCha8Rng) -> Vec<u32> {
    let Some(mask_token_id) = settings.mask_token_id else { return ids.to_vec() };
    ids.iter()
        .enumerate()
        .map(|(at, &id)| {
            let is_hidden = at > 0 && rng.random::<f32>() < settings.token_dropout;
            if is_hidden { mask_token_id } else { id }
        })
        .collect()
}

/// The first `max_tokens` tokens of a case, closed by its own last token.
fn first_tokens(example: &Example, max_tokens: usize) -> &[u32] {
    let ids = &example.chunks[0].ids;
    // The closing [SEP] may fall away: training cares for [CLS] only.
    &ids[..ids.len().min(max_tokens)]
}

/// Cases in random order, grouped so that rows of one batch have about one length.
fn batches(rows: &[&[u32]], batch_tokens: usize, rng: &mut ChaCha8Rng) -> Vec<Vec<usize>> {
    const POOL: usize = 1024;
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.shuffle(rng);
    let mut batches = Vec::new();
    for pool in order.chunks_mut(POOL) {
        pool.sort_by_key(|&it| rows[it].len());
        let mut batch = Vec::new();
        for &idx in pool.iter() {
            // Ascending lengths: the newcomer is the longest.
            if !batch.is_empty() && (batch.len() + 1) * rows[idx].len() > batch_tokens {
                batches.push(std::mem::take(&mut batch));
            }
            batch.push(idx);
        }
        batches.push(batch);
    }
    batches.shuffle(rng);
    batches
}

fn macro_f1(predictions: &[Prediction], cases: &[Example], n_types: usize) -> f32 {
    let truth: Vec<usize> = cases.iter().map(|it| it.target.label).collect();
    let predicted: Vec<usize> = predictions.iter().map(Prediction::type_idx).collect();
    metrics::macro_f1(&truth, &predicted, n_types).unwrap_or(0.0) as f32
}

fn calibrate(
    by_encoder: &[TextLogits],
    by_words: &[TextLogits],
    cases: &[Example],
    class_weights: &[f32],
    coverage: f32,
) -> Calibration {
    // One head's logits by both halves, with the case's target.
    let head = |of: fn(&TextLogits) -> &[f32]| {
        let pairs = by_encoder.iter().zip(by_words).zip(cases);
        pairs
            .map(move |((a, b), case)| (TwoLogits { encoder: of(a), lexical: of(b) }, &case.target))
    };
    let types: Vec<_> = head(|it| &it.kind).map(|(it, target)| (it, target.label)).collect();
    let levels: Vec<_> =
        head(|it| &it.level).filter_map(|(it, target)| Some((it, target.level?))).collect();
    let grounds: Vec<_> = head(|it| &it.grounds)
        .filter_map(|(it, target)| Some((it, target.grounds.clone()?)))
        .collect();
    calibration::fit(&types, &levels, &grounds, class_weights, coverage)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::heads::Heads;

    const SIZES: HeadSizes = HeadSizes { n_types: 2, n_levels: 4, n_grounds: 2 };

    fn start() -> (Config, Weights) {
        let config = Config {
            hidden_size: 16,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            intermediate_size: 24,
            max_position_embeddings: 12,
            ..crate::model::config::small(30)
        };
        let mut weights = Weights::random_encoder(&config, 3).unwrap();
        Heads::start(&mut weights, config.hidden_size, SIZES, 4).unwrap();
        (config, weights)
    }

    /// Type 1 and level 3 exactly when token 9 is there.
    fn examples(n: usize) -> Vec<Example> {
        (0..n)
            .map(|idx| {
                let is_one = idx % 2 == 1;
                let mark = if is_one { 9 } else { 10 };
                let ids = vec![2, 11 + (idx as u32 * 7) % 15, mark, 11 + (idx as u32 * 5) % 13, 3];
                Example {
                    chunks: vec![Encoding { ids }],
                    ngrams: Ngrams::new(),
                    target: Target {
                        label: usize::from(is_one),
                        alt: None,
                        level: Some(if is_one { 3 } else { 0 }),
                        grounds: Some(vec![is_one, !is_one]),
                    },
                }
            })
            .collect()
    }

    #[test]
    fn every_trainable_tensor_gets_a_gradient() {
        let (config, weights) = start();
        let (vars, tensors) = weights.trainable().unwrap();
        let network = Network::load(&tensors, &config, SIZES).unwrap();
        let cases = examples(4);
        let rows: Vec<&[u32]> = cases.iter().map(|it| it.chunks[0].ids.as_slice()).collect();
        let targets: Vec<&Target> = cases.iter().map(|it| &it.target).collect();
        let dropout = Dropout::new(0.1, 1);
        let logits = network.forward(&rows, &Mode::Train(&dropout)).unwrap();
        let gradients = loss(&logits, &targets, &[1.0, 1.0]).unwrap().backward().unwrap();
        assert_eq!(vars.len(), 5 + 2 * 16 + 2 + 6);
        for (name, var) in &vars {
            let gradient = gradients.get(var.as_tensor()).unwrap_or_else(|| panic!("{name}: none"));
            let size: f32 = gradient.abs().unwrap().sum_all().unwrap().to_scalar().unwrap();
            // A key's bias shifts every score of a row alike, so softmax gives it no gradient.
            assert!(size > 0.0 || name.ends_with("key.bias"), "{name}: zero");
        }
    }

    #[test]
    fn train_learns_and_is_reproducible() {
        let (config, weights) = start();
        let settings = Settings {
            epochs: 60,
            patience: 60,
            batch_tokens: 40,
            learning_rate: 3e-3,
            ..Default::default()
        };
        let run = || {
            train(&weights, &config, SIZES, &examples(64), &examples(16), &settings, |_| ())
                .unwrap()
        };
        let trained = run();
        assert_eq!(macro_f1(&trained.validation, &examples(16), 2), 1.0);
        let levels: Vec<usize> = trained.validation.iter().map(Prediction::level).collect();
        assert_eq!(levels, [0, 3].repeat(8));
        assert_eq!(trained.validation, run().validation);
    }

    #[test]
    fn a_frozen_encoder_stays_as_it_was() {
        let (config, weights) = start();
        let settings = Settings { epochs: 2, is_frozen: true, ..Default::default() };
        let trained =
            train(&weights, &config, SIZES, &examples(32), &examples(8), &settings, |_| ())
                .unwrap();
        for (name, tensor) in weights.iter() {
            let after = trained.weights.get(name, tensor.dims()).unwrap();
            let gap = (tensor - after).unwrap().abs().unwrap().sum_all().unwrap();
            let is_same = gap.to_scalar::<f32>().unwrap() == 0.0;
            assert_eq!(is_same, name.starts_with("bert."), "{name}");
        }
    }

    #[test]
    fn batches_hold_every_case_once_within_the_budget() {
        let lengths: Vec<Vec<u32>> = (0..3000).map(|it| vec![0; 1 + it % 90]).collect();
        let rows: Vec<&[u32]> = lengths.iter().map(Vec::as_slice).collect();
        let batches = batches(&rows, 500, &mut ChaCha8Rng::seed_from_u64(1));
        for batch in &batches {
            let longest = batch.iter().map(|&it| rows[it].len()).max().unwrap();
            assert!(batch.len() * longest <= 500);
        }
        let mut all = batches.concat();
        all.sort_unstable();
        assert_eq!(all, (0..3000).collect::<Vec<_>>());
    }
}
