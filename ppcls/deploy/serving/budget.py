"""Counting what is held, so that it stays bounded."""

from __future__ import annotations

import threading
from types import TracebackType

from ppcls.deploy.serving.errors import RequestError


class Budget:
    """`limit` units that requests hold for a while; whoever asks for more than is left gets 503.

    Args:
        what: the units in words, for the answer.
    """

    def __init__(self, limit: int, what: str) -> None:
        self.limit = limit
        self.what = what
        self.taken = 0
        self._lock = threading.Lock()

    def hold(self) -> Hold:
        """Return a context: what is taken through it comes back at its end."""
        return Hold(self)

    def _take(self, units: int) -> None:
        with self._lock:
            if self.taken + units > self.limit:
                raise RequestError(
                    503,
                    f"the server is busy: its {self.limit} {self.what} are taken",
                    retry_after=1,
                )
            self.taken += units

    def _give_back(self, units: int) -> None:
        with self._lock:
            self.taken -= units


class Hold:
    """One request's share of a budget."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._units = 0

    def take(self, units: int) -> None:
        """Take more. Raises RequestError (503) when there is not enough left."""
        self._budget._take(units)
        self._units += units

    def __enter__(self) -> Hold:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._budget._give_back(self._units)
        self._units = 0
