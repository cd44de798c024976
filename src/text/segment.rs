//! Text to words: jieba with its default dictionary and, when given, a user dictionary.

use std::io::BufRead;
use std::sync::{Arc, LazyLock};

use jieba_rs::Jieba;
use thiserror::Error;

use super::redact::PersonalData;
use crate::domain::span::CharSpan;

/// One word of a text. White space is never part of a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Word<'a> {
    /// The word.
    pub text: &'a str,
    /// Its characters' place in the segmented text.
    pub span: CharSpan,
    /// Its first byte in the segmented text.
    pub byte: usize,
}

/// Cuts text into words. Cheap to clone; the dictionary is shared.
#[derive(Clone)]
pub struct Segmenter {
    jieba: Arc<Jieba>,
}

/// A user dictionary that cannot be read.
#[derive(Debug, Error)]
pub enum DictionaryError {
    /// The file cannot be read.
    #[error("user dictionary: {0}")]
    Read(#[from] std::io::Error),
    /// A frequency that is no whole number.
    #[error(
        "user dictionary, line {line}: the frequency is not a whole number; write `word [frequency [tag]]`"
    )]
    Frequency {
        /// Line, from 1.
        line: usize,
    },
}

// The default dictionary takes most of a cold start to load: once per process.
static DEFAULT: LazyLock<Arc<Jieba>> = LazyLock::new(|| Arc::new(Jieba::new()));

impl Default for Segmenter {
    fn default() -> Self {
        Self { jieba: Arc::clone(&DEFAULT) }
    }
}

impl Segmenter {
    /// A segmenter that also knows the words of `dictionary`: one `word [frequency [tag]]` a line.
    ///
    /// # Errors
    /// [`DictionaryError`] when a line cannot be read.
    pub fn with_user_dict(dictionary: &mut impl BufRead) -> Result<Self, DictionaryError> {
        let mut jieba = Jieba::new();
        for (idx, line) in dictionary.lines().enumerate() {
            let line = line?;
            let mut fields = line.split_whitespace();
            let Some(word) = fields.next().filter(|it| !it.starts_with('#')) else { continue };
            let frequency = fields.next().map(str::parse).transpose();
            let frequency = frequency.map_err(|_| DictionaryError::Frequency { line: idx + 1 })?;
            // Without a frequency jieba takes the one that just keeps the word whole.
            jieba.add_word(word, frequency, fields.next());
        }
        Ok(Self { jieba: Arc::new(jieba) })
    }

    /// The words of `text` in order. Placeholders of redacted data stay whole.
    pub fn segment<'a>(&self, text: &'a str) -> Vec<Word<'a>> {
        let mut words = Vec::with_capacity(text.len() / 4);
        let mut n_chars = 0;
        let mut byte = 0;
        while byte < text.len() {
            let rest = &text[byte..];
            let (placeholder_at, placeholder_len) = next_placeholder(rest);
            // The hidden Markov model is off: its words are not in the vocabulary, and it costs time.
            for token in self.jieba.cut(&rest[..placeholder_at], false) {
                push(&mut words, &mut n_chars, &mut byte, token.word);
            }
            if placeholder_len > 0 {
                let end = placeholder_at + placeholder_len;
                push(&mut words, &mut n_chars, &mut byte, &rest[placeholder_at..end]);
            }
        }
        words
    }
}

fn push<'a>(words: &mut Vec<Word<'a>>, n_chars: &mut usize, byte: &mut usize, text: &'a str) {
    let begin = *n_chars;
    *n_chars += text.chars().count();
    if !text.trim().is_empty() {
        words.push(Word { text, span: CharSpan::new(begin, *n_chars), byte: *byte });
    }
    *byte += text.len();
}

/// Byte offset and length of the first placeholder; the end of `text` and 0 when there is none.
fn next_placeholder(text: &str) -> (usize, usize) {
    for (at, _) in text.match_indices(['<', '@']) {
        for kind in PersonalData::ALL {
            if text[at..].starts_with(kind.placeholder()) {
                return (at, kind.placeholder().len());
            }
        }
    }
    (text.len(), 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts<'a>(words: &[Word<'a>]) -> Vec<&'a str> {
        words.iter().map(|it| it.text).collect()
    }

    #[test]
    fn words_carry_byte_and_character_offsets() {
        let text = "小区停水 三天了abc";
        for word in Segmenter::default().segment(text) {
            assert_eq!(&text[word.byte..word.byte + word.text.len()], word.text);
            let by_chars: String =
                text.chars().skip(word.span.begin).take(word.span.end - word.span.begin).collect();
            assert_eq!(by_chars, word.text);
        }
    }

    #[test]
    fn placeholders_stay_whole() {
        let words = Segmenter::default().segment("打<电话>问@用户，a<b");
        assert_eq!(texts(&words), ["打", "<电话>", "问", "@用户", "，", "a", "<", "b"]);
    }

    #[test]
    fn user_dictionary_keeps_local_names_whole() {
        let name = "柳溪湾镇";
        assert!(!texts(&Segmenter::default().segment(name)).contains(&name));
        let segmenter = Segmenter::with_user_dict(&mut "# 地名\n柳溪湾镇\n".as_bytes()).unwrap();
        assert_eq!(texts(&segmenter.segment("柳溪湾镇停水")), [name, "停水"]);
    }
}
