//! The texts that test one duty each, shipped in the binary so that every promotion asks the same ones
//! (`datasets/suites/`). Knows no model: what becomes of them is summed up in `evaluation::suite`.

use serde::Deserialize;
use thiserror::Error;

use crate::domain::case::{CaseText, TextError};

const CRITICISM: &str = include_str!("../datasets/suites/criticism.jsonl");
const SWAPS: &str = include_str!("../datasets/suites/swaps.jsonl");
/// What a template's value replaces.
const SLOT: &str = "{}";

/// Harsh but legitimate criticism.
#[derive(Debug, Clone)]
pub struct Criticism {
    /// Identifier.
    pub id: String,
    /// The text.
    pub text: CaseText,
    /// Highest level that what it states can deserve.
    pub max_level: usize,
}

/// One sentence in wordings that differ in who is spoken of, or how.
#[derive(Debug, Clone)]
pub struct Swap {
    /// Identifier.
    pub id: String,
    /// What is swapped: `region`, `gender`, `ethnicity`, `age`, `job`, `dialect`, `disability`.
    pub dimension: String,
    /// Each value with the whole text.
    pub wordings: Vec<(String, CaseText)>,
}

/// Both suites.
#[derive(Debug, Clone)]
pub struct Suites {
    /// What must not be accused.
    pub criticism: Vec<Criticism>,
    /// What must not change the answer.
    pub swaps: Vec<Swap>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CriticismRow {
    id: String,
    text: String,
    max_level: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SwapRow {
    id: String,
    dimension: String,
    template: String,
    values: Vec<String>,
}

/// Why a suite cannot be read.
#[derive(Debug, Error)]
pub enum SuiteError {
    /// Not JSON of the right shape.
    #[error("suite_row: line {line}: column {column} is not what the suite's format asks for")]
    Row {
        /// The line, from 1.
        line: usize,
        /// The column, from 1.
        column: usize,
    },
    /// A text that is no item.
    #[error("suite_text: line {line}: {source}")]
    Text {
        /// The line, from 1.
        line: usize,
        /// The cause.
        source: TextError,
    },
    /// A template without exactly one slot, or without two values.
    #[error("suite_template: line {line}: a template needs one `{SLOT}` and two values or more")]
    Template {
        /// The line, from 1.
        line: usize,
    },
}

impl Suites {
    /// The suites this binary was built with.
    ///
    /// # Panics
    /// Never: a test parses them.
    pub fn embedded() -> Self {
        Self::parse(CRITICISM, SWAPS).expect("the embedded suites parse (tested)")
    }

    /// The bytes a digest of the suites is made of.
    pub fn embedded_bytes() -> Vec<u8> {
        [CRITICISM, SWAPS].concat().into_bytes()
    }

    fn parse(criticism: &str, swaps: &str) -> Result<Self, SuiteError> {
        let criticism = rows(criticism)
            .map(|(line, text)| {
                let row: CriticismRow = json(line, text)?;
                Ok(Criticism {
                    id: row.id,
                    text: case_text(line, row.text)?,
                    max_level: row.max_level,
                })
            })
            .collect::<Result<_, _>>()?;
        let swaps = rows(swaps)
            .map(|(line, text)| {
                let row: SwapRow = json(line, text)?;
                if row.template.matches(SLOT).count() != 1 || row.values.len() < 2 {
                    return Err(SuiteError::Template { line });
                }
                let wording = |value: String| {
                    let text = case_text(line, row.template.replace(SLOT, &value))?;
                    Ok((value, text))
                };
                let wordings = row.values.into_iter().map(wording).collect::<Result<_, _>>()?;
                Ok(Swap { id: row.id, dimension: row.dimension, wordings })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { criticism, swaps })
    }
}

fn rows(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(idx, it)| (idx + 1, it)).filter(|it| !it.1.trim().is_empty())
}

fn json<T: serde::de::DeserializeOwned>(line: usize, text: &str) -> Result<T, SuiteError> {
    // The error's own words may quote the row: only its place is told.
    serde_json::from_str(text).map_err(|it| SuiteError::Row { line, column: it.column() })
}

fn case_text(line: usize, text: String) -> Result<CaseText, SuiteError> {
    CaseText::parse(text).map_err(|source| SuiteError::Text { line, source })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_embedded_suites_cover_what_they_promise() {
        let suites = Suites::embedded();
        assert!(suites.criticism.len() >= 40);
        assert!(suites.criticism.iter().all(|it| it.max_level < 3));
        let dimensions: BTreeSet<&str> =
            suites.swaps.iter().map(|it| it.dimension.as_str()).collect();
        let promised = ["age", "dialect", "disability", "ethnicity", "gender", "job", "region"];
        assert_eq!(dimensions.into_iter().collect::<Vec<_>>(), promised);
        let ids: BTreeSet<&String> = suites
            .criticism
            .iter()
            .map(|it| &it.id)
            .chain(suites.swaps.iter().map(|it| &it.id))
            .collect();
        assert_eq!(ids.len(), suites.criticism.len() + suites.swaps.len());
        for swap in &suites.swaps {
            let texts: BTreeSet<&str> = swap.wordings.iter().map(|it| it.1.as_str()).collect();
            assert_eq!(texts.len(), swap.wordings.len(), "{}", swap.id);
        }
    }

    #[test]
    fn a_wrong_row_is_named_by_line_and_not_quoted() {
        let swap = |template: &str| {
            format!(r#"{{"id":"a","dimension":"age","template":"{template}","values":["x","y"]}}"#)
        };
        let cases = [
            ("{\"id\":\"秘密\"}", String::new(), "suite_row: line 1"),
            ("", swap("秘密"), "suite_template: line 1"),
            ("{\"id\":\"a\",\"text\":\" \",\"max_level\":1}", String::new(), "suite_text: line 1"),
        ];
        for (criticism, swaps, expected) in cases {
            let message = Suites::parse(criticism, &swaps).unwrap_err().to_string();
            assert!(message.starts_with(expected) && !message.contains("秘密"), "{message}");
        }
    }
}
