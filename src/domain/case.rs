//! The item itself: its text, its identifier, and, when a person labelled it, its labels.

use thiserror::Error;

use super::day::Day;

/// Longest text accepted, in characters. Longer documents are not one item.
pub const MAX_TEXT_CHARS: usize = 20_000;
/// Longest identifier accepted, in characters.
pub const MAX_ID_CHARS: usize = 128;

/// A submitted text: not blank and at most [`MAX_TEXT_CHARS`] characters; otherwise untouched.
///
/// Its `Debug` form gives the length only, so that no log or panic message carries a text.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct CaseText(String);

impl CaseText {
    /// # Errors
    /// [`TextError::Empty`] for blank text, [`TextError::TooLong`] above [`MAX_TEXT_CHARS`].
    pub fn parse(text: impl Into<String>) -> Result<Self, TextError> {
        let text = text.into();
        if text.trim().is_empty() {
            return Err(TextError::Empty);
        }
        // A character has at least one byte: most texts need no count.
        if text.len() > MAX_TEXT_CHARS {
            let actual = text.chars().count();
            if actual > MAX_TEXT_CHARS {
                return Err(TextError::TooLong { limit: MAX_TEXT_CHARS, actual });
            }
        }
        Ok(Self(text))
    }

    /// The text as it was submitted.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for CaseText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CaseText({} bytes)", self.0.len())
    }
}

/// Why a text is not an item.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TextError {
    /// Blank, or nothing but whitespace and invisible characters.
    #[error("the text is empty; send at least one visible character")]
    Empty,
    /// More characters than one item may have.
    #[error("the text has {actual} characters, the limit is {limit}; split it into several items")]
    TooLong {
        /// The limit, in characters.
        limit: usize,
        /// What was sent, in characters.
        actual: usize,
    },
}

/// The caller's name for an item: 1 to [`MAX_ID_CHARS`] characters, none of them control.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CaseId(String);

impl CaseId {
    /// # Errors
    /// [`InvalidId`] when empty, too long, or holding a control character.
    pub fn parse(id: impl Into<String>) -> Result<Self, InvalidId> {
        let id = id.into();
        let n_chars = id.chars().count();
        if n_chars == 0 || n_chars > MAX_ID_CHARS || id.chars().any(char::is_control) {
            return Err(InvalidId { actual: n_chars });
        }
        Ok(Self(id))
    }

    /// The identifier as sent.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for CaseId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "an id needs 1 to {MAX_ID_CHARS} characters and no control characters; this one has {actual} characters"
)]
pub struct InvalidId {
    /// Length of what was sent, in characters.
    pub actual: usize,
}

/// A case a person labelled. Codes are strings here: which codes exist is the label set's affair.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelledCase {
    /// Identifier, unique in its file.
    pub id: CaseId,
    /// The text.
    pub text: CaseText,
    /// Code of the type.
    pub label: String,
    /// A second type the annotator thought possible.
    pub alt: Option<String>,
    /// Sensitivity level, 0 to 3, when it was labelled.
    pub level: Option<u8>,
    /// Codes of the grounds for the level; `None` when they were not labelled.
    pub grounds: Option<Vec<String>>,
    /// Where the text came from: a slice for evaluation, never an input of the model.
    pub source: Option<String>,
    /// Manner of speaking: a slice for evaluation, never an input of the model.
    pub register: Option<String>,
    /// The day it is of, when the file says so: for splits by time, never an input of the model.
    pub day: Option<Day>,
    /// Whether it was chosen for labelling otherwise than by lot: then figures on it are no figures.
    pub is_handpicked: bool,
}
