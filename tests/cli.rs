//! The program from outside: output, exit codes, settings, and what it leaves on disk.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::io::{BufRead, Write};
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
    assert!(stdout.contains("第 3 行") && stdout.contains("unknown_label"), "{stdout}");
    let json = triage(home.path(), &["check", "c.csv", "--json"], b"");
    let report: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((&report["rows"], &report["usable"]), (&2.into(), &1.into()));
}

#[test]
fn check_reads_exports_and_names_what_a_person_should_see() {
    let home = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(home.path().join(name), bytes).unwrap();
    let check = |args: &[&str]| -> (Option<i32>, Value) {
        let args = [&["check", "--json"], args].concat();
        let output = triage(home.path(), &args, b"");
        (output.status.code(), serde_json::from_slice(&output.stdout).unwrap())
    };
    let codes = |report: &Value| -> Vec<String> {
        let problems = report["problems"].as_array().unwrap().iter();
        let of_rows = problems.filter(|it| it["code"] != "few_cases");
        of_rows.map(|it| format!("{} {}", it["row"], it["code"].as_str().unwrap())).collect()
    };
    let long = "小区停水三天了物业一直没有人管我们打了很多次电话都没有用希望尽快处理";
    let rows = format!(
        "text,label\n{long},problem\n{long}！！,problem\n{long}。,suggestion\n请打13812345678找我,none\n"
    );
    write("a.csv", rows.as_bytes());
    let (code, report) = check(&["a.csv"]);
    assert_eq!(code, Some(0));
    let expected = ["2 near_duplicate", "3 near_duplicate_conflict", "4 personal_data"];
    assert_eq!(codes(&report), expected);
    assert!(!report.to_string().contains("13812345678"));

    let (gbk, _, _) = encoding_rs::GBK.encode(&rows);
    write("gbk.csv", &gbk);
    let (code, report) = check(&["gbk.csv"]);
    assert_eq!((code, codes(&report)[0].as_str()), (Some(0), "0 converted_encoding"));
    assert_eq!(report["usable"], 4);

    write("class.csv", "problem,路灯坏了\nnone,谢谢\n".as_bytes());
    assert_eq!(check(&["class.csv"]).1["usable"], 2);
    write("f.txt", "__label__照明 路灯坏了\n__label__绿化 树倒了\n".as_bytes());
    assert_eq!(check(&["f.txt"]).0, Some(1));
    let (code, report) = check(&["f.txt", "--any-label"]);
    assert_eq!((code, &report["labels"]["照明"]), (Some(0), &1.into()));
    write("who.jsonl", "{\"text\":\"x\",\"label\":[\"none\"],\"nickname\":\"y\"}\n".as_bytes());
    let (code, report) = check(&["who.jsonl"]);
    assert_eq!((code, codes(&report)), (Some(1), vec!["1 author_field".to_owned()]));
    let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/cases.xlsx");
    assert_eq!(check(&[vectors.to_str().unwrap()]).1["usable"], 2);
}

#[test]
fn select_marks_a_fair_share_and_repeats_itself() {
    let home = tempfile::tempdir().unwrap();
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("datasets/cases.jsonl");
    let posts: Vec<String> = std::fs::read_to_string(cases)
        .unwrap()
        .lines()
        .step_by(6)
        .map(|line| {
            let case: Value = serde_json::from_str(line).unwrap();
            serde_json::json!({"id": case["id"], "text": case["text"]}).to_string()
        })
        .chain([
            r#"{"id":"phone","text":"请打13812345678找我，谢谢"}"#.to_owned(),
            r#"{"id":"who","text":"x","nickname":"y"}"#.to_owned(),
        ])
        .collect();
    std::fs::write(home.path().join("posts.jsonl"), posts.join("\n")).unwrap();
    let select = |n: &str, seed: &str| {
        let args = ["select", "posts.jsonl", "-n", n, "--random-share", "0.4", "--seed", seed];
        let output = triage(home.path(), &args, b"");
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let rows = |out: &str| -> Vec<Value> {
        out.lines().map(|it| serde_json::from_str(it).unwrap()).collect()
    };
    let chosen = rows(&select("20", "1"));
    let count = |reason: &str| chosen.iter().filter(|it| it["selected"] == reason).count();
    assert_eq!((count("random"), count("uncertain"), count("diverse")), (8, 6, 6));
    assert!(chosen.iter().all(|it| it["label"].is_null() && it["id"] != "who"));
    assert_eq!(select("20", "1"), select("20", "1"));
    assert_ne!(select("20", "1"), select("20", "2"));
    // All of them: the phone number is masked, and check takes the file once it is labelled.
    let all = select("1000", "1");
    assert!(all.contains("请打<电话>找我") && !all.contains("13812345678"));
    let label = |out: &str| {
        let labelled = out.replace("\"label\":null", "\"label\":\"none\"");
        std::fs::write(home.path().join("labelled.jsonl"), labelled).unwrap();
    };
    label(&all);
    assert!(triage(home.path(), &["check", "labelled.jsonl"], b"").status.success());
    // Figures come from the random share alone.
    label(&select("20", "1"));
    let output = triage(home.path(), &["evaluate", "labelled.jsonl", "--json"], b"");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["report"]["n_cases"], 8);
    assert!(text(&output.stderr).contains("不用于评估"));
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

/// Every fifth of the project's own cases, in `home/few.jsonl`.
fn few_cases(home: &Path) {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("datasets/cases.jsonl");
    let lines = std::fs::read_to_string(cases).unwrap();
    let few: Vec<&str> = lines.lines().step_by(5).collect();
    std::fs::write(home.join("few.jsonl"), few.join("\n")).unwrap();
}

/// Starts `triage train few.jsonl` and waits until its first checkpoint is there.
#[cfg(unix)]
fn train_until_checkpoint(home: &Path, args: &[&str]) -> std::process::Child {
    let mut child = Command::new(env!("CARGO_BIN_EXE_triage"))
        .args(args)
        .current_dir(home)
        .env("TRIAGE_MODEL", Path::new(env!("CARGO_MANIFEST_DIR")).join("models/triage-base"))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    while !home.join("state/training.safetensors").exists() {
        assert!(child.try_wait().unwrap().is_none(), "it ended without a checkpoint");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    child
}

#[cfg(unix)]
#[test]
fn a_killed_training_goes_on_to_the_same_weights() {
    let home = tempfile::tempdir().unwrap();
    few_cases(home.path());
    let train = ["train", "few.jsonl", "--epochs", "3", "--checkpoint", "state", "-o", "cut"];
    let mut child = train_until_checkpoint(home.path(), &train);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!home.path().join("cut").exists());
    // Another training is refused by the name of what differs.
    for (change, code) in [
        (["--learning-rate", "0.001"], "checkpoint_settings"),
        (["--validation-share", "0.2"], "checkpoint_split"),
    ] {
        let refused = triage(home.path(), &[train.as_slice(), &change].concat(), b"");
        assert_eq!(refused.status.code(), Some(1), "{code}");
        assert!(text(&refused.stderr).contains(code), "{code}: {}", text(&refused.stderr));
    }
    let resumed = triage(home.path(), &train, b"");
    assert!(resumed.status.success(), "{}", text(&resumed.stderr));
    assert!(text(&resumed.stderr).contains("接着上次"), "{}", text(&resumed.stderr));
    assert!(!home.path().join("state/training.safetensors").exists());
    let args = ["train", "few.jsonl", "--epochs", "3", "-o", "whole"];
    assert!(triage(home.path(), &args, b"").status.success());
    for name in ["model.safetensors", "metrics.json"] {
        let read = |dir: &str| std::fs::read(home.path().join(dir).join(name)).unwrap();
        assert!(read("cut") == read("whole"), "{name} differs");
    }
}

#[cfg(unix)]
#[test]
fn an_interrupted_training_leaves_a_candidate_that_says_so() {
    let home = tempfile::tempdir().unwrap();
    few_cases(home.path());
    let train = ["train", "few.jsonl", "--epochs", "40", "--checkpoint", "state", "-o", "early"];
    let mut child = train_until_checkpoint(home.path(), &train);
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(3));
    let read = |name: &str| std::fs::read_to_string(home.path().join("early").join(name)).unwrap();
    assert!(read("README.md").contains("| stopped early by the operator | yes"));
    assert!(read("bundle.toml").contains("stopped_early = true"));
    let metrics: Value = serde_json::from_str(&read("metrics.json")).unwrap();
    assert_eq!(metrics["stopped_early"], true);
    assert!(metrics["validation"]["macro_f1"]["value"].is_number());
    let output = triage(home.path(), &["--model", "early", "classify", "路灯坏了"], b"");
    assert!(output.status.success(), "{}", text(&output.stderr));
    // What was done is not lost.
    assert!(home.path().join("state/training.safetensors").exists());
}

#[cfg(unix)]
#[test]
fn sigterm_is_heard_like_ctrl_c_and_a_second_signal_ends_at_once() {
    let home = tempfile::tempdir().unwrap();
    few_cases(home.path());
    let train = ["train", "few.jsonl", "--epochs", "40", "--checkpoint", "state", "-o", "none"];
    let mut child = train_until_checkpoint(home.path(), &train);
    let pid = child.id().to_string();
    let send = |signal: &str| {
        let sent = Command::new("kill").args([signal, pid.as_str()]).status().unwrap();
        assert!(sent.success());
    };
    send("-TERM");
    let heard = std::io::BufReader::new(child.stderr.take().unwrap());
    assert!(heard.lines().any(|it| it.unwrap().contains("再按一次立即退出")));
    send("-INT");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(!home.path().join("none").exists());
}

#[test]
fn dated_cases_are_split_by_time() {
    let home = tempfile::tempdir().unwrap();
    let mut csv = "text,label,date\n".to_owned();
    for idx in 0..60 {
        // Texts of their own: near-copies would be as old as the oldest of them.
        let at = |place: u32| char::from_u32(0x4e00 + (idx * 331 + place * 17) % 9000).unwrap();
        let place: String = (0..24).map(at).collect();
        let (said, label) = if idx % 2 == 0 {
            ("路灯坏了看不见", "problem")
        } else {
            ("谢谢帮忙", "suggestion")
        };
        csv += &format!("{place}{said},{label},2026-{:02}-01\n", 1 + idx / 6);
    }
    std::fs::write(home.path().join("dated.csv"), &csv).unwrap();
    let train = ["train", "dated.csv", "--frozen", "--epochs", "1", "-o"];
    let output = triage(home.path(), &[train.as_slice(), &["a"]].concat(), b"");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let manifest = std::fs::read_to_string(home.path().join("a/bundle.toml")).unwrap();
    assert!(manifest.contains("split = \"by time, from 2026-10-01\""), "{manifest}");
    assert!(manifest.contains("validation_cases = 6"), "{manifest}");
    let page = std::fs::read_to_string(home.path().join("a.report.html")).unwrap();
    assert!(page.contains("by time, from 2026-10-01") && page.contains("sha256:"));
    let undated = csv.replacen("2026-01-01", "", 1);
    std::fs::write(home.path().join("dated.csv"), undated).unwrap();
    let args = [train.as_slice(), &["b", "--split", "time"]].concat();
    let refused = triage(home.path(), &args, b"");
    assert!(text(&refused.stderr).contains("undated_cases: 1 of 60"), "{}", text(&refused.stderr));
}

/// From a fresh models directory to a promotion that a running service follows, and back.
#[test]
fn a_promotion_passes_the_gates_reaches_the_service_and_rolls_back() {
    let home = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let models = home.path().join("models");
    copy_dir(&root.join("models/triage-base"), &models.join("triage-base"));
    let lines = std::fs::read_to_string(root.join("datasets/cases.jsonl")).unwrap();
    let lines: Vec<&str> = lines.lines().collect();
    let part = |name: &str, skip: usize| {
        let rows: Vec<&str> = lines.iter().skip(skip).step_by(16).copied().collect();
        std::fs::write(home.path().join(name), rows.join("\n")).unwrap();
    };
    part("train.jsonl", 0);
    part("held.jsonl", 1);
    // No model is named, so that the registry decides.
    let run = |args: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_triage"))
            .args(args)
            .current_dir(home.path())
            .env_clear()
            .output()
            .unwrap()
    };
    let registry = || std::fs::read_to_string(models.join("registry.toml")).unwrap_or_default();
    let args = ["train", "train.jsonl", "-o", "models/mine", "--epochs", "1", "--frozen"];
    let output = run(&args);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(registry().contains("[candidate]") && !registry().contains("[production]"));
    let page = std::fs::read_to_string(home.path().join("models/mine.report.html")).unwrap();
    assert!(page.contains("词法基线") && page.contains("<svg"));
    // The version in use may have learned from what is held out here.
    assert!(text(&output.stderr).contains("different_split"), "{}", text(&output.stderr));

    // Cases that taught the candidate say nothing about it.
    let output = run(&["models", "promote", "--cases", "train.jsonl"]);
    assert!(text(&output.stderr).contains("trained_on_cases"), "{}", text(&output.stderr));
    // In another order, and only some of them, they are the same cases.
    let rows: Vec<String> = std::fs::read_to_string(home.path().join("train.jsonl"))
        .map(|it| it.lines().rev().skip(3).map(str::to_owned).collect())
        .unwrap();
    std::fs::write(home.path().join("reversed.jsonl"), rows.join("\n")).unwrap();
    for command in ["promote", "policy"] {
        let args = ["models", command, "candidate", "--cases", "reversed.jsonl"];
        let stderr = text(&run(&args).stderr);
        assert!(stderr.contains("trained_on_cases"), "{command}: {stderr}");
    }
    // Gates that nothing can pass name themselves, and production stays as it is.
    let output = run(&["models", "promote", "--cases", "held.jsonl", "--f1-margin=-1"]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = text(&output.stderr);
    assert!(stderr.contains("gate_closed") && stderr.contains("f1.problem"), "{stderr}");
    assert!(!registry().contains("[production]"));

    let mut child = Command::new(env!("CARGO_BIN_EXE_triage"))
        .args(["serve", "--port", "0", "--log-format", "json"])
        .current_dir(home.path())
        .env_clear()
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = std::io::BufReader::new(child.stderr.take().unwrap());
    let mut until = |what: &str| loop {
        let mut line = String::new();
        assert!(std::io::BufRead::read_line(&mut log, &mut line).unwrap() > 0, "no {what}");
        if line.contains(what) {
            break serde_json::from_str::<Value>(&line).unwrap();
        }
    };
    until("ready");
    let open = [
        "models",
        "promote",
        "--cases",
        "held.jsonl",
        "--f1-margin",
        "1",
        "--recall-margin",
        "1",
        "--accusation-margin",
        "1",
        "--max-accusation-upper",
        "1",
        "--ece-margin",
        "1",
        "--criticism-margin",
        "1",
        "--level-margin",
        "2",
        "--json",
    ];
    let output = run(&open);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let evidence: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(evidence["migration"]["n"], evidence["cases"]["n"]);
    assert!(registry().contains("[production]") && registry().contains("[previous]"));
    let swapped = until("model swapped");
    assert!(swapped.to_string().contains("\"mine\""), "{swapped}");
    let listed: Value = serde_json::from_slice(&run(&["models", "list", "--json"]).stdout).unwrap();
    assert_eq!(listed["versions"][0]["aliases"][0], "production");

    // A damaged version does not go back into production, and a good one does.
    let weights = models.join("triage-base/model.safetensors");
    let whole = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &whole[1..]).unwrap();
    assert_eq!(run(&["models", "verify"]).status.code(), Some(1));
    let before = registry();
    assert_eq!(run(&["models", "rollback"]).status.code(), Some(1));
    assert_eq!(registry(), before);
    std::fs::write(&weights, &whole).unwrap();
    assert!(run(&["models", "verify"]).status.success());
    assert!(run(&["models", "rollback"]).status.success());
    let swapped = until("model swapped");
    assert!(swapped.to_string().contains("triage-base"), "{swapped}");
    child.kill().unwrap();
    child.wait().unwrap();
    let log = std::fs::read_to_string(models.join("promotions.jsonl")).unwrap();
    assert_eq!(log.lines().count(), 2);
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// Labels of one's own, from one's own columns: trained, evaluated, served without handling steps, and with
/// them when a taxonomy explains them.
#[test]
fn another_taxonomy_trains_evaluates_and_answers() {
    let home = tempfile::tempdir().unwrap();
    let write = |name: &str, rows: std::ops::Range<u32>| {
        let mut csv = "编号,内容,类别\n".to_owned();
        for idx in rows {
            let place = char::from_u32(0x4e00 + 37 * idx).unwrap();
            let (text, label) = match idx % 3 {
                0 => ("路灯坏了晚上看不见", "照明"),
                1 => ("大树倒了挡住了路", "绿化"),
                _ => ("垃圾堆了好几天很臭", "环卫"),
            };
            csv += &format!("{idx},{place}街{place}号{text}{place},{label}\n");
        }
        std::fs::write(home.path().join(name), csv).unwrap();
    };
    write("own.csv", 0..60);
    write("own_held.csv", 60..90);
    let columns = ["--text-column", "内容", "--label-column", "类别"];
    let run = |args: &[&str]| {
        let output = triage(home.path(), args, b"");
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    let quick = ["--frozen", "--epochs", "2"];
    let args = ["train", "own.csv", "-o", "own", "--any-label"];
    run(&[args.as_slice(), &columns, &quick].concat());
    let args = ["--model", "own", "evaluate", "own.csv", "--json"];
    let report: Value = serde_json::from_str(&run(&[args.as_slice(), &columns].concat())).unwrap();
    let mut codes: Vec<&str> = report["report"]["types"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["code"].as_str().unwrap())
        .collect();
    codes.sort_unstable();
    let mut expected = ["照明", "绿化", "环卫"];
    expected.sort_unstable();
    assert_eq!(codes, expected);
    assert!(report["report"]["accuracy"]["value"].as_f64().unwrap() > 0.8, "{report}");
    let item = run(&["--model", "own", "classify", "--json", "路口的路灯坏了晚上看不见路"]);
    let item: Value = serde_json::from_str(&item).unwrap();
    assert_eq!((&item["type"]["code"], &item["type"]["zh"]), (&"照明".into(), &"照明".into()));
    assert_eq!(item["handling"]["steps"], serde_json::json!([]));

    // A first version of other labels is judged by itself, goes into production, and back out.
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/triage-base");
    copy_dir(&shipped, &home.path().join("models/triage-base"));
    let args = ["train", "own.csv", "-o", "models/own", "--any-label"];
    run(&[args.as_slice(), &columns, &quick].concat());
    let promote = ["models", "promote", "--cases", "own_held.csv"];
    let output = triage(home.path(), &[promote.as_slice(), &columns].concat(), b"");
    assert!(text(&output.stderr).contains("different_types"), "{}", text(&output.stderr));
    run(&[promote.as_slice(), &columns, &["--other-labels"]].concat());
    assert!(run(&["models", "list"]).contains("production"));
    run(&["models", "rollback"]);

    // Nor is three a number the trainer knows.
    let said = |label: usize| char::from_u32(0x5000 + 211 * label as u32).unwrap();
    let mut csv = "text,label\n".to_owned();
    for idx in 0..144 {
        let (label, place) = (idx % 12, char::from_u32(0x4e00 + 37 * idx as u32).unwrap());
        let word = said(label);
        csv += &format!("{place}号{word}{word}坏了{word}{place}，类别{label}\n").replace('，', ",");
    }
    std::fs::write(home.path().join("twelve.csv"), csv).unwrap();
    let args = ["train", "twelve.csv", "-o", "twelve", "--any-label"];
    run(&[args.as_slice(), &quick].concat());
    let report = run(&["--model", "twelve", "evaluate", "twelve.csv", "--json"]);
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["report"]["types"].as_array().unwrap().len(), 12);
    assert!(report["report"]["accuracy"]["value"].as_f64().unwrap() > 0.8, "{report}");

    // A taxonomy that explains them comes with the bundle, and is part of it.
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let built_in = std::fs::read_to_string(root.join("models/taxonomy.toml")).unwrap();
    let (head, rest) = built_in.split_once("[[types]]").unwrap();
    let (_, tail) = rest.split_once("[[levels]]").unwrap();
    let types: String = ["照明", "绿化", "环卫"]
        .iter()
        .map(|it| {
            format!(
                "[[types]]\ncode = \"{it}\"\nzh = \"{it}类\"\ndefinition = \"\"\nprinciple = \"派单\"\n\
                 steps = [\"派单到班组\"]\ndue = {{ first_response_hours = 24 }}\n\n"
            )
        })
        .collect();
    let own = format!("{head}{types}[[levels]]{tail}")
        .replace("always_review = [\"disputed_claim\"]", "always_review = []");
    std::fs::write(home.path().join("own.toml"), own).unwrap();
    let args = ["train", "own.csv", "-o", "named", "--taxonomy", "own.toml"];
    run(&[args.as_slice(), &columns, &quick].concat());
    let item = run(&["--model", "named", "classify", "--json", "路口的路灯坏了晚上看不见路"]);
    let item: Value = serde_json::from_str(&item).unwrap();
    assert_eq!(item["type"]["zh"], "照明类");
    assert_eq!(item["handling"]["steps"], serde_json::json!(["派单到班组"]));
    std::fs::remove_file(home.path().join("named/taxonomy.toml")).unwrap();
    let output = triage(home.path(), &["--model", "named", "classify", "x"], b"");
    assert!(text(&output.stderr).contains("sidecar_file"), "{}", text(&output.stderr));
}

#[test]
fn a_policy_is_fitted_kept_and_never_promised_on_too_few_cases() {
    let home = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    copy_dir(&root.join("models/triage-base"), &home.path().join("mine"));
    let cases = std::fs::read_to_string(root.join("datasets/cases.jsonl")).unwrap();
    let cases: Vec<&str> = cases.lines().step_by(2).collect();
    std::fs::write(home.path().join("cases.jsonl"), cases.join("\n")).unwrap();
    let cases = "cases.jsonl";
    let policy = |args: &[&str]| {
        let all = [&["--model", "mine", "models", "policy", "--cases", cases], args].concat();
        triage(home.path(), &all, b"")
    };
    let file = home.path().join("mine/policy.toml");
    let few = policy(&["--max-false-accusation", "0.002"]);
    let stderr = text(&few.stderr);
    assert_eq!(few.status.code(), Some(1));
    assert!(stderr.contains("too_few_cases") && stderr.contains("1497"), "{stderr}");
    let output = policy(&["--max-false-accusation", "0.02", "--coverage", "0.8", "--json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let evidence = &found["policy"]["evidence"];
    assert!(evidence["false_accusation_upper"].as_f64().unwrap() <= 0.02);
    assert!(evidence["missed_upper"].as_f64().unwrap() <= 0.2);
    let load = evidence["review_load"].as_f64().unwrap();
    assert!((0.0..=1.0).contains(&load), "{load}");
    assert!(file.exists());
    // What was promised shows in the figures on the same cases.
    let output = triage(home.path(), &["--model", "mine", "evaluate", cases, "--json"], b"");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let rate = report["report"]["false_accusation_rate"]["value"].as_f64().unwrap();
    assert!(rate <= 0.02, "{rate}");
    let policy = &report["report"]["details"]["policy"];
    assert!((1.0 - policy["coverage"].as_f64().unwrap() - load).abs() < 1e-6);
}

/// What `audit-labels -o` writes can be trained on: nothing of a case is lost, nothing is overwritten.
#[test]
fn audit_labels_writes_every_case_unchanged_and_overwrites_nothing() {
    use opinion_triage::cases;
    use opinion_triage::domain::taxonomy::Taxonomy;

    let home = tempfile::tempdir().unwrap();
    few_cases(home.path());
    let given = home.path().join("few.jsonl");
    let mut lines = std::fs::read_to_string(&given).unwrap();
    lines += concat!(
        "\n{\"id\":\"phone\",\"text\":\"请打13812345678找我\",\"label\":\"none\",\"level\":0,\"grounds\":[],",
        "\"source\":\"hotline\",\"date\":\"2026-08-01\",\"selected\":\"uncertain\"}",
    );
    std::fs::write(&given, &lines).unwrap();
    let output = triage(home.path(), &["audit-labels", "few.jsonl", "-o", "few.jsonl"], b"");
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr.contains("output_exists: few.jsonl exists"), "{stderr}");
    assert_eq!(std::fs::read_to_string(&given).unwrap(), lines);

    let args = ["audit-labels", "few.jsonl", "-n", "5", "-o", "audited.csv", "--json"];
    let output = triage(home.path(), &args, b"");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let written = home.path().join("audited.csv");
    assert!(!std::fs::read_to_string(&written).unwrap().contains("13812345678"));
    let taxonomy = Taxonomy::embedded();
    let before = cases::read(&given, &taxonomy).unwrap().cases;
    let found = cases::read(&written, &taxonomy).unwrap();
    assert_eq!(found.n_errors(), 0, "{:?}", found.problems);
    assert_eq!(found.cases.len(), before.len());
    for case in &before {
        let it = found.cases.iter().find(|it| it.id == case.id).unwrap();
        assert_eq!((&it.label, &it.alt, it.level), (&case.label, &case.alt, case.level));
        assert_eq!((&it.grounds, &it.source, it.day), (&case.grounds, &case.source, case.day));
        assert_eq!((&it.register, it.is_handpicked), (&case.register, case.is_handpicked));
    }
    // The suspects come first, in the order of the list.
    let suspects: Value = serde_json::from_slice(&output.stdout).unwrap();
    let suspects: Vec<&str> =
        suspects.as_array().unwrap().iter().map(|it| it["id"].as_str().unwrap()).collect();
    let first: Vec<&str> = found.cases.iter().map(|it| it.id.as_str()).take(5).collect();
    assert_eq!(suspects, first);
}

#[test]
fn select_names_what_it_cannot_choose_from_and_leaves_no_file() {
    let home = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &str| {
        std::fs::write(home.path().join(name), content).unwrap();
    };
    write("body.csv", "id,内容\n1,路灯坏了\n");
    write("body.jsonl", "{\"id\":1,\"内容\":\"路灯坏了\"}\n");
    write("who.csv", "id,text,昵称\n1,路灯坏了,甲\n2,停水三天了,乙\n");
    write("blank.csv", "id,text\n1,\n2, \n");
    write("empty.jsonl", "");
    write("posts.doc", "路灯坏了");
    write("one.csv", "id,text\n1,路灯坏了\n");
    let cases: [(&str, &[&str]); 7] = [
        ("body.csv", &["missing_column: ", "`text`", "--text-column"]),
        ("body.jsonl", &["missing_column: ", "`text`", "--text-column"]),
        ("who.csv", &["author_field: ", "`昵称`", "none of 2 rows"]),
        ("blank.csv", &["invalid_text: ", "none of 2 rows"]),
        ("empty.jsonl", &["no_rows: "]),
        ("posts.doc", &["unknown_format: ", ".xlsx"]),
        ("one.csv", &["nothing_chosen: "]),
    ];
    for (name, words) in cases {
        let n = if name == "one.csv" { "0" } else { "5" };
        let output = triage(home.path(), &["select", name, "-n", n, "-o", "out.jsonl"], b"");
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{name}: {stderr}");
        assert!(words.iter().all(|it| stderr.contains(it)), "{name}: {stderr}");
        assert!(!home.path().join("out.jsonl").exists(), "{name}");
    }
}

#[test]
fn select_converts_what_check_converts_and_gives_each_row_its_own_id() {
    let home = tempfile::tempdir().unwrap();
    let posts = [
        "小区停水三天了，物业没人管，打电话也没有人接",
        "谢谢社区的工作人员，办事又快又耐心",
        "建议在学校门口加一个红绿灯，孩子过马路太危险",
        "路口的井盖坏了好几天，晚上看不见容易出事",
    ];
    let rows: String =
        posts.iter().zip([7, 7, 8, 7]).map(|(it, id)| format!("{id},{it}\n")).collect();
    let (gbk, _, _) = encoding_rs::GB18030.encode(&rows);
    std::fs::write(home.path().join("posts.csv"), [&b"id,text\n"[..], &gbk].concat()).unwrap();
    let output = triage(home.path(), &["select", "posts.csv", "-o", "out.jsonl"], b"");
    let stderr = text(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert!(
        stderr.contains("编码，已转换为 UTF-8") && stderr.contains("2 条的标识重复"),
        "{stderr}"
    );
    let lines = std::fs::read_to_string(home.path().join("out.jsonl")).unwrap();
    let chosen: Vec<Value> = lines.lines().map(|it| serde_json::from_str(it).unwrap()).collect();
    let of =
        |name: &str| -> Vec<&str> { chosen.iter().map(|it| it[name].as_str().unwrap()).collect() };
    assert_eq!(of("text"), posts);
    let ids = of("id");
    assert!(ids[0] == "7" && ids[2] == "8" && ids[1].len() == 12 && ids[3].len() == 12, "{ids:?}");
    // For a spreadsheet, with the mark by which it knows the encoding.
    let output = triage(home.path(), &["select", "posts.csv", "-o", "out.csv"], b"");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let csv = std::fs::read_to_string(home.path().join("out.csv")).unwrap();
    let header = csv.lines().next();
    assert_eq!(header, Some("\u{feff}id,text,label,selected,note"));
    assert_eq!(csv.lines().count(), 5);
    let none = triage(home.path(), &["select", "posts.csv", "--labelled", "out.csv"], b"");
    assert!(text(&none.stderr).contains("no_labelled_cases"), "{}", text(&none.stderr));
    // A workbook too.
    let book = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/cases.xlsx");
    let output = triage(home.path(), &["select", book.to_str().unwrap()], b"");
    assert_eq!(text(&output.stdout).lines().count(), 2, "{}", text(&output.stderr));
}

/// What nobody chose by lot teaches, but is not held out; and what cannot be measured is said before training.
#[test]
fn train_measures_on_nothing_that_was_picked_and_refuses_what_it_cannot_measure_at_once() {
    let home = tempfile::tempdir().unwrap();
    few_cases(home.path());
    let rows = std::fs::read_to_string(home.path().join("few.jsonl")).unwrap();
    let picked = |n: usize| -> String {
        let mark = |(idx, line): (usize, &str)| match idx < n {
            true => line.replacen('{', "{\"selected\":\"uncertain\",", 1),
            false => line.to_owned(),
        };
        rows.lines().enumerate().map(mark).collect::<Vec<_>>().join("\n")
    };
    let write = |name: &str, content: &str| {
        std::fs::write(home.path().join(name), content).unwrap();
    };
    let n = rows.lines().count();
    write("half.jsonl", &picked(n / 2));
    write("all.jsonl", &picked(n));
    write(
        "one.jsonl",
        &rows
            .lines()
            .filter(|it| {
                it.contains("\"label\": \"problem\"") || it.contains("\"label\":\"problem\"")
            })
            .collect::<Vec<_>>()
            .join("\n"),
    );
    write("own.csv", "text,label\n路灯坏了,甲\n大树倒了,乙\n路灯又坏了,甲\n大树又倒了,乙\n");
    write("test.csv", "text,label\n花谢了,丙\n");
    let train = |args: &[&str]| {
        let args = [&["train"], args, &["--frozen", "--epochs", "1"]].concat();
        let output = triage(home.path(), &args, b"");
        (output.status.success(), text(&output.stderr))
    };
    let (is_done, said) = train(&["half.jsonl", "-o", "half"]);
    assert!(is_done && said.contains("只用于训练，不留出"), "{said}");
    for (args, code) in [
        (vec!["all.jsonl", "-o", "none"], "no_fair_cases"),
        (vec!["one.jsonl", "-o", "none"], "one_label"),
        (vec!["own.csv", "-o", "none", "--any-label", "--test", "test.csv"], "unknown_label"),
    ] {
        let (is_done, said) = train(&args);
        assert!(!is_done && said.contains(code) && !said.contains("epoch"), "{code}: {said}");
    }
    assert!(!home.path().join("none").exists());
}
