//! `triage audit-labels`: the labels that are probably wrong, first things first.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::Args;
use indicatif::ProgressBar;

use super::evaluate::read_cases;
use crate::config::Config;
use crate::domain::taxonomy::Taxonomy;
use crate::pipeline::segmenter;
use crate::training::audit::{audit, spoil};

const N_FOLDS: usize = 5;

/// Arguments of `triage audit-labels`.
#[derive(Debug, Args)]
pub struct AuditLabelsArgs {
    /// 已标注的案例（.jsonl 或 .csv，可为 .xz）
    cases: PathBuf,
    /// 列出最可疑的多少条
    #[arg(short, default_value_t = 50)]
    n: usize,
    /// 把结果写成 CSV（含原文），改正 label 列后可直接用于训练
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
    let taxonomy = Taxonomy::embedded();
    let types = taxonomy.type_codes();
    let cases = read_cases(&args.cases, &taxonomy)?;
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
    let suspects = || judged.iter().filter(|it| it.given < it.other_probability).take(args.n);
    if let Some(path) = &args.output {
        let mut writer =
            csv::Writer::from_path(path).with_context(|| path.display().to_string())?;
        writer.write_record(["id", "text", "label", "alt", "note"])?;
        for it in suspects() {
            let case = &cases[it.idx];
            let note = format!("label {:.2}, {:.2}", it.given, it.other_probability);
            let other = types.code(it.other);
            writer.write_record([
                case.id.as_str(),
                case.text.as_str(),
                &case.label,
                other,
                &note,
            ])?;
        }
        writer.flush()?;
    }
    if args.json {
        let rows: Vec<_> = suspects()
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
        for it in suspects() {
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
        writeln!(out, "以上 {} 条的标签可疑，请人工核对。", suspects().count())?;
    }
    Ok(())
}
