//! Any text through the whole way to the model: no panic, spans inside the text, tokens within bounds, and the
//! same fingerprint for the same text.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::sync::LazyLock;

use opinion_triage::domain::case::{CaseText, MAX_TEXT_CHARS};
use opinion_triage::pipeline::Pipeline;
use proptest::prelude::*;

static PIPELINE: LazyLock<Pipeline> = LazyLock::new(Pipeline::for_tests);

fn check(text: &str) {
    let Ok(case) = CaseText::parse(text) else { return };
    let Ok(prepared) = PIPELINE.prepare(&case) else { return };
    let n_chars = text.chars().count();
    let report = &prepared.report;
    assert_eq!(report.characters, n_chars);
    assert_eq!(report.chunks, prepared.chunks.len());
    // A character of ours may be several of Unicode's (㍿ is four, ﷺ eighteen); a word has at least one token, and
    // chunks overlap by less than half and have two marks each.
    assert!(prepared.n_tokens() <= 3 * 18 * n_chars + 8, "{} tokens", prepared.n_tokens());
    let mut end = 0;
    for redaction in &report.redactions {
        assert!(end <= redaction.span.begin && redaction.span.begin < redaction.span.end);
        end = redaction.span.end;
    }
    assert!(end <= n_chars);
    assert_eq!(PIPELINE.prepare(&case).unwrap().fingerprint, prepared.fingerprint);
    assert!(prepared.fingerprint.is_some());
}

/// Pieces that the normaliser, the redactor and the segmenter care about.
fn piece() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<char>().prop_map(String::from),
        "[0-9]{1,20}",
        "[0-9 \\-+()（）]{1,20}",
        "[a-zA-Z0-9._@-]{1,20}",
        "[\u{4e00}-\u{9fff}]{1,6}",
        "[\u{ff01}-\u{ff5e}]{1,6}",
        "[\u{200b}-\u{200f}\u{202a}-\u{202e}\u{2060}-\u{2069}\u{feff}]{1,4}",
        "[\u{300}-\u{36f}]{1,8}",
        Just("<电话>".to_owned()),
        Just("13800138000".to_owned()),
        Just("😀👨‍👩‍👧".to_owned()),
        Just("ﷺ㍿㋿".to_owned()),
        Just("\u{0}\r\n\t".to_owned()),
    ]
}

proptest! {
    #[test]
    fn any_mixture_of_pieces_is_prepared(pieces in proptest::collection::vec(piece(), 1..30)) {
        check(&pieces.concat());
    }

    #[test]
    fn any_string_is_prepared(text in any::<String>()) {
        check(&text);
    }
}

/// The longest texts there may be, of what could make a pattern or a search go back again and again. Work that
/// grows with the square of the length would keep this test for minutes.
#[test]
fn the_longest_monotonous_texts_are_prepared() {
    let bases = [
        "1",
        "138",
        "0",
        "a",
        "@",
        "a@",
        "@a.",
        "1 ",
        "1-",
        "+86",
        "的",
        "停水",
        "京A",
        "X",
        ".",
        "-",
        "\u{301}",
        "\u{200b}a",
        "１",
        "ﷺ",
        "<电话>",
        "<",
        "我",
        "中华人民共和国",
    ];
    for base in bases {
        let text: String = base.chars().cycle().take(MAX_TEXT_CHARS).collect();
        check(&text);
    }
}
