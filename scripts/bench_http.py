#!/usr/bin/env python3
"""Requests a second of HTTP services that answer text-embeddings-inference's `POST /predict`, in turns.

    target/release/triage serve --port 8080 --cache-mib 0 &
    text-embeddings-router --model-id DIR --port 8099 &
    python3 scripts/bench_http.py posts.jsonl --service ours=http://127.0.0.1:8080 --service tei=http://127.0.0.1:8099

One post a request, the same posts to each service, which takes turns so that a busy moment of the machine
hits all; ratios are of the first to each other one, median with least and greatest over the rounds.
Needs `wrk`. A reply that is not 200 counts as a failure and ends the run.
"""

import argparse
import json
import lzma
import random
import re
import statistics
import subprocess
import tempfile
from pathlib import Path

SCRIPT = """
local bodies, at = {}, 0
local threads = 0
function setup(thread) thread:set("id", threads); threads = threads + 1 end
function init(args)
  for line in io.lines(args[1]) do bodies[#bodies + 1] = line end
  at = id * 997
  wrk.method, wrk.headers["Content-Type"] = "POST", "application/json"
end
function request()
  at = at % #bodies + 1
  return wrk.format(nil, nil, nil, bodies[at])
end
function done(summary, latency)
  local e = summary.errors
  io.write(string.format("RESULT %d %d %d %d %d\\n", summary.requests, summary.duration,
    e.status + e.connect + e.read + e.write + e.timeout, latency:percentile(50), latency:percentile(99)))
end
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("posts", type=Path, help="JSONL with `text`, plain or .xz")
    parser.add_argument("--service", action="append", required=True, metavar="NAME=URL")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-n", type=int, default=20000, help="posts")
    args = parser.parse_args()
    opener = lzma.open if args.posts.suffix == ".xz" else open
    with opener(args.posts, "rt", encoding="utf-8") as file:
        texts = [text for text in (json.loads(line)["text"] for line in file) if text.strip()]
    random.Random(0).shuffle(texts)
    texts = texts[: args.n]
    services = [it.split("=", 1) for it in args.service]
    rates = {name: [] for name, _ in services}
    with tempfile.TemporaryDirectory() as folder:
        bodies, script = Path(folder) / "bodies", Path(folder) / "posts.lua"
        bodies.write_text("".join(json.dumps({"inputs": it}) + "\n" for it in texts))
        script.write_text(SCRIPT)

        def run(url, seconds):
            command = ["wrk", "-t1", f"-c{args.connections}", f"-d{seconds}s", "--timeout", "30s"]
            command += ["-s", script, f"{url}/predict", "--", bodies]
            out = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout
            requests, duration, failed, p50, p99 = map(int, re.search(r"RESULT (.*)", out)[1].split())
            if failed:
                raise SystemExit(f"{url}: {failed} of {requests} requests failed:\n{out}")
            return requests / duration * 1e6, p50 / 1000, p99 / 1000

        for _, url in services:
            run(url, 2)
        for round_idx in range(args.rounds):
            for name, url in services:
                rate, p50, p99 = run(url, args.seconds)
                rates[name].append(rate)
                print(f"round {round_idx + 1} {name:12}{rate:9.1f} requests/s  p50 {p50:8.1f} ms  p99 {p99:8.1f} ms", flush=True)
    n_characters = statistics.mean(map(len, texts))
    print(f"\n{len(texts)} posts of {n_characters:.0f} characters on average, {args.connections} connections")
    (first, ours), *others = rates.items()
    for name, theirs in others:
        ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
        print(f"{first} to {name}: {statistics.median(ratios):.1f}x ({ratios[0]:.1f}–{ratios[-1]:.1f})")


if __name__ == "__main__":
    main()
