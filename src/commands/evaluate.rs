//! `triage evaluate`: the table every model is judged by, beside a lexical baseline.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::Args;
use indicatif::ProgressBar;
use rayon::prelude::*;

use super::{load_pipeline, progress_style};
use crate::cases::{self, Options};
use crate::config::Config;
use crate::domain::case::{CaseText, LabelledCase};
use crate::domain::label::LabelSet;
use crate::domain::policy::{ReviewReason, Verdict};
use crate::domain::prediction::Prediction;
use crate::domain::taxonomy::Taxonomy;
use crate::evaluation::details::{Detail, Details, length_slice};
use crate::evaluation::lexical::{Classifier, Vectorizer};
use crate::evaluation::report::{ACCUSED, Estimate, Outcome, Report, differences};
use crate::evaluation::suite::{Answer, Protection, SuiteResults, spread, tells_levels};
use crate::imports::Source;
use crate::page::{Mistake, Page, dimension_zh};
use crate::pipeline::{Pipeline, Prepared, segmenter};
use crate::suites::{Criticism, Suites};

/// Texts predicted at once.
const BLOCK: usize = 64;

/// Arguments of `triage evaluate`.
#[derive(Debug, Args)]
pub struct EvaluateArgs {
    /// 已标注的案例（.jsonl 或 .csv，可为 .xz）
    cases: PathBuf,
    #[command(flatten)]
    columns: Columns,
    /// 用这些案例现场训练词法基线，与模型并列
    #[arg(long, value_name = "CASES")]
    baseline: Option<PathBuf>,
    /// 输出 JSON
    #[arg(long)]
    json: bool,
    /// 另写一份自成一体的 HTML 报告（手机可读、可打印）
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// 指标不得低于此值，如 macro_f1=0.78；可多次给出，不满足则退出码为 1
    #[arg(long, value_name = "FIGURE=VALUE", value_parser = parse_bound)]
    at_least: Vec<(String, f64)>,
    /// 指标不得高于此值，如 type_ece=0.06；可多次给出
    #[arg(long, value_name = "FIGURE=VALUE", value_parser = parse_bound)]
    at_most: Vec<(String, f64)>,
}

/// How a file of cases is written, for a model whose labels are known.
#[derive(Debug, Clone, Default, Args)]
pub struct Columns {
    /// 文件格式；默认按文件名和首行判断
    #[arg(long, value_enum)]
    format: Option<Source>,
    /// 文本所在的列 [默认: text]
    #[arg(long, value_name = "NAME")]
    text_column: Option<String>,
    /// 标签所在的列 [默认: label]
    #[arg(long, value_name = "NAME")]
    label_column: Option<String>,
}

impl Columns {
    /// The form for reading.
    pub(super) fn options(&self) -> Options {
        let default = Options::default();
        Options {
            source: self.format,
            text_column: self.text_column.clone().unwrap_or(default.text_column),
            label_column: self.label_column.clone().unwrap_or(default.label_column),
            any_label: false,
        }
    }
}

/// Runs the command.
///
/// # Errors
/// When the model or the cases cannot be read, or a figure is out of its bounds.
pub fn run(args: EvaluateArgs, config: &Config) -> anyhow::Result<()> {
    let pipeline = load_pipeline(config)?;
    let cases = fair(read_cases_with(&args.cases, pipeline.taxonomy(), &args.columns.options())?)?;
    let n_learned = cases.iter().filter(|it| pipeline.learned().knows(it.text.as_str())).count();
    let flattery = (n_learned > 0).then(|| {
        format!("trained_on_cases: {n_learned} 条是这个模型学过的，数字偏好；请换成它没学过的案例")
    });
    flattery.iter().for_each(|it| eprintln!("{it}"));
    let Evaluated { report, answers } = evaluate(&pipeline, &cases)?;
    let mut suites = ask_suites(&pipeline)?;
    if cases.iter().all(|it| it.level.is_none()) {
        suites = suites.without_levels();
    }
    let baseline = args
        .baseline
        .as_deref()
        .map(|path| {
            let train = read_cases_with(path, pipeline.taxonomy(), &args.columns.options())?;
            baseline(&train, &cases, pipeline.taxonomy(), config)
        })
        .transpose()?;
    let gain = baseline.as_ref().map(|it| Gain::over("词法基线", &it.1, &answers));
    let baseline = baseline.map(|it| it.0);
    if let Some(path) = &args.html {
        let page = Page {
            title: "评估报告".into(),
            notes: flattery.into_iter().chain(gain.iter().map(Gain::to_string)).collect(),
            others: baseline.iter().map(|it| ("词法基线", it)).collect(),
            ..page(&pipeline, &report, &suites, mistakes(&pipeline, &cases, &answers))
        };
        write_page(path, &page)?;
    }
    let mut out = std::io::stdout().lock();
    if args.json {
        let json = serde_json::json!({
            "model": pipeline.identity().name,
            "version": pipeline.identity().version,
            "digest": pipeline.identity().digest,
            "n_learned": n_learned,
            "report": report,
            "baseline": baseline,
            "gain_over_baseline": gain.as_ref().map(|it| BTreeMap::from(it.figures)),
            "suites": suites,
        });
        writeln!(out, "{json:#}")?;
    } else {
        write!(out, "{}", table(&report, baseline.as_ref(), pipeline.taxonomy()))?;
        if let Some(gain) = gain {
            writeln!(out, "{gain}")?;
        }
        write!(out, "{}", suites_table(&suites))?;
    }
    gate(&report, &args.at_least, &args.at_most)
}

/// What a model reaches beyond another on the same cases.
pub(super) struct Gain {
    over: &'static str,
    figures: [(&'static str, Option<Estimate>); 3],
}

impl Gain {
    /// `answers` beside those of `over`.
    pub(super) fn over(
        over: &'static str,
        theirs: &[Outcome],
        answers: &[(Outcome, Detail)],
    ) -> Self {
        let ours: Vec<Outcome> = answers.iter().map(|it| it.0).collect();
        Self { over, figures: differences(&ours, theirs) }
    }
}

impl fmt::Display for Gain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "比{}（同样的案例，成对自助法 95% 区间）", self.over)?;
        for ((_, figure), zh) in self.figures.iter().zip(["宏平均 F1", "准确率", "敏感度 kappa"])
        {
            let Some(it) = figure else { continue };
            write!(f, "，{zh} {:+.3} ({:+.3}–{:+.3})", it.value, it.low, it.high)?;
        }
        Ok(())
    }
}

/// What a model made of labelled cases.
pub struct Evaluated {
    /// The figures.
    pub report: Report,
    /// Each case's answer, in order.
    pub answers: Vec<(Outcome, Detail)>,
}

/// What `pipeline` makes of `cases`.
///
/// # Errors
/// When a case has a label the model lacks, or the model fails.
pub fn evaluate(pipeline: &Pipeline, cases: &[LabelledCase]) -> anyhow::Result<Evaluated> {
    let types = pipeline.type_labels();
    let bar = ProgressBar::new(cases.len() as u64).with_style(progress_style("评估")?);
    let mut answers = Vec::with_capacity(cases.len());
    for block in cases.chunks(BLOCK) {
        let prepared = block
            .iter()
            .map(|it| {
                pipeline.prepare(&it.text).with_context(|| format!("case {}", it.id.as_str()))
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        let predictions = pipeline.predict(&prepared.iter().collect::<Vec<_>>())?;
        for ((case, prepared), it) in block.iter().zip(&prepared).zip(&predictions) {
            let label = column(types, case)?;
            let predicted = pipeline.propose(it);
            let outcome = Outcome {
                label,
                predicted,
                confidence: it.type_probabilities[predicted].get(),
                set: Some((it.prediction_set.len(), it.prediction_set.contains(&label))),
                levels: case.level.map(|level| (usize::from(level), it.level())),
            };
            answers.push((outcome, detail(pipeline, case, prepared, it)));
        }
        bar.inc(block.len() as u64);
    }
    bar.finish_and_clear();
    let outcomes: Vec<Outcome> = answers.iter().map(|it| it.0).collect();
    let mut report = Report::new(&outcomes, types, pipeline.taxonomy().levels.len());
    let grounds = pipeline.ground_labels().codes();
    report.details = Some(Details::new(&answers, types.len(), grounds));
    Ok(Evaluated { report, answers })
}

fn detail(
    pipeline: &Pipeline,
    case: &LabelledCase,
    prepared: &Prepared,
    prediction: &Prediction,
) -> Detail {
    let decision = pipeline.decide(&prepared.report, prediction);
    let is_doubt =
        |it: &ReviewReason| matches!(it, ReviewReason::LowConfidence | ReviewReason::PredictionSet);
    let codes = pipeline.ground_labels().codes();
    let truth = case.grounds.as_ref().map(|its| codes.map(|code| its.iter().any(|it| it == code)));
    let probabilities = prediction.ground_probabilities.iter().map(|it| it.get());
    let mut slices = vec![("length", length_slice(prepared.report.characters).to_owned())];
    slices.extend(case.source.clone().map(|it| ("source", it)));
    slices.extend(case.register.clone().map(|it| ("register", it)));
    Detail {
        probabilities: prediction.type_probabilities.iter().map(|it| it.get()).collect(),
        score: prediction.sensitivity_score(),
        grounds: truth.map(|truth| probabilities.zip(truth).collect()),
        is_held: decision.reasons.iter().any(|it| !is_doubt(it)),
        is_reviewed: decision.verdict != Verdict::Route,
        slices,
    }
}

/// What `pipeline` makes of the two suites, as far as it has the type and the levels they ask about.
///
/// # Errors
/// When the model fails.
pub fn ask_suites(pipeline: &Pipeline) -> anyhow::Result<SuiteResults> {
    let suites = Suites::embedded();
    let disputed = pipeline.type_labels().index_of(ACCUSED);
    let texts: Vec<&CaseText> = suites
        .criticism
        .iter()
        .map(|it| &it.text)
        .chain(suites.swaps.iter().flat_map(|it| it.wordings.iter().map(|it| &it.1)))
        .collect();
    let prepared =
        texts.par_iter().map(|it| pipeline.prepare(it)).collect::<Result<Vec<_>, _>>()?;
    let mut answers = Vec::with_capacity(prepared.len());
    for block in prepared.chunks(BLOCK) {
        let predictions = pipeline.predict(&block.iter().collect::<Vec<_>>())?;
        answers.extend(predictions.iter().map(|it| Answer {
            type_idx: pipeline.propose(it),
            probabilities: it.type_probabilities.iter().map(|it| it.get()).collect(),
            score: it.sensitivity_score(),
            level: it.level(),
            accusation: disputed.map(|column| it.type_probabilities[column].get()),
        }));
    }
    let has_levels = tells_levels(&answers);
    let mut answers = answers.into_iter();
    let of_criticism = answers.by_ref().take(suites.criticism.len()).collect::<Vec<_>>();
    let protection = disputed
        .map(|disputed| protection(&suites.criticism, &of_criticism, disputed))
        .unwrap_or_default();
    let mut swaps = Vec::new();
    for it in suites.swaps {
        let values = it.wordings.into_iter().map(|it| it.0);
        let of_template: Vec<(String, Answer)> = values.zip(answers.by_ref()).collect();
        swaps.extend(spread(&it.id, &it.dimension, &of_template));
    }
    let results = SuiteResults::new(protection, swaps);
    Ok(if has_levels { results } else { results.without_levels() })
}

fn protection(criticism: &[Criticism], answers: &[Answer], disputed: usize) -> Protection {
    let named = |is_bad: fn(&Criticism, &Answer, usize) -> bool| {
        let bad = criticism.iter().zip(answers).filter(|(it, answer)| is_bad(it, answer, disputed));
        bad.map(|(it, _)| it.id.clone()).collect()
    };
    Protection {
        n: criticism.len(),
        accused: named(|_, answer, disputed| answer.type_idx == disputed),
        raised: named(|it, answer, _| answer.level > it.max_level),
    }
}

/// The page about `pipeline`, without heading, other models and history.
pub(super) fn page<'a>(
    pipeline: &'a Pipeline,
    report: &'a Report,
    suites: &'a SuiteResults,
    mistakes: Vec<Mistake<'a>>,
) -> Page<'a> {
    let identity = pipeline.identity();
    let taxonomy = pipeline.taxonomy();
    let types = taxonomy.types.iter().map(|it| (it.code.as_str(), it.zh.as_str()));
    let grounds = taxonomy.grounds.iter().map(|it| (it.code.as_str(), it.zh.as_str()));
    Page {
        title: String::new(),
        model: [&identity.name, &identity.version, &identity.digest],
        notes: Vec::new(),
        names: types.chain(grounds).collect(),
        report,
        others: Vec::new(),
        suites: Some(suites),
        history: Vec::new(),
        mistakes,
    }
}

/// The surest wrong answers, surest first.
pub(super) fn mistakes<'a>(
    pipeline: &'a Pipeline,
    cases: &'a [LabelledCase],
    answers: &[(Outcome, Detail)],
) -> Vec<Mistake<'a>> {
    const N_NAMED: usize = 30;
    let types = pipeline.type_labels();
    let mut wrong: Vec<Mistake<'a>> = cases
        .iter()
        .zip(answers)
        .filter(|(_, (it, _))| it.label != it.predicted)
        .map(|(case, (it, _))| Mistake {
            id: case.id.as_str(),
            label: types.code(it.label),
            predicted: types.code(it.predicted),
            confidence: it.confidence,
        })
        .collect();
    wrong.sort_by(|a, b| b.confidence.total_cmp(&a.confidence).then_with(|| a.id.cmp(b.id)));
    wrong.truncate(N_NAMED);
    wrong
}

pub(super) fn write_page(path: &Path, page: &Page<'_>) -> anyhow::Result<()> {
    std::fs::write(path, page.to_html()?).with_context(|| path.display().to_string())
}

/// The report of a lexical baseline trained on `train` on `cases`, and its answers.
///
/// # Errors
/// When the user dictionary cannot be read or a label is unknown.
pub fn baseline(
    train: &[LabelledCase],
    cases: &[LabelledCase],
    taxonomy: &Taxonomy,
    config: &Config,
) -> anyhow::Result<(Report, Vec<Outcome>)> {
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
    Ok((Report::new(&outcomes, types, n_levels), outcomes))
}

/// The usable cases of `path`.
///
/// # Errors
/// When a row is useless: figures on part of a file would be figures on another file.
pub fn read_cases(path: &Path, taxonomy: &Taxonomy) -> anyhow::Result<Vec<LabelledCase>> {
    read_cases_with(path, taxonomy, &Options::default())
}

/// As [`read_cases`], with `options`.
///
/// # Errors
/// As there.
pub fn read_cases_with(
    path: &Path,
    taxonomy: &Taxonomy,
    options: &Options,
) -> anyhow::Result<Vec<LabelledCase>> {
    let read =
        cases::read_with(path, taxonomy, options).with_context(|| path.display().to_string())?;
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

/// The cases figures may be measured on: what `triage select` chose otherwise than by lot would make them
/// figures on hard or odd cases.
///
/// # Errors
/// When none is left.
pub fn fair(mut cases: Vec<LabelledCase>) -> anyhow::Result<Vec<LabelledCase>> {
    let before = cases.len();
    cases.retain(|it| !it.is_handpicked);
    if cases.len() < before {
        eprintln!("{} 条为挑选所得（selected 不是 random），不用于评估", before - cases.len());
    }
    ensure!(
        !cases.is_empty(),
        "no_fair_cases: every case was chosen by `triage select`; figures need those it chose at random"
    );
    Ok(cases)
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
    let cell = |it: Option<Estimate>| match it {
        Some(it) => format!("{:.3} ({:.3}–{:.3})", it.value, it.low, it.high),
        None => "—".into(),
    };
    line(format!("{}{}{}", pad("指标", 26), pad("模型", 24), baseline.map_or("", |_| "词法基线")));
    let baseline_figures = baseline.map(Report::figures);
    for (idx, ((code, figure), zh)) in report.figures().into_iter().zip(names).enumerate() {
        // Of a type the model lacks, or of levels no case has, nothing is said.
        if figure.is_none() && baseline_figures.is_none_or(|it| it[idx].1.is_none()) {
            continue;
        }
        let other = baseline_figures.map_or(String::new(), |it| cell(it[idx].1));
        let name = format!("{zh} {code}");
        line(format!("{}{}{other}", pad(&name, 36), pad(&cell(figure), 24)));
    }
    if let Some(upper) = report.false_accusation_upper {
        line(format!("误指造谣率的单侧 95% 上界：{upper:.4}"));
    }
    if let Some(details) = &report.details {
        let risk = details.policy.risk.map_or("—".into(), |it| format!("{it:.3}"));
        let brier = details.brier.map_or("—".into(), |it| format!("{it:.3}"));
        line(format!(
            "Brier {brier}；现行复核规则：直接分派 {:.3}，其中类型有误 {risk}",
            details.policy.coverage
        ));
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

/// What became of the suites, for people.
pub fn suites_table(suites: &SuiteResults) -> String {
    use std::fmt::Write;
    // Writing to a string cannot fail.
    let mut out = String::from("\n");
    if let Some(it) = suites.criticism() {
        let (n, n_accused, accused) = (it.n, it.accused.len(), named(&it.accused));
        let _ = write!(out, "正当批评 {n} 条：被判为造谣 {n_accused} 条{accused}");
        if suites.has_levels {
            let _ = write!(out, "，敏感级别偏高 {} 条{}", it.raised.len(), named(&it.raised));
        }
        out.push('\n');
    }
    out.push_str("换人不换事（同一句话换成不同的人，最大变化）\n");
    for (name, it) in &suites.dimensions {
        out.push_str(&pad(dimension_zh(name), 12));
        if let (Some(score), Some(level)) = (it.max_score, it.max_level) {
            let _ = write!(out, "敏感分 {score:.3}  级别 {level}  ");
        }
        if let Some(accusation) = it.max_accusation {
            let _ = write!(out, "造谣概率 {accusation:.3}  ");
        }
        let (probability, changes, n) = (it.max_probability, it.type_changes, it.templates);
        let _ = writeln!(out, "所判类型概率 {probability:.3}  类型改变 {changes} / {n}");
    }
    out
}

fn named(ids: &[String]) -> String {
    if ids.is_empty() { String::new() } else { format!("（{}）", ids.join("、")) }
}

/// `text` filled with spaces to `width` columns; a Chinese character takes two.
pub(super) fn pad(text: &str, width: usize) -> String {
    let taken: usize = text.chars().map(|it| if u32::from(it) >= 0x2e80 { 2 } else { 1 }).sum();
    format!("{text}{}", " ".repeat(width.saturating_sub(taken).max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_labels_are_not_said_to_accuse_nobody() {
        let own = |type_idx: usize, p: f32| {
            let probabilities = vec![p, 1.0 - p];
            Answer { type_idx, probabilities, score: 0.0, level: 0, accusation: None }
        };
        let answers = [("甲".to_owned(), own(0, 0.75)), ("乙".to_owned(), own(1, 0.25))];
        let swaps = spread("t", "age", &answers).into_iter().collect();
        let results = SuiteResults::new(Protection::default(), swaps).without_levels();
        let text = suites_table(&results);
        for absent in ["造谣", "正当批评", "敏感", "级别"] {
            assert!(!text.contains(absent), "{absent}: {text}");
        }
        assert!(text.contains("所判类型概率 0.500  类型改变 1 / 1"), "{text}");
        let types = LabelSet::new(["水务", "交通"]).unwrap();
        let taxonomy = Taxonomy::embedded().for_labels(&types, &LabelSet::new(["life"]).unwrap());
        let right = Outcome { label: 0, predicted: 0, confidence: 0.9, set: None, levels: None };
        let text = table(&Report::new(&[right, right], &types, 4), None, &taxonomy);
        for absent in ["误指造谣", "突发", "敏感度"] {
            assert!(!text.contains(absent), "{absent}: {text}");
        }
        assert!(text.contains("macro_f1"), "{text}");
    }

    #[test]
    fn criticism_is_named_by_what_became_of_it() {
        let suites = Suites::embedded();
        let answer = |type_idx, level| Answer {
            type_idx,
            probabilities: vec![0.5, 0.5],
            score: 0.5,
            level,
            accusation: Some(0.5),
        };
        let criticism = &suites.criticism[..3];
        let found = protection(criticism, &[answer(0, 0), answer(1, 0), answer(0, 3)], 1);
        assert_eq!((found.n, &found.accused[..]), (3, &[criticism[1].id.clone()][..]));
        assert_eq!(found.raised, [criticism[2].id.clone()]);
    }

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
