//! Characters to token ids: normalize, redact, segment, encode. Knows no model and no labels.

pub mod encode;
pub mod ngrams;
pub mod normalize;
pub mod redact;
pub mod segment;
pub mod vocabulary;

pub use encode::{Encoder, Encoding};
pub use normalize::{Normalized, normalize};
pub use redact::{RedactedText, redact};
pub use segment::{Segmenter, Word};
