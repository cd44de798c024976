//! Where a training stands, as bytes: enough to go on and arrive at the very same weights.

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Device, Error, Result, Tensor};
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};

use super::adamw::Moments;

/// What became of an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Epoch {
    /// Number, from 1.
    pub epoch: usize,
    /// Mean loss of its cases.
    pub loss: f32,
    /// Validation macro-F1 of the type.
    pub validation_macro_f1: f32,
}

/// A position within the epochs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// Epoch under way, from 1.
    pub epoch: usize,
    /// Its batches already done.
    pub n_batches: usize,
    /// Where the random numbers stood when the epoch began; split, for JSON has no 128 bits.
    pub epoch_draws: [u64; 2],
    /// Where they stand.
    pub draws: [u64; 2],
    /// Losses of the epoch's cases so far, added up.
    pub loss_sum: f64,
    /// Its cases so far.
    pub n_cases: usize,
}

/// The best epoch so far.
#[derive(Debug, Clone, PartialEq)]
pub struct Best {
    /// Number, from 1; its score is in the history.
    pub epoch: usize,
    /// Averaged values of each trained tensor, empty for the others.
    pub values: Vec<Vec<f32>>,
}

/// Where a training stands.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// Position within the epochs.
    pub position: Position,
    /// Steps taken.
    pub n_steps: i32,
    /// Values of each trained tensor, empty for the others.
    pub values: Vec<Vec<f32>>,
    /// What the optimizer knows of each.
    pub moments: Vec<Moments>,
    /// Epochs that ended.
    pub history: Vec<Epoch>,
    /// The best of them.
    pub best: Option<Best>,
}

/// The part that is no tensor.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    position: Position,
    n_steps: i32,
    n_tensors: usize,
    history: Vec<Epoch>,
    best_epoch: Option<usize>,
}

const HEAD: &str = "state";
const TASK: &str = "task";

impl State {
    /// The state as a safetensors file; `task` says what it is the state of.
    ///
    /// # Errors
    /// When a tensor cannot be made.
    pub fn to_bytes(&self, task: &str) -> Result<Vec<u8>> {
        let head = Head {
            position: self.position,
            n_steps: self.n_steps,
            n_tensors: self.values.len(),
            history: self.history.clone(),
            best_epoch: self.best.as_ref().map(|it| it.epoch),
        };
        let mut tensors = BTreeMap::new();
        let mut put = |name: String, values: &[f32]| -> Result<()> {
            if !values.is_empty() {
                tensors.insert(name, Tensor::from_slice(values, values.len(), &Device::Cpu)?);
            }
            Ok(())
        };
        for idx in 0..self.values.len() {
            put(format!("value.{idx}"), &self.values[idx])?;
            put(format!("mean.{idx}"), &self.moments[idx].mean)?;
            put(format!("square.{idx}"), &self.moments[idx].square)?;
            put(format!("average.{idx}"), &self.moments[idx].average)?;
            if let Some(best) = &self.best {
                put(format!("best.{idx}"), &best.values[idx])?;
            }
        }
        let metadata = HashMap::from([
            (HEAD.to_owned(), serde_json::to_string(&head).map_err(Error::wrap)?),
            (TASK.to_owned(), task.to_owned()),
        ]);
        safetensors::serialize(&tensors, Some(metadata)).map_err(Error::wrap)
    }

    /// What [`to_bytes`](Self::to_bytes) was told the state is of.
    ///
    /// # Errors
    /// When `bytes` are no such file.
    pub fn task(bytes: &[u8]) -> Result<String> {
        entry(bytes, TASK)
    }

    /// The state in `bytes`.
    ///
    /// # Errors
    /// When `bytes` are no such file.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let head: Head = serde_json::from_str(&entry(bytes, HEAD)?).map_err(Error::wrap)?;
        let mut tensors = candle_core::safetensors::load_buffer(bytes, &Device::Cpu)?;
        let mut take = |name: &str| -> Result<Vec<Vec<f32>>> {
            let one = |idx: usize| match tensors.remove(&format!("{name}.{idx}")) {
                Some(tensor) => tensor.to_dtype(DType::F32)?.to_vec1(),
                None => Ok(Vec::new()),
            };
            (0..head.n_tensors).map(one).collect()
        };
        let (values, best) = (take("value")?, take("best")?);
        let (means, squares, averages) = (take("mean")?, take("square")?, take("average")?);
        let moments = means.into_iter().zip(squares).zip(averages);
        let moments =
            moments.map(|((mean, square), average)| Moments { mean, square, average }).collect();
        Ok(Self {
            position: head.position,
            n_steps: head.n_steps,
            values,
            moments,
            history: head.history,
            best: head.best_epoch.map(|epoch| Best { epoch, values: best }),
        })
    }
}

fn entry(bytes: &[u8], name: &str) -> Result<String> {
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(Error::wrap)?;
    let entry = metadata.metadata().as_ref().and_then(|it| it.get(name)).cloned();
    entry.ok_or_else(|| Error::msg(format!("the file has no entry `{name}`")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_survives_the_disk() {
        let moments = Moments { mean: vec![0.1], square: vec![0.2], average: vec![0.3] };
        let state = State {
            position: Position {
                epoch: 2,
                n_batches: 7,
                epoch_draws: [1, u64::MAX],
                draws: [2, 3],
                loss_sum: 1.0 / 3.0,
                n_cases: 5,
            },
            n_steps: 9,
            values: vec![vec![1.5e-38], Vec::new()],
            moments: vec![moments, Moments::default()],
            history: vec![Epoch { epoch: 1, loss: 0.1, validation_macro_f1: 0.7 }],
            best: Some(Best { epoch: 1, values: vec![vec![-1.0], Vec::new()] }),
        };
        let bytes = state.to_bytes("of this").unwrap();
        assert_eq!(State::from_bytes(&bytes).unwrap(), state);
        assert_eq!(State::task(&bytes).unwrap(), "of this");
        assert!(State::from_bytes(&bytes[..bytes.len() - 1]).is_err());
        assert!(State::task(b"something else").is_err());
    }
}
