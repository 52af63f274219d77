"""Count what a network does, by running it once.

Hooks see its layers; wrappers see products called as functions; and Paddle's own profiler, which
records every kernel, says whether one ran that neither saw.
"""

from __future__ import annotations

import gc
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import paddle
from paddle import nn, profiler
from paddle.base import core

from ppcls.analysis.cost import LayerCost, NetworkCost
from ppcls.analysis.observe import all_layers, all_operators, evaluation, observing
from ppcls.analysis.products import OPERATORS, layer_cost, layer_form, multiplies, operator_cost
from ppcls.utils.errors import UserError

_COUNTED = "ppcls.analysis.counted"
_KERNEL = " dygraph"  # the profiler's events of operators end in this
# What Paddle and the networks raise for a shape they cannot take.
FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    IndexError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


def analyze(model: nn.Layer, input_shape: Sequence[int], name: str | None = None) -> NetworkCost:
    """Run `model` once in evaluation mode on an input of `input_shape`, and count.

    `input_shape` includes the batch, which must be 1: (1, 3, 224, 224). `name` is what the
    result is called, by default the model's class. A layer called twice counts twice. The modes
    of all layers, their buffers and Paddle's random state are afterwards as before. Not for use
    while another thread runs Paddle.

    Raises UserError for another batch, and for a shape the network cannot take.
    """
    shape = _check_shape(input_shape)
    gc.collect()  # else tensors freed meanwhile would hide ours from the peak
    counter = _Counter()
    recorder = profiler.Profiler(
        targets=[profiler.ProfilerTarget.CPU], on_trace_ready=lambda _: None
    )
    x = make_input(model, shape)
    with evaluation(model), observing(all_layers(model), all_operators(), counter):
        recorder.start()
        try:
            run(model, x)
        finally:
            # After a failure a mark may be open still. The profiler must not see it end: the
            # layers around it have ended, and it insists on events that lie in one another.
            recorder.stop()
    return NetworkCost(
        name=name or type(model).__name__,
        input_shape=shape,
        params=sum(math.prod(p.shape) for p in model.parameters() if not p.stop_gradient),
        layers=tuple(counter.rows),
        peak_bytes=counter.peak,
        uncounted=tuple(_uncounted(recorder.profiler_result.get_data())),
    )


def run(model: nn.Layer, x: paddle.Tensor) -> None:
    """Call the model, and turn its refusal of this input into a UserError."""
    try:
        model(x)
    except FAILURES as error:
        raise UserError(
            f"{type(model).__name__}: expected an input it can run on, got {list(x.shape)}: "
            f"{_reason(error)}"
        ) from error


def make_input(model: nn.Layer, shape: Sequence[int]) -> paddle.Tensor:
    """Normal noise of the dtype of the model's parameters, the same at every call."""
    floats = [p.dtype for p in model.parameters() if paddle.is_floating_point(p)]
    noise = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    return paddle.to_tensor(noise).astype(floats[0] if floats else "float32")


def _check_shape(input_shape: Sequence[int]) -> tuple[int, ...]:
    shape = tuple(int(size) for size in input_shape)
    if len(shape) < 2 or shape[0] != 1 or min(shape) < 1:
        raise UserError(f"input_shape: expected a batch of 1, as (1, 3, 224, 224), got {shape}")
    return shape


def _reason(error: BaseException) -> str:
    """The line of an error that says something: Paddle's own are pages long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "Error: " in line and not line.startswith("File ")]
    return (telling or lines or [type(error).__name__])[0]


class _Counter:
    """The observer that makes the rows and follows the memory."""

    def __init__(self) -> None:
        self.rows: list[LayerCost] = []
        self.peak = 0
        self._start = _allocated()
        self._calls: Counter[str] = Counter()
        self._stack: list[str] = []
        self._event: profiler.RecordEvent | None = None  # of the product that runs
        self._owner: nn.Layer | None = None  # the layer that product is, if it is one

    def enter(self, name: str, layer: nn.Layer, inputs: tuple) -> None:
        self._stack.append(name)
        # Called by keyword a layer shows no input here: its operator is counted instead.
        if self._event is None and layer_form(layer) and inputs:
            self._owner = layer
            self._begin()

    def leave(self, name: str, layer: nn.Layer, inputs: tuple, outputs: Any) -> None:
        self._stack.pop()
        self._sample()
        form = layer_form(layer)
        if layer is self._owner and form:
            self._end()
            self.rows.append(layer_cost(name, self._next(name), layer, form, inputs[0], outputs))

    def call(self, operator: str, function: Callable, args: tuple, kwargs: Mapping) -> Any:
        if operator not in OPERATORS or self._event is not None:
            result = function(*args, **kwargs)
            self._sample()
            return result
        self._begin()
        try:
            result = function(*args, **kwargs)
        finally:
            self._end()
        self._sample()
        name = self._stack[-1] if self._stack else ""
        arguments = [*args, *kwargs.values()]
        self.rows.append(operator_cost(name, self._next(name), operator, arguments, result))
        return result

    def _end(self) -> None:
        """End the product that runs, if one does."""
        if self._event is not None:
            self._event.end()
        self._event = self._owner = None

    def _begin(self) -> None:
        self._event = profiler.RecordEvent(_COUNTED)
        self._event.begin()

    def _next(self, name: str) -> int:
        self._calls[name] += 1
        return self._calls[name]

    def _sample(self) -> None:
        self.peak = max(self.peak, _allocated() - self._start)


def _allocated() -> int:
    """Bytes in tensors on the current device."""
    device, _, number = paddle.device.get_device().partition(":")
    if device == "cpu":
        return core.host_memory_stat_current_value("Allocated", 0)
    return core.device_memory_stat_current_value("Allocated", int(number or 0))


def _uncounted(threads: Mapping[int, Any]) -> list[str]:
    """Say which products the profiler saw outside of everything counted."""
    found: Counter[tuple[str, str]] = Counter()
    for root in threads.values():
        pending = [(root, "the network")]
        while pending:
            node, place = pending.pop()
            if node.name == _COUNTED:
                continue
            if node.type == profiler.TracerEventType.Forward:
                place = node.name
            kernel = node.name.removesuffix(_KERNEL)
            if kernel != node.name and multiplies(kernel):
                found[kernel, place] += 1
            else:
                pending += [(child, place) for child in node.children_node]
    return [
        f"{count} call{'s' * (count > 1)} of {kernel} inside {place}: not counted"
        for (kernel, place), count in sorted(found.items())
    ]
