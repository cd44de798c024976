//! Files of labelled cases: every row becomes a [`LabelledCase`] or a [`Problem`] that names row,
//! column, reason and fix. Knows no model.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::domain::author::is_author_field;
use crate::domain::case::{CaseId, CaseText, LabelledCase};
use crate::domain::day::Day;
use crate::domain::taxonomy::{IncidentType, Taxonomy};
use crate::imports::{self, Imported, Source};

/// Columns with a meaning, and after them columns that are allowed and not read.
const COLUMNS: [&str; 18] = [
    "id",
    "text",
    "label",
    "alt",
    "level",
    "grounds",
    "source",
    "sure",
    "annotators",
    "stratum",
    "register",
    "hard",
    "note",
    "date",
    "split",
    "lang",
    "selected",
    "suggested",
];
/// Fewest cases of a label that training can learn anything from.
pub const MIN_CASES_PER_LABEL: usize = 10;
/// Longest label of a taxonomy we do not know.
const MAX_LABEL_CHARS: usize = 64;

/// How grave a [`Problem`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The row cannot be used.
    Error,
    /// The row can be used; look at it.
    Warning,
}

/// What is wrong with a row. Never holds the row's text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Number of the row, from 1, the header not counted; 0 for the file as a whole.
    pub row: u64,
    /// Line the row begins on, from 1; 0 for the file as a whole.
    pub line: u64,
    /// The column, when one is to blame.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<String>,
    /// How grave.
    pub severity: Severity,
    /// Stable code.
    pub code: &'static str,
    /// What is wrong.
    pub reason: String,
    /// What to do about it.
    pub fix: String,
}

/// The cases of one file.
#[derive(Debug, Clone, Default)]
pub struct Cases {
    /// Rows that can be used, in order.
    pub cases: Vec<LabelledCase>,
    /// Everything that is wrong, in order of rows.
    pub problems: Vec<Problem>,
    /// Row and line of each usable case, in order.
    pub places: Vec<(u64, u64)>,
    /// Rows of the file, usable or not.
    pub n_rows: u64,
    /// Errors that are counted and not told again: a refused column in a further row.
    pub n_untold: usize,
    /// How the file is written; none before anything was read.
    pub source: Option<Source>,
}

/// How to read a file of cases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// How the file is written; none: its name and its first row tell.
    pub source: Option<Source>,
    /// Column that holds the text.
    pub text_column: String,
    /// Column that holds the label.
    pub label_column: String,
    /// Take any label, not only the taxonomy's.
    pub any_label: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            source: None,
            text_column: "text".into(),
            label_column: "label".into(),
            any_label: false,
        }
    }
}

impl Cases {
    /// Number of problems that make a row useless, told or not.
    pub fn n_errors(&self) -> usize {
        let told = self.problems.iter().filter(|it| it.severity == Severity::Error);
        told.count() + self.n_untold
    }
}

/// Reads the labelled cases of `path`, written in any form [`imports`] knows; labels, levels and grounds
/// are those of `taxonomy`.
///
/// # Errors
/// When the file as a whole cannot be read; a bad row is a [`Problem`] instead.
pub fn read(path: &Path, taxonomy: &Taxonomy) -> io::Result<Cases> {
    read_with(path, taxonomy, &Options::default())
}

/// As [`read`], with `options`.
///
/// # Errors
/// As there.
pub fn read_with(path: &Path, taxonomy: &Taxonomy, options: &Options) -> io::Result<Cases> {
    let is_label = |it: &str| find_type(taxonomy, it).is_some();
    Ok(collect(imports::read(path, options.source, is_label)?, taxonomy, options))
}

fn find_type<'a>(taxonomy: &'a Taxonomy, name: &str) -> Option<&'a IncidentType> {
    // An analyst may write 问题类 as well as problem.
    taxonomy.types.iter().find(|it| it.code == name.trim() || it.zh == name.trim())
}

fn collect(imported: Imported, taxonomy: &Taxonomy, options: &Options) -> Cases {
    let out = Cases { source: Some(imported.source), ..Cases::default() };
    let told = HashSet::new();
    let mut reader = Reader { taxonomy, options, out, row: 0, line: 0, told };
    let mut by_text: HashMap<String, (u64, String)> = HashMap::new();
    let mut by_id: HashMap<String, u64> = HashMap::new();
    if let Some(encoding) = imported.converted_from {
        reader.warn(
            None,
            "converted_encoding",
            format!("the file is {encoding}; it was converted to UTF-8 while reading"),
            "look at some texts, then save the file as UTF-8",
        );
    }
    if let Some(header) = &imported.header
        && !reader.header(header)
    {
        // No row can be read, and what stands in the first one may be a text.
        reader.out.n_rows = imported.rows.len() as u64;
        return reader.out;
    }
    for row in imported.rows {
        (reader.row, reader.line) = (row.row, row.line);
        reader.out.n_rows = row.row;
        let case = match row.fields {
            Ok(fields) => reader.case(fields),
            Err(fault) => {
                // A row whose classes cannot be told is a matter of its label.
                const OF_LABEL: [&str; 4] =
                    ["several_labels", "missing_label", "not_a_class", "annotators_disagree"];
                let column = OF_LABEL.contains(&fault.code).then_some("label");
                reader.error(column, fault.code, fault.reason, fault.fix);
                None
            }
        };
        let Some(case) = case else { continue };
        if let Some(first) = by_id.insert(case.id.as_str().to_owned(), row.line) {
            reader.error(
                Some("id"),
                "duplicate_id",
                format!("line {first} has the same id"),
                "give each case its own id",
            );
            continue;
        }
        match by_text.get(case.text.as_str()) {
            Some((first, label)) if *label == case.label => reader.warn(
                Some("text"),
                "duplicate_text",
                format!("line {first} has the same text and label"),
                "keep one of them",
            ),
            Some((first, label)) => reader.warn(
                Some("label"),
                "conflicting_labels",
                format!("line {first} has the same text and the label `{}`", shorten(label)),
                "decide for one label, or give the other as `alt`",
            ),
            None => {
                by_text.insert(case.text.as_str().to_owned(), (row.line, case.label.clone()));
            }
        }
        reader.out.cases.push(case);
        reader.out.places.push((row.row, row.line));
    }
    reader.counts();
    reader.out
}

struct Reader<'a> {
    taxonomy: &'a Taxonomy,
    options: &'a Options,
    out: Cases,
    row: u64,
    line: u64,
    /// Columns that were called unknown or refused: said once, not once a row.
    told: HashSet<String>,
}

impl Reader<'_> {
    /// Names the columns that are missing; false when both are.
    fn header(&mut self, header: &[String]) -> bool {
        let columns = [self.options.text_column.clone(), self.options.label_column.clone()];
        let mut missing = columns.to_vec();
        missing.retain(|column| !header.contains(column));
        let is_headless = missing.len() == columns.len();
        let fix = match is_headless && self.out.source == Some(Source::Csv) {
            true => {
                "name the columns so in the first row, or say --text-column and --label-column; if the first \
                 row is a case already (label, then text), say --format comprehend"
            }
            false => "name the column so in the first row, or say --text-column and --label-column",
        };
        for column in &missing {
            let reason = format!("the header has no column `{column}`");
            self.error(Some(column), "missing_column", reason, fix);
        }
        !is_headless
    }

    /// The fields under the names they have here.
    fn named(&self, mut fields: Map<String, Value>) -> Map<String, Value> {
        let given = [("text", &self.options.text_column), ("label", &self.options.label_column)];
        // All are taken out before any is put in: the column of texts may be called `label`.
        let values = given.map(|(name, column)| (name, fields.remove(column)));
        for (name, value) in values {
            fields.remove(name);
            fields.extend(value.map(|it| (name.to_owned(), it)));
        }
        fields
    }

    fn case(&mut self, fields: Map<String, Value>) -> Option<LabelledCase> {
        let n_errors = self.n_row_errors();
        // Under the names of the file: no option makes an author's column one of texts or labels.
        let is_refused = self.has_author(&fields);
        let fields = self.named(fields);
        self.name_unknown(&fields);
        let text = match CaseText::parse(self.string(&fields, "text").unwrap_or_default()) {
            Ok(text) => Some(text),
            Err(_) if is_of_wrong_type(&fields, "text") => None,
            Err(error) => {
                self.error(
                    Some("text"),
                    "invalid_text",
                    error.to_string(),
                    "correct the text, or remove the row",
                );
                None
            }
        };
        let id = self.string(&fields, "id").unwrap_or_else(|| format!("row-{}", self.row));
        let id = CaseId::parse(id)
            .map_err(|it| {
                self.error(
                    Some("id"),
                    "invalid_id",
                    it.to_string(),
                    "shorten it, or leave it empty: the row's number then names it",
                );
            })
            .ok();
        let label = self.code(&fields, "label", true);
        let alt = self.code(&fields, "alt", false);
        let level = self.level(&fields);
        let grounds = self.grounds(&fields);
        if is_refused || self.n_row_errors() > n_errors {
            return None;
        }
        if text.as_ref().is_some_and(|it| is_broken(it.as_str())) {
            self.warn(
                Some("text"),
                "broken_characters",
                "the text holds the marks of a wrong conversion (\u{fffd} or 锟斤拷)".into(),
                "export the row again as UTF-8, or leave it out",
            );
        }
        if level.is_some_and(|it| it >= 2) && grounds.as_ref().is_some_and(Vec::is_empty) {
            self.warn(
                Some("grounds"),
                "level_without_grounds",
                "level 2 or 3 needs at least one ground".into(),
                "name a ground, or lower the level",
            );
        }
        let source = self.string(&fields, "source");
        let register = self.string(&fields, "register");
        let day = self.day(&fields);
        // What `triage select` wrote; only its random share is a fair sample.
        let is_handpicked =
            self.string(&fields, "selected").is_some_and(|it| it.trim() != "random");
        Some(LabelledCase {
            id: id?,
            text: text?,
            label: label?,
            alt,
            level,
            grounds,
            source,
            register,
            day,
            is_handpicked,
        })
    }

    /// True when a field tells who wrote the text; every row that has one is useless.
    fn has_author(&mut self, fields: &Map<String, Value>) -> bool {
        let mut is_refused = false;
        for name in fields.keys().filter(|it| is_author_field(it)) {
            is_refused = true;
            if !self.told.insert(name.clone()) {
                self.out.n_untold += 1;
                continue;
            }
            self.error(
                Some(name),
                "author_field",
                format!(
                    "`{name}` tells who wrote the text; triage is author-blind and takes no row that has it"
                ),
                "remove the column",
            );
        }
        is_refused
    }

    fn name_unknown(&mut self, fields: &Map<String, Value>) {
        let is_unknown = |it: &&String| !COLUMNS.contains(&it.as_str()) && !is_author_field(it);
        for name in fields.keys().filter(is_unknown) {
            if self.told.insert(name.clone()) {
                self.warn(
                    Some(name),
                    "unknown_column",
                    format!(
                        "`{name}` has no meaning here and is not read, in this row or any other"
                    ),
                    "remove the column, or give it its right name",
                );
            }
        }
    }

    /// Errors so far of the present row; they are the last ones.
    fn n_row_errors(&self) -> usize {
        let of_row = self.out.problems.iter().rev().take_while(|it| it.row == self.row);
        of_row.filter(|it| it.severity == Severity::Error).count()
    }

    /// The field as a string; blank counts as absent, a number as its digits.
    fn string(&mut self, fields: &Map<String, Value>, name: &str) -> Option<String> {
        match fields.get(name)? {
            Value::Null => None,
            Value::String(it) if it.trim().is_empty() => None,
            Value::String(it) => Some(it.clone()),
            Value::Number(it) => Some(it.to_string()),
            _ => {
                self.error(
                    Some(name),
                    "wrong_type",
                    format!("`{name}` is no string"),
                    "write a string",
                );
                None
            }
        }
    }

    fn code(&mut self, fields: &Map<String, Value>, name: &str, is_needed: bool) -> Option<String> {
        let Some(value) = self.string(fields, name) else {
            if is_needed && !is_of_wrong_type(fields, name) {
                let wanted = match self.options.any_label {
                    true => "a label".to_owned(),
                    false => self.type_codes(),
                };
                let fix = format!(
                    "write {wanted}, or name the column that holds the labels with --label-column"
                );
                self.error(Some(name), "missing_label", "no label".into(), &fix);
            }
            return None;
        };
        if self.options.any_label {
            return self.any_label(name, value.trim());
        }
        let found = find_type(self.taxonomy, &value);
        if found.is_none() {
            let codes = self.type_codes();
            self.error(
                Some(name),
                "unknown_label",
                format!("`{}` is no type", shorten(&value)),
                &format!("write {codes}"),
            );
        }
        found.map(|it| it.code.clone())
    }

    /// A label of a taxonomy we do not know: any short word.
    fn any_label(&mut self, name: &str, value: &str) -> Option<String> {
        let n_chars = value.chars().count();
        if n_chars > MAX_LABEL_CHARS || value.chars().any(char::is_control) {
            self.error(
                Some(name),
                "unlikely_label",
                format!("`{}` has {n_chars} characters; a label has at most {MAX_LABEL_CHARS} and no line breaks", shorten(value)),
                "name the column of the labels with --label-column",
            );
            return None;
        }
        Some(value.to_owned())
    }

    fn type_codes(&self) -> String {
        let codes: Vec<&str> = self.taxonomy.type_codes().codes().collect();
        format!("one of {}", codes.join(", "))
    }

    fn level(&mut self, fields: &Map<String, Value>) -> Option<u8> {
        let value = self.string(fields, "level")?;
        let top = self.taxonomy.levels.len() - 1;
        let level = value.trim().parse().ok().filter(|it| usize::from(*it) <= top);
        if level.is_none() {
            self.error(
                Some("level"),
                "invalid_level",
                format!("`{}` is no level", shorten(&value)),
                &format!("write a whole number from 0 to {top}, or leave it empty"),
            );
        }
        level
    }

    /// A day that cannot be read costs the split by time, not the row.
    fn day(&mut self, fields: &Map<String, Value>) -> Option<Day> {
        let value = self.string(fields, "date")?;
        let day = Day::parse(&value);
        if day.is_none() {
            self.warn(
                Some("date"),
                "invalid_date",
                format!("`{}` is no date", shorten(&value)),
                "write it as 2026-08-01; without a date in every row no split by time is possible",
            );
        }
        day
    }

    /// An array, or a string with codes between spaces, commas or semicolons.
    fn grounds(&mut self, fields: &Map<String, Value>) -> Option<Vec<String>> {
        let codes: Vec<String> = match fields.get("grounds")? {
            Value::Null => return None,
            Value::Array(items) => {
                items.iter().map(|it| it.as_str().unwrap_or_default().to_owned()).collect()
            }
            Value::String(text) => text
                .split([' ', ',', ';', '|', '，', '；', '、'])
                .filter(|it| !it.is_empty())
                .map(str::to_owned)
                .collect(),
            _ => vec![String::new()],
        };
        let known = self.taxonomy.ground_codes();
        if let Some(code) = codes.iter().find(|it| known.index_of(it).is_none()) {
            let reason = format!("`{}` is no ground", shorten(code));
            let fix = format!("use {}", known.codes().collect::<Vec<_>>().join(", "));
            self.error(Some("grounds"), "unknown_ground", reason, &fix);
            return None;
        }
        Some(codes)
    }

    fn counts(&mut self) {
        (self.row, self.line) = (0, 0);
        let codes: Vec<String> = match self.options.any_label {
            true => labels_of(&self.out.cases),
            false => self.taxonomy.type_codes().codes().map(str::to_owned).collect(),
        };
        for code in codes {
            let n = self.out.cases.iter().filter(|it| it.label == code).count();
            if n < MIN_CASES_PER_LABEL {
                self.warn(
                    Some("label"),
                    "few_cases",
                    format!("`{code}` has {n} cases; it takes {MIN_CASES_PER_LABEL} to learn it"),
                    "label more of them",
                );
            }
        }
    }

    fn error(&mut self, column: Option<&str>, code: &'static str, reason: String, fix: &str) {
        self.push(Severity::Error, column, code, reason, fix);
    }

    fn warn(&mut self, column: Option<&str>, code: &'static str, reason: String, fix: &str) {
        self.push(Severity::Warning, column, code, reason, fix);
    }

    fn push(
        &mut self,
        severity: Severity,
        column: Option<&str>,
        code: &'static str,
        reason: String,
        fix: &str,
    ) {
        // Under the name the column has in the file.
        let column = column.map(|it| match it {
            "text" => self.options.text_column.clone(),
            "label" => self.options.label_column.clone(),
            it => it.to_owned(),
        });
        self.out.problems.push(Problem {
            row: self.row,
            line: self.line,
            column,
            severity,
            code,
            reason,
            fix: fix.to_owned(),
        });
    }
}

/// The labels that occur, in order of the alphabet.
pub fn labels_of(cases: &[LabelledCase]) -> Vec<String> {
    let labels: BTreeSet<&str> = cases.iter().map(|it| it.label.as_str()).collect();
    labels.into_iter().map(str::to_owned).collect()
}

/// True when there is a value and it is neither a string nor a number.
fn is_of_wrong_type(fields: &Map<String, Value>, name: &str) -> bool {
    matches!(fields.get(name), Some(Value::Bool(_) | Value::Array(_) | Value::Object(_)))
}

fn is_broken(text: &str) -> bool {
    text.contains('\u{fffd}') || text.contains("锟斤拷")
}

/// A label cell that holds a whole text must not be repeated in a message.
fn shorten(value: &str) -> String {
    const MOST: usize = 24;
    let mut short: String = value.chars().take(MOST).collect();
    if value.chars().nth(MOST).is_some() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_as(source: Source, text: &str, options: &Options) -> Cases {
        let imported =
            imports::parse(text.as_bytes().to_vec(), "", Some(source), |_| false).unwrap();
        collect(imported, &Taxonomy::embedded(), options)
    }

    fn codes(source: Source, text: &str) -> (Vec<String>, Vec<(u64, &'static str)>) {
        let cases = read_as(source, text, &Options::default());
        let labels = cases.cases.iter().map(|it| it.label.clone()).collect();
        let problems =
            cases.problems.iter().filter(|it| it.row > 0).map(|it| (it.row, it.code)).collect();
        (labels, problems)
    }

    #[test]
    fn every_bad_row_is_named_and_harms_no_other() {
        let rows = [
            r#"{"id":"a","text":"停水三天","label":"problem","level":1,"grounds":[]}"#,
            r#"{"id":"b","text":"x","label":"problme"}"#,
            r#"{"id":"c","text":" ","label":"none"}"#,
            r#"{"id":"a","text":"y","label":"none"}"#,
            r#"{"id":"e","text":"y","label":"none","nickname":"z"}"#,
            r#"{"id":"f","text":"y","label":"none","level":9}"#,
            r#"{"id":"g","text":"y","label":"none","grounds":["lief"]}"#,
            r#"{"id":"h","text":"停水三天","label":"意见建议类","colour":1}"#,
            "{",
            r#"{"text":"only a text","label":"emergency","level":3,"grounds":[],"colour":2}"#,
        ];
        let (labels, problems) = codes(Source::Jsonl, &rows.join("\n"));
        assert_eq!(labels, ["problem", "suggestion", "emergency"]);
        assert_eq!(
            problems,
            [
                (2, "unknown_label"),
                (3, "invalid_text"),
                (4, "duplicate_id"),
                (5, "author_field"),
                (6, "invalid_level"),
                (7, "unknown_ground"),
                (8, "unknown_column"),
                (8, "conflicting_labels"),
                (9, "invalid_json"),
                (10, "level_without_grounds"),
            ]
        );
    }

    #[test]
    fn csv_has_the_same_meaning() {
        let csv = "text,label,level,grounds\n着火了,突发事件类,3,life wide\n谢谢,none,,\n";
        let (labels, problems) = codes(Source::Csv, csv);
        assert_eq!((labels.len(), problems.len()), (2, 0));
        let missing = read_as(Source::Csv, "id,body\n1,x\n", &Options::default());
        let n_missing = missing.problems.iter().filter(|it| it.code == "missing_column").count();
        assert_eq!(n_missing, 2);
    }

    #[test]
    fn a_refused_column_is_told_once_and_refuses_every_row() {
        let csv = "id,text,label,投诉人\n1,停水,problem,甲\n2,谢谢,none,乙\n3,停电,problme,丙\n";
        let found = read_as(Source::Csv, csv, &Options::default());
        let told: Vec<_> =
            found.problems.iter().filter(|it| it.row > 0).map(|it| (it.row, it.code)).collect();
        assert_eq!(told, [(1, "author_field"), (3, "unknown_label")]);
        assert_eq!((found.cases.len(), found.n_rows, found.n_errors()), (0, 3, 4));
    }

    #[test]
    fn a_value_of_the_wrong_type_is_told_once_and_a_missing_label_says_where_to_look() {
        let rows = "{\"text\":[1],\"label\":[\"none\"]}\n{\"text\":\"停水\",\"topic\":\"problem\"}";
        let found = read_as(Source::Jsonl, rows, &Options::default());
        let told: Vec<_> =
            found.problems.iter().filter(|it| it.row > 0).map(|it| (it.row, it.code)).collect();
        let expected = [(1, "wrong_type"), (1, "wrong_type"), (2, "unknown_column")];
        assert_eq!(told, [&expected[..], &[(2, "missing_label")]].concat());
        assert!(found.problems.iter().any(|it| it.fix.contains("--label-column")));
    }

    #[test]
    fn a_file_without_a_header_is_not_read_as_if_it_had_one() {
        let csv = "照明,路灯坏了\n绿化,树倒了\n";
        let options = Options { any_label: true, ..Options::default() };
        let found = read_as(Source::Csv, csv, &options);
        assert_eq!((found.cases.len(), found.n_errors()), (0, 2));
        for it in &found.problems {
            assert_eq!(it.code, "missing_column");
            assert!(it.fix.contains("--format comprehend"));
            // What stands in the first row is a text.
            assert!(!format!("{it:?}").contains("路灯"));
        }
        assert_eq!(read_as(Source::Comprehend, csv, &options).cases.len(), 2);
    }

    #[test]
    fn other_rows_are_named_by_their_line_in_the_file() {
        let csv = "text,label\n\n停水,problem\n谢谢,none\n停水,problem\n";
        let found = read_as(Source::Csv, csv, &Options::default());
        let copy = found.problems.iter().find(|it| it.code == "duplicate_text").unwrap();
        assert_eq!((copy.row, copy.line), (3, 5));
        assert!(copy.reason.starts_with("line 3 "), "{}", copy.reason);
    }

    #[test]
    fn dates_are_read_and_a_wrong_one_harms_no_row() {
        let csv = "text,label,date\n停水三天,problem,2026/8/1\n谢谢,none,昨天\n路灯坏了,problem,\n";
        let found = read_as(Source::Csv, csv, &Options::default());
        let days: Vec<_> = found.cases.iter().map(|it| it.day.map(|it| it.to_string())).collect();
        assert_eq!(days, [Some("2026-08-01".to_owned()), None, None]);
        let rows: Vec<_> = found.problems.iter().filter(|it| it.row > 0).collect();
        assert_eq!((rows.len(), rows[0].row, rows[0].code), (1, 2, "invalid_date"));
    }

    #[test]
    fn other_columns_and_other_labels_are_read_when_named() {
        let csv = "id,内容,类别,label\n1,路灯坏了,照明,x\n2,树倒了,绿化,x\n3,井盖没了,,x\n";
        let options = Options {
            text_column: "内容".into(),
            label_column: "类别".into(),
            any_label: true,
            ..Options::default()
        };
        let found = read_as(Source::Csv, csv, &options);
        assert_eq!(labels_of(&found.cases), ["照明", "绿化"].map(str::to_owned));
        assert_eq!(found.places, [(1, 2), (2, 3)]);
        let rows: Vec<_> =
            found.problems.iter().filter(|it| it.row > 0).map(|it| it.code).collect();
        assert_eq!(rows, ["missing_label"]);
        // Under the name it has in the file.
        let named = found.problems.iter().find(|it| it.code == "missing_label").unwrap();
        assert_eq!(named.column.as_deref(), Some("类别"));
        // The labels that occur are counted, not those of the built-in taxonomy.
        assert_eq!(found.problems.iter().filter(|it| it.code == "few_cases").count(), 2);
        // The names may be crossed, and no name makes an author's column a label.
        let crossed = "id,label,text\n1,路灯坏了,照明\n";
        let options = Options {
            text_column: "label".into(),
            label_column: "text".into(),
            any_label: true,
            ..Options::default()
        };
        let found = read_as(Source::Csv, crossed, &options);
        let case = &found.cases[0];
        assert_eq!((case.text.as_str(), case.label.as_str()), ("路灯坏了", "照明"));
        let options =
            Options { label_column: "性别".into(), any_label: true, ..Options::default() };
        let found = read_as(Source::Csv, "text,性别\n路灯坏了,男\n", &options);
        assert!(found.cases.is_empty() && found.problems[0].code == "author_field");
        let long = format!("text,label\n路灯坏了,{}\n", "长".repeat(65));
        let options = Options { any_label: true, ..Options::default() };
        assert_eq!(read_as(Source::Csv, &long, &options).problems[0].code, "unlikely_label");
    }

    #[test]
    fn marks_of_a_wrong_conversion_are_pointed_out() {
        let csv = "text,label\n锟斤拷锟斤拷,none\n路灯\u{fffd}了,problem\n路灯坏了,problem\n";
        let (labels, problems) = codes(Source::Csv, csv);
        assert_eq!(labels.len(), 3);
        assert_eq!(problems, [(1, "broken_characters"), (2, "broken_characters")]);
    }
}
