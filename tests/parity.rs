//! The shipped bundle computes what Python's `transformers` computes with the same files.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::path::Path;

use opinion_triage::model::Bundle;
use opinion_triage::model::runtime::{Precision, Runtime};
use opinion_triage::text::Encoding;
use serde_json::Value;

#[test]
fn logits_equal_those_of_transformers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let fixture = std::fs::read(root.join("tests/vectors/transformers.json")).unwrap();
    let fixture: Value = serde_json::from_slice(&fixture).unwrap();
    let bundle = Bundle::load(&root.join("models/triage-base")).unwrap();
    assert_eq!(
        bundle.manifest.digests["model.safetensors"], fixture["weights"],
        "the bundle is newer than the fixture: run scripts/transformers_fixture.py"
    );
    let sizes = bundle.head_sizes();
    let runtime = Runtime::load(&bundle.weights, &bundle.config, sizes, Precision::F32).unwrap();
    let numbers =
        |it: &Value| it.as_array().unwrap().iter().map(|it| it.as_f64().unwrap()).collect();
    for row in fixture["rows"].as_array().unwrap() {
        let ids: Vec<f64> = numbers(&row["ids"]);
        let chunk = [Encoding { ids: ids.iter().map(|it| *it as u32).collect() }];
        if let Some(words) = row["words"].as_array() {
            // Python's tokenizer reads the same `tokenizer.json` to the same ids.
            let words: Vec<&str> = words.iter().map(|it| it.as_str().unwrap()).collect();
            let ours = bundle.tokenizer.encode(words.join(" "), false).unwrap();
            assert_eq!(ours.get_ids(), &chunk[0].ids[1..chunk[0].ids.len() - 1], "{words:?}");
        }
        let expected: Vec<f64> = numbers(&row["logits"]);
        let actual = runtime.logits(&[&chunk]).remove(0).kind;
        assert_eq!(actual.len(), expected.len());
        for (actual, expected) in actual.iter().zip(expected) {
            assert!((f64::from(*actual) - expected).abs() < 1e-3, "{actual} {expected} {ids:?}");
        }
    }
}
