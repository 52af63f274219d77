#!/usr/bin/env python3
"""Try tools/serve.py on this machine's loopback: load, hostile requests, batching, and its end.

load      requests from many clients at once: no error, and memory that does not grow
hostile   every kind of request an honest client does not send: 4xx, and the server stays up
batching  throughput with batches against one image at a time, in turns
end       SIGTERM under full load: every request is answered, the exit code is 0

Exits with 1 when something of this does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
# Also from a clone that is not installed.
sys.path.insert(0, str(ROOT))

from _hostile_requests import exchange, hostile_requests, request  # noqa: E402
from _load_client import Clients, Tally  # noqa: E402
from PIL import Image  # noqa: E402

from ppcls.utils.cli import make_parser, run  # noqa: E402
from ppcls.utils.errors import JobError, UserError  # noqa: E402

EXAMPLE = "python scripts/load_server.py --model output/HarDNet39_ds/inference --json load.json"
CASES = ("load", "hostile", "batching", "end")
START_SECONDS = 120


class ServerProcess:
    """A server of its own for each case; leaving the context ends it."""

    def __init__(self, args: argparse.Namespace, *options: str) -> None:
        command = args.server or f"{shlex.quote(sys.executable)} {ROOT / 'tools' / 'serve.py'}"
        self._command = [*shlex.split(command), "--model", str(args.model), "--port", "0", *options]
        self._lines: list[str] = []

    def __enter__(self) -> ServerProcess:
        self.process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.port = self._wait_for_port()
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.end()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self._lines = [*self._lines[-50:], line.rstrip()]

    def _wait_for_port(self) -> int:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            found = re.search(r"serving on http://\S+:(\d+)", "\n".join(self._lines))
            if found:
                return int(found[1])
            time.sleep(0.05)
        self.process.kill()
        self._reader.join(5)
        raise JobError(f"the server did not start: {' | '.join(self._lines[-3:])}")

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def end(self) -> int:
        """Ask it to end and return its exit code."""
        self.terminate()
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return -1

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=20) as answer:
            return answer.read()

    def memory(self, name: str = "VmRSS") -> float:
        """Megabytes of the process: VmRSS now, VmHWM at most so far."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{name}:\s+(\d+)", text)[1]) / 1024

    def load(self, body: bytes, clients: int, total: int) -> Tally:
        return asyncio.run(Clients(self.port, body, clients, total).run())


def picture(args: argparse.Namespace) -> bytes:
    """A request with `--image`, or with a JPEG file of coloured noise."""
    if args.image:
        data = args.image.read_bytes()
    else:
        noise = np.random.default_rng(args.seed).integers(0, 256, (12, 12, 3)).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(noise).resize((256, 256)).save(file, "JPEG", quality=90)
        data = file.getvalue()
    return request(data, "Content-Type: image/jpeg")


def load(args: argparse.Namespace) -> dict[str, Any]:
    body = picture(args)
    with ServerProcess(args) as server:
        # Each thread has its own heap, which grows for a while.
        server.load(body, args.clients, max(args.clients, args.requests // 4))
        before = server.memory()
        tally = server.load(body, args.clients, args.requests)
        growth, peak = server.memory() - before, server.memory("VmHWM")
    ms = sorted(1000 * value for value in tally.seconds)
    result = {
        "requests": args.requests,
        "clients": args.clients,
        "statuses": {str(status): count for status, count in tally.statuses.items()},
        "lost": len(tally.lost) + tally.refused,
        "images_per_s": tally.throughput,
        "p50_ms": ms[len(ms) // 2] if ms else None,
        "p99_ms": ms[int(0.99 * len(ms))] if ms else None,
        "memory_mb": before,
        "memory_growth_mb": growth,
        "memory_peak_mb": peak,
    }
    result["passed"] = tally.statuses == {200: args.requests} and growth < args.growth
    return result


def hostile(args: argparse.Namespace) -> dict[str, Any]:
    wrong: list[str] = []
    statuses: dict[str, int] = {}
    with ServerProcess(args) as server:
        limits = json.loads(server.get("/metadata"))["limits"]
        for case in hostile_requests(args.fuzz, args.seed, limits):
            status, _ = exchange(("127.0.0.1", server.port), case.data)
            statuses[str(status)] = statuses.get(str(status), 0) + 1
            if not case.is_right(status):
                wrong.append(f"{case.name}: {status}")
        after = server.load(picture(args), 1, 1).statuses
        peak = server.memory("VmHWM")
    return {
        "requests": args.fuzz,
        "seed": args.seed,
        "statuses": statuses,
        "wrong": wrong,
        "memory_peak_mb": peak,
        "passed": not wrong and after == {200: 1},
    }


def batching(args: argparse.Namespace) -> dict[str, Any]:
    body, ratios, rates = picture(args), [], []
    with (
        ServerProcess(args) as batched,
        ServerProcess(args, "--max-batch", "1", "--max-delay-ms", "0") as single,
    ):
        for turn in range(args.turns + 1):
            order = (batched, single) if turn % 2 else (single, batched)
            rate = {s: s.load(body, args.clients, args.batch_requests).throughput for s in order}
            rates.append((rate[batched], rate[single]))
            print(f"turn {turn} of {args.turns}: {rate[batched]:.1f} against {rate[single]:.1f}")
        limits = json.loads(batched.get("/metadata"))["limits"]
    ratios = [one / two for one, two in rates[1:]]  # the first turn is a warm-up
    return {
        "max_batch": limits["max_batch"],
        "clients": args.clients,
        "requests_per_turn": args.batch_requests,
        "turns": args.turns,
        "batched_images_per_s": statistics.median(one for one, _ in rates[1:]),
        "single_images_per_s": statistics.median(two for _, two in rates[1:]),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "passed": True,
    }


def end(args: argparse.Namespace) -> dict[str, Any]:
    rounds = [_end_once(args) for _ in range(args.ends)]
    return {
        "rounds": rounds,
        "answered_after_sigterm": sum(entry["answered_after_sigterm"] for entry in rounds),
        "passed": all(
            entry["exit_code"] == 0 and not entry["lost"] and entry["all_200"] for entry in rounds
        ),
    }


def _end_once(args: argparse.Namespace) -> dict[str, Any]:
    with ServerProcess(args) as server:
        clients = Clients(server.port, picture(args), args.clients, None)
        before = 0

        async def stop() -> None:
            nonlocal before
            await asyncio.sleep(args.end_after)
            before = clients.tally.answered
            server.terminate()

        async def both() -> None:
            await asyncio.gather(clients.run(), stop())

        asyncio.run(both())
        code = server.process.wait(60)
    tally = clients.tally
    return {
        "exit_code": code,
        "answered": tally.answered,
        "answered_after_sigterm": tally.answered - before,
        "lost": len(tally.lost),
        "all_200": set(tally.statuses) == {200},
    }


def check(args: argparse.Namespace) -> None:
    for name in ("requests", "clients", "fuzz", "turns", "batch_requests", "ends"):
        if getattr(args, name) < 1:
            option = name.replace("_", "-")
            raise UserError(f"--{option}: expected 1 or more, got {getattr(args, name)}")
    if args.image and not args.image.is_file():
        raise UserError(f"--image {args.image}: expected an image file")
    if not sys.platform.startswith("linux"):
        raise UserError("expected Linux, whose /proc tells the memory of the server")


def try_all(args: argparse.Namespace) -> dict[str, Any]:
    check(args)
    results: dict[str, Any] = {"cores": os.cpu_count()}
    for name in args.cases:
        results[name] = {"load": load, "hostile": hostile, "batching": batching, "end": end}[name](
            args
        )
        print(f"{name}: {json.dumps(results[name])}", flush=True)
    failed = [name for name in args.cases if not results[name]["passed"]]
    if failed:
        raise JobError(f"{', '.join(failed)}: did not hold, see above")
    return results


def parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, EXAMPLE, config=False)
    parser.add_argument(
        "--model", metavar="DIR", type=Path, required=True, help="as tools/serve.py"
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES, help="default: all")
    parser.add_argument("--requests", type=int, default=10_000, help="load (%(default)s)")
    parser.add_argument("--clients", type=int, default=32, help="at once (%(default)s)")
    parser.add_argument("--growth", type=float, default=64, help="load: MB allowed (%(default)s)")
    parser.add_argument("--fuzz", type=int, default=1000, help="hostile requests (%(default)s)")
    parser.add_argument("--turns", type=int, default=5, help="batching: measured (%(default)s)")
    parser.add_argument("--batch-requests", type=int, default=1000, help="a turn (%(default)s)")
    parser.add_argument("--ends", type=int, default=3, help="end: times (%(default)s)")
    parser.add_argument("--end-after", type=float, default=1.0, help="seconds (%(default)s)")
    parser.add_argument("--image", type=Path, help="what is sent (default: coloured noise)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--server", metavar="COMMAND", help="instead of tools/serve.py")
    return parser


def main(argv: list[str] | None = None) -> int:
    return run(parser(), try_all, argv)


if __name__ == "__main__":
    sys.exit(main())
