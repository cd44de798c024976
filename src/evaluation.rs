//! Pure: predictions and truth to numbers; and the lexical baseline. Knows no network and no files.

pub mod lexical;
pub mod metrics;
pub mod report;
