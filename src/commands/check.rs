//! `triage check`: every bad row of a file of labelled cases, by row, column, reason and fix.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::Args;

use super::evaluate::{Columns, read_cases_with};
use crate::cases::{self, Cases, Options, Problem, Severity, labels_of};
use crate::domain::case::LabelledCase;
use crate::domain::label::LabelSet;
use crate::domain::taxonomy::Taxonomy;
use crate::text::{normalize, redact};
use crate::training::split::near_duplicate_groups;

/// Arguments of `triage check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// 已标注的案例（.jsonl、.csv、.xlsx，或 doccano、Label Studio、Comprehend、fastText 的导出；可为 .xz）
    cases: PathBuf,
    #[command(flatten)]
    form: CasesForm,
    /// 输出 JSON
    #[arg(long)]
    json: bool,
}

/// How a file of cases is written; shared by the commands that read one.
#[derive(Debug, Clone, Default, Args)]
pub struct CasesForm {
    #[command(flatten)]
    columns: Columns,
    /// 分类体系文件（格式同 models/taxonomy.toml）；默认用内置的
    #[arg(long, value_name = "FILE", conflicts_with = "any_label")]
    taxonomy: Option<PathBuf>,
    /// 标签取自数据本身，不限于内置的六类
    #[arg(long)]
    any_label: bool,
}

impl CasesForm {
    /// The form for reading.
    pub(super) fn options(&self) -> Options {
        Options { any_label: self.any_label, ..self.columns.options() }
    }

    /// The cases of `path`, and the taxonomy their labels are of.
    ///
    /// # Errors
    /// When a row is useless, the taxonomy cannot be read, or there is but one label.
    pub(super) fn read(&self, path: &Path) -> anyhow::Result<(Vec<LabelledCase>, Taxonomy)> {
        let given = match self.taxonomy_text()? {
            Some(text) => Taxonomy::parse(&text)?,
            None => Taxonomy::embedded(),
        };
        let cases = read_cases_with(path, &given, &self.options())?;
        let taxonomy = match self.any_label {
            true => of_labels(given, &cases)?,
            false => given,
        };
        Ok((cases, taxonomy))
    }

    /// Text of the taxonomy that was named.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(super) fn taxonomy_text(&self) -> anyhow::Result<Option<String>> {
        let Some(path) = &self.taxonomy else { return Ok(None) };
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        Ok(Some(text))
    }
}

/// A taxonomy of the labels that occur; what the built-in one explains of them stays explained.
fn of_labels(taxonomy: Taxonomy, cases: &[LabelledCase]) -> anyhow::Result<Taxonomy> {
    let types = LabelSet::new(labels_of(cases))?;
    ensure!(
        types.len() >= 2,
        "one_label: every case has the label `{}`; a model needs two labels or more",
        types.code(0)
    );
    let grounds = taxonomy.ground_codes().clone();
    Ok(taxonomy.for_labels(&types, &grounds))
}

/// Runs the command.
///
/// # Errors
/// When the file cannot be read, or a row of it is useless.
pub fn run(args: CheckArgs) -> anyhow::Result<()> {
    let taxonomy = match args.form.taxonomy_text()? {
        Some(text) => Taxonomy::parse(&text)?,
        None => Taxonomy::embedded(),
    };
    let name = args.cases.display();
    let mut found = cases::read_with(&args.cases, &taxonomy, &args.form.options())
        .with_context(|| name.to_string())?;
    found.problems.extend(compare(&found));
    found.problems.extend(personal_data(&found));
    // The file as a whole first, then row by row.
    found.problems.sort_by_key(|it| it.row);
    let n_errors = found.n_errors();
    let codes = match args.form.any_label {
        true => labels_of(&found.cases),
        false => taxonomy.type_codes().codes().map(str::to_owned).collect(),
    };
    let counts = || {
        let count = |code: &str| found.cases.iter().filter(|it| it.label == code).count();
        codes.iter().map(move |it| (it, count(it)))
    };
    let mut out = std::io::stdout().lock();
    if args.json {
        let labels: serde_json::Map<_, _> =
            counts().map(|(code, n)| (code.clone(), n.into())).collect();
        let json = serde_json::json!({
            "rows": found.n_rows,
            "usable": found.cases.len(),
            "labels": labels,
            "problems": found.problems,
        });
        writeln!(out, "{json:#}")?;
    } else {
        for it in &found.problems {
            writeln!(out, "{}", told(it))?;
        }
        let is_warning = |it: &&Problem| it.severity == Severity::Warning;
        let n_warnings = found.problems.iter().filter(is_warning).count();
        let n_usable = found.cases.len();
        writeln!(
            out,
            "共 {} 行，可用 {n_usable} 行；错误 {n_errors}，提醒 {n_warnings}",
            found.n_rows
        )?;
        for (code, n) in counts() {
            let zh = taxonomy.incident_type(code).map_or("", |it| it.zh.as_str());
            writeln!(out, "  {zh} {code}: {n}")?;
        }
    }
    if n_errors > 0 {
        bail!("{name}: {n_errors} errors; correct the rows named above");
    }
    if found.cases.is_empty() {
        bail!("no_cases: {name}: there is no usable row");
    }
    Ok(())
}

/// The problem as a line of the console, with the number the row has in the file.
fn told(problem: &Problem) -> String {
    let Problem { line, code, reason, fix, .. } = problem;
    let severity = if problem.severity == Severity::Error { "错误" } else { "提醒" };
    let place = if problem.row == 0 { String::new() } else { format!("第 {line} 行") };
    let column = problem.column.as_deref().map_or(String::new(), |it| format!(" [{it}]"));
    format!("{severity} {place}{column} {code}: {reason}; {fix}")
}

/// Rows that say nearly the same as an earlier one. Rows that say exactly the same were named while reading.
fn compare(found: &Cases) -> Vec<Problem> {
    let texts: Vec<&str> = found.cases.iter().map(|it| it.text.as_str()).collect();
    let groups = near_duplicate_groups(&texts);
    let mut first_of: HashMap<&str, usize> = HashMap::new();
    let mut problems = Vec::new();
    for (idx, &leader) in groups.iter().enumerate() {
        let is_copy = *first_of.entry(texts[idx]).or_insert(idx) != idx;
        if leader == idx || is_copy || texts[idx] == texts[leader] {
            continue;
        }
        let (case, other) = (&found.cases[idx], &found.cases[leader]);
        let line = found.places[leader].1;
        let is_conflict = case.label != other.label;
        let (column, code, reason, fix) = if is_conflict {
            (
                "label",
                "near_duplicate_conflict",
                format!("line {line} says nearly the same and has another label"),
                "decide for one label, or give the other as `alt`",
            )
        } else {
            (
                "text",
                "near_duplicate",
                format!("line {line} says nearly the same"),
                "keep one of them; training never lets them part",
            )
        };
        problems.push(warning(found.places[idx], column, code, reason, fix));
    }
    problems
}

/// Rows whose text still holds personal data. What was found is not repeated.
fn personal_data(found: &Cases) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (case, &place) in found.cases.iter().zip(&found.places) {
        let text = case.text.as_str();
        let mut redactions = redact(&normalize(text)).redactions;
        // A mask may look like what it masks.
        redactions.retain(|it| {
            let n_chars = it.span.end - it.span.begin;
            !text.chars().skip(it.span.begin).take(n_chars).eq(it.kind.placeholder().chars())
        });
        if redactions.is_empty() {
            continue;
        }
        let mut kinds: Vec<&str> = redactions.iter().map(|it| it.kind.code()).collect();
        kinds.sort_unstable();
        kinds.dedup();
        problems.push(warning(
            place,
            "text",
            "personal_data",
            format!("{} places hold personal data: {}", redactions.len(), kinds.join(", ")),
            "mask them in the file; training masks them anyway, but whoever opens the file reads them",
        ));
    }
    problems
}

fn warning(
    (row, line): (u64, u64),
    column: &str,
    code: &'static str,
    reason: String,
    fix: &str,
) -> Problem {
    Problem {
        row,
        line,
        column: Some(column.to_owned()),
        severity: Severity::Warning,
        code,
        reason,
        fix: fix.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_the_number_it_has_in_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let csv = "text,label\n\n\"路灯\n坏了\",problem\n谢谢,thanks\n";
        std::fs::write(dir.path().join("c.csv"), csv).unwrap();
        let workbook = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/cases.xlsx");
        let none = Taxonomy::embedded();
        let other = Options { label_column: "text".into(), ..Options::default() };
        for (path, options, expected) in [
            (dir.path().join("c.csv"), Options::default(), "错误 第 5 行 [label] unknown_label"),
            (workbook, other, "错误 第 4 行 "),
        ] {
            let found = cases::read_with(&path, &none, &options).unwrap();
            let lines: Vec<String> = found.problems.iter().map(told).collect();
            assert!(lines.iter().any(|it| it.starts_with(expected)), "{lines:#?}");
        }
    }
}
