//! The `triage` program: parse arguments, run one command, turn its error into an exit code.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use opinion_triage::commands::encode;

/// 舆情分诊：把群众来信、投诉和帖子分成五类，给出处置建议，由人决定。
#[derive(Parser)]
#[command(name = "triage", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// 语料编码：建立词表，或把语料变成词元编号
    Encode(encode::EncodeArgs),
}

fn main() -> ExitCode {
    // clap itself exits with 2 on wrong usage.
    let result = match Cli::parse().command {
        Command::Encode(args) => encode::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
