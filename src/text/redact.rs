//! Personal data to placeholders, before anything else sees the text.

use std::sync::LazyLock;

use regex::Regex;

use super::normalize::Normalized;
use crate::domain::span::CharSpan;

/// A kind of personal data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PersonalData {
    /// Mobile and landline numbers; never public short numbers such as 110 or 12345.
    Phone,
    /// Resident identity numbers of 18 characters whose check character (MOD 11-2) is right.
    IdNumber,
    /// E-mail addresses.
    Email,
    /// Bank card numbers that pass the Luhn check.
    BankCard,
    /// Vehicle plates.
    Plate,
    /// `@` and a name.
    Handle,
    /// Web addresses, which may name a person's page.
    Url,
}

impl PersonalData {
    /// Every kind.
    pub const ALL: [Self; 7] = [
        Self::Phone,
        Self::IdNumber,
        Self::Email,
        Self::BankCard,
        Self::Plate,
        Self::Handle,
        Self::Url,
    ];

    /// Stable code.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Phone => "phone",
            Self::IdNumber => "id_number",
            Self::Email => "email",
            Self::BankCard => "bank_card",
            Self::Plate => "plate",
            Self::Handle => "handle",
            Self::Url => "url",
        }
    }

    /// The word of the vocabulary that stands for it.
    pub const fn placeholder(self) -> &'static str {
        match self {
            Self::Phone => "<电话>",
            Self::IdNumber => "<身份证>",
            Self::Email => "<邮箱>",
            Self::BankCard => "<银行卡>",
            Self::Plate => "<车牌>",
            Self::Handle => "@用户",
            Self::Url => "<网址>",
        }
    }
}

/// One masked place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Redaction {
    /// What was masked.
    pub kind: PersonalData,
    /// Where, in the submitted text.
    pub span: CharSpan,
}

/// Text free of personal data; the only text later steps accept.
#[derive(Debug, Clone)]
pub struct RedactedText {
    /// The text with placeholders.
    pub text: String,
    /// For each character of `text`, the span of the submitted text it came from.
    pub origins: Vec<CharSpan>,
    /// Masked places, in order.
    pub redactions: Vec<Redaction>,
}

/// One shape of personal data in normalized text.
struct Rule {
    kind: PersonalData,
    regex: Regex,
    /// What the shape alone cannot say.
    holds: fn(&str) -> bool,
    /// True when the match may not touch a further ASCII letter or digit.
    whole: bool,
}

/// In order of precedence: an earlier rule's match hides a later one's.
static RULES: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    let rule = |kind, pattern: &str, holds, whole| Rule {
        kind,
        regex: Regex::new(pattern).expect("the pattern is a constant a test compiles"),
        holds,
        whole,
    };
    use PersonalData::*;
    vec![
        rule(Url, r"(?:https?://|www\.)[!-+\--;=?-~]+", |_| true, false),
        rule(Email, r"[a-z0-9._%+-]+@[a-z0-9-]+(?:\.[a-z0-9-]+)*\.[a-z]{2,}", |_| true, false),
        rule(Handle, r"@[\p{Han}a-z0-9_-]{1,30}", |it| it != Handle.placeholder(), false),
        rule(IdNumber, r"[1-9][0-9]{5} ?[0-9]{8} ?[0-9]{3}[0-9x]", is_id_number, true),
        rule(
            IdNumber,
            r"[1-9][0-9]{14}",
            |it| is_date(1900, &it[6..8], &it[8..10], &it[10..12]),
            true,
        ),
        rule(BankCard, r"[3-6][0-9]{3}(?:[ -]?[0-9]){9,15}", is_bank_card, true),
        rule(
            Phone,
            r"(?:\+?86[ -]?|0086[ -]?)?1[3-9][0-9][ -]?[0-9]{4}[ -]?[0-9]{4}",
            |_| true,
            true,
        ),
        rule(
            Phone,
            r"\(?0(?:10|2[0-9]|[3-9][0-9]{2})\)?[ -]?[2-8][0-9]{6,7}(?:-[0-9]{1,4})?",
            |_| true,
            true,
        ),
        rule(Phone, r"[48]00-?[0-9]{3}-?[0-9]{4}", |_| true, true),
        rule(
            Plate,
            r"[京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼][a-z][ ·•-]?[a-z0-9]{4,5}[a-z0-9学警港澳挂领]",
            |it| it.bytes().any(|byte| byte.is_ascii_digit()),
            true,
        ),
        rule(Plate, r"使[0-9]{3}[ ·•-]?[0-9]{3}", |_| true, true),
    ]
});

/// `normalized` with personal data masked. Placeholders already there stay and are not reported.
pub fn redact(normalized: &Normalized) -> RedactedText {
    let text = normalized.text.as_str();
    let mut found: Vec<(usize, usize, PersonalData)> = Vec::new();
    // Every kind has a digit, an `@`, or a full stop between Latin letters.
    if text.bytes().any(|it| it.is_ascii_digit() || matches!(it, b'@' | b'.' | b':')) {
        for rule in RULES.iter() {
            let mut from = 0;
            while let Some(hit) = rule.regex.find_at(text, from) {
                let is_free =
                    found.iter().all(|&(begin, end, _)| hit.end() <= begin || end <= hit.start());
                if is_free
                    && (!rule.whole || is_whole(text, hit.start(), hit.end()))
                    && (rule.holds)(hit.as_str())
                {
                    found.push((hit.start(), hit.end(), rule.kind));
                    from = hit.end();
                } else {
                    // Another match may begin inside this one.
                    from =
                        hit.start() + text[hit.start()..].chars().next().map_or(1, char::len_utf8);
                }
            }
        }
    }
    found.sort_unstable_by_key(|it| it.0);
    mask(normalized, &found)
}

fn mask(normalized: &Normalized, found: &[(usize, usize, PersonalData)]) -> RedactedText {
    let mut out = RedactedText {
        text: String::with_capacity(normalized.text.len()),
        origins: Vec::with_capacity(normalized.origins.len()),
        redactions: Vec::with_capacity(found.len()),
    };
    let mut found = found.iter().peekable();
    let mut chars = normalized.text.char_indices().zip(&normalized.origins).peekable();
    while let Some(((byte, character), &origin)) = chars.next() {
        let Some(&&(_, end, kind)) = found.peek().filter(|it| it.0 == byte) else {
            out.text.push(character);
            out.origins.push(origin);
            continue;
        };
        found.next();
        let mut span = origin;
        while let Some((_, origin)) = chars.next_if(|((byte, _), _)| *byte < end) {
            span.end = origin.end;
        }
        out.redactions.push(Redaction { kind, span });
        out.text.push_str(kind.placeholder());
        out.origins.extend(kind.placeholder().chars().map(|_| span));
    }
    out
}

fn is_whole(text: &str, begin: usize, end: usize) -> bool {
    let touches = |it: Option<char>| it.is_some_and(|it| it.is_ascii_alphanumeric());
    !touches(text[..begin].chars().next_back()) && !touches(text[end..].chars().next())
}

/// GB 11643: a plausible birth date and a right check character.
fn is_id_number(text: &str) -> bool {
    const WEIGHTS: [u32; 17] = [7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2];
    let text = text.replace(' ', "");
    let sum: u32 =
        text.bytes().zip(WEIGHTS).map(|(digit, weight)| u32::from(digit - b'0') * weight).sum();
    let check = b"10x98765432"[(sum % 11) as usize];
    let century = text[6..8].parse::<u32>().unwrap_or(0);
    (18..=20).contains(&century)
        && is_date(century * 100, &text[8..10], &text[10..12], &text[12..14])
        && text.as_bytes()[17] == check
}

/// A date that can be, the length of its month aside.
fn is_date(century: u32, year: &str, month: &str, day: &str) -> bool {
    let number = |part: &str| part.parse::<u32>().unwrap_or(0);
    (1800..2100).contains(&(century + number(year)))
        && (1..=12).contains(&number(month))
        && (1..=31).contains(&number(day))
}

/// ISO/IEC 7812: 13 to 19 digits that pass the Luhn check.
fn is_bank_card(text: &str) -> bool {
    let digits: Vec<u32> = text.chars().filter_map(|it| it.to_digit(10)).collect();
    let doubled = |(idx, &digit): (usize, &u32)| match idx % 2 {
        0 => digit,
        _ if digit > 4 => digit * 2 - 9,
        _ => digit * 2,
    };
    (13..=19).contains(&digits.len())
        && digits.iter().rev().enumerate().map(doubled).sum::<u32>() % 10 == 0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::text::normalize;

    /// Hand-made numbers, valid and invalid forms; see `why` in the file.
    #[test]
    fn valid_forms_are_masked_and_others_stay() {
        #[derive(serde::Deserialize)]
        struct Vector {
            text: String,
            expected: String,
            why: String,
        }
        let vectors = include_str!("../../tests/vectors/redaction.jsonl");
        let vectors: Vec<Vector> =
            vectors.lines().map(|it| serde_json::from_str(it).unwrap()).collect();
        assert!(vectors.len() >= 200, "{}", vectors.len());
        let wrong: Vec<String> = vectors
            .iter()
            .map(|it| (it, redact(&normalize(&it.text)).text))
            .filter(|(it, actual)| *actual != it.expected)
            .map(|(it, actual)| format!("{}: {} became {actual}", it.why, it.text))
            .collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn a_redaction_names_its_place_in_the_submitted_text() {
        let redacted = redact(&normalize("　打１３８００１３８０００！"));
        assert_eq!(
            redacted.redactions,
            [Redaction { kind: PersonalData::Phone, span: CharSpan::new(2, 13) }]
        );
    }

    proptest! {
        #[test]
        fn any_text_keeps_the_invariants(text in "[0-9a-cx@.:/ 湘京·用户<>电话-]{0,60}") {
            let redacted = redact(&normalize(&text));
            prop_assert_eq!(redacted.text.chars().count(), redacted.origins.len());
            prop_assert!(redacted.redactions.is_sorted_by(|a, b| a.span.end <= b.span.begin));
        }
    }
}
