//! `triage train`: labelled cases and a base to a bundle, with its metrics and its card.

mod card;
mod watch;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};
use indicatif::ProgressBar;
use rayon::prelude::*;

use self::card::card;
use self::watch::{Checkpoint, Console, TaskRecord, stop_flag};
use super::check::CasesForm;
use super::evaluate::{
    Evaluated, Gain, ask_suites, baseline, evaluate, fair, mistakes, page, read_cases_with, table,
    write_page,
};
use super::{load_pipeline, precision, progress_style};
use crate::cases::MIN_CASES_PER_LABEL;
use crate::config::Config;
use crate::domain::case::LabelledCase;
use crate::domain::label::LabelSet;
use crate::domain::taxonomy::Taxonomy;
use crate::evaluation::report::{Outcome, Report};
use crate::model::bundle::{
    Bundle, CalibrationSettings, HeadSettings, Manifest, TextSettings, TrainingRecord, sha256,
};
use crate::model::calibration::Calibration;
use crate::model::heads::{HeadSizes, Heads};
use crate::model::lexical::Lexical;
use crate::model::{Base, Learned, bundle};
use crate::page::Page;
use crate::pipeline::sidecar;
use crate::pipeline::{Pipeline, TextPipeline, segmenter};
use crate::registry::{Entry, Registry};
use crate::text::Encoder;
use crate::training::loss::Target;
use crate::training::split::{Split, near_duplicate_groups, split, split_by_time};
use crate::training::trainer::{self, Example, Prior, Settings, Task};

/// Exit code of a training that was stopped early; its candidate is written all the same.
const STOPPED_EARLY: u8 = 3;
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
    /// 分类头与词法部分从头学起，不接着起点模型的学（标签的含义变了时用）
    #[arg(long)]
    fresh: bool,
    /// 快速模式：编码器不动，只训练各分类头与词法部分
    #[arg(long)]
    frozen: bool,
    /// 每轮之后（并每隔若干分钟）把训练状态写到这个目录；中断后同样的命令从那里继续，结果不变
    #[arg(long, value_name = "DIR")]
    checkpoint: Option<PathBuf>,
    /// 一轮之内每隔多少分钟写一次训练状态
    #[arg(long, value_name = "MINUTES", default_value_t = 10, requires = "checkpoint")]
    checkpoint_minutes: u64,
    /// 验证集所占比例
    #[arg(long, default_value_t = 0.1)]
    validation_share: f64,
    /// 怎样留出验证集
    #[arg(long, value_enum, default_value_t = SplitBy::Auto)]
    split: SplitBy,
    /// 随机种子
    #[arg(long, default_value_t = Settings::default().seed)]
    seed: u64,
}

/// How cases are held out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SplitBy {
    /// 每条案例都有日期（date 列）时按时间，否则随机
    Auto,
    /// 最新的一部分
    Time,
    /// 每类随机抽取
    Random,
}

/// Runs the command; its exit code is 3 when ctrl-C ended the training early.
///
/// # Errors
/// When cases or base cannot be used, the checkpoint is of another training, or the bundle cannot be
/// written.
pub fn run(args: TrainArgs, config: &Config) -> anyhow::Result<ExitCode> {
    // Refused now rather than after an hour of training.
    ensure!(
        !args.output.exists(),
        "{} exists; a version is never overwritten: choose another name",
        args.output.display()
    );
    let own_taxonomy = args.form.taxonomy_text()?;
    let (cases, taxonomy) = args.form.read(&args.cases)?;
    enough_of_each(&cases, &taxonomy)?;
    let test = args
        .test
        .as_deref()
        .map(|it| fair(read_cases_with(it, &taxonomy, &args.form.options())?))
        .transpose()?;
    if let Some(test) = &test {
        // Refused now rather than after an hour of training.
        let unknown = test.iter().find(|it| taxonomy.type_codes().index_of(&it.label).is_none());
        if let Some(it) = unknown {
            bail!(
                "unknown_label: test case {} has label `{}`, which no training case has; label some, or take \
                 it out of the test file",
                it.id.as_str(),
                it.label
            );
        }
    }
    let test_digest = test.as_deref().map(file_digest);
    let base_dir = args.base.as_deref().unwrap_or(&config.model);
    let mut base = Base::load(base_dir, args.seed)?;
    let text = TextSettings {
        chunk_tokens: base.config.max_position_embeddings,
        overlap_tokens: base.config.max_position_embeddings / 8,
        ngram_buckets: Settings::default().ngram_buckets,
        segmenter: SEGMENTER.into(),
    };
    let encoder = Encoder::new(base.tokenizer.clone(), text.chunk_tokens, text.overlap_tokens)?;
    let pipeline =
        TextPipeline::new(segmenter(config.user_dict.as_deref())?, encoder, text.ngram_buckets);
    let sizes = HeadSizes {
        n_types: taxonomy.type_codes().len(),
        n_levels: taxonomy.levels.len(),
        n_grounds: taxonomy.ground_codes().len(),
    };
    let heads = HeadSettings {
        levels: sizes.n_levels,
        grounds: taxonomy.ground_codes().codes().map(str::to_owned).collect(),
    };
    let mut learned = Learned::of(cases.iter().map(|it| it.text.as_str()));
    if let Some(bundle) = &base.bundle {
        learned = learned.and(&bundle.learned);
    }
    let mut start = base.weights.clone();
    let earlier = base.same_questions(taxonomy.type_codes(), &heads, &text);
    let prior = match earlier.filter(|_| !args.fresh) {
        Some(bundle) => {
            eprintln!("接着 {} 学（--fresh 则从头学起）", bundle.manifest.name);
            Heads::copy(&mut start, &bundle.weights, base.config.hidden_size, sizes)?;
            Some(Prior {
                lexical: Lexical::load(&bundle.weights, text.ngram_buckets, sizes)?,
                calibration: Calibration::from(&bundle.manifest.calibration),
            })
        }
        None => {
            Heads::start(&mut start, base.config.hidden_size, sizes, args.seed)?;
            None
        }
    };
    if prior.is_some() {
        base.origin += ", its heads and n-grams too";
    }
    let mut examples = cases
        .par_iter()
        .map(|it| example(it, &pipeline, &taxonomy))
        .collect::<anyhow::Result<Vec<_>>>()?;
    fill_unlabelled_heads(&mut examples, taxonomy.ground_codes().len(), prior.is_some());
    let texts: Vec<&str> = cases.iter().map(|it| it.text.as_str()).collect();
    let labels: Vec<usize> = examples.iter().map(|it| it.target.label).collect();
    let (parts, split_kind) = split_cases(&cases, &texts, &labels, base.bundle.as_ref(), &args)?;
    eprintln!("留出 {} 条验证（{split_kind}）", parts.validation.len());
    ensure!(
        !parts.train.is_empty() && !parts.validation.is_empty(),
        "{} cases are too few to hold some out; label more",
        cases.len()
    );
    let pick = |part: &[usize]| part.iter().map(|&it| examples[it].clone()).collect::<Vec<_>>();
    let (train_part, validation_part) = (pick(&parts.train), pick(&parts.validation));

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
    let data_digest = file_digest(&cases);
    let split_digest = split_digest(&cases, &parts.validation);
    let checkpoint = args.checkpoint.as_deref().map(|dir| {
        let task = TaskRecord {
            data: data_digest.clone(),
            split: split_digest.clone(),
            labels: labels_digest(&taxonomy),
            base: base.origin.clone(),
            dictionary: dictionary_digest(config)?,
            settings: format!("{settings:?}"),
            program: env!("CARGO_PKG_VERSION").into(),
        };
        Checkpoint::new(dir, task, Duration::from_secs(60 * args.checkpoint_minutes))
    });
    let checkpoint = checkpoint.transpose()?;
    let state = checkpoint.as_ref().map(Checkpoint::read).transpose()?.flatten();
    if let Some(state) = &state {
        let at = state.position;
        eprintln!("接着上次：第 {} 轮，已完成 {} 步", at.epoch, at.n_batches);
    }
    let bar = ProgressBar::new((train_part.len() * settings.epochs) as u64)
        .with_style(progress_style("训练")?);
    let stop = stop_flag()?;
    let n_cases = train_part.len();
    let mut console = Console { bar, n_cases, stop, checkpoint, loss: None, best: None };
    let task = Task {
        start: &start,
        prior: prior.as_ref(),
        config: &base.config,
        sizes,
        train: &train_part,
        validation: &validation_part,
        settings: &settings,
    };
    let trained = trainer::train(&task, state, &mut console)?;
    console.bar.finish_and_clear();
    let history = &trained.history;

    let name = args.output.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let calibration = trained.calibration;
    let mut bundle = Bundle {
        manifest: Manifest {
            format: bundle::FORMAT,
            name,
            version: args.version_name,
            text,
            heads,
            calibration: CalibrationSettings {
                kind: calibration.kind,
                type_bias: calibration.type_bias,
                level: calibration.level,
                grounds: calibration.grounds,
                set_threshold: calibration.set_threshold,
                coverage: settings.coverage,
            },
            training: TrainingRecord {
                data_digest,
                split: split_kind,
                split_digest,
                train_cases: parts.train.len(),
                validation_cases: parts.validation.len(),
                seed: args.seed,
                epoch: trained.epoch,
                base: base.origin,
                code_version: env!("CARGO_PKG_VERSION").into(),
                stopped_early: trained.is_stopped,
            },
            digests: Default::default(),
        },
        config: base.config,
        types: taxonomy.type_codes().clone(),
        tokenizer: base.tokenizer,
        weights: trained.weights,
        metrics: serde_json::Value::Null,
        learned,
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
        "stopped_early": trained.is_stopped,
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
    let (lexical, lexical_outcomes) = baseline(&train_cases, on_cases, &taxonomy, config)?;
    let mut gains = vec![Gain::over("词法基线", &lexical_outcomes, &evaluated.answers)];
    let before = compared(config, on_cases, |served| {
        let training = &served.manifest.training;
        let knows = |it: &LabelledCase| served.learned.knows(it.text.as_str());
        // Its own held-out cases taught it no more than they taught the new version.
        is_fair(training, &bundle.manifest.training, test_digest.as_deref())
            && (test.is_none() || !on_cases.iter().any(knows))
    })?;
    if let Some(before) = &before {
        let theirs: Vec<Outcome> = before.answers.iter().map(|it| it.0).collect();
        gains.push(Gain::over("现行版本", &theirs, &evaluated.answers));
    }
    gains.iter().for_each(|it| eprintln!("{it}"));
    let overlap = test.as_deref().map_or(0, |it| n_near_copies(&train_cases, it));
    if overlap > 0 {
        eprintln!("test_overlap: 测试集有 {overlap} 条与训练案例雷同，数字偏好；请从测试集中去掉");
    }
    let mut others: Vec<(&str, &Report)> = Vec::new();
    others.extend(before.iter().map(|it| ("现行版本", &it.report)));
    others.push(("词法基线", &lexical));
    let mistakes = mistakes(&pipeline, on_cases, &evaluated.answers);
    let mut page = Page {
        title: title.into(),
        others,
        history: history.iter().map(|it| (it.loss, it.validation_macro_f1)).collect(),
        ..page(&pipeline, &evaluated.report, &suites, mistakes)
    };
    // The pipeline was made before the bundle had its digest.
    page.model[2] = &digest;
    page.notes.extend(gains.iter().map(Gain::to_string));
    let training = &bundle.manifest.training;
    page.notes.push(format!(
        "训练 {} 条，留出 {} 条（{}）；拆分 {}，数据 {}",
        training.train_cases,
        training.validation_cases,
        training.split,
        training.split_digest,
        training.data_digest
    ));
    if training.stopped_early {
        page.notes.push(format!("训练被提前停止，这是当时最好的一轮（第 {} 轮）", training.epoch));
    }
    if overlap > 0 {
        page.notes.push(format!("测试集有 {overlap} 条与训练案例雷同，数字偏好"));
    }
    let html = args.html.unwrap_or_else(|| args.output.with_added_extension("report.html"));
    write_page(&html, &page)?;
    eprintln!("报告：{}", html.display());
    eprintln!("已写入 {}（{digest}）", args.output.display());
    if trained.is_stopped {
        eprintln!("训练被提前停止：这是目前最好的一轮（第 {} 轮）", trained.epoch);
        return Ok(ExitCode::from(STOPPED_EARLY));
    }
    // Whole: the same command begins anew.
    if let Some(checkpoint) = &console.checkpoint {
        checkpoint.remove()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Digest of what the heads' columns mean.
fn labels_digest(taxonomy: &Taxonomy) -> String {
    let codes = |it: &LabelSet| it.codes().collect::<Vec<_>>().join(",");
    let heads = [codes(taxonomy.type_codes()), codes(taxonomy.ground_codes())].join(";");
    sha256(format!("{heads};{}", taxonomy.levels.len()).as_bytes())
}

fn dictionary_digest(config: &Config) -> anyhow::Result<String> {
    let Some(path) = &config.user_dict else { return Ok("none".into()) };
    Ok(sha256(&std::fs::read(path).with_context(|| path.display().to_string())?))
}

/// The split, and what to call it.
fn split_cases(
    cases: &[LabelledCase],
    texts: &[&str],
    labels: &[usize],
    base: Option<&Bundle>,
    args: &TrainArgs,
) -> anyhow::Result<(Split, String)> {
    let share = args.validation_share;
    ensure!(
        0.0 < share && share < 1.0,
        "validation_share: {share} must lie between 0 and 1, both excluded"
    );
    let days: Vec<_> = cases.iter().filter_map(|it| it.day).collect();
    let n_undated = cases.len() - days.len();
    ensure!(
        args.split != SplitBy::Time || n_undated == 0,
        "undated_cases: {n_undated} of {} cases have no date (`triage check` names wrong ones): date \
         them all, or say --split random",
        cases.len()
    );
    let is_spread = days.iter().min() < days.iter().max();
    let by_time = match args.split {
        SplitBy::Time => true,
        SplitBy::Auto => n_undated == 0 && is_spread,
        SplitBy::Random => false,
    };
    // What was chosen by difficulty teaches, but measures nothing.
    let groups = near_duplicate_groups(texts);
    let everything: Vec<usize> = (0..cases.len()).collect();
    let measuring = apart_from(&everything, &groups, |it| cases[it].is_handpicked);
    let n_taught_only = cases.len() - measuring.len();
    if n_taught_only > 0 {
        eprintln!("{n_taught_only} 条为挑选所得（selected 不是 random），只用于训练，不留出");
    }
    ensure!(
        !measuring.is_empty(),
        "no_fair_cases: every case was chosen by `triage select`, so none can be held out to measure; add \
         those it chose at random"
    );
    let knows = |it: usize| base.is_some_and(|base| base.learned.knows(texts[it]));
    let new = apart_from(&measuring, &groups, knows);
    // As many as of all cases, but most of the new ones are left to learn from.
    let (measuring, most) = match measuring.len() - new.len() {
        0 => (measuring, 0.5_f64.max(share)),
        n if new.len() < FEWEST_NEW => {
            eprintln!("{n} 条是起点模型学过的，验证数字偏好；请用 --test 另给一份案例");
            (measuring, 0.5_f64.max(share))
        }
        n => {
            eprintln!("{n} 条是起点模型学过的，只用于训练，不留出");
            (new, 0.2_f64.max(share))
        }
    };
    let share = (share * cases.len() as f64 / measuring.len() as f64).min(most);
    let texts: Vec<&str> = measuring.iter().map(|&it| texts[it]).collect();
    let of_all = |it: Split| {
        let validation: Vec<usize> = it.validation.iter().map(|&it| measuring[it]).collect();
        let train = (0..cases.len()).filter(|it| validation.binary_search(it).is_err()).collect();
        Split { train, validation }
    };
    if !by_time {
        if args.split == SplitBy::Auto && !days.is_empty() && n_undated > 0 {
            eprintln!("{n_undated} 条没有日期，不能按时间拆分，改为随机");
        }
        let labels: Vec<usize> = measuring.iter().map(|&it| labels[it]).collect();
        let parts = of_all(split(&texts, &labels, share, args.seed));
        return Ok((parts, format!("random, seed {}", args.seed)));
    }
    let measuring_days: Vec<_> = measuring.iter().map(|&it| days[it]).collect();
    let parts = of_all(split_by_time(&texts, &measuring_days, share));
    let first = parts.validation.iter().map(|&it| days[it]).min();
    let missing = labels
        .iter()
        .filter(|&&label| !parts.validation.iter().any(|&it| labels[it] == label))
        .collect::<BTreeSet<_>>()
        .len();
    if missing > 0 {
        eprintln!("最新的案例里缺 {missing} 个类型：它们没有验证数字；可加大 --validation-share");
    }
    Ok((parts, format!("by time, from {}", first.map_or(String::new(), |it| it.to_string()))))
}

/// Fewest cases new to the base to measure by, instead of by all.
const FEWEST_NEW: usize = 50;

/// Those of `indices` that only measure: neither they nor any that says nearly the same are `is_taught`.
fn apart_from(
    indices: &[usize],
    groups: &[usize],
    is_taught: impl Fn(usize) -> bool,
) -> Vec<usize> {
    let taught: BTreeSet<usize> =
        (0..groups.len()).filter(|&it| is_taught(it)).map(|it| groups[it]).collect();
    indices.iter().copied().filter(|&it| !taught.contains(&groups[it])).collect()
}

/// Whether another version's figures on the cases measured here may stand beside ours: not when it may
/// have learned from them, and what it learned from is known by digest only.
fn is_fair(other: &TrainingRecord, ours: &TrainingRecord, test_digest: Option<&str>) -> bool {
    match test_digest {
        Some(digest) => other.data_digest != digest,
        None => other.data_digest == ours.data_digest && other.split_digest == ours.split_digest,
    }
}

/// Test cases that say nearly what a training case says.
fn n_near_copies(train: &[LabelledCase], test: &[LabelledCase]) -> usize {
    let texts: Vec<&str> = train.iter().chain(test).map(|it| it.text.as_str()).collect();
    let groups = near_duplicate_groups(&texts);
    // A group is named after its first text, and training cases come first.
    groups[train.len()..].iter().filter(|&&leader| leader < train.len()).count()
}

/// What the version served until now makes of the same cases; none when they would be unfair, when it
/// has other types, or when it cannot be used.
fn compared(
    config: &Config,
    cases: &[LabelledCase],
    is_fair: impl Fn(&Bundle) -> bool,
) -> anyhow::Result<Option<Evaluated>> {
    if Bundle::load(&config.model).is_ok_and(|it| !is_fair(&it)) {
        eprintln!(
            "different_split: 现行版本可能学过这里的案例，未与它比较；用 --test 给出双方都没学过的案例"
        );
        return Ok(None);
    }
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
    Ok(Some(evaluate(&served, cases)?))
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

/// Says which labels have too few cases to be learned.
///
/// # Errors
/// When all cases have one label: such a model would say the same of everything.
fn enough_of_each(cases: &[LabelledCase], taxonomy: &Taxonomy) -> anyhow::Result<()> {
    let counts: Vec<(&str, usize)> = (taxonomy.type_codes().codes())
        .map(|code| (code, cases.iter().filter(|it| it.label == code).count()))
        .collect();
    let used: Vec<&str> = counts.iter().filter(|it| it.1 > 0).map(|it| it.0).collect();
    ensure!(
        used.len() >= 2,
        "one_label: every case has the label `{}`; a model needs two labels or more",
        used.join(", ")
    );
    for (code, n) in counts.iter().filter(|it| it.1 < MIN_CASES_PER_LABEL) {
        eprintln!(
            "few_cases: {code} 只有 {n} 条，学不会；请再标一些（至少 {MIN_CASES_PER_LABEL} 条）"
        );
    }
    Ok(())
}

/// A head that no case teaches and no version taught before would stay random and the trainer refuses it:
/// it learns to say "routine".
fn fill_unlabelled_heads(examples: &mut [Example], n_grounds: usize, has_prior: bool) {
    let has_levels = examples.iter().any(|it| it.target.level.is_some());
    if has_prior {
        if !has_levels {
            eprintln!("案例都没有敏感级别：沿用起点模型的判断");
        }
        return;
    }
    if !has_levels {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_says_nearly_what_is_taught_measures_nothing() {
        let groups = [0, 0, 2, 3, 3];
        assert_eq!(apart_from(&[0, 1, 2, 3, 4], &groups, |it| it == 1), [2, 3, 4]);
        assert_eq!(apart_from(&[2, 3], &groups, |it| it == 4), [2]);
        assert_eq!(apart_from(&[2, 3], &groups, |_| false), [2, 3]);
    }

    #[test]
    fn figures_stand_side_by_side_only_when_both_did_not_learn_from_the_cases() {
        let record = |data: &str, split: &str| TrainingRecord {
            data_digest: data.into(),
            split_digest: split.into(),
            ..Bundle::for_tests().manifest.training
        };
        let ours = record("a", "1");
        for (other, test, expected) in [
            (record("a", "1"), None, true),
            (record("a", "2"), None, false),
            (record("b", "1"), None, false),
            (record("b", "2"), Some("t"), true),
            (record("t", "2"), Some("t"), false),
        ] {
            assert_eq!(is_fair(&other, &ours, test), expected, "{other:?} {test:?}");
        }
    }
}
