//! `triage audit-labels`: the labels that are probably wrong, first things first.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::Args;
use indicatif::ProgressBar;

use super::check::CasesForm;
use super::select::masked;
use crate::config::Config;
use crate::domain::case::LabelledCase;
use crate::domain::label::LabelSet;
use crate::pipeline::segmenter;
use crate::rows;
use crate::training::audit::{Judgement, audit, spoil};

const N_FOLDS: usize = 5;
/// Columns of the file that is written: those of a case, and two that nothing learns from.
const COLUMNS: [&str; 12] = [
    "id",
    "text",
    "label",
    "alt",
    "level",
    "grounds",
    "source",
    "register",
    "date",
    "selected",
    "suggested",
    "note",
];
/// A case chosen otherwise than by lot does not say how: anything but `random` reads so.
const HANDPICKED: &str = "handpicked";

/// Arguments of `triage audit-labels`.
#[derive(Debug, Args)]
pub struct AuditLabelsArgs {
    /// 已标注的案例（.jsonl 或 .csv，可为 .xz）
    cases: PathBuf,
    #[command(flatten)]
    form: CasesForm,
    /// 列出最可疑的多少条
    #[arg(short, default_value_t = 50)]
    n: usize,
    /// 把全部案例写成新的 CSV，可疑的在前，建议在 suggested 列，个人信息已遮盖；改正 label 列后可直接用于训练
    #[arg(short, long)]
    output: Option<PathBuf>,
    /// 输出 JSON
    #[arg(long)]
    json: bool,
    /// 检验方法：先故意改错 5% 的标签，看前 10% 中找回多少
    #[arg(long, conflicts_with_all = ["json", "output"])]
    self_test: bool,
    /// 随机种子
    #[arg(long, default_value_t = 42)]
    seed: u64,
}

/// Runs the command.
///
/// # Errors
/// When the cases cannot be read or are too few, or the output not be written.
pub fn run(args: AuditLabelsArgs, config: &Config) -> anyhow::Result<()> {
    if let Some(path) = &args.output {
        ensure!(!path.exists(), "output_exists: {} exists; choose another name", path.display());
    }
    let (cases, taxonomy) = args.form.read(&args.cases)?;
    let types = taxonomy.type_codes();
    ensure!(cases.len() >= 2 * N_FOLDS, "{} cases are too few to judge each other", cases.len());
    let texts: Vec<&str> = cases.iter().map(|it| it.text.as_str()).collect();
    let mut labels = cases
        .iter()
        .map(|it| types.index_of(&it.label).with_context(|| format!("case {}", it.id.as_str())))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let segmenter = segmenter(config.user_dict.as_deref())?;
    let spinner = ProgressBar::new_spinner().with_message("交叉核对标签");
    spinner.enable_steady_tick(std::time::Duration::from_millis(200));
    let spoiled = match args.self_test {
        true => spoil(&mut labels, types.len(), 0.05, args.seed),
        false => Vec::new(),
    };
    let judged = audit(&texts, &labels, types.len(), N_FOLDS, &segmenter, args.seed);
    spinner.finish_and_clear();
    let mut out = std::io::stdout().lock();
    if args.self_test {
        let inspected = judged.len() / 10;
        let n_found = judged[..inspected].iter().filter(|it| spoiled.contains(&it.idx)).count();
        let share = n_found as f64 / spoiled.len().max(1) as f64;
        writeln!(
            out,
            "故意改错 {} 条；检查最可疑的 {inspected} 条，找回 {n_found} 条（{:.1}%）",
            spoiled.len(),
            100.0 * share
        )?;
        return Ok(());
    }
    let suspects: Vec<&Judgement> =
        judged.iter().filter(|it| it.given < it.other_probability).take(args.n).collect();
    if let Some(path) = &args.output {
        let file = File::create_new(path).with_context(|| path.display().to_string())?;
        write_cases(file, &cases, &suspects, types).with_context(|| path.display().to_string())?;
        let n = cases.len();
        eprintln!("已写入 {}：全部 {n} 条，可疑的 {} 条在前", path.display(), suspects.len());
    }
    if args.json {
        let rows: Vec<_> = suspects
            .iter()
            .map(|it| {
                serde_json::json!({
                    "id": cases[it.idx].id.as_str(),
                    "label": cases[it.idx].label,
                    "label_probability": it.given,
                    "suggested": types.code(it.other),
                    "suggested_probability": it.other_probability,
                })
            })
            .collect();
        writeln!(out, "{:#}", serde_json::Value::from(rows))?;
    } else {
        for it in &suspects {
            let case = &cases[it.idx];
            let start: String = case.text.as_str().chars().take(30).collect();
            writeln!(
                out,
                "{} {} ({:.2}) → {} ({:.2})  {start}",
                case.id.as_str(),
                case.label,
                it.given,
                types.code(it.other),
                it.other_probability
            )?;
        }
        writeln!(out, "以上 {} 条的标签可疑，请人工核对。", suspects.len())?;
    }
    Ok(())
}

/// Writes every case, so that the file can be trained on once its labels are corrected: the suspects first,
/// the worst before the others, then the rest as they stood. `alt` stays what the annotator wrote; what the
/// judge would say is in `suggested`, which no training reads.
fn write_cases(
    out: impl Write,
    cases: &[LabelledCase],
    suspects: &[&Judgement],
    types: &LabelSet,
) -> csv::Result<()> {
    let mut writer = rows::spreadsheet(out)?;
    writer.write_record(COLUMNS)?;
    let mut is_written = vec![false; cases.len()];
    for (it, rank) in suspects.iter().zip(1..) {
        is_written[it.idx] = true;
        let note =
            format!("第 {rank} 可疑：label {:.2}，suggested {:.2}", it.given, it.other_probability);
        writer.write_record(record(&cases[it.idx], types.code(it.other), note))?;
    }
    for (case, _) in cases.iter().zip(is_written).filter(|it| !it.1) {
        writer.write_record(record(case, "", String::new()))?;
    }
    Ok(writer.flush()?)
}

/// The case in the order of [`COLUMNS`], empty where it says nothing.
fn record(case: &LabelledCase, suggested: &str, note: String) -> [String; COLUMNS.len()] {
    [
        case.id.as_str().to_owned(),
        masked(&case.text),
        case.label.clone(),
        case.alt.clone().unwrap_or_default(),
        case.level.map(|it| it.to_string()).unwrap_or_default(),
        case.grounds.as_deref().map(grounds_cell).unwrap_or_default(),
        case.source.clone().unwrap_or_default(),
        case.register.clone().unwrap_or_default(),
        case.day.map(|it| it.to_string()).unwrap_or_default(),
        if case.is_handpicked { HANDPICKED.to_owned() } else { String::new() },
        suggested.to_owned(),
        note,
    ]
}

/// A lone separator says that there are none; an empty cell would say that nobody looked.
fn grounds_cell(grounds: &[String]) -> String {
    if grounds.is_empty() { ";".to_owned() } else { grounds.join(";") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases;
    use crate::domain::taxonomy::Taxonomy;

    #[test]
    fn what_is_written_reads_as_the_same_cases() {
        let rows = [
            r#"{"id":"a","text":"停水三天","label":"problem","alt":"suggestion","level":0,"grounds":[]}"#,
            r#"{"id":"b","text":"着火了,\n\"快来\"","label":"emergency","level":3,"grounds":["life","wide"]}"#,
            r#"{"id":"c","text":"谢谢","label":"none","date":"2026/8/1","selected":"uncertain"}"#,
            r#"{"text":"路灯坏了","label":"problem","source":"x","register":"short","selected":"random"}"#,
        ];
        let home = tempfile::tempdir().unwrap();
        let (given, written) = (home.path().join("a.jsonl"), home.path().join("b.csv"));
        std::fs::write(&given, rows.join("\n")).unwrap();
        let taxonomy = Taxonomy::embedded();
        let types = taxonomy.type_codes();
        let mut cases = cases::read(&given, &taxonomy).unwrap().cases;
        assert_eq!(cases.len(), rows.len());
        let judged = |idx| Judgement { idx, given: 0.1, other: 0, other_probability: 0.8 };
        let suspects = [&judged(2), &judged(0)];
        write_cases(File::create_new(&written).unwrap(), &cases, &suspects, types).unwrap();
        let found = cases::read(&written, &taxonomy).unwrap();
        assert_eq!(found.n_errors(), 0, "{:?}", found.problems);
        let ids: Vec<&str> = found.cases.iter().map(|it| it.id.as_str()).collect();
        assert_eq!(ids, ["c", "a", "b", "row-4"]);
        let by_id = |it: &LabelledCase| it.id.clone();
        let mut found = found.cases;
        cases.sort_by_key(by_id);
        found.sort_by_key(by_id);
        assert_eq!(found, cases);
        let csv = std::fs::read_to_string(&written).unwrap();
        let suggested = format!(",{},第 1 可疑：label 0.10，suggested 0.80", types.code(0));
        assert_eq!(csv.matches(&suggested).count(), 1, "{csv}");
    }
}
