//! `triage check`: every bad row of a file of labelled cases, by row, column, reason and fix.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;

use crate::cases::{self, Severity};
use crate::domain::taxonomy::Taxonomy;

/// Arguments of `triage check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// 已标注的案例（.jsonl 或 .csv，可为 .xz）
    cases: PathBuf,
    /// 输出 JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// When the file cannot be read, or a row of it is useless.
pub fn run(args: CheckArgs) -> anyhow::Result<()> {
    let taxonomy = Taxonomy::embedded();
    let name = args.cases.display();
    let found = cases::read(&args.cases, &taxonomy).with_context(|| name.to_string())?;
    let n_errors = found.n_errors();
    let counts = || {
        let count = |code: &str| found.cases.iter().filter(|it| it.label == code).count();
        taxonomy.types.iter().map(move |it| (it, count(&it.code)))
    };
    let mut out = std::io::stdout().lock();
    if args.json {
        let labels: serde_json::Map<_, _> =
            counts().map(|(it, n)| (it.code.clone(), n.into())).collect();
        let json = serde_json::json!({
            "rows": found.n_rows,
            "usable": found.cases.len(),
            "labels": labels,
            "problems": found.problems,
        });
        writeln!(out, "{json:#}")?;
    } else {
        for it in &found.problems {
            let severity = if it.severity == Severity::Error { "错误" } else { "提醒" };
            let place = if it.row == 0 { String::new() } else { format!("第 {} 行", it.row) };
            let column = it.column.as_deref().map_or(String::new(), |it| format!(" [{it}]"));
            writeln!(out, "{severity} {place}{column} {}: {}; {}", it.code, it.reason, it.fix)?;
        }
        let n_warnings = found.problems.len() - n_errors;
        let n_usable = found.cases.len();
        writeln!(
            out,
            "共 {} 行，可用 {n_usable} 行；错误 {n_errors}，提醒 {n_warnings}",
            found.n_rows
        )?;
        for (it, n) in counts() {
            writeln!(out, "  {} {}: {n}", it.zh, it.code)?;
        }
    }
    if n_errors > 0 {
        bail!("{name}: {n_errors} errors; correct the rows named above");
    }
    Ok(())
}
