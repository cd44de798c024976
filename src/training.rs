//! Labelled cases to a candidate version. Knows no HTTP and no names of labels.

pub mod adamw;
pub mod audit;
pub mod course;
pub mod lexical;
pub mod loss;
pub mod split;
pub mod state;
pub mod trainer;
