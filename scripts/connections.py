#!/usr/bin/env python3
"""Many connections at once against a running service, optionally stopped in the middle.

    python3 scripts/connections.py --connections 2000 --requests 5
    python3 scripts/connections.py --connections 200 --requests 50 --stop-pid PID

Standard library only. Counts answers by status; with --stop-pid sends SIGTERM after a second. A reply that breaks off
in the middle counts as `cut`: there must be none. `closed` is a connection that ended between two requests.
"""

import argparse
import asyncio
import collections
import json
import os
import signal
import time

BODY = json.dumps({"items": [{"id": "a", "text": "小区停水三天了，物业没人管，天天打电话都没有人接"}]}).encode()


async def caller(args, counts, seconds):
    try:
        reader, writer = await asyncio.open_connection(args.host, args.port)
    except OSError:
        counts["refused"] += 1
        return
    head = f"POST /v1/classify HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(BODY)}"
    for _ in range(args.requests):
        started = time.perf_counter()
        try:
            writer.write(head.encode() + b"\r\n\r\n" + BODY)
            await writer.drain()
            reply = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        except (asyncio.IncompleteReadError, OSError) as error:
            counts["cut" if getattr(error, "partial", b"") else "closed"] += 1
            return
        fields = dict(line.split(": ", 1) for line in reply.split("\r\n")[1:] if ": " in line)
        try:
            await reader.readexactly(int(fields["content-length"]))
        except (asyncio.IncompleteReadError, OSError):
            counts["cut"] += 1
            return
        counts[reply.split(" ")[1]] += 1
        seconds.append(time.perf_counter() - started)
        if fields.get("connection") == "close":
            return
    writer.close()


async def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--connections", type=int, default=2000)
    parser.add_argument("--requests", type=int, default=5, help="per connection")
    parser.add_argument("--stop-pid", type=int, help="send SIGTERM there after a second")
    args = parser.parse_args()
    counts, seconds = collections.Counter(), []

    async def stop():
        if args.stop_pid:
            await asyncio.sleep(1)
            os.kill(args.stop_pid, signal.SIGTERM)

    started = time.perf_counter()
    await asyncio.gather(stop(), *(caller(args, counts, seconds) for _ in range(args.connections)))
    rate = len(seconds) / (time.perf_counter() - started)
    seconds.sort()
    at = [1000 * seconds[int((len(seconds) - 1) * share)] for share in (0.5, 0.99)]
    print(f"{dict(counts)}; {rate:.0f} a second; p50 {at[0]:.0f} ms, p99 {at[1]:.0f} ms")


asyncio.run(main())
