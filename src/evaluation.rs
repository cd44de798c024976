//! Predictions and truth to numbers. Pure: knows no files and no tensors.

pub mod metrics;
