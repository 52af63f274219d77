"""What this machine can do: two ceilings, measured, on the processor's cores."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from ppcls.analysis.cost import LayerCost

GEMM_SIDE = 1536
ARRAY_BYTES = 64 << 20  # or twice the last cache, if that is more
_FLOAT = 4  # bytes


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Ceilings in float32, each the best of several tries."""

    flops: float  # FLOP/s of a matrix product by Paddle
    bandwidth: float  # bytes/s, read and written, of arrays far larger than the caches
    threads: int

    @property
    def balance(self) -> float:
        """MACs done in the time one float32 element is moved: below this MoC, moving decides."""
        return (self.flops / 2) / (self.bandwidth / _FLOAT)

    def predict(self, layer: LayerCost) -> float:
        """Seconds the layer takes at least: the longer of computing and moving."""
        return max(2 * layer.macs / self.flops, layer.traffic / self.bandwidth)

    def attainable(self, intensity: float) -> float:
        """FLOP/s at most, at this many FLOP for each byte."""
        return min(self.flops, intensity * self.bandwidth)

    def best(self, other: Machine) -> Machine:
        """Both measurements' better ceilings: other work on the machine only ever lowers them."""
        return Machine(
            flops=max(self.flops, other.flops),
            bandwidth=max(self.bandwidth, other.bandwidth),
            threads=self.threads,
        )

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return (
            f"{self.flops / 1e9:.3g} GFLOP/s (float32 matrix product by Paddle) and "
            f"{self.bandwidth / 1e9:.3g} GB/s (copy and add of large arrays), {threads}"
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"balance_macs_per_element": self.balance}


def measure_machine(threads: int | None = None, tries: int = 7) -> Machine:
    """Measure both ceilings on the CPU; takes about two seconds and 200 MB.

    `threads` is what Paddle was started with (OMP_NUM_THREADS), which cannot be changed later.
    """
    threads = threads or int(os.environ.get("OMP_NUM_THREADS", "1"))
    return Machine(
        flops=_measure_flops(tries), bandwidth=_measure_bandwidth(threads, tries), threads=threads
    )


def best_time(function: Callable[[], object], tries: int) -> float:
    """Seconds of the fastest of `tries` calls, after one that does not count."""
    function()
    times = []
    for _ in range(tries):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def _measure_flops(tries: int) -> float:
    noise = np.random.default_rng(0).standard_normal((2, GEMM_SIDE, GEMM_SIDE), dtype=np.float32)
    a, b = (paddle.to_tensor(matrix, place=paddle.CPUPlace()) for matrix in noise)
    with paddle.no_grad():
        return 2 * GEMM_SIDE**3 / best_time(lambda: paddle.matmul(a, b), tries)


def _measure_bandwidth(threads: int, tries: int) -> float:
    """The better of STREAM's copy (a = b) and add (a = b + c), each thread on its own part."""
    elements = max(ARRAY_BYTES, 2 * _cache_bytes()) // _FLOAT
    # Filled, not zeros: pages never written to may all be one.
    parts = [
        tuple(np.full(elements // threads, value, np.float32) for value in (1, 2, 3))
        for _ in range(threads)
    ]
    with ThreadPoolExecutor(threads) as pool:

        def on_all(function: Callable[[tuple], object]) -> float:
            return best_time(lambda: list(pool.map(function, parts)), tries)

        moved = parts[0][0].nbytes * threads
        copy = 2 * moved / on_all(lambda part: np.copyto(part[0], part[1]))
        add = 3 * moved / on_all(lambda part: np.add(part[1], part[2], out=part[0]))
    return max(copy, add)


def _cache_bytes() -> int:
    """Size of the last-level cache, where Linux says it; else 0."""
    path = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
    text = path.read_text().strip() if path.exists() else ""
    return int(text[:-1]) << 10 if text[:-1].isdecimal() and text.endswith("K") else 0
