"""Reading and writing Paddle's `.pdparams`, `.pdopt` and `.pdstates` without Paddle.

`paddle.load` unpickles, which can run code; here files go through `safe_pickle`. What `paddle.save`
of Paddle 2.x and 3.x puts into them:

- a state dict is a dict of arrays plus a table `StructuredToParameterName@@`; protocols 2 and 3
  split arrays above 2**30 bytes, listed under `UnpackBigParamInfor@@`;
- a tensor inside any other structure is `tuple((name, array))`, an old LoDTensor is
  `eval("data", {"data": array})`, of which exactly this form is accepted, without evaluating it;
- bfloat16 tensors are arrays of uint16.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ppcls.utils.errors import UserError
from ppcls.utils.fileio import atomic_write, map_file
from ppcls.utils.pickle_writer import PickleWriter
from ppcls.utils.safe_pickle import MAX_FILE_BYTES, PickleReader, UnsafeFileError
from ppcls.utils.safe_pickle_types import PLAIN, shorten
from ppcls.utils.safetensors_file import (
    is_safetensors,
    load_safetensors,
    save_safetensors,
    widen_bfloat16,
)

__all__ = [
    "load_paddle_file",
    "load_paddle_state_dict",
    "load_safetensors",
    "save_pdparams",
    "save_safetensors",
]

NAME_TABLE = "StructuredToParameterName@@"
BIG_PARAMETERS = "UnpackBigParamInfor@@"
TORCH_MAGIC = 0x1950A86A20F9469CFC6C


def _lod_tensor(reader: PickleReader, source: Any = None, scope: Any = None, *_: Any) -> np.ndarray:
    """`eval("data", {"data": array})` is how Paddle spells an array; any other text is refused."""
    is_plain = source == "data" and type(scope) is dict and list(scope) == ["data"]
    if not is_plain or type(scope["data"]) is not np.ndarray:
        raise reader.refuse("it wants to evaluate a text as a program")
    return scope["data"]


PADDLE = {**PLAIN, "builtins.eval": _lod_tensor}


def load_paddle_file(path: str | Path, *, keep_name_table: bool = False) -> Any:
    """Read what `paddle.save` or `save_pdparams` wrote: nested containers with arrays.

    Tensors become arrays (bfloat16 stays uint16), parts of split arrays are joined, and the name
    table is dropped unless asked for. A `.safetensors` file gives a dict of arrays. Files may come
    from anywhere. Raises UserError (no such file) and UnsafeFileError (damaged, not plain data).
    """
    data = map_file(path, MAX_FILE_BYTES)
    where = str(path)
    if is_safetensors(data):
        return load_safetensors(path)
    if data[:1] != b"\x80":
        found = "a zip archive, as PyTorch writes" if data[:2] == b"PK" else "something else"
        raise UnsafeFileError(f"{where}: expected a file of paddle.save, found {found}")
    content = PickleReader(data, where, allowed=PADDLE).load()
    if type(content) is int and content == TORCH_MAGIC:
        raise UnsafeFileError(f"{where}: expected a file of paddle.save, found one of PyTorch")
    content = _simplify(content)
    if isinstance(content, dict):
        _join_parts(content, where)
        if not keep_name_table:
            content.pop(NAME_TABLE, None)
    return content


def _simplify(node: Any) -> Any:
    """Replace `(name, array)` by the array. The reader has bounded depth, size and sharing."""
    if isinstance(node, dict):
        return {key: _simplify(value) for key, value in node.items()}
    if type(node) is list:
        return [_simplify(item) for item in node]
    if type(node) is tuple:
        if len(node) == 2 and type(node[0]) is str and type(node[1]) is np.ndarray:
            return node[1]
        return tuple(_simplify(item) for item in node)
    return node


def _join_parts(content: dict, where: str) -> None:
    """Join, in place, the arrays Paddle split because protocols 2 and 3 end at 4 GB."""
    table = content.pop(BIG_PARAMETERS, {})
    error = UnsafeFileError(f"{where}: the list of split parameters does not fit the parameters")
    if not isinstance(table, dict):
        raise error
    for name, entry in table.items():
        if not isinstance(entry, dict) or set(entry) != {"OriginShape", "slices"}:
            raise error
        shape, names = entry["OriginShape"], entry["slices"]
        if type(names) is not list or not names or type(shape) not in (tuple, list):
            raise error
        if any(type(part) is not str for part in names):
            raise error
        parts = [content.pop(part, None) for part in names]  # popped, so none is used twice
        if any(type(part) is not np.ndarray or part.dtype != parts[0].dtype for part in parts):
            raise error
        if any(type(size) is not int or size < 0 for size in shape) or name in content:
            raise error
        if sum(part.size for part in parts) != math.prod(shape):
            raise error
        content[name] = np.concatenate([part.ravel() for part in parts]).reshape(shape)


def load_paddle_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """Read a `.pdparams` or `.safetensors` file as names to arrays; bfloat16 becomes float32."""
    content = load_paddle_file(path)
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path}: expected a state dict, found {_describe(content)}")
    state: dict[str, np.ndarray] = {}
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, (np.ndarray, np.generic)):
            raise UserError(
                f"{path}: expected a state dict of arrays, found {_describe(value)} under "
                f"{shorten(name)}{_hint(content)}"
            )
        array = np.asarray(value)
        state[name] = widen_bfloat16(array) if array.dtype == np.uint16 else array
    return state


def _describe(value: Any) -> str:
    if isinstance(value, (dict, list, tuple)) and not value:
        return f"an empty {type(value).__name__}"
    return f"a value of type {type(value).__name__}"


def _hint(content: dict) -> str:
    if {"LR_Scheduler", "master_weights"} & set(content):
        return " (an optimizer's file?)"
    return ""


def save_pdparams(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write a dict of arrays, atomically, as a pickle that `paddle.load` reads.

    The values may be nested plain containers, numbers and texts too. Every NumPy from 1.24 on reads
    the file, whichever wrote it. Raises TypeError for anything but plain data.
    """
    atomic_write(path, lambda file: PickleWriter(file).dump(state))


def to_bytes(state: Any) -> bytes:
    """The pickle `save_pdparams` writes, in memory."""
    buffer = io.BytesIO()
    PickleWriter(buffer).dump(state)
    return buffer.getvalue()
