//! Encoder and heads as one, in candle's own operations: the reference that training's
//! [`super::trainable`] and serving's [`super::runtime`] are held to.

use candle_core::{Result, Tensor};
use candle_transformers::models::bert::Config;

use super::heads::{HeadLogits, HeadSizes, Heads};
use super::transformer::{Mode, PaddedRows, Transformer};
use super::weights::Weights;

/// An encoder with its heads.
pub struct Network {
    transformer: Transformer,
    heads: Heads,
    pad_token_id: u32,
}

impl Network {
    /// # Errors
    /// When `weights` lacks a tensor of the shape, or has it in another shape; it is named.
    pub fn load(weights: &Weights, config: &Config, sizes: HeadSizes) -> Result<Self> {
        Ok(Self {
            transformer: Transformer::load(weights, config)?,
            heads: Heads::load(weights, config.hidden_size, sizes)?,
            pad_token_id: config.pad_token_id as u32,
        })
    }

    /// Logits of `rows`, one row of each tensor per row of ids.
    ///
    /// # Errors
    /// When a row is longer than the position table.
    pub fn forward(&self, rows: &[&[u32]], mode: &Mode<'_>) -> Result<HeadLogits> {
        let padded = PaddedRows::new(rows, self.pad_token_id)?;
        let pooled = mode.dropout(self.transformer.pooled(&padded, mode)?)?;
        self.heads.forward(&pooled)
    }

    /// The heads' logits on pooled vectors `(batch, hidden)`.
    ///
    /// # Errors
    /// When the width differs.
    pub fn answer(&self, pooled: &Tensor) -> Result<HeadLogits> {
        self.heads.forward(pooled)
    }
}
