"""Whether the files of an export compute what the network computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ppcls.deploy.compiled import CompiledModel
from ppcls.deploy.openvino_packages import openvino_core
from ppcls.deploy.package import FORMS
from ppcls.deploy.telemetry import import_quietly
from ppcls.utils.errors import JobError

Arrays = list[np.ndarray]


class Check(NamedTuple):
    """Inputs of an exported network, in order, and what the network in dygraph gives for them."""

    inputs: Arrays
    expected: Arrays


class Difference(NamedTuple):
    """The largest absolute difference of an output, and what it is to be compared with."""

    absolute: float
    scale: float

    @property
    def relative(self) -> float:
        return self.absolute / self.scale


Compare = Callable[[Arrays, Arrays], Difference]


def compare_outputs(expected: Arrays, found: Arrays) -> Difference:
    """Compare outputs one by one; the scale is the largest magnitude expected, at least 1.

    Outputs that are not finite or of other shapes differ infinitely.
    """
    worst = Difference(0.0, 1.0)
    if [array.shape for array in expected] != [array.shape for array in found]:
        return Difference(float("inf"), 1.0)
    for wanted, got in zip(expected, found, strict=True):
        scale = max(1.0, float(np.abs(wanted).max(initial=0)))
        gap = np.abs(wanted.astype(np.float64) - got).max(initial=0)
        difference = Difference(float(gap) if np.isfinite(gap) else float("inf"), scale)
        worst = max(worst, difference, key=lambda entry: entry.relative)
    return worst


def worst_difference(
    folder: Path, form: str, checks: Sequence[Check], compare: Compare
) -> Difference:
    """Run every program of `form` in `folder` on all checks.

    Raises JobError when one does not load or does not run.
    """
    differences = []
    try:
        for run in programs(folder, form):
            for check in checks:
                differences.append(compare(check.expected, run(check.inputs)))
    except (RuntimeError, ValueError, OSError, NotImplementedError) as error:
        reason = " ".join(str(error).split())
        raise JobError(f"{form}: the files do not run: {reason[:300]}") from error
    return max(differences, key=lambda entry: entry.relative)


def programs(folder: Path, form: str) -> Iterator[Callable[[Arrays], Arrays]]:
    """Load each program of a form in turn: Paddle's has one or two, the others one."""
    for name in FORMS[form]:
        path = folder / name
        if path.suffix in (".json", ".pdmodel") and path.is_file():
            yield _load_paddle(path)
        elif path.suffix == ".onnx":
            yield _load_onnx(path)
        elif path.suffix == ".xml":
            yield _load_openvino(path)


def _load_paddle(path: Path) -> Callable[[Arrays], Arrays]:
    from paddle import inference

    config = inference.Config(str(path), str(path.with_suffix(".pdiparams")))
    config.disable_glog_info()
    config.disable_gpu()
    predictor = inference.create_predictor(config)

    def run(inputs: Arrays) -> Arrays:
        for name, array in zip(predictor.get_input_names(), inputs, strict=True):
            predictor.get_input_handle(name).copy_from_cpu(array)
        predictor.run()
        handles = map(predictor.get_output_handle, predictor.get_output_names())
        return [handle.copy_to_cpu() for handle in handles]

    return run


def _load_onnx(path: Path) -> Callable[[Arrays], Arrays]:
    onnxruntime = import_quietly("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    return lambda inputs: session.run(None, dict(zip(names, inputs, strict=True)))


def _load_openvino(path: Path) -> Callable[[Arrays], Arrays]:
    return CompiledModel(openvino_core().read_model(path)).infer
