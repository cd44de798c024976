//! One form for one text: width, invisible characters, script, white space, case.

use std::collections::{BTreeSet, HashMap};
use std::sync::LazyLock;

use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;

use crate::domain::span::CharSpan;

/// A normalized text and the way back to the submitted one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Normalized {
    /// The normalized text.
    pub text: String,
    /// For each character of `text`, the span of the submitted text it came from; never falling.
    pub origins: Vec<CharSpan>,
    /// What was changed, each kind once, in the order of [`Change`].
    pub changes: Vec<Change>,
}

/// A kind of change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// Compatibility forms: full-width letters and digits, circled numbers, composed accents (NFKC).
    Width,
    /// Zero-width, directional, variation and control characters, taken out.
    Invisible,
    /// Traditional characters, written simplified.
    Simplified,
    /// White space, folded to single spaces and trimmed.
    Whitespace,
    /// Capital letters, written small.
    Case,
}

impl Change {
    /// Stable code.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Width => "width",
            Self::Invisible => "invisible",
            Self::Simplified => "simplified",
            Self::Whitespace => "whitespace",
            Self::Case => "case",
        }
    }
}

/// `text` normalized; linear in its length, defined for every string.
///
/// Characters are converted one by one, so that each keeps its place in the submitted text.
pub fn normalize(text: &str) -> Normalized {
    let mut out = Output {
        text: String::with_capacity(text.len()),
        origins: Vec::new(),
        pending_space: None,
    };
    let mut changes = BTreeSet::new();
    let mut chars = text.chars().enumerate().peekable();
    let mut composed = String::new();
    while let Some((begin, first)) = chars.next() {
        let mut end = begin + 1;
        composed.clear();
        composed.push(first);
        // A letter goes with the accents that follow it. The bound keeps hostile stacks linear.
        while let Some(&(idx, mark)) = chars.peek()
            && is_combining_mark(mark)
            && end - begin < MAX_CLUSTER_CHARS
        {
            composed.push(mark);
            end = idx + 1;
            chars.next();
        }
        let span = CharSpan::new(begin, end);
        if end == begin + 1 && is_plain(first) {
            out.push(first, span);
            continue;
        }
        let nfkc: String = composed.nfkc().collect();
        if nfkc != composed && !first.is_whitespace() {
            changes.insert(Change::Width);
        }
        for character in nfkc.chars() {
            push_converted(character, span, &mut out, &mut changes);
        }
        if first.is_whitespace() && first != ' ' {
            changes.insert(Change::Whitespace);
        }
    }
    // A run of blanks, or blanks at an end, came out shorter than it went in.
    if out.folded_space(text) {
        changes.insert(Change::Whitespace);
    }
    Normalized { text: out.text, origins: out.origins, changes: changes.into_iter().collect() }
}

/// Longest run of a character and its combining marks that is composed as one.
const MAX_CLUSTER_CHARS: usize = 16;

/// Simplified form of each traditional character that is written otherwise.
static SIMPLIFIED: LazyLock<HashMap<char, char>> = LazyLock::new(|| {
    let simplified = |traditional: char| {
        let converted = hanconv::t2s(traditional.to_string());
        let mut chars = converted.chars();
        let first = chars.next()?;
        (chars.next().is_none() && first != traditional).then_some((traditional, first))
    };
    ('\u{3400}'..='\u{9fff}').filter_map(simplified).collect()
});

/// True for characters that stay as they are: nearly every character of nearly every post.
fn is_plain(it: char) -> bool {
    match it {
        '!'..='@' | '['..='~' | '。' | '、' | '《' | '》' | '“' | '”' | '‘' | '’' => {
            true
        }
        '\u{4e00}'..='\u{9fff}' => !SIMPLIFIED.contains_key(&it),
        _ => false,
    }
}

fn is_invisible(it: char) -> bool {
    it.is_control()
        || matches!(it,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
            | '\u{ffa0}' | '\u{fff9}'..='\u{fffb}' | '\u{1f3fb}'..='\u{1f3ff}'
            | '\u{e0000}'..='\u{e0fff}')
}

fn push_converted(it: char, span: CharSpan, out: &mut Output, changes: &mut BTreeSet<Change>) {
    if it.is_whitespace() {
        out.pending_space.get_or_insert(span);
    } else if is_invisible(it) {
        changes.insert(Change::Invisible);
    } else if let Some(&simplified) = SIMPLIFIED.get(&it) {
        changes.insert(Change::Simplified);
        out.push(simplified, span);
    } else {
        for lower in it.to_lowercase() {
            if lower != it {
                changes.insert(Change::Case);
            }
            // Lower case may bring a mark of its own (the dotted capital I); it stays.
            out.push(lower, span);
        }
    }
}

struct Output {
    text: String,
    origins: Vec<CharSpan>,
    /// A blank that is written only when something follows.
    pending_space: Option<CharSpan>,
}

impl Output {
    fn push(&mut self, it: char, span: CharSpan) {
        if let Some(space) = self.pending_space.take()
            && !self.text.is_empty()
        {
            self.text.push(' ');
            self.origins.push(space);
        }
        self.text.push(it);
        self.origins.push(span);
    }

    fn folded_space(&self, submitted: &str) -> bool {
        let blanks = |text: &str| text.chars().filter(|it| it.is_whitespace()).count();
        blanks(submitted) != blanks(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn normalize_folds_what_readers_do_not_see() {
        use Change::*;
        let cases: [(&str, &str, &[Change]); 10] = [
            ("小区停水三天了。", "小区停水三天了。", &[]),
            ("１３８ＡＢ", "138ab", &[Width, Case]),
            ("停\u{200b}水\u{feff}", "停水", &[Invisible]),
            ("自來水廠", "自来水厂", &[Simplified]),
            ("  停水 \n\n 三天\t", "停水 三天", &[Whitespace]),
            ("停　水", "停 水", &[Whitespace]),
            ("Cafe\u{301}", "café", &[Width, Case]),
            ("着火了🔥\u{fe0f}", "着火了🔥", &[Invisible]),
            ("①号楼", "1号楼", &[Width]),
            ("\u{0}\u{7}", "", &[Invisible]),
        ];
        for (text, expected, changes) in cases {
            let normalized = normalize(text);
            assert_eq!(
                (normalized.text.as_str(), normalized.changes.as_slice()),
                (expected, changes)
            );
        }
    }

    #[test]
    fn common_simplified_characters_stay() {
        let text = "我们的小区物业服务中心后面里只干面准松冲台";
        assert_eq!(normalize(text).text, text);
    }

    #[test]
    fn origins_lead_back_to_the_submitted_text() {
        let normalized = normalize("  Ａ廠\u{200b} 水");
        let spans: Vec<(usize, usize)> =
            normalized.origins.iter().map(|it| (it.begin, it.end)).collect();
        assert_eq!(normalized.text, "a厂 水");
        assert_eq!(spans, [(2, 3), (3, 4), (5, 6), (6, 7)]);
    }

    proptest! {
        #[test]
        fn any_text_keeps_the_invariants(text in "\\PC{0,40}|[\\s\\u{300}-\\u{310}a-zA-Z０-９壹廠\\u{200b}\\u{0}]{0,40}") {
            let normalized = normalize(&text);
            let n_submitted = text.chars().count();
            prop_assert_eq!(normalized.text.chars().count(), normalized.origins.len());
            prop_assert!(normalized.origins.iter().all(|it| it.begin < it.end && it.end <= n_submitted));
            prop_assert!(normalized.origins.is_sorted_by_key(|it| it.begin));
            prop_assert!(!normalized.text.contains("  "));
            prop_assert_eq!(normalized.text.trim(), normalized.text.as_str());
        }
    }
}
