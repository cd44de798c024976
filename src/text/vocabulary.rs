//! Counting words of a corpus and choosing which become tokens.

use std::collections::HashMap;

use tokenizers::models::wordpiece::WordPiece;
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, Tokenizer};

use super::redact::PersonalData;
use super::segment::Word;

/// The special tokens, in id order from 0.
pub const SPECIAL_TOKENS: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];

/// Numbers longer than this are spelled in pieces: no vocabulary can hold them all.
const MAX_NUMBER_CHARS: usize = 4;

/// How many of what to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VocabularyLimits {
    /// Tokens in all, special tokens and placeholders included.
    pub vocab_size: usize,
    /// A word seen less often is left out.
    pub min_word_count: u64,
    /// A character seen less often is left out.
    pub min_char_count: u64,
}

impl Default for VocabularyLimits {
    fn default() -> Self {
        Self { vocab_size: 24_000, min_word_count: 5, min_char_count: 5 }
    }
}

/// Counts of words and characters; add texts, then [`WordCounts::choose`].
#[derive(Debug, Clone, Default)]
pub struct WordCounts {
    words: HashMap<String, u64>,
    chars: HashMap<char, u64>,
}

impl WordCounts {
    /// Counts the words of one text.
    pub fn add(&mut self, words: &[Word<'_>]) {
        for word in words {
            match self.words.get_mut(word.text) {
                Some(count) => *count += 1,
                None => {
                    self.words.insert(word.text.to_owned(), 1);
                }
            }
            for character in word.text.chars() {
                *self.chars.entry(character).or_default() += 1;
            }
        }
    }

    /// Adds the counts of `other`.
    pub fn merge(&mut self, other: Self) {
        for (word, count) in other.words {
            *self.words.entry(word).or_default() += count;
        }
        for (character, count) in other.chars {
            *self.chars.entry(character).or_default() += count;
        }
    }

    /// The words to keep, most needed first: every common character (so that any word can be
    /// spelled), then words by count; ties by spelling, so that the choice is reproducible.
    pub fn choose(&self, limits: VocabularyLimits) -> Vec<String> {
        let reserved = SPECIAL_TOKENS.len() + PersonalData::ALL.len();
        let mut chosen: Vec<String> = Vec::new();
        let printable_ascii = ('!'..='~').filter(|it| !it.is_ascii_uppercase());
        let mut taken: std::collections::HashSet<String> = SPECIAL_TOKENS
            .iter()
            .map(|it| (*it).to_owned())
            .chain(PersonalData::ALL.iter().map(|it| it.placeholder().to_owned()))
            .collect();
        let mut chars: Vec<(char, u64)> = self
            .chars
            .iter()
            .map(|(&character, &count)| (character, count))
            .filter(|&(_, count)| count >= limits.min_char_count)
            .collect();
        chars.sort_by_key(|&(character, count)| (std::cmp::Reverse(count), character));
        let mut words: Vec<(&String, u64)> = self
            .words
            .iter()
            .map(|(word, &count)| (word, count))
            .filter(|&(word, count)| {
                let is_long_number =
                    word.len() > MAX_NUMBER_CHARS && word.bytes().all(|it| it.is_ascii_digit());
                count >= limits.min_word_count && !is_long_number
            })
            .collect();
        words.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(b.0)));
        let candidates = printable_ascii
            .map(String::from)
            .chain(chars.into_iter().map(|(character, _)| String::from(character)))
            .chain(words.into_iter().map(|(word, _)| word.clone()));
        for word in candidates {
            if chosen.len() + reserved >= limits.vocab_size {
                break;
            }
            if taken.insert(word.clone()) {
                chosen.push(word);
            }
        }
        chosen
    }
}

/// A tokenizer over special tokens, placeholders and `words`, in that id order. It loads in Python
/// `tokenizers` too and gives the same ids for text whose words are joined by spaces.
///
/// # Errors
/// Whatever the tokenizers crate refuses, for instance a template without its tokens.
pub fn tokenizer_from(words: &[String]) -> Result<Tokenizer, tokenizers::Error> {
    let placeholders = PersonalData::ALL.map(|it| it.placeholder().to_owned());
    let vocab = SPECIAL_TOKENS
        .iter()
        .map(|it| (*it).to_owned())
        .chain(placeholders)
        .chain(words.iter().cloned())
        .zip(0_u32..)
        .collect::<Vec<_>>();
    let id = |token: &str| vocab.iter().find(|it| it.0 == token).map_or(0, |it| it.1);
    let (first, last) = (id("[CLS]"), id("[SEP]"));
    let model = WordPiece::builder()
        .vocab(vocab.into_iter().collect::<ahash::AHashMap<_, _>>())
        .unk_token("[UNK]".into())
        .continuing_subword_prefix(String::new())
        .build()?;
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(WhitespaceSplit));
    tokenizer.with_post_processor(Some(
        TemplateProcessing::builder()
            .try_single("[CLS] $A [SEP]")?
            .try_pair("[CLS] $A [SEP] $B [SEP]")?
            .special_tokens(vec![("[CLS]", first), ("[SEP]", last)])
            .build()?,
    ));
    tokenizer.add_special_tokens(SPECIAL_TOKENS.map(|it| AddedToken::from(it, true)))?;
    Ok(tokenizer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::segment::Segmenter;

    #[test]
    fn choose_keeps_characters_before_words_and_is_reproducible() {
        let mut counts = WordCounts::default();
        let segmenter = Segmenter::default();
        for _ in 0..5 {
            counts.add(&segmenter.segment("小区停水停电，12345678"));
        }
        let chosen = counts.choose(VocabularyLimits::default());
        assert_eq!(chosen, counts.clone().choose(VocabularyLimits::default()));
        let at = |word: &str| chosen.iter().position(|it| it == word);
        assert!(at("停") < at("停水") && at("停水").is_some() && at("小区").is_some());
        assert_eq!(at("12345678"), None);
        let few = counts.choose(VocabularyLimits { vocab_size: 20, ..Default::default() });
        assert_eq!(few.len() + SPECIAL_TOKENS.len() + PersonalData::ALL.len(), 20);
    }
}
