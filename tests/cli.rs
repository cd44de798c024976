//! The program from outside: output, exit codes, settings, and what it leaves on disk.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// Runs `triage` in `dir` with the shipped model, feeding it `input`.
fn triage(dir: &Path, args: &[&str], input: &[u8]) -> Output {
    triage_with(dir, args, input, &[])
}

fn triage_with(dir: &Path, args: &[&str], input: &[u8], env: &[(&str, &str)]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_triage"))
        .args(args)
        .current_dir(dir)
        .env_clear()
        .env("HOME", dir)
        .env("TMPDIR", dir)
        .env("TRIAGE_MODEL", Path::new(env!("CARGO_MANIFEST_DIR")).join("models/triage-base"))
        .envs(env.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that stops early closes the pipe; that is its right.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn classify_answers_and_writes_nothing_to_disk() {
    let home = tempfile::tempdir().unwrap();
    let post = "小区停水三天了，物业没人管";
    let people = triage(home.path(), &["classify", post], b"");
    assert!(people.status.success(), "{}", text(&people.stderr));
    assert!(text(&people.stdout).contains("问题类"), "{}", text(&people.stdout));
    let machine = triage(home.path(), &["classify", "--json"], post.as_bytes());
    let item: Value = serde_json::from_slice(&machine.stdout).unwrap();
    assert_eq!(item["type"]["code"], "problem");
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0);
}

#[test]
fn exit_codes_tell_failure_from_wrong_usage() {
    let home = tempfile::tempdir().unwrap();
    let cases: [(&[&str], i32, &str); 6] = [
        (&["classify", " "], 1, "empty"),
        (&["clasify", "x"], 2, "classify"),
        (&["score", "none.jsonl", "-o", "x.jsonl"], 1, "none.jsonl"),
        (&["score", "none.parquet"], 1, ".jsonl"),
        (&["evaluate", "x.jsonl", "--at-least", "f1=0.5"], 2, "macro_f1"),
        (&["--model", "nowhere", "classify", "x"], 1, "nowhere"),
    ];
    for (args, code, message) in cases {
        let output = triage(home.path(), args, b"");
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
        assert!(stderr.contains(message), "{args:?}: {stderr}");
    }
}

#[test]
fn a_wrong_setting_stops_the_start_and_names_the_right_one() {
    let home = tempfile::tempdir().unwrap();
    let output = triage_with(home.path(), &["classify", "x"], b"", &[("TRIAGE_THRAEDS", "2")]);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr.contains("did you mean `TRIAGE_THREADS`?"), "{stderr}");

    std::fs::write(home.path().join("triage.toml"), "[serve]\nprot = 1\n").unwrap();
    let output = triage(home.path(), &["serve"], b"");
    assert!(text(&output.stderr).contains("did you mean `serve.port`?"));

    std::fs::write(home.path().join("triage.toml"), "[serve]\nport = 9001\n").unwrap();
    let printed = |args: &[&str], env| {
        let output = triage_with(home.path(), args, b"", env);
        text(&output.stdout)
    };
    let args = ["serve", "--print-config"];
    assert!(printed(&args, &[]).contains("port = 9001"));
    assert!(printed(&args, &[("TRIAGE_PORT", "9002")]).contains("port = 9002"));
    let with_flag = ["serve", "--print-config", "--port", "9003"];
    assert!(printed(&with_flag, &[("TRIAGE_PORT", "9002")]).contains("port = 9003"));

    let remote = triage(home.path(), &["serve", "--host", "0.0.0.0"], b"");
    assert!(text(&remote.stderr).contains("--allow-remote"));
}

#[test]
fn a_new_key_is_shown_once_and_its_line_does_not_give_it_away() {
    let home = tempfile::tempdir().unwrap();
    let args = ["keys", "new", "console", "--role", "classify,operate"];
    let made = triage(home.path(), &args, b"");
    assert!(made.status.success(), "{}", text(&made.stderr));
    let (line, talk) = (text(&made.stdout), text(&made.stderr));
    let key = talk.lines().find(|it| it.starts_with("triage_")).unwrap();
    assert!(!line.contains(&key["triage_".len()..]), "{line}");
    std::fs::write(home.path().join("keys.toml"), &line).unwrap();
    let keys = opinion_triage::keys::KeysFile::load(&home.path().join("keys.toml")).unwrap();
    assert_eq!(keys.current().find(key).unwrap().name, "console");

    for (args, message) in [
        (&["keys", "new", "a b", "--role", "classify"][..], "name"),
        (&["serve", "--port", "0", "--keys", "none.toml"], "none.toml"),
        (&["serve", "--port", "0", "--tls-cert", "none.pem", "--tls-key", "none.pem"], "none.pem"),
    ] {
        let output = triage(home.path(), args, b"");
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(text(&output.stderr).contains(message), "{args:?}: {}", text(&output.stderr));
    }
    assert_eq!(triage(home.path(), &["keys", "new", "a"], b"").status.code(), Some(2));
}

#[test]
fn score_keeps_order_and_rows_and_names_every_error() {
    let home = tempfile::tempdir().unwrap();
    let rows = "{\"id\":\"a\",\"text\":\"路灯坏了\"}\n{\"id\":\"b\"}\nnonsense\n{\"id\":\"d\",\"text\":\"谢谢\"}\n";
    let piped = triage(home.path(), &["score", "-"], rows.as_bytes());
    assert!(piped.status.success(), "{}", text(&piped.stderr));
    let out: Vec<Value> =
        text(&piped.stdout).lines().map(|it| serde_json::from_str(it).unwrap()).collect();
    let statuses: Vec<&Value> = out.iter().map(|it| &it["status"]).collect();
    assert_eq!(statuses, ["ok", "error", "error", "ok"]);

    std::fs::write(home.path().join("in.jsonl"), rows).unwrap();
    let args = ["score", "in.jsonl", "-o", "out.csv"];
    assert!(triage(home.path(), &args, b"").status.success());
    let csv = std::fs::read_to_string(home.path().join("out.csv")).unwrap();
    assert_eq!(csv.lines().count(), 5);
    let errors = std::fs::read_to_string(home.path().join("out.csv.errors.jsonl")).unwrap();
    assert_eq!(errors.lines().count(), 2);
    // Nothing is overwritten unasked, and the partial file is gone.
    assert_eq!(triage(home.path(), &args, b"").status.code(), Some(1));
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 3);
}

#[test]
fn check_names_bad_rows_and_fails() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("c.csv"), "text,label\n路灯坏了,problem\n谢谢,thanks\n")
        .unwrap();
    let output = triage(home.path(), &["check", "c.csv"], b"");
    assert_eq!(output.status.code(), Some(1));
    let stdout = text(&output.stdout);
    assert!(stdout.contains("第 2 行") && stdout.contains("unknown_label"), "{stdout}");
    let json = triage(home.path(), &["check", "c.csv", "--json"], b"");
    let report: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((&report["rows"], &report["usable"]), (&2.into(), &1.into()));
}

/// The whole way of an analyst on the project's own cases: check, train, evaluate, classify.
#[test]
fn train_makes_a_bundle_that_evaluate_and_classify_use() {
    let home = tempfile::tempdir().unwrap();
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("datasets/cases.jsonl");
    let lines = std::fs::read_to_string(cases).unwrap();
    // Every tenth case: enough to run the way, not to learn much.
    let few: Vec<&str> = lines.lines().step_by(10).collect();
    std::fs::write(home.path().join("few.jsonl"), few.join("\n")).unwrap();
    let args = ["train", "few.jsonl", "-o", "mine", "--epochs", "1", "--test", "few.jsonl"];
    let output = triage(home.path(), &args, b"");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let card = std::fs::read_to_string(home.path().join("mine/README.md")).unwrap();
    assert!(card.contains("Test cases") && card.contains("macro_f1"), "{card}");
    let args = ["--model", "mine", "evaluate", "few.jsonl", "--baseline", "few.jsonl", "--json"];
    let output = triage(home.path(), &args, b"");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    for side in ["report", "baseline"] {
        assert_eq!(report[side]["n_cases"], few.len());
        assert!(report[side]["macro_f1"]["value"].as_f64().is_some());
    }
    let output = triage(home.path(), &["--model", "mine", "classify", "路灯坏了"], b"");
    assert!(output.status.success());
    // A version is never overwritten.
    let args = ["train", "few.jsonl", "-o", "mine", "--epochs", "1"];
    assert_eq!(triage(home.path(), &args, b"").status.code(), Some(1));
}
