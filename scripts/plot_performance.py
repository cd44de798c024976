#!/usr/bin/env python3
"""How the engine's cost grows with length, batch and threads: `docs/performance.csv` and a picture beside it.

    pip install -r scripts/requirements-bench.txt
    python3 scripts/plot_performance.py -o docs/performance.png

Rows of random token ids, because only their number matters. Settings are measured in turns, `--rounds` times;
the picture shows medians, with the least and the greatest as bars.
"""

import argparse
import csv
import json
import random
import statistics
import subprocess
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402 (after the backend is chosen)
from bench_peers import engine_binary  # noqa: E402

LENGTHS = (8, 16, 32, 64, 96, 128, 192)
BATCHES = (1, 2, 4, 8, 16, 64, 256)
USUAL_LENGTH, USUAL_BATCH = 64, 256


def settings(max_threads):
    """`(panel, engine, length, batch, threads)`, each once."""
    out = []
    for engine in ("int8", "f32"):
        out += [("length", engine, it, USUAL_BATCH, max_threads) for it in LENGTHS]
        out += [("batch", engine, USUAL_LENGTH, it, max_threads) for it in BATCHES]
        out += [("threads", engine, USUAL_LENGTH, USUAL_BATCH, it) for it in range(1, max_threads + 1)]
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True, help="PNG; the CSV goes beside it")
    parser.add_argument("--model", type=Path, default=Path("models/triage-base"))
    parser.add_argument("--engine", help="benches/engine.rs, built; built here when not given")
    parser.add_argument("--threads", type=int, default=2, help="most threads")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of one measurement")
    args = parser.parse_args()
    binary = args.engine or engine_binary()
    chance = random.Random(0)
    vocab_size = json.loads((args.model / "config.json").read_text("utf-8"))["vocab_size"]
    milliseconds = {it: [] for it in settings(args.threads)}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.rounds):
            for setting in milliseconds:
                _, engine, length, batch, threads = setting
                rows = Path(folder) / f"{length}.json"
                if not rows.exists():
                    ids = [[chance.randrange(5, vocab_size) for _ in range(length)] for _ in range(USUAL_BATCH)]
                    rows.write_text(json.dumps(ids))
                command = [binary, "--rows", rows, "--model", args.model, "--engine", engine, "--batch", batch]
                command += ["--threads", threads, "--seconds", args.seconds]
                out = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout
                milliseconds[setting].append(json.loads(out)["mean_s"] / USUAL_BATCH * 1000)
    with args.output.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["panel", "engine", "tokens", "rows_at_once", "threads", "ms_per_post", "least", "greatest"])
        for setting, them in milliseconds.items():
            writer.writerow([*setting, *(f"{it:.4f}" for it in (statistics.median(them), min(them), max(them)))])
    draw(milliseconds, args.output)


def draw(milliseconds, path):
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), constrained_layout=True)
    panels = (
        ("length", 2, "tokens of a post", "ms a post"),
        ("batch", 3, "posts given at once", "ms a post"),
        ("threads", 4, "threads", "posts a second"),
    )
    for axis, (panel, column, x_label, y_label) in zip(axes, panels):
        for engine in ("int8", "f32"):
            found = [(it, them) for it, them in milliseconds.items() if it[:2] == (panel, engine)]
            xs = [it[column] for it, _ in found]
            values = [[1000 / it for it in them] if panel == "threads" else them for _, them in found]
            middle = [statistics.median(it) for it in values]
            below = [m - min(it) for m, it in zip(middle, values)]
            above = [max(it) - m for m, it in zip(middle, values)]
            axis.errorbar(xs, middle, [below, above], marker="o", capsize=3, label=engine)
        axis.set(xlabel=x_label, ylabel=y_label, ylim=(0, None))
        if panel == "batch":
            axis.set_xscale("log", base=2)
        if panel == "threads":
            axis.set_xticks(xs)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
