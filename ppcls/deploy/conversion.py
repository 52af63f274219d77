"""Paddle's files to ONNX, and ONNX to OpenVINO, each in a process of its own.

paddle2onnx ends its process when it meets an operation it does not know, and by default runs
Polygraphy, which installs packages; openvino's converter reports its use to its makers. The
processes here do none of that: `python -m ppcls.deploy.conversion {onnx,openvino} IN OUT`.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import ppcls
from ppcls.deploy.openvino_packages import import_openvino
from ppcls.utils.errors import JobError, UserError

OPSET = 17  # of ONNX; read by ONNX Runtime from 1.12 and TensorRT from 8.5
TIMEOUT = 3600.0  # seconds


def check_packages(names: Iterable[str], what: str) -> None:
    """Raise UserError, which tells the extra, when a package is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"{what}: expected the package {name!r}, found none; "
                "install it with: pip install 'hardnet-paddle[deploy]'"
            )


def paddle_to_onnx(model: Path, target: Path) -> None:
    """Write `target` from MODEL.json and MODEL.pdiparams. Raises JobError when it cannot be."""
    _convert("onnx", model, target)


def onnx_to_openvino(model: Path, target: Path) -> None:
    """Write `target`, an .xml, and its .bin from an ONNX file, in float32. Raises JobError."""
    _convert("openvino", model, target)


def _convert(kind: str, source: Path, target: Path) -> None:
    root = str(Path(ppcls.__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", __name__, kind, str(source), str(target)]
    try:
        run = subprocess.run(
            command,
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=TIMEOUT,
        )
    except subprocess.TimeoutExpired as error:
        raise JobError(f"{target.name}: converting took longer than {TIMEOUT:.0f} s") from error
    if run.returncode or not target.is_file():
        lines = [line for line in (run.stdout + run.stderr).splitlines() if line.strip()]
        reason = lines[-1].strip() if lines else f"exit code {run.returncode}"
        raise JobError(f"{target.name}: the network cannot be converted: {reason}")


def _write_onnx(source: Path, target: Path) -> None:
    import paddle2onnx

    text = paddle2onnx.export(
        f"{source}.json",
        f"{source}.pdiparams",
        save_file=None,  # with a name of a file it would run the optimize_tool
        opset_version=OPSET,
        optimize_tool="none",
        enable_onnx_checker=True,
    )
    if not text:
        raise RuntimeError("paddle2onnx gave an empty file")
    target.write_bytes(text)


def _write_openvino(source: Path, target: Path) -> None:
    openvino = import_openvino("openvino")
    model = openvino.convert_model(source)
    openvino.save_model(model, target, compress_to_fp16=False)


if __name__ == "__main__":
    kind, *paths = sys.argv[1:]
    {"onnx": _write_onnx, "openvino": _write_openvino}[kind](*map(Path, paths))
