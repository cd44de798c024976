//! Half-open ranges of characters.

/// A half-open range `begin..end` of character (Unicode code point) offsets into a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CharSpan {
    /// First character inside.
    pub begin: usize,
    /// First character after.
    pub end: usize,
}

impl CharSpan {
    /// The span `begin..end`.
    pub const fn new(begin: usize, end: usize) -> Self {
        Self { begin, end }
    }

    /// True when the two spans share at least one character.
    pub const fn overlaps(self, other: Self) -> bool {
        self.begin < other.end && other.begin < self.end
    }
}
