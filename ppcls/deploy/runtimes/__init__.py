"""What runs an exported network: a module per runtime, loaded when it is asked for."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ppcls.deploy.package import MANIFEST, Manifest, check_files
from ppcls.deploy.runtimes.base import Options, Runtime
from ppcls.utils.errors import UserError, did_you_mean
from ppcls.utils.runtime import wanted_threads

__all__ = ["RUNTIMES", "Options", "Runtime", "choose_form", "is_installed", "open_runtime"]


class _Entry(NamedTuple):
    module: str  # of this package, with a function `load`
    package: str  # what must be installed


RUNTIMES = {
    "openvino": _Entry("openvino", "openvino"),
    "onnx": _Entry("onnxruntime", "onnxruntime"),
    "paddle": _Entry("paddle_inference", "paddle"),
    "openvino-int8": _Entry("openvino", "openvino"),
}
# The fastest first, as measured on CPUs. Forms that are not here compute other numbers than the
# network that was exported, and only run when they are asked for.
PREFERENCE = ("openvino", "onnx", "paddle")


def is_installed(form: str) -> bool:
    """Whether the package that runs `form` is there; it is not loaded."""
    return importlib.util.find_spec(RUNTIMES[form].package) is not None


def choose_form(folder: Path, manifest: Manifest, precision: str = "float32") -> str:
    """Return the fastest form that the folder has and that can run here.

    Raises UserError when there is none.
    """
    there = [form for form in PREFERENCE if form in manifest.forms]
    # ONNX Runtime computes in the type of the file, which is float32.
    fitting = [form for form in there if precision == "float32" or form != "onnx"]
    form = next(filter(is_installed, fitting), None)
    if form is not None:
        return form
    if not fitting:
        wanted = ", ".join(form for form in PREFERENCE if precision == "float32" or form != "onnx")
        raise UserError(
            f"{folder / MANIFEST}: expected one of the forms {wanted} to compute in {precision}, "
            f"found {', '.join(manifest.forms) or 'none'}; runtime= names another"
        )
    raise _not_installed(fitting[0])


def open_runtime(
    folder: Path,
    manifest: Manifest,
    form: str,
    *,
    threads: int | None = None,
    precision: str = "float32",
    hint: str = "latency",
) -> Runtime:
    """Check the files of `form` and load them.

    form: one of `RUNTIMES`. threads: None for PPCLS_NUM_THREADS, or else as many as there are
    cores. precision: float32 or bfloat16. hint: latency or throughput.

    Raises UserError for a form the folder lacks or whose runtime is not installed, for files that
    are missing, altered or refused by the runtime, and for options it does not have.
    """
    threads = wanted_threads() if threads is None else threads
    options = Options(threads=threads, precision=precision, hint=hint)
    if form not in RUNTIMES:
        hint_text = did_you_mean(str(form), RUNTIMES) or ";"
        raise UserError(f"runtime: unknown form {form!r}{hint_text} known: {', '.join(RUNTIMES)}")
    if form in manifest.forms and not is_installed(form):
        raise _not_installed(form)
    check_files(folder, manifest, form)
    return _loader(form)(folder, manifest, form, options)


def _loader(form: str) -> Callable[[Path, Manifest, str, Options], Runtime]:
    entry = RUNTIMES[form]
    try:
        return importlib.import_module(f"ppcls.deploy.runtimes.{entry.module}").load
    except ImportError as error:  # there, but broken: a library is missing, say
        raise UserError(f"the package {entry.package!r} cannot be loaded: {error}") from error


def _not_installed(form: str) -> UserError:
    package = RUNTIMES[form].package
    extra = "cpu" if package == "paddle" else "deploy"
    return UserError(
        f"runtime {form!r}: expected the package {package!r}, found none; "
        f"install it with: pip install 'hardnet-paddle[{extra}]'"
    )
