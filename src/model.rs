//! Token ids to logits to probabilities. With `training`, the only importer of candle.

pub mod base;
pub mod bundle;
pub mod calibration;
pub mod config;
pub mod heads;
pub mod learned;
pub mod lexical;
pub mod network;
pub mod runtime;
pub mod trainable;
pub mod transformer;
pub mod weights;

pub use base::Base;
pub use bundle::{Bundle, BundleError};
pub use learned::Learned;

/// candle's error, under a name other rooms may use.
pub type ModelError = candle_core::Error;
