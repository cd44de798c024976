//! What the model says about one item, calibrated.

use thiserror::Error;

/// A calibrated probability: finite and within `0.0..=1.0`.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Probability(f32);

impl Probability {
    /// # Errors
    /// [`NotAProbability`] when `value` is NaN or outside `0.0..=1.0`.
    pub fn new(value: f32) -> Result<Self, NotAProbability> {
        if !(0.0..=1.0).contains(&value) {
            return Err(NotAProbability(value));
        }
        Ok(Self(value))
    }

    /// The number.
    pub const fn get(self) -> f32 {
        self.0
    }
}

/// A number that is not a probability.
#[derive(Debug, Clone, Copy, PartialEq, Error)]
#[error("{0} is not a probability")]
pub struct NotAProbability(pub f32);

/// One item's prediction. Vectors are in the column order of their head's label set.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// Uncalibrated scores of the type head.
    pub type_logits: Vec<f32>,
    /// Calibrated, sums to 1.
    pub type_probabilities: Vec<Probability>,
    /// Columns of the types that cannot be ruled out at the bundle's coverage, most probable first.
    /// Never empty.
    pub prediction_set: Vec<usize>,
    /// Calibrated, one per level from 0 up, sums to 1.
    pub level_probabilities: Vec<Probability>,
    /// Calibrated, one per ground, independent of each other.
    pub ground_probabilities: Vec<Probability>,
}

impl Prediction {
    /// Column of the most probable type; the first one on a tie.
    pub fn type_idx(&self) -> usize {
        argmax(&self.type_probabilities)
    }

    /// Probability of the most probable type.
    pub fn confidence(&self) -> Probability {
        self.type_probabilities[self.type_idx()]
    }

    /// Expected level divided by the highest level: 0 routine, 1 gravest.
    pub fn sensitivity_score(&self) -> f32 {
        let top = (self.level_probabilities.len() - 1).max(1) as f32;
        let expected: f32 = self
            .level_probabilities
            .iter()
            .enumerate()
            .map(|(level, p)| level as f32 * p.get())
            .sum();
        (expected / top).clamp(0.0, 1.0)
    }

    /// The level nearest to the expected level, so that level and score never disagree.
    pub fn level(&self) -> usize {
        let top = self.level_probabilities.len() - 1;
        ((self.sensitivity_score() * top as f32).round() as usize).min(top)
    }
}

fn argmax(values: &[Probability]) -> usize {
    let mut best = 0;
    for (idx, value) in values.iter().enumerate() {
        if value.get() > values[best].get() {
            best = idx;
        }
    }
    best
}
