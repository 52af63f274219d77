"""Work that may stall, such as reading from a server that does not answer, with a limit in time."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any


class Stalled(Exception):
    """An item was not done in time. It may still go on, in a thread nobody waits for.

    done: how many items were done before it.
    """

    def __init__(self, message: str, done: int) -> None:
        super().__init__(message)
        self.done = done


class Deadline:
    """Does work in a thread of its own and waits at most `seconds` for each item.

    A read from a dead disk or server cannot be interrupted; the caller can only stop waiting. Each
    process that uses a copy has a thread of its own. Costs some 20 us a call.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._pid = 0
        self._calls: queue.SimpleQueue | None = None
        if not seconds > 0:
            raise ValueError(f"seconds: expected a number > 0, got {seconds!r}")

    def map(self, function: Callable[[Any], Any], items: Sequence) -> list:
        """Return, or raise, what `function` does with each item.

        Raises Stalled when it is not done with one in time.
        """
        if self._calls is None or self._pid != os.getpid():
            self._start()
        assert self._calls is not None
        work = _Work(function, items)
        self._calls.put(work)
        while not work.wait(until=work.started + self.seconds):
            if time.monotonic() >= work.started + self.seconds:  # it is still with the same item
                self._calls = None  # the thread is stuck: the next call gets a new one
                message = f"expected an answer within {self.seconds:g} s, got none"
                raise Stalled(message, len(work.results))
        if work.error is not None:
            raise work.error
        return work.results

    def _start(self) -> None:
        self._pid, self._calls = os.getpid(), queue.SimpleQueue()
        threading.Thread(target=_serve, args=(self._calls,), daemon=True, name="reader").start()

    def __del__(self) -> None:
        if self._calls is not None and self._pid == os.getpid():
            self._calls.put(None)

    def __getstate__(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "_pid": 0, "_calls": None}


class _Work:
    """Items to do, and how far it has got."""

    def __init__(self, function: Callable[[Any], Any], items: Sequence) -> None:
        self.function, self.items = function, items
        self.results: list = []
        self.error: Exception | None = None
        self.started = time.monotonic()  # when the present item was begun
        self._is_done = threading.Event()

    def do(self) -> None:
        try:
            for item in self.items:
                self.started = time.monotonic()
                self.results.append(self.function(item))
        except Exception as error:  # raised again where the call was made
            self.error = error
        self._is_done.set()

    def wait(self, until: float) -> bool:
        return self._is_done.wait(max(0.0, until - time.monotonic()))


def _serve(calls: queue.SimpleQueue) -> None:
    while (work := calls.get()) is not None:
        work.do()
