//! `triage classify`: one text, from the command line or standard input.

use std::io::{Read, Write};

use anyhow::Context;
use clap::Args;

use super::load_pipeline;
use crate::config::Config;
use crate::domain::case::{CaseText, MAX_TEXT_CHARS};
use crate::evidence::{self, explain};
use crate::pipeline::{Pipeline, Probe};
use crate::reply::{ClassifiedItem, Evidence, reply};

/// Arguments of `triage classify`.
#[derive(Debug, Args)]
pub struct ClassifyArgs {
    /// 要分类的文本；不给出则读标准输入
    text: Option<String>,
    /// 输出 JSON（与 HTTP 接口同形）
    #[arg(long)]
    json: bool,
    /// JSON 中附带未校准的分数
    #[arg(long, requires = "json")]
    logits: bool,
}

/// Runs the command.
///
/// # Errors
/// When the model cannot be loaded, or the text cannot be classified.
pub fn run(args: ClassifyArgs, config: &Config) -> anyhow::Result<()> {
    let text = match args.text {
        Some(text) => text,
        None => {
            let mut bytes = Vec::new();
            // Four bytes a character at most; one more tells that there is more.
            let most = 4 * MAX_TEXT_CHARS as u64 + 1;
            std::io::stdin().lock().take(most).read_to_end(&mut bytes)?;
            String::from_utf8(bytes).ok().context("standard input is not UTF-8 text")?
        }
    };
    let text = CaseText::parse(text)?;
    let pipeline = load_pipeline(config)?;
    let prepared = pipeline.prepare(&text)?;
    let prediction = pipeline.predict(&[&prepared])?.pop().context("the model gave no result")?;
    let mut item = reply(&pipeline, "text", &prepared.report, &prediction, args.logits);
    let probe = pipeline.probe(&text)?;
    let type_idx = pipeline.propose(&prediction);
    let whole = prediction.type_probabilities[type_idx].get();
    let found = evidence(&pipeline, &probe, type_idx, whole)?;
    item.evidence = Some(Evidence::new(&found, &probe));
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&item)?)?;
    } else {
        write!(out, "{}", for_people(&item, &pipeline))?;
    }
    Ok(())
}

/// The words that carried the type in column `type_idx`, whose probability is `whole`.
fn evidence(
    pipeline: &Pipeline,
    probe: &Probe,
    type_idx: usize,
    whole: f32,
) -> anyhow::Result<evidence::Evidence> {
    let losses = |sets: &[Vec<usize>]| -> anyhow::Result<Vec<f32>> {
        let rows: Vec<_> = sets.iter().map(|it| pipeline.without(probe, it)).collect();
        let predictions = pipeline.predict(&rows.iter().collect::<Vec<_>>())?;
        Ok(predictions.iter().map(|it| whole - it.type_probabilities[type_idx].get()).collect())
    };
    let singles = match evidence::singles(probe.n_words()) {
        Ok(singles) => singles,
        Err(reason) => return Ok(evidence::Evidence::Withheld(reason)),
    };
    let effects = losses(&singles)?;
    Ok(explain(&effects, &losses(&evidence::tests(&effects))?))
}

fn for_people(item: &ClassifiedItem<'_>, pipeline: &Pipeline) -> String {
    use std::fmt::Write;
    let mut out = String::new();
    let taxonomy = pipeline.taxonomy();
    let zh = |code: &str| {
        let grounds = taxonomy.grounds.iter().find(|it| it.code == code).map(|it| it.zh.clone());
        grounds.or_else(|| taxonomy.incident_type(code).map(|it| it.zh.clone()))
    };
    let name = |code: &str| zh(code).unwrap_or_else(|| code.to_owned());
    let decision = match item.decision {
        "route" => "可直接分派",
        "review" => "须人工先看",
        _ => "模型不作判断，须人工看",
    };
    let top = &item.incident_type;
    // Writing to a string cannot fail.
    let _ = writeln!(out, "类型    {}（{}，概率 {:.2}）", top.zh, top.code, top.probability);
    let others: Vec<String> = item.prediction_set.iter().map(|it| name(it)).collect();
    let _ = writeln!(out, "可能    {}", others.join("、"));
    if let Some(evidence) = item.evidence.as_ref().filter(|it| !it.words.is_empty()) {
        let words: Vec<String> =
            evidence.words.iter().map(|it| format!("{}（{:.2}）", it.text, it.effect)).collect();
        let _ = writeln!(out, "依据词  {}", words.join("、"));
    }
    let sensitivity = &item.sensitivity;
    let grounds: Vec<String> = sensitivity.grounds.iter().map(|it| name(it.code)).collect();
    let grounds = if grounds.is_empty() { "无".into() } else { grounds.join("、") };
    let _ = writeln!(
        out,
        "敏感度  {} 级 {}（{:.2}），依据：{grounds}",
        sensitivity.level, sensitivity.zh, sensitivity.score
    );
    let _ = writeln!(out, "建议    {decision} {}", item.review.reasons.join(" "));
    let _ = writeln!(out, "原则    {}", item.handling.principle);
    for (idx, step) in item.handling.steps.iter().enumerate() {
        let _ = writeln!(out, "  {}. {step}", idx + 1);
    }
    let _ = writeln!(out, "以上为机器建议，由人决定。");
    out
}
