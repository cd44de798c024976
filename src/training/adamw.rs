//! AdamW over plain slices: a rate per tensor, clipping by the global norm, a running average of the
//! weights, both cores.
//!
//! candle's own optimizer takes a dozen passes over every tensor, has one rate for all and decays
//! biases too. Sources: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization"; Polyak and
//! Juditsky 1992 (averaging).

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{Device, Result, Tensor, Var};
use rayon::prelude::*;

const BETA1: f32 = 0.9;
const BETA2: f32 = 0.98;
const EPS: f32 = 1e-8;
const WEIGHT_DECAY: f32 = 0.01;
const MAX_GRADIENT_NORM: f32 = 1.0;
/// Share of the average kept at each step, once it is warm.
const AVERAGE_DECAY: f32 = 0.995;

struct Slot {
    name: String,
    var: Var,
    /// Rate relative to the step's.
    rate: f32,
    /// Biases and layer norms are not decayed.
    weight_decay: f32,
    mean: Vec<f32>,
    square: Vec<f32>,
    average: Vec<f32>,
}

/// The optimizer's state.
pub struct AdamW {
    slots: Vec<Slot>,
    n_steps: i32,
}

impl AdamW {
    /// An optimizer of `vars`; `rate` gives each its share of the step's learning rate, by name.
    pub fn new(vars: &BTreeMap<String, Var>, rate: impl Fn(&str) -> f32) -> Self {
        let slot = |(name, var): (&String, &Var)| {
            let n = var.elem_count();
            Slot {
                name: name.clone(),
                var: var.clone(),
                rate: rate(name),
                weight_decay: if var.dims().len() > 1 { WEIGHT_DECAY } else { 0.0 },
                mean: vec![0.0; n],
                square: vec![0.0; n],
                average: vec![0.0; n],
            }
        };
        Self { slots: vars.iter().map(slot).collect(), n_steps: 0 }
    }

    /// One step at `learning_rate` along the sum of `gradients`, one store a part of the batch.
    ///
    /// # Errors
    /// When a tensor of `vars` has no gradient in some part: it would silently never learn.
    pub fn step(&mut self, gradients: &[GradStore], learning_rate: f32) -> Result<()> {
        let flat = |slot: &Slot| -> Result<Vec<f32>> {
            let mut total = vec![0.0; slot.mean.len()];
            for part in gradients {
                let Some(gradient) = part.get(slot.var.as_tensor()) else {
                    candle_core::bail!("`{}` is trainable and got no gradient", slot.name)
                };
                let gradient: Vec<f32> = gradient.flatten_all()?.to_vec1()?;
                total.iter_mut().zip(gradient).for_each(|(it, value)| *it += value);
            }
            Ok(total)
        };
        let gradients = self.slots.par_iter().map(flat).collect::<Result<Vec<_>>>()?;
        let square_sum: f64 = gradients
            .par_iter()
            .map(|it| it.par_chunks(1 << 16).map(square_sum).sum::<f64>())
            .sum();
        let norm = square_sum.sqrt() as f32;
        if !norm.is_finite() {
            candle_core::bail!("the gradient is not finite; lower the learning rate")
        }
        let scale = if norm > MAX_GRADIENT_NORM { MAX_GRADIENT_NORM / norm } else { 1.0 };
        self.n_steps += 1;
        let kept = AVERAGE_DECAY.min((self.n_steps - 1) as f32 / (self.n_steps + 8) as f32);
        let correct1 = 1.0 - BETA1.powi(self.n_steps);
        let correct2 = 1.0 - BETA2.powi(self.n_steps);
        for (slot, gradient) in self.slots.iter_mut().zip(gradients) {
            let rate = learning_rate * slot.rate;
            let decay = 1.0 - rate * slot.weight_decay;
            let mut values: Vec<f32> = slot.var.flatten_all()?.to_vec1()?;
            const CHUNK: usize = 1 << 16;
            values
                .par_chunks_mut(CHUNK)
                .zip(slot.mean.par_chunks_mut(CHUNK))
                .zip(slot.square.par_chunks_mut(CHUNK))
                .zip(slot.average.par_chunks_mut(CHUNK))
                .zip(gradient.par_chunks(CHUNK))
                .for_each(|((((values, means), squares), averages), gradients)| {
                    for idx in 0..values.len() {
                        let g = gradients[idx] * scale;
                        means[idx] = BETA1 * means[idx] + (1.0 - BETA1) * g;
                        squares[idx] = BETA2 * squares[idx] + (1.0 - BETA2) * g * g;
                        let step =
                            (means[idx] / correct1) / ((squares[idx] / correct2).sqrt() + EPS);
                        values[idx] = values[idx] * decay - rate * step;
                        averages[idx] = kept * averages[idx] + (1.0 - kept) * values[idx];
                    }
                });
            slot.var.set(&Tensor::from_vec(values, slot.var.dims(), &Device::Cpu)?)?;
        }
        Ok(())
    }

    /// The running averages of the weights, by name: less noisy than the last step's.
    ///
    /// # Errors
    /// When a tensor cannot be made.
    pub fn averages(&self) -> impl Iterator<Item = Result<(&str, Tensor)>> {
        self.slots.iter().map(|slot| {
            let average = Tensor::from_slice(&slot.average, slot.var.dims(), &Device::Cpu)?;
            Ok((slot.name.as_str(), average))
        })
    }
}

fn square_sum(values: &[f32]) -> f64 {
    values.iter().map(|it| f64::from(*it) * f64::from(*it)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn step_finds_a_minimum_and_refuses_a_missing_gradient() {
        let x = Var::new(&[3.0_f32, -2.0], &Device::Cpu).unwrap();
        let vars = BTreeMap::from([("x".to_owned(), x.clone())]);
        let mut adamw = AdamW::new(&vars, |_| 1.0);
        for step in 0..300 {
            let loss = x.as_tensor().sqr().unwrap().sum_all().unwrap();
            adamw.step(&[loss.backward().unwrap()], 0.05).unwrap();
            if step == 20 {
                // The average lags behind, on the way from the start.
                let (name, average) = adamw.averages().next().unwrap().unwrap();
                let (now, average): (Vec<f32>, Vec<f32>) =
                    (x.to_vec1().unwrap(), average.to_vec1().unwrap());
                assert_eq!(name, "x");
                assert!(3.0 > average[0] && average[0] > now[0], "{average:?} {now:?}");
                assert!(-2.0 < average[1] && average[1] < now[1], "{average:?} {now:?}");
            }
        }
        let found: Vec<f32> = x.to_vec1().unwrap();
        assert!(found.iter().all(|it| it.abs() < 0.05), "{found:?}");
        let other = Var::new(&[1.0_f32], &Device::Cpu).unwrap();
        let unrelated = other.as_tensor().sqr().unwrap().sum_all().unwrap().backward().unwrap();
        assert!(adamw.step(&[unrelated], 0.05).unwrap_err().to_string().contains("no gradient"));
    }
}
