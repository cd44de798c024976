//! What sits on the pooled vector: one linear layer per question asked of a text.
//!
//! - type: one logit per label, softmax;
//! - level: one logit per threshold between neighbouring levels, each the log-odds that the level is
//!   above it (an ordinal head: level 3 is "more" than 2, not just another class);
//! - grounds: one logit per ground, independent sigmoids.

use candle_core::{Result, Tensor};

use super::transformer::Linear;
use super::weights::Weights;

/// Name of the type head's layer: `BertForSequenceClassification` calls it so.
const TYPE: &str = "classifier";
/// Name of the level head's layer.
pub const LEVEL: &str = "level_head";
/// Name of the grounds head's layer.
pub const GROUNDS: &str = "grounds_head";

/// How many outputs each head has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadSizes {
    /// Types.
    pub n_types: usize,
    /// Levels; the head has one logit fewer.
    pub n_levels: usize,
    /// Grounds.
    pub n_grounds: usize,
}

impl HeadSizes {
    /// Outputs of all heads together.
    pub fn n_outputs(self) -> usize {
        self.layers().iter().map(|it| it.1).sum()
    }

    /// Names of the heads' layers, and their outputs.
    pub(super) fn layers(self) -> [(&'static str, usize); 3] {
        [(TYPE, self.n_types), (LEVEL, self.n_levels - 1), (GROUNDS, self.n_grounds)]
    }
}

/// The three heads.
pub struct Heads {
    kind: Linear,
    level: Linear,
    grounds: Linear,
}

/// Logits of a batch of rows.
pub struct HeadLogits {
    /// `(batch, types)`
    pub kind: Tensor,
    /// `(batch, levels - 1)`
    pub level: Tensor,
    /// `(batch, grounds)`
    pub grounds: Tensor,
}

/// Logits of one text, still uncalibrated.
#[derive(Debug, Clone, PartialEq)]
pub struct TextLogits {
    /// One per type.
    pub kind: Vec<f32>,
    /// One per threshold between levels.
    pub level: Vec<f32>,
    /// One per ground.
    pub grounds: Vec<f32>,
}

impl Heads {
    /// # Errors
    /// When a head is missing from `weights` or has another size.
    pub fn load(weights: &Weights, hidden: usize, sizes: HeadSizes) -> Result<Self> {
        let [kind, level, grounds] =
            sizes.layers().map(|(name, n_out)| Linear::load(weights, name, hidden, n_out));
        Ok(Self { kind: kind?, level: level?, grounds: grounds? })
    }

    /// Adds freshly drawn heads to `weights`, in place of any it has.
    ///
    /// # Errors
    /// When a tensor cannot be made.
    pub fn start(weights: &mut Weights, hidden: usize, sizes: HeadSizes, seed: u64) -> Result<()> {
        for ((name, n_out), salt) in sizes.layers().into_iter().zip(1..) {
            weights.add_random_linear(name, hidden, n_out, seed.wrapping_add(salt))?;
        }
        Ok(())
    }

    /// Adds the heads of `from` to `weights`, in place of any it has.
    ///
    /// # Errors
    /// When a head is missing from `from` or has another size.
    pub fn copy(
        weights: &mut Weights,
        from: &Weights,
        hidden: usize,
        sizes: HeadSizes,
    ) -> Result<()> {
        for (name, n_out) in sizes.layers() {
            for (part, shape) in [("weight", &[n_out, hidden][..]), ("bias", &[n_out])] {
                let name = format!("{name}.{part}");
                weights.insert(&name, from.get(&name, shape)?);
            }
        }
        Ok(())
    }

    /// `pooled` is `(batch, hidden)`.
    ///
    /// # Errors
    /// When the width differs.
    pub fn forward(&self, pooled: &Tensor) -> Result<HeadLogits> {
        Ok(HeadLogits {
            kind: self.kind.forward(pooled)?,
            level: self.level.forward(pooled)?,
            grounds: self.grounds.forward(pooled)?,
        })
    }
}
