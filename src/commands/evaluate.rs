//! `triage evaluate`: the table every model is judged by, beside a lexical baseline.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::Args;
use indicatif::ProgressBar;

use super::{load_pipeline, progress_style};
use crate::cases;
use crate::config::Config;
use crate::domain::case::LabelledCase;
use crate::domain::label::LabelSet;
use crate::domain::taxonomy::Taxonomy;
use crate::evaluation::lexical::{Classifier, Vectorizer};
use crate::evaluation::report::{Outcome, Report};
use crate::pipeline::{Pipeline, segmenter};

/// Arguments of `triage evaluate`.
#[derive(Debug, Args)]
pub struct EvaluateArgs {
    /// 已标注的案例（.jsonl 或 .csv，可为 .xz）
    cases: PathBuf,
    /// 用这些案例现场训练词法基线，与模型并列
    #[arg(long, value_name = "CASES")]
    baseline: Option<PathBuf>,
    /// 输出 JSON
    #[arg(long)]
    json: bool,
    /// 指标不得低于此值，如 macro_f1=0.78；可多次给出，不满足则退出码为 1
    #[arg(long, value_name = "FIGURE=VALUE", value_parser = parse_bound)]
    at_least: Vec<(String, f64)>,
    /// 指标不得高于此值，如 type_ece=0.06；可多次给出
    #[arg(long, value_name = "FIGURE=VALUE", value_parser = parse_bound)]
    at_most: Vec<(String, f64)>,
}

/// Runs the command.
///
/// # Errors
/// When the model or the cases cannot be read, or a figure is out of its bounds.
pub fn run(args: EvaluateArgs, config: &Config) -> anyhow::Result<()> {
    let pipeline = load_pipeline(config)?;
    let cases = read_cases(&args.cases, pipeline.taxonomy())?;
    let report = evaluate(&pipeline, &cases)?;
    let baseline = args
        .baseline
        .as_deref()
        .map(|path| {
            let train = read_cases(path, pipeline.taxonomy())?;
            baseline(&train, &cases, pipeline.taxonomy(), config)
        })
        .transpose()?;
    let mut out = std::io::stdout().lock();
    if args.json {
        let json = serde_json::json!({
            "model": pipeline.identity().name,
            "version": pipeline.identity().version,
            "digest": pipeline.identity().digest,
            "report": report,
            "baseline": baseline,
        });
        writeln!(out, "{json:#}")?;
    } else {
        write!(out, "{}", table(&report, baseline.as_ref(), pipeline.taxonomy()))?;
    }
    gate(&report, &args.at_least, &args.at_most)
}

/// The report of `pipeline` on `cases`.
///
/// # Errors
/// When a case has a label the model lacks, or the model fails.
pub fn evaluate(pipeline: &Pipeline, cases: &[LabelledCase]) -> anyhow::Result<Report> {
    const BLOCK: usize = 64;
    let types = pipeline.type_labels();
    let bar = ProgressBar::new(cases.len() as u64).with_style(progress_style("评估")?);
    let mut outcomes = Vec::with_capacity(cases.len());
    for block in cases.chunks(BLOCK) {
        let prepared = block
            .iter()
            .map(|it| {
                pipeline.prepare(&it.text).with_context(|| format!("case {}", it.id.as_str()))
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        let predictions = pipeline.predict(&prepared.iter().collect::<Vec<_>>())?;
        for (case, it) in block.iter().zip(&predictions) {
            let label = column(types, case)?;
            outcomes.push(Outcome {
                label,
                predicted: it.type_idx(),
                confidence: it.confidence().get(),
                set: Some((it.prediction_set.len(), it.prediction_set.contains(&label))),
                levels: case.level.map(|level| (usize::from(level), it.level())),
            });
        }
        bar.inc(block.len() as u64);
    }
    bar.finish_and_clear();
    Ok(Report::new(&outcomes, types, pipeline.taxonomy().levels.len()))
}

/// The report of a lexical baseline trained on `train` on `cases`.
///
/// # Errors
/// When the user dictionary cannot be read or a label is unknown.
pub fn baseline(
    train: &[LabelledCase],
    cases: &[LabelledCase],
    taxonomy: &Taxonomy,
    config: &Config,
) -> anyhow::Result<Report> {
    let types = taxonomy.type_codes();
    let spinner = ProgressBar::new_spinner().with_message("训练词法基线");
    spinner.enable_steady_tick(std::time::Duration::from_millis(200));
    let texts: Vec<&str> = train.iter().map(|it| it.text.as_str()).collect();
    let vectorizer = Vectorizer::fit(&texts, segmenter(config.user_dict.as_deref())?);
    let rows: Vec<_> = texts.iter().map(|it| vectorizer.row(it)).collect();
    let labels = train.iter().map(|it| column(types, it)).collect::<anyhow::Result<Vec<_>>>()?;
    let by_type = Classifier::fit(&vectorizer, &rows, &labels, types.len());
    let (level_rows, levels): (Vec<_>, Vec<usize>) = rows
        .iter()
        .zip(train)
        .filter_map(|(row, case)| Some((row.clone(), usize::from(case.level?))))
        .unzip();
    let n_levels = taxonomy.levels.len();
    let by_level =
        (!levels.is_empty()).then(|| Classifier::fit(&vectorizer, &level_rows, &levels, n_levels));
    let mut outcomes = Vec::with_capacity(cases.len());
    for case in cases {
        let row = vectorizer.row(case.text.as_str());
        let (predicted, confidence) = best(&by_type.probabilities(&row));
        let level = by_level.as_ref().map(|it| best(&it.probabilities(&row)).0);
        outcomes.push(Outcome {
            label: column(types, case)?,
            predicted,
            confidence,
            set: None,
            levels: case.level.map(usize::from).zip(level),
        });
    }
    spinner.finish_and_clear();
    Ok(Report::new(&outcomes, types, n_levels))
}

/// The usable cases of `path`.
///
/// # Errors
/// When a row is useless: figures on part of a file would be figures on another file.
pub fn read_cases(path: &Path, taxonomy: &Taxonomy) -> anyhow::Result<Vec<LabelledCase>> {
    let read = cases::read(path, taxonomy).with_context(|| path.display().to_string())?;
    ensure!(
        read.n_errors() == 0,
        "{}: {} bad rows; `triage check {}` names them",
        path.display(),
        read.n_errors(),
        path.display()
    );
    ensure!(!read.cases.is_empty(), "{}: no cases", path.display());
    Ok(read.cases)
}

fn column(types: &LabelSet, case: &LabelledCase) -> anyhow::Result<usize> {
    types.index_of(&case.label).with_context(|| {
        format!("case {}: the model has no type `{}`", case.id.as_str(), case.label)
    })
}

fn best(probabilities: &[f32]) -> (usize, f32) {
    let pairs = probabilities.iter().copied().enumerate();
    pairs.max_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or((0, 0.0))
}

fn parse_bound(text: &str) -> Result<(String, f64), String> {
    let names =
        || Report::new(&[], &Taxonomy::embedded().type_codes().clone(), 4).figures().map(|it| it.0);
    let parsed = text.split_once('=').and_then(|(name, value)| Some((name, value.parse().ok()?)));
    match parsed {
        Some((name, value)) if names().contains(&name) => Ok((name.to_owned(), value)),
        _ => Err(format!("write FIGURE=VALUE; figures are {}", names().join(", "))),
    }
}

/// Fails closed: a figure that could not be computed is out of bounds.
fn gate(
    report: &Report,
    at_least: &[(String, f64)],
    at_most: &[(String, f64)],
) -> anyhow::Result<()> {
    let value = |name: &str| report.figures().iter().find(|it| it.0 == name)?.1.map(|it| it.value);
    let mut failures = Vec::new();
    for (name, bound) in at_least {
        match value(name) {
            Some(value) if value >= *bound => {}
            value => failures.push(format!("{name} is {value:?}, must be at least {bound}")),
        }
    }
    for (name, bound) in at_most {
        match value(name) {
            Some(value) if value <= *bound => {}
            value => failures.push(format!("{name} is {value:?}, must be at most {bound}")),
        }
    }
    if !failures.is_empty() {
        bail!("quality gate: {}", failures.join("; "));
    }
    Ok(())
}

/// Figures for people, the model's beside the baseline's.
pub fn table(report: &Report, baseline: Option<&Report>, taxonomy: &Taxonomy) -> String {
    use std::fmt::Write;
    let mut out = String::new();
    let mut line = |text: String| {
        let _ = writeln!(out, "{text}"); // Writing to a string cannot fail.
    };
    line(format!("案例 {} 条；括号内为 95% 自助法区间", report.n_cases));
    let names = ["宏平均 F1", "准确率", "突发召回率", "误指造谣率", "敏感度 kappa", "类型 ECE"];
    let cell = |it: Option<crate::evaluation::report::Estimate>| match it {
        Some(it) => format!("{:.3} ({:.3}–{:.3})", it.value, it.low, it.high),
        None => "—".into(),
    };
    line(format!("{}{}{}", pad("指标", 26), pad("模型", 24), baseline.map_or("", |_| "词法基线")));
    let baseline_figures = baseline.map(Report::figures);
    for (idx, ((code, figure), zh)) in report.figures().into_iter().zip(names).enumerate() {
        let other = baseline_figures.map_or(String::new(), |it| cell(it[idx].1));
        let name = format!("{zh} {code}");
        line(format!("{}{}{other}", pad(&name, 36), pad(&cell(figure), 24)));
    }
    if let (Some(coverage), Some(size)) = (report.set_coverage, report.mean_set_size) {
        line(format!("预测集：含正确类型 {coverage:.3}，平均 {size:.2} 类"));
    }
    line(String::new());
    line(format!(
        "{}{}{}{}{}{}",
        pad("类型", 32),
        pad("条数", 8),
        pad("精确率", 9),
        pad("召回率", 9),
        pad("F1", 9),
        baseline.map_or("", |_| "基线 F1")
    ));
    for (idx, it) in report.types.iter().enumerate() {
        let zh = taxonomy.incident_type(&it.code).map_or("", |it| it.zh.as_str());
        let other = baseline.map_or(String::new(), |it| format!("{:.3}", it.types[idx].f1));
        let scores =
            [it.precision, it.recall, it.f1].map(|it| pad(&format!("{it:.3}"), 9)).concat();
        let name = format!("{zh} {}", it.code);
        line(format!("{}{}{scores}{other}", pad(&name, 32), pad(&it.support.to_string(), 8)));
    }
    line(String::new());
    line("混淆矩阵（行：实际，列：预测，次序同上）".into());
    for (it, row) in report.types.iter().zip(&report.confusion) {
        let counts: String = row.iter().map(|it| format!("{it:>6}")).collect();
        line(format!("{}{counts}", pad(&it.code, 18)));
    }
    out
}

/// `text` filled with spaces to `width` columns; a Chinese character takes two.
fn pad(text: &str, width: usize) -> String {
    let taken: usize = text.chars().map(|it| if u32::from(it) >= 0x2e80 { 2 } else { 1 }).sum();
    format!("{text}{}", " ".repeat(width.saturating_sub(taken).max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_fails_closed() {
        let types = Taxonomy::embedded().type_codes().clone();
        let right = Outcome { label: 0, predicted: 0, confidence: 0.9, set: None, levels: None };
        let report = Report::new(&[right, right], &types, 4);
        let bound = |text: &str| vec![parse_bound(text).unwrap()];
        assert!(gate(&report, &bound("accuracy=0.9"), &[]).is_ok());
        assert!(gate(&report, &[], &bound("accuracy=0.9")).is_err());
        let missing = gate(&report, &bound("level_kappa=0.1"), &[]).unwrap_err().to_string();
        assert!(missing.contains("level_kappa is None"), "{missing}");
        assert!(parse_bound("macro=0.1").unwrap_err().contains("macro_f1"));
    }
}
