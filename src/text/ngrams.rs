//! Character 1–3-grams and word 1–2-grams of a text, hashed into a fixed number of buckets.
//!
//! Source: Weinberger et al. 2009, "Feature Hashing for Large Scale Multitask Learning": no table of
//! n-grams is kept, so a bundle stays small and any n-gram costs a few nanoseconds.

use std::hash::Hasher;

use fnv::FnvHasher;

use super::Word;

/// `(bucket, 1 + ln(times it occurs))` in ascending order of buckets.
pub type Ngrams = Vec<(u32, f32)>;

/// The n-grams of `words`; those of characters fall into the lower half of `n_buckets`, those of words
/// into the upper. Characters run on over word borders.
pub fn ngrams(words: &[Word<'_>], n_buckets: usize) -> Ngrams {
    let half = (n_buckets / 2).max(1) as u64;
    let mut buckets = Vec::with_capacity(6 * words.len());
    let mut count = |parts: &[&str], offset: u64| {
        // FNV-1a: the same number on every machine and in every version of this program.
        let mut hasher = FnvHasher::default();
        for part in parts {
            hasher.write(part.as_bytes());
            hasher.write_u8(0xff); // Never inside UTF-8: "a b" is not "ab".
        }
        let hash = hasher.finish();
        buckets.push(((hash ^ (hash >> 32)) % half + offset) as u32);
    };
    let text: String = words.iter().map(|it| it.text).collect();
    let starts: Vec<usize> = text.char_indices().map(|it| it.0).chain([text.len()]).collect();
    for length in 1..=3 {
        for window in starts.windows(length + 1) {
            count(&[&text[window[0]..window[length]]], 0);
        }
    }
    let words: Vec<&str> = words.iter().map(|it| it.text).collect();
    for length in 1..=2 {
        for window in words.windows(length) {
            count(window, half);
        }
    }
    buckets.sort_unstable();
    buckets.chunk_by(u32::eq).map(|it| (it[0], 1.0 + (it.len() as f32).ln())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::Segmenter;

    fn of(text: &str) -> Ngrams {
        ngrams(&Segmenter::default().segment(text), 1 << 16)
    }

    #[test]
    fn ngrams_are_ordered_counted_and_in_their_half() {
        // 2 characters and 1 pair; 1 word.
        let once = of("停水");
        assert_eq!(once.len(), 4);
        assert_eq!(once.iter().filter(|it| it.0 >= 1 << 15).count(), 1);
        assert!(once.windows(2).all(|it| it[0].0 < it[1].0));
        let twice = of("停水停水");
        let weight = |its: &Ngrams| its.iter().find(|it| it.0 == once[0].0).unwrap().1;
        assert_eq!((weight(&once), weight(&twice)), (1.0, 1.0 + 2_f32.ln()));
    }

    #[test]
    fn a_bucket_is_the_same_in_every_version() {
        // A bundle's weights are indexed by these numbers: a change here needs a new bundle format.
        assert_eq!(of("水").iter().map(|it| it.0).collect::<Vec<_>>(), PINNED);
    }

    const PINNED: [u32; 2] = [2737, 35505];
}
