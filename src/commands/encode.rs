//! `triage encode`: a corpus to a vocabulary, or to packed token ids for pretraining.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

use crate::corpus::{self, CorpusSize};
use crate::pipeline::segmenter;
use crate::rows;
use crate::text::Encoder;
use crate::text::vocabulary::{VocabularyLimits, WordCounts, tokenizer_from};

/// Arguments of `triage encode`.
#[derive(Debug, Args)]
pub struct EncodeArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// 统计语料词频，选出词表，写成 tokenizer.json
    Vocab {
        /// 语料文件，一行一篇，可为 .xz；`-` 表示标准输入
        #[arg(required = true)]
        corpus: Vec<PathBuf>,
        /// 输出的 tokenizer.json
        #[arg(short, long)]
        output: PathBuf,
        /// 词表大小（含特殊符号与占位符）
        #[arg(long, default_value_t = 24_000)]
        vocab_size: usize,
        /// 词的最低出现次数
        #[arg(long, default_value_t = 5)]
        min_word_count: u64,
        /// 单字的最低出现次数
        #[arg(long, default_value_t = 20)]
        min_char_count: u64,
        /// 用户词典（jieba 格式）
        #[arg(long)]
        user_dict: Option<PathBuf>,
    },
    /// 把语料编码为词元编号（小端 u32，每篇以 [SEP] 结尾）
    Ids {
        /// 语料文件，一行一篇，可为 .xz；`-` 表示标准输入
        #[arg(required = true)]
        corpus: Vec<PathBuf>,
        /// 使用的 tokenizer.json
        #[arg(long)]
        tokenizer: PathBuf,
        /// 输出文件
        #[arg(short, long)]
        output: PathBuf,
        /// 用户词典（jieba 格式）
        #[arg(long)]
        user_dict: Option<PathBuf>,
    },
}

/// Runs the command.
///
/// # Errors
/// When a file cannot be read or written, or nothing was found in it.
pub fn run(args: EncodeArgs) -> anyhow::Result<()> {
    let bar = ProgressBar::new_spinner();
    let style = ProgressStyle::with_template("{spinner} {pos} 篇 {per_sec} {elapsed}");
    bar.set_style(style.context("progress bar")?);
    match args.verb {
        Verb::Vocab { corpus, output, vocab_size, min_word_count, min_char_count, user_dict } => {
            let segmenter = segmenter(user_dict.as_deref())?;
            let mut counts = WordCounts::default();
            let mut size = CorpusSize::default();
            for path in &corpus {
                let mut input = rows::open(path).with_context(|| path.display().to_string())?;
                let before = size.documents;
                let (part, part_size) = corpus::count_words(&mut input, &segmenter, |n| {
                    bar.set_position(before + n);
                })
                .with_context(|| path.display().to_string())?;
                counts.merge(part);
                size.documents += part_size.documents;
                size.characters += part_size.characters;
            }
            ensure!(size.documents > 0, "the corpus has no text");
            let words =
                counts.choose(VocabularyLimits { vocab_size, min_word_count, min_char_count });
            let tokenizer = tokenizer_from(&words).map_err(anyhow::Error::msg)?;
            let json = tokenizer.to_string(false).map_err(anyhow::Error::msg)?;
            std::fs::write(&output, json).with_context(|| output.display().to_string())?;
            bar.finish_and_clear();
            eprintln!(
                "{} 篇，{} 字；词表 {} 项，写入 {}",
                size.documents,
                size.characters,
                tokenizer.get_vocab_size(true),
                output.display()
            );
        }
        Verb::Ids { corpus, tokenizer, output, user_dict } => {
            let segmenter = segmenter(user_dict.as_deref())?;
            // Documents are not chunked here: pretraining cuts its own rows.
            let encoder = Encoder::load(&tokenizer, 256, 0)?;
            let file = File::create(&output).with_context(|| output.display().to_string())?;
            let mut writer = BufWriter::new(file);
            let mut size = CorpusSize::default();
            for path in &corpus {
                let mut input = rows::open(path).with_context(|| path.display().to_string())?;
                let before = size.documents;
                let part = corpus::write_ids(&mut input, &segmenter, &encoder, &mut writer, |n| {
                    bar.set_position(before + n);
                })
                .with_context(|| path.display().to_string())?;
                size.documents += part.documents;
                size.characters += part.characters;
                size.tokens += part.tokens;
                size.unknown += part.unknown;
            }
            writer.flush().with_context(|| output.display().to_string())?;
            bar.finish_and_clear();
            eprintln!(
                "{} 篇，{} 字，{} 词元（每字 {:.3}），未登录 {:.4} %，写入 {}",
                size.documents,
                size.characters,
                size.tokens,
                size.tokens as f64 / size.characters.max(1) as f64,
                100.0 * size.unknown as f64 / size.tokens.max(1) as f64,
                output.display()
            );
        }
    }
    Ok(())
}
