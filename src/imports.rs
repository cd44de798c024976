//! What labelling tools and spreadsheets export, as rows of named fields: CSV, TSV and JSONL in UTF-8 or GBK,
//! XLSX, and the exports of doccano, Label Studio, Comprehend and fastText.
//!
//! A row that cannot be read is a value and harms no other. Every field a row has is passed on, so that
//! whoever reads it can refuse what it must not see. Knows neither labels nor models; a file is read whole,
//! because cases that people labelled fit into memory.

use std::io::{self, Cursor, Read};
use std::path::Path;

use calamine::{Data, Reader};
use chardetng::{EncodingDetector, Iso2022JpDetection, Utf8Detection};
use encoding_rs::{Encoding, UTF_8};
use serde_json::{Map, Value};

use crate::rows::{self, Format, RowFault, Rows};

/// Largest file read, in bytes after decompression.
pub const MAX_FILE_BYTES: u64 = 1 << 30;
const FASTTEXT_PREFIX: &str = "__label__";
/// Bookkeeping of the labelling tools; says nothing about the text.
const TOOL_FIELDS: [&str; 12] = [
    "Comments",
    "comments",
    "annotator",
    "annotation_id",
    "created_at",
    "updated_at",
    "lead_time",
    "meta",
    "annotation_approver",
    "is_confirmed",
    "total_annotations",
    "file_upload",
];

/// How the cases of a file are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Source {
    /// One JSON object a line.
    Jsonl,
    /// Comma-separated with a header row.
    Csv,
    /// Tab-separated with a header row.
    Tsv,
    /// The first sheet of an Excel workbook, with a header row.
    Xlsx,
    /// doccano's JSONL or JSON: `label` is an array.
    Doccano,
    /// Label Studio's JSON or JSON-MIN: one array of tasks. doccano's JSON is read so too.
    LabelStudio,
    /// Amazon Comprehend: `CLASS,text`, no header.
    Comprehend,
    /// fastText: `__label__CLASS text`.
    Fasttext,
}

/// One row as it stands in the file.
#[derive(Debug, Clone, PartialEq)]
pub struct ImportedRow {
    /// Number of the row, from 1, the header not counted.
    pub row: u64,
    /// Line or spreadsheet row it begins on, from 1; for a JSON array the number of the task.
    pub line: u64,
    /// Its fields by name, or why there are none.
    pub fields: Result<Map<String, Value>, RowFault>,
}

/// The rows of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Imported {
    /// How the file is written.
    pub source: Source,
    /// Name of the encoding it was converted from; none when it was UTF-8.
    pub converted_from: Option<&'static str>,
    /// Names of the columns, where the file has a header.
    pub header: Option<Vec<String>>,
    /// The rows.
    pub rows: Vec<ImportedRow>,
}

/// Reads `path`. Without a `source` its name and its first row tell; `is_label` says whether a word is a
/// label, which tells Comprehend's files from other CSV.
///
/// # Errors
/// When the file as a whole cannot be read.
pub fn read(
    path: &Path,
    source: Option<Source>,
    is_label: impl Fn(&str) -> bool,
) -> io::Result<Imported> {
    let mut bytes = Vec::new();
    rows::open(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(invalid(format!(
            "the file has more than {MAX_FILE_BYTES} bytes; split it into several"
        )));
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let name = name.strip_suffix(".xz").unwrap_or(&name);
    parse(bytes, name, source, is_label)
}

/// As [`read`], of the bytes of a file called `name`.
///
/// # Errors
/// As there.
pub fn parse(
    bytes: Vec<u8>,
    name: &str,
    source: Option<Source>,
    is_label: impl Fn(&str) -> bool,
) -> io::Result<Imported> {
    let is_workbook = [".xlsx", ".xlsm", ".xls", ".ods"].iter().any(|it| name.ends_with(it));
    if source == Some(Source::Xlsx) || (source.is_none() && is_workbook) {
        return workbook(bytes);
    }
    let (bytes, converted_from) = to_utf8(bytes);
    let source = match source {
        Some(source) => source,
        None => guess(name, &bytes, is_label)?,
    };
    let (header, rows) = match source {
        Source::Csv => table(Rows::new(bytes.as_slice(), Format::Csv)?)?,
        Source::Tsv => table(Rows::of_tabs(bytes.as_slice())?)?,
        Source::Jsonl => table(Rows::new(bytes.as_slice(), Format::Jsonl)?)?,
        Source::Doccano if !is_list(&bytes) => {
            let (_, mut rows) = table(Rows::new(bytes.as_slice(), Format::Jsonl)?)?;
            rows.iter_mut().for_each(|it| it.fields = it.fields.clone().and_then(flat));
            (None, rows)
        }
        Source::Comprehend => comprehend(&bytes)?,
        Source::Fasttext => (None, fasttext(&bytes)),
        Source::Doccano | Source::LabelStudio => (None, json_list(&bytes)?),
        Source::Xlsx => return workbook(bytes),
    };
    Ok(Imported { source, converted_from, header, rows })
}

fn invalid(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}

fn fault(code: &'static str, reason: impl Into<String>, fix: &'static str) -> RowFault {
    RowFault { code, reason: reason.into(), fix }
}

/// How a file without a name for it is written.
fn guess(name: &str, bytes: &[u8], is_label: impl Fn(&str) -> bool) -> io::Result<Source> {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(1 << 16)]);
    let first = text.trim_start_matches('\u{feff}').lines().find(|it| !it.trim().is_empty());
    let first = first.unwrap_or_default();
    let extension = name.rsplit_once('.').map_or("", |it| it.1);
    match extension {
        _ if first.starts_with(FASTTEXT_PREFIX) => Ok(Source::Fasttext),
        "json" => Ok(Source::LabelStudio),
        "jsonl" | "ndjson" => {
            let fields = serde_json::from_str::<Map<String, Value>>(first).unwrap_or_default();
            let has_list =
                ["label", "labels"].iter().any(|it| fields.get(*it).is_some_and(Value::is_array));
            Ok(if has_list { Source::Doccano } else { Source::Jsonl })
        }
        "csv" => {
            let is_headless = first
                .split_once(',')
                .is_some_and(|(class, _)| is_label(class.trim().trim_matches('"')));
            Ok(if is_headless { Source::Comprehend } else { Source::Csv })
        }
        "tsv" => Ok(Source::Tsv),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "unknown_format: the name must end in .jsonl, .csv, .tsv, .xlsx or .json (or .xz after one of these), \
             or the lines begin with __label__; or name the format with --format",
        )),
    }
}

/// The bytes as UTF-8, and what they were converted from. A file that is mostly UTF-8 is left alone: its
/// bad rows are named one by one.
fn to_utf8(bytes: Vec<u8>) -> (Vec<u8>, Option<&'static str>) {
    if let Some((encoding, length)) = Encoding::for_bom(&bytes)
        && encoding != UTF_8
    {
        let (text, _) = encoding.decode_without_bom_handling(&bytes[length..]);
        return (text.into_owned().into_bytes(), Some(encoding.name()));
    }
    if std::str::from_utf8(&bytes).is_ok() {
        return (bytes, None);
    }
    let lines = || bytes.split(|it| *it == b'\n').filter(|it| !it.is_ascii());
    let n_valid = lines().filter(|it| std::str::from_utf8(it).is_ok()).count();
    if 2 * n_valid > lines().count() {
        return (bytes, None);
    }
    let mut detector = EncodingDetector::new(Iso2022JpDetection::Deny);
    detector.feed(&bytes, true);
    // The reader is Chinese: of two likely encodings the Chinese one.
    let encoding = detector.guess(Some(b"cn"), Utf8Detection::Deny);
    match encoding.decode_without_bom_handling_and_without_replacement(&bytes) {
        Some(text) => (text.into_owned().into_bytes(), Some(encoding.name())),
        None => (bytes, None),
    }
}

type Table = (Option<Vec<String>>, Vec<ImportedRow>);

fn table(rows: Rows<&[u8]>) -> io::Result<Table> {
    let header = rows.header().map(<[String]>::to_vec);
    let rows = rows
        .map(|row| row.map(|it| ImportedRow { row: it.row, line: it.line, fields: it.fields() }))
        .collect::<io::Result<_>>()?;
    Ok((header, rows))
}

/// Comprehend's file is a CSV whose header is left out.
fn comprehend(bytes: &[u8]) -> io::Result<Table> {
    let bytes = [b"label,text\n", without_bom(bytes)].concat();
    let (_, mut rows) = table(Rows::new(bytes.as_slice(), Format::Csv)?)?;
    for it in &mut rows {
        it.line -= 1;
        let has_several = |fields: &Map<String, Value>| {
            fields.get("label").and_then(Value::as_str).is_some_and(|it| it.contains('|'))
        };
        if it.fields.as_ref().is_ok_and(has_several) {
            it.fields = Err(several_labels());
        }
    }
    Ok((None, rows))
}

fn several_labels() -> RowFault {
    fault(
        "several_labels",
        "the row has several labels; a case has one",
        "keep the one that decides the handling; with JSONL or CSV give a second one as `alt`",
    )
}

fn fasttext(bytes: &[u8]) -> Vec<ImportedRow> {
    let lines = bytes.split(|it| *it == b'\n').enumerate();
    let lines = lines.filter(|it| !it.1.trim_ascii().is_empty());
    lines
        .enumerate()
        .map(|(row_idx, (line_idx, line))| ImportedRow {
            row: row_idx as u64 + 1,
            line: line_idx as u64 + 1,
            fields: fasttext_fields(line),
        })
        .collect()
}

fn fasttext_fields(line: &[u8]) -> Result<Map<String, Value>, RowFault> {
    let text = std::str::from_utf8(line).map_err(|_| {
        fault("invalid_utf8", "the row is not UTF-8", "save the file as UTF-8 (it may be GBK)")
    })?;
    let mut rest = text.trim_start_matches('\u{feff}').trim();
    let mut labels = Vec::new();
    while let Some(after) = rest.strip_prefix(FASTTEXT_PREFIX) {
        let (label, text) = after.split_once(char::is_whitespace).unwrap_or((after, ""));
        labels.push(label);
        rest = text.trim_start();
    }
    match labels.as_slice() {
        [label] => Ok(Map::from_iter([
            ("label".to_owned(), Value::from(*label)),
            ("text".to_owned(), Value::from(rest)),
        ])),
        [] => Err(fault(
            "missing_label",
            "the line does not begin with __label__",
            "begin each line with __label__ and the class",
        )),
        _ => Err(several_labels()),
    }
}

/// An item on one level. doccano puts the class in an array, JSON-MIN under the name of its control.
fn flat(mut fields: Map<String, Value>) -> Result<Map<String, Value>, RowFault> {
    for name in TOOL_FIELDS {
        fields.remove(name);
    }
    if let Some(text) = fields.remove("data") {
        fields.entry("text").or_insert(text);
    }
    let names = ["label", "labels", "cats", "choice", "choices", "sentiment", "class"];
    match names.iter().find_map(|it| fields.remove(*it)) {
        Some(Value::Array(labels)) => match labels.as_slice() {
            [] => {}
            [Value::String(label)] => {
                fields.insert("label".to_owned(), Value::from(label.as_str()));
            }
            [Value::String(_), ..] => return Err(several_labels()),
            _ => {
                return Err(fault(
                    "not_a_class",
                    "the labels are spans, not classes",
                    "export a text-classification project",
                ));
            }
        },
        Some(label) => {
            fields.insert("label".to_owned(), label);
        }
        None => {}
    }
    Ok(fields)
}

fn is_list(bytes: &[u8]) -> bool {
    without_bom(bytes).trim_ascii_start().starts_with(b"[")
}

fn without_bom(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes)
}

fn json_list(bytes: &[u8]) -> io::Result<Vec<ImportedRow>> {
    // The error's own words may quote the file: only its place is told.
    let tasks: Vec<Value> = serde_json::from_slice(without_bom(bytes)).map_err(|it| {
        invalid(format!(
            "not a JSON array of tasks at line {} column {}; export from Label Studio as JSON or JSON-MIN, \
             from doccano as JSON or JSONL",
            it.line(),
            it.column()
        ))
    })?;
    Ok(tasks
        .into_iter()
        .zip(1..)
        .map(|(task, row)| ImportedRow { row, line: row, fields: task_fields(task) })
        .collect())
}

fn task_fields(task: Value) -> Result<Map<String, Value>, RowFault> {
    let Value::Object(task) = task else {
        return Err(fault("not_an_object", "the task is no JSON object", "export again as JSON"));
    };
    let Some(Value::Object(fields)) = task.get("data") else { return flat(task) };
    let mut fields = fields.clone();
    if let Some(id) = task.get("id") {
        fields.entry("id").or_insert_with(|| id.clone());
    }
    let annotations = task.get("annotations").or_else(|| task.get("completions"));
    let mut classes: Vec<&str> = Vec::new();
    for it in annotations.and_then(Value::as_array).into_iter().flatten() {
        if it["was_cancelled"] == true {
            continue;
        }
        let choices: Vec<&str> = it["result"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|it| it["value"]["choices"].as_array())
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        match choices.as_slice() {
            [] => {}
            [class] if !classes.contains(class) => classes.push(class),
            [_] => {}
            _ => return Err(several_labels()),
        }
    }
    match classes.as_slice() {
        [] => {}
        [class] => {
            fields.insert("label".to_owned(), Value::from(*class));
        }
        _ => {
            return Err(fault(
                "annotators_disagree",
                format!("{} annotators chose different classes", classes.len()),
                "decide for one in Label Studio and export again",
            ));
        }
    }
    Ok(fields)
}

fn workbook(bytes: Vec<u8>) -> io::Result<Imported> {
    let broken = |_| {
        invalid("not an Excel workbook, or a damaged or encrypted one; save it as .xlsx or .csv")
    };
    let mut book = calamine::open_workbook_auto_from_rs(Cursor::new(bytes)).map_err(broken)?;
    let sheet = book
        .worksheet_range_at(0)
        .ok_or_else(|| invalid("the workbook has no sheet"))?
        .map_err(broken)?;
    let first_line = sheet.start().map_or(1, |it| u64::from(it.0) + 1);
    let mut lines = sheet
        .rows()
        .zip(first_line..)
        .filter(|(cells, _)| cells.iter().any(|it| !matches!(it, Data::Empty)));
    let (header, _) = lines
        .next()
        .ok_or_else(|| invalid("the first sheet is empty; it starts with a header row"))?;
    let header: Vec<String> = header.iter().map(|it| cell(it).trim().to_owned()).collect();
    for (idx, name) in header.iter().enumerate() {
        if !name.is_empty() && header[..idx].contains(name) {
            return Err(invalid(format!("column {} has the name of an earlier one", idx + 1)));
        }
    }
    let rows = lines
        .zip(1..)
        .map(|((cells, line), row)| {
            let bad = cells.iter().position(|it| matches!(it, Data::Error(_)));
            let fields = match bad {
                Some(idx) => Err(fault(
                    "cell_error",
                    format!("column {} holds a formula's error", idx + 1),
                    "correct the formula, or paste its value",
                )),
                None => Ok(header
                    .iter()
                    .zip(cells)
                    .filter(|(name, it)| !name.is_empty() && !matches!(it, Data::Empty))
                    .map(|(name, it)| (name.clone(), Value::from(cell(it))))
                    .collect()),
            };
            ImportedRow { row, line, fields }
        })
        .collect();
    Ok(Imported { source: Source::Xlsx, converted_from: None, header: Some(header), rows })
}

fn cell(it: &Data) -> String {
    match it {
        // Excel has no whole numbers: 3 comes as 3.0.
        Data::Float(value) if value.fract() == 0.0 && value.abs() < 1e15 => format!("{value:.0}"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn import(name: &str, bytes: &[u8]) -> Imported {
        parse(bytes.to_vec(), name, None, |it| ["problem", "none"].contains(&it)).unwrap()
    }

    /// Label and text of each row, or the code of its fault.
    fn seen(imported: &Imported) -> Vec<String> {
        let field = |fields: &Map<String, Value>, name: &str| {
            fields.get(name).and_then(Value::as_str).unwrap_or("-").to_owned()
        };
        let row = |it: &ImportedRow| match &it.fields {
            Ok(fields) => {
                format!("{} {} {}", it.line, field(fields, "label"), field(fields, "text"))
            }
            Err(fault) => format!("{} {}", it.line, fault.code),
        };
        imported.rows.iter().map(row).collect()
    }

    #[test]
    fn each_export_gives_labels_and_texts() {
        let cases: [(&str, &str, Source, &[&str]); 9] = [
            ("a.csv", "label,text\nproblem,停水\n", Source::Csv, &["2 problem 停水"]),
            (
                "a.tsv",
                "label\ttext\nproblem\t\"停水,\n三天\"\nnone\tx\ty\nnone\t谢,谢\n",
                Source::Tsv,
                &["2 problem 停水,\n三天", "4 field_count", "5 none 谢,谢"],
            ),
            (
                "a.csv",
                "problem,\"停水,三天\"\nnone,谢谢\nproblem|none,两个\n",
                Source::Comprehend,
                &["1 problem 停水,三天", "2 none 谢谢", "3 several_labels"],
            ),
            (
                "a.txt",
                "__label__problem 停水 了\n\n谢谢\n__label__a __label__b x\n",
                Source::Fasttext,
                &["1 problem 停水 了", "3 missing_label", "4 several_labels"],
            ),
            (
                "a.jsonl",
                "{\"id\":1,\"text\":\"停水\",\"label\":[\"problem\"],\"Comments\":[]}\n\
                 {\"id\":2,\"data\":\"谢谢\",\"label\":[\"none\"]}\n\
                 {\"id\":3,\"text\":\"x\",\"label\":[[0,1,\"LOC\"]]}\n{\"id\":4,\"text\":\"y\",\"label\":[]}\n",
                Source::Doccano,
                &["1 problem 停水", "2 none 谢谢", "3 not_a_class", "4 - y"],
            ),
            (
                "a.json",
                r#"[{"id":1,"data":{"text":"停水"},"annotations":[
                    {"was_cancelled":true,"result":[{"value":{"choices":["none"]}}]},
                    {"result":[{"value":{"choices":["problem"]}}]}]},
                   {"id":2,"data":{"text":"x"},"annotations":[
                    {"result":[{"value":{"choices":["none"]}}]},{"result":[{"value":{"choices":["problem"]}}]}]}]"#,
                Source::LabelStudio,
                &["1 problem 停水", "2 annotators_disagree"],
            ),
            (
                "a.json",
                r#"[{"id":1,"text":"停水","sentiment":"problem","annotator":3,"lead_time":1.5}]"#,
                Source::LabelStudio,
                &["1 problem 停水"],
            ),
            (
                "a.jsonl",
                "{\"text\":\"停水\",\"label\":\"problem\"}\n",
                Source::Jsonl,
                &["1 problem 停水"],
            ),
            ("a.csv", "\u{feff}text,label\n停水,problem\n", Source::Csv, &["2 problem 停水"]),
        ];
        for (name, text, source, expected) in cases {
            let imported = import(name, text.as_bytes());
            assert_eq!(
                (imported.source, seen(&imported).as_slice()),
                (source, &expected.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>()[..]),
                "{text}"
            );
        }
    }

    #[test]
    fn the_list_of_doccano_is_read_named_or_not() {
        let text = "\u{feff}[{\"id\":1,\"text\":\"停水\",\"label\":[\"problem\"],\"Comments\":[]},\n\
                    {\"id\":2,\"data\":\"谢谢\",\"label\":[\"none\"]},\n\
                    {\"id\":3,\"text\":\"x\",\"label\":[\"none\",\"problem\"]},\n\
                    {\"id\":4,\"text\":\"y\",\"label\":[]}]";
        let expected = ["1 problem 停水", "2 none 谢谢", "3 several_labels", "4 - y"];
        assert_eq!(seen(&import("a.json", text.as_bytes())), expected);
        for name in ["a.json", "a.jsonl"] {
            let bytes = text.as_bytes().to_vec();
            let imported = parse(bytes, name, Some(Source::Doccano), |_| false).unwrap();
            assert_eq!(seen(&imported), expected);
        }
    }

    #[test]
    fn author_fields_of_an_export_are_passed_on_to_be_refused() {
        let json = r#"[{"id":1,"data":{"text":"x","nickname":"y"},"annotations":[]}]"#;
        let imported = import("a.json", json.as_bytes());
        assert!(imported.rows[0].fields.as_ref().unwrap().contains_key("nickname"));
    }

    #[test]
    fn gbk_and_utf16_are_converted_and_mostly_utf8_is_left_alone() {
        let text = "text,label\n小区停水三天了，物业没人管，打电话也没有人接,problem\n谢谢社区的工作人员,none\n";
        let (gbk, _, _) = encoding_rs::GB18030.encode(text);
        let imported = import("a.csv", &gbk);
        assert!(imported.converted_from.is_some_and(|it| it.starts_with("GB")));
        assert_eq!(
            imported,
            Imported {
                converted_from: imported.converted_from,
                ..import("a.csv", text.as_bytes())
            }
        );
        let utf16: Vec<u8> = "\u{feff}"
            .encode_utf16()
            .chain(text.encode_utf16())
            .flat_map(u16::to_le_bytes)
            .collect();
        assert_eq!(import("a.csv", &utf16).converted_from, Some("UTF-16LE"));
        // One bad row among good ones is that row's fault.
        let mixed =
            [text.as_bytes(), "谢谢大家,none\n".as_bytes(), b"\xd0\xbb\xff,none\n"].concat();
        let imported = import("a.csv", &mixed);
        assert_eq!(imported.converted_from, None);
        assert_eq!(seen(&imported)[3], "5 invalid_utf8");
    }

    #[test]
    fn a_workbook_is_read_from_its_header_on() {
        let bytes = std::fs::read("tests/vectors/cases.xlsx").unwrap();
        let imported = import("a.xlsx", &bytes);
        assert_eq!(imported.header.as_deref().unwrap()[..3], ["id", "text", "label"]);
        assert_eq!(seen(&imported), ["2 problem 小区停水三天了", "4 none 谢谢大家"]);
        let level = imported.rows[0].fields.as_ref().unwrap()["level"].as_str().unwrap();
        assert_eq!(level, "1");
        assert!(parse(b"PK no".to_vec(), "a.xlsx", None, |_| false).is_err());
    }

    #[test]
    fn what_cannot_be_told_is_refused() {
        let error = parse(b"hello".to_vec(), "a.doc", None, |_| false).unwrap_err().to_string();
        assert!(error.starts_with("unknown_format") && error.contains("--format"), "{error}");
    }
}
