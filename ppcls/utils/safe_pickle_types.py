"""The names a pickle of plain data may use, and what they do: part of `safe_pickle`.

Every function takes the reader and the arguments a file gives, trusts neither their number nor
their types (a TypeError or ValueError here is reported as a damaged file), and costs no more than
it reports with `reader.spend`.
"""

from __future__ import annotations

import codecs
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ppcls.utils.safe_pickle import PickleReader

MAX_DIMS = 32

Handler = Callable[..., Any]


def shorten(name: object) -> str:
    """Quote a name out of a file for an error message: escaped, on one line, at most 80 long."""
    text = repr(name if isinstance(name, (str, bytes, int)) else type(name).__name__)
    return text if len(text) <= 80 else text[:77] + "..."


class Symbol:
    """What an allowed global name becomes: a word that `REDUCE` may apply to arguments."""

    __slots__ = ("name", "handler")

    def __init__(self, name: str, handler: Handler) -> None:
        self.name = name
        self.handler = handler


class Span:
    """A text or bytes too long to be decoded or copied before an array needs them."""

    __slots__ = ("raw", "encoding")

    def __init__(self, raw: memoryview | bytes, encoding: str | None) -> None:
        self.raw = memoryview(raw)
        self.encoding = encoding  # None: these are bytes

    def as_bytes(self) -> memoryview | bytearray:
        """The bytes, or the text in latin1 (piece by piece; ValueError if it is no such text)."""
        if self.encoding in (None, "latin1"):
            return self.raw
        result, decoder = bytearray(), codecs.getincrementaldecoder(self.encoding)()
        for start in range(0, len(self.raw), 1 << 20):
            result += decoder.decode(self.raw[start : start + (1 << 20)]).encode("latin1")
        decoder.decode(b"", True)
        return result


def _items_of(reader: PickleReader, items: Any) -> list | tuple:
    if type(items) not in (list, tuple):
        raise reader.refuse(f"it makes a container of {shorten(items)}")
    reader.spend(64 * len(items))  # a long list can be named again and again
    return items


def make_dict(reader: PickleReader, pairs: Any = ()) -> OrderedDict:
    result: OrderedDict = OrderedDict()
    pairs = _items_of(reader, pairs)
    if any(type(pair) not in (list, tuple) or len(pair) != 2 for pair in pairs):
        raise reader.refuse("it makes a dict of something that is not pairs")
    reader.set_items(result, [pair[0] for pair in pairs], [pair[1] for pair in pairs])
    return result


def _make_defaultdict(reader: PickleReader, factory: Any = None) -> dict:
    return {}


def _make_counter(reader: PickleReader, counts: Any = None) -> dict:
    if type(counts) not in (dict, type(None)):
        raise reader.refuse("a counter is made of something that is no dict")
    _items_of(reader, list(counts or ()))
    return dict(counts or {})


def _make_set(reader: PickleReader, items: Any = ()) -> set:
    return {reader.key(item) for item in _items_of(reader, items)}


def _make_frozenset(reader: PickleReader, items: Any = ()) -> frozenset:
    return frozenset(_make_set(reader, items))


def make_tuple(reader: PickleReader, items: Any = ()) -> tuple:
    return tuple(_items_of(reader, items))


def _make_list(reader: PickleReader, items: Any = ()) -> list:
    return list(_items_of(reader, items))


def _encode(reader: PickleReader, text: Any, encoding: Any = "latin1") -> bytes | Span:
    """Bytes in protocol 2 are `_codecs.encode(text, "latin1")`."""
    if type(text) is Span and text.encoding and encoding in ("latin1", "latin-1"):
        reader.spend(len(text.raw))
        return Span(text.as_bytes(), None)
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise reader.refuse("it encodes text in an unusual way")
    reader.spend(len(text))
    return text.encode("latin1")


def _make_bytes(reader: PickleReader) -> bytes:
    return b""


def _make_bytearray(reader: PickleReader, raw: Any = b"", encoding: Any = "latin1") -> bytearray:
    is_bytes = type(raw) is bytes or (type(raw) is Span and raw.encoding is None)
    return bytearray(_raw_bytes(reader, raw if is_bytes else _encode(reader, raw)))


def _make_complex(reader: PickleReader, real: Any, imag: Any) -> complex:
    if type(real) is not float or type(imag) is not float:
        raise reader.refuse("a complex number is not made of two numbers")
    return complex(real, imag)


def _raw_bytes(reader: PickleReader, raw: Any) -> bytes | bytearray | memoryview:
    """The bytes of an array, which Python 2 pickles read as latin1 hold as text."""
    if type(raw) is str:
        raw = raw.encode("latin1")
    if type(raw) is Span:
        reader.spend(len(raw.raw))  # before the copy
        return raw.as_bytes()
    if type(raw) not in (bytes, bytearray):
        raise reader.refuse("the data of an array is no bytes (an array of Python objects?)")
    reader.spend(len(raw))
    return raw


def _plain_text(value: Any) -> str:
    return str(value, "ascii") if type(value) is bytes else value


def _make_dtype(reader: PickleReader, code: Any, align: Any = False, copy: Any = True) -> np.dtype:
    """`numpy.dtype("f4", False, True)`: numbers, booleans and fixed-width text only."""
    code = _plain_text(code)
    kind, width = (code[:1], code[1:]) if type(code) is str else ("", "")
    # No width at all would make arrays of any length out of nothing.
    if kind not in tuple("biufcSU") or len(width) > 5 or not width.isdecimal() or not int(width):
        raise reader.refuse(f"an array has the dtype {shorten(code)}, not one of plain numbers")
    dtype = np.dtype(code, copy=True)  # not the shared instance: its state is about to be set
    assert dtype is not np.dtype(code)
    reader.unfinished[id(dtype)] = dtype
    return dtype


def finish_dtype(reader: PickleReader, dtype: np.dtype, state: Any) -> None:
    """State `(3, byteorder, subarray, names, fields, itemsize, alignment, flags)`."""
    if type(state) is not tuple or len(state) != 8:
        raise reader.refuse("an array has a dtype of an unknown form")
    order = _plain_text(state[1])
    if order not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
        raise reader.refuse("an array has a dtype with fields, not one of plain numbers")
    size, alignment = (dtype.itemsize, dtype.alignment) if dtype.kind in "SU" else (-1, -1)
    dtype.__setstate__((3, order, None, None, None, size, alignment, 0))


def _empty_array(reader: PickleReader, kind: Any, shape: Any, code: Any) -> np.ndarray:
    """`numpy.core.multiarray._reconstruct(numpy.ndarray, (0,), b"b")`; the state follows."""
    if not isinstance(kind, Symbol) or kind.name != "numpy.ndarray":
        raise reader.refuse("an array is of a special class")
    array = np.empty(0, np.uint8)
    reader.unfinished[id(array)] = array
    return array


def _check_shape(reader: PickleReader, shape: Any, dtype: Any, raw: Any) -> None:
    if not isinstance(dtype, np.dtype) or id(dtype) in reader.unfinished:
        raise reader.refuse("an array has no complete dtype")
    if type(shape) is not tuple or len(shape) > MAX_DIMS:
        raise reader.refuse("an array has no proper shape")
    if any(type(size) is not int or not 0 <= size < 1 << 48 for size in shape):
        raise reader.refuse("an array has no proper shape")
    if math.prod(max(size, 1) for size in shape) * max(dtype.itemsize, 1) >= 1 << 62:
        raise reader.refuse("an array is impossibly large")
    expected = math.prod(shape) * dtype.itemsize
    if len(raw) != expected:
        raise reader.refuse(
            f"an array of shape {shape} and {dtype} needs {expected} bytes, it has {len(raw)}"
        )


def finish_array(reader: PickleReader, array: np.ndarray, state: Any) -> None:
    """State `(version, shape, dtype, is_fortran, raw bytes)`; older files leave out the version."""
    if type(state) is not tuple or len(state) not in (4, 5):
        raise reader.refuse("an array has a state of an unknown form")
    shape, dtype, is_fortran, raw = state[-4:]
    raw = _raw_bytes(reader, raw)
    _check_shape(reader, shape, dtype, raw)
    if type(is_fortran) not in (bool, int):
        raise reader.refuse("an array has a state of an unknown form")
    array.__setstate__((1, shape, dtype, bool(is_fortran), bytes(raw)))


def _array_from_buffer(
    reader: PickleReader, raw: Any, dtype: Any, shape: Any, order: Any
) -> np.ndarray:
    """`numpy.core.numeric._frombuffer`, which protocol 5 uses."""
    raw = _raw_bytes(reader, raw)
    _check_shape(reader, shape, dtype, raw)
    if order not in ("C", "F"):
        raise reader.refuse("an array has an unknown memory order")
    return np.frombuffer(raw, dtype).reshape(shape, order=order).copy(order)


def _make_scalar(reader: PickleReader, dtype: Any, raw: Any) -> np.generic:
    raw = _raw_bytes(reader, raw)
    _check_shape(reader, (), dtype, raw)
    return np.frombuffer(raw, dtype)[0]


def only_a_name(reader: PickleReader, *args: Any) -> Any:
    raise reader.refuse("it calls a class that is only expected as a name")


PLAIN: dict[str, Handler] = {
    "_codecs.encode": _encode,
    "builtins.bytearray": _make_bytearray,
    "builtins.bytes": _make_bytes,
    "builtins.complex": _make_complex,
    "builtins.dict": make_dict,
    "builtins.frozenset": _make_frozenset,
    "builtins.list": _make_list,
    "builtins.set": _make_set,
    "builtins.tuple": make_tuple,
    "collections.Counter": _make_counter,
    "collections.OrderedDict": make_dict,
    "collections.defaultdict": _make_defaultdict,
    "numpy.core.multiarray._reconstruct": _empty_array,
    "numpy.core.multiarray.scalar": _make_scalar,
    "numpy.core.numeric._frombuffer": _array_from_buffer,
    "numpy.dtype": _make_dtype,
    "numpy.ndarray": only_a_name,
}
