"""Reading PyTorch checkpoints without PyTorch, and without running anything in them.

Both containers of `torch.save` are read: the zip archive (since 1.6) and the older sequence of
pickles followed by raw storages. The pickled part goes through `safe_pickle`; the names PyTorch
needs are added to its table and only describe tensors. Data is copied out of the file at the end,
for the chosen state dict alone: an optimizer's tensors beside it are never touched.

Limits: those of `safe_pickle`; every tensor must lie inside its storage, every storage inside the
file; and all tensors together (expanded and shared ones counted in full) may be four times the file
plus 256 MiB. PyTorch's float8, quantized, sparse and half-complex tensors are refused.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ppcls.convert.stored_zip import StoredZip
from ppcls.utils.errors import UserError
from ppcls.utils.fileio import map_file
from ppcls.utils.pdparams import TORCH_MAGIC
from ppcls.utils.safe_pickle import MAX_FILE_BYTES, MAX_STEPS, PickleReader, UnsafeFileError
from ppcls.utils.safe_pickle_types import (
    MAX_DIMS,
    PLAIN,
    Handler,
    Symbol,
    make_tuple,
    only_a_name,
    shorten,
)
from ppcls.utils.safetensors_file import is_safetensors, load_safetensors, widen_bfloat16

SPARE_TENSOR_BYTES = 256 << 20
LEGACY_PROTOCOL = 1001
# Where checkpoints keep the weights, in the order they are looked for.
WRAPPERS = ("state_dict", "model_state", "model_state_dict", "model", "ema")
MAX_WRAPPERS = 4

# PyTorch's name -> NumPy's code, without byte order.
DTYPES = {
    "float64": "f8",
    "float32": "f4",
    "float16": "f2",
    "bfloat16": "u2",  # widened to float32 on reading
    "int64": "i8",
    "int32": "i4",
    "int16": "i2",
    "int8": "i1",
    "uint64": "u8",
    "uint32": "u4",
    "uint16": "u2",
    "uint8": "u1",
    "bool": "u1",  # any byte but zero is true
    "complex64": "c8",
    "complex128": "c16",
}
STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
}


def _item_size(dtype: str) -> int:
    return np.dtype(DTYPES[dtype]).itemsize


class Storage(NamedTuple):
    """A run of numbers somewhere in the file."""

    key: str
    dtype: str
    count: int


class TorchTensor(NamedTuple):
    """A view of a storage, in elements of `dtype`; checked to lie inside."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    is_negative: bool = False  # the values are those of the storage with the other sign
    is_conjugate: bool = False

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.count * (4 if self.dtype == "bfloat16" else _item_size(self.dtype))


# What the names of a checkpoint do ----------------------------------------------------------------


def _rebuild_tensor(
    reader: PickleReader,
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    requires_grad: Any = False,
    hooks: Any = None,
    metadata: Any = None,
    *_: Any,
) -> TorchTensor:
    """Also `_rebuild_tensor_v2`, which adds requires_grad, hooks and metadata."""
    if not isinstance(storage, Storage):
        raise reader.refuse("a tensor has no storage")
    view = _view(reader, storage, storage.dtype, offset, shape, strides)
    return _with_metadata(reader, view, metadata)


def _with_metadata(reader: PickleReader, tensor: TorchTensor, metadata: Any) -> TorchTensor:
    """Note `{"neg": True}` and `{"conj": True}` of lazy views; refuse what else changes values."""
    if metadata is None:
        return tensor
    if not isinstance(metadata, dict) or any(type(flag) is not bool for flag in metadata.values()):
        raise reader.refuse("a tensor has metadata of an unknown form")
    flags = {name for name, flag in metadata.items() if flag}
    is_number = tensor.dtype.startswith(("float", "bfloat", "complex"))
    if not flags <= {"neg", "conj"} or (flags and not is_number):
        raise reader.refuse(f"a tensor has the unknown property {shorten(min(map(str, flags)))}")
    return tensor._replace(is_negative="neg" in flags, is_conjugate="conj" in flags)


def _rebuild_tensor_v3(
    reader: PickleReader,
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    requires_grad: Any,
    hooks: Any,
    dtype: Any,
    metadata: Any = None,
    *_: Any,
) -> TorchTensor:
    """The form for dtypes that have no storage class of their own."""
    name = dtype.name.removeprefix("torch.") if isinstance(dtype, Symbol) else ""
    if not isinstance(storage, Storage) or storage.dtype != "uint8" or name not in DTYPES:
        raise reader.refuse(f"a tensor of {shorten(name)} has no NumPy equivalent")
    view = _view(reader, storage, name, offset, shape, strides)
    return _with_metadata(reader, view, metadata)


def _view(
    reader: PickleReader, storage: Storage, dtype: str, offset: Any, shape: Any, strides: Any
) -> TorchTensor:
    for sizes in (shape, strides):
        if type(sizes) not in (tuple, list) or len(sizes) > MAX_DIMS or len(sizes) != len(shape):
            raise reader.refuse("a tensor has no proper shape or strides")
    for number in (offset, *shape, *strides):
        if type(number) is not int or not 0 <= number < 1 << 48:
            raise reader.refuse("a tensor has no proper shape, strides or offset")
    if math.prod(max(size, 1) for size in shape) >= 1 << 56:
        raise reader.refuse("a tensor is impossibly large")
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    available = storage.count * _item_size(storage.dtype) // _item_size(dtype)
    if 0 not in shape and last >= available:
        raise reader.refuse(
            f"a tensor of shape {tuple(shape)} reaches element {last} of a storage of {available}"
        )
    return TorchTensor(storage, dtype, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(reader: PickleReader, tensor: Any, *_: Any) -> TorchTensor:
    if not isinstance(tensor, TorchTensor):
        raise reader.refuse("a parameter is no tensor")
    return tensor


def _rebuild_from_type(
    reader: PickleReader, function: Any, kind: Any, args: Any, *_: Any
) -> TorchTensor:
    """Tensors with Python attributes; the attributes are dropped."""
    name = kind.name if isinstance(kind, Symbol) else ""
    if name not in ("torch.Tensor", "torch.nn.parameter.Parameter"):
        raise reader.refuse(f"a tensor is of the special class {shorten(name)}")
    return _rebuild_parameter(reader, reader.call(function, args))


def _device(reader: PickleReader, kind: Any, index: Any = None) -> str:
    if type(kind) is not str or type(index) not in (int, type(None)):
        raise reader.refuse("a device is no text")
    return kind if index is None else f"{kind}:{index}"


TORCH: dict[str, Handler] = {
    **PLAIN,
    "torch.Size": make_tuple,
    "torch.device": _device,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch.Tensor": only_a_name,
    "torch.nn.parameter.Parameter": only_a_name,
    "torch.storage.UntypedStorage": only_a_name,
    **{f"torch.{name}": only_a_name for name in (*DTYPES, *STORAGES)},
    **{f"torch.cuda.{name}": only_a_name for name in STORAGES},
}


def _storage(reader: PickleReader, reference: Any) -> Storage:
    """Persistent id `("storage", class, key, location, count)`, and a sixth, None, in old files."""
    if type(reference) is not tuple or len(reference) not in (5, 6) or reference[0] != "storage":
        raise reader.refuse("it refers to something that is no storage")
    kind, key, _, count, *view = reference[1:]
    name = kind.name.rsplit(".", 1)[-1] if isinstance(kind, Symbol) else ""
    if name not in STORAGES:
        raise reader.refuse(f"a storage is of the class {shorten(name)}")
    if type(key) is not str or type(count) is not int or not 0 <= count < 1 << 48:
        raise reader.refuse("a storage has no proper key or size")
    if any(part is not None for part in view):
        raise reader.refuse("a storage is a view of another, as before PyTorch 0.4")
    return Storage(key, STORAGES[name], count)


# The two containers -------------------------------------------------------------------------------

Bytes = Callable[[Storage], memoryview]


class Checkpoint(NamedTuple):
    """The unpickled part, and where its storages are."""

    content: Any
    read: Bytes
    byte_order: str  # "<" or ">"


def _unpickle(
    data: Any, where: str, start: int, storages: dict[str, Storage], max_steps: int = MAX_STEPS
) -> PickleReader:
    """Return a reader for one pickle of a checkpoint; it fills `storages` while loading."""

    def persistent(reference: Any) -> Storage:
        storage = _storage(reader, reference)
        known = storages.setdefault(storage.key, storage)
        if known.count * _item_size(known.dtype) != storage.count * _item_size(storage.dtype):
            raise reader.refuse(f"storage {shorten(storage.key)} has two sizes")
        return storage

    reader = PickleReader(
        data,
        where,
        start=start,
        allowed=TORCH,
        persistent=persistent,
        leaves=(TorchTensor, Storage, Symbol),
        max_steps=max_steps,
    )
    return reader


def _open_zip(data: Any, where: str) -> Checkpoint:
    archive = StoredZip(data, where)
    records = [name for name in archive.entries if name.rsplit("/", 1)[-1] == "data.pkl"]
    if len(records) != 1:
        raise UnsafeFileError(f"{where}: expected a PyTorch checkpoint, found another zip archive")
    folder = records[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in archive.entries:
        raise UnsafeFileError(f"{where}: expected a state dict, found a TorchScript program")
    order = "<"
    if f"{folder}byteorder" in archive.entries:
        text = bytes(archive.read(f"{folder}byteorder")[:8])
        if text not in (b"little", b"big"):
            raise UnsafeFileError(f"{where}: the byte order {shorten(text)} is unknown")
        order = "<" if text == b"little" else ">"

    def read(storage: Storage) -> memoryview:
        part = archive.read(f"{folder}data/{storage.key}")
        if len(part) != storage.count * _item_size(storage.dtype):
            raise UnsafeFileError(
                f"{where}: storage {shorten(storage.key)} has {len(part)} bytes, not "
                f"{storage.count} numbers of {storage.dtype}"
            )
        return part

    return Checkpoint(_unpickle(archive.read(records[0]), where, 0, {}).load(), read, order)


def _open_legacy(data: Any, where: str) -> Checkpoint:
    """Pickles of magic number, version, system, content and storage keys; then the storages."""
    storages: dict[str, Storage] = {}
    position, parts = 0, []
    # Together no more than one large pickle, so that reading stays as quick.
    for steps in (100, 100, 1000, MAX_STEPS, MAX_STEPS // 5):
        reader = _unpickle(data, where, position, storages, steps)
        parts.append(reader.load())
        position = reader.position
        if parts[0] != TORCH_MAGIC:
            raise UnsafeFileError(f"{where}: expected a PyTorch checkpoint, found another pickle")
    _, version, _, content, keys = parts
    if version != LEGACY_PROTOCOL or type(keys) is not list:
        raise UnsafeFileError(f"{where}: a PyTorch checkpoint of an unknown version")
    spans = _legacy_spans(data, where, position, storages, keys)

    def read(storage: Storage) -> memoryview:
        if storage.key not in spans:
            raise UnsafeFileError(f"{where}: storage {shorten(storage.key)} is missing")
        start, size = spans[storage.key]
        return memoryview(data)[start : start + size]

    return Checkpoint(content, read, "<")  # this container swaps bytes on big-endian machines


def _legacy_spans(
    data: Any, where: str, position: int, storages: dict[str, Storage], keys: list
) -> dict[str, tuple[int, int]]:
    spans: dict[str, tuple[int, int]] = {}
    for key in keys:
        storage = storages.get(key) if type(key) is str else None
        if storage is None or key in spans:
            raise UnsafeFileError(f"{where}: storage {shorten(key)} is unknown or there twice")
        if position + 8 > len(data):
            raise UnsafeFileError(f"{where}: cut short before storage {shorten(key)}")
        count = struct.unpack("<q", data[position : position + 8])[0]
        size = storage.count * _item_size(storage.dtype)
        position += 8
        if count != storage.count or position + size > len(data):
            raise UnsafeFileError(
                f"{where}: cut short in storage {shorten(key)}, or it has another size than it says"
            )
        spans[key] = (position, size)
        position += size
    return spans


def _open(data: Any, where: str) -> Checkpoint:
    if data[:4] == b"PK\x03\x04":
        return _open_zip(data, where)
    if data[:1] == b"\x80":
        return _open_legacy(data, where)
    if data[257:262] == b"ustar":
        raise UnsafeFileError(f"{where}: the tar container of PyTorch before 0.1.10 is not read")
    raise UnsafeFileError(
        f"{where}: expected a PyTorch checkpoint, found neither of its containers"
    )


# From a checkpoint to arrays ----------------------------------------------------------------------


def _is_state(content: Any) -> bool:
    return isinstance(content, Mapping) and any(
        isinstance(key, str) and isinstance(value, TorchTensor) for key, value in content.items()
    )


def find_state(content: Any, where: str) -> dict[str, TorchTensor]:
    """Unwrap a checkpoint's weights: the first of WRAPPERS that holds tensors, else itself."""
    for _ in range(MAX_WRAPPERS):
        if not isinstance(content, Mapping):
            break
        inner = next((content[key] for key in WRAPPERS if _holds_state(content.get(key))), None)
        if inner is None:
            break
        content = inner
    if not _is_state(content):
        raise UserError(f"{where}: expected a checkpoint with weights, found {_words(content)}")
    return {
        key: value
        for key, value in content.items()
        if isinstance(key, str) and isinstance(value, TorchTensor)
    }


def _holds_state(content: Any, depth: int = MAX_WRAPPERS) -> bool:
    if _is_state(content):
        return True
    if not isinstance(content, Mapping) or not depth:
        return False
    return any(_holds_state(content.get(key), depth - 1) for key in WRAPPERS)


def _words(content: Any) -> str:
    if isinstance(content, TorchTensor):
        return "a single tensor"
    if not isinstance(content, Mapping):
        return f"a value of type {type(content).__name__}"
    if "param_groups" in content:
        return "an optimizer's state"
    names = ", ".join(shorten(key) for key in list(content)[:5])
    return f"a dict without tensors (keys: {names or 'none'})"


def strip_prefix(names: list[str], prefix: str = "module.") -> list[str]:
    """Remove what DataParallel puts before every name, as often as it is there."""
    while names and all(name.startswith(prefix) and name != prefix for name in names):
        names = [name.removeprefix(prefix) for name in names]
    return names


def _to_array(tensor: TorchTensor, checkpoint: Checkpoint) -> np.ndarray:
    dtype = np.dtype(checkpoint.byte_order + DTYPES[tensor.dtype])
    if tensor.count:
        view = np.ndarray(
            tensor.shape,
            dtype,
            checkpoint.read(tensor.storage),
            tensor.offset * dtype.itemsize,
            tuple(stride * dtype.itemsize for stride in tensor.strides),
        )
    else:
        view = np.empty(tensor.shape, dtype)
    if tensor.dtype == "bool":
        return view != 0
    native = np.array(view, dtype.newbyteorder("="), order="C")
    values = widen_bfloat16(native) if tensor.dtype == "bfloat16" else native
    if tensor.is_conjugate:
        np.conjugate(values, out=values)
    return np.negative(values, out=values) if tensor.is_negative else values


def load_torch_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """Read the weights of a PyTorch checkpoint (or a `.safetensors` file) as names to arrays.

    Names are as saved, without `module.`; the weights may lie under one of WRAPPERS. Values keep
    their dtype, except bfloat16, which becomes float32. Arrays are contiguous copies. Raises
    UserError (no such file, no weights in it) and UnsafeFileError (damaged, not plain data).
    """
    data, where = map_file(path, MAX_FILE_BYTES), str(path)
    if is_safetensors(data):
        tensors = load_safetensors(path)
        return dict(zip(strip_prefix(list(tensors)), tensors.values(), strict=True))
    checkpoint = _open(data, where)
    state = find_state(checkpoint.content, where)
    total, limit = sum(t.nbytes for t in state.values()), 4 * len(data) + SPARE_TENSOR_BYTES
    if total > limit:
        raise UnsafeFileError(
            f"{where}: its tensors need {total:,} bytes, expected at most {limit:,} for its size"
        )
    names = strip_prefix(list(state))
    return {
        name: _to_array(tensor, checkpoint)
        for name, tensor in zip(names, state.values(), strict=True)
    }
