//! The arrows between rooms, which Cargo does not check inside one package.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::fs;
use std::path::{Path, PathBuf};

/// Each room, and the rooms it may use.
const ARROWS: [(&str, &[&str]); 24] = [
    ("domain", &[]),
    ("text", &["domain"]),
    ("model", &["domain", "text"]),
    ("pipeline", &["domain", "text", "model"]),
    ("evidence", &[]),
    ("reply", &["domain", "pipeline", "evidence"]),
    ("inference", &["domain", "pipeline", "telemetry"]),
    ("cache", &["domain"]),
    ("replay", &[]),
    ("keys", &[]),
    (
        "http",
        &[
            "domain",
            "pipeline",
            "evidence",
            "reply",
            "inference",
            "cache",
            "replay",
            "keys",
            "telemetry",
        ],
    ),
    ("rows", &[]),
    ("imports", &["rows"]),
    ("cases", &["domain", "imports"]),
    ("selection", &[]),
    ("suites", &["domain"]),
    ("registry", &["model"]),
    ("page", &["evaluation"]),
    ("scoring", &["domain", "pipeline", "reply", "rows"]),
    ("evaluation", &["domain", "text"]),
    ("training", &["domain", "text", "model", "evaluation"]),
    ("corpus", &["text"]),
    ("config", &[]),
    ("telemetry", &["config"]),
];

fn sources() -> Vec<(PathBuf, String)> {
    fn walk(dir: &Path, found: &mut Vec<(PathBuf, String)>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|it| it == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                // What tests use is their own affair.
                let code = text.split("#[cfg(test)]").next().unwrap_or_default().to_owned();
                found.push((path, code));
            }
        }
    }
    let mut found = Vec::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    assert!(found.len() > 30, "the sources were not found");
    found
}

fn room(path: &Path) -> String {
    let inside = path.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap();
    inside.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs").to_owned()
}

#[test]
fn arrows_point_one_way() {
    for (path, code) in sources() {
        let from = room(&path);
        let Some((_, allowed)) = ARROWS.iter().find(|it| it.0 == from) else {
            assert!(["main", "lib", "commands"].contains(&from.as_str()), "unknown room {from}");
            continue;
        };
        for part in code.split("crate::").skip(1) {
            let to: String =
                part.chars().take_while(|it| it.is_alphanumeric() || *it == '_').collect();
            assert!(
                to == from || allowed.contains(&to.as_str()),
                "{}: `{from}` may not use `{to}`",
                path.display()
            );
        }
    }
}

#[test]
fn libraries_stay_in_their_rooms() {
    let homes: [(&str, &[&str]); 15] = [
        ("candle", &["model", "training"]),
        ("rten_gemm", &["model"]),
        ("axum", &["http"]),
        // The collector of traces is called with it.
        ("hyper", &["http", "telemetry"]),
        ("rustls", &["http"]),
        ("prometheus_client", &["telemetry"]),
        ("opentelemetry", &["telemetry"]),
        ("quick_cache", &["cache"]),
        ("subtle", &["keys"]),
        ("plotters", &["page"]),
        ("calamine", &["imports"]),
        ("jieba_rs", &["text"]),
        ("clap", &["commands", "config", "main", "rows", "imports"]),
        ("std::env::var", &["config"]),
        ("unsafe ", &[]),
    ];
    for (path, code) in sources() {
        let from = room(&path);
        for (library, rooms) in homes {
            let is_used = code.lines().any(|line| {
                let line = line.trim_start();
                !line.starts_with("//") && line.contains(library)
            });
            assert!(!is_used || rooms.contains(&from.as_str()), "{}: {library}", path.display());
        }
    }
}
