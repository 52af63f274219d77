"""The curves a learning rate can follow: PaddleClas 2.6's names and parameters.

Curves are pure functions of a position. The dataclasses are what `Optimizer.lr` can say; `curve`
takes the position after the warm-up, in optimizer updates or, with `by_epoch`, in epochs.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ppcls.utils.registry import Registry

SCHEDULES: Registry = Registry("learning-rate schedule")


def linear_warmup(position: float, length: float, start: float, end: float) -> float:
    """Rise from `start` at position 0 to `end` at `length`."""
    return start + (end - start) * position / length


def cosine(position: float, length: float, start: float, end: float) -> float:
    """Fall from `start` to `end` on half a cosine, then stay."""
    return end + (start - end) * (1 + math.cos(math.pi * min(position / length, 1))) / 2


def polynomial(
    position: float, length: float, start: float, end: float, power: float, cycle: bool
) -> float:
    """Fall from `start` to `end` as (1 - position / length) ** power, then stay.

    With `cycle` the length doubles, triples... as the position passes it, instead of staying.
    """
    if cycle:
        length *= max(math.ceil(position / length), 1)
    return end + (start - end) * (1 - min(position / length, 1)) ** power


def piecewise(position: float, boundaries: Sequence[float], values: Sequence[float]) -> float:
    """Return values[i], where i boundaries are at or before the position."""
    return values[bisect.bisect_right(boundaries, position)]


def staircase(position: float, interval: float, start: float, gamma: float) -> float:
    """Multiply `start` by `gamma` once per full interval."""
    return start * gamma ** (position // interval)


def _require(holds: bool, field: str, expected: str, value: Any) -> None:
    if not holds:
        raise ValueError(f"{field}: expected {expected}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class Curve:
    """What all schedules share."""

    warmup_epoch: float = 0.0  # epochs, less than Global.epochs
    warmup_start_lr: float = 0.0  # the rate of the very first update
    by_epoch: bool = False  # hold the rate through an epoch
    last_epoch: int = -1  # PaddleClas's key for a position; here the checkpoint holds it

    label: ClassVar[str]  # as log lines print it

    def __post_init__(self) -> None:
        _require(self.peak > 0, "learning_rate", "a number > 0", self.peak)
        _require(self.warmup_epoch >= 0, "warmup_epoch", "a number >= 0", self.warmup_epoch)
        _require(
            self.warmup_epoch == 0 or 0 <= self.warmup_start_lr < self.peak,
            "warmup_start_lr",
            f"a number in [0, {self.peak}), below the learning rate",
            self.warmup_start_lr,
        )
        _require(self.last_epoch == -1, "last_epoch", "-1 (a checkpoint sets it)", self.last_epoch)

    @property
    def peak(self) -> float:
        """The rate at the end of the warm-up."""
        raise NotImplementedError

    def curve(self, position: float, length: float, epoch: int) -> float:
        """Return the rate at `position` units after the warm-up.

        length: units from the warm-up to the end of the run. epoch: units in one epoch.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class _FromPeak(Curve):
    learning_rate: float

    @property
    def peak(self) -> float:
        return self.learning_rate


@SCHEDULES.register("Constant")
@SCHEDULES.register("ConstLR")
@dataclass(frozen=True, kw_only=True)
class Constant(_FromPeak):
    label = "Constant"

    def curve(self, position: float, length: float, epoch: int) -> float:
        return self.learning_rate


@SCHEDULES.register("Cosine")
@SCHEDULES.register("CosineAnnealing")
@SCHEDULES.register("CosineAnnealingDecay")
@dataclass(frozen=True, kw_only=True)
class Cosine(_FromPeak):
    """The author's recipe is `by_epoch: true`: 0.5 * learning_rate * (1 + cos(pi * e / epochs))."""

    label = "CosineAnnealing"
    eta_min: float = 0.0  # the rate at the end of the run
    end_lr: float | None = None  # another word for eta_min

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.end_lr is None or self.eta_min == 0, "end_lr", "no eta_min too", self.end_lr)
        _require(0 <= self.end <= self.peak, "eta_min", f"a number in [0, {self.peak}]", self.end)

    @property
    def end(self) -> float:
        return self.eta_min if self.end_lr is None else self.end_lr

    def curve(self, position: float, length: float, epoch: int) -> float:
        return cosine(position, length, self.learning_rate, self.end)


@SCHEDULES.register("Linear")
@SCHEDULES.register("Poly")
@SCHEDULES.register("Polynomial")
@dataclass(frozen=True, kw_only=True)
class Linear(_FromPeak):
    label = "Polynomial"
    end_lr: float = 0.0
    power: float = 1.0
    cycle: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            0 <= self.end_lr <= self.peak, "end_lr", f"a number in [0, {self.peak}]", self.end_lr
        )
        _require(self.power > 0, "power", "a number > 0", self.power)

    def curve(self, position: float, length: float, epoch: int) -> float:
        return polynomial(position, length, self.learning_rate, self.end_lr, self.power, self.cycle)


@SCHEDULES.register("Step")
@dataclass(frozen=True, kw_only=True)
class Step(_FromPeak):
    label = "Step"
    step_size: float  # epochs
    gamma: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.step_size > 0, "step_size", "a number of epochs > 0", self.step_size)
        _require(0 < self.gamma <= 1, "gamma", "a number in (0, 1]", self.gamma)

    def curve(self, position: float, length: float, epoch: int) -> float:
        interval = self.step_size if self.by_epoch else max(int(self.step_size * epoch), 1)
        return staircase(position, interval, self.learning_rate, self.gamma)


@SCHEDULES.register("ExponentialWarmup")
@dataclass(frozen=True, kw_only=True)
class ExponentialWarmup(_FromPeak):
    """Release/2.0's staircase: `decay_rate` every `decay_epochs` epochs after the warm-up."""

    label = "Exponential"
    warmup_epoch: float = 5.0
    decay_epochs: float = 2.4
    decay_rate: float = 0.97

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.decay_epochs > 0, "decay_epochs", "a number > 0", self.decay_epochs)
        _require(0 < self.decay_rate <= 1, "decay_rate", "a number in (0, 1]", self.decay_rate)

    def curve(self, position: float, length: float, epoch: int) -> float:
        interval = self.decay_epochs if self.by_epoch else max(int(self.decay_epochs * epoch), 1)
        return staircase(position, interval, self.learning_rate, self.decay_rate)


@SCHEDULES.register("MultiStepDecay")
@dataclass(frozen=True, kw_only=True)
class MultiStepDecay(_FromPeak):
    label = "MultiStep"
    milestones: tuple[float, ...]  # epochs, increasing
    gamma: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_increasing("milestones", self.milestones)
        _require(0 < self.gamma <= 1, "gamma", "a number in (0, 1]", self.gamma)

    def curve(self, position: float, length: float, epoch: int) -> float:
        passed = bisect.bisect_right([mark * epoch for mark in self.milestones], position)
        return self.learning_rate * self.gamma**passed


@SCHEDULES.register("Piecewise")
@dataclass(frozen=True, kw_only=True)
class Piecewise(Curve):
    """Either `values` (2.6), or `learning_rate` times powers of `gamma` (release/2.0).

    PaddleClas's recipes repeat values[0] as learning_rate. A learning_rate that says something
    else is an error, because it could not be followed.
    """

    label = "Piecewise"
    decay_epochs: tuple[float, ...]  # epochs, increasing
    values: tuple[float, ...] | None = None  # one more than decay_epochs
    learning_rate: float | None = None
    gamma: float | None = None  # 0.1 when absent

    def __post_init__(self) -> None:
        _require_increasing("decay_epochs", self.decay_epochs)
        rate, count = self.learning_rate, len(self.decay_epochs) + 1
        if self.values is None:
            _require(rate is not None, "values", f"{count} numbers, or a learning_rate", None)
        else:
            _require(len(self.values) == count, "values", f"{count} numbers", list(self.values))
            _require(min(self.values) >= 0, "values", "numbers >= 0", list(self.values))
            first = self.values[0]
            _require(rate in (None, first), "learning_rate", f"{first}, as values[0]", rate)
            _require(self.gamma is None, "gamma", "either gamma or values", self.gamma)
        super().__post_init__()

    @property
    def peak(self) -> float:
        return self.rates[0]

    @property
    def rates(self) -> tuple[float, ...]:
        """The rate of each piece."""
        if self.values is not None:
            return self.values
        assert self.learning_rate is not None
        gamma = 0.1 if self.gamma is None else self.gamma
        return tuple(self.learning_rate * gamma**i for i in range(len(self.decay_epochs) + 1))

    def curve(self, position: float, length: float, epoch: int) -> float:
        return piecewise(position, [mark * epoch for mark in self.decay_epochs], self.rates)


def _require_increasing(field: str, marks: tuple[float, ...]) -> None:
    rising = all(a < b for a, b in zip(marks, marks[1:], strict=False))
    _require(rising and all(m > 0 for m in marks), field, "increasing epochs > 0", list(marks))
