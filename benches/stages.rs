//! Where a post's time goes: `cargo bench --bench stages`. Real posts differ; this is for comparing one change with another.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on should stop")]

use std::path::Path;
use std::sync::LazyLock;

use divan::Bencher;
use divan::counter::ItemsCount;
use opinion_triage::cases;
use opinion_triage::domain::case::CaseText;
use opinion_triage::domain::taxonomy::Taxonomy;
use opinion_triage::model::runtime::Precision;
use opinion_triage::pipeline::{Pipeline, Prepared};
use opinion_triage::text::{Segmenter, normalize, redact};
use rten_gemm::{GemmExecutor, GemmInputA, GemmInputB, GemmOptions};
use rten_tensor::NdTensorView;

static PIPELINE: LazyLock<Pipeline> = LazyLock::new(|| {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/triage-base");
    Pipeline::load(&dir, None, Precision::default()).unwrap()
});

static TEXTS: LazyLock<Vec<CaseText>> = LazyLock::new(|| {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("datasets/cases.jsonl");
    let found = cases::read(&path, &Taxonomy::embedded()).unwrap();
    found.cases.into_iter().map(|it| it.text).collect()
});

fn main() {
    LazyLock::force(&PIPELINE);
    LazyLock::force(&TEXTS);
    divan::main();
}

/// Every text, one after the other.
fn each(bencher: Bencher<'_, '_>, work: impl Fn(&CaseText) + Sync) {
    bencher.counter(ItemsCount::new(TEXTS.len())).bench(|| TEXTS.iter().for_each(&work));
}

#[divan::bench]
fn text_1_normalize(bencher: Bencher<'_, '_>) {
    each(bencher, |it| drop(divan::black_box(normalize(it.as_str()))));
}

#[divan::bench]
fn text_2_and_redact(bencher: Bencher<'_, '_>) {
    each(bencher, |it| drop(divan::black_box(redact(&normalize(it.as_str())))));
}

#[divan::bench]
fn text_3_and_segment(bencher: Bencher<'_, '_>) {
    let segmenter = Segmenter::default();
    each(bencher, |it| {
        let redacted = redact(&normalize(it.as_str()));
        divan::black_box(segmenter.segment(&redacted.text));
    });
}

#[divan::bench]
fn text_4_and_encode(bencher: Bencher<'_, '_>) {
    each(bencher, |it| drop(divan::black_box(PIPELINE.prepare(it))));
}

/// One thread's matrix products alone, at the shape of the wide layer: operations a second are what `rten-gemm`
/// gets out of this CPU, and the model's ceiling.
#[divan::bench(args = [64, 256])]
fn product_int8(bencher: Bencher<'_, '_>, n_tokens: usize) {
    const HIDDEN: usize = 256;
    const INNER: usize = 1024;
    let gemm = GemmExecutor::<u8, i8, i32>::default();
    let weight = vec![63_i8; HIDDEN * INNER];
    let weight = gemm.prepack_b(NdTensorView::from_data([HIDDEN, INNER], weight.as_slice()));
    let xs = vec![200_u8; n_tokens * HIDDEN];
    let mut out = vec![0_i32; n_tokens * INNER];
    bencher.counter(ItemsCount::new(2 * n_tokens * HIDDEN * INNER)).bench_local(|| {
        let xs = GemmInputA::Unpacked(NdTensorView::from_data([n_tokens, HIDDEN], xs.as_slice()));
        let options = GemmOptions::default();
        gemm.gemm(&mut out, xs, GemmInputB::Packed(&weight), options).unwrap();
    });
}

/// The model on rows ready for it, `n_rows` at a time.
#[divan::bench(args = [1, 16, 256], sample_count = 10)]
fn predict(bencher: Bencher<'_, '_>, n_rows: usize) {
    let rows: Vec<Prepared> =
        TEXTS.iter().take(256).map(|it| PIPELINE.prepare(it).unwrap()).collect();
    bencher.counter(ItemsCount::new(rows.len())).bench(|| {
        for batch in rows.chunks(n_rows) {
            divan::black_box(PIPELINE.predict(&batch.iter().collect::<Vec<_>>()).unwrap());
        }
    });
}
