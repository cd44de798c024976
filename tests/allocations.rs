//! The layers allocate nothing once their buffers have grown: a batch costs its lists and its answer, however
//! long its texts are.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::Path;

use allocation_counter::measure;
use opinion_triage::model::Bundle;
use opinion_triage::model::runtime::{Precision, Runtime};
use opinion_triage::text::Encoding;

#[test]
fn a_long_text_allocates_as_little_as_a_short_one() {
    // The counter sees its own thread only.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build().unwrap();
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/triage-base");
    let bundle = Bundle::load(&dir).unwrap();
    pool.install(|| {
        for precision in [Precision::Int8, Precision::F32] {
            let (weights, sizes) = (&bundle.weights, bundle.head_sizes());
            let runtime = Runtime::load(weights, &bundle.config, sizes, precision).unwrap();
            let text = |n_tokens: usize| [Encoding { ids: (0..n_tokens as u32).collect() }];
            let (short, long) = (text(8), text(bundle.config.max_position_embeddings));
            let cost = |text: &[Encoding]| measure(|| drop(runtime.logits(&[text])));
            let first = cost(&long);
            assert!(first.bytes_total > 1_000_000, "the buffers grow where we count: {first:?}");
            let (short, long) = (cost(&short), cost(&long));
            assert_eq!(
                (short.count_total, short.bytes_total),
                (long.count_total, long.bytes_total),
                "{precision:?}"
            );
            assert!(long.bytes_total < 8_192, "{precision:?}: {long:?}");
        }
    });
}
