"""Work done beside the training loop, whose errors the loop hears of."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class BackgroundWriter:
    """Runs jobs one after the other in one thread.

    An error in a job is raised by the next call of any method, and no job after it is run: what
    was to be written after a failed write would hide it.
    """

    def __init__(self, most_waiting: int = 1) -> None:
        self._most_waiting = most_waiting  # each holds a copy of the whole state
        self._executor: ThreadPoolExecutor | None = None
        self._jobs: deque[Future] = deque()
        self._has_failed = False

    def submit(self, job: Callable[[], object]) -> None:
        """Run `job` soon. Waits while there are more than `most_waiting` before it."""
        self.check()
        while len(self._jobs) > self._most_waiting:
            self._take_first()
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._jobs.append(self._executor.submit(self._run, job))

    def _run(self, job: Callable[[], object]) -> None:
        if self._has_failed:
            return
        try:
            job()
        except BaseException:
            self._has_failed = True
            raise

    def check(self) -> None:
        """Raise the error of a job that has failed. Never waits."""
        while self._jobs and self._jobs[0].done():
            self._take_first()

    def wait(self) -> None:
        """Return when every job is done."""
        while self._jobs:
            self._take_first()

    def _take_first(self) -> None:
        self._jobs.popleft().result()

    def close(self) -> None:
        """Finish the jobs; a later `submit` starts anew."""
        try:
            self.wait()
        finally:
            if self._executor is not None:
                self._executor.shutdown()
                self._executor, self._has_failed = None, False
