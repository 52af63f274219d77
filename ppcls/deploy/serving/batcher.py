"""Dynamic batching: single images in, batches to the engine, each answer to its own caller."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ppcls.utils.errors import JobError


class Answer(NamedTuple):
    """An image's result, and how long it waited and was computed, in seconds."""

    result: dict[str, Any]
    queued: float
    computed: float  # of the whole batch
    batch: int  # images that shared it


@dataclass(eq=False)
class _Job:
    item: Any
    future: Future = field(default_factory=Future)
    submitted: float = field(default_factory=time.perf_counter)


class Batcher:
    """Hands batches to `run` from threads of its own.

    A batch starts when `max_batch` items wait, or when the oldest has waited `max_delay` seconds.
    While a batch is computed the next one gathers, so under load batches fill without delay.
    Bounding what is submitted is the caller's part (see `Budget`).

    Args:
        run: a batch of items -> one result per item, in order. Must be thread-safe if workers > 1.
        observe: called after each batch with its size and its seconds.
    """

    def __init__(
        self,
        run: Callable[[list[Any]], list[dict[str, Any]]],
        *,
        max_batch: int,
        max_delay: float,
        workers: int = 1,
        observe: Callable[[int, float], None] = lambda size, seconds: None,
    ) -> None:
        self._run = run
        self._max_batch = max_batch
        self._max_delay = max_delay
        self._observe = observe
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"compute-{number}", daemon=True)
            for number in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def depth(self) -> int:
        """Items that wait to be computed."""
        return len(self._waiting)

    def submit(self, item: Any) -> Future:
        """Queue `item`; the future gives an `Answer`, or raises what `run` raised for it.

        Cancelling the future takes the item out of the queue, unless it is being computed.
        """
        job = _Job(item)
        with self._changed:
            if self._is_closed:
                raise RuntimeError("the batcher is closed")
            self._waiting.append(job)
            self._changed.notify()
        job.future.add_done_callback(lambda future: self._forget(job, future))
        return job.future

    def close(self) -> None:
        """Compute what waits, then end the threads."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _forget(self, job: _Job, future: Future) -> None:
        if future.cancelled():
            with self._changed:
                if job in self._waiting:
                    self._waiting.remove(job)

    def _work(self) -> None:
        while batch := self._next_batch():
            self._compute([job for job in batch if job.future.set_running_or_notify_cancel()])

    def _next_batch(self) -> list[_Job]:
        """Wait for a batch; an empty one means that the batcher was closed and nothing is left."""
        with self._changed:
            while not (self._is_closed and not self._waiting):
                left = self._seconds_left()
                if left is not None and left <= 0:
                    count = min(len(self._waiting), self._max_batch)
                    return [self._waiting.popleft() for _ in range(count)]
                self._changed.wait(left)
            return []

    def _seconds_left(self) -> float | None:
        """Seconds until a batch must start; None while nothing waits."""
        if not self._waiting:
            return None
        if self._is_closed or len(self._waiting) >= self._max_batch:
            return 0.0
        return self._waiting[0].submitted + self._max_delay - time.perf_counter()

    def _compute(self, jobs: list[_Job]) -> None:
        if not jobs:
            return
        started = time.perf_counter()
        try:
            results = self._run([job.item for job in jobs])
            if len(results) != len(jobs):
                raise JobError(f"expected {len(jobs)} results of a batch, got {len(results)}")
        except Exception as error:  # whatever it is, it belongs to the callers
            self._isolate(jobs, error)
            return
        seconds = time.perf_counter() - started
        self._observe(len(jobs), seconds)
        for job, result in zip(jobs, results, strict=True):
            job.future.set_result(Answer(result, started - job.submitted, seconds, len(jobs)))

    def _isolate(self, jobs: list[_Job], error: Exception) -> None:
        """Compute a failed batch one by one: only the image that is at fault gets the error."""
        if len(jobs) == 1:
            jobs[0].future.set_exception(error)
            return
        for job in jobs:
            self._compute([job])
