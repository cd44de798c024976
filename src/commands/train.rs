//! `triage train`: labelled cases and a base to a bundle, with its metrics and its card.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Args;
use indicatif::ProgressBar;
use rayon::prelude::*;

use super::check::CasesForm;
use super::evaluate::{
    ask_suites, baseline, evaluate, fair, mistakes, page, read_cases_with, table, write_page,
};
use super::{load_pipeline, precision, progress_style};
use crate::cases::labels_of;
use crate::config::Config;
use crate::domain::case::LabelledCase;
use crate::domain::label::LabelSet;
use crate::domain::taxonomy::Taxonomy;
use crate::evaluation::report::Report;
use crate::model::bundle::{
    Bundle, CalibrationSettings, HeadSettings, Manifest, TextSettings, TrainingRecord, sha256,
};
use crate::model::heads::{HeadSizes, Heads};
use crate::model::{Base, bundle};
use crate::page::Page;
use crate::pipeline::sidecar;
use crate::pipeline::{Pipeline, TextPipeline, segmenter};
use crate::registry::{Entry, Registry};
use crate::text::Encoder;
use crate::training::loss::Target;
use crate::training::split::split;
use crate::training::trainer::{self, Event, Example, Settings};

/// Segmenter named in the bundle.
const SEGMENTER: &str = "jieba-rs 0.11, default dictionary, no HMM";

/// Arguments of `triage train`.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// 已标注的案例（.jsonl 或 .csv，可为 .xz）
    cases: PathBuf,
    #[command(flatten)]
    form: CasesForm,
    /// 写入的模型目录（必须尚不存在）
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// 起点：含 config.json、tokenizer.json 与（可选）model.safetensors 的目录；默认为当前模型
    #[arg(long, value_name = "DIR")]
    base: Option<PathBuf>,
    /// 训练后另行评估的案例，绝不参与训练
    #[arg(long, value_name = "CASES")]
    test: Option<PathBuf>,
    /// HTML 报告写到哪里 [默认: 模型目录名加 .report.html，与模型目录并列]
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// 模型版本号
    #[arg(long, default_value = "0.1.0")]
    version_name: String,
    /// 最多训练轮数
    #[arg(long, default_value_t = Settings::default().epochs)]
    epochs: usize,
    /// 编码器的最高学习率
    #[arg(long, default_value_t = Settings::default().learning_rate)]
    learning_rate: f32,
    /// 词向量的学习率与编码器之比
    #[arg(long, default_value_t = Settings::default().embedding_rate)]
    embedding_rate: f32,
    /// 训练时随机遮住的词元比例
    #[arg(long, default_value_t = Settings::default().token_dropout)]
    token_dropout: f32,
    /// 快速模式：编码器不动，只训练各分类头与词法部分
    #[arg(long)]
    frozen: bool,
    /// 验证集所占比例
    #[arg(long, default_value_t = 0.1)]
    validation_share: f64,
    /// 随机种子
    #[arg(long, default_value_t = Settings::default().seed)]
    seed: u64,
}

/// Runs the command.
///
/// # Errors
/// When cases or base cannot be used, or the bundle cannot be written.
pub fn run(args: TrainArgs, config: &Config) -> anyhow::Result<()> {
    // Refused now rather than after an hour of training.
    ensure!(
        !args.output.exists(),
        "{} exists; a version is never overwritten: choose another name",
        args.output.display()
    );
    let own_taxonomy = args.form.taxonomy_text()?;
    let taxonomy = match &own_taxonomy {
        Some(text) => Taxonomy::parse(text)?,
        None => Taxonomy::embedded(),
    };
    let cases = read_cases_with(&args.cases, &taxonomy, &args.form.options())?;
    let taxonomy = match args.form.options().any_label {
        true => of_labels(taxonomy, &cases)?,
        false => taxonomy,
    };
    let test = args
        .test
        .as_deref()
        .map(|it| fair(read_cases_with(it, &taxonomy, &args.form.options())?))
        .transpose()?;
    let base = Base::load(args.base.as_deref().unwrap_or(&config.model), args.seed)?;
    let text = TextSettings {
        chunk_tokens: base.config.max_position_embeddings,
        overlap_tokens: base.config.max_position_embeddings / 8,
        ngram_buckets: Settings::default().ngram_buckets,
        segmenter: SEGMENTER.into(),
    };
    let encoder = Encoder::new(base.tokenizer.clone(), text.chunk_tokens, text.overlap_tokens)?;
    let pipeline =
        TextPipeline::new(segmenter(config.user_dict.as_deref())?, encoder, text.ngram_buckets);
    let mut examples = cases
        .par_iter()
        .map(|it| example(it, &pipeline, &taxonomy))
        .collect::<anyhow::Result<Vec<_>>>()?;

    fill_unlabelled_heads(&mut examples, taxonomy.ground_codes().len());
    let texts: Vec<&str> = cases.iter().map(|it| it.text.as_str()).collect();
    let labels: Vec<usize> = examples.iter().map(|it| it.target.label).collect();
    let parts = split(&texts, &labels, args.validation_share, args.seed);
    ensure!(
        !parts.train.is_empty() && !parts.validation.is_empty(),
        "{} cases are too few to hold some out; label more",
        cases.len()
    );
    let pick = |part: &[usize]| part.iter().map(|&it| examples[it].clone()).collect::<Vec<_>>();
    let (train_part, validation_part) = (pick(&parts.train), pick(&parts.validation));

    let sizes = HeadSizes {
        n_types: taxonomy.type_codes().len(),
        n_levels: taxonomy.levels.len(),
        n_grounds: taxonomy.ground_codes().len(),
    };
    let mut start = base.weights;
    Heads::start(&mut start, base.config.hidden_size, sizes, args.seed)?;
    let settings = Settings {
        epochs: args.epochs,
        learning_rate: args.learning_rate,
        token_dropout: args.token_dropout,
        embedding_rate: args.embedding_rate,
        mask_token_id: base.tokenizer.token_to_id("[MASK]"),
        is_frozen: args.frozen,
        seed: args.seed,
        ..Settings::default()
    };
    let bar = ProgressBar::new((train_part.len() * settings.epochs) as u64)
        .with_style(progress_style("训练")?);
    let mut history = Vec::new();
    let mut mean_loss: Option<f32> = None;
    let trained = trainer::train(
        &start,
        &base.config,
        sizes,
        &train_part,
        &validation_part,
        &settings,
        |it| {
            match it {
                Event::Step { epoch, n_done, loss } => {
                    let smooth = mean_loss.map_or(loss, |it| 0.98 * it + 0.02 * loss);
                    mean_loss = Some(smooth);
                    bar.set_position(((epoch - 1) * train_part.len() + n_done) as u64);
                    bar.set_message(format!("第 {epoch} 轮 损失 {smooth:.4}"));
                }
                Event::Epoch { epoch, macro_f1, is_best } => {
                    let loss = mean_loss.unwrap_or_default();
                    let mark = if is_best { "（目前最好）" } else { "" };
                    // `println` stays silent when stderr is no terminal; a log wants the line too.
                    let line =
                        format!("第 {epoch} 轮：损失 {loss:.4}，验证宏平均 F1 {macro_f1:.4}{mark}");
                    bar.suspend(|| eprintln!("{line}"));
                    history.push(serde_json::json!({
                        "epoch": epoch, "loss": loss, "validation_macro_f1": macro_f1,
                    }));
                }
            }
        },
    )?;
    bar.finish_and_clear();

    let name = args.output.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let calibration = trained.calibration;
    let mut bundle = Bundle {
        manifest: Manifest {
            format: bundle::FORMAT,
            name,
            version: args.version_name,
            text,
            heads: HeadSettings {
                levels: sizes.n_levels,
                grounds: taxonomy.ground_codes().codes().map(str::to_owned).collect(),
            },
            calibration: CalibrationSettings {
                kind: calibration.kind,
                type_bias: calibration.type_bias,
                level: calibration.level,
                grounds: calibration.grounds,
                set_threshold: calibration.set_threshold,
                coverage: settings.coverage,
            },
            training: TrainingRecord {
                data_digest: file_digest(&cases),
                split_digest: split_digest(&cases, &parts.validation),
                train_cases: parts.train.len(),
                validation_cases: parts.validation.len(),
                seed: args.seed,
                epoch: trained.epoch,
                base: base.origin,
                code_version: env!("CARGO_PKG_VERSION").into(),
            },
            digests: Default::default(),
        },
        config: base.config,
        types: taxonomy.type_codes().clone(),
        tokenizer: base.tokenizer,
        weights: trained.weights,
        metrics: serde_json::Value::Null,
        digest: String::new(),
    };
    let pipeline = Pipeline::from_bundle(
        bundle.clone(),
        segmenter(config.user_dict.as_deref())?,
        taxonomy.clone(),
        precision(config),
    )?;
    let validation: Vec<LabelledCase> =
        parts.validation.iter().map(|&it| cases[it].clone()).collect();
    let on_validation = evaluate(&pipeline, &validation)?;
    let on_test = test.as_deref().map(|it| evaluate(&pipeline, it)).transpose()?;
    let suites = ask_suites(&pipeline)?;
    let test_report = on_test.as_ref().map(|it| &it.report);
    if let Some(text) = &own_taxonomy {
        bundle.manifest.digests.insert(sidecar::TAXONOMY.into(), sha256(text.as_bytes()));
    }
    bundle.metrics = serde_json::json!({
        "validation": on_validation.report, "test": test_report, "suites": suites, "history": history,
    });
    let card = card(&bundle.manifest, &on_validation.report, test_report, &taxonomy);
    let digest = bundle.save(&args.output, &card)?;
    if let Some(text) = &own_taxonomy {
        // The manifest names it already: without it the bundle is refused, not served with other labels.
        let path = args.output.join(sidecar::TAXONOMY);
        std::fs::write(&path, text).with_context(|| path.display().to_string())?;
    }
    name_candidate(&args.output, &digest, config)?;
    for (title, report) in [("验证集", Some(&on_validation.report)), ("测试集", test_report)]
    {
        if let Some(report) = report {
            eprintln!("\n{title}\n{}", table(report, None, &taxonomy));
        }
    }
    let train_cases: Vec<LabelledCase> = parts.train.iter().map(|&it| cases[it].clone()).collect();
    let (title, evaluated, on_cases) = match (&on_test, &test) {
        (Some(evaluated), Some(cases)) => ("训练报告：测试集", evaluated, cases.as_slice()),
        _ => (
            "训练报告：验证集（曾用于选轮次与校准，数字偏好）",
            &on_validation,
            validation.as_slice(),
        ),
    };
    let lexical = baseline(&train_cases, on_cases, &taxonomy, config)?;
    let before = compared(config, on_cases)?;
    let mut others: Vec<(&str, &Report)> = Vec::new();
    others.extend(before.iter().map(|it| ("现行版本", it)));
    others.push(("词法基线", &lexical));
    let mistakes = mistakes(&pipeline, on_cases, &evaluated.answers);
    let mut page = Page {
        title: title.into(),
        others,
        history: history
            .iter()
            .map(|it: &serde_json::Value| {
                let number = |name: &str| it[name].as_f64().unwrap_or_default() as f32;
                (number("loss"), number("validation_macro_f1"))
            })
            .collect(),
        ..page(&pipeline, &evaluated.report, &suites, mistakes)
    };
    // The pipeline was made before the bundle had its digest.
    page.model[2] = &digest;
    let html = args.html.unwrap_or_else(|| args.output.with_added_extension("report.html"));
    write_page(&html, &page)?;
    eprintln!("报告：{}", html.display());
    eprintln!("已写入 {}（{digest}）", args.output.display());
    Ok(())
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

/// The figures of the version served until now on the same cases; none when it has other types or cannot
/// be used. It may have been trained on them: then its figures flatter.
fn compared(config: &Config, cases: &[LabelledCase]) -> anyhow::Result<Option<Report>> {
    let served = match load_pipeline(config) {
        Ok(served) => served,
        Err(error) => {
            // The new version is whole all the same.
            eprintln!("未与现行版本比较：{error}");
            return Ok(None);
        }
    };
    let knows = |it: &LabelledCase| served.type_labels().index_of(&it.label).is_some();
    if !cases.iter().all(knows) {
        return Ok(None);
    }
    Ok(Some(evaluate(&served, cases)?.report))
}

fn example(
    case: &LabelledCase,
    text: &TextPipeline,
    taxonomy: &Taxonomy,
) -> anyhow::Result<Example> {
    let (types, grounds) = (taxonomy.type_codes(), taxonomy.ground_codes());
    let name = || format!("case {}", case.id.as_str());
    let prepared = text.prepare(&case.text).with_context(name)?;
    let target = Target {
        label: types.index_of(&case.label).with_context(name)?,
        alt: case.alt.as_deref().and_then(|it| types.index_of(it)),
        level: case.level.map(usize::from),
        grounds: case
            .grounds
            .as_ref()
            .map(|its| grounds.codes().map(|code| its.iter().any(|it| it == code)).collect()),
    };
    Ok(Example { chunks: prepared.chunks, ngrams: prepared.ngrams, target })
}

/// A version written into the models directory waits there for promotion.
fn name_candidate(dir: &Path, digest: &str, config: &Config) -> anyhow::Result<()> {
    let same = |a: &Path, b: &Path| match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    };
    let Some(name) =
        dir.file_name().filter(|_| dir.parent().is_some_and(|it| same(it, &config.models)))
    else {
        return Ok(());
    };
    let entry = Entry { dir: name.to_string_lossy().into_owned(), digest: digest.to_owned() };
    Registry::new(&config.models).set_candidate(entry)?;
    eprintln!("已登记为候选版本；`triage models promote --cases CASES` 检验并上线");
    Ok(())
}

/// A head that no case teaches would stay random and the trainer refuses it: it learns to say "routine".
fn fill_unlabelled_heads(examples: &mut [Example], n_grounds: usize) {
    if examples.iter().all(|it| it.target.level.is_none()) {
        eprintln!("案例都没有敏感级别：模型一律给 0 级");
        examples.iter_mut().for_each(|it| it.target.level = Some(0));
    }
    if examples.iter().all(|it| it.target.grounds.is_none()) {
        examples.iter_mut().for_each(|it| it.target.grounds = Some(vec![false; n_grounds]));
    }
}

/// Digest of what the cases say, whatever the file looks like.
pub(super) fn file_digest(cases: &[LabelledCase]) -> String {
    let lines: Vec<String> = cases
        .iter()
        .map(|it| {
            serde_json::json!([
                it.id.as_str(),
                it.text.as_str(),
                it.label,
                it.alt,
                it.level,
                it.grounds
            ])
            .to_string()
        })
        .collect();
    sha256(lines.join("\n").as_bytes())
}

/// Digest of which cases were held out: models are compared on the same ones only.
fn split_digest(cases: &[LabelledCase], validation: &[usize]) -> String {
    let ids: Vec<&str> = validation.iter().map(|&it| cases[it].id.as_str()).collect();
    sha256(ids.join("\n").as_bytes())
}

/// The model card.
fn card(
    manifest: &Manifest,
    validation: &Report,
    test: Option<&Report>,
    taxonomy: &Taxonomy,
) -> String {
    let training = &manifest.training;
    let calibration = &manifest.calibration;
    let mixes = [calibration.kind, calibration.level, calibration.grounds];
    let mut out = format!(
        "# {} {}\n\nWritten by `triage train`; change the training, not this file.\n\n\
         Labels a Chinese public-opinion item with one of {} types, a sensitivity level and its grounds. \
         A result is a proposal, a person decides. `disputed_claim` means \"needs a fact check\", never \
         \"is false\". The model sees no author and no personal data: these are refused or masked before it.\n\n\
         Not for: acting on a text or a person without a person's decision; languages other than Chinese.\n\n\
         ## Training\n\n\
         | what | value |\n| --- | --- |\n\
         | cases trained on / held out | {} / {} |\n| epoch kept | {} |\n| seed | {} |\n| base | {} |\n\
         | data | `{}` |\n| split | `{}` |\n| code | opinion-triage {} |\n| coverage asked of prediction sets | {} |\n\n\
         Mix of the halves (encoder temperature, weight of the n-grams): type {:.3}, {:.3}; level {:.3}, {:.3}; \
         grounds {:.3}, {:.3}. A type is in the prediction set from {:.4} on.\n",
        manifest.name,
        manifest.version,
        taxonomy.types.len(),
        training.train_cases,
        training.validation_cases,
        training.epoch,
        training.seed,
        training.base,
        training.data_digest,
        training.split_digest,
        training.code_version,
        manifest.calibration.coverage,
        mixes[0].temperature,
        mixes[0].lexical_weight,
        mixes[1].temperature,
        mixes[1].lexical_weight,
        mixes[2].temperature,
        mixes[2].lexical_weight,
        manifest.calibration.set_threshold,
    );
    out += "\n## Quality\n\nThe held-out cases chose the epoch and fitted the calibration, so their figures flatter.\n";
    for (title, report) in [("Held-out cases", Some(validation)), ("Test cases", test)] {
        if let Some(report) = report {
            out += &format!("\n### {title}\n\n```text\n{}```\n", table(report, None, taxonomy));
        }
    }
    out
}
