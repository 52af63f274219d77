"""Ending a run early so that it can go on: SIGTERM and SIGINT, heard by all ranks together."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

import paddle
import paddle.distributed as dist

from ppcls.utils import distributed

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Whether somebody asked this job to stop.

    A signal may reach one rank only, or each in another step, while a checkpoint takes all of them
    at the same step. So every step all ranks vote, and the vote is read one step later, when the
    device has the answer and nobody waits.
    """

    def __init__(self) -> None:
        self._name = ""  # of the signal this rank got
        self._vote: paddle.Tensor | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals for requests inside the block; a second one ends the process.

        Not under Paddle's launcher: it sends SIGTERM six times, the last ones after seconds. Only
        the main thread of a program can listen.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._hear) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                if not (self.is_heard and distributed.is_launched()):
                    signal.signal(number, handler)

    def _hear(self, number: int, frame: object) -> None:
        if self.is_heard and not distributed.is_launched():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGTERM)
        self._name = self._name or signal.Signals(number).name

    @property
    def is_heard(self) -> bool:
        """Whether this rank got a signal."""
        return bool(self._name)

    def agreed(self, *, wait: bool = False) -> bool:
        """Whether all ranks stop after this step; to be asked once per step by every rank.

        wait: count the votes of this moment too, though it takes the ranks to meet.
        """
        if distributed.world_size() == 1:
            return self.is_heard
        previous, self._vote = self._vote, paddle.to_tensor([float(self.is_heard)])
        dist.all_reduce(self._vote, op=dist.ReduceOp.MAX)
        read = self._vote if wait else previous
        return read is not None and bool(read.item() > 0)

    @property
    def reason(self) -> str:
        return self._name or "a signal to another rank"
