//! Pure: predictions and truth to numbers; the gates before production; and the lexical baseline. Knows no
//! network and no files.

pub mod conformal;
pub mod details;
pub mod gate;
pub mod lexical;
pub mod linear;
pub mod metrics;
pub mod migration;
pub mod report;
pub mod suite;
