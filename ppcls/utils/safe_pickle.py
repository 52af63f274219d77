"""Reading pickles of plain data without the `pickle` module, so that nothing in a file can run.

The reader below interprets the pickle instructions itself. It imports nothing and calls nothing a
file names: every allowed name (`collections.OrderedDict`, `numpy.dtype`...) is a key of a table of
our own small functions, which check what they are given; every other name is refused. Containers,
text, numbers and NumPy arrays of numbers or fixed-width text are all that can come out.

Limits, whatever the file says: a million instructions (a second or two), memory of about half a
gigabyte plus five times the file (texts together: no more than the file plus 64 MiB, each at most
16 MiB; what is longer stays a view of the file, which only arrays may use), results at most 100
levels deep that are no larger when written out than `MAX_NODES` values, no cycles. A thousand
tensors take some thirty thousand instructions, the names and labels of CIFAR-100 two hundred
thousand.
"""

from __future__ import annotations

import codecs
import pickle
import struct
import sys
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np

from ppcls.utils.errors import UserError
from ppcls.utils.safe_pickle_types import (
    PLAIN,
    Handler,
    Span,
    Symbol,
    finish_array,
    finish_dtype,
    shorten,
)

MAX_FILE_BYTES = 4 << 30
MAX_STEPS = 1_000_000
MAX_NODES = 2_000_000
MAX_DEPTH = 100
MAX_LINE = 1024
MAX_TEXT = 1 << 24  # bytes of one text; longer ones are never decoded as a whole
SPARE_BYTES = 64 << 20
ENCODINGS = ("ASCII", "latin1", "bytes", "utf-8")

# Modules that were renamed over the years; both spellings mean the same entry of the table.
_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}
_KEY_TYPES = (str, bytes, bool, int, float, type(None))
_LEAF_TYPES = frozenset({*_KEY_TYPES, complex, bytearray, np.ndarray})
_DAMAGE = (
    ArithmeticError,  # OverflowError among them
    AttributeError,
    BufferError,
    LookupError,  # stack or memo has no such entry
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,  # UnicodeDecodeError among them
    struct.error,
)


class UnsafeFileError(UserError):
    """A file that is damaged, or that asks for more than plain data needs."""


class PickleReader:
    """Interprets one pickle that starts at `start` in `data`; afterwards `position` is its end.

    `allowed` maps full names to functions `(reader, *args)`; `persistent` receives persistent ids;
    `leaves` are further result types those two may produce. All errors are UnsafeFileError.
    """

    def __init__(
        self,
        data: Any,
        where: str,
        *,
        encoding: str = "ASCII",
        start: int = 0,
        allowed: Mapping[str, Handler] | None = None,
        persistent: Callable[[Any], Any] | None = None,
        leaves: tuple[type, ...] = (),
        max_steps: int = MAX_STEPS,
    ) -> None:
        if encoding not in ENCODINGS:
            raise ValueError(f"encoding: expected one of {ENCODINGS}, got {encoding!r}")
        self.data = memoryview(data)
        self.where = where
        self.encoding = encoding
        self.position = start
        self.allowed = PLAIN if allowed is None else allowed
        self.persistent = persistent
        self.leaves = leaves
        self.max_steps = max_steps
        self.budget = 4 * len(self.data) + SPARE_BYTES
        self.text_budget = len(self.data) + SPARE_BYTES
        self.stack: list = []
        self.marks: list[list] = []
        self.memo: dict[int, Any] = {}
        # Arrays and dtypes that still wait for their state (pickle creates them empty).
        self.unfinished: dict[int, np.ndarray | np.dtype] = {}

    def load(self) -> Any:
        """Return the object. Raises UnsafeFileError for anything unsafe, damaged or oversized."""
        try:
            result = self._run()
            if self.unfinished:
                raise self.refuse("it holds an array without its data")
            _check_result(result, self)
            return result
        except UnsafeFileError:
            raise
        except _DAMAGE as error:
            raise self.refuse(f"it is damaged near byte {self.position}") from error

    def _run(self) -> Any:
        data, operations = self.data, _OPERATIONS
        for _ in range(self.max_steps):
            code = data[self.position]
            self.position += 1
            if code == _STOP:
                return self.stack.pop()
            operation = operations.get(code)
            if operation is None:
                raise self.refuse(f"{bytes([code])!r} is no instruction of plain pickled data")
            operation(self)
        raise self.refuse(f"it has more than {self.max_steps:,} instructions")

    def refuse(self, reason: str) -> UnsafeFileError:
        return UnsafeFileError(f"{self.where}: cannot be read safely: {reason}")

    def spend(self, nbytes: int) -> None:
        """Account for memory beyond what the instructions themselves are worth."""
        self.budget -= nbytes
        if self.budget < 0:
            raise self.refuse("it asks for far more memory than its size justifies")

    def spend_text(self, text: str | bytes) -> None:
        """Account for a decoded text: short ones are worth their instructions."""
        self.text_budget -= sys.getsizeof(text) if len(text) > 4096 else 0
        if self.text_budget < 0:
            raise self.refuse("its texts need far more memory than its size justifies")

    # Reading the stream -------------------------------------------------------------------------

    def take(self, count: int) -> memoryview:
        end = self.position + count
        if end > len(self.data):
            raise self.refuse(f"it is cut short: {count} bytes announced near {self.position}")
        part = self.data[self.position : end]
        self.position = end
        return part

    def unpack(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def line(self, limit: int = MAX_LINE) -> bytes:
        size = 64
        while True:
            text = bytes(self.data[self.position : self.position + size])
            end = text.find(b"\n")
            if end >= 0:
                self.position += end + 1
                return text[:end]
            if len(text) < size or size >= limit:
                raise self.refuse(f"it has an endless line at byte {self.position}")
            size *= 4

    def text(self, raw: memoryview) -> str | Span:
        if len(raw) > MAX_TEXT:
            return Span(raw, "utf-8")
        text = str(raw, "utf-8", "surrogatepass")
        self.spend_text(text)
        return text

    def python2_string(self, raw: memoryview | bytes) -> str | bytes | Span:
        is_text = self.encoding != "bytes"
        if len(raw) > MAX_TEXT:
            return Span(raw, self.encoding if is_text else None)
        text = str(raw, self.encoding) if is_text else bytes(raw)
        self.spend_text(text)
        return text

    # Building objects ---------------------------------------------------------------------------

    def pop_to_mark(self) -> list:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def find(self, module: str, name: str) -> Symbol:
        module = _MODULES.get(module, module)
        full_name = f"{module}.{name}".replace("numpy._core.", "numpy.core.")
        handler = self.allowed.get(full_name)
        if handler is None:
            raise self.refuse(f"it names {shorten(full_name)}, which weights and data never need")
        return Symbol(full_name, handler)

    def call(self, symbol: Any, args: Any) -> Any:
        if not isinstance(symbol, Symbol) or type(args) is not tuple:
            raise self.refuse(f"it calls {shorten(symbol)}, which is no function")
        return symbol.handler(self, *args)

    def set_items(self, target: Any, keys: list, values: list) -> None:
        if not isinstance(target, dict):
            raise self.refuse(f"it sets items of {shorten(target)}")
        for key, value in zip(keys, values, strict=True):
            target[self.key(key)] = value

    def key(self, key: Any) -> Any:
        """Only plain keys: hashing nested tuples, or chosen huge integers, can take for ever."""
        if type(key) not in _KEY_TYPES or (type(key) is int and key.bit_length() > 64):
            raise self.refuse(f"a key is {shorten(type(key).__name__)}, not text or a number")
        return key

    def build(self, target: Any, state: Any) -> None:
        if isinstance(target, (np.ndarray, np.dtype)):
            if self.unfinished.pop(id(target), None) is None:
                raise self.refuse("it sets the state of an array twice")
            finish = finish_array if isinstance(target, np.ndarray) else finish_dtype
            finish(self, target, state)
        elif not isinstance(target, dict):
            # Attributes of dicts, such as the `_metadata` of state dicts, are dropped.
            raise self.refuse(f"it sets attributes of {shorten(target)}")


# Instructions -----------------------------------------------------------------------------------

_STOP = pickle.STOP[0]
_OPERATIONS: dict[int, Callable[[PickleReader], None]] = {}


def _operation(*codes: bytes) -> Callable:
    def decorate(function: Callable[[PickleReader], None]) -> Callable[[PickleReader], None]:
        for code in codes:
            _OPERATIONS[code[0]] = function
        return function

    return decorate


def _pushes(code: bytes, value: Callable[[PickleReader], Any]) -> None:
    """Declare an instruction that only pushes `value(reader)`."""
    _OPERATIONS[code[0]] = lambda reader: reader.stack.append(value(reader))


def _number(code: bytes, layout: str) -> None:
    _pushes(code, lambda reader: reader.unpack(layout))


def _payload(code: bytes, layout: str, convert: Callable[[PickleReader, memoryview], Any]) -> None:
    _pushes(code, lambda reader: convert(reader, reader.take(reader.unpack(layout))))


_pushes(pickle.NONE, lambda reader: None)
_pushes(pickle.NEWTRUE, lambda reader: True)
_pushes(pickle.NEWFALSE, lambda reader: False)
_pushes(pickle.EMPTY_LIST, lambda reader: [])
_pushes(pickle.EMPTY_DICT, lambda reader: {})
_pushes(pickle.EMPTY_TUPLE, lambda reader: ())
_pushes(pickle.EMPTY_SET, lambda reader: set())
_pushes(pickle.DUP, lambda reader: reader.stack[-1])

_number(pickle.BININT, "<i")
_number(pickle.BININT1, "<B")
_number(pickle.BININT2, "<H")
_number(pickle.BINFLOAT, ">d")

for _code, _layout in ((pickle.SHORT_BINUNICODE, "<B"), (pickle.BINUNICODE, "<I")):
    _payload(_code, _layout, PickleReader.text)
_payload(pickle.BINUNICODE8, "<Q", PickleReader.text)
for _code, _layout in (
    (pickle.SHORT_BINBYTES, "<B"),
    (pickle.BINBYTES, "<I"),
    (pickle.BINBYTES8, "<Q"),
):
    _payload(_code, _layout, lambda reader, raw: _bytes(raw, bytes))
_payload(pickle.BYTEARRAY8, "<Q", lambda reader, raw: _bytes(raw, bytearray))
for _code, _layout in ((pickle.SHORT_BINSTRING, "<B"), (pickle.BINSTRING, "<I")):
    _payload(_code, _layout, PickleReader.python2_string)


def _bytes(raw: memoryview, kind: type) -> bytes | bytearray | Span:
    return Span(raw, None) if len(raw) > MAX_TEXT else kind(raw)


def _long(reader: PickleReader, raw: memoryview) -> int:
    if len(raw) > 255:
        raise reader.refuse("it holds an integer of more than 255 bytes")
    return int.from_bytes(raw, "little", signed=True)


_payload(pickle.LONG1, "<B", _long)
_payload(pickle.LONG4, "<I", _long)

_pushes(pickle.LONG, lambda reader: int(reader.line(700).removesuffix(b"L")))
_pushes(pickle.FLOAT, lambda reader: float(reader.line(64)))


@_operation(pickle.UNICODE)
def _unicode(reader: PickleReader) -> None:
    text = str(reader.line(MAX_TEXT), "raw-unicode-escape")
    reader.spend_text(text)
    reader.stack.append(text)


@_operation(pickle.INT)
def _int(reader: PickleReader) -> None:
    line = reader.line(64)
    reader.stack.append(line == b"01" if line in (b"00", b"01") else int(line))


@_operation(pickle.STRING)
def _string(reader: PickleReader) -> None:
    line = reader.line(MAX_TEXT).strip()
    if len(line) < 2 or line[0] != line[-1] or line[:1] not in (b"'", b'"'):
        raise reader.refuse("a text is not quoted")
    reader.stack.append(reader.python2_string(codecs.escape_decode(line[1:-1])[0]))


@_operation(pickle.PROTO)
def _proto(reader: PickleReader) -> None:
    version = reader.unpack("<B")
    if version > 5:
        raise reader.refuse(f"pickle protocol {version} is unknown")


@_operation(pickle.FRAME)
def _frame(reader: PickleReader) -> None:
    reader.take(8)  # only a hint for readers of a stream


@_operation(pickle.MARK)
def _mark(reader: PickleReader) -> None:
    reader.marks.append(reader.stack)
    reader.stack = []


@_operation(pickle.POP)
def _pop(reader: PickleReader) -> None:
    if reader.stack:
        reader.stack.pop()
    else:
        reader.pop_to_mark()


@_operation(pickle.POP_MARK)
def _pop_mark(reader: PickleReader) -> None:
    reader.pop_to_mark()


@_operation(pickle.TUPLE)
def _tuple(reader: PickleReader) -> None:
    items = reader.pop_to_mark()
    reader.stack.append(tuple(items))


def _short_tuple(code: bytes, length: int) -> None:
    @_operation(code)
    def operation(reader: PickleReader) -> None:
        items = reader.stack[-length:]
        if len(items) != length:
            raise IndexError("stack")
        reader.stack[-length:] = [tuple(items)]


for _length, _code in enumerate((pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3), start=1):
    _short_tuple(_code, _length)


@_operation(pickle.LIST)
def _list(reader: PickleReader) -> None:
    items = reader.pop_to_mark()
    reader.stack.append(items)


@_operation(pickle.DICT)
def _dict(reader: PickleReader) -> None:
    items = reader.pop_to_mark()
    target: dict = {}
    reader.set_items(target, items[::2], items[1::2])
    reader.stack.append(target)


@_operation(pickle.FROZENSET)
def _frozenset(reader: PickleReader) -> None:
    items = reader.pop_to_mark()
    reader.stack.append(frozenset(reader.key(item) for item in items))


def _extend(reader: PickleReader, items: list) -> None:
    if not isinstance(reader.stack[-1], list):
        raise reader.refuse(f"it appends to {shorten(reader.stack[-1])}")
    reader.stack[-1].extend(items)


@_operation(pickle.APPEND)
def _append(reader: PickleReader) -> None:
    item = reader.stack.pop()
    _extend(reader, [item])


@_operation(pickle.APPENDS)
def _appends(reader: PickleReader) -> None:
    items = reader.pop_to_mark()
    _extend(reader, items)


@_operation(pickle.ADDITEMS)
def _additems(reader: PickleReader) -> None:
    items = reader.pop_to_mark()
    if type(reader.stack[-1]) is not set:
        raise reader.refuse(f"it adds to {shorten(reader.stack[-1])}")
    reader.stack[-1].update(reader.key(item) for item in items)


@_operation(pickle.SETITEM)
def _setitem(reader: PickleReader) -> None:
    value, key = reader.stack.pop(), reader.stack.pop()
    reader.set_items(reader.stack[-1], [key], [value])


@_operation(pickle.SETITEMS)
def _setitems(reader: PickleReader) -> None:
    items = reader.pop_to_mark()
    reader.set_items(reader.stack[-1], items[::2], items[1::2])


def _memo(get: bytes, put: bytes, index: Callable[[PickleReader], int]) -> None:
    """Declare the pair of instructions that name an object of the memo in one way."""

    @_operation(put)
    def operation(reader: PickleReader) -> None:
        reader.memo[index(reader)] = reader.stack[-1]

    _pushes(get, lambda reader: reader.memo[index(reader)])


_memo(pickle.GET, pickle.PUT, lambda reader: int(reader.line(64)))
_memo(pickle.BINGET, pickle.BINPUT, lambda reader: reader.unpack("<B"))
_memo(pickle.LONG_BINGET, pickle.LONG_BINPUT, lambda reader: reader.unpack("<I"))


@_operation(pickle.MEMOIZE)
def _memoize(reader: PickleReader) -> None:
    reader.memo[len(reader.memo)] = reader.stack[-1]


@_operation(pickle.GLOBAL)
def _global(reader: PickleReader) -> None:
    module, name = str(reader.line(), "utf-8"), str(reader.line(), "utf-8")
    reader.stack.append(reader.find(module, name))


@_operation(pickle.STACK_GLOBAL)
def _stack_global(reader: PickleReader) -> None:
    name, module = reader.stack.pop(), reader.stack.pop()
    if type(name) is not str or type(module) is not str or len(name) + len(module) > MAX_LINE:
        raise reader.refuse("a global name is no text")
    reader.stack.append(reader.find(module, name))


@_operation(pickle.REDUCE, pickle.NEWOBJ)
def _reduce(reader: PickleReader) -> None:
    args, symbol = reader.stack.pop(), reader.stack.pop()
    reader.stack.append(reader.call(symbol, args))


@_operation(pickle.BUILD)
def _build(reader: PickleReader) -> None:
    state = reader.stack.pop()
    reader.build(reader.stack[-1], state)


@_operation(pickle.BINPERSID)
def _binpersid(reader: PickleReader) -> None:
    if reader.persistent is None:
        raise reader.refuse("it refers to data outside the file")
    reader.stack.append(reader.persistent(reader.stack.pop()))


# The finished object ----------------------------------------------------------------------------


def _children(node: Any) -> Any:
    """The parts of a container, or None for anything else. Keys are plain, so only values count."""
    if isinstance(node, dict):
        return node.values()
    return node if type(node) in (list, tuple) else None


def _leaf_bytes(node: Any, reader: PickleReader) -> int:
    if type(node) is np.ndarray:
        return node.nbytes
    if type(node) in (str, bytes, bytearray):
        return len(node)
    if type(node) in _LEAF_TYPES or isinstance(node, (np.generic, np.dtype, *reader.leaves)):
        return 8
    if type(node) in (set, frozenset):
        return 8 * len(node)
    if type(node) is Span:
        raise reader.refuse(f"a text or bytes of more than {MAX_TEXT:,} bytes belong to no array")
    name = node.name if isinstance(node, Symbol) else type(node).__name__
    raise reader.refuse(f"{shorten(name)} is no plain data")


def _check_result(root: Any, reader: PickleReader) -> None:
    """Refuse what a recursive caller would choke on: cycles, great depth, sharing that explodes.

    Counts every value as often as it is reachable, without visiting shared containers twice.
    """
    byte_limit = 4 * len(reader.data) + SPARE_BYTES
    totals: dict[int, tuple[int, int, int]] = {}  # id -> (values, bytes, depth)
    entered: set[int] = set()
    if _children(root) is None:
        _leaf_bytes(root, reader)
        return
    pending = [root]
    while pending:
        node = pending[-1]
        if id(node) in totals:
            pending.pop()
        elif id(node) in entered:
            totals[id(node)] = _total(node, totals, reader)
            nodes, nbytes, depth = totals[id(node)]
            if nodes > MAX_NODES or nbytes > byte_limit or depth > MAX_DEPTH:
                raise reader.refuse("its containers are nested too deeply or shared too often")
        else:
            entered.add(id(node))
            inner = [child for child in _children(node) if _children(child) is not None]
            if any(id(child) in entered and id(child) not in totals for child in inner):
                raise reader.refuse("a container contains itself")
            pending.extend(inner)


def _total(node: Any, totals: dict, reader: PickleReader) -> tuple[int, int, int]:
    nodes, nbytes, depth = 1, 0, 0
    for child in _children(node):
        if _children(child) is None:
            nodes += 1
            nbytes += _leaf_bytes(child, reader)
        else:
            inner = totals[id(child)]
            nodes, nbytes, depth = nodes + inner[0], nbytes + inner[1], max(depth, inner[2])
    return nodes, nbytes, depth + 1


def restricted_load(
    source: bytes | BinaryIO,
    *,
    where: str,
    encoding: str = "ASCII",
    max_bytes: int = MAX_FILE_BYTES,
) -> Any:
    """Read one pickle of plain data: containers, text, numbers, NumPy arrays.

    `where` starts every error; `encoding` is for Python 2 text (`"ASCII"`, `"latin1"`, `"utf-8"`,
    or `"bytes"` to leave it as bytes). Attributes set on dicts are dropped. Raises UnsafeFileError.
    """
    data = source if isinstance(source, (bytes, bytearray)) else source.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise UnsafeFileError(f"{where}: expected at most {max_bytes:,} bytes of pickled data")
    return PickleReader(data, where, encoding=encoding).load()
