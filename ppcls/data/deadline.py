"""Work that may stall, such as reading from a server that does not answer, with a limit in time."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from typing import Any


class Stalled(Exception):
    """The work was not done in time. It may still go on, in a thread nobody waits for."""


class Deadline:
    """Calls functions in a thread of its own and waits at most `seconds` for each.

    A read from a dead disk or server cannot be interrupted; the caller can only stop waiting. Each
    process that uses a copy has a thread of its own. Costs some 20 us a call.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._pid = 0
        self._calls: queue.SimpleQueue | None = None
        if not seconds > 0:
            raise ValueError(f"seconds: expected a number > 0, got {seconds!r}")

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        """Return or raise what `function` does. Raises Stalled when it is not done in time."""
        if self._calls is None or self._pid != os.getpid():
            self._start()
        assert self._calls is not None
        answer: queue.SimpleQueue = queue.SimpleQueue()
        self._calls.put((function, args, answer))
        try:
            result, error = answer.get(timeout=self.seconds)
        except queue.Empty:
            self._calls = None  # the thread is stuck: the next call gets a new one
            raise Stalled(f"expected an answer within {self.seconds:g} s, got none") from None
        if error is not None:
            raise error
        return result

    def _start(self) -> None:
        self._pid, self._calls = os.getpid(), queue.SimpleQueue()
        threading.Thread(target=_serve, args=(self._calls,), daemon=True, name="reader").start()

    def __del__(self) -> None:
        if self._calls is not None and self._pid == os.getpid():
            self._calls.put(None)

    def __getstate__(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "_pid": 0, "_calls": None}


def _serve(calls: queue.SimpleQueue) -> None:
    while (call := calls.get()) is not None:
        function, args, answer = call
        try:
            answer.put((function(*args), None))
        except Exception as error:  # raised again where the call was made
            answer.put((None, error))
