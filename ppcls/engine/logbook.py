"""What a run writes down: PaddleClas-shaped log lines, `metrics.jsonl`, VisualDL scalars."""

from __future__ import annotations

import contextlib
import datetime
import errno
import importlib.util
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import paddle

from ppcls.utils import distributed
from ppcls.utils.errors import JobError, UserError
from ppcls.utils.fileio import to_json
from ppcls.utils.runtime import peak_bytes, peak_tensor_bytes

logger = logging.getLogger("ppcls")


def format_values(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name}: {value:.5f}" for name, value in values.items())


def peak_memory() -> str:
    """Say how much memory this process has needed at most so far, on the host and on its GPU."""
    parts = []
    host = peak_bytes()
    if host is not None:
        tensors = peak_tensor_bytes()
        held = "" if tensors is None else f" ({tensors / 2**20:.0f} in tensors)"
        parts.append(f"{host / 2**20:.0f} MiB of the host{held}")
    if paddle.get_device().startswith("gpu"):
        device = paddle.device.cuda.max_memory_allocated()
        parts.append(f"{device / 2**20:.0f} MiB of {paddle.get_device()}")
    return f"peak memory: {', '.join(parts) or 'unknown'}"


class Logbook:
    """The records of one run in `folder`; ranks above 0 keep none.

    A new run replaces an earlier one's `metrics.jsonl`. A run that goes on with an earlier one
    appends to its first `keep_bytes`: what follows them is about steps that are done again.
    """

    def __init__(self, folder: Path, *, keep_bytes: int = 0, use_visualdl: bool = False) -> None:
        self._is_on = distributed.rank() == 0
        self._file = None
        self._visualdl = None
        if not self._is_on:
            return
        self._file = _open_cut(folder / "metrics.jsonl", keep_bytes)
        if use_visualdl:
            self._visualdl = _visualdl_writer(folder / "vdl")

    def record(self, mode: str, values: Mapping[str, Any]) -> None:
        """Append one JSON object; floats in full precision, in both senses of the word."""
        if self._file is None:
            return
        line = (to_json({"mode": mode, **values}) + "\n").encode("utf-8")
        with self._naming():
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self._visualdl is not None:
            for name, value in values.items():
                if isinstance(value, float):
                    self._visualdl.add_scalar(f"{mode}/{name}", value, values["global_step"])

    @contextlib.contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise JobError(f"{self._file.name}: writing failed: {error.strerror}") from error

    def sync(self) -> None:
        """Make sure that the disk has what was recorded; for any thread."""
        if self._file is not None and not self._file.closed:
            with self._naming():
                os.fsync(self._file.fileno())

    def position(self) -> int:
        """Bytes written to `metrics.jsonl` so far."""
        return 0 if self._file is None else self._file.tell()

    def train_line(
        self, position: str, lr_name: str, lr: float, values: Mapping[str, float], eta: float
    ) -> None:
        """Log a line of training. `values` end with batch_cost, reader_cost (s) and ips (1/s)."""
        timing = {name: values[name] for name in ("batch_cost", "reader_cost", "ips")}
        results = {name: value for name, value in values.items() if name not in timing}
        logger.info(
            "[Train]%slr(%s): %.8f, %s, batch_cost: %.5fs, reader_cost: %.5f, "
            "ips: %.5f samples/s, eta: %s",
            position,
            lr_name,
            lr,
            format_values(results),
            timing["batch_cost"],
            timing["reader_cost"],
            timing["ips"],
            datetime.timedelta(seconds=int(eta)),
        )

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._visualdl is not None:
            self._visualdl.close()


def _open_cut(path: Path, keep_bytes: int) -> BinaryIO:
    """Open a file for appending after its first bytes, without a buffer of our own."""
    try:
        file = open(path, "ab", buffering=0)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error
    length = file.seek(0, os.SEEK_END)
    if length < keep_bytes:
        logger.warning("%s: expected %d bytes, found %d", path, keep_bytes, length)
    file.truncate(min(length, keep_bytes))
    file.seek(0, os.SEEK_END)
    return file


def check_visualdl() -> None:
    """Raise UserError when VisualDL is not installed."""
    if importlib.util.find_spec("visualdl") is None:
        raise UserError(
            "Global.use_visualdl: expected the package 'visualdl', found none; "
            "install it with: pip install visualdl"
        )


def _visualdl_writer(folder: Path) -> Any:
    from visualdl import LogWriter  # slow to import, rarely wanted

    return LogWriter(logdir=str(folder))
