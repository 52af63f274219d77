"""Importing openvino and nncf without the reports they send to their makers."""

from __future__ import annotations

import functools
import importlib.util
import logging
import sys
from types import ModuleType
from typing import Any

from ppcls.deploy.telemetry import import_quietly
from ppcls.utils.errors import UserError


def import_openvino(needed_by: str) -> ModuleType:
    """Return the package `openvino`. Raises UserError, which names the extra, when it is missing.

    needed_by: what the user asked for, to begin the error with.
    """
    return _import("openvino", needed_by)


def openvino_core(needed_by: str = "openvino") -> Any:
    """Return the process's one `openvino.Core`, which is never destroyed; see `import_openvino`.

    The first model compiled through a core gives the calling thread a signal stack that belongs to
    the core. When the last reference to it goes in another thread, that stack is unmapped and stays
    in use: the next signal with a handler ends the process (seen in OpenVINO 2026.4).
    """
    return _core(import_openvino(needed_by))


@functools.cache
def _core(openvino: ModuleType) -> Any:
    return openvino.Core()


def import_nncf(needed_by: str) -> ModuleType:
    """Return the package `nncf`, silenced below warnings. Raises UserError when it is missing."""
    nncf = _import("nncf", needed_by)
    logging.getLogger("nncf").setLevel(logging.WARNING)  # its own way changes handlers too
    return nncf


def _import(name: str, needed_by: str) -> ModuleType:
    if name not in sys.modules and importlib.util.find_spec(name) is None:
        raise UserError(
            f"{needed_by}: expected the package {name!r}, found none; "
            "install it with: pip install 'hardnet-paddle[deploy]'"
        )
    return import_quietly(name)
