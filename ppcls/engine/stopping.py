"""Ending a run early so that it can go on: SIGTERM and SIGINT, heard by all ranks together."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator

import paddle
import paddle.distributed as dist

from ppcls.utils import distributed
from ppcls.utils.errors import Stopped

logger = logging.getLogger("ppcls")

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
        """Take the signals for requests inside the block; a second one ends the process as usual.

        Only the main thread of a program can; elsewhere nothing changes.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._hear) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _hear(self, number: int, frame: object) -> None:
        self._name = signal.Signals(number).name
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL if each == signal.SIGTERM else _interrupt)

    @property
    def is_heard(self) -> bool:
        """Whether this rank got a signal."""
        return bool(self._name)

    def agreed(self) -> bool:
        """Whether all ranks stop after this step; to be asked once per step by every rank."""
        if distributed.world_size() == 1:
            return self.is_heard
        previous, self._vote = self._vote, paddle.to_tensor([float(self.is_heard)])
        dist.all_reduce(self._vote, op=dist.ReduceOp.MAX)
        return previous is not None and bool(previous.item() > 0)

    def check(self) -> None:
        """Raise Stopped if this rank got a signal, for work of which nothing needs saving."""
        if self.is_heard:
            raise Stopped(f"stopped by {self.reason}")

    @property
    def reason(self) -> str:
        return self._name or "a signal to another rank"


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
