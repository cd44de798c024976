#!/usr/bin/env python3
"""What whole numbers change: the shipped model in int8 and in floats (`--exact`) on the same cases.

    cargo build --release
    python3 scripts/precision_gap.py test.jsonl

Prints macro-F1 and accuracy of both, and how far each text's probabilities move.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

LIMIT = 0.03


def scored(path, args, flags):
    with tempfile.TemporaryDirectory() as folder:
        # `score` refuses what it does not know, labels too: it gets texts alone.
        texts, out = Path(folder) / "texts.jsonl", Path(folder) / "out.jsonl"
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        lines = (json.dumps({"id": str(idx), "text": it["text"]}) for idx, it in enumerate(rows))
        texts.write_text("\n".join(lines) + "\n")
        command = [args.triage, "score", texts, "-o", out, "--model", args.model, *flags]
        subprocess.run(list(map(str, command)), check=True, stderr=subprocess.DEVNULL)
        results = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    return [it["label"] for it in rows], [it["probabilities"] for it in results]


def quality(truth, probabilities):
    predicted = [max(it, key=it.get) for it in probabilities]
    f1 = []
    for label in sorted(set(truth)):
        hits = sum(a == b == label for a, b in zip(truth, predicted, strict=True))
        f1.append(2 * hits / max(1, truth.count(label) + predicted.count(label)))
    accuracy = sum(a == b for a, b in zip(truth, predicted, strict=True)) / len(truth)
    return sum(f1) / len(f1), accuracy


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", type=Path)
    parser.add_argument("--model", type=Path, default=Path("models/triage-base"))
    parser.add_argument("--triage", default="target/release/triage")
    args = parser.parse_args()
    truth, exact = scored(args.cases, args, ["--exact"])
    _, whole = scored(args.cases, args, [])
    for name, it in (("f32", exact), ("int8", whole)):
        print("{}: macro-F1 {:.4f}, accuracy {:.4f}".format(name, *quality(truth, it)))
    gaps = sorted(max(abs(a[it] - b[it]) for it in a) for a, b in zip(exact, whole, strict=True))
    at = {share: gaps[min(len(gaps) - 1, int(share * len(gaps)))] for share in (0.5, 0.9, 0.99)}
    print("greatest change of a text's probabilities:", ", ".join(f"{k:.0%} below {v:.4f}" for k, v in at.items()))
    print(f"texts with a change over {LIMIT}: {sum(it > LIMIT for it in gaps) / len(gaps):.2%}")


if __name__ == "__main__":
    main()
