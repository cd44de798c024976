//! Plain values every room shares. Knows no I/O, no tensors, no wire format.

pub mod author;
pub mod case;
pub mod day;
pub mod label;
pub mod policy;
pub mod prediction;
pub mod span;
pub mod taxonomy;
