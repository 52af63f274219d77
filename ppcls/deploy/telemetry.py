"""Packages that report their use to their makers unless somebody prevents it."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from types import ModuleType


def disable_telemetry() -> None:
    """Let openvino, nncf and onnxruntime report nothing. To be called before the first import.

    Unless a user opted out, `import openvino` alone sends an event, and so does `import
    onnxruntime` (1.32); both write an identifier to the home folder. openvino and nncf report
    nothing without `openvino_telemetry`; what ORT_DISABLE_TELEMETRY says already is left as it is.
    """
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def import_quietly(name: str) -> ModuleType:
    """Import one of these packages, without its reports and warnings."""
    disable_telemetry()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of versions of torch and others that are not used here
        return importlib.import_module(name)
