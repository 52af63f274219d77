"""The safetensors container: a JSON header, then raw little-endian tensors.

Reading is strict, as the format asks: the tensors fill the data part without gaps or overlaps.
Memory is that of the tensors (bfloat16 is widened to float32, so twice its size) plus the header.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ppcls.utils.fileio import atomic_write, map_file
from ppcls.utils.pickle_writer import little_endian, raw_bytes
from ppcls.utils.safe_pickle import MAX_FILE_BYTES, UnsafeFileError
from ppcls.utils.safe_pickle_types import MAX_DIMS, shorten

MAX_HEADER_BYTES = 16 << 20
DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",  # widened below
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
    "C64": "<c8",
}
_NAMES = {np.dtype(code): name for name, code in DTYPES.items() if name != "BF16"}


def widen_bfloat16(bits: np.ndarray) -> np.ndarray:
    """float32 from the uint16 bits of bfloat16."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def is_safetensors(data: Any) -> bool:
    """Whether `data` starts as a safetensors file does."""
    head = bytes(data[:9])
    return len(head) == 9 and head[8:] == b"{" and head[4:8] == b"\0\0\0\0"


def load_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """Read every tensor, in the order of the header. Raises UserError, UnsafeFileError."""
    data = map_file(path, MAX_FILE_BYTES)
    header, start = _read_header(data, str(path))
    header.pop("__metadata__", None)
    spans = {
        name: _check_entry(name, entry, len(data) - start, str(path))
        for name, entry in header.items()
    }
    end = 0
    for begin, stop in sorted(spans.values()):
        if begin != end:
            raise UnsafeFileError(f"{path}: tensors overlap or leave a gap at byte {begin}")
        end = stop
    if end != len(data) - start:
        raise UnsafeFileError(f"{path}: {len(data) - start - end} bytes belong to no tensor")
    return {
        name: _read_tensor(data, header[name], start + begin) for name, (begin, _) in spans.items()
    }


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key is there twice")
    return result


def _read_header(data: Any, where: str) -> tuple[dict[str, Any], int]:
    size = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else 0
    if not 2 <= size <= min(MAX_HEADER_BYTES, len(data) - 8):
        raise UnsafeFileError(f"{where}: the safetensors header has an impossible size, {size}")
    try:
        header = json.loads(data[8 : 8 + size].decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise UnsafeFileError(f"{where}: the safetensors header is no valid JSON") from error
    if not isinstance(header, dict):
        raise UnsafeFileError(f"{where}: the safetensors header is no JSON object")
    return header, 8 + size


def _is_sizes(value: Any, limit: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= limit
        and all(type(item) is int and 0 <= item < 1 << 48 for item in value)
    )


def _check_entry(name: str, entry: Any, available: int, where: str) -> tuple[int, int]:
    """Return the span of a tensor in the data part, after checking it against its shape."""
    where = f"{where}: tensor {shorten(name)}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise UnsafeFileError(f"{where}: expected dtype, shape and data_offsets")
    dtype, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise UnsafeFileError(f"{where}: unsupported dtype {shorten(dtype)}")
    if not _is_sizes(shape, MAX_DIMS) or not _is_sizes(span, 2) or len(span) != 2:
        raise UnsafeFileError(f"{where}: shape and data_offsets must be lists of sizes")
    needed = math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
    if math.prod(max(size, 1) for size in shape) >= 1 << 56:
        raise UnsafeFileError(f"{where}: an impossible shape")
    if not span[0] <= span[1] <= available or span[1] - span[0] != needed:
        raise UnsafeFileError(f"{where}: expected {needed} bytes, found the span {span}")
    return span[0], span[1]


def _read_tensor(data: Any, entry: dict[str, Any], offset: int) -> np.ndarray:
    count = math.prod(entry["shape"])
    stored = np.dtype(DTYPES[entry["dtype"]])
    # An empty tensor may sit at the very end, where frombuffer accepts no offset.
    flat = np.frombuffer(data, stored, count, offset) if count else np.empty(0, stored)
    values = widen_bfloat16(flat) if entry["dtype"] == "BF16" else flat
    return values.astype(values.dtype.newbyteorder("="), copy=True).reshape(entry["shape"])


def save_safetensors(
    path: str | Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write `tensors` in their order, atomically. `metadata` is text by text."""
    header: dict[str, Any] = {}
    if metadata:
        header["__metadata__"] = {str(key): str(value) for key, value in metadata.items()}
    arrays = {name: little_endian(value) for name, value in tensors.items()}
    end = 0
    for name, array in arrays.items():
        if array.dtype not in _NAMES:
            raise TypeError(f"{name}: safetensors has no dtype {array.dtype}")
        begin, end = end, end + array.nbytes
        header[name] = {
            "dtype": _NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)  # tensors start aligned

    def write(file: BinaryIO) -> None:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in arrays.values():
            file.write(raw_bytes(array))

    atomic_write(path, write)
