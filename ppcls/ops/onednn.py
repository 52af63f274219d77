"""The oneDNN that Paddle's CPU package brings along, called directly.

Paddle ships oneDNN (`libdnnl.so.3`) for its inference engine; training takes kernels of Paddle's
own, of which the depthwise convolution and batch norm have one thread and dense convolution is an
im2col. Here the same library is called through its C interface (stable over oneDNN 3): nothing is
compiled, and oneDNN itself picks code for the processor it runs on. Reference: oneDNN's developer
guide; the numbers below are those of its `dnnl_types.h`.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Sequence
from ctypes import byref, c_char_p, c_int, c_int64, c_size_t, c_uint, c_void_p
from pathlib import Path

import numpy as np

MAJOR = 3  # of the C interface
_CPU, _IN_ORDER = 1, 1  # dnnl_engine_kind_t, dnnl_stream_flags_t
_FLOAT32, _ANY_LAYOUT = 3, 1  # dnnl_data_type_t, dnnl_format_tag_t
TRAINING = 64  # dnnl_prop_kind_t
SOURCE, TARGET = 1, 17  # arguments; the convolution's own are with it
GRADIENT = 128  # added to an argument's number: its gradient
_MAX_DIMS = 12
_ALIGNMENT = 64  # bytes: a cache line, and the widest vector


class OneDNNError(RuntimeError):
    """oneDNN refused a call."""


class _Version(ctypes.Structure):
    _fields_ = [(name, c_int) for name in ("major", "minor", "patch")]
    _fields_ += [("hash", c_char_p), ("cpu_runtime", c_uint), ("gpu_runtime", c_uint)]


class _Argument(ctypes.Structure):
    _fields_ = [("number", c_int), ("memory", c_void_p)]


class Library:
    """The shared library `path`, with an engine on the CPU.

    Raises OSError when it cannot be loaded, OneDNNError when it is not oneDNN 3.
    """

    def __init__(self, path: Path) -> None:
        self.functions = ctypes.CDLL(str(path))
        self.lock = threading.Lock()
        self._scratch: dict[str, np.ndarray] = {}
        self._declare()
        found = self.functions.dnnl_version().contents
        self.version = f"{found.major}.{found.minor}.{found.patch}"
        if found.major != MAJOR:
            raise OneDNNError(f"{path}: expected oneDNN {MAJOR}, found {self.version}")
        self.engine = self.make("engine", _CPU, 0)
        self.stream = self.make("stream", self.engine, _IN_ORDER)

    def _declare(self) -> None:
        functions = self.functions
        functions.dnnl_version.restype = ctypes.POINTER(_Version)
        functions.dnnl_engine_create.argtypes = [c_void_p, c_int, c_size_t]
        functions.dnnl_primitive_desc_query_md.argtypes = [c_void_p, c_int, c_int]
        functions.dnnl_primitive_desc_query_md.restype = c_void_p
        functions.dnnl_memory_desc_get_size.argtypes = [c_void_p]
        functions.dnnl_memory_desc_get_size.restype = c_size_t
        functions.dnnl_memory_set_data_handle.argtypes = [c_void_p, c_void_p]
        functions.dnnl_primitive_execute.argtypes = [c_void_p, c_void_p, c_int, c_void_p]

    def make(self, what: str, *arguments: object, call: str = "create") -> c_void_p:
        """Call `dnnl_WHAT_create`, and return the object it makes."""
        made = c_void_p()
        _check(getattr(self.functions, f"dnnl_{what}_{call}")(byref(made), *arguments), what)
        return made

    def describe(self, shape: Sequence[int], *, channels_last: bool = False) -> c_void_p:
        """Make a descriptor of a dense float32 tensor; `shape` says N, C, H, W in any layout."""
        strides = dims_of(_strides(shape, channels_last))
        dims = dims_of(shape)
        return self.make(
            "memory_desc", len(shape), dims, _FLOAT32, strides, call="create_with_strides"
        )

    def describe_any(self, shape: Sequence[int]) -> c_void_p:
        """Make a descriptor that leaves the layout to the primitive."""
        dims = dims_of(shape)
        return self.make(
            "memory_desc", len(shape), dims, _FLOAT32, _ANY_LAYOUT, call="create_with_tag"
        )

    def destroy(self, what: str, made: c_void_p) -> None:
        getattr(self.functions, f"dnnl_{what}_destroy")(made)

    def scratch_address(self, name: str, size: int) -> int:
        """Memory of at least `size` bytes that all primitives share; it grows, and stays."""
        buffer = self._scratch.get(name)
        if buffer is None or buffer.size < size + _ALIGNMENT:
            buffer = None
            self._scratch.pop(name, None)  # before its larger successor
            buffer = self._scratch[name] = np.empty(size + _ALIGNMENT, np.uint8)
        address = buffer.ctypes.data
        return address + -address % _ALIGNMENT


def _check(status: int, what: str) -> None:
    if status:
        raise OneDNNError(f"oneDNN: {what}: status {status}")


def dims_of(values: Sequence[int]) -> ctypes.Array[c_int64]:
    return (c_int64 * _MAX_DIMS)(*values)


def _strides(shape: Sequence[int], channels_last: bool) -> list[int]:
    """Strides of dense memory in the order of `shape`, or of [N, C, H, W] held as N, H, W, C."""
    order = (0, 2, 3, 1) if channels_last else range(len(shape))
    strides, step = [0] * len(shape), 1
    for axis in reversed(order):
        strides[axis], step = step, step * shape[axis]
    return strides


class Operand:
    """A tensor of a primitive: as Paddle holds it, and in the layout the primitive wants.

    Args:
        library: where it lives.
        number: of the argument, as `dnnl_types.h` has it.
        plain: descriptor of Paddle's tensor.
        wanted: descriptor in the primitive's layout; None when that is `plain`.
        is_result: the primitive writes it.
        scratch: the name of the shared memory for the primitive's layout.
    """

    def __init__(
        self,
        library: Library,
        number: int,
        plain: c_void_p,
        wanted: c_void_p | None = None,
        *,
        is_result: bool = False,
        scratch: str = "",
    ) -> None:
        self.onednn, self.number, self.is_result = library, number, is_result
        self.outside = library.make("memory", plain, library.engine, None)
        self.inside, self._reorder, self._scratch = self.outside, None, scratch
        functions = library.functions
        if wanted is not None and not functions.dnnl_memory_desc_equal(plain, wanted):
            self.inside = library.make("memory", wanted, library.engine, None)
            self._size = functions.dnnl_memory_desc_get_size(wanted)
            source, target = (wanted, plain) if is_result else (plain, wanted)
            self._reorder = _reorder(library, source, target)
            memories = (self.inside, self.outside) if is_result else (self.outside, self.inside)
            self._arguments = _arguments({SOURCE: memories[0], TARGET: memories[1]})

    def bind(self, address: int) -> None:
        """Say where Paddle's tensor is. What is read comes into its layout at once."""
        point = self.onednn.functions.dnnl_memory_set_data_handle
        _check(point(self.outside, address), "memory_set_data_handle")
        if self._reorder is not None:
            scratch = self.onednn.scratch_address(self._scratch, self._size)
            _check(point(self.inside, scratch), "memory_set_data_handle")
            if not self.is_result:
                _execute(self.onednn, self._reorder, self._arguments)

    def release(self) -> None:
        """Bring a result from its layout into Paddle's tensor."""
        if self.is_result and self._reorder is not None:
            _execute(self.onednn, self._reorder, self._arguments)

    def destroy(self) -> None:
        if self._reorder is not None:
            self.onednn.destroy("primitive", self._reorder)
            self.onednn.destroy("memory", self.inside)
        self.onednn.destroy("memory", self.outside)


def _reorder(library: Library, source: c_void_p, target: c_void_p) -> c_void_p:
    engine = library.engine
    made = library.make("reorder_primitive_desc", source, engine, target, engine, None)
    primitive = library.make("primitive", made)
    library.destroy("primitive_desc", made)
    return primitive


def _arguments(memories: dict[int, c_void_p]) -> ctypes.Array[_Argument]:
    pairs = [_Argument(number, memory) for number, memory in memories.items()]
    return (_Argument * len(pairs))(*pairs)


def _execute(library: Library, primitive: c_void_p, arguments: ctypes.Array[_Argument]) -> None:
    run = library.functions.dnnl_primitive_execute
    _check(run(primitive, library.stream, len(arguments), arguments), "primitive_execute")


class Primitive:
    """A primitive made from the descriptor `made`, with its operands."""

    def __init__(self, library: Library, made: c_void_p, operands: Sequence[Operand]) -> None:
        self.onednn, self.operands = library, operands
        self._primitive = library.make("primitive", made)
        self._arguments = _arguments({o.number: o.inside for o in operands})
        weakref.finalize(self, _destroy, library, self._primitive, operands).atexit = False

    def __call__(self, *addresses: int) -> None:
        """Run on the tensors at `addresses`, in the order of the operands."""
        with self.onednn.lock:
            for operand, address in zip(self.operands, addresses, strict=True):
                operand.bind(address)
            _execute(self.onednn, self._primitive, self._arguments)
            for operand in self.operands:
                operand.release()


def _destroy(library: Library, primitive: c_void_p, operands: Sequence[Operand]) -> None:
    library.destroy("primitive", primitive)
    for operand in operands:
        operand.destroy()
