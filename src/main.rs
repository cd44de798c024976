//! The `triage` program: parse arguments, start logging, run one command, turn its error into an exit
//! code.

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use opinion_triage::commands::{
    audit_labels, check, classify, encode, evaluate, keys, models, score, select, serve, train,
};
use opinion_triage::config::{self, CommonArgs, Config, ServeSettings};
use opinion_triage::telemetry;

/// 舆情分诊：把群众来信、投诉和帖子分成五类，给出处置建议，由人决定。
#[derive(Parser)]
#[command(name = "triage", version)]
struct Cli {
    #[command(flatten)]
    common: CommonArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// 启动 HTTP 服务
    Serve(serve::ServeArgs),
    /// 分类一条文本
    Classify(classify::ClassifyArgs),
    /// 给整个文件评分（JSONL 或 CSV）
    Score(score::ScoreArgs),
    /// 从未标注的文本中选出最值得标注的
    Select(select::SelectArgs),
    /// 检查已标注的案例，逐行指出问题
    Check(check::CheckArgs),
    /// 找出可能标错的案例
    AuditLabels(audit_labels::AuditLabelsArgs),
    /// 用已标注的案例训练模型
    Train(train::TrainArgs),
    /// 用已标注的案例评估模型，可与词法基线并列
    Evaluate(evaluate::EvaluateArgs),
    /// 管理模型版本：列出、查看、上线、回退、校验
    #[command(subcommand)]
    Models(models::ModelsCommand),
    /// 语料编码：建立词表，或把语料变成词元编号
    Encode(encode::EncodeArgs),
    /// 接口密钥：生成新密钥
    Keys(keys::KeysArgs),
    /// 输出命令行补全脚本
    Completions {
        /// 所用的 shell
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    // clap itself exits with 2 on wrong usage.
    match run(Cli::parse()) {
        Ok(code) => code,
        // Whoever read the output wanted no more of it (`triage check … | head`).
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", told(&error));
            ExitCode::FAILURE
        }
    }
}

/// The error and its causes, each said once: some tell theirs already.
fn told(error: &anyhow::Error) -> String {
    let mut told = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !told.ends_with(&cause) {
            told += ": ";
            told += &cause;
        }
    }
    told
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<std::io::Error>();
    io.is_some_and(|it| it.kind() == std::io::ErrorKind::BrokenPipe)
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    config::check_environment(&Cli::command())?;
    let defaults = ServeSettings::default();
    let serve = match &cli.command {
        Command::Serve(args) => args.settings(),
        _ => &defaults,
    };
    let mut config = Config::load(&cli.common, serve)?;
    let otlp_endpoint = match cli.command {
        Command::Serve(_) => config.serve.otlp_endpoint.as_deref(),
        _ => None,
    };
    // Sends the last spans when it is dropped.
    let _exporter = telemetry::init(config.log, otlp_endpoint)?;
    // The registry's own commands must work when what it names is broken.
    if !matches!(cli.command, Command::Models(_) | Command::Check(_) | Command::Completions { .. })
    {
        models::use_production(&mut config)?;
    }
    rayon::ThreadPoolBuilder::new().num_threads(config.threads.get()).build_global()?;
    match cli.command {
        Command::Serve(args) => serve::run(&args, &config),
        Command::Classify(args) => classify::run(args, &config),
        Command::Score(args) => score::run(args, &config),
        Command::Select(args) => select::run(args, &config),
        Command::Check(args) => check::run(args),
        Command::AuditLabels(args) => audit_labels::run(args, &config),
        Command::Train(args) => return train::run(args, &config),
        Command::Evaluate(args) => evaluate::run(args, &config),
        Command::Models(command) => models::run(command, &config),
        Command::Encode(args) => encode::run(args),
        Command::Keys(args) => keys::run(args),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "triage", &mut std::io::stdout());
            Ok(())
        }
    }?;
    Ok(ExitCode::SUCCESS)
}
