"""ONNX Runtime, for the form "onnx", on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ppcls.deploy.package import FORMS, Manifest
from ppcls.deploy.runtimes.base import Options, check_names, input_names, refused
from ppcls.deploy.telemetry import import_quietly
from ppcls.utils.errors import UserError
from ppcls.utils.runtime import usable_cores

onnxruntime = import_quietly("onnxruntime")


class ONNXRuntime:
    """A session, whose `run` takes several calls at a time.

    For throughput a call computes on one thread, and `threads` calls at a time fill the machine.
    """

    def __init__(
        self,
        form: str,
        session: onnxruntime.InferenceSession,
        names: list[str],
        threads: int,
        streams: int,
    ) -> None:
        self.name = form
        self.threads, self.streams = threads, streams
        self.versions = {"onnxruntime": onnxruntime.__version__}
        self.session = session
        self._names = names

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        return self.session.run(None, dict(zip(self._names, inputs, strict=True)))


def load(folder: Path, manifest: Manifest, form: str, options: Options) -> ONNXRuntime:
    """Open a form's file. Raises UserError for a file or a precision that cannot be used."""
    if options.precision != "float32":
        raise UserError(
            f"precision: expected float32 for the form {form!r}, got {options.precision!r}"
        )
    path = folder / FORMS[form][0]
    # By itself it starts a thread per physical core of the machine, also of those it may not use.
    threads = options.threads or usable_cores()
    streams = threads if options.hint == "throughput" else 1
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads // streams
    settings.log_severity_level = 4  # what goes wrong is raised
    try:
        session = onnxruntime.InferenceSession(
            str(path), settings, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # it has a class for every kind of failure, with no common base
        raise refused(path, "onnxruntime", onnxruntime.__version__, error) from error
    check_names(path, [node.name for node in session.get_inputs()], manifest)
    return ONNXRuntime(form, session, input_names(manifest), threads, streams)
