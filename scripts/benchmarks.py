#!/usr/bin/env python3
"""The encoder on public tasks: `triage train` with each task's own labels, beside the published scores.

    python3 scripts/benchmarks.py BENCH --base base/ --work /elsewhere --seeds 3 --predictions docs/benchmarks

BENCH holds a folder a task with `train`, `dev` and `test` (`.jsonl.xz`: `text`, and `label` unless withheld). Every
task is trained with one recipe, the trainer's defaults but for the number of epochs, and nothing is tuned on its dev
or test: the epoch is chosen and the calibration fitted on a twentieth of train. Trainings are kept in --work, so a run
cut short goes on where it was; the table is printed from what is there. Where a test has no labels, the predictions of
the seed that did best on its held-out part are written to --predictions, one label a line in the file's order.
Standard library only.
"""

import argparse
import json
import lzma
import pathlib
import shutil
import statistics
import subprocess

# Figure, our floor, and what was published for it: see BENCH/*/SOURCE.md.
TASKS = {
    "dataclue_tnews": ("test", "macro_f1", 0.468, "46.8 RoBERTa-wwm, 3 layers, 768 wide; 49.3 with data cleaned"),
    "dataclue_cic": ("dev", "macro_f1", 0.60, "72.8 the same model, on the cleaned test labels"),
    "tipdm_citizen7": ("dev", "accuracy", 0.88, "91.4 a contest team, on test, trained on unsegmented text"),
    "coldataset": ("dev", "macro_f1", 0.76, "82.4 RoBERTa-wwm-ext, 12 layers, on test"),
    "chnsenticorp": ("dev", "accuracy", 0.90, "93.7 RoBERTa-Mini, 4 layers, 256 wide; 91.4 Tiny, 2 layers, 128 wide"),
    "douban_book_review": ("dev", "accuracy", 0.82, "85.7 RoBERTa-Mini; 83.4 Tiny"),
}


def rows(path):
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def write(path, items, with_label):
    """Cases for `triage`; a row's number is its id. Texts that say nothing are left out of training."""
    with path.open("w", encoding="utf-8") as out:
        for number, it in enumerate(items):
            case = {"id": f"row-{number}", "text": it["text"]}
            if with_label:
                case["label"] = str(it["label"])
            print(json.dumps(case, ensure_ascii=False), file=out)


def triage(args, *words):
    command = [str(it) for it in (args.triage, *words)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-3000:]}")
    return done.stdout


def figures(report):
    return {it: report[it]["value"] for it in ("accuracy", "macro_f1")}


def train(args, task, seed):
    """Figures of one training, from its directory if it was done before."""
    home = args.work / task
    model, done = home / f"seed-{seed}", home / f"seed-{seed}.json"
    if done.exists():
        return json.loads(done.read_text("utf-8"))
    home.mkdir(parents=True, exist_ok=True)
    for part in ("train", "dev", "test"):
        found = rows(args.bench / task / f"{part}.jsonl.xz")
        write(home / f"{part}.jsonl", found, "label" in found[0])
    shutil.rmtree(model, ignore_errors=True)  # left by a run that was cut short
    triage(args, "train", home / "train.jsonl", "--any-label", "--base", args.base, "-o", model, "--seed", seed,
           "--epochs", args.epochs, "--validation-share", "0.05", "--html", home / f"seed-{seed}.html")
    metrics = json.loads((model / "metrics.json").read_text("utf-8"))
    result = {"task": task, "seed": seed, "held_out": metrics["validation"]["macro_f1"]["value"]}
    for part in ("dev", "test"):
        if "label" in json.loads((home / f"{part}.jsonl").read_text("utf-8").split("\n", 1)[0]):
            answer = triage(args, "--model", model, "evaluate", home / f"{part}.jsonl", "--json")
            result[part] = figures(json.loads(answer)["report"])
    done.write_text(json.dumps(result) + "\n", "utf-8")
    return result


def predict(args, task, seed):
    """Labels of an unlabelled test, by the model of `seed`."""
    home, target = args.work / task, args.predictions / f"{task}.test.txt"
    answers = home / f"answers-{seed}.jsonl"
    answers.unlink(missing_ok=True)
    triage(args, "--model", home / f"seed-{seed}", "score", home / "test.jsonl", "-o", answers)
    labels = []
    for line in answers.read_text("utf-8").splitlines():
        it = json.loads(line)
        if it["status"] != "ok":
            raise SystemExit(f"{answers}: {it}")
        labels.append(it["type"]["code"])
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("".join(f"{it}\n" for it in labels), "utf-8")
    print(f"{target}: {len(labels)} labels, seed {seed}")


def table(found):
    print("| task | measured on | figure | ours, mean (least to greatest, seeds) | floor | published |")
    print("| --- | --- | --- | --- | --- | --- |")
    for task, (part, figure, floor, published) in TASKS.items():
        runs = [it for it in found if it["task"] == task]
        if not runs:
            continue
        for measured in ("dev", "test"):
            values = [100 * it[measured][figure] for it in runs if measured in it]
            if not values:
                continue
            ours = f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f}, {len(values)})"
            limits = (f"{100 * floor:.1f}", published) if measured == part else ("", "")
            print(f"| {task} | {measured} | {figure} | {ours} | {limits[0]} | {limits[1]} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bench", type=pathlib.Path)
    parser.add_argument("--base", type=pathlib.Path, required=True, help="output of pretrain.py")
    parser.add_argument("--work", type=pathlib.Path, required=True, help="directory for trainings, outside the repository")
    parser.add_argument("--triage", default="target/release/triage")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--predictions", type=pathlib.Path, help="directory for labels of unlabelled tests")
    args = parser.parse_args()
    found = []
    for seed in range(args.seeds):
        for task in args.tasks:
            found.append(train(args, task, seed))
            print(json.dumps(found[-1]), flush=True)
    table(found)
    for task in args.tasks if args.predictions else []:
        runs = [it for it in found if it["task"] == task]
        if all("test" not in it for it in runs):
            predict(args, task, max(runs, key=lambda it: it["held_out"])["seed"])


main()
