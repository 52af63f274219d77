"""OpenVINO, for the forms "openvino" and "openvino-int8"."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ppcls.deploy.compiled import Compiled
from ppcls.deploy.openvino_packages import import_openvino, openvino_core
from ppcls.deploy.package import FORMS, Manifest
from ppcls.deploy.runtimes.base import Options, check_names, input_names, refused
from ppcls.utils.errors import UserError

openvino = import_openvino("runtime 'openvino'")

DEVICE = "CPU"
_SEVERAL = 2  # images: what is compiled for them takes any number
_PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


class OpenVINORuntime:
    """A compiled model; every concurrent call of `run` has an inference request of its own.

    batch: images of the usual call, for which it is compiled at once.
    """

    def __init__(self, form: str, compiled: Compiled, names: list[str], batch: int) -> None:
        self.model = compiled.for_batch(batch)
        self._compiled = compiled
        self._names = names
        # Requests nobody uses, by their compiled model; append and pop are atomic.
        self._idle: dict[int, list[Any]] = {}
        self.name = form
        self.threads = int(self.model.get_property("INFERENCE_NUM_THREADS"))
        self.streams = int(self.model.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self.versions = {"openvino": _version()}

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        model = self._compiled.for_batch(len(inputs[0]))
        idle = self._idle.setdefault(id(model), [])
        try:
            request = idle.pop()
        except IndexError:
            request = model.create_infer_request()
        named = dict(zip(self._names, inputs, strict=True))
        # Only inputs are shared: the outputs' memory is the request's, and the next call's.
        outputs = request.infer(named, share_inputs=True, share_outputs=False)
        idle.append(request)
        return [outputs[index] for index in range(len(model.outputs))]


def load(folder: Path, manifest: Manifest, form: str, options: Options) -> OpenVINORuntime:
    """Compile a form's model. Raises UserError for a file or a precision that cannot be used."""
    path, names = folder / FORMS[form][0], input_names(manifest)
    core = openvino_core()
    if options.precision == "bfloat16":
        _require_bfloat16(core)
    try:
        model = core.read_model(path)
        check_names(path, [_name(port, names) for port in model.inputs], manifest)
        batch = 1 if options.hint == "latency" else _SEVERAL
        return OpenVINORuntime(form, Compiled(model, _settings(options)), names, batch)
    except RuntimeError as error:
        raise refused(path, "openvino", _version(), error) from error


def _name(port: Any, known: list[str]) -> str:
    """Return an input's name: of several, the one the manifest knows."""
    return next((name for name in known if name in port.names), port.get_any_name())


def _settings(options: Options) -> dict[str, Any]:
    settings = {
        "PERFORMANCE_HINT": options.hint.upper(),
        # Always said: by itself OpenVINO computes in bfloat16 where the processor can.
        "INFERENCE_PRECISION_HINT": _PRECISIONS[options.precision],
    }
    if options.threads is not None:
        settings["INFERENCE_NUM_THREADS"] = options.threads
    return settings


def _require_bfloat16(core: Any) -> None:
    """Asked for bfloat16 on another processor, OpenVINO computes in float32 and does not say so."""
    if "BF16" not in core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES"):
        raise UserError(
            "precision: expected a processor that has bfloat16, but OpenVINO finds none; "
            "use float32"
        )


def _version() -> str:
    return openvino.__version__.partition("-")[0]
