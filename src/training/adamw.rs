//! AdamW over plain slices: a rate per tensor, clipping by the global norm, a running average of the
//! weights, all cores.
//!
//! A row of the word table without a slope still moves, by its momentum. Such steps are owed and made up
//! for when the row is next looked at, number by number as if they had been taken in time: a row at a time
//! stays in the cache, the whole table does not.
//!
//! Sources: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization"; Polyak and Juditsky 1992
//! (averaging).

use candle_core::Result;
use rayon::prelude::*;

use crate::model::trainable::{Gradients, Parameters, WORDS};

const BETA1: f32 = 0.9;
const BETA2: f32 = 0.98;
const EPS: f32 = 1e-8;
const WEIGHT_DECAY: f32 = 0.01;
const MAX_GRADIENT_NORM: f32 = 1.0;
/// Share of the average kept at each step, once it is warm.
const AVERAGE_DECAY: f32 = 0.995;
/// Values a core takes at a time.
const CHUNK: usize = 1 << 14;

/// What the optimizer knows of one tensor besides its values; empty for one that is not trained.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Moments {
    /// Running mean of the slopes.
    pub mean: Vec<f32>,
    /// Running mean of their squares.
    pub square: Vec<f32>,
    /// Running average of the values.
    pub average: Vec<f32>,
}

struct Slot {
    moments: Moments,
    /// Rate relative to the step's.
    rate: f32,
    /// Biases and layer norms are not decayed.
    weight_decay: f32,
}

/// What a step did to every value, whatever its slope.
#[derive(Clone, Copy)]
struct Step {
    learning_rate: f32,
    kept: f32,
    correct1: f32,
    correct2: f32,
}

/// The word table's rows.
struct Table {
    slot: usize,
    width: usize,
    /// Steps each row has taken of `AdamW::steps`.
    n_taken: Vec<u32>,
}

/// The optimizer's state.
pub struct AdamW {
    slots: Vec<Slot>,
    table: Option<Table>,
    n_steps: i32,
    /// Steps that some row may still owe.
    steps: Vec<Step>,
}

impl AdamW {
    /// An optimizer of `parameters`; `rate` gives each its share of the step's learning rate by name, or
    /// none to leave it as it is.
    pub fn new(parameters: &Parameters, rate: impl Fn(&str) -> Option<f32>) -> Self {
        let slot = |idx: usize| {
            let rate = rate(&parameters.names[idx]);
            let n = rate.map_or(0, |_| parameters.values[idx].len());
            let moments =
                Moments { mean: vec![0.0; n], square: vec![0.0; n], average: vec![0.0; n] };
            let is_matrix = parameters.shapes[idx].len() > 1;
            let weight_decay = if is_matrix { WEIGHT_DECAY } else { 0.0 };
            Slot { moments, rate: rate.unwrap_or_default(), weight_decay }
        };
        let slots: Vec<Slot> = (0..parameters.names.len()).map(slot).collect();
        let table = parameters.position(WORDS).filter(|&it| !slots[it].moments.mean.is_empty());
        let table = table.map(|slot| {
            let [n_rows, width] = [parameters.shapes[slot][0], parameters.shapes[slot][1]];
            Table { slot, width, n_taken: vec![0; n_rows] }
        });
        Self { slots, table, n_steps: 0, steps: Vec::new() }
    }

    /// Takes the steps that the rows of `ids` owe: the weights must be right before they are used.
    pub fn catch_up(&mut self, parameters: &mut Parameters, ids: impl Iterator<Item = u32>) {
        let Some(table) = &mut self.table else { return };
        for id in ids {
            let row = id as usize;
            if table.n_taken[row] as usize == self.steps.len() {
                continue;
            }
            let begin = row * table.width;
            let slot = &mut self.slots[table.slot];
            let steps = &self.steps[table.n_taken[row] as usize..];
            let values = &mut parameters.values[table.slot];
            slot.go(values, begin, table.width, steps, None);
            table.n_taken[row] = self.steps.len() as u32;
        }
    }

    /// Takes every step that is owed.
    pub fn catch_up_all(&mut self, parameters: &mut Parameters) {
        let Some(table) = &mut self.table else { return };
        let slot = &mut self.slots[table.slot];
        let (rate, weight_decay, width) = (slot.rate, slot.weight_decay, table.width);
        let Moments { mean, square, average } = &mut slot.moments;
        parameters.values[table.slot]
            .par_chunks_exact_mut(width)
            .zip(mean.par_chunks_exact_mut(width))
            .zip(square.par_chunks_exact_mut(width))
            .zip(average.par_chunks_exact_mut(width))
            .zip(&table.n_taken)
            .for_each(|((((values, mean), square), average), &n_taken)| {
                for step in &self.steps[n_taken as usize..] {
                    update(values, mean, square, average, None, step, rate, weight_decay);
                }
            });
        table.n_taken.fill(0);
        self.steps.clear();
    }

    /// One step at `learning_rate` along the sum of `gradients`, one a part of the batch. The rows of the
    /// words in them must have caught up.
    ///
    /// # Errors
    /// When the slope is not finite.
    pub fn step(
        &mut self,
        parameters: &mut Parameters,
        gradients: Vec<Gradients>,
        learning_rate: f32,
    ) -> Result<()> {
        let mut parts = gradients.into_iter();
        let Some(mut total) = parts.next() else { return Ok(()) };
        for part in parts {
            total.dense.par_iter_mut().zip(&part.dense).for_each(|(total, part)| {
                total.iter_mut().zip(part).for_each(|(it, value)| *it += value);
            });
            total.words.0.extend(part.words.0);
            total.words.1.extend(part.words.1);
        }
        let (rows, by_row) = match &self.table {
            Some(table) => rows_of(&total.words, table.width),
            None => (Vec::new(), Vec::new()),
        };
        let trained = || self.slots.iter().zip(&total.dense).filter(|it| it.0.rate > 0.0);
        let square_sum: f64 = trained()
            .map(|it| it.1.as_slice())
            .chain([by_row.as_slice()])
            .map(|it| it.par_chunks(CHUNK).map(square_sum).collect::<Vec<f64>>())
            .map(|it| it.into_iter().sum::<f64>())
            .sum();
        let norm = square_sum.sqrt() as f32;
        if !norm.is_finite() {
            candle_core::bail!("the gradient is not finite; lower the learning rate")
        }
        let scale = if norm > MAX_GRADIENT_NORM { MAX_GRADIENT_NORM / norm } else { 1.0 };
        self.n_steps += 1;
        let step = Step {
            learning_rate,
            kept: AVERAGE_DECAY.min((self.n_steps - 1) as f32 / (self.n_steps + 8) as f32),
            correct1: 1.0 - BETA1.powi(self.n_steps),
            correct2: 1.0 - BETA2.powi(self.n_steps),
        };
        for (idx, (slot, gradient)) in self.slots.iter_mut().zip(&total.dense).enumerate() {
            if slot.rate == 0.0 || gradient.is_empty() {
                continue;
            }
            let (rate, weight_decay) = (slot.rate, slot.weight_decay);
            let Moments { mean, square, average } = &mut slot.moments;
            parameters.values[idx]
                .par_chunks_mut(CHUNK)
                .zip(mean.par_chunks_mut(CHUNK))
                .zip(square.par_chunks_mut(CHUNK))
                .zip(average.par_chunks_mut(CHUNK))
                .zip(gradient.par_chunks(CHUNK))
                .for_each(|((((values, mean), square), average), gradient)| {
                    let gradient = Some((gradient, scale));
                    update(values, mean, square, average, gradient, &step, rate, weight_decay);
                });
        }
        if let Some(table) = &mut self.table {
            self.steps.push(step);
            let slot = &mut self.slots[table.slot];
            let values = &mut parameters.values[table.slot];
            for (&row, gradient) in rows.iter().zip(by_row.chunks_exact(table.width)) {
                let gradient = Some((gradient, scale));
                let begin = row as usize * table.width;
                slot.go(values, begin, table.width, std::slice::from_ref(&step), gradient);
                table.n_taken[row as usize] = self.steps.len() as u32;
            }
        }
        Ok(())
    }

    /// The running averages of the values, less noisy than the last step's; the values themselves where
    /// nothing is trained. Nothing may be owed.
    pub fn averages<'a>(&'a self, parameters: &'a Parameters) -> Vec<&'a [f32]> {
        debug_assert!(self.steps.is_empty(), "some rows owe steps");
        let pairs = self.slots.iter().zip(&parameters.values);
        pairs
            .map(|(slot, values)| match slot.moments.average.is_empty() {
                true => values.as_slice(),
                false => slot.moments.average.as_slice(),
            })
            .collect()
    }

    /// Steps so far.
    pub fn n_steps(&self) -> i32 {
        self.n_steps
    }

    /// Steps so far and what is known of each tensor. Nothing may be owed.
    pub fn state(&self) -> (i32, impl Iterator<Item = &Moments>) {
        debug_assert!(self.steps.is_empty(), "some rows owe steps");
        (self.n_steps, self.slots.iter().map(|it| &it.moments))
    }

    /// Goes on from a [`state`](Self::state).
    ///
    /// # Errors
    /// When it is of other tensors.
    pub fn restore(&mut self, n_steps: i32, moments: Vec<Moments>) -> Result<()> {
        let len = |it: &Moments| [it.mean.len(), it.square.len(), it.average.len()];
        let fits = moments.len() == self.slots.len()
            && self.slots.iter().zip(&moments).all(|(a, b)| len(&a.moments) == len(b));
        if !fits {
            candle_core::bail!("the state is of other tensors than these")
        }
        self.n_steps = n_steps;
        self.slots.iter_mut().zip(moments).for_each(|(slot, it)| slot.moments = it);
        Ok(())
    }
}

impl Slot {
    fn go(
        &mut self,
        values: &mut [f32],
        begin: usize,
        width: usize,
        steps: &[Step],
        gradient: Option<(&[f32], f32)>,
    ) {
        let row = begin..begin + width;
        let Moments { mean, square, average } = &mut self.moments;
        let (mean, square) = (&mut mean[row.clone()], &mut square[row.clone()]);
        let (values, average) = (&mut values[row.clone()], &mut average[row]);
        for step in steps {
            update(values, mean, square, average, gradient, step, self.rate, self.weight_decay);
        }
    }
}

#[expect(
    clippy::too_many_arguments,
    reason = "one line of the algorithm, four arrays of one tensor"
)]
fn update(
    values: &mut [f32],
    mean: &mut [f32],
    square: &mut [f32],
    average: &mut [f32],
    gradient: Option<(&[f32], f32)>,
    step: &Step,
    rate: f32,
    weight_decay: f32,
) {
    let rate = step.learning_rate * rate;
    let decay = 1.0 - rate * weight_decay;
    let Step { kept, correct1, correct2, .. } = *step;
    let one = |value: &mut f32, mean: &mut f32, square: &mut f32, average: &mut f32, g: f32| {
        *mean = BETA1 * *mean + (1.0 - BETA1) * g;
        *square = BETA2 * *square + (1.0 - BETA2) * g * g;
        let by = (*mean / correct1) / ((*square / correct2).sqrt() + EPS);
        *value = *value * decay - rate * by;
        *average = kept * *average + (1.0 - kept) * *value;
    };
    pulp::Arch::new().dispatch(
        #[inline(always)]
        || {
            let all = values.iter_mut().zip(mean).zip(square).zip(average);
            match gradient {
                Some((gradient, scale)) => {
                    all.zip(gradient).for_each(|((((v, m), s), a), g)| one(v, m, s, a, g * scale))
                }
                None => all.for_each(|(((v, m), s), a)| one(v, m, s, a, 0.0)),
            }
        },
    );
}

/// The rows that tokens' slopes belong to, ascending, and the sum of each row's.
fn rows_of((ids, slopes): &(Vec<u32>, Vec<f32>), width: usize) -> (Vec<u32>, Vec<f32>) {
    let mut rows = ids.clone();
    rows.sort_unstable();
    rows.dedup();
    let mut sums = vec![0.0; rows.len() * width];
    for (id, slopes) in ids.iter().zip(slopes.chunks_exact(width)) {
        let at = rows.binary_search(id).expect("every id is among them") * width;
        sums[at..at + width].iter_mut().zip(slopes).for_each(|(sum, it)| *sum += it);
    }
    (rows, sums)
}

fn square_sum(values: &[f32]) -> f64 {
    values.iter().map(|it| f64::from(*it) * f64::from(*it)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(words: Vec<f32>, x: Vec<f32>) -> Parameters {
        let n_rows = words.len() / 2;
        Parameters {
            names: vec![WORDS.into(), "x".into()],
            shapes: vec![vec![n_rows, 2], vec![x.len()]],
            values: vec![words, x],
        }
    }

    #[test]
    fn step_finds_a_minimum_and_refuses_what_is_not_finite() {
        let mut parameters = parameters(Vec::new(), vec![3.0, -2.0]);
        let mut adamw = AdamW::new(&parameters, |name| (name == "x").then_some(1.0));
        let slopes = |parameters: &Parameters| Gradients {
            dense: vec![Vec::new(), parameters.values[1].iter().map(|it| 2.0 * it).collect()],
            words: (Vec::new(), Vec::new()),
        };
        for step in 0..300 {
            let gradients = slopes(&parameters);
            adamw.step(&mut parameters, vec![gradients], 0.05).unwrap();
            if step == 20 {
                // The average lags behind, on the way from the start.
                let (now, average) = (&parameters.values[1], adamw.averages(&parameters)[1]);
                assert!(3.0 > average[0] && average[0] > now[0], "{average:?} {now:?}");
                assert!(-2.0 < average[1] && average[1] < now[1], "{average:?} {now:?}");
            }
        }
        let found = &parameters.values[1];
        assert!(found.iter().all(|it| it.abs() < 0.05), "{found:?}");
        parameters.values[1][0] = f32::NAN;
        let gradients = slopes(&parameters);
        let refused = adamw.step(&mut parameters, vec![gradients], 0.05).unwrap_err();
        assert!(refused.to_string().contains("not finite"));
    }

    #[test]
    fn steps_made_up_for_are_those_taken_in_time() {
        let words: Vec<f32> = (0..12).map(|it| (it as f32 * 0.7).sin()).collect();
        let rate = |_: &str| Some(1.0);
        let run = |is_late: bool| {
            let mut parameters = parameters(words.clone(), vec![0.5]);
            let mut adamw = AdamW::new(&parameters, rate);
            for step in 0..40_u32 {
                let ids = [step * 7 % 5, step * 3 % 4];
                adamw.catch_up(&mut parameters, ids.into_iter());
                if !is_late {
                    adamw.catch_up_all(&mut parameters);
                }
                let part = |id: u32, x: f32| {
                    let row = &parameters.values[0][id as usize * 2..id as usize * 2 + 2];
                    let slopes = row.iter().map(|it| it - x).collect();
                    Gradients { dense: vec![Vec::new(), vec![x]], words: (vec![id], slopes) }
                };
                let parts = vec![part(ids[0], 0.3), part(ids[1], -0.4)];
                adamw.step(&mut parameters, parts, 0.01).unwrap();
            }
            adamw.catch_up_all(&mut parameters);
            let averages = adamw.averages(&parameters).concat();
            (parameters, averages)
        };
        let (late, in_time) = (run(true), run(false));
        assert_eq!(late, in_time);
        // A row without any slope is decayed all the same.
        assert!(late.0.values[0][10..].iter().zip(&words[10..]).all(|(a, b)| a.abs() < b.abs()));
    }
}
