//! Words to token ids, in chunks the model can read.

use std::path::Path;

use thiserror::Error;
use tokenizers::{Model, Tokenizer};

use super::segment::Word;

/// Token ids of one chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoding {
    /// `[CLS] … [SEP]`, unpadded.
    pub ids: Vec<u32>,
}

/// Everything [`Encoder::encode`] found out about one text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Never empty; together they cover every token, neighbours overlap.
    pub chunks: Vec<Encoding>,
    /// Tokens of the text, each counted once.
    pub n_tokens: usize,
    /// How many of them the vocabulary does not know.
    pub n_unknown: usize,
}

/// Words to ids by a `tokenizer.json` whose model is a WordPiece without a continuation prefix: a
/// word outside the vocabulary falls back to the longest pieces inside it, at last to characters.
pub struct Encoder {
    tokenizer: Tokenizer,
    special: Special,
    chunk_tokens: usize,
    overlap_tokens: usize,
}

/// Ids of the special tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Special {
    /// `[UNK]`
    pub unknown: u32,
    /// `[CLS]`
    pub first: u32,
    /// `[SEP]`
    pub last: u32,
}

/// Why a tokenizer cannot be used.
#[derive(Debug, Error)]
pub enum EncoderError {
    /// Not a tokenizers file.
    #[error("tokenizer.json: {0}")]
    Tokenizer(tokenizers::Error),
    /// A special token is missing.
    #[error("tokenizer.json has no token `{0}`")]
    NoToken(&'static str),
    /// Chunks too small to move on.
    #[error("chunks of {chunk_tokens} tokens with an overlap of {overlap_tokens} make no progress")]
    Chunks {
        /// Tokens a chunk, `[CLS]` and `[SEP]` included.
        chunk_tokens: usize,
        /// Tokens neighbours share.
        overlap_tokens: usize,
    },
}

impl Encoder {
    /// # Errors
    /// [`EncoderError`] when `file` is not a tokenizer with our special tokens, or when chunks of
    /// `chunk_tokens` tokens (`[CLS]` and `[SEP]` included) sharing `overlap_tokens` never end.
    pub fn load(
        file: &Path,
        chunk_tokens: usize,
        overlap_tokens: usize,
    ) -> Result<Self, EncoderError> {
        let tokenizer = Tokenizer::from_file(file).map_err(EncoderError::Tokenizer)?;
        Self::new(tokenizer, chunk_tokens, overlap_tokens)
    }

    /// As [`Encoder::load`], from a tokenizer in memory.
    ///
    /// # Errors
    /// As [`Encoder::load`].
    pub fn new(
        tokenizer: Tokenizer,
        chunk_tokens: usize,
        overlap_tokens: usize,
    ) -> Result<Self, EncoderError> {
        if chunk_tokens < overlap_tokens + 3 {
            return Err(EncoderError::Chunks { chunk_tokens, overlap_tokens });
        }
        let id = |token| tokenizer.token_to_id(token).ok_or(EncoderError::NoToken(token));
        let special = Special { unknown: id("[UNK]")?, first: id("[CLS]")?, last: id("[SEP]")? };
        Ok(Self { tokenizer, special, chunk_tokens, overlap_tokens })
    }

    /// The tokenizer, as it is saved.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Ids of the special tokens.
    pub fn special(&self) -> Special {
        self.special
    }

    /// Token ids of `words`, without special tokens and unchunked.
    pub fn ids(&self, words: &[Word<'_>]) -> Vec<u32> {
        let mut ids = Vec::with_capacity(words.len() + words.len() / 8);
        for word in words {
            self.push_word(word.text, &mut ids);
        }
        ids
    }

    /// `words` as chunks of token ids.
    pub fn encode(&self, words: &[Word<'_>]) -> Encoded {
        let ids = self.ids(words);
        let n_unknown = ids.iter().filter(|&&it| it == self.special.unknown).count();
        let body = self.chunk_tokens - 2;
        let step = body - self.overlap_tokens;
        let mut chunks = Vec::with_capacity(1 + ids.len() / body);
        let mut begin = 0;
        loop {
            let end = (begin + body).min(ids.len());
            let mut chunk = Vec::with_capacity(end - begin + 2);
            chunk.push(self.special.first);
            chunk.extend_from_slice(&ids[begin..end]);
            chunk.push(self.special.last);
            chunks.push(Encoding { ids: chunk });
            if end == ids.len() {
                break;
            }
            begin += step;
        }
        Encoded { chunks, n_tokens: ids.len(), n_unknown }
    }

    fn push_word(&self, word: &str, ids: &mut Vec<u32>) {
        let model = self.tokenizer.get_model();
        if let Some(id) = model.token_to_id(word) {
            ids.push(id);
            return;
        }
        // WordPiece gives up on a whole word for one unknown character: cut around such characters.
        let mut known_from = 0;
        for (at, character) in word.char_indices() {
            if model.token_to_id(character.encode_utf8(&mut [0; 4])).is_none() {
                self.push_pieces(&word[known_from..at], ids);
                ids.push(self.special.unknown);
                known_from = at + character.len_utf8();
            }
        }
        self.push_pieces(&word[known_from..], ids);
    }

    fn push_pieces(&self, text: &str, ids: &mut Vec<u32>) {
        if text.is_empty() {
            return;
        }
        match self.tokenizer.get_model().tokenize(text) {
            Ok(pieces) => ids.extend(pieces.iter().map(|it| it.id)),
            Err(_) => ids.push(self.special.unknown),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::segment::Segmenter;
    use crate::text::vocabulary::tokenizer_from;

    fn encoder(chunk_tokens: usize, overlap_tokens: usize) -> Encoder {
        let words = ["停水", "小", "区", "停", "水", "电", "网", "a", "b"].map(str::to_owned);
        Encoder::new(tokenizer_from(&words).unwrap(), chunk_tokens, overlap_tokens).unwrap()
    }

    fn tokens(encoder: &Encoder, text: &str) -> Vec<String> {
        let words = Segmenter::default().segment(text);
        let ids = encoder.ids(&words);
        ids.iter().map(|&id| encoder.tokenizer.id_to_token(id).unwrap()).collect()
    }

    #[test]
    fn words_outside_the_vocabulary_fall_back_to_characters() {
        let encoder = encoder(64, 8);
        let cases: [(&str, &[&str]); 4] = [
            ("小区停水", &["小", "区", "停水"]),
            ("电网", &["电", "网"]),
            ("龘电", &["[UNK]", "电"]),
            ("abc", &["a", "b", "[UNK]"]),
        ];
        for (text, expected) in cases {
            assert_eq!(tokens(&encoder, text), expected, "{text}");
        }
    }

    #[test]
    fn placeholders_are_tokens() {
        assert_eq!(tokens(&encoder(64, 8), "<电话>@用户"), ["<电话>", "@用户"]);
    }

    #[test]
    fn chunks_cover_every_token_and_overlap() {
        let text = "停水电网小区".repeat(9);
        let words = Segmenter::default().segment(&text);
        let encoder = encoder(10, 3);
        let all = encoder.ids(&words);
        let encoded = encoder.encode(&words);
        assert!(encoded.chunks.len() > 1);
        let mut rebuilt: Vec<u32> = Vec::new();
        for (idx, chunk) in encoded.chunks.iter().enumerate() {
            assert!(chunk.ids.len() <= 10);
            let body = &chunk.ids[1..chunk.ids.len() - 1];
            rebuilt.extend(&body[if idx == 0 { 0 } else { 3 }..]);
        }
        assert_eq!((rebuilt, encoded.n_tokens), (all.clone(), all.len()));
    }

    #[test]
    fn python_sees_the_same_ids_for_joined_words() {
        let encoder = encoder(64, 8);
        let words = Segmenter::default().segment("小区停水，电网<电话>");
        let joined = words.iter().map(|it| it.text).collect::<Vec<_>>().join(" ");
        let python = encoder.tokenizer.encode(joined, true).unwrap();
        assert_eq!(python.get_ids(), encoder.encode(&words).chunks[0].ids);
    }
}
