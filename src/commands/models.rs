//! `triage models`: versions, what is in production, and the way there and back.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::{Args, Subcommand};
use serde_json::json;

use super::evaluate::{Columns, Evaluated, ask_suites, evaluate, fair, pad, read_cases_with};
use super::train::file_digest;
use super::{load_version, precision};
use crate::config::Config;
use crate::domain::case::{CaseText, LabelledCase};
use crate::evaluation::conformal::{self, HeldOut};
use crate::evaluation::gate::{Assessment, Gate, Incomparable, Margins, gates, gates_alone};
use crate::evaluation::migration::Migration;
use crate::evaluation::report::{ACCUSED, PROTECTED};
use crate::model::Bundle;
use crate::model::bundle::sha256;
use crate::pipeline::sidecar::{self, PolicyEvidence, PolicyFile};
use crate::pipeline::{Pipeline, segmenter};
use crate::registry::{Aliases, Entry, LOG, Registry};
use crate::suites::Suites;

/// What to do with the models directory.
#[derive(Debug, Subcommand)]
pub enum ModelsCommand {
    /// 列出各版本及其用途
    List(ListArgs),
    /// 查看一个版本：怎样训练、质量如何、何时上线
    Show(ShowArgs),
    /// 检验候选版本，全部通过才上线
    Promote(PromoteArgs),
    /// 退回上一个版本
    Rollback(RollbackArgs),
    /// 校验各版本的文件是否完好、能否使用
    Verify(VerifyArgs),
    /// 用留出的案例定出复核规则的界限，并说明有多少需人工
    Policy(PolicyArgs),
}

/// Arguments of `triage models list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// 输出 JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `triage models show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// 版本（目录名），或 production、previous、candidate
    version: String,
}

/// Arguments of `triage models promote`.
#[derive(Debug, Args)]
pub struct PromoteArgs {
    /// 版本（目录名）[默认: 候选版本]
    version: Option<String>,
    /// 用这些案例同时评估候选版本与现行版本；两者都不得用它们训练过
    #[arg(long, value_name = "CASES")]
    cases: PathBuf,
    /// 各类 F1 最多可低于现行版本多少
    #[arg(long, value_name = "SHARE", default_value_t = Margins::default().f1)]
    f1_margin: f64,
    /// 突发召回率最多可低多少
    #[arg(long, value_name = "SHARE", default_value_t = Margins::default().emergency_recall)]
    recall_margin: f64,
    /// 误指造谣率最多可高多少
    #[arg(long, value_name = "SHARE", default_value_t = Margins::default().false_accusation)]
    accusation_margin: f64,
    /// 误指造谣率的单侧 95% 上界不得超过多少，无论现行版本如何
    #[arg(long, value_name = "SHARE", default_value_t = Margins::default().max_false_accusation_upper)]
    max_accusation_upper: f64,
    /// 正当批评被判为造谣、或敏感级别偏高的比例最多可高多少
    #[arg(long, value_name = "SHARE", default_value_t = Margins::default().criticism)]
    criticism_margin: f64,
    /// 校准误差 ECE 最多可高多少
    #[arg(long, value_name = "SHARE", default_value_t = Margins::default().ece)]
    ece_margin: f64,
    /// 敏感度 kappa 最多可低多少
    #[arg(long, value_name = "KAPPA", default_value_t = 0.05)]
    level_margin: f64,
    /// 案例没有敏感级别，不检验这一项
    #[arg(long, conflicts_with = "level_margin")]
    without_levels: bool,
    /// 候选版本的标签与现行版本不同：无从比较，只看它自己是否达到要求
    #[arg(long)]
    other_labels: bool,
    /// 标签不同时，候选版本的宏平均 F1 至少多少
    #[arg(long, value_name = "SHARE", requires = "other_labels", default_value_t = Margins::default().min_macro_f1)]
    min_macro_f1: f64,
    #[command(flatten)]
    columns: Columns,
    /// 只检验，不上线
    #[arg(long)]
    dry_run: bool,
    /// 输出 JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `triage models rollback`.
#[derive(Debug, Args)]
pub struct RollbackArgs {}

/// Arguments of `triage models verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// 版本（目录名）[默认: 全部]
    version: Option<String>,
}

/// Arguments of `triage models policy`.
#[derive(Debug, Args)]
pub struct PolicyArgs {
    /// 版本（目录名）[默认: 现行版本]
    version: Option<String>,
    /// 留出的案例，未参与训练
    #[arg(long, value_name = "CASES")]
    cases: PathBuf,
    /// 正当诉求被误指为造谣的比例，以 95% 把握不超过多少
    #[arg(long, value_name = "SHARE", default_value_t = 0.01)]
    max_false_accusation: f64,
    /// 预测集含正确类型、以及直接分派者类型正确的比例，各以 95% 把握不低于多少
    #[arg(long, value_name = "SHARE", default_value_t = 0.95)]
    coverage: f64,
    #[command(flatten)]
    columns: Columns,
    /// 只计算，不写入
    #[arg(long)]
    dry_run: bool,
    /// 输出 JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// When the registry or a version cannot be used, or a gate stays closed.
pub fn run(command: ModelsCommand, config: &Config) -> anyhow::Result<()> {
    let registry = Registry::new(&config.models);
    match command {
        ModelsCommand::List(args) => list(&args, &registry),
        ModelsCommand::Show(args) => show(&args, &registry),
        ModelsCommand::Promote(args) => promote(&args, &registry, config),
        ModelsCommand::Rollback(_) => rollback(&registry),
        ModelsCommand::Verify(args) => verify(&args, &registry, config),
        ModelsCommand::Policy(args) => fit_policy(&args, &registry, config),
    }
}

/// Takes the registry's production for the model, when there is one and nobody named another.
///
/// # Errors
/// When the registry names a version that is not there or was changed: to serve another one unasked
/// would hide it.
pub fn use_production(config: &mut Config) -> anyhow::Result<()> {
    if config.is_model_named {
        return Ok(());
    }
    let production = Registry::new(&config.models).production().context(
        "the version in production; `triage models rollback` goes back to the one before",
    )?;
    if let Some(dir) = production {
        config.model = dir;
    }
    Ok(())
}

fn aliases_of(aliases: &Aliases, dir: &str) -> Vec<&'static str> {
    [
        ("production", &aliases.production),
        ("previous", &aliases.previous),
        ("candidate", &aliases.candidate),
    ]
    .into_iter()
    .filter(|it| it.1.as_ref().is_some_and(|it| it.dir == dir))
    .map(|it| it.0)
    .collect()
}

/// Macro-F1 of a version's own report, and which cases it is of: those of two versions need not be the same.
fn macro_f1(bundle: &Bundle) -> Option<(f64, &'static str, u64)> {
    let of = |part: &'static str| {
        let report = bundle.metrics.get(part)?;
        Some((report.pointer("/macro_f1/value")?.as_f64()?, part, report.get("n_cases")?.as_u64()?))
    };
    of("test").or_else(|| of("validation"))
}

fn list(args: &ListArgs, registry: &Registry) -> anyhow::Result<()> {
    let aliases = registry.aliases()?;
    let versions = registry.versions()?;
    let mut out = std::io::stdout().lock();
    if args.json {
        let rows: Vec<_> = versions
            .iter()
            .map(|it| match &it.bundle {
                Ok(bundle) => json!({
                    "dir": it.dir,
                    "aliases": aliases_of(&aliases, &it.dir),
                    "version": bundle.manifest.version,
                    "digest": bundle.digest,
                    "macro_f1": macro_f1(bundle).map(|(value, part, n)| json!({ "value": value, "on": part, "n": n })),
                }),
                Err(error) => json!({
                    "dir": it.dir,
                    "aliases": aliases_of(&aliases, &it.dir),
                    "error": error.to_string(),
                }),
            })
            .collect();
        writeln!(out, "{:#}", json!({ "generation": aliases.generation, "versions": rows }))?;
        return Ok(());
    }
    for it in &versions {
        let names = aliases_of(&aliases, &it.dir).join(" ");
        match &it.bundle {
            Ok(bundle) => {
                let f1 = macro_f1(bundle).map_or("—".into(), |(value, part, n)| {
                    format!("{value:.3}（{} {n} 条）", if part == "test" { "测试" } else { "验证" })
                });
                writeln!(
                    out,
                    "{}{}{}宏平均 F1 {}{names}",
                    pad(&it.dir, 24),
                    pad(&bundle.manifest.version, 12),
                    pad(bundle.digest.get(..19).unwrap_or_default(), 21),
                    pad(&f1, 24)
                )?;
            }
            Err(error) => writeln!(out, "{}不可用：{error} {names}", pad(&it.dir, 24))?,
        }
    }
    writeln!(
        out,
        "各版本的数字来自各自的案例，不可相互比较；比较请用 `triage models promote --dry-run`"
    )?;
    if aliases.production.is_none() {
        writeln!(out, "尚无上线记录，默认使用随程序附带的模型")?;
    }
    Ok(())
}

/// A version or what an alias names, checked; a bundle that was put in an alias's place is refused.
fn resolve(name: &str, aliases: &Aliases, registry: &Registry) -> anyhow::Result<(Entry, Bundle)> {
    let found = match name {
        "production" => &aliases.production,
        "previous" => &aliases.previous,
        "candidate" => &aliases.candidate,
        dir => return Ok(registry.check(dir)?),
    };
    let entry = found
        .clone()
        .with_context(|| format!("no_{name}: the registry names no {name} version; `triage models list` shows what there is"))?;
    let bundle = registry.check_entry(&entry)?;
    Ok((entry, bundle))
}

fn show(args: &ShowArgs, registry: &Registry) -> anyhow::Result<()> {
    let aliases = registry.aliases()?;
    let (entry, bundle) = resolve(&args.version, &aliases, registry)?;
    let log = std::fs::read_to_string(registry.dir().join(LOG)).unwrap_or_default();
    let history: Vec<serde_json::Value> = log
        .lines()
        .filter_map(|it| serde_json::from_str(it).ok())
        .filter(|it: &serde_json::Value| {
            ["from", "to"].iter().any(|side| it[side]["digest"] == entry.digest.as_str())
        })
        .map(|it| {
            json!({
                "at_unix_seconds": it["at_unix_seconds"], "action": it["action"],
                "from": it["from"], "to": it["to"],
            })
        })
        .collect();
    let shown = json!({
        "dir": entry.dir,
        "digest": entry.digest,
        "aliases": aliases_of(&aliases, &entry.dir),
        "bundle": bundle.manifest,
        "metrics": bundle.metrics,
        "history": history,
    });
    writeln!(std::io::stdout().lock(), "{shown:#}")?;
    Ok(())
}

fn promote(args: &PromoteArgs, registry: &Registry, config: &Config) -> anyhow::Result<()> {
    let name = args.version.as_deref().unwrap_or("candidate");
    let aliases = registry.aliases()?;
    let (entry, _) = resolve(name, &aliases, registry)?;
    let production_dir = registry.production()?.unwrap_or_else(|| config.shipped_model());
    let load = |dir: &Path| load_version(dir, config).with_context(|| dir.display().to_string());
    let candidate = load(&registry.path(&entry))?;
    let production = load(&production_dir)
        .context("a candidate is only promoted over a version it can be compared with")?;
    ensure!(
        production.identity().digest != entry.digest,
        "already_production: {} is in production; nothing to promote",
        entry.dir
    );
    let all = read_cases_with(&args.cases, candidate.taxonomy(), &args.columns.options())?;
    let cases_digest = file_digest(&all);
    let cases = fair(all)?;
    let (new, new_assessment) = assess(&candidate, &cases, &cases_digest)?;
    let margins = Margins {
        f1: args.f1_margin,
        emergency_recall: args.recall_margin,
        false_accusation: args.accusation_margin,
        max_false_accusation_upper: args.max_accusation_upper,
        criticism: args.criticism_margin,
        ece: args.ece_margin,
        level_kappa: (!args.without_levels).then_some(args.level_margin),
        min_macro_f1: args.min_macro_f1,
    };
    let has_same_types = production.type_labels() == candidate.type_labels();
    let (gates, migration) = if has_same_types {
        let (old, old_assessment) = assess(&production, &cases, &cases_digest)?;
        let pairs = cases.iter().zip(old.answers.iter().zip(&new.answers));
        let migration = Migration::new(
            pairs.map(|(case, (old, new))| (case.id.as_str(), old, new)),
            production.type_labels(),
        );
        (gates(&old_assessment, &new_assessment, &margins)?, Some(migration))
    } else {
        ensure!(args.other_labels, Incomparable::Types);
        (gates_alone(&new_assessment, &margins)?, None)
    };
    let closed: Vec<&Gate> = gates.iter().filter(|it| !it.passed).collect();
    let evidence = json!({
        "cases": { "n": cases.len(), "digest": new_assessment.cases_digest },
        "compared_with": production.identity().digest,
        "suite_digest": new_assessment.suite_digest,
        "margins": margins,
        "gates": gates,
        "migration": migration,
    });
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{evidence:#}")?;
    } else {
        write!(out, "{}", gates_table(&gates))?;
        write!(out, "{}", migration.as_ref().map_or_else(String::new, migration_table))?;
    }
    if !closed.is_empty() {
        let reasons: Vec<String> = closed.iter().map(|it| it.describe()).collect();
        bail!(
            "gate_closed: {} of {} gates stay closed, production is unchanged; {}",
            closed.len(),
            gates.len(),
            reasons.join("; ")
        );
    }
    if args.dry_run {
        eprintln!("全部通过；未上线（--dry-run）");
        return Ok(());
    }
    let before = inside(registry, &production_dir, &production.identity().digest);
    registry.promote(&entry, &aliases, before, &evidence)?;
    let has_policy = |dir: &Path| dir.join(sidecar::POLICY).exists();
    if has_policy(&production_dir) && !has_policy(&registry.path(&entry)) {
        eprintln!(
            "此前版本的复核规则（policy.toml）不适用于新版本，现用分类体系的默认规则；`triage models policy` 可重新拟合"
        );
    }
    eprintln!("{} 已上线；`triage models rollback` 可退回", entry.dir);
    Ok(())
}

/// The entry of a bundle that lies in the models directory; the shipped one may lie elsewhere.
fn inside(registry: &Registry, dir: &Path, digest: &str) -> Option<Entry> {
    let name = dir.file_name()?.to_str()?;
    let is_inside = registry.dir().join(name).canonicalize().ok()? == dir.canonicalize().ok()?;
    is_inside.then(|| Entry { dir: name.to_owned(), digest: digest.to_owned() })
}

fn assess(
    pipeline: &Pipeline,
    cases: &[LabelledCase],
    cases_digest: &str,
) -> anyhow::Result<(Evaluated, Assessment)> {
    let evaluated = evaluate(pipeline, cases)?;
    let assessment = Assessment {
        cases_digest: cases_digest.to_owned(),
        suite_digest: sha256(&Suites::embedded_bytes()),
        n_learned: n_learned(pipeline, cases, cases_digest),
        report: evaluated.report.clone(),
        protection: ask_suites(pipeline)?.protection,
    };
    Ok((evaluated, assessment))
}

/// How many of the cases the version has learned from; of versions that do not say what they learned, whether
/// it was this very file.
fn n_learned(pipeline: &Pipeline, cases: &[LabelledCase], cases_digest: &str) -> usize {
    let learned = pipeline.learned();
    match learned.is_empty() && pipeline.training_digest() == Some(cases_digest) {
        true => cases.len(),
        false => cases.iter().filter(|it| learned.knows(it.text.as_str())).count(),
    }
}

fn gates_table(gates: &[Gate]) -> String {
    let mut out = format!(
        "{}{}{}{}结果\n",
        pad("检验", 28),
        pad("现行", 10),
        pad("候选", 10),
        pad("界限", 10)
    );
    let show = |it: Option<f64>| pad(&it.map_or("—".into(), |it| format!("{it:.4}")), 10);
    for it in gates {
        let result = match it.missed_by {
            _ if it.passed => "通过".to_owned(),
            Some(gap) => format!("不通过，差 {gap:.4}"),
            None => "不通过，缺此数".to_owned(),
        };
        let figures = [it.production, it.candidate, it.limit].map(show).concat();
        out += &format!("{}{figures}{result}\n", pad(&it.name, 28));
    }
    out
}

fn migration_table(it: &Migration) -> String {
    let mut out = format!(
        "\n{} 条中 {} 条的类型改变；不再需人工 {} 条，新需人工 {} 条；敏感分平均变化 {:+.4}\n类型迁移（行：现行，列：候选）\n",
        it.n, it.n_flipped, it.review[0], it.review[1], it.mean_score_change
    );
    for (code, row) in it.types.iter().zip(&it.flips) {
        let counts: String = row.iter().map(|it| format!("{it:>6}")).collect();
        out += &format!("{}{counts}\n", pad(code, 18));
    }
    out += "变化最大的案例\n";
    for it in &it.most_changed {
        out += &format!(
            "{}{}{} → {}  概率移动 {:.2}  敏感分 {:+.2}\n",
            pad(&it.id, 24),
            pad(&format!("（{}）", it.label), 20),
            it.from,
            it.to,
            it.moved,
            it.score_change
        );
    }
    out
}

fn rollback(registry: &Registry) -> anyhow::Result<()> {
    match registry.rollback()? {
        Some(entry) => eprintln!("已退回 {}（{}）", entry.dir, entry.digest),
        None => eprintln!("已退回随程序附带的模型"),
    }
    Ok(())
}

fn verify(args: &VerifyArgs, registry: &Registry, config: &Config) -> anyhow::Result<()> {
    let names = match &args.version {
        Some(name) => vec![resolve(name, &registry.aliases()?, registry)?.0.dir],
        None => registry.versions()?.into_iter().map(|it| it.dir).collect(),
    };
    let mut n_broken = 0;
    let mut out = std::io::stdout().lock();
    for name in &names {
        match usable(registry, name, config) {
            Ok(digest) => writeln!(out, "{}完好 {digest}", pad(name, 24))?,
            Err(error) => {
                n_broken += 1;
                writeln!(out, "{}不可用：{error:#}", pad(name, 24))?;
            }
        }
    }
    let aliases = registry.aliases()?;
    for entry in [&aliases.production, &aliases.previous, &aliases.candidate].into_iter().flatten()
    {
        if let Err(error) = registry.check_entry(entry) {
            n_broken += 1;
            writeln!(out, "登记的 {} 不可用：{error}", entry.dir)?;
        }
    }
    ensure!(
        n_broken == 0,
        "broken_versions: {n_broken} problems, named above; copy the bundles again or remove them"
    );
    Ok(())
}

fn fit_policy(args: &PolicyArgs, registry: &Registry, config: &Config) -> anyhow::Result<()> {
    let dir = match &args.version {
        Some(name) => registry.path(&resolve(name, &registry.aliases()?, registry)?.0),
        None if config.is_model_named => config.model.clone(),
        None => registry.production()?.unwrap_or_else(|| config.shipped_model()),
    };
    // Without an earlier policy: thresholds are fitted to what the model says, not to what was made of it.
    let segmenter = segmenter(config.user_dict.as_deref())?;
    let mut pipeline = Pipeline::unruled(&dir, segmenter, precision(config))?;
    let all = read_cases_with(&args.cases, pipeline.taxonomy(), &args.columns.options())?;
    let cases_digest = file_digest(&all);
    let cases = fair(all)?;
    let n_learned = n_learned(&pipeline, &cases, &cases_digest);
    ensure!(
        n_learned == 0,
        "trained_on_cases: the version has learned from {n_learned} of these cases, so a promise would be empty; \
         give held-out ones"
    );
    let held_out = held_out(&pipeline, &cases)?;
    let found = conformal::fit(&held_out, args.max_false_accusation, args.coverage)?;
    let mut policy = PolicyFile {
        format: sidecar::FORMAT,
        bundle: pipeline.identity().digest.clone(),
        min_confidence: found.min_confidence,
        min_accusation: found.min_accusation,
        set_threshold: found.set_threshold,
        evidence: PolicyEvidence {
            cases_digest,
            cases: cases.len(),
            alpha: conformal::ALPHA,
            max_false_accusation: args.max_false_accusation,
            coverage: args.coverage,
            false_accusation_upper: found.false_accusation_upper,
            missed_upper: found.missed_upper,
            routed_error_upper: found.routed_error_upper,
            review_load: 0.0,
        },
    };
    let load = |pipeline: &Pipeline| -> anyhow::Result<f64> {
        let details = evaluate(pipeline, &cases)?.report.details;
        Ok(1.0 - details.context("no details")?.policy.coverage)
    };
    let before = load(&pipeline)?;
    pipeline.apply_policy(&policy);
    policy.evidence.review_load = load(&pipeline)?;
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{:#}", json!({ "policy": policy, "review_load_before": before }))?;
    } else {
        let percent = |it: f64| format!("{:.2}%", 100.0 * it);
        let evidence = &policy.evidence;
        writeln!(out, "案例 {} 条；上界均为单侧 95%", evidence.cases)?;
        if pipeline.type_labels().index_of(ACCUSED).is_some() {
            writeln!(
                out,
                "判为造谣诽谤的最低概率 {:.4}（误指率上界 {}）",
                policy.min_accusation,
                percent(evidence.false_accusation_upper)
            )?;
        }
        writeln!(
            out,
            "预测集的最低概率 {:.4}（漏掉正确类型的上界 {}）",
            policy.set_threshold,
            percent(evidence.missed_upper)
        )?;
        match evidence.routed_error_upper {
            Some(upper) => writeln!(
                out,
                "直接分派的最低把握 {:.4}（分派有误的上界 {}）",
                policy.min_confidence,
                percent(upper)
            )?,
            None => writeln!(out, "没有哪个把握能保证 {}，全部由人先看", percent(args.coverage))?,
        }
        writeln!(
            out,
            "预计需人工先看 {}（此前 {}）",
            percent(evidence.review_load),
            percent(before)
        )?;
    }
    if args.dry_run {
        eprintln!("未写入（--dry-run）");
    } else {
        policy.save(&dir)?;
        eprintln!("已写入 {}；正在运行的服务重启后生效", dir.join(sidecar::POLICY).display());
    }
    Ok(())
}

/// What the policy's thresholds rest on: the most probable types, whatever a policy makes of them.
fn held_out(pipeline: &Pipeline, cases: &[LabelledCase]) -> anyhow::Result<Vec<HeldOut>> {
    let types = pipeline.type_labels();
    let accused = types.index_of(ACCUSED);
    let evaluated = evaluate(pipeline, cases)?;
    Ok(evaluated
        .answers
        .iter()
        .map(|(it, detail)| HeldOut {
            label: it.label,
            top: it.predicted,
            confidence: it.confidence,
            second: second(&detail.probabilities),
            true_probability: detail.probabilities[it.label],
            is_protected: PROTECTED.contains(&types.code(it.label)),
            is_accused: Some(it.predicted) == accused,
            is_held: detail.is_held,
        })
        .collect())
}

fn second(probabilities: &[f32]) -> f32 {
    let mut sorted = probabilities.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    sorted.get(1).copied().unwrap_or(0.0)
}

/// Whole is not enough: the labels must be explained and a text must get an answer.
fn usable(registry: &Registry, name: &str, config: &Config) -> anyhow::Result<String> {
    let (entry, _) = registry.check(name)?;
    let pipeline = load_version(&registry.path(&entry), config)?;
    let prepared = pipeline.prepare(&CaseText::parse("路灯坏了")?)?;
    pipeline.predict(&[&prepared])?.pop().context("the model gave no result")?;
    Ok(entry.digest)
}
