"""Writing pickles of plain data whose bytes do not depend on the NumPy that wrote them.

NumPy 2 pickles its arrays under `numpy._core`, a name NumPy 1.24 cannot import; what is written
here says `numpy.core`, which every NumPy reads. Names of classes may be written without having
them, which is how a PyTorch file is made without PyTorch.
"""

from __future__ import annotations

import pickle
import struct
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np


class Name(NamedTuple):
    """A global name, written as such."""

    module: str
    name: str


class Call(NamedTuple):
    """`function(*args)` at load time."""

    function: Name
    args: tuple


class Persistent(NamedTuple):
    """A reference to data the pickle does not hold."""

    key: Any


def little_endian(array: np.ndarray) -> np.ndarray:
    """The same values, C-contiguous and little-endian; no copy if they are so already."""
    array = np.asarray(array)
    contiguous = array if array.flags.c_contiguous else np.ascontiguousarray(array)
    return contiguous.astype(contiguous.dtype.newbyteorder("<"), copy=False)


def raw_bytes(array: np.ndarray) -> memoryview | bytes:
    """The memory of a contiguous array."""
    return memoryview(array).cast("B") if array.size and array.ndim else array.tobytes()


class PickleWriter:
    """Writes one pickle to `file`. Shared objects are written twice, so cycles never end."""

    def __init__(self, file: BinaryIO, protocol: int = 4) -> None:
        if protocol not in (2, 4):
            raise ValueError(f"protocol: expected 2 or 4, got {protocol}")
        self.write = file.write
        self.protocol = protocol

    def dump(self, value: Any) -> None:
        self.write(pickle.PROTO + bytes([self.protocol]))
        self._save(value)
        self.write(pickle.STOP)

    def _save(self, value: Any) -> None:
        # Exact types: True is no int here, and a Call is no tuple.
        kind = type(value)
        if value is None or kind is bool:
            names = {None: pickle.NONE, True: pickle.NEWTRUE, False: pickle.NEWFALSE}
            self.write(names[value])
        elif kind is int:
            self._save_int(value)
        elif kind is float:
            self.write(pickle.BINFLOAT + struct.pack(">d", value))
        elif kind is str:
            raw = value.encode("utf-8", "surrogatepass")
            self.write(pickle.BINUNICODE + struct.pack("<I", len(raw)) + raw)
        elif kind in (list, tuple):
            self._save_sequence(value)
        elif isinstance(value, Mapping):
            self._save_dict(value)
        elif kind is Name:
            self.write(pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode())
        elif kind is Call:
            self._save(value.function)
            self._save(value.args)
            self.write(pickle.REDUCE)
        elif kind is Persistent:
            self._save(value.key)
            self.write(pickle.BINPERSID)
        elif isinstance(value, (np.ndarray, np.generic)) and self.protocol == 4:
            self._save_array(np.asarray(value))
        else:
            raise TypeError(f"expected plain data, got {kind.__name__}")

    def _save_int(self, value: int) -> None:
        if -(1 << 31) <= value < 1 << 31:
            self.write(pickle.BININT + struct.pack("<i", value))
        else:
            raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            self.write(pickle.LONG1 + bytes([len(raw)]) + raw)

    def _save_sequence(self, value: list | tuple) -> None:
        is_list = type(value) is list
        self.write(pickle.EMPTY_LIST + pickle.MARK if is_list else pickle.MARK)
        for item in value:
            self._save(item)
        self.write(pickle.APPENDS if is_list else pickle.TUPLE)

    def _save_dict(self, value: Mapping) -> None:
        """An OrderedDict stays one, any other mapping becomes a dict."""
        if isinstance(value, OrderedDict):
            self._save(Call(Name("collections", "OrderedDict"), ()))
        else:
            self.write(pickle.EMPTY_DICT)
        self.write(pickle.MARK)
        for key, item in value.items():
            self._save(key)
            self._save(item)
        self.write(pickle.SETITEMS)

    def _save_array(self, array: np.ndarray) -> None:
        array = little_endian(array)
        if array.dtype.kind not in "biufc":
            raise TypeError(f"expected an array of numbers, got {array.dtype}")
        order, code = array.dtype.str[0], array.dtype.str[1:]
        self._save(
            Call(
                Name("numpy.core.multiarray", "_reconstruct"),
                (Name("numpy", "ndarray"), (0,), "b"),
            )
        )
        self.write(pickle.MARK)
        self._save(1)
        self._save(array.shape)
        self._save(Call(Name("numpy", "dtype"), (code, False, True)))
        self._save((3, order, None, None, None, -1, -1, 0))
        self.write(pickle.BUILD)
        self._save(False)
        self.write(pickle.BINBYTES8 + struct.pack("<Q", array.nbytes))
        self.write(raw_bytes(array))
        self.write(pickle.TUPLE + pickle.BUILD)
