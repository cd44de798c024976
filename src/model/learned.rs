//! Which texts a version has learned from, by fingerprint: figures on them would flatter, whatever the file
//! is called and however its rows are ordered.

use sha2::{Digest, Sha256};

/// Fingerprints of texts, sorted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Learned(Vec<u64>);

impl Learned {
    /// Of `texts`.
    pub fn of<'a>(texts: impl IntoIterator<Item = &'a str>) -> Self {
        Self::sorted(texts.into_iter().map(fingerprint).collect())
    }

    /// Of these texts and of those.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        Self::sorted([self.0.as_slice(), &other.0].concat())
    }

    /// Whether `text` is among them, but for punctuation, spaces and case.
    pub fn knows(&self, text: &str) -> bool {
        self.0.binary_search(&fingerprint(text)).is_ok()
    }

    /// Whether nothing is known of what was learned: a version made before this was written down.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Eight bytes each, the lowest first.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|it| it.to_le_bytes()).collect()
    }

    /// What [`to_bytes`](Self::to_bytes) wrote; none when it is not.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (values, rest) = bytes.as_chunks::<8>();
        let values: Vec<u64> = values.iter().map(|it| u64::from_le_bytes(*it)).collect();
        (rest.is_empty() && values.is_sorted()).then_some(Self(values))
    }

    fn sorted(mut values: Vec<u64>) -> Self {
        values.sort_unstable();
        values.dedup();
        Self(values)
    }
}

/// What reposts leave as it is: letters and digits; of a text without any, the text.
fn fingerprint(text: &str) -> u64 {
    let mut letters: String =
        text.chars().filter(|it| it.is_alphanumeric()).flat_map(char::to_lowercase).collect();
    if letters.is_empty() {
        text.clone_into(&mut letters);
    }
    let digest = Sha256::digest(letters);
    u64::from_le_bytes(std::array::from_fn(|at| digest[at]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_known_in_any_order_and_with_other_punctuation() {
        let learned = Learned::of(["小区停水了！", "谢谢", "？？"]);
        assert_eq!(learned, Learned::of(["谢谢", "？？", "小区停水了！", "谢谢"]));
        for (text, is_known) in
            [("小区停水了", true), ("？？", true), ("！！", false), ("小区停电了", false)]
        {
            assert_eq!(learned.knows(text), is_known, "{text}");
        }
        let both = learned.and(&Learned::of(["好评"]));
        assert!(both.knows("好评。") && both.knows("谢谢"));
        let bytes = both.to_bytes();
        assert_eq!(Learned::from_bytes(&bytes), Some(both));
        assert_eq!(Learned::from_bytes(&bytes[1..]), None);
    }
}
