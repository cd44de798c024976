//! The model alone on rows of token ids, for `scripts/bench_peers.py`, which runs other engines on the same
//! rows: `cargo bench --bench engine -- --rows rows.json --engine int8 --threads 2`.
//!
//! `--engine stock` is candle-transformers' BERT, a row at a time: what text-embeddings-inference computes
//! with on a CPU.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark that cannot go on should stop"
)]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::BertModel;
use clap::{Parser, ValueEnum};
use opinion_triage::model::Bundle;
use opinion_triage::model::runtime::{Precision, Runtime};
use opinion_triage::text::Encoding;

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Engine {
    Int8,
    F32,
    Stock,
}

#[derive(Debug, Parser)]
struct Args {
    /// A JSON array of arrays of token ids.
    #[arg(long)]
    rows: Option<PathBuf>,
    #[arg(long, default_value = "models/triage-base")]
    model: PathBuf,
    #[arg(long, value_enum, default_value = "int8")]
    engine: Engine,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Rows given to the engine at once.
    #[arg(long, default_value_t = 256)]
    batch: usize,
    /// Passes over the rows go on for this long.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let args = Args::parse();
    let Some(path) = &args.rows else { return };
    rayon::ThreadPoolBuilder::new().num_threads(args.threads).build_global().unwrap();
    let rows: Vec<Vec<u32>> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let n_tokens: usize = rows.iter().map(Vec::len).sum();
    let bundle = Bundle::load(&args.model).unwrap();
    let (config, sizes) = (&bundle.config, bundle.head_sizes());
    let mut pass: Box<dyn FnMut()> = match args.engine {
        Engine::Int8 | Engine::F32 => {
            let precision =
                if matches!(args.engine, Engine::Int8) { Precision::Int8 } else { Precision::F32 };
            let runtime = Runtime::load(&bundle.weights, config, sizes, precision).unwrap();
            let texts: Vec<[Encoding; 1]> =
                rows.iter().map(|it| [Encoding { ids: it.clone() }]).collect();
            Box::new(move || {
                for batch in texts.chunks(args.batch) {
                    let batch: Vec<&[Encoding]> = batch.iter().map(|it| &it[..]).collect();
                    std::hint::black_box(runtime.logits(&batch));
                }
            })
        }
        Engine::Stock => {
            let tensors =
                bundle.weights.iter().map(|(name, it)| (name.to_owned(), it.clone())).collect();
            let vars = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
            let bert = BertModel::load(vars.pp("bert"), config).unwrap();
            Box::new(move || {
                for row in &rows {
                    let ids = Tensor::new(row.as_slice(), &Device::Cpu).unwrap();
                    let ids = ids.unsqueeze(0).unwrap();
                    let segments = ids.zeros_like().unwrap();
                    std::hint::black_box(bert.forward(&ids, &segments, None).unwrap());
                }
            })
        }
    };
    pass();
    let began = Instant::now();
    let (mut n_passes, mut best) = (0, f64::INFINITY);
    while began.elapsed() < Duration::from_secs_f64(args.seconds) || n_passes == 0 {
        let began = Instant::now();
        pass();
        best = best.min(began.elapsed().as_secs_f64());
        n_passes += 1;
    }
    let mean = began.elapsed().as_secs_f64() / f64::from(n_passes);
    println!("{}", serde_json::json!({ "tokens": n_tokens, "mean_s": mean, "best_s": best }));
}
