"""OpenVINO, for the forms "openvino" and "openvino-int8"."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ppcls.deploy.openvino_packages import import_openvino, openvino_core
from ppcls.deploy.package import FORMS, Manifest
from ppcls.deploy.runtimes.base import Options, check_names, input_names, refused
from ppcls.utils.errors import UserError

openvino = import_openvino("runtime 'openvino'")

DEVICE = "CPU"
_PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


class _Compiled:
    """A compiled model, and the inference requests nobody uses at the moment."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._idle: list[Any] = []  # append and pop are atomic

    def __call__(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        try:
            request = self._idle.pop()
        except IndexError:
            request = self.model.create_infer_request()
        # Only inputs are shared: the outputs' memory is the request's, and the next call's.
        outputs = request.infer(inputs, share_inputs=True, share_outputs=False)
        self._idle.append(request)
        return [outputs[index] for index in range(len(self.model.outputs))]


class OpenVINORuntime:
    """A compiled model; every concurrent call of `run` has an inference request of its own.

    single: compiled for one image, which is a little faster than for any number. None: not wanted.
    compile_any: compiles for any number of images; called when there is need of it.
    """

    def __init__(
        self, form: str, names: list[str], single: Any | None, compile_any: Callable[[], Any]
    ) -> None:
        self._names = names
        self._compile_any = compile_any
        self._single = None if single is None else _Compiled(single)
        self._any: _Compiled | None = None
        self._lock = threading.Lock()
        self.name = form
        self.threads = int(self.model.get_property("INFERENCE_NUM_THREADS"))
        self.streams = int(self.model.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self.versions = {"openvino": _version()}

    @property
    def model(self) -> Any:
        """What computes one image: an `openvino.CompiledModel`."""
        return self._compiled(1).model

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        compiled = self._compiled(len(inputs[0]))
        return compiled(dict(zip(self._names, inputs, strict=True)))

    def _compiled(self, batch: int) -> _Compiled:
        if batch == 1 and self._single is not None:
            return self._single
        with self._lock:
            if self._any is None:
                self._any = _Compiled(self._compile_any())
            return self._any


def load(folder: Path, manifest: Manifest, form: str, options: Options) -> OpenVINORuntime:
    """Compile a form's model. Raises UserError for a file or a precision that cannot be used."""
    path, names = folder / FORMS[form][0], input_names(manifest)
    core = openvino_core()
    if options.precision == "bfloat16":
        _require_bfloat16(core)
    try:
        model = core.read_model(path)
        check_names(path, [_name(port, names) for port in model.inputs], manifest)
        compiled = functools.partial(core.compile_model, model, DEVICE, _settings(options))
        single = None
        if options.hint == "latency" and _takes_any_number(model):
            single = core.compile_model(_of_one_image(model), DEVICE, _settings(options))
        return OpenVINORuntime(form, names, single, compiled)
    except RuntimeError as error:
        raise refused(path, "openvino", _version(), error) from error


def _takes_any_number(model: Any) -> bool:
    """Whether the number of images is all that is open in a model's inputs."""
    shapes = [port.get_partial_shape() for port in model.inputs]
    return all(
        shape[0].is_dynamic and all(n.is_static for n in list(shape)[1:]) for shape in shapes
    )


def _of_one_image(model: Any) -> Any:
    """Return the model for one image; the weights are shared."""
    shapes = {port: [1, *list(port.get_partial_shape())[1:]] for port in model.inputs}
    single = model.clone()
    single.reshape({single.input(port.get_any_name()): shape for port, shape in shapes.items()})
    return single


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
