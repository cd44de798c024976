//! `triage select`: which posts are worth labelling next.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Args;
use indicatif::ProgressBar;
use rayon::prelude::*;
use serde_json::{Map, Value, json};

use super::check::CasesForm;
use super::{load_pipeline, progress_style};
use crate::cases;
use crate::config::Config;
use crate::domain::author::is_author_field;
use crate::domain::case::CaseText;
use crate::domain::prediction::Prediction;
use crate::pipeline::{Pipeline, Prepared};
use crate::rows::{self, Format, RawRow, Rows};
use crate::selection::{Candidate, N_FEATURES, Reason, Shares, features, select};

/// Rows prepared and predicted at once.
const BLOCK: usize = 256;

/// Arguments of `triage select`.
#[derive(Debug, Args)]
pub struct SelectArgs {
    /// 未标注的文本（.jsonl 或 .csv，可为 .xz）
    posts: PathBuf,
    /// 选出多少条
    #[arg(short, default_value_t = 200)]
    n: usize,
    /// 写到哪里（JSONL）；不给出则写到标准输出
    #[arg(short, long)]
    output: Option<PathBuf>,
    /// 随机抽取的比例；只有这一部分可用来衡量模型
    #[arg(long, default_value_t = 0.25)]
    random_share: f64,
    /// 已标注的案例：不再选与它们雷同的
    #[arg(long, value_name = "CASES")]
    labelled: Option<PathBuf>,
    /// 附上模型的判断（可能影响标注者，默认不附）
    #[arg(long)]
    suggest: bool,
    /// 文本所在的列
    #[arg(long, default_value = "text")]
    text_column: String,
    /// 标识所在的列；没有标识的行以行号为名
    #[arg(long, default_value = "id")]
    id_column: String,
    /// 随机种子
    #[arg(long, default_value_t = 42)]
    seed: u64,
}

/// Runs the command. The file is read twice, so that only the chosen texts are ever kept in memory.
///
/// # Errors
/// When a file cannot be read or written, or the model fails; a row that cannot be scored is left out and
/// counted.
pub fn run(args: SelectArgs, config: &Config) -> anyhow::Result<()> {
    ensure!(
        (0.0..=1.0).contains(&args.random_share),
        "random_share: {} must lie between 0 and 1",
        args.random_share
    );
    ensure!(
        args.posts != Path::new("-"),
        "posts_from_stdin: the posts are read twice; name a file instead of `-`"
    );
    if let Some(path) = &args.output {
        ensure!(!path.exists(), "output_exists: {} exists; choose another name", path.display());
    }
    let format = rows::format_of(&args.posts).with_context(|| {
        format!("{}: the name must end in .jsonl or .csv (or .xz)", args.posts.display())
    })?;
    let pipeline = load_pipeline(config)?;
    let (known, known_texts) = match &args.labelled {
        Some(path) => known(path, &pipeline)?,
        None => Default::default(),
    };
    let scored = score(&args, format, &pipeline, &known_texts)?;
    let candidates: Vec<Candidate> = scored.iter().map(|it| it.candidate.clone()).collect();
    let chosen = select(&candidates, &known, Shares::of(args.n, args.random_share), args.seed);
    write(&args, format, &pipeline, &scored, &chosen)?;
    let count = |reason| chosen.iter().filter(|it| it.1 == reason).count();
    eprintln!(
        "从 {} 条中选出 {} 条：随机 {}，不确定 {}，多样 {}",
        scored.len(),
        chosen.len(),
        count(Reason::Random),
        count(Reason::Uncertain),
        count(Reason::Diverse)
    );
    eprintln!(
        "填好 label 列（标准见 datasets/GUIDE.md）；只有 selected 为 random 的可用于衡量模型"
    );
    Ok(())
}

/// A row that could be scored.
struct Scored {
    /// Number of the row.
    row: u64,
    candidate: Candidate,
    /// Column of the most probable type, and its probability.
    top: (usize, f32),
}

type Known = (Vec<[f32; N_FEATURES]>, HashSet<String>);

/// Directions and texts of the labelled cases; any label will do, it is not used.
fn known(path: &Path, pipeline: &Pipeline) -> anyhow::Result<Known> {
    let options = cases::Options { any_label: true, ..CasesForm::default().options() };
    let found = cases::read_with(path, pipeline.taxonomy(), &options)
        .with_context(|| path.display().to_string())?;
    let directions = found
        .cases
        .par_iter()
        .filter_map(|it| pipeline.prepare(&it.text).ok())
        .map(|it| direction(&it))
        .collect();
    Ok((directions, found.cases.iter().map(|it| it.text.as_str().to_owned()).collect()))
}

fn direction(prepared: &Prepared) -> [f32; N_FEATURES] {
    features(prepared.ngrams.iter().map(|&(ngram, weight)| (ngram, weight)))
}

fn score(
    args: &SelectArgs,
    format: Format,
    pipeline: &Pipeline,
    known: &HashSet<String>,
) -> anyhow::Result<Vec<Scored>> {
    let fail = || args.posts.display().to_string();
    let mut rows = Rows::new(rows::open(&args.posts)?, format).with_context(fail)?;
    let bar = ProgressBar::new_spinner().with_style(progress_style("评分")?);
    let (mut scored, mut n_left_out, mut n_rows) = (Vec::new(), 0_u64, 0_u64);
    // Reposts of one text are one text.
    let mut seen: HashSet<String> = known.clone();
    loop {
        let block = next_block(&mut rows).with_context(fail)?;
        if block.is_empty() {
            break;
        }
        n_rows += block.len() as u64;
        let texts: Vec<Option<CaseText>> =
            block.par_iter().map(|it| text_of(it, &args.text_column)).collect();
        let fresh: Vec<(u64, CaseText)> = block
            .iter()
            .zip(texts)
            .filter_map(|(row, text)| {
                let Some(text) = text else {
                    n_left_out += 1;
                    return None;
                };
                seen.insert(text.as_str().to_owned()).then_some((row.row, text))
            })
            .collect();
        let ready: Vec<(u64, Prepared)> = fresh
            .par_iter()
            .filter_map(|(row, text)| Some((*row, pipeline.prepare(text).ok()?)))
            .collect();
        let predictions = pipeline.predict(&ready.iter().map(|it| &it.1).collect::<Vec<_>>())?;
        for ((row, prepared), prediction) in ready.iter().zip(&predictions) {
            let candidate = Candidate { margin: margin(prediction), features: direction(prepared) };
            let top = (prediction.type_idx(), prediction.confidence().get());
            scored.push(Scored { row: *row, candidate, top });
        }
        bar.set_position(n_rows);
    }
    bar.finish_and_clear();
    if n_left_out > 0 {
        eprintln!("{n_left_out} 行没有可用的文本，或含有作者字段，未参与选择");
    }
    Ok(scored)
}

fn next_block(rows: &mut Rows<impl Read>) -> std::io::Result<Vec<RawRow>> {
    rows.by_ref().take(BLOCK).collect()
}

/// The row's text; none when there is none, or when the row tells who wrote it.
fn text_of(row: &RawRow, column: &str) -> Option<CaseText> {
    let fields = row.fields().ok()?;
    if fields.keys().any(|it| is_author_field(it)) {
        return None;
    }
    CaseText::parse(fields.get(column)?.as_str()?).ok()
}

fn margin(prediction: &Prediction) -> f32 {
    let mut probabilities: Vec<f32> =
        prediction.type_probabilities.iter().map(|it| it.get()).collect();
    probabilities.sort_by(|a, b| b.total_cmp(a));
    probabilities[0] - probabilities.get(1).copied().unwrap_or(0.0)
}

fn write(
    args: &SelectArgs,
    format: Format,
    pipeline: &Pipeline,
    scored: &[Scored],
    chosen: &[(usize, Reason)],
) -> anyhow::Result<()> {
    let mut out: Box<dyn Write> = match &args.output {
        Some(path) => Box::new(BufWriter::new(
            File::create_new(path).with_context(|| path.display().to_string())?,
        )),
        None => Box::new(std::io::stdout().lock()),
    };
    let mut wanted = chosen.iter().map(|&(idx, reason)| (&scored[idx], reason)).peekable();
    for row in Rows::new(rows::open(&args.posts)?, format)? {
        let row = row?;
        // Both go by ascending rows.
        let Some((it, reason)) = wanted.next_if(|it| it.0.row == row.row) else { continue };
        let text = text_of(&row, &args.text_column).context(
            "posts_changed: a chosen row is gone; the file must not change while it is read",
        )?;
        let fields = row.fields().unwrap_or_default();
        let id = match fields.get(&args.id_column) {
            Some(Value::String(id)) if !id.trim().is_empty() => id.clone(),
            Some(Value::Number(id)) => id.to_string(),
            _ => format!("row-{}", row.row),
        };
        let mut line: Map<String, Value> = Map::new();
        line.insert("id".into(), id.into());
        line.insert("text".into(), masked(&text, pipeline)?.into());
        line.insert("label".into(), Value::Null);
        line.insert("selected".into(), reason.code().into());
        if args.suggest {
            let (type_idx, probability) = it.top;
            let code = pipeline.type_labels().code(type_idx);
            line.insert("note".into(), json!(format!("model: {code} {probability:.2}")));
        }
        serde_json::to_writer(&mut out, &line)?;
        out.write_all(b"\n")?;
    }
    out.flush()?;
    ensure!(wanted.next().is_none(), "posts_changed: the file became shorter while it was read");
    Ok(())
}

/// The text as it was, personal data masked: whoever labels it need not know whose it is.
fn masked(text: &CaseText, pipeline: &Pipeline) -> anyhow::Result<String> {
    let redactions = pipeline.prepare(text)?.report.redactions;
    let mut out = String::new();
    let mut redactions = redactions.iter().peekable();
    for (at, character) in text.as_str().chars().enumerate() {
        match redactions.peek() {
            Some(it) if at >= it.span.begin && at < it.span.end => {
                if at == it.span.begin {
                    out += it.kind.placeholder();
                }
                if at + 1 == it.span.end {
                    redactions.next();
                }
            }
            _ => out.push(character),
        }
    }
    Ok(out)
}
