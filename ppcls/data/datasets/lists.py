"""List files (`path label` lines) and a compact table of paths."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ppcls.utils.errors import DataError

_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")


def read_list(
    path: str | os.PathLike,
    delimiter: str | None = None,
    class_num: int | None = None,
    *,
    any_label: bool = False,
) -> tuple[list[str], np.ndarray]:
    """Read a list file: paths as written, and labels [n] int64.

    Lines are UTF-8, end in LF or CRLF, and blank ones are skipped. The label is what follows the
    last `delimiter` of a line, or its last run of spaces and tabs when `delimiter` is None, so
    paths may hold spaces. `any_label` leaves out the check that labels are 0..class_num-1.

    Raises:
        DataError: with `file:line`, what was expected, and the text.
    """
    paths: list[str] = []
    labels: list[int] = []
    high = float("inf") if class_num is None else class_num - 1
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        line = line.strip()
        if not line:
            continue
        parts = line.rsplit(delimiter, 1)
        if len(parts) != 2 or not parts[0].strip():
            between = "a space" if delimiter is None else repr(delimiter)
            raise DataError(
                f"{path}:{number}: expected 'path label' with {between} between, got {line!r}"
            )
        text = parts[1].strip()
        if _INTEGER.fullmatch(text) is None:
            raise DataError(
                f"{path}:{number}: expected a whole number as label, got {text!r} in {line!r}"
            )
        label = int(text)
        if not (any_label or 0 <= label <= high):
            wanted = "a label >= 0" if class_num is None else f"a label from 0 to {high}"
            raise DataError(f"{path}:{number}: expected {wanted}, got {label} in {line!r}")
        paths.append(parts[0].rstrip())
        labels.append(label)
    if not paths:
        raise DataError(f"{path}: expected lines 'path label', found none")
    return paths, np.array(labels, dtype=np.int64)


def _read_text(path: str | os.PathLike) -> str:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot read the list file: {error.strerror or error}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: expected UTF-8 text, got byte 0x{data[error.start]:02x}"
        ) from error


class PathTable:
    """A sequence of paths in two buffers.

    A list of a million str would be copied into every worker, page by page, as its reference
    counts are touched; buffers stay shared.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        encoded = [os.fsencode(path) for path in paths]
        self._ends = np.cumsum([len(path) for path in encoded], dtype=np.int64)
        self._text = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        start = int(self._ends[index - 1]) if index else 0
        return os.fsdecode(self._text[start : int(self._ends[index])])
