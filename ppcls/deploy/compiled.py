"""An OpenVINO model in memory, compiled, alone and as a function of arrays."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from ppcls.deploy.openvino_packages import openvino_core

INPUTS = ("image", "image_sizes")  # see `ppcls.deploy.package.Manifest`


class Compiled:
    """A model compiled for the CPU: for one image, and for any number, each when there is need.

    One image has a compiled model of its own where the number of images is all that is open. That
    is a little faster, and in int8 right: with an open number, OpenVINO 2026.4 computes a depthwise
    convolution of a single 1x1 map wrongly.

    model: an `openvino.Model`; it stays as it is. settings: properties for `compile_model`.
    """

    def __init__(self, model: Any, settings: dict[str, Any]) -> None:
        self._model = model
        self._settings = settings
        self._has_single = _takes_any_number(model)
        self._made: dict[bool, Any] = {}
        self._lock = threading.Lock()

    def for_batch(self, count: int) -> Any:
        """Return the `openvino.CompiledModel` for `count` images. May be called from threads."""
        is_single = self._has_single and count == 1
        with self._lock:
            if is_single not in self._made:
                model = _of_one_image(self._model) if is_single else self._model
                self._made[is_single] = openvino_core().compile_model(model, "CPU", self._settings)
            return self._made[is_single]


def _takes_any_number(model: Any) -> bool:
    """Whether the number of images is all that is open in a model's inputs."""
    counts = [port.get_partial_shape()[0] for port in model.inputs]
    return all(count.is_dynamic for count in counts) and has_fixed_sizes(model)


def _of_one_image(model: Any) -> Any:
    """Return the model for one image; the weights are shared."""
    single = model.clone()
    shapes = {port: [1, *list(port.get_partial_shape())[1:]] for port in single.inputs}
    single.reshape(shapes)
    return single


class CompiledModel:
    """Runs a model on the CPU, its float parts in float32.

    model: an `openvino.Model` whose inputs are `image`, and for a detector `image_sizes`.
    """

    def __init__(self, model: Any) -> None:
        settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        self._compiled = Compiled(model, settings)
        self._batch = fixed_batch(model)

    def __call__(self, *inputs: np.ndarray) -> list[np.ndarray]:
        """Return the outputs for any number of images, also when the model takes a fixed one.

        inputs: `image`, and for a detector `image_sizes`, the images along the first axis.
        """
        total = len(inputs[0])
        step = self._batch or total
        starts = range(0, total, step)
        parts = [self._run([array[i : i + step] for array in inputs], step) for i in starts]
        return [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]

    def infer(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the outputs for exactly the images the model takes at once."""
        compiled = self._compiled.for_batch(len(inputs[0]))
        found = compiled(name_inputs(inputs))
        return [found[index].copy() for index in range(len(compiled.outputs))]

    def _run(self, inputs: Sequence[np.ndarray], batch: int) -> list[np.ndarray]:
        count = len(inputs[0])
        outputs = self.infer([filled_up(array, batch) for array in inputs])
        if len(inputs) == 1:
            return [array[:count] for array in outputs]
        rows, counts = outputs
        return [rows[: counts[:count].sum()], counts[:count]]


def has_fixed_sizes(model: Any) -> bool:
    """Whether nothing but the number of images may be open in a model's inputs."""
    shapes = [list(port.get_partial_shape()) for port in model.inputs]
    return all(size.is_static for _, *sizes in shapes for size in sizes)


def fixed_batch(model: Any) -> int | None:
    """Return how many images a model takes at once, or None for any number."""
    size = model.input(0).get_partial_shape()[0]
    return size.get_length() if size.is_static else None


def filled_up(array: np.ndarray, batch: int) -> np.ndarray:
    """Repeat the last image until there are `batch`."""
    missing = batch - len(array)
    return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) if missing else array


def name_inputs(arrays: Sequence[np.ndarray]) -> Any:
    """Return inputs as OpenVINO takes them. The one input of a classifier may have any name."""
    return arrays[0] if len(arrays) == 1 else dict(zip(INPUTS, arrays, strict=True))
