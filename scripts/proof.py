#!/usr/bin/env python3
"""Proofs that the service stands up to stress. Each starts a service of its own on a free port of this machine, does
its worst for a bounded time, prints what it measured and a verdict, and exits with 1 when the verdict is FAIL.

    python3 scripts/proof.py all          [--binary target/release/triage] [--seconds 10]
    python3 scripts/proof.py steps        throughput, p50, p95, p99 at 1, 16, 64 and 256 connections (wrk)
    python3 scripts/proof.py half         p50, p95, p99 at a fixed rate: half of what saturates it
    python3 scripts/proof.py overload     ten times the saturating rate: refusals, memory, time to recover
    python3 scripts/proof.py soak         16 connections for --seconds: memory over time, every item accounted for
    python3 scripts/proof.py stop         SIGTERM under load: what was taken is answered, the process ends
    python3 scripts/proof.py kill         kill -9 under load and a new start: time until it is ready

`steps` and the saturating rate need `wrk` (from your distribution); the rest is Python's standard library. Every text
is another one, so that the answer cache does not help.
"""

import argparse
import asyncio
import json
import pathlib
import shlex
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
PLACES = ["东门小区", "河西路", "第三小学", "体育馆", "二号线车站", "人民公园", "老菜市场", "行政大厅"]
THINGS = ["停水", "路灯不亮", "垃圾没人清", "噪音扰民", "电梯坏了", "乱停车", "积水很深", "井盖缺失"]
ENDS = ["打电话一直没人接，请尽快处理", "已经三天了还没有人管", "希望有关部门给个说法", "老人孩子都很不方便"]


class Service:
    """A service of this run, and what is measured of it from outside."""

    def __init__(self, binary, *args):
        self._command = [binary, "serve", "--port", "0", "--log-format", "json", "--drain-seconds", "20", *args]
        self.start()

    def start(self):
        began = time.perf_counter()
        self.process = subprocess.Popen(self._command, stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            try:
                log = json.loads(line)
            except ValueError:
                sys.exit(f"it did not start: {line.strip()}")
            if log.get("message") == "ready":
                self.address = log["http.address"]
                break
        else:
            sys.exit("it did not start")
        self.seconds_to_ready = time.perf_counter() - began
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    @property
    def url(self):
        return f"http://{self.address}"

    def get(self, path):
        """Status and body."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metrics(self):
        lines = (line.rsplit(" ", 1) for line in self.get("/metrics")[1].splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in lines}

    def resident_kb(self):
        try:
            status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        except OSError:
            return 0
        return int(next((it.split()[1] for it in status.splitlines() if it.startswith("VmRSS")), 0))

    def stop(self):
        """Its exit status, and how long it took to end."""
        began = time.perf_counter()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60), time.perf_counter() - began

    def kill(self):
        self.process.kill()
        self.process.wait()


class Memory(threading.Thread):
    """Resident memory of `service`, twice a second."""

    def __init__(self, service):
        super().__init__(daemon=True)
        self.service, self.samples, self.is_done = service, [], threading.Event()
        self.start()

    def run(self):
        began = time.perf_counter()
        while not self.is_done.wait(0.5):
            self.samples.append((time.perf_counter() - began, self.service.resident_kb()))

    def done(self):
        """Resident kB: (after a quarter of the time, at the end, the most)."""
        self.is_done.set()
        self.join()
        kilobytes = [it[1] for it in self.samples if it[1]] or [0]
        return kilobytes[len(kilobytes) // 4], kilobytes[-1], max(kilobytes)

    def curve(self, points=10):
        step = max(1, len(self.samples) // points)
        return " ".join(f"{at:.0f}s:{kilobytes // 1024}M" for at, kilobytes in self.samples[::step])


def at_share(values, share):
    """The value below which `share` of the sorted `values` lie."""
    return values[min(len(values) - 1, int(len(values) * share))] if values else float("nan")


def percentiles(seconds):
    seconds = sorted(seconds)
    return {f"p{100 * share:g}": 1000 * at_share(seconds, share) for share in (0.5, 0.95, 0.99)}


def shown(milliseconds):
    return ", ".join(f"{name} {value:.1f} ms" for name, value in milliseconds.items())


def request(n):
    """The n-th request: a text that no other has."""
    text = f"{PLACES[n % 8]}{n % 997}栋附近{THINGS[n // 8 % 8]}，{ENDS[n // 64 % 4]}。编号{n}。"
    body = json.dumps({"items": [{"id": "a", "text": text}]}, ensure_ascii=False).encode()
    head = f"POST /v1/classify HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


class Load:
    """Requests at a fixed rate, whether the ones before are answered or not: a slow answer delays none of the others,
    and its wait counts from the moment it was due (no coordinated omission)."""

    def __init__(self, address, rate, seconds, connections):
        host, port = address.rsplit(":", 1)
        self._address = (host, int(port))
        self._rate, self._seconds, self._connections = rate, seconds, connections
        self.statuses, self.latencies, self.refusals = {}, [], []
        self.n_late = self.n_unsent = 0

    def count(self, what):
        self.statuses[what] = self.statuses.get(what, 0) + 1

    async def _caller(self, due):
        reader = writer = None
        while (job := await due.get()) is not None:
            n, at = job
            try:
                if writer is None:
                    reader, writer = await asyncio.open_connection(*self._address)
                writer.write(request(n))
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ", 1)[1].split(b"\r", 1)[0])
                await reader.readexactly(length)
            except (OSError, asyncio.IncompleteReadError):
                self.count("cut")
                writer = None
                continue
            status = int(head[9:12])
            self.count(status)
            waits = self.latencies if status == 200 else self.refusals
            waits.append(time.perf_counter() - at)
        if writer is not None:
            writer.close()

    async def _run(self):
        due = asyncio.Queue()
        callers = [asyncio.create_task(self._caller(due)) for _ in range(self._connections)]
        began, n = time.perf_counter(), 0
        while (now := time.perf_counter() - began) < self._seconds:
            while n < now * self._rate:
                at = began + n / self._rate
                n += 1
                # Whoever cannot be sent now would only be sent when the load is over.
                if due.qsize() > self._connections:
                    self.n_unsent += 1
                    continue
                self.n_late += time.perf_counter() - at > 0.005
                due.put_nowait((n, at))
            await asyncio.sleep(0.0005)
        for _ in callers:
            due.put_nowait(None)
        await asyncio.wait_for(asyncio.gather(*callers), 120)
        return n - self.n_unsent

    def run(self):
        self.n_sent = asyncio.run(self._run())
        return self


def wrk(service, connections, seconds):
    """What `scripts/load.lua` measured."""
    threads = 1 if connections < 2 else 2
    command = ["wrk", "-t", str(threads), "-c", str(connections), "-d", f"{seconds}s", "--timeout", "20s"]
    output = subprocess.run([*command, "-s", str(HERE / "load.lua"), service.url], text=True, capture_output=True)
    line = next((it for it in output.stdout.splitlines() if it.startswith("RESULT")), None)
    if line is None:
        sys.exit(f"wrk said: {output.stderr or output.stdout}")
    return {name: float(value) for name, value in (it.split("=") for it in line.split()[1:])}


def conserved(service):
    """Whether every item received was answered well or not, once those are through whose callers hung up just now."""
    for _ in range(20):
        metrics = service.metrics()
        answered = metrics['triage_items_total{outcome="ok"}'] + metrics['triage_items_total{outcome="error"}']
        if metrics["triage_items_received_total"] == answered:
            return True
        time.sleep(0.1)
    print(f"  received {metrics['triage_items_received_total']:.0f}, answered {answered:.0f}")
    return False


def saturating_rate(service, seconds):
    wrk(service, 16, 2)  # Warm.
    return wrk(service, 64, seconds)["ok_per_s"]


def steps(args):
    service = Service(args.binary, *args.serve)
    is_good = True
    for connections in (1, 16, 64, 256):
        it = wrk(service, connections, args.seconds)
        is_good &= it["other"] == it["socket_errors"] == it["timeouts"] == 0 < it["ok"]
        print(
            f"  {connections:3} connections: {it['ok_per_s']:.0f} posts/s, p50 {it['p50_ms']:.1f} ms, "
            f"p95 {it['p95_ms']:.1f} ms, p99 {it['p99_ms']:.1f} ms; refused {it['refused']:.0f}, "
            f"other {it['other']:.0f}; resident {service.resident_kb() // 1024} MB"
        )
    is_good &= conserved(service)
    service.stop()
    return is_good, "answers of 200 and 503 only, every item accounted for"


def half(args):
    service = Service(args.binary, *args.serve)
    most = saturating_rate(service, args.seconds)
    rate = max(1.0, most / 2)
    load = Load(service.address, rate, args.seconds, 64).run()
    service.stop()
    waits = percentiles(load.latencies)
    print(f"  saturating {most:.0f} posts/s; at {rate:.0f}/s: {shown(waits)}; statuses {load.statuses}")
    print(f"  the sender itself was more than 5 ms late with {load.n_late} of {load.n_sent} requests")
    is_good = set(load.statuses) == {200} and load.n_unsent == 0 and waits["p99"] <= args.p99
    return is_good, f"all answered, p99 at half of the saturating rate at most {args.p99:g} ms"


def overload(args):
    service = Service(args.binary, "--max-waiting-items", "256", *args.serve)
    most = saturating_rate(service, args.seconds)
    # Python's sender reaches some thousand requests a second; more connections than places refuse at once as well.
    rate = 10 * most
    memory = Memory(service)
    load = Load(service.address, rate, args.seconds, 2048).run()
    began = time.perf_counter()
    while service.get("/readyz")[0] != 200 and time.perf_counter() - began < 30:
        time.sleep(0.01)
    recovered = time.perf_counter() - began
    after = wrk(service, 1, 2)
    early, late, peak = memory.done()
    is_conserved = conserved(service)
    service.stop()
    n_answered = sum(load.statuses.values())
    print(f"  saturating {most:.0f}/s, wanted {rate:.0f}/s for {args.seconds} s, sent {load.n_sent / args.seconds:.0f}/s")
    print(f"  sent {load.n_sent}, answered {n_answered}: {load.statuses}")
    print(f"  answers {shown(percentiles(load.latencies))}; refusals {shown(percentiles(load.refusals))}")
    print(f"  ready {1000 * recovered:.0f} ms after the last answer; then alone p99 {after['p99_ms']:.1f} ms")
    print(f"  resident MB: early {early // 1024}, at the end {late // 1024}, most {peak // 1024} ({memory.curve()})")
    is_good = (
        set(load.statuses) == {200, 503}
        and n_answered == load.n_sent
        and recovered < 1
        and after["other"] == after["refused"] == 0 < after["ok"]
        and late < 1.3 * early + 20_000
        and is_conserved
    )
    return is_good, "sheds with 503 only, ready within a second, memory flat, every item accounted for"


def soak(args):
    service = Service(args.binary, *args.serve)
    wrk(service, 16, 3)  # The cache and the allocator grow first.
    memory = Memory(service)
    it = wrk(service, 16, args.seconds)
    early, late, peak = memory.done()
    is_conserved = conserved(service)
    n_panics = service.metrics()["triage_worker_panics_total"]
    service.stop()
    print(f"  {it['ok']:.0f} answers in {args.seconds} s ({it['ok_per_s']:.0f}/s), p99 {it['p99_ms']:.1f} ms")
    print(f"  resident MB: early {early // 1024}, at the end {late // 1024}, most {peak // 1024} ({memory.curve(20)})")
    is_good = (
        it["other"] == it["refused"] == it["socket_errors"] == it["timeouts"] == 0 < it["ok"]
        and late < 1.1 * early + 20_000
        and n_panics == 0
        and is_conserved
    )
    return is_good, "all answered, memory flat, no panic, every item accounted for"


def stop(args):
    service = Service(args.binary, *args.serve)
    command = [sys.executable, str(HERE / "connections.py"), "--port", service.address.rsplit(":", 1)[1]]
    command += ["--connections", "100", "--requests", "100000", "--stop-pid", str(service.process.pid)]
    output = subprocess.run(command, text=True, capture_output=True, timeout=120)
    status = service.process.wait(60)
    print(f"  {output.stdout.strip() or output.stderr.strip()}; exit status {status}")
    return "cut" not in output.stdout and "'200'" in output.stdout and status == 0, "nothing that was taken is lost"


def kill(args):
    service = Service(args.binary, *args.serve)
    first = service.seconds_to_ready
    loads = subprocess.Popen(
        ["wrk", "-t", "2", "-c", "32", "-d", "4s", "-s", str(HERE / "load.lua"), service.url],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    time.sleep(2)
    service.kill()
    loads.kill()
    loads.wait()
    service.start()
    seconds = service.seconds_to_ready
    after = wrk(service, 1, 1)
    status, _ = service.stop()
    print(f"  first start to ready {first:.2f} s; after kill -9 under load {seconds:.2f} s; then {after['ok']:.0f} answers")
    is_good = after["ok"] > 0 and after["other"] == 0 and status == 0 and seconds < first * 2 + 1
    return is_good, "it starts again as quickly as the first time, and answers"


PROOFS = {it.__name__: it for it in (steps, half, overload, soak, stop, kill)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("proof", choices=[*PROOFS, "all"])
    parser.add_argument("--binary", default="target/release/triage")
    parser.add_argument("--seconds", type=int, default=10, help="of each measurement")
    parser.add_argument("--p99", type=float, default=25.0, help="milliseconds allowed at half of the saturating rate")
    parser.add_argument("--serve", type=shlex.split, default=[], help='more arguments of `triage serve`, such as "--threads 2"')
    args = parser.parse_args()
    failed = []
    for name, proof in PROOFS.items() if args.proof == "all" else [(args.proof, PROOFS[args.proof])]:
        print(f"{name}:", flush=True)
        is_good, claim = proof(args)
        print(f"{'PASS' if is_good else 'FAIL'} {name}: {claim}", flush=True)
        failed += [] if is_good else [name]
    sys.exit(1 if failed else 0)


main()
