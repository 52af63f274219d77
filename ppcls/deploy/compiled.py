"""An OpenVINO model in memory, compiled, as a function of arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ppcls.deploy.openvino_packages import openvino_core

INPUTS = ("image", "image_sizes")  # see `ppcls.deploy.package.Manifest`


class CompiledModel:
    """Runs a model on the CPU, its float parts in float32.

    model: an `openvino.Model` whose inputs are `image`, and for a detector `image_sizes`.
    """

    def __init__(self, model: Any) -> None:
        settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        self._compiled = openvino_core().compile_model(model, "CPU", settings)
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
        found = self._compiled(name_inputs(inputs))
        return [found[index].copy() for index in range(len(self._compiled.outputs))]

    def _run(self, inputs: Sequence[np.ndarray], batch: int) -> list[np.ndarray]:
        count = len(inputs[0])
        outputs = self.infer([filled_up(array, batch) for array in inputs])
        if len(inputs) == 1:
            return [array[:count] for array in outputs]
        rows, counts = outputs
        return [rows[: counts[:count].sum()], counts[:count]]


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
