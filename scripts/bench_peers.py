#!/usr/bin/env python3
"""Our engine, ONNX Runtime (fp32 and dynamic int8) and PyTorch on the same weights and posts, in one run.

    pip install -r scripts/requirements-bench.txt
    cargo build --release
    python3 scripts/bench_peers.py posts.jsonl

Engines take turns, so that a busy moment of the machine hits all of them; a ratio is the median over the
rounds, with its least and greatest. Each engine gets the batches it is fastest with (tried once before
the rounds): ONNX Runtime and PyTorch get rows sorted by length, ours takes them as they come.
Character rows are what a user of a character-level BERT of this shape would run: one token a character,
at most 512; its weights are ours with a longer position table, which costs the same.
"""

import argparse
import json
import lzma
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers import optimizer
from transformers import BertForSequenceClassification

CLS, SEP = 2, 3
MAX_CHARACTERS = 512
BATCHES = (1, 8, 32, 128)


def read_texts(path, n):
    opener = lzma.open if path.suffix == ".xz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line)["text"] for line in file]
    texts = [" ".join(it.split()) for it in rows]
    chosen = np.random.default_rng(0).permutation(len(texts))[:n]
    return [texts[it] for it in chosen if texts[it]]


def word_rows(texts, args, folder, max_tokens):
    (folder / "texts.txt").write_text("\n".join(texts) + "\n", "utf-8")
    command = [args.triage, "encode", "ids", folder / "texts.txt"]
    command += ["--tokenizer", args.model / "tokenizer.json", "-o", folder / "ids"]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    ids = np.fromfile(folder / "ids", "<u4").astype(np.int64)
    documents = np.split(ids, np.flatnonzero(ids == SEP) + 1)[:-1]
    return [[CLS, *it[:-1][: max_tokens - 2].tolist(), SEP] for it in documents]


def character_rows(texts, vocab_size):
    ids = [[5 + ord(it) % (vocab_size - 5) for it in text[: MAX_CHARACTERS - 2]] for text in texts]
    return [[CLS, *it, SEP] for it in ids]


def sorted_batches(rows, size):
    order = sorted(range(len(rows)), key=lambda it: len(rows[it]))
    for begin in range(0, len(rows), size):
        part = [rows[it] for it in order[begin : begin + size]]
        ids = np.zeros((len(part), len(part[-1])), np.int64)
        mask = np.zeros_like(ids)
        for at, row in enumerate(part):
            ids[at, : len(row)], mask[at, : len(row)] = row, 1
        yield ids, mask


def timed(run, rows, size):
    batches = list(sorted_batches(rows, size))
    began = time.perf_counter()
    for ids, mask in batches:
        run(ids, mask)
    return time.perf_counter() - began


class Peer:
    """An engine that takes padded batches, at its best batch size."""

    def __init__(self, run, rows):
        self.run, self.rows = run, rows
        sample = rows[: max(64, len(rows) // 4)]
        for ids, mask in sorted_batches(rows[:64], 8):
            run(ids, mask)
        self.size = min(BATCHES, key=lambda it: timed(run, sample, it))

    def seconds(self):
        return timed(self.run, self.rows, self.size)


class Ours:
    """`benches/engine.rs`; its process reads the rows, warms up and times itself."""

    def __init__(self, binary, rows, args, engine, folder):
        path = folder / f"{engine}.json"
        path.write_text(json.dumps(rows))
        self.command = [binary, "--rows", path, "--model", args.model, "--engine", engine]
        self.command += ["--threads", str(args.threads), "--seconds", "2"]
        self.size = 256

    def seconds(self):
        out = subprocess.run(list(map(str, self.command)), check=True, capture_output=True, text=True)
        return json.loads(out.stdout)["mean_s"]


class Score:
    """The whole batch job: reading, text work, model, writing."""

    def __init__(self, texts, args, folder):
        path = folder / "posts.jsonl"
        rows = ({"id": str(idx), "text": text} for idx, text in enumerate(texts))
        path.write_text("".join(json.dumps(it, ensure_ascii=False) + "\n" for it in rows), "utf-8")
        self.command = [args.triage, "score", path, "-o", folder / "scored.jsonl", "--overwrite"]
        self.command += ["--model", args.model, "--threads", str(args.threads)]
        self.size = 1024

    def seconds(self):
        began = time.perf_counter()
        subprocess.run(list(map(str, self.command)), check=True, capture_output=True)
        return time.perf_counter() - began


def onnx_session(path, threads):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [it.name for it in session.get_inputs()]
    return lambda ids, mask: session.run(None, dict(zip(names, (ids, mask), strict=True)))[0]


def export(model, path):
    ids = torch.ones(2, 8, dtype=torch.long)
    torch.onnx.export(
        model, (ids, torch.ones_like(ids)), str(path), input_names=["input_ids", "attention_mask"],
        output_names=["logits"], opset_version=17, dynamo=False,
        dynamic_axes={it: {0: "batch", 1: "seq"} for it in ("input_ids", "attention_mask")},
    )
    fused = optimizer.optimize_model(
        str(path), model_type="bert", num_heads=model.config.num_attention_heads,
        hidden_size=model.config.hidden_size,
    )
    fused.save_model_to_file(str(path))


def quantize(path):
    """Writes `NAME-int8.onnx` beside it; fused nodes hide their types, so the default is named."""
    quantize_dynamic(
        path, path.with_name(f"{path.stem}-int8.onnx"), weight_type=QuantType.QInt8,
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
    )


def engine_binary():
    command = ["cargo", "bench", "--bench", "engine", "--no-run", "--message-format", "json"]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    lines = [json.loads(it) for it in out.splitlines()]
    return next(it["executable"] for it in lines if it.get("target", {}).get("name") == "engine" and it.get("executable"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("posts", type=Path, help="JSONL with `text`, plain or .xz")
    parser.add_argument("--model", type=Path, default=Path("models/triage-base"))
    parser.add_argument("--triage", default="target/release/triage")
    parser.add_argument("--engine", help="benches/engine.rs, built; built here when not given")
    parser.add_argument("-n", type=int, default=3000, help="posts")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    binary = args.engine or engine_binary()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        folder = Path(folder)
        model = BertForSequenceClassification.from_pretrained(args.model, dtype=torch.float32).eval()
        texts = read_texts(args.posts, args.n)
        words = word_rows(texts, args, folder, model.config.max_position_embeddings)
        characters = character_rows(texts, model.config.vocab_size)
        export(model, folder / "words.onnx")
        quantize(folder / "words.onnx")
        table = model.bert.embeddings.position_embeddings.weight
        longer = torch.nn.Embedding(MAX_CHARACTERS, table.shape[1])
        longer.weight.data[: len(table)] = table
        model_characters = BertForSequenceClassification(model.config).eval()
        model_characters.load_state_dict(model.state_dict())
        model_characters.bert.embeddings.position_embeddings = longer
        model_characters.bert.embeddings.position_ids = torch.arange(MAX_CHARACTERS)[None]
        model_characters.bert.embeddings.token_type_ids = torch.zeros(1, MAX_CHARACTERS, dtype=torch.long)
        export(model_characters, folder / "characters.onnx")
        quantize(folder / "characters.onnx")

        def torch_run(ids, mask):
            return model(torch.from_numpy(ids), torch.from_numpy(mask)).logits

        session = {it.stem: onnx_session(it, args.threads) for it in folder.glob("*.onnx")}
        engines = {
            "ours int8, words": Ours(binary, words, args, "int8", folder),
            "ours f32, words": Ours(binary, words, args, "f32", folder),
            "ORT fp32, words": Peer(session["words"], words),
            "ORT int8, words": Peer(session["words-int8"], words),
            "PyTorch f32, words": Peer(torch_run, words),
            "ORT int8, characters": Peer(session["characters-int8"], characters),
            "triage score, whole job": Score(texts, args, folder),
            "stock candle, words, one by one": Ours(binary, words[: len(words) // 8], args, "stock", folder),
        }
        seconds = {name: [] for name in engines}
        for _ in range(args.rounds):
            for name, it in engines.items():
                seconds[name].append(it.seconds() * (8 if name.startswith("stock") else 1))
    per_post = [sum(map(len, rows)) / len(rows) for rows in (words, characters)]
    print(f"{len(texts)} posts, {per_post[0]:.1f} word tokens and {per_post[1]:.1f} character tokens each; "
          f"{args.threads} threads, {args.rounds} rounds")
    print(f"{'engine':34}{'batch':>6}{'posts/s':>9}  (median; least and greatest)")
    for name, it in engines.items():
        rates = sorted(len(texts) / np.array(seconds[name]))
        print(f"{name:34}{it.size:6}{np.median(rates):9.0f}  ({rates[0]:.0f}–{rates[-1]:.0f})")
    print("\nratios (median; least and greatest over the rounds)")
    for title, ours, theirs in (
        ("engine, the same token ids", "ours int8, words", "ORT int8, words"),
        ("engine, f32 each, the same ids", "ours f32, words", "ORT fp32, words"),
        ("engine, each as its user runs it", "ours int8, words", "ORT int8, characters"),
        ("batch: whole job to engine alone", "triage score, whole job", "ORT int8, characters"),
        ("engine, to stock candle", "ours int8, words", "stock candle, words, one by one"),
    ):
        ratios = sorted(np.array(seconds[theirs]) / np.array(seconds[ours]))
        print(f"{title:34}{np.median(ratios):6.2f}x ({ratios[0]:.2f}–{ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
