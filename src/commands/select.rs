//! `triage select`: which posts are worth labelling next.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::Args;
use indicatif::ProgressBar;
use rayon::prelude::*;
use serde::Serialize;
use serde_json::Value;

use super::{load_pipeline, progress_style};
use crate::cases;
use crate::config::Config;
use crate::domain::author::is_author_field;
use crate::domain::case::{CaseId, CaseText};
use crate::domain::prediction::Prediction;
use crate::imports::{self, ImportedRow, Source};
use crate::model::bundle::sha256;
use crate::pipeline::{Pipeline, Prepared};
use crate::rows::{self, Format, Rows};
use crate::selection::{Candidate, N_FEATURES, Reason, Shares, features, select};
use crate::text::{normalize, redact};

/// Rows prepared and predicted at once.
const BLOCK: usize = 256;

/// Arguments of `triage select`.
#[derive(Debug, Args)]
pub struct SelectArgs {
    /// 未标注的文本（.jsonl、.csv 或 .xlsx，可为 .xz；GBK 等编码自动转换）
    posts: PathBuf,
    /// 选出多少条
    #[arg(short, default_value_t = 200)]
    n: usize,
    /// 写到哪里：.csv 便于用表格软件标注，否则为 JSONL；不给出则以 JSONL 写到标准输出
    #[arg(short, long)]
    output: Option<PathBuf>,
    /// 随机抽取的比例；只有这一部分可用来衡量模型
    #[arg(long, default_value_t = 0.25)]
    random_share: f64,
    /// 已标注的案例：不再选与它们雷同的
    #[arg(long, value_name = "CASES")]
    labelled: Option<PathBuf>,
    /// 其标签所在的列；文本所在的列与 --text-column 相同
    #[arg(long, default_value = "label", requires = "labelled")]
    label_column: String,
    /// 附上模型的判断（可能影响标注者，默认不附）
    #[arg(long)]
    suggest: bool,
    /// 文本所在的列
    #[arg(long, default_value = "text")]
    text_column: String,
    /// 标识所在的列；没有标识或标识重复的行以文本的 SHA-256 前 12 位为名
    #[arg(long, default_value = "id")]
    id_column: String,
    /// 随机种子
    #[arg(long, default_value_t = 42)]
    seed: u64,
}

/// Runs the command. The file is read twice, so that only the chosen texts are ever kept in memory; one that
/// must be converted first is kept whole.
///
/// # Errors
/// When a file cannot be read or written, the model fails, or nothing can be chosen: then no file is left. A
/// row that cannot be scored is left out and counted.
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
    let posts = Posts::open(&args.posts)?;
    posts.require(&args.text_column)?;
    let pipeline = load_pipeline(config)?;
    let (known, known_texts) = match &args.labelled {
        Some(path) => known(path, &args, &pipeline)?,
        None => Default::default(),
    };
    let (scored, left_out) = score(&args, &posts, &pipeline, &known_texts)?;
    if scored.is_empty() {
        bail!("{}", left_out.error(&args.posts, &args.text_column));
    }
    left_out.tell(&args.text_column);
    let candidates: Vec<Candidate> = scored.iter().map(|it| it.candidate.clone()).collect();
    let chosen = select(&candidates, &known, Shares::of(args.n, args.random_share), args.seed);
    ensure!(
        !chosen.is_empty(),
        "nothing_chosen: none of {} rows with -n {} and --random-share {}: the rows resemble labelled ones, or \
         too few are asked for; raise one of the two",
        scored.len(),
        args.n,
        args.random_share
    );
    let lines = chosen_lines(&args, &posts, &pipeline, &scored, &chosen)?;
    write(args.output.as_deref(), &lines).with_context(|| match &args.output {
        Some(path) => path.display().to_string(),
        None => "standard output".to_owned(),
    })?;
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
    /// Of the most probable type.
    probability: f32,
}

type Known = (Vec<[f32; N_FEATURES]>, HashSet<String>);

/// Directions and texts of the labelled cases; any label will do, it is not used.
fn known(path: &Path, args: &SelectArgs, pipeline: &Pipeline) -> anyhow::Result<Known> {
    let options = cases::Options {
        source: None,
        text_column: args.text_column.clone(),
        label_column: args.label_column.clone(),
        any_label: true,
    };
    let found = cases::read_with(path, pipeline.taxonomy(), &options)
        .with_context(|| path.display().to_string())?;
    ensure!(
        !found.cases.is_empty(),
        "no_labelled_cases: no row of {} has a text in `{}` and a label in `{}`; name the columns with \
         --text-column and --label-column",
        path.display(),
        args.text_column,
        args.label_column
    );
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
    posts: &Posts<'_>,
    pipeline: &Pipeline,
    known: &HashSet<String>,
) -> anyhow::Result<(Vec<Scored>, LeftOut)> {
    let fail = || args.posts.display().to_string();
    let mut rows = posts.rows().with_context(fail)?;
    let bar = ProgressBar::new_spinner().with_style(progress_style("评分")?);
    let (mut scored, mut left_out) = (Vec::new(), LeftOut::default());
    // Reposts of one text are one text.
    let mut seen: HashSet<String> = known.clone();
    loop {
        let block: Vec<ImportedRow> =
            rows.by_ref().take(BLOCK).collect::<io::Result<_>>().with_context(fail)?;
        if block.is_empty() {
            break;
        }
        left_out.n_rows += block.len() as u64;
        let mut fresh: Vec<(u64, CaseText)> = Vec::new();
        for row in &block {
            match text_of(row, &args.text_column, posts.header.is_some()) {
                Ok(text) if seen.insert(text.as_str().to_owned()) => fresh.push((row.row, text)),
                Ok(_) => left_out.add(Why::Repeated, row.row),
                Err(why) => left_out.add(why, row.row),
            }
        }
        let prepared: Vec<(u64, Option<Prepared>)> =
            fresh.par_iter().map(|(row, text)| (*row, pipeline.prepare(text).ok())).collect();
        let mut ready: Vec<(u64, Prepared)> = Vec::new();
        for (row, prepared) in prepared {
            match prepared {
                Some(it) => ready.push((row, it)),
                None => left_out.add(Why::InvalidText, row),
            }
        }
        let predictions = pipeline.predict(&ready.iter().map(|it| &it.1).collect::<Vec<_>>())?;
        for ((row, prepared), prediction) in ready.iter().zip(&predictions) {
            let candidate = Candidate {
                type_idx: prediction.type_idx(),
                margin: margin(prediction),
                features: direction(prepared),
            };
            let probability = prediction.confidence().get();
            scored.push(Scored { row: *row, candidate, probability });
        }
        bar.set_position(left_out.n_rows);
    }
    bar.finish_and_clear();
    Ok((scored, left_out))
}

/// The row's text, or why the row takes no part. With a header an absent field is an empty one.
fn text_of(row: &ImportedRow, column: &str, has_header: bool) -> Result<CaseText, Why> {
    let fields = row.fields.as_ref().map_err(|it| Why::Unreadable(it.code, it.fix))?;
    if let Some(author) = fields.keys().find(|it| is_author_field(it)) {
        return Err(Why::AuthorField(author.clone()));
    }
    match fields.get(column) {
        None if !has_header => Err(Why::NoColumn),
        Some(Value::String(text)) => CaseText::parse(text.as_str()).map_err(|_| Why::InvalidText),
        _ => Err(Why::InvalidText),
    }
}

fn margin(prediction: &Prediction) -> f32 {
    let mut probabilities: Vec<f32> =
        prediction.type_probabilities.iter().map(|it| it.get()).collect();
    probabilities.sort_by(|a, b| b.total_cmp(a));
    probabilities[0] - probabilities.get(1).copied().unwrap_or(0.0)
}

/// A chosen row, to be labelled.
#[derive(Serialize)]
struct Line {
    id: String,
    text: String,
    label: Option<String>,
    selected: &'static str,
    note: Option<String>,
}

/// The chosen rows, each under an id of its own.
fn chosen_lines(
    args: &SelectArgs,
    posts: &Posts<'_>,
    pipeline: &Pipeline,
    scored: &[Scored],
    chosen: &[(usize, Reason)],
) -> anyhow::Result<Vec<Line>> {
    let mut lines = Vec::new();
    let mut used = HashSet::new();
    let mut n_renamed = 0;
    let mut wanted = chosen.iter().map(|&(idx, reason)| (&scored[idx], reason)).peekable();
    for row in posts.rows()? {
        let row = row?;
        // Both go by ascending rows.
        let Some((it, reason)) = wanted.next_if(|it| it.0.row == row.row) else { continue };
        let text = text_of(&row, &args.text_column, posts.header.is_some()).ok().context(
            "posts_changed: a chosen row is gone; the file must not change while it is read",
        )?;
        let given = given_id(&row, &args.id_column);
        let id = unique_id(given.as_deref(), &text, &mut used);
        n_renamed += usize::from(given.is_some_and(|it| it != id));
        let note = args.suggest.then(|| {
            let code = pipeline.type_labels().code(it.candidate.type_idx);
            format!("model: {code} {:.2}", it.probability)
        });
        let (text, selected) = (masked(&text), reason.code());
        lines.push(Line { id, text, label: None, selected, note });
    }
    ensure!(wanted.next().is_none(), "posts_changed: the file became shorter while it was read");
    if n_renamed > 0 {
        eprintln!("{n_renamed} 条的标识重复或不可用，已改以文本的 SHA-256 前 12 位为名");
    }
    Ok(lines)
}

/// Writes to a new file, or to standard output.
fn write(path: Option<&Path>, lines: &[Line]) -> anyhow::Result<()> {
    let Some(path) = path else { return write_jsonl(io::stdout().lock(), lines) };
    let file = BufWriter::new(File::create_new(path)?);
    if rows::format_of(path) != Some(Format::Csv) {
        return write_jsonl(file, lines);
    }
    let mut writer = rows::spreadsheet(file)?;
    lines.iter().try_for_each(|it| writer.serialize(it))?;
    Ok(writer.flush()?)
}

fn write_jsonl(mut out: impl Write, lines: &[Line]) -> anyhow::Result<()> {
    for it in lines {
        serde_json::to_writer(&mut out, it)?;
        out.write_all(b"\n")?;
    }
    Ok(out.flush()?)
}

fn given_id(row: &ImportedRow, column: &str) -> Option<String> {
    match row.fields.as_ref().ok()?.get(column)? {
        Value::String(id) if !id.trim().is_empty() => Some(id.clone()),
        Value::Number(id) => Some(id.to_string()),
        _ => None,
    }
}

/// `given` when it is an id and free; otherwise one made of the text, so that files put together later do
/// not call two texts alike.
fn unique_id(given: Option<&str>, text: &CaseText, used: &mut HashSet<String>) -> String {
    const N_HEX_DIGITS: usize = 12;
    let given = given.filter(|it| CaseId::parse(*it).is_ok()).map(str::to_owned);
    let digest = sha256(text.as_str().as_bytes());
    let digest = &digest["sha256:".len()..][..N_HEX_DIGITS];
    let of_text = (1_u64..).map(|turn| match turn {
        1 => digest.to_owned(),
        _ => format!("{digest}-{turn}"),
    });
    let mut names = given.into_iter().chain(of_text);
    names.find(|it| used.insert(it.clone())).expect("there is always a further number")
}

/// The text as it was, personal data masked: whoever labels it need not know whose it is.
pub(super) fn masked(text: &CaseText) -> String {
    let redactions = redact(&normalize(text.as_str())).redactions;
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
    out
}

/// A file of posts, to be read more than once.
struct Posts<'a> {
    path: &'a Path,
    /// Names of the columns, where the file has a header.
    header: Option<Vec<String>>,
    kept: Kept,
}

/// Where the rows are between two readings.
enum Kept {
    OnDisk(Format),
    /// A workbook, or a file that was converted to UTF-8.
    InMemory(Vec<ImportedRow>),
}

impl<'a> Posts<'a> {
    fn open(path: &'a Path) -> anyhow::Result<Self> {
        let fail = || path.display().to_string();
        let format = rows::format_of(path);
        ensure!(
            format.is_some() || is_workbook(path),
            "unknown_format: {}: the name must end in .jsonl, .csv or .xlsx (or .xz after one of these)",
            path.display()
        );
        if let Some(format) = format
            && is_utf8(path).with_context(fail)?
        {
            let rows = rows::open(path).and_then(|it| Rows::new(it, format)).with_context(fail)?;
            let header = rows.header().map(<[String]>::to_vec);
            return Ok(Self { path, header, kept: Kept::OnDisk(format) });
        }
        let source = match format {
            Some(Format::Jsonl) => Source::Jsonl,
            Some(Format::Csv) => Source::Csv,
            None => Source::Xlsx,
        };
        let imported = imports::read(path, Some(source), |_| false).with_context(fail)?;
        if let Some(encoding) = imported.converted_from {
            eprintln!("文件是 {encoding} 编码，已转换为 UTF-8；请看几条选出的文本是否正常");
        }
        Ok(Self { path, header: imported.header, kept: Kept::InMemory(imported.rows) })
    }

    /// Refuses a file whose header has no `column`. Does not name the columns it has: without a header they
    /// would be texts.
    fn require(&self, column: &str) -> anyhow::Result<()> {
        let Some(header) = &self.header else { return Ok(()) };
        ensure!(
            header.iter().any(|it| it == column),
            "missing_column: the header of {} has no column `{column}`; name the column of the text with \
             --text-column",
            self.path.display()
        );
        Ok(())
    }

    fn rows(&self) -> io::Result<Box<dyn Iterator<Item = io::Result<ImportedRow>> + '_>> {
        match &self.kept {
            Kept::InMemory(rows) => Ok(Box::new(rows.iter().cloned().map(Ok))),
            Kept::OnDisk(format) => {
                let rows = Rows::new(rows::open(self.path)?, *format)?;
                Ok(Box::new(rows.map(|row| {
                    row.map(|it| ImportedRow { row: it.row, line: it.line, fields: it.fields() })
                })))
            }
        }
    }
}

fn is_workbook(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let name = name.strip_suffix(".xz").unwrap_or(&name);
    [".xlsx", ".xlsm", ".xls", ".ods"].iter().any(|it| name.ends_with(it))
}

/// Whether the file begins as UTF-8. When it does not, all of it is looked at before it is converted.
fn is_utf8(path: &Path) -> io::Result<bool> {
    const SAMPLE_BYTES: u64 = 1 << 16;
    let mut bytes = Vec::new();
    rows::open(path)?.take(SAMPLE_BYTES).read_to_end(&mut bytes)?;
    // The sample's last character may be cut in two.
    let is_cut = bytes.len() as u64 == SAMPLE_BYTES;
    Ok(match std::str::from_utf8(&bytes) {
        Ok(_) => true,
        Err(error) => is_cut && error.error_len().is_none(),
    })
}

/// Why a row takes no part.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Why {
    /// Code and fix of the row's fault.
    Unreadable(&'static str, &'static str),
    /// The column that tells who wrote the text.
    AuthorField(String),
    /// No field of the name the text should have.
    NoColumn,
    /// The text is empty, too long, or no string.
    InvalidText,
    /// The text came before, or is labelled already.
    Repeated,
}

impl Why {
    const fn code(&self) -> &'static str {
        match self {
            Self::Unreadable(code, _) => code,
            Self::AuthorField(_) => "author_field",
            Self::NoColumn => "missing_column",
            Self::InvalidText => "invalid_text",
            Self::Repeated => "already_labelled",
        }
    }

    /// Reason and fix, for an error.
    fn english(&self, text_column: &str) -> String {
        match self {
            Self::Unreadable(_, fix) => format!("cannot be read: {fix}"),
            Self::AuthorField(name) => format!(
                "tell who wrote the text in the column `{name}`, triage is author-blind: remove the column"
            ),
            Self::NoColumn => format!(
                "have no column `{text_column}`: name the column of the text with --text-column"
            ),
            Self::InvalidText => format!(
                "have an empty or too long text in `{text_column}`, or no string: correct it, or name another \
                 column with --text-column"
            ),
            Self::Repeated => {
                "repeat an earlier text or a labelled one: give posts that are new".to_owned()
            }
        }
    }

    /// Reason and fix, for the console.
    fn chinese(&self, text_column: &str) -> String {
        match self {
            Self::Unreadable(code, _) => format!("读不出来（{code}），请改正"),
            Self::AuthorField(name) => format!("含有作者字段“{name}”，请删去该列"),
            Self::NoColumn => format!("没有“{text_column}”列，请用 --text-column 指定文本所在的列"),
            Self::InvalidText => "的文本为空、过长或不是文本".to_owned(),
            Self::Repeated => "的文本与前面的或已标注的相同".to_owned(),
        }
    }
}

/// The rows that take no part.
#[derive(Debug, Default)]
struct LeftOut {
    /// Rows of the file, whether they take part or not.
    n_rows: u64,
    /// How many, and the first of them.
    by_reason: BTreeMap<Why, (u64, u64)>,
}

impl LeftOut {
    fn add(&mut self, why: Why, row: u64) {
        self.by_reason.entry(why).or_insert((0, row)).0 += 1;
    }

    fn tell(&self, text_column: &str) {
        for (why, (n, first)) in &self.by_reason {
            eprintln!("{n} 行{}；未参与选择（首见于第 {first} 行）", why.chinese(text_column));
        }
    }

    /// What to say when no row is left; its code is that of the commonest reason.
    fn error(&self, path: &Path, text_column: &str) -> String {
        let name = path.display();
        let Some((main, _)) = self.by_reason.iter().max_by_key(|it| it.1.0) else {
            return format!("no_rows: {name} has no rows; give unlabelled posts, one a row");
        };
        let reasons: Vec<String> = self
            .by_reason
            .iter()
            .map(|(why, (n, first))| {
                format!("{n} (first row {first}) {}", why.english(text_column))
            })
            .collect();
        let code = main.code();
        format!(
            "{code}: {name}: none of {} rows can be chosen: {}",
            self.n_rows,
            reasons.join("; ")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_id_is_given_once() {
        let mut used = HashSet::new();
        let long = "x".repeat(200);
        let mut id = |given: Option<&str>, text| {
            unique_id(given, &CaseText::parse(text).unwrap(), &mut used)
        };
        let first = id(None, "停水");
        assert!(first.len() == 12 && first.bytes().all(|it| it.is_ascii_hexdigit()), "{first}");
        assert_eq!(id(Some("a"), "停电"), "a");
        let others = [id(Some("a"), "着火"), id(Some(&long), "谢谢")];
        assert!(others[0] != others[1] && others.iter().all(|it| it.len() == 12), "{others:?}");
        assert_eq!(id(Some(&first), "停气").len(), 12);
        assert_eq!(id(None, "停水"), format!("{first}-2"));
    }

    #[test]
    fn each_reason_has_its_own_words() {
        let row = |json: &str| ImportedRow {
            row: 1,
            line: 1,
            fields: Ok(serde_json::from_str(json).unwrap()),
        };
        let why = |json: &str, has_header| text_of(&row(json), "text", has_header).unwrap_err();
        assert_eq!(why(r#"{"text":"x","昵称":"y"}"#, false), Why::AuthorField("昵称".into()));
        assert_eq!(why(r#"{"body":"x"}"#, false), Why::NoColumn);
        assert_eq!(why(r#"{"body":"x"}"#, true), Why::InvalidText);
        assert_eq!(why(r#"{"text":" "}"#, false), Why::InvalidText);
        let mut left_out = LeftOut { n_rows: 3, ..LeftOut::default() };
        left_out.add(Why::NoColumn, 1);
        left_out.add(Why::AuthorField("昵称".into()), 2);
        left_out.add(Why::AuthorField("昵称".into()), 3);
        let error = left_out.error(Path::new("posts.jsonl"), "text");
        assert!(error.starts_with("author_field: posts.jsonl: none of 3 rows"), "{error}");
        assert!(error.contains("2 (first row 2)") && error.contains("`昵称`"), "{error}");
        assert!(error.contains("`text`") && error.contains("--text-column"), "{error}");
        let none = LeftOut::default().error(Path::new("posts.jsonl"), "text");
        assert!(none.starts_with("no_rows"), "{none}");
    }

    #[test]
    fn personal_data_is_masked_and_the_rest_untouched() {
        let text = CaseText::parse("打１３８００１３８０００！ＡＢ").unwrap();
        assert_eq!(masked(&text), "打<电话>！ＡＢ");
    }
}
