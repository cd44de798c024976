//! Offline: one file of rows to one file of results, in order, in bounded memory, safe to repeat.
//!
//! Every input row gives exactly one output row: a result, or the reason why there is none. Knows no
//! HTTP.

use std::io::{self, Read, Write};
use std::sync::mpsc;
use std::thread;

use rayon::prelude::*;
use serde_json::{Map, Value, json};
use thiserror::Error;

use crate::domain::author::is_author_field;
use crate::domain::case::{CaseId, CaseText};
use crate::pipeline::{Pipeline, PipelineError, PrepareError, Prepared};
use crate::reply::{ClassifiedItem, reply};
use crate::rows::{Format, RawRow, Rows};

/// Rows worked on at a time, and bytes of them: enough for all cores, little memory.
const BLOCK_ROWS: usize = 1024;
const BLOCK_BYTES: usize = 8 << 20;
/// Blocks that may wait between two steps: reading, scoring and writing go on side by side.
const WAITING_BLOCKS: usize = 2;
/// Columns of CSV output.
const CSV_COLUMNS: [&str; 14] = [
    "row",
    "id",
    "status",
    "type",
    "type_zh",
    "probability",
    "prediction_set",
    "level",
    "score",
    "grounds",
    "decision",
    "review_reasons",
    "error_code",
    "error_detail",
];

/// Names of the columns to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Columns {
    /// The text.
    pub text: String,
    /// The identifier; a row without it is named by its number.
    pub id: String,
}

impl Default for Columns {
    fn default() -> Self {
        Self { text: "text".into(), id: "id".into() }
    }
}

/// What became of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Summary {
    /// Rows read, and written.
    pub rows: u64,
    /// Rows without a result.
    pub errors: u64,
}

/// Why a file as a whole cannot be scored.
#[derive(Debug, Error)]
pub enum ScoreError {
    /// The input cannot be read.
    #[error("cannot read the input: {0}")]
    Read(#[source] io::Error),
    /// A result cannot be written.
    #[error("cannot write the output: {0}")]
    Write(#[source] io::Error),
    /// The header names the author.
    #[error("column `{0}` tells who wrote the text; triage is author-blind: remove the column")]
    Author(String),
    /// There is no column with the text.
    #[error("the header has no column `{0}`; name the text's column so, or say --text-column")]
    NoText(String),
    /// The model failed.
    #[error(transparent)]
    Model(#[from] PipelineError),
}

/// Where results go.
pub struct Sinks<'a> {
    /// One row per input row.
    pub output: &'a mut dyn Write,
    /// Form of `output`.
    pub format: Format,
    /// One JSON line per row without a result.
    pub errors: &'a mut dyn Write,
}

/// Scores the rows of `input`; `on_rows` hears the rows done so far.
///
/// # Errors
/// [`ScoreError`]; a row that cannot be scored is no error, it is written as what it is.
pub fn score(
    pipeline: &Pipeline,
    input: impl Read + Send,
    format: Format,
    columns: &Columns,
    sinks: &mut Sinks<'_>,
    mut on_rows: impl FnMut(u64),
) -> Result<Summary, ScoreError> {
    let mut rows = Rows::new(input, format).map_err(ScoreError::Read)?;
    if let Some(header) = rows.header() {
        if let Some(name) = header.iter().find(|it| is_author_field(it)) {
            return Err(ScoreError::Author(name.clone()));
        }
        if !header.contains(&columns.text) {
            return Err(ScoreError::NoText(columns.text.clone()));
        }
    }
    if sinks.format == Format::Csv {
        write_csv(sinks.output, &CSV_COLUMNS.map(String::from))?;
    }
    let mut summary = Summary::default();
    thread::scope(|scope| {
        let (to_scorer, blocks) = mpsc::sync_channel(WAITING_BLOCKS);
        let (to_writer, scored_blocks) = mpsc::sync_channel(WAITING_BLOCKS);
        // A step whose successor has stopped, after an error, stops too.
        scope.spawn(move || {
            loop {
                let block = next_block(&mut rows);
                let is_last = !matches!(&block, Ok(block) if !block.is_empty());
                if to_scorer.send(block).is_err() || is_last {
                    return;
                }
            }
        });
        scope.spawn(move || {
            for block in blocks {
                let scored = block.and_then(|block| score_block(pipeline, &block, columns));
                let is_last = scored.is_err();
                if to_writer.send(scored).is_err() || is_last {
                    return;
                }
            }
        });
        for scored in scored_blocks {
            let scored = scored?;
            for it in &scored {
                sinks.write(it, pipeline)?;
            }
            summary.rows += scored.len() as u64;
            summary.errors += scored.iter().filter(|it| it.error.is_some()).count() as u64;
            on_rows(summary.rows);
        }
        Ok(summary)
    })
}

fn next_block(rows: &mut Rows<impl Read>) -> Result<Vec<RawRow>, ScoreError> {
    let mut block = Vec::new();
    let mut n_bytes = 0;
    while block.len() < BLOCK_ROWS && n_bytes < BLOCK_BYTES {
        let Some(row) = rows.next() else { break };
        let row = row.map_err(ScoreError::Read)?;
        n_bytes += row.len();
        block.push(row);
    }
    Ok(block)
}

/// A row's fault, in the words of the error file.
struct RowError {
    column: Option<String>,
    code: &'static str,
    detail: String,
}

struct Scored {
    row: u64,
    line: u64,
    id: String,
    prepared: Option<Prepared>,
    prediction: Option<crate::domain::prediction::Prediction>,
    error: Option<RowError>,
}

fn score_block(
    pipeline: &Pipeline,
    block: &[RawRow],
    columns: &Columns,
) -> Result<Vec<Scored>, ScoreError> {
    let mut scored: Vec<Scored> = block
        .par_iter()
        .map(|row| {
            let (id, outcome) = prepare(pipeline, row, columns);
            let (prepared, error) = match outcome {
                Ok(it) => (Some(it), None),
                Err(it) => (None, Some(it)),
            };
            let id = id.unwrap_or_else(|| format!("row-{}", row.row));
            Scored { row: row.row, line: row.line, id, prepared, prediction: None, error }
        })
        .collect();
    let ready: Vec<usize> = (0..scored.len()).filter(|&it| scored[it].prepared.is_some()).collect();
    let batch: Vec<&Prepared> =
        ready.iter().filter_map(|&it| scored[it].prepared.as_ref()).collect();
    let predictions = pipeline.predict(&batch)?;
    for (idx, prediction) in ready.into_iter().zip(predictions) {
        scored[idx].prediction = Some(prediction);
    }
    Ok(scored)
}

fn prepare(
    pipeline: &Pipeline,
    row: &RawRow,
    columns: &Columns,
) -> (Option<String>, Result<Prepared, RowError>) {
    let fields = match row.fields() {
        Ok(fields) => fields,
        Err(it) => {
            let detail = format!("{}; {}", it.reason, it.fix);
            return (None, Err(RowError { column: None, code: it.code, detail }));
        }
    };
    let error = |column: &str, code, detail: String| RowError {
        column: Some(column.to_owned()),
        code,
        detail,
    };
    let id = match id(&fields, &columns.id) {
        Ok(id) => id,
        Err(detail) => return (None, Err(error(&columns.id, "invalid_id", detail))),
    };
    let outcome = (|| {
        if let Some(name) = fields.keys().find(|it| is_author_field(it)) {
            let detail = "triage is author-blind: remove the field".into();
            return Err(error(name, "author_field", detail));
        }
        let text = match fields.get(&columns.text) {
            Some(Value::String(text)) => text.as_str(),
            None | Some(Value::Null) => "",
            Some(_) => return Err(error(&columns.text, "wrong_type", "write a string".into())),
        };
        let text = CaseText::parse(text).map_err(|it| {
            let code = match it {
                crate::domain::case::TextError::Empty => "empty_text",
                crate::domain::case::TextError::TooLong { .. } => "long_text",
            };
            error(&columns.text, code, it.to_string())
        })?;
        pipeline.prepare(&text).map_err(|it| match it {
            PrepareError::NothingVisible => error(&columns.text, "empty_text", it.to_string()),
        })
    })();
    (id, outcome)
}

fn id(fields: &Map<String, Value>, column: &str) -> Result<Option<String>, String> {
    let text = match fields.get(column) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(it)) if it.is_empty() => return Ok(None),
        Some(Value::String(it)) => it.clone(),
        Some(Value::Number(it)) => it.to_string(),
        Some(_) => return Err("write a string or a number".into()),
    };
    match CaseId::parse(text) {
        Ok(id) => Ok(Some(id.as_str().to_owned())),
        Err(error) => Err(error.to_string()),
    }
}

impl Sinks<'_> {
    fn write(&mut self, it: &Scored, pipeline: &Pipeline) -> Result<(), ScoreError> {
        let item =
            it.prepared.as_ref().zip(it.prediction.as_ref()).map(|(prepared, prediction)| {
                reply(pipeline, &it.id, &prepared.report, prediction, false)
            });
        match (&item, &it.error) {
            (Some(item), _) if self.format == Format::Csv => {
                write_csv(self.output, &csv(it.row, item))
            }
            (Some(item), _) => {
                #[derive(serde::Serialize)]
                struct Row<'a> {
                    row: u64,
                    #[serde(flatten)]
                    item: &'a ClassifiedItem<'a>,
                }
                write_json(self.output, &Row { row: it.row, item })
            }
            (None, error) => {
                let (column, code, detail) = error.as_ref().map_or((None, "internal", ""), |it| {
                    (it.column.as_deref(), it.code, &it.detail)
                });
                let error = json!({"code": code, "detail": detail, "column": column});
                let mut row = json!({
                    "row": it.row, "id": it.id, "status": "error", "error": error,
                });
                if self.format == Format::Csv {
                    let mut fields = vec![String::new(); CSV_COLUMNS.len()];
                    fields[0] = it.row.to_string();
                    fields[1] = it.id.clone();
                    fields[2] = "error".into();
                    fields[12] = code.into();
                    fields[13] = detail.into();
                    write_csv(self.output, &fields)?;
                } else {
                    write_json(self.output, &row)?;
                }
                row["line"] = it.line.into();
                write_json(self.errors, &row)
            }
        }
    }
}

fn csv(row: u64, item: &ClassifiedItem<'_>) -> Vec<String> {
    let grounds: Vec<&str> = item.sensitivity.grounds.iter().map(|it| it.code).collect();
    vec![
        row.to_string(),
        item.id.into(),
        item.status.into(),
        item.incident_type.code.into(),
        item.incident_type.zh.into(),
        item.incident_type.probability.to_string(),
        item.prediction_set.join(" "),
        item.sensitivity.level.to_string(),
        item.sensitivity.score.to_string(),
        grounds.join(" "),
        item.decision.into(),
        item.review.reasons.join(" "),
        String::new(),
        String::new(),
    ]
}

fn write_csv(output: &mut dyn Write, fields: &[String]) -> Result<(), ScoreError> {
    let mut writer = csv::WriterBuilder::new().flexible(true).from_writer(Vec::new());
    let fail = |it: csv::Error| ScoreError::Write(it.into());
    writer.write_record(fields).map_err(fail)?;
    let bytes = writer.into_inner().map_err(|it| ScoreError::Write(it.into_error()))?;
    output.write_all(&bytes).map_err(ScoreError::Write)
}

fn write_json(output: &mut dyn Write, row: &impl serde::Serialize) -> Result<(), ScoreError> {
    serde_json::to_writer(&mut *output, row).map_err(|it| ScoreError::Write(it.into()))?;
    output.write_all(b"\n").map_err(ScoreError::Write)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(
        input: &[u8],
        from: Format,
        to: Format,
    ) -> (Result<Summary, ScoreError>, String, String) {
        let pipeline = Pipeline::for_tests();
        let (mut output, mut errors) = (Vec::new(), Vec::new());
        let mut sinks = Sinks { output: &mut output, format: to, errors: &mut errors };
        let summary = score(&pipeline, input, from, &Columns::default(), &mut sinks, |_| ());
        (summary, String::from_utf8(output).unwrap(), String::from_utf8(errors).unwrap())
    }

    #[test]
    fn every_row_comes_back_once_in_order() {
        let mut input = String::new();
        for idx in 0..3000 {
            match idx % 10 {
                3 => input += "{\n",
                5 => input += &format!("{{\"id\":\"{idx}\",\"text\":\" \"}}\n"),
                7 => input += &format!("{{\"id\":\"{idx}\",\"text\":\"停水\",\"昵称\":\"x\"}}\n"),
                _ => {
                    input +=
                        &format!("{{\"id\":{idx},\"text\":\"小区停水{idx}天\",\"source\":1}}\n")
                }
            }
        }
        let (summary, output, errors) = run(input.as_bytes(), Format::Jsonl, Format::Jsonl);
        assert_eq!(summary.unwrap(), Summary { rows: 3000, errors: 900 });
        let rows: Vec<Value> = output.lines().map(|it| serde_json::from_str(it).unwrap()).collect();
        assert_eq!((rows.len(), errors.lines().count()), (3000, 900));
        for (idx, row) in rows.iter().enumerate() {
            assert_eq!(row["row"], idx + 1);
            let code = match idx % 10 {
                3 => "invalid_json",
                5 => "empty_text",
                7 => "author_field",
                _ => {
                    assert_eq!(row["id"], idx.to_string());
                    assert_eq!(row["status"], "ok");
                    continue;
                }
            };
            assert_eq!(row["error"]["code"], code);
        }
    }

    #[test]
    fn csv_in_and_out() {
        let input = "id,text\na,\"停水,停电\"\nb,\n".as_bytes();
        let (summary, output, _) = run(input, Format::Csv, Format::Csv);
        assert_eq!(summary.unwrap(), Summary { rows: 2, errors: 1 });
        let lines: Vec<&str> = output.lines().collect();
        assert_eq!(lines[0], CSV_COLUMNS.join(","));
        assert!(lines[1].starts_with("1,a,ok,") && lines[2].starts_with("2,b,error,"), "{output}");
    }

    #[test]
    fn a_header_that_names_the_author_is_refused() {
        let (summary, output, _) = run(b"id,text,nickname\n1,a,b\n", Format::Csv, Format::Jsonl);
        assert!(matches!(summary, Err(ScoreError::Author(_))) && output.is_empty());
        let (summary, _, _) = run(b"id,body\n1,a\n", Format::Csv, Format::Jsonl);
        assert!(matches!(summary, Err(ScoreError::NoText(_))));
    }
}
