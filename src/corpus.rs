//! Corpora of one document a line, plain or `.xz`: to word counts, to packed token ids.

use std::io::{self, BufRead, Write};

use rayon::prelude::*;

use crate::text::vocabulary::WordCounts;
use crate::text::{Encoder, Segmenter, normalize, redact};

/// Lines worked on at a time: enough for all cores, little memory.
const BLOCK_LINES: usize = 8192;

/// Sums over what was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CorpusSize {
    /// Lines with text.
    pub documents: u64,
    /// Characters as read.
    pub characters: u64,
    /// Tokens written; 0 when only counting.
    pub tokens: u64,
    /// Tokens the vocabulary does not know.
    pub unknown: u64,
}

/// Counts the words of every line of `input`; `on_block` hears the lines done so far.
///
/// # Errors
/// When reading fails.
pub fn count_words(
    input: &mut dyn BufRead,
    segmenter: &Segmenter,
    mut on_block: impl FnMut(u64),
) -> io::Result<(WordCounts, CorpusSize)> {
    let mut counts = WordCounts::default();
    let mut size = CorpusSize::default();
    for_blocks(input, |lines| {
        let n_parts = rayon::current_num_threads().max(1);
        let parts: Vec<WordCounts> = lines
            .par_chunks(lines.len().div_ceil(n_parts))
            .map(|lines| {
                let mut counts = WordCounts::default();
                for line in lines {
                    counts.add(&segmenter.segment(&redact(&normalize(line)).text));
                }
                counts
            })
            .collect();
        for part in parts {
            counts.merge(part);
        }
        size.documents += lines.len() as u64;
        size.characters += lines.iter().map(|it| it.chars().count() as u64).sum::<u64>();
        on_block(size.documents);
        Ok(())
    })?;
    Ok((counts, size))
}

/// Writes the token ids of every line of `input` to `output` as little-endian `u32`, each document
/// closed by the id of `[SEP]`; documents keep their order.
///
/// # Errors
/// When reading or writing fails.
pub fn write_ids(
    input: &mut dyn BufRead,
    segmenter: &Segmenter,
    encoder: &Encoder,
    output: &mut dyn Write,
    mut on_block: impl FnMut(u64),
) -> io::Result<CorpusSize> {
    let special = encoder.special();
    let mut size = CorpusSize::default();
    for_blocks(input, |lines| {
        let documents: Vec<Vec<u32>> = lines
            .par_iter()
            .map(|line| encoder.ids(&segmenter.segment(&redact(&normalize(line)).text)))
            .collect();
        for ids in documents {
            size.tokens += ids.len() as u64;
            size.unknown += ids.iter().filter(|&&it| it == special.unknown).count() as u64;
            let bytes: Vec<u8> =
                ids.into_iter().chain([special.last]).flat_map(u32::to_le_bytes).collect();
            output.write_all(&bytes)?;
        }
        size.documents += lines.len() as u64;
        size.characters += lines.iter().map(|it| it.chars().count() as u64).sum::<u64>();
        on_block(size.documents);
        Ok(())
    })?;
    Ok(size)
}

fn for_blocks(
    input: &mut dyn BufRead,
    mut work: impl FnMut(&[String]) -> io::Result<()>,
) -> io::Result<()> {
    let mut lines = Vec::with_capacity(BLOCK_LINES);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        let is_end = input.read_until(b'\n', &mut bytes)? == 0;
        // A corpus is crawled: a damaged character must not end the run.
        let line = String::from_utf8_lossy(&bytes);
        if !line.trim().is_empty() {
            lines.push(line.trim().to_owned());
        }
        if lines.len() == BLOCK_LINES || (is_end && !lines.is_empty()) {
            work(&lines)?;
            lines.clear();
        }
        if is_end {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::vocabulary::{VocabularyLimits, tokenizer_from};

    #[test]
    fn documents_become_ids_closed_by_the_separator() {
        let text = "小区停水\n\n停水三天\n";
        let segmenter = Segmenter::default();
        let limits =
            VocabularyLimits { min_word_count: 1, min_char_count: 1, ..Default::default() };
        let (counts, size) = count_words(&mut text.as_bytes(), &segmenter, |_| ()).unwrap();
        assert_eq!((size.documents, size.characters), (2, 8));
        let encoder = Encoder::new(tokenizer_from(&counts.choose(limits)).unwrap(), 64, 8).unwrap();
        let mut out = Vec::new();
        let size = write_ids(&mut text.as_bytes(), &segmenter, &encoder, &mut out, |_| ()).unwrap();
        let ids: Vec<u32> =
            out.chunks(4).map(|it| u32::from_le_bytes(it.try_into().unwrap())).collect();
        let separators = ids.iter().filter(|&&it| it == encoder.special().last).count();
        assert_eq!((separators, size.unknown, ids.len() as u64), (2, 0, size.tokens + 2));
    }
}
