"""How long each layer takes, by a clock around it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import paddle
from paddle import nn

from ppcls.analysis.cost import NetworkCost
from ppcls.analysis.counting import make_input, run
from ppcls.analysis.machine import Machine
from ppcls.analysis.observe import all_layers, evaluation, observing
from ppcls.analysis.products import OPERATORS, layer_form
from ppcls.utils.errors import JobError


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Medians over passes of Paddle's dygraph at batch 1, in seconds.

    `total` is the whole pass, with what is in no row: batch norm, activations, concatenation.
    """

    layers: tuple[float, ...]  # one for each row of the NetworkCost
    total: float
    repeats: int


def measure_layers(
    model: nn.Layer, cost: NetworkCost, repeats: int = 10, warmup: int = 2
) -> Timing:
    """Time the rows of `cost`, the result of `analyze` for this model.

    Raises JobError when the model does not run the same layers in every pass.
    """
    x = make_input(model, cost.input_shape)
    timed = {name: layer for name, layer in all_layers(model).items() if layer_form(layer)}
    passes, totals = [], []
    with evaluation(model):
        for number in range(warmup + repeats):
            watch = _Stopwatch()
            with observing(timed, OPERATORS, watch):
                start = time.perf_counter()
                run(model, x)
                _synchronize()
                total = time.perf_counter() - start
            if len(watch.seconds) != len(cost.layers):
                raise JobError(
                    f"{cost.name}: expected {len(cost.layers)} products in every pass, "
                    f"found {len(watch.seconds)}"
                )
            if number >= warmup:
                passes.append(watch.seconds)
                totals.append(total)
    return Timing(
        layers=tuple(statistics.median(times) for times in zip(*passes, strict=True)),
        total=statistics.median(totals),
        repeats=repeats,
    )


def too_fast(cost: NetworkCost, timing: Timing, machine: Machine) -> int:
    """How many layers computed faster than the machine is said to: its ceiling is too low then."""
    pairs = zip(cost.layers, timing.layers, strict=True)
    return sum(2 * layer.macs > 1.05 * machine.flops * seconds for layer, seconds in pairs)


class _Stopwatch:
    """The observer that times the products `analyze` counts, in the same order."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._owner: nn.Layer | None = None  # the layer being timed
        self._start = 0.0
        self._is_running = False

    def enter(self, name: str, layer: nn.Layer, inputs: tuple) -> None:
        if not self._is_running and inputs:
            self._owner = layer
            self._begin()

    def leave(self, name: str, layer: nn.Layer, inputs: tuple, outputs: Any) -> None:
        if layer is self._owner:
            self._owner = None
            self._end()

    def call(self, operator: str, function: Callable, args: tuple, kwargs: Mapping) -> Any:
        if self._is_running:
            return function(*args, **kwargs)
        self._begin()
        result = function(*args, **kwargs)
        self._end()
        return result

    def _begin(self) -> None:
        self._is_running = True
        self._start = time.perf_counter()

    def _end(self) -> None:
        _synchronize()
        self.seconds.append(time.perf_counter() - self._start)
        self._is_running = False


def _synchronize() -> None:
    """Wait for a GPU; a CPU has finished when a call returns."""
    if not paddle.device.get_device().startswith("cpu"):
        paddle.device.synchronize()
