//! One training under way: a step on a batch, and what the weights come to on the validation cases.

use candle_core::Result;
use rand::Rng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::adamw::AdamW;
use super::lexical;
use super::loss::{Target, loss};
use super::state::{Best, Epoch, Position, State};
use super::trainer::{Example, Settings, Task};
use crate::domain::prediction::Prediction;
use crate::evaluation::metrics;
use crate::model::calibration::{self, Calibration, TwoLogits};
use crate::model::heads::{GROUNDS, LEVEL, TextLogits};
use crate::model::lexical::Lexical;
use crate::model::runtime::{Precision, Runtime};
use crate::model::trainable::{Dropout, Gradients, Outputs, Parameters, Trainable, WORDS};
use crate::model::weights::Weights;
use crate::text::Encoding;
use crate::text::ngrams::Ngrams;

/// A training under way.
pub struct Course<'a> {
    task: Task<'a>,
    parameters: Parameters,
    trainable: Trainable,
    adamw: AdamW,
    /// Tokens of each training case that are seen.
    pub rows: Vec<&'a [u32]>,
    class_weights: Vec<f32>,
    /// The lexical half; it has no epochs.
    pub lexical: Lexical,
    /// What the lexical half says of the validation cases.
    by_words: Vec<TextLogits>,
    /// What a lexical half that never saw the case says of each training case. The encoder's answers will be
    /// mixed with such, so it also learns what they leave open.
    beside: Vec<TextLogits>,
    /// Pooled vectors of the training cases, when the encoder stays as it is.
    pooled: Option<Vec<f32>>,
    /// One thread each: a product inside a part must not wake threads that another part needs, nor may
    /// its sums depend on how many there are.
    pools: Vec<ThreadPool>,
}

/// What some weights come to on the validation cases.
pub struct Judged {
    /// Fitted on them.
    pub calibration: Calibration,
    /// Calibrated, in order.
    pub predictions: Vec<Prediction>,
    /// Macro-F1 of the type.
    pub score: f32,
}

impl<'a> Course<'a> {
    /// Fits the lexical half and, for an encoder that stays as it is, computes its pooled vectors.
    ///
    /// # Errors
    /// When the weights do not fit the shape.
    ///
    /// # Panics
    /// When either part of the cases is empty.
    pub fn new(task: &Task<'a>) -> Result<Self> {
        let Task { start, prior, config, sizes, train, validation, settings } = *task;
        assert!(!train.is_empty() && !validation.is_empty(), "both parts of the split need cases");
        let parameters = Parameters::new(start)?;
        let trainable = Trainable::new(start, &parameters, config, sizes)?;
        let has_levels = train.iter().any(|it| it.target.level.is_some());
        let has_grounds = train.iter().any(|it| it.target.grounds.is_some());
        let adamw = AdamW::new(&parameters, |name| match name {
            name if settings.is_frozen && name.starts_with("bert.") => None,
            // Nobody teaches it: it stays as it was.
            name if !has_levels && name.starts_with(LEVEL) => None,
            name if !has_grounds && name.starts_with(GROUNDS) => None,
            WORDS => Some(settings.embedding_rate),
            name if name.starts_with("bert.") => Some(1.0),
            _ => Some(settings.head_rate),
        });
        let rows: Vec<&[u32]> =
            train.iter().map(|it| first_tokens(it, settings.max_tokens)).collect();
        let fit = |cases: &[&Example]| {
            let ngrams: Vec<&Ngrams> = cases.iter().map(|it| &it.ngrams).collect();
            let targets: Vec<&Target> = cases.iter().map(|it| &it.target).collect();
            let prior = prior.map(|it| &it.lexical);
            lexical::fit(&ngrams, &targets, sizes, settings.ngram_buckets, prior)
        };
        let lexical = fit(&train.iter().collect::<Vec<_>>());
        let beside = out_of_fold(train, fit);
        let by_words = validation.iter().map(|it| lexical.logits(&it.ngrams)).collect();
        let pooled = settings.is_frozen.then(|| -> Result<_> {
            Ok(Runtime::load(start, config, sizes, Precision::default())?.pooled(&rows))
        });
        let pool = |_| ThreadPoolBuilder::new().num_threads(1).build();
        let pools = (0..N_PARTS.min(rayon::current_num_threads())).map(pool);
        Ok(Self {
            task: *task,
            trainable,
            adamw,
            class_weights: class_weights(train, sizes.n_types),
            lexical,
            by_words,
            beside,
            pooled: pooled.transpose()?,
            pools: pools
                .collect::<std::result::Result<_, _>>()
                .map_err(candle_core::Error::wrap)?,
            rows,
            parameters,
        })
    }

    /// Steps taken.
    pub fn n_steps(&self) -> i32 {
        self.adamw.n_steps()
    }

    /// One step on the cases of `batch`; returns its loss.
    ///
    /// # Errors
    /// When the loss is not finite.
    pub fn step(
        &mut self,
        batch: &[usize],
        rng: &mut ChaCha8Rng,
        learning_rate: f32,
    ) -> Result<f32> {
        // Chance is drawn before the parts go their own ways, so that a seed gives one result.
        let parts: Vec<Part> = (0..N_PARTS.min(batch.len()))
            .map(|part| {
                let cases: Vec<usize> = batch.iter().copied().skip(part).step_by(N_PARTS).collect();
                let settings = self.task.settings;
                let ids = cases.iter().map(|&it| hide(self.rows[it], settings, rng)).collect();
                Part { cases, ids, seed: rng.random() }
            })
            .collect();
        if self.pooled.is_none() {
            let ids = parts.iter().flat_map(|it| it.ids.iter().flatten().copied());
            self.adamw.catch_up(&mut self.parameters, ids);
        }
        let this = &*self;
        let done: Vec<(Gradients, f32)> = parts
            .par_iter()
            .enumerate()
            .map(|(idx, part)| {
                this.pools[idx % this.pools.len()].install(|| this.part(part, batch.len()))
            })
            .collect();
        let (gradients, losses): (Vec<Gradients>, Vec<f32>) = done.into_iter().unzip();
        self.adamw.step(&mut self.parameters, gradients, learning_rate)?;
        Ok(losses.iter().sum())
    }

    fn part(&self, part: &Part, n_batch: usize) -> (Gradients, f32) {
        let Self { trainable, parameters, task, .. } = self;
        let values = &parameters.values;
        let mut dropout = Dropout::new(task.settings.dropout, part.seed);
        let share = part.cases.len() as f32 / n_batch as f32;
        let mut gradients = trainable.no_gradients(parameters);
        if let Some(pooled) = &self.pooled {
            let width = task.config.hidden_size;
            let rows = part.cases.iter().flat_map(|it| &pooled[it * width..(it + 1) * width]);
            let tape = trainable.answer(values, rows.copied().collect(), &mut dropout);
            let (loss, slopes) = self.loss(&tape.outputs, &part.cases, share);
            trainable.answer_back(values, &tape, &slopes, &mut gradients);
            return (gradients, loss);
        }
        let ids: Vec<&[u32]> = part.ids.iter().map(Vec::as_slice).collect();
        let tape = trainable.forward(values, &ids, &mut dropout);
        let answer = trainable.answer(values, tape.pooled.clone(), &mut dropout);
        let (loss, slopes) = self.loss(&answer.outputs, &part.cases, share);
        let d_pooled = trainable.answer_back(values, &answer, &slopes, &mut gradients);
        trainable.back(values, &tape, d_pooled, &mut gradients);
        (gradients, loss)
    }

    /// `share` times the loss of the encoder's `outputs` for `cases`: half that of its own answers, half that
    /// of its answers mixed with the lexical half's.
    fn loss(&self, outputs: &Outputs, cases: &[usize], share: f32) -> (f32, Outputs) {
        let targets: Vec<&Target> = cases.iter().map(|&it| &self.task.train[it].target).collect();
        let heads: [fn(&TextLogits) -> &[f32]; 3] =
            [|it| &it.kind, |it| &it.level, |it| &it.grounds];
        let mut mixed = outputs.clone();
        for (outputs, head) in mixed.iter_mut().zip(heads) {
            let words = cases.iter().flat_map(|&it| head(&self.beside[it]));
            outputs.iter_mut().zip(words).for_each(|(slot, it)| *slot += it);
        }
        let (alone, mut slopes) = loss(outputs, &targets, &self.class_weights, share / 2.0);
        let (together, others) = loss(&mixed, &targets, &self.class_weights, share / 2.0);
        for (slopes, others) in slopes.iter_mut().zip(others) {
            slopes.iter_mut().zip(others).for_each(|(slot, it)| *slot += it);
        }
        (alone + together, slopes)
    }

    /// Nothing is owed afterwards.
    pub fn settle(&mut self) {
        self.adamw.catch_up_all(&mut self.parameters);
    }

    /// The averaged weights.
    ///
    /// # Errors
    /// When a tensor cannot be made.
    pub fn averages(&self) -> Result<Weights> {
        self.parameters.weights(self.adamw.averages(&self.parameters))
    }

    /// Averages of what is trained, nothing for the rest.
    pub fn trained_averages(&self) -> Vec<Vec<f32>> {
        self.adamw.state().1.map(|it| it.average.clone()).collect()
    }

    /// The start with `trained` in place of what was trained.
    ///
    /// # Errors
    /// When a tensor cannot be made.
    pub fn weights(&self, trained: &[Vec<f32>]) -> Result<Weights> {
        let pairs = trained.iter().zip(&self.parameters.values);
        self.parameters.weights(pairs.map(|(it, start)| match it.is_empty() {
            true => start.as_slice(),
            false => it.as_slice(),
        }))
    }

    /// Calibrates `weights` on the validation cases and asks them.
    ///
    /// # Errors
    /// When they do not fit the shape.
    pub fn judge(&self, weights: &Weights) -> Result<Judged> {
        let Task { prior, config, sizes, validation, settings, .. } = self.task;
        let texts: Vec<&[Encoding]> = validation.iter().map(|it| it.chunks.as_slice()).collect();
        // As served: the calibration must fit what serving computes.
        let runtime = Runtime::load(weights, config, sizes, Precision::default())?;
        let by_encoder = runtime.logits(&texts);
        let (by_words, class_weights) = (&self.by_words, &self.class_weights);
        let prior = prior.map(|it| &it.calibration);
        let calibration =
            calibrate(&by_encoder, by_words, validation, class_weights, settings.coverage, prior);
        let pairs = by_encoder.iter().zip(by_words);
        let predictions: Vec<Prediction> = pairs.map(|(a, b)| calibration.apply(a, b)).collect();
        let score = macro_f1(&predictions, validation, sizes.n_types);
        Ok(Judged { calibration, predictions, score })
    }

    /// Where the training stands. Nothing may be owed.
    pub fn state(&self, position: Position, history: &[Epoch], best: &Option<Best>) -> State {
        let (n_steps, moments) = self.adamw.state();
        let moments: Vec<_> = moments.cloned().collect();
        let pairs = self.parameters.values.iter().zip(&moments);
        let values = pairs.map(|(values, it)| match it.mean.is_empty() {
            true => Vec::new(),
            false => values.clone(),
        });
        State {
            position,
            n_steps,
            values: values.collect(),
            moments,
            history: history.to_vec(),
            best: best.clone(),
        }
    }

    /// Goes on from a [`state`](Self::state).
    ///
    /// # Errors
    /// When it is of other tensors.
    pub fn restore(&mut self, state: State) -> Result<()> {
        self.adamw.restore(state.n_steps, state.moments)?;
        for (to, from) in self.parameters.values.iter_mut().zip(state.values) {
            if from.is_empty() {
                continue;
            }
            if to.len() != from.len() {
                candle_core::bail!("the state is of other tensors than these")
            }
            *to = from;
        }
        Ok(())
    }
}

/// A part of a batch: each core gets one.
struct Part {
    cases: Vec<usize>,
    /// Token ids of each case, some hidden.
    ids: Vec<Vec<u32>>,
    seed: u64,
}

/// Parts of a batch. Not the number of cores: the sums of a step must not depend on the machine.
const N_PARTS: usize = 2;

/// Logits of each training case by a lexical half fitted on the other folds.
fn out_of_fold(train: &[Example], fit: impl Fn(&[&Example]) -> Lexical) -> Vec<TextLogits> {
    const N_FOLDS: usize = 3;
    let fold = |idx: usize| idx % N_FOLDS;
    let by_fold: Vec<Lexical> = (0..N_FOLDS)
        .map(|held_out| {
            let others = train.iter().enumerate().filter(|it| fold(it.0) != held_out);
            fit(&others.map(|it| it.1).collect::<Vec<_>>())
        })
        .collect();
    train.iter().enumerate().map(|(idx, it)| by_fold[fold(idx)].logits(&it.ngrams)).collect()
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

/// Tokens of one step: `most`, or fewer where the cases are few. A hundred of them would else be one step an
/// epoch, and the training over before the rate is up.
pub fn step_tokens(rows: &[&[u32]], most: usize) -> usize {
    const STEPS_PER_EPOCH: usize = 30;
    const FEWEST: usize = 256;
    let n_tokens: usize = rows.iter().map(|it| it.len()).sum();
    most.min(FEWEST.max(n_tokens / STEPS_PER_EPOCH))
}

/// Cases in random order, grouped so that rows of one batch have about one length.
pub fn batches(rows: &[&[u32]], batch_tokens: usize, rng: &mut ChaCha8Rng) -> Vec<Vec<usize>> {
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
    prior: Option<&Calibration>,
) -> Calibration {
    // One head's logits by both halves, with the case's target.
    let head = |of: fn(&TextLogits) -> &[f32]| {
        let pairs = by_encoder.iter().zip(by_words).zip(cases);
        pairs
            .map(move |((a, b), case)| (TwoLogits { encoder: of(a), lexical: of(b) }, &case.target))
    };
    let types: Vec<_> = head(|it| &it.kind).map(|(it, target)| (it, target.label)).collect();
    let levels: Vec<_> = head(|it| &it.level)
        .filter_map(|(it, target)| Some((it, target.level?, target.label)))
        .collect();
    let grounds: Vec<_> = head(|it| &it.grounds)
        .filter_map(|(it, target)| Some((it, target.grounds.clone()?, target.label)))
        .collect();
    calibration::fit(&types, &levels, &grounds, class_weights, coverage, prior)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;
    use crate::model::heads::HeadSizes;

    #[test]
    fn what_stands_beside_a_case_never_saw_it() {
        let sizes = HeadSizes { n_types: 2, n_levels: 2, n_grounds: 1 };
        let example = |idx: usize, label: usize| Example {
            chunks: Vec::new(),
            ngrams: vec![(idx as u32 % 2, 1.0), (2, 1.0)],
            target: Target { label, alt: None, level: Some(label), grounds: None },
        };
        let fit = |cases: &[&Example]| {
            let ngrams: Vec<&Ngrams> = cases.iter().map(|it| &it.ngrams).collect();
            let targets: Vec<&Target> = cases.iter().map(|it| &it.target).collect();
            lexical::fit(&ngrams, &targets, sizes, 4, None)
        };
        let mut cases: Vec<Example> = (0..12).map(|it| example(it, it % 2)).collect();
        let before = out_of_fold(&cases, fit);
        assert!(
            before.iter().enumerate().all(|(idx, it)| (it.kind[1] > it.kind[0]) == (idx % 2 == 1))
        );
        // Whatever its own label says.
        cases[5] = example(5, 0);
        let after = out_of_fold(&cases, fit);
        assert_eq!(before[5].kind, after[5].kind);
        assert_ne!(before[7].kind, after[7].kind);
    }

    #[test]
    fn few_cases_get_as_many_steps_as_many() {
        let case = vec![0; 50];
        let of = |n_cases: usize| step_tokens(&vec![case.as_slice(); n_cases], 4096);
        assert_eq!([of(20), of(600), of(10_000)], [256, 1000, 4096]);
        assert_eq!(step_tokens(&[case.as_slice()], 40), 40);
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
