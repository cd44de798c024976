//! `triage score`: files of posts to files of results.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::load_pipeline;
use crate::config::Config;
use crate::pipeline::Pipeline;
use crate::rows::{self, Format};
use crate::scoring::{Columns, Sinks, Summary, score};

/// Arguments of `triage score`.
#[derive(Debug, Args)]
pub struct ScoreArgs {
    /// 输入文件（.jsonl 或 .csv，可为 .xz）；`-` 表示标准输入
    #[arg(required = true)]
    inputs: Vec<PathBuf>,
    /// 输出文件；多个输入时为目录；不给出则写到标准输出
    #[arg(short, long)]
    output: Option<PathBuf>,
    /// 标准输入的格式
    #[arg(long, value_enum, default_value = "jsonl")]
    input_format: Format,
    /// 输出格式；默认看输出文件的扩展名，否则为 jsonl
    #[arg(long, value_enum)]
    output_format: Option<Format>,
    /// 错误文件；默认为输出文件名加 .errors.jsonl
    #[arg(long)]
    errors: Option<PathBuf>,
    /// 文本所在的列
    #[arg(long, default_value = "text")]
    text_column: String,
    /// 标识所在的列；没有标识的行以行号为名
    #[arg(long, default_value = "id")]
    id_column: String,
    /// 允许覆盖已有的输出文件
    #[arg(long)]
    overwrite: bool,
    /// 结束时把行数与错误数以 JSON 写到标准错误
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// When a file cannot be read or written; a row that cannot be scored is in the error file.
pub fn run(args: ScoreArgs, config: &Config) -> anyhow::Result<()> {
    let columns = Columns { text: args.text_column.clone(), id: args.id_column.clone() };
    let into_dir = args.inputs.len() > 1 || args.output.as_deref().is_some_and(Path::is_dir);
    ensure!(
        !(args.inputs.len() > 1 && (args.output.is_none() || args.errors.is_some())),
        "several inputs need -o DIR, and each has its own error file there"
    );
    let jobs = args
        .inputs
        .iter()
        .map(|input| Job::new(input, &args, into_dir))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let pipeline = load_pipeline(config)?;
    let mut total = Summary::default();
    let started = Instant::now();
    for job in &jobs {
        let done = job.run(&pipeline, &columns).with_context(|| job.input.display().to_string())?;
        total.rows += done.rows;
        total.errors += done.errors;
    }
    if args.json {
        eprintln!("{}", serde_json::to_string(&total)?);
    } else {
        let seconds = started.elapsed().as_secs_f64();
        let rate = total.rows as f64 / seconds.max(1e-9);
        eprintln!(
            "{} 行，其中 {} 行有误；{seconds:.1} 秒，每秒 {rate:.0} 行",
            total.rows, total.errors
        );
    }
    Ok(())
}

/// One input and its outputs.
struct Job {
    input: PathBuf,
    input_format: Format,
    output: Option<PathBuf>,
    output_format: Format,
    errors: Option<PathBuf>,
}

impl Job {
    fn new(input: &Path, args: &ScoreArgs, into_dir: bool) -> anyhow::Result<Self> {
        let is_stdin = input == Path::new("-");
        let input_format = match rows::format_of(input) {
            _ if is_stdin => args.input_format,
            Some(format) => format,
            None => bail!("{}: the name must end in .jsonl or .csv (or .xz)", input.display()),
        };
        let mut output = args.output.clone();
        if into_dir && let Some(dir) = &mut output {
            fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
            let name = input.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let stem = name.split('.').next().unwrap_or("stdin").to_owned();
            let extension = match args.output_format {
                Some(Format::Csv) => "csv",
                _ => "jsonl",
            };
            dir.push(format!("{stem}.{extension}"));
        }
        if let Some(path) = &output {
            ensure!(
                args.overwrite || !path.exists(),
                "{} exists; choose another name or say --overwrite",
                path.display()
            );
        }
        let by_name = output.as_deref().and_then(rows::format_of);
        let errors = args.errors.clone().or_else(|| {
            let output = output.as_ref()?;
            Some(output.with_added_extension("errors.jsonl"))
        });
        Ok(Self {
            input: input.to_owned(),
            input_format,
            output_format: args.output_format.or(by_name).unwrap_or(Format::Jsonl),
            output,
            errors,
        })
    }

    /// Results are written beside the final name and renamed when whole.
    fn run(&self, pipeline: &Pipeline, columns: &Columns) -> anyhow::Result<Summary> {
        let n_read = Arc::new(AtomicU64::new(0));
        let input = rows::open_counted(&self.input, &n_read)?;
        let size = fs::metadata(&self.input).map(|it| it.len()).ok();
        let bar = match size {
            Some(size) => ProgressBar::new(size).with_style(ProgressStyle::with_template(
                "评分 {bar:30} {percent}% 剩余 {eta} {msg}",
            )?),
            None => ProgressBar::new_spinner(),
        };
        let started = Instant::now();
        let on_rows = |rows: u64| {
            bar.set_position(n_read.load(Ordering::Relaxed));
            let rate = rows as f64 / started.elapsed().as_secs_f64().max(1e-9);
            bar.set_message(format!("{rows} 行，每秒 {rate:.0} 行"));
        };
        let mut output = Partial::create(self.output.as_deref())?;
        let mut errors = Partial::create(self.errors.as_deref())?;
        if self.errors.is_none() {
            // Results on stdout carry their errors; a second copy belongs nowhere.
            errors.writer = Box::new(std::io::sink());
        }
        let mut sinks = Sinks {
            output: &mut output.writer,
            format: self.output_format,
            errors: &mut errors.writer,
        };
        let summary = score(pipeline, input, self.input_format, columns, &mut sinks, on_rows)?;
        errors.finish()?;
        output.finish()?;
        bar.finish_and_clear();
        Ok(summary)
    }
}

/// A file that has its name only when it is whole; standard output without one.
struct Partial {
    writer: Box<dyn Write>,
    names: Option<(PathBuf, PathBuf)>,
}

impl Partial {
    fn create(path: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = path else {
            let writer = Box::new(BufWriter::new(std::io::stdout().lock()));
            return Ok(Self { writer, names: None });
        };
        let partial = path.with_added_extension("partial");
        let file = File::create(&partial).with_context(|| partial.display().to_string())?;
        let writer = Box::new(BufWriter::with_capacity(1 << 16, file));
        Ok(Self { writer, names: Some((partial, path.to_owned())) })
    }

    fn finish(mut self) -> anyhow::Result<()> {
        self.writer.flush()?;
        drop(self.writer);
        if let Some((partial, path)) = self.names {
            fs::rename(&partial, &path).with_context(|| path.display().to_string())?;
        }
        Ok(())
    }
}
