#!/usr/bin/env python3
"""What becomes of the figures on a source no training case is from.

    python3 scripts/leave_source_out.py train.jsonl --test test.jsonl --base base/ --work /elsewhere

Cases name their `source`. For each family of sources a model is trained without it and asked the test cases of that
family; beside it stands a model trained on everything and asked the same cases. Both from the same base, with the
trainer's defaults but for the number of epochs. Trainings are kept in --work, so a run cut short goes on where it was.
Standard library only.
"""

import argparse
import json
import pathlib
import shutil
import subprocess

# Sources that are of one kind are left out together.
FAMILIES = {
    "petitions": {"petition"},
    "weibo posts": {"weibo_post", "weibo_mixed", "hot_topic"},
    "comments": {"comment", "review", "question"},
    "event news": {"event_news"},
}
FIGURES = ("accuracy", "macro_f1", "emergency_recall", "false_accusation_rate", "level_kappa")


def rows(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]


def write(path, items):
    path.write_text("".join(json.dumps(it, ensure_ascii=False) + "\n" for it in items), "utf-8")


def triage(args, *words):
    command = [str(it) for it in (args.triage, *words)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-3000:]}")
    return done.stdout


def trained(args, name, cases):
    """The model of `cases`; trained unless it is there."""
    model, path = args.work / name, args.work / f"{name}.jsonl"
    if not (model / "bundle.toml").exists():
        shutil.rmtree(model, ignore_errors=True)  # left by a run that was cut short
        write(path, cases)
        triage(args, "train", path, "--base", args.base, "-o", model, "--epochs", args.epochs)
    return model


def figures(args, model, test):
    report = json.loads(triage(args, "--model", model, "evaluate", test, "--json"))["report"]
    # Accuracy over few types says more than a mean over types with two cases.
    return {it: report[it] and report[it]["value"] for it in FIGURES}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("cases", type=pathlib.Path)
    parser.add_argument("--test", type=pathlib.Path, required=True)
    parser.add_argument("--base", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--triage", default="target/release/triage")
    parser.add_argument("--epochs", type=int, default=4)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    cases, test = rows(args.cases), rows(args.test)
    whole = trained(args, "all", cases)
    print("| left out | training cases left | test cases | " + " | ".join(FIGURES) + " |")
    print("| --- | --- | --- |" + " --- |" * len(FIGURES))
    for name, sources in FAMILIES.items():
        asked = args.work / f"test-{name.replace(' ', '-')}.jsonl"
        write(asked, [it for it in test if it["source"] in sources])
        left = [it for it in cases if it["source"] not in sources]
        without = figures(args, trained(args, f"without-{name.replace(' ', '-')}", left), asked)
        beside = figures(args, whole, asked)
        cells = ["–" if without[it] is None else f"{without[it]:.3f} ({beside[it]:.3f})" for it in FIGURES]
        print(f"| {name} | {len(left)} | {len(rows(asked))} | " + " | ".join(cells) + " |", flush=True)
    print("\nIn brackets: the model trained on everything, on the same cases.")


main()
