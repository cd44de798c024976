#!/usr/bin/env python3
"""Labelled texts of other tasks for `pretrain.py --tasks`.

    python3 scripts/prepare_tasks.py BENCH --tokenizer tokenizer.json --keep-out test.jsonl -o tasks/

BENCH holds a folder a task with `train.jsonl.xz`, `dev.jsonl.xz` and `test.jsonl.xz` (`text`, `label`).
Only `train` is used, and of it no text that equals or nearly equals (half of the character 6-grams
shared) a text of any task's `dev` or `test` or of a `--keep-out` file: a figure measured on those must
not have been prepared on them. Writes `NAME.ids` (by `triage encode ids`) and `NAME.labels`.
"""

import argparse
import collections
import json
import lzma
import subprocess
from pathlib import Path

# Few-shot sets are too small to teach; `ced_rumor` shares its source with the claims of our own test sets.
LEFT_OUT = {"ced_rumor", "fewclue_csldcp", "fewclue_eprstmt", "fewclue_iflytek", "fewclue_tnews"}
N_GRAM = 6


def read(path):
    opener = lzma.open if path.suffix == ".xz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def grams(text):
    text = "".join(it for it in text.lower() if it.isalnum())
    return {text[at : at + N_GRAM] for at in range(max(1, len(text) - N_GRAM + 1))}


class Forbidden:
    """Texts that must not be trained on."""

    def __init__(self):
        self.sizes, self.holders = [], collections.defaultdict(list)

    def add(self, text):
        its = grams(text)
        for it in its:
            self.holders[it].append(len(self.sizes))
        self.sizes.append(len(its))

    def is_near(self, text):
        its = grams(text)
        shared = collections.Counter(holder for it in its for holder in self.holders.get(it, ()))
        return any(n > 0.5 * (len(its) + self.sizes[holder] - n) for holder, n in shared.items())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bench", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--keep-out", type=Path, nargs="*", default=[])
    parser.add_argument("--triage", default="target/release/triage")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    forbidden = Forbidden()
    kept_out = [*args.bench.glob("*/dev.jsonl.xz"), *args.bench.glob("*/test.jsonl.xz"), *args.keep_out]
    for path in kept_out:
        for row in read(path):
            forbidden.add(row["text"])
    for folder in sorted(args.bench.iterdir()):
        if folder.name in LEFT_OUT or not (folder / "train.jsonl.xz").exists():
            continue
        rows = read(folder / "train.jsonl.xz")
        kept = [it for it in rows if it["text"].strip() and not forbidden.is_near(it["text"])]
        labels = sorted({it["label"] for it in kept})
        texts = args.output / f"{folder.name}.txt"
        texts.write_text("".join(" ".join(it["text"].split()) + "\n" for it in kept), "utf-8")
        numbers = args.output / f"{folder.name}.labels"
        numbers.write_text("".join(f"{labels.index(it['label'])}\n" for it in kept))
        ids = args.output / f"{folder.name}.ids"
        subprocess.run([args.triage, "encode", "ids", texts, "--tokenizer", args.tokenizer, "-o", ids], check=True)
        texts.unlink()
        print(f"{folder.name}: {len(kept)} of {len(rows)} texts, {len(labels)} labels", flush=True)


if __name__ == "__main__":
    main()
