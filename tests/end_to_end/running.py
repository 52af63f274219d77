"""Running the tools as users do: real processes, their exit codes, their two streams."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

PYTHON = sys.executable
ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "HarDNet"
DIGITS = CONFIGS / "HarDNet39_ds_digits.yaml"
TRAIN, EVAL = ROOT / "tools" / "train.py", ROOT / "tools" / "eval.py"
# For scripts of the tests' own that run a tool.
PYTHONPATH = [str(folder) for folder in (ROOT, ROOT / "tools", Path(__file__).parent)]
TIMEOUT = 240  # seconds, far more than any run takes


@dataclass(frozen=True)
class Finished:
    code: int
    out: str
    err: str

    def __str__(self) -> str:
        return f"exit {self.code}\n--- stdout\n{self.out[-3000:]}\n--- stderr\n{self.err[-3000:]}"


def environment(threads: int = 1) -> dict[str, str]:
    """This process's variables without those of an outer job, one thread per process."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PADDLE_", "OMP_"))}
    return kept | {"PPCLS_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}


def start(
    cwd: Path, *argv: object, variables: Mapping[str, str] = MappingProxyType({})
) -> subprocess.Popen:
    """Start Python with `argv`."""
    return start_shell(cwd, PYTHON, *argv, variables=variables)


def start_shell(
    cwd: Path, *argv: object, variables: Mapping[str, str] = MappingProxyType({})
) -> subprocess.Popen:
    """Start a command, with `variables` added to its environment."""
    return subprocess.Popen(
        [*map(str, argv)],
        cwd=cwd,
        env=environment() | dict(variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> Finished:
    try:
        out, err = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"still running after {TIMEOUT} s:\n{out}\n{err}") from None
    return Finished(process.returncode, out, err)


def tool(cwd: Path, name: str, *argv: object) -> Finished:
    """Run tools/NAME.py in `cwd`."""
    return finish(start(cwd, ROOT / "tools" / f"{name}.py", *argv))


def launcher(*options: object) -> list[object]:
    """The start of a command under `paddle.distributed.launch`."""
    return ["-m", "paddle.distributed.launch", *options]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def succeeded(run: Finished) -> Finished:
    assert run.code == 0, str(run)
    assert "Traceback" not in run.err, str(run)
    return run


def records(folder: Path, mode: str) -> list[dict]:
    """The lines of FOLDER/metrics.jsonl of one mode."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["mode"] == mode]


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in records(folder, "train")]
