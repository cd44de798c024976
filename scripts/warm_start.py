#!/usr/bin/env python3
"""Word embeddings to start `triage train --base` from: PMI factorisation of a corpus.

    triage encode vocab CORPUS... -o tokenizer.json
    triage encode ids CORPUS... --tokenizer tokenizer.json -o corpus.ids
    python3 scripts/warm_start.py --tokenizer tokenizer.json --ids corpus.ids --output base/

Writes a base directory: config.json (the shape), tokenizer.json, and model.safetensors with the word
embeddings alone; `triage train` draws the tensors that a base lacks at random.

Source: Levy, Goldberg and Dagan 2015, "Improving Distributional Similarity with Lessons Learned from
Word Embeddings" (positive PMI, smoothed contexts, eigenvalue weighting 0.5).
Needs 4 x vocabulary squared bytes three times over: about 5 GB for 20,000 tokens.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

N_SPECIAL = 5  # [PAD] [UNK] [CLS] [SEP] [MASK]


def cooccurrences(ids, vocab_size, separator, window, slice_tokens=20_000_000):
    """Symmetric counts `(vocab, vocab)`, each pair weighted by 1 / distance, within documents."""
    counts = np.zeros((vocab_size, vocab_size), np.float32)
    flat = counts.reshape(-1)
    document = np.cumsum(ids == separator)
    for distance in range(1, window + 1):
        for begin in range(0, len(ids) - distance, slice_tokens):
            end = min(begin + slice_tokens, len(ids) - distance)
            left, right = ids[begin:end], ids[begin + distance : end + distance]
            same = document[begin:end] == document[begin + distance : end + distance]
            same &= (left >= N_SPECIAL) & (right >= N_SPECIAL)
            keys = left[same].astype(np.int64) * vocab_size + right[same]
            keys.sort()
            first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
            totals = np.diff(np.append(first, len(keys)))
            flat[keys[first]] += totals.astype(np.float32) / distance
        print(f"distance {distance} of {window} counted", flush=True)
    return counts + counts.T


def positive_pmi(counts, smoothing=0.75):
    """Positive pointwise mutual information, contexts smoothed; overwrites `counts`."""
    words = counts.sum(1, dtype=np.float64)
    contexts = words**smoothing
    contexts /= max(contexts.sum(), 1e-9)
    with np.errstate(divide="ignore", invalid="ignore"):
        counts /= np.maximum(words, 1e-9).astype(np.float32)[:, None]
        counts /= np.maximum(contexts, 1e-12).astype(np.float32)[None, :]
        np.log(counts, out=counts)
    np.maximum(counts, 0, out=counts)
    return counts


def factorise(matrix, width, rng, rounds=3):
    """Left singular vectors of `matrix` times the roots of their singular values, `(rows, width)`."""
    basis = rng.standard_normal((matrix.shape[1], width + 32)).astype(np.float32)
    for _ in range(rounds):
        basis = np.linalg.qr(matrix @ basis)[0]
        basis = np.linalg.qr(matrix.T @ basis)[0]
    left, values, _ = np.linalg.svd(matrix @ basis, full_matrices=False)
    return left[:, :width] * np.sqrt(values[:width])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--ids", type=Path, required=True, help="output of `triage encode ids`")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--intermediate-size", type=int, default=768)
    parser.add_argument("--window", type=int, default=5)
    parser.add_argument("--std", type=float, default=0.05, help="standard deviation of the embeddings")
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args()

    vocab = json.loads(args.tokenizer.read_text("utf-8"))["model"]["vocab"]
    ids = np.fromfile(args.ids, "<u4").astype(np.int32)
    print(f"{len(ids):,} tokens, vocabulary {len(vocab):,}", flush=True)
    pmi = positive_pmi(cooccurrences(ids, len(vocab), vocab["[SEP]"], args.window))
    rng = np.random.default_rng(args.seed)
    table = factorise(pmi, args.hidden_size, rng)
    # Directions carry the meaning; lengths follow frequency, which the encoder should not start from.
    lengths = np.linalg.norm(table, axis=1, keepdims=True)
    unseen = lengths[:, 0] < 1e-6
    table = table / np.maximum(lengths, 1e-6) * (args.std * args.hidden_size**0.5)
    table[unseen] = rng.standard_normal((int(unseen.sum()), args.hidden_size)) * 0.02

    args.output.mkdir(parents=True, exist_ok=True)
    tensors = {"bert.embeddings.word_embeddings.weight": table.astype(np.float32)}
    save_file(tensors, args.output / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(args.tokenizer, args.output / "tokenizer.json")
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": len(vocab),
        "hidden_size": args.hidden_size,
        "num_hidden_layers": args.layers,
        "num_attention_heads": args.heads,
        "intermediate_size": args.intermediate_size,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.0,
        "max_position_embeddings": 256,
        "type_vocab_size": 2,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    }
    (args.output / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    by_id = sorted(vocab, key=vocab.get)
    for word in ("停水", "物业", "听说", "地震"):
        if word in vocab:
            unit = table / np.linalg.norm(table, axis=1, keepdims=True)
            nearest = np.argsort(-(unit @ unit[vocab[word]]))[1:7]
            print(word, "~", " ".join(by_id[it] for it in nearest))


if __name__ == "__main__":
    main()
