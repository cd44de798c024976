#!/usr/bin/env python3
"""Does `triage select` save labelling? Plays the annotator with cases that are labelled already.

    python3 scripts/simulate_selection.py cases.jsonl --test test.jsonl --binary target/release/triage

Both arms start from the same few random cases. Each round one arm labels what `select` proposes, the other as many at
random; both train with `--frozen` and are measured on the same test cases, which no arm ever sees. Prints a table and,
with --csv, writes a line a seed, arm and round as it goes, so that a run cut short leaves what it had; --plot draws the
learning curve from such a file (needs matplotlib; the rest is the standard library). Several seeds, because one says
little. The base must not have seen the labels: a pretrained encoder, not a trained version.
"""

import argparse
import collections
import csv
import json
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time


def rows(path):
    return [json.loads(line) for line in pathlib.Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]


def write(path, items):
    path.write_text("".join(json.dumps(it, ensure_ascii=False) + "\n" for it in items), encoding="utf-8")


def triage(args, *words):
    command = [args.binary, *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stderr}")
    return done.stdout


def measure(args, home, name, labelled):
    cases, model = home / f"{name}.jsonl", home / name
    write(cases, labelled)
    # The share is generous: a twentieth of a few hundred cases could not choose an epoch.
    triage(args, "--models", home, "train", cases, "-o", model, "--frozen", "--epochs", str(args.epochs),
           "--validation-share", "0.2", "--base", args.base, "--seed", "1", "--html", home / f"{name}.html")
    report = json.loads(triage(args, "--model", model, "evaluate", args.test, "--json"))["report"]
    return model, report["macro_f1"]["value"]


def arm(args, home, pool, first, is_selecting, seed, note):
    """Macro-F1 after each round, also told to `note`."""
    labelled = {it["id"]: it for it in first}
    scores = []
    for number in range(args.rounds + 1):
        name = f"{'select' if is_selecting else 'random'}-{number}"
        model, score = measure(args, home, name, list(labelled.values()))
        scores.append(score)
        note(seed, name.split("-")[0], len(labelled), score)
        if number == args.rounds:
            return scores
        left = [it for it in pool if it["id"] not in labelled]
        posts = home / "posts.jsonl"
        write(posts, [{"id": it["id"], "text": it["text"]} for it in left])
        known = home / f"{name}.jsonl"
        share = "0.25" if is_selecting else "1.0"
        out = triage(args, "--model", model, "select", posts, "-n", str(args.step), "--labelled", known,
                     "--random-share", share, "--seed", str(seed * 100 + number))
        chosen = {json.loads(line)["id"] for line in out.splitlines()}
        labelled.update((it["id"], it) for it in left if it["id"] in chosen)


def plot(measured, picture):
    """Mean of each arm, and its range over the seeds."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    scores = collections.defaultdict(lambda: collections.defaultdict(list))
    with open(measured, encoding="utf-8", newline="") as lines:
        for it in csv.DictReader(lines):
            scores[it["arm"]][int(it["labelled"])].append(float(it["macro_f1"]))
    figure, axes = pyplot.subplots(figsize=(7, 4.2), dpi=120)
    for name, color in (("select", "#1d5aa8"), ("random", "#b85c1e")):
        xs = sorted(scores[name])
        axes.plot(xs, [statistics.mean(scores[name][x]) for x in xs], color=color, marker="o", label=name)
        axes.fill_between(xs, [min(scores[name][x]) for x in xs], [max(scores[name][x]) for x in xs], color=color,
                          alpha=0.15, linewidth=0)
    n_seeds = max(len(it) for it in scores["random"].values())
    axes.set(xlabel="labelled cases", ylabel="macro-F1 on held-out cases",
             title=f"triage select beside labelling at random ({n_seeds} seeds; bands: least and greatest)")
    axes.title.set_fontsize(10)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(picture)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("cases", help="labelled cases (.jsonl); their labels are hidden until asked for")
    parser.add_argument("--test", required=True, help="labelled cases that only measure")
    parser.add_argument("--binary", default="target/release/triage")
    parser.add_argument("--base", default="models/triage-base", help="a base that has not seen the cases' labels")
    parser.add_argument("--start", type=int, default=100)
    parser.add_argument("--step", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--csv", help="write every measurement here as it is made")
    parser.add_argument("--plot", help="draw the curve of --csv into this PNG; measures nothing")
    args = parser.parse_args()
    if args.plot:
        return plot(args.csv, args.plot)
    pool = rows(args.cases)
    arms = {"select": [], "random": []}
    begin = time.monotonic()

    def note(*line):
        if args.csv:
            is_new = not pathlib.Path(args.csv).exists()
            with open(args.csv, "a", newline="", encoding="utf-8") as out:
                writer = csv.writer(out, lineterminator="\n")
                if is_new:
                    writer.writerow(["seed", "arm", "labelled", "macro_f1"])
                writer.writerow(line[:3] + (f"{line[3]:.4f}",))
        print(f"{time.monotonic() - begin:6.0f} s", *line, file=sys.stderr, flush=True)

    for seed in range(args.seeds):
        first = random.Random(seed).sample(pool, args.start)
        for name in arms:
            with tempfile.TemporaryDirectory() as home:
                arms[name].append(arm(args, pathlib.Path(home), pool, first, name == "select", seed, note))
    for number in range(args.rounds + 1):
        n = args.start + number * args.step
        at = {name: [scores[number] for scores in runs] for name, runs in arms.items()}
        if args.json:
            print(json.dumps({"labelled": n, **at}))
        else:
            gain = [a - b for a, b in zip(at["select"], at["random"])]
            print(f"{n:6} labelled: select {statistics.mean(at['select']):.3f}, random "
                  f"{statistics.mean(at['random']):.3f}, gain {statistics.mean(gain):+.3f} "
                  f"({min(gain):+.3f} to {max(gain):+.3f} over {args.seeds} seeds)")


main()
