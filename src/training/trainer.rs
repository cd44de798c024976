//! Epochs: fine-tunes encoder and heads together, or the heads alone, beside a lexical half; keeps the
//! epoch whose averaged weights, mixed and calibrated, have the best validation macro-F1.
//!
//! Knows no terminal, no signal and no file: a [`Watcher`] does.

use candle_core::Result;
use candle_transformers::models::bert::Config;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::course::{Course, Judged, batches, step_tokens};
use super::loss::Target;
use super::state::{Best, Epoch, Position, State};
use crate::domain::prediction::Prediction;
use crate::model::calibration::Calibration;
use crate::model::heads::HeadSizes;
use crate::model::lexical::Lexical;
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
    /// Most tokens of one step, padding included.
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

/// What a version that is gone on from has beside its weights. Heads that no case teaches stay as they were.
#[derive(Debug, Clone)]
pub struct Prior {
    /// Its lexical half.
    pub lexical: Lexical,
    /// How its halves mix.
    pub calibration: Calibration,
}

/// What to train, on what, and how.
#[derive(Clone, Copy)]
pub struct Task<'a> {
    /// Encoder and heads to start from.
    pub start: &'a Weights,
    /// The version to go on from; none begins with nothing.
    pub prior: Option<&'a Prior>,
    /// Shape of the encoder.
    pub config: &'a Config,
    /// Sizes of the heads.
    pub sizes: HeadSizes,
    /// Cases to learn from.
    pub train: &'a [Example],
    /// Cases to choose the epoch and to calibrate by.
    pub validation: &'a [Example],
    /// How to train.
    pub settings: &'a Settings,
}

/// What a step came to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepDone {
    /// Epoch, from 1.
    pub epoch: usize,
    /// Cases seen in this epoch.
    pub n_done: usize,
    /// Loss of the step.
    pub loss: f32,
}

/// What to do after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Take the next.
    GoOn,
    /// Hand out the state, then take the next.
    Keep,
    /// Hand out the state and end with the best epoch so far.
    Stop,
}

/// Who looks on while training, and may end it.
pub trait Watcher {
    /// A step was taken.
    fn step(&mut self, _step: StepDone) -> Next {
        Next::GoOn
    }

    /// An epoch ended; `is_best` so far.
    fn epoch(&mut self, _epoch: &Epoch, _is_best: bool) {}

    /// `state` gives what another [`train`] can go on from. Called after each epoch and when a step was
    /// answered so.
    ///
    /// # Errors
    /// When the state cannot be kept; training ends.
    fn keep(&mut self, _state: &dyn Fn() -> State) -> Result<()> {
        Ok(())
    }
}

/// Nobody looks on.
impl Watcher for () {}

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
    /// Every epoch that ended.
    pub history: Vec<Epoch>,
    /// Whether the watcher ended it.
    pub is_stopped: bool,
}

/// Trains the task, from its start or from a state that another training of the same task handed out.
///
/// When the watcher ends it before any epoch has ended, the epoch under way counts as one.
///
/// # Errors
/// When the weights do not fit the shape, the loss stops being finite, or the state is of another task.
///
/// # Panics
/// When either part of the cases is empty.
pub fn train(task: &Task<'_>, state: Option<State>, watcher: &mut impl Watcher) -> Result<Trained> {
    let settings = task.settings;
    let mut course = Course::new(task)?;
    let mut rng = ChaCha8Rng::seed_from_u64(settings.seed);
    let step_tokens = step_tokens(&course.rows, settings.batch_tokens);
    let n_batches = batches(&course.rows, step_tokens, &mut rng.clone()).len();
    let expected_steps = (settings.epochs * n_batches) as f32;
    let mut at = Position {
        epoch: 1,
        n_batches: 0,
        epoch_draws: [0; 2],
        draws: [0; 2],
        loss_sum: 0.0,
        n_cases: 0,
    };
    let (mut history, mut best): (Vec<Epoch>, Option<Best>) = (Vec::new(), None);
    if let Some(state) = state {
        (at, history, best) = (state.position, state.history.clone(), state.best.clone());
        course.restore(state)?;
        rng.set_word_pos(join(at.epoch_draws));
    }
    // Later ones must be as good: on a tie level and grounds heads have learned longer.
    let best_score = |history: &[Epoch], best: &Option<Best>| {
        let of_best = |it: &&Epoch| Some(it.epoch) == best.as_ref().map(|it| it.epoch);
        history.iter().find(of_best).map_or(f32::NEG_INFINITY, |it| it.validation_macro_f1)
    };
    let patience = settings.patience.max(1);
    let mut is_stopped = false;
    while !is_stopped
        && at.epoch <= settings.epochs
        && best.as_ref().is_none_or(|it| at.epoch <= it.epoch + patience)
    {
        at.epoch_draws = split(rng.get_word_pos());
        let batches = batches(&course.rows, step_tokens, &mut rng);
        if at.n_batches > 0 {
            rng.set_word_pos(join(at.draws));
        }
        for batch in batches.iter().skip(at.n_batches) {
            let progress = course.n_steps() as f32 / expected_steps;
            let loss = course.step(batch, &mut rng, settings.learning_rate * schedule(progress))?;
            at.n_batches += 1;
            at.n_cases += batch.len();
            at.loss_sum += f64::from(loss) * batch.len() as f64;
            at.draws = split(rng.get_word_pos());
            let next = watcher.step(StepDone { epoch: at.epoch, n_done: at.n_cases, loss });
            if next == Next::GoOn {
                continue;
            }
            course.settle();
            watcher.keep(&|| course.state(at, &history, &best))?;
            if next == Next::Stop {
                is_stopped = true;
                break;
            }
        }
        if is_stopped && best.is_some() {
            break;
        }
        course.settle();
        let score = course.judge(&course.averages()?)?.score;
        let loss = (at.loss_sum / at.n_cases.max(1) as f64) as f32;
        let epoch = Epoch { epoch: at.epoch, loss, validation_macro_f1: score };
        let is_best = score >= best_score(&history, &best);
        watcher.epoch(&epoch, is_best);
        history.push(epoch);
        if is_best {
            best = Some(Best { epoch: at.epoch, values: course.trained_averages() });
        }
        if !is_stopped {
            let epoch = at.epoch + 1;
            at = Position { epoch, n_batches: 0, loss_sum: 0.0, n_cases: 0, ..at };
            // The next epoch begins where this one's numbers end.
            at.epoch_draws = split(rng.get_word_pos());
            watcher.keep(&|| course.state(at, &history, &best))?;
        }
    }
    let Some(best) = best else {
        candle_core::bail!("no epoch was trained; set epochs to 1 or more")
    };
    let mut weights = course.weights(&best.values)?;
    let Judged { calibration, predictions: validation, .. } = course.judge(&weights)?;
    course.lexical.store(&mut weights)?;
    Ok(Trained { weights, epoch: best.epoch, calibration, validation, history, is_stopped })
}

fn split(position: u128) -> [u64; 2] {
    [(position >> 64) as u64, position as u64]
}

fn join([high, low]: [u64; 2]) -> u128 {
    u128::from(high) << 64 | u128::from(low)
}

/// Linear warm-up over the first tenth, then linear decay to a twentieth.
fn schedule(progress: f32) -> f32 {
    const WARM_UP: f32 = 0.1;
    if progress < WARM_UP {
        (progress + 0.005) / WARM_UP
    } else {
        (1.0 - (progress - WARM_UP) / (1.0 - WARM_UP)).max(0.05)
    }
}

#[cfg(test)]
mod tests {
    use rayon::ThreadPoolBuilder;

    use super::*;
    use crate::evaluation::metrics;
    use crate::model::heads::Heads;
    use crate::model::trainable::Parameters;

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

    /// Stops after so many steps, keeps the last state, and asks for one at each step of its list.
    #[derive(Default)]
    struct Script {
        stop_after: Option<usize>,
        n_steps: usize,
        states: Vec<State>,
    }

    impl Watcher for Script {
        fn step(&mut self, _: StepDone) -> Next {
            self.n_steps += 1;
            match self.stop_after {
                Some(limit) if self.n_steps == limit => Next::Stop,
                _ if self.n_steps % 5 == 3 => Next::Keep,
                _ => Next::GoOn,
            }
        }

        fn keep(&mut self, state: &dyn Fn() -> State) -> Result<()> {
            self.states.push(state());
            Ok(())
        }
    }

    fn small() -> Settings {
        Settings {
            epochs: 6,
            patience: 6,
            batch_tokens: 40,
            learning_rate: 3e-3,
            mask_token_id: Some(4),
            ..Default::default()
        }
    }

    /// Trains the toy task.
    fn run(settings: &Settings, state: Option<State>, watcher: &mut impl Watcher) -> Trained {
        let (config, weights) = start();
        let (train_part, validation) = (examples(64), examples(16));
        let task = Task {
            start: &weights,
            prior: None,
            config: &config,
            sizes: SIZES,
            train: &train_part,
            validation: &validation,
            settings,
        };
        train(&task, state, watcher).unwrap()
    }

    fn type_f1(predictions: &[Prediction], cases: &[Example]) -> f64 {
        let truth: Vec<usize> = cases.iter().map(|it| it.target.label).collect();
        let predicted: Vec<usize> = predictions.iter().map(Prediction::type_idx).collect();
        metrics::macro_f1(&truth, &predicted, 2).unwrap()
    }

    fn values(trained: &Trained) -> Parameters {
        Parameters::new(&trained.weights).unwrap()
    }

    #[test]
    fn train_learns_and_is_reproducible() {
        let settings = Settings { epochs: 60, patience: 60, mask_token_id: None, ..small() };
        let trained = run(&settings, None, &mut ());
        assert_eq!(type_f1(&trained.validation, &examples(16)), 1.0);
        let levels: Vec<usize> = trained.validation.iter().map(Prediction::level).collect();
        assert_eq!(levels, [0, 3].repeat(8));
        assert!(!trained.is_stopped);
        let again = run(&settings, None, &mut ());
        assert_eq!(trained.validation, again.validation);
        assert_eq!(values(&trained), values(&again));
    }

    #[test]
    fn a_training_that_was_cut_off_arrives_at_the_very_same_weights() {
        for is_frozen in [false, true] {
            let settings = Settings { is_frozen, ..small() };
            let mut script = Script::default();
            let whole = run(&settings, None, &mut script);
            // Within epochs, between them and after the last.
            assert!(script.states.len() > 10);
            for state in script.states {
                let bytes = state.to_bytes("").unwrap();
                let resumed = run(&settings, Some(State::from_bytes(&bytes).unwrap()), &mut ());
                assert_eq!(values(&resumed), values(&whole), "{:?}", state.position);
                assert_eq!(resumed.calibration, whole.calibration);
                assert_eq!(resumed.history, whole.history);
                assert_eq!(resumed.epoch, whole.epoch);
            }
        }
    }

    #[test]
    fn one_thread_or_several_arrive_at_the_very_same_weights() {
        let with = |n_threads: usize| {
            let pool = ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
            values(&pool.install(|| run(&small(), None, &mut ())))
        };
        assert_eq!(with(1), with(3));
    }

    #[test]
    fn a_stop_ends_with_the_best_epoch_so_far_and_can_be_gone_on_from() {
        let whole = run(&small(), None, &mut ());
        let n_steps_per_epoch = 8;
        // Before any epoch has ended, and in the third.
        for (stop_after, n_epochs) in [(3, 1), (2 * n_steps_per_epoch + 3, 2)] {
            let mut script = Script { stop_after: Some(stop_after), ..Script::default() };
            let stopped = run(&small(), None, &mut script);
            assert!(stopped.is_stopped);
            assert_eq!(script.n_steps, stop_after);
            assert_eq!(stopped.history.len(), n_epochs);
            assert!((1..=n_epochs).contains(&stopped.epoch));
            let resumed = run(&small(), script.states.pop(), &mut ());
            assert_eq!(values(&resumed), values(&whole));
        }
    }

    #[test]
    fn the_state_of_another_shape_is_refused() {
        let mut script = Script::default();
        run(&Settings { is_frozen: true, ..small() }, None, &mut script);
        let (config, weights) = start();
        let (cases, settings) = (examples(8), small());
        let task = Task {
            start: &weights,
            prior: None,
            config: &config,
            sizes: SIZES,
            train: &cases,
            validation: &cases,
            settings: &settings,
        };
        let refused = train(&task, script.states.pop(), &mut ()).err().expect("a refusal");
        assert!(refused.to_string().contains("other tensors"));
    }

    #[test]
    fn cases_without_levels_and_grounds_teach_the_type() {
        let (config, weights) = start();
        let mut cases = examples(64);
        // Two cases say something, so that most batches have none that does.
        for case in &mut cases[2..] {
            (case.target.level, case.target.grounds) = (None, None);
        }
        let settings = Settings { epochs: 40, patience: 40, mask_token_id: None, ..small() };
        let task = Task {
            start: &weights,
            prior: None,
            config: &config,
            sizes: SIZES,
            train: &cases,
            validation: &cases[..16],
            settings: &settings,
        };
        let trained = train(&task, None, &mut ()).unwrap();
        assert_eq!(type_f1(&trained.validation, &cases[..16]), 1.0);
    }

    #[test]
    fn a_frozen_encoder_stays_as_it_was() {
        let (_, weights) = start();
        let settings = Settings { epochs: 2, is_frozen: true, ..Default::default() };
        let trained = run(&settings, None, &mut ());
        for (name, tensor) in weights.iter() {
            let after = trained.weights.get(name, tensor.dims()).unwrap();
            let gap = (tensor - after).unwrap().abs().unwrap().sum_all().unwrap();
            let is_same = gap.to_scalar::<f32>().unwrap() == 0.0;
            assert_eq!(is_same, name.starts_with("bert."), "{name}");
        }
    }
}
