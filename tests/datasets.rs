//! What `datasets/` promises, and what the shipped model makes of it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::path::{Path, PathBuf};

use opinion_triage::cases::{self, Cases, Options};
use opinion_triage::domain::taxonomy::Taxonomy;
use opinion_triage::evaluation::metrics;
use opinion_triage::evidence;
use opinion_triage::model::runtime::Precision;
use opinion_triage::pipeline::{Pipeline, segmenter};
use opinion_triage::training::split;

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read() -> Cases {
    cases::read(&root("datasets/cases.jsonl"), &Taxonomy::embedded()).unwrap()
}

#[test]
fn the_cases_are_as_the_data_card_says() {
    let found = read();
    assert!(found.problems.is_empty(), "{:#?}", found.problems);
    assert_eq!(found.cases.len(), 682);
    for code in Taxonomy::embedded().type_codes().codes() {
        let n = found.cases.iter().filter(|it| it.label == code).count();
        assert!(n >= 100, "{code}: {n}");
    }
    let text = std::fs::read_to_string(root("datasets/cases.jsonl")).unwrap();
    let rows: Vec<serde_json::Value> =
        text.lines().map(|it| serde_json::from_str(it).unwrap()).collect();
    let hard: Vec<_> = rows.iter().filter(|it| it["hard"] == true).collect();
    assert_eq!(hard.len(), 314);
    // A hard case that does not say why teaches nobody.
    assert!(hard.iter().all(|it| it["note"].as_str().is_some_and(|it| it.len() > 20)));
    let registers: std::collections::BTreeSet<_> =
        rows.iter().filter_map(|it| it["register"].as_str()).collect();
    assert!(registers.len() >= 10, "{registers:?}");
}

/// The training cases are clean, and apart from those that measure.
#[test]
fn the_training_cases_are_as_the_data_card_says() {
    let found = cases::read(&root("datasets/train.jsonl"), &Taxonomy::embedded()).unwrap();
    assert!(found.problems.is_empty(), "{:#?}", found.problems);
    let counts: Vec<usize> = Taxonomy::embedded()
        .type_codes()
        .codes()
        .map(|code| found.cases.iter().filter(|it| it.label == code).count())
        .collect();
    assert_eq!(counts, [697, 660, 672, 667, 726, 780]);
    let measured = read().cases;
    let texts: Vec<&str> = measured.iter().chain(&found.cases).map(|it| it.text.as_str()).collect();
    let groups = split::near_duplicate_groups(&texts);
    let (measuring, training) = groups.split_at(measured.len());
    assert!(training.iter().all(|it| !measuring.contains(it)));
}

#[test]
fn the_departments_are_six() {
    let path = root("datasets/departments.csv");
    let options = Options {
        text_column: "内容".into(),
        label_column: "部门".into(),
        any_label: true,
        ..Options::default()
    };
    let found = cases::read_with(&path, &Taxonomy::embedded(), &options).unwrap();
    assert!(found.problems.is_empty(), "{:#?}", found.problems);
    let labels: std::collections::BTreeSet<_> = found.cases.iter().map(|it| &it.label).collect();
    assert_eq!((found.cases.len(), labels.len()), (96, 6));
}

#[test]
fn the_user_dictionary_is_read() {
    let segmenter = segmenter(Some(&root("datasets/user_dict.txt"))).unwrap();
    let words: Vec<&str> =
        segmenter.segment("幸福里社区用一网通办").iter().map(|it| it.text).collect();
    assert_eq!(words, ["幸福里社区", "用", "一网通办"]);
}

/// The shipped model loads, is small enough, and does well on texts it never saw,
/// half of them hard. How good it is on real posts is measured elsewhere.
#[test]
fn the_shipped_model_works() {
    let dir = root("models/triage-base");
    let n_bytes: u64 =
        std::fs::read_dir(&dir).unwrap().map(|it| it.unwrap().metadata().unwrap().len()).sum();
    assert!(n_bytes <= 40 << 20, "{n_bytes}");
    let pipeline = Pipeline::load(&dir, None, Precision::default()).unwrap();
    let types = pipeline.type_labels();
    let found = read();
    let prepared: Vec<_> =
        found.cases.iter().map(|it| pipeline.prepare(&it.text).unwrap()).collect();
    let predictions = pipeline.predict(&prepared.iter().collect::<Vec<_>>()).unwrap();
    let truth: Vec<usize> =
        found.cases.iter().map(|it| types.index_of(&it.label).unwrap()).collect();
    let predicted: Vec<usize> = predictions.iter().map(|it| it.type_idx()).collect();
    let macro_f1 = metrics::macro_f1(&truth, &predicted, types.len()).unwrap();
    assert!(macro_f1 > 0.65, "{macro_f1}");
    let column = |code| types.index_of(code).unwrap();
    let protected = ["problem", "sensitive", "suggestion"].map(column);
    let accused = column("disputed_claim");
    let rate = metrics::false_accusation_rate(&truth, &predicted, &protected, accused).unwrap();
    assert!(rate < 0.15, "{rate}");
    // Whatever the model says, a disputed claim goes to a person first.
    for (it, prepared) in predictions.iter().zip(&prepared) {
        if it.type_idx() == accused {
            let decision = pipeline.decide(&prepared.report, it);
            assert_ne!(decision.verdict.code(), "route");
        }
    }
}

/// Evidence on a sample of the cases: mostly given, and the words it names are what the model looked at.
#[test]
fn evidence_of_the_shipped_model_passes_its_own_test() {
    let pipeline = Pipeline::load(&root("models/triage-base"), None, Precision::default()).unwrap();
    let found = read();
    let (mut n_given, mut n_asked) = (0, 0);
    for case in found.cases.iter().step_by(40) {
        let prepared = pipeline.prepare(&case.text).unwrap();
        let prediction = pipeline.predict(&[&prepared]).unwrap().remove(0);
        let (type_idx, whole) = (prediction.type_idx(), prediction.confidence().get());
        let probe = pipeline.probe(&case.text).unwrap();
        let losses = |sets: Vec<Vec<usize>>| -> Vec<f32> {
            let rows: Vec<_> = sets.iter().map(|it| pipeline.without(&probe, it)).collect();
            let predictions = pipeline.predict(&rows.iter().collect::<Vec<_>>()).unwrap();
            predictions.iter().map(|it| whole - it.type_probabilities[type_idx].get()).collect()
        };
        // Nothing removed is nothing lost: the probe is the text.
        assert!(losses(vec![vec![]])[0].abs() < 1e-4, "{}", case.id.as_str());
        let Ok(singles) = evidence::singles(probe.n_words()) else { continue };
        n_asked += 1;
        let effects = losses(singles);
        let tested = evidence::explain(&effects, &losses(evidence::tests(&effects)));
        let evidence::Evidence::Words { words, .. } = tested else { continue };
        n_given += 1;
        assert!(!words.is_empty());
        for (idx, _) in words {
            let (text, span) = probe.word(idx);
            let chars = case.text.as_str().chars();
            let submitted: String = chars.skip(span.begin).take(span.end - span.begin).collect();
            assert_eq!(submitted.chars().count(), text.chars().count(), "{text} {submitted}");
        }
    }
    assert!(n_asked >= 12 && n_given * 2 > n_asked, "{n_given} of {n_asked}");
}
