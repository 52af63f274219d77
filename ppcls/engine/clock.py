"""Seconds per step and samples per second, for the log."""

from __future__ import annotations

import time


class Clock:
    """Seconds per step and samples per second since the last look."""

    def __init__(self) -> None:
        self._start = self._mark = time.perf_counter()
        self._reader = 0.0
        self._steps = self._samples = 0

    def data_is_here(self) -> None:
        self._reader += time.perf_counter() - self._mark

    def step_is_done(self, samples: int) -> None:
        self._mark = time.perf_counter()
        self._steps += 1
        self._samples += samples

    def read(self) -> dict[str, float]:
        """Return batch_cost and reader_cost in s, ips in samples/s of all ranks, and start anew."""
        seconds = max(self._mark - self._start, 1e-9)
        steps = max(self._steps, 1)
        values = {
            "batch_cost": seconds / steps,
            "reader_cost": self._reader / steps,
            "ips": self._samples / seconds,
        }
        self._start = self._mark = time.perf_counter()
        self._reader, self._steps, self._samples = 0.0, 0, 0
        return values
