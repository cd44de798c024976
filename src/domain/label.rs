//! The label set of one head, in output-column order.

use thiserror::Error;

/// Distinct, non-empty codes; a code's position is its output column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelSet(Vec<String>);

impl LabelSet {
    /// # Errors
    /// [`InvalidLabelSet`] when empty, or when a code is blank or given twice.
    pub fn new<I, S>(codes: I) -> Result<Self, InvalidLabelSet>
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        let codes: Vec<String> = codes.into_iter().map(Into::into).collect();
        if codes.is_empty() {
            return Err(InvalidLabelSet::Empty);
        }
        for (idx, code) in codes.iter().enumerate() {
            if code.trim().is_empty() {
                return Err(InvalidLabelSet::Blank { idx });
            }
            if codes[..idx].contains(code) {
                return Err(InvalidLabelSet::Twice { code: code.clone() });
            }
        }
        Ok(Self(codes))
    }

    /// Number of labels.
    #[expect(clippy::len_without_is_empty, reason = "a label set is never empty")]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Output column of `code`.
    pub fn index_of(&self, code: &str) -> Option<usize> {
        self.0.iter().position(|it| it == code)
    }

    /// Code of output column `idx`.
    ///
    /// # Panics
    /// When `idx` is not below [`LabelSet::len`].
    pub fn code(&self, idx: usize) -> &str {
        &self.0[idx]
    }

    /// The codes in column order.
    pub fn codes(&self) -> impl ExactSizeIterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

/// Not a label set.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InvalidLabelSet {
    /// No label at all.
    #[error("a label set needs at least one label")]
    Empty,
    /// A blank code.
    #[error("label {idx} is blank")]
    Blank {
        /// Its position.
        idx: usize,
    },
    /// The same code twice.
    #[error("label `{code}` is given twice")]
    Twice {
        /// The code.
        code: String,
    },
}
