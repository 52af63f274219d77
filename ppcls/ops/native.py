"""The operators of this package written in C, and the threads they run on.

They are compiled when the package is installed, where there is a C compiler; without one nothing
is missing but speed. They run on the threads of the OpenMP runtime that Paddle brings along, which
are oneDNN's: with another runtime's beside them, one set waits for the processor while the other
spins. Without it they have one thread.
"""

from __future__ import annotations

import ctypes
import importlib.util
import logging
from ctypes import POINTER, Structure, c_double, c_float, c_int64, c_void_p
from pathlib import Path

import paddle

logger = logging.getLogger("ppcls")
MODULE = "ppcls.ops._native"
VERSION = 1  # of the C: the VERSION there


class BatchNormCall(Structure):
    """The struct `BatchNorm` of batch_norm.c."""

    _fields_ = [(name, c_int64) for name in ("images", "channels", "pixels")]
    _fields_ += [(name, c_float) for name in ("lower", "upper")]
    _fields_ += [(name, c_double) for name in ("epsilon", "momentum")]
    _fields_ += [
        (name, c_void_p)
        for name in (
            *("source", "scale", "offset", "running_mean", "running_variance"),
            *("mean", "inverse_deviation", "target"),
            *("gradient", "source_gradient", "scale_gradient", "offset_gradient"),
        )
    ]


class _Threads(Structure):
    _fields_ = [(name, c_void_p) for name in ("parallel", "thread_number", "thread_count")]


class NativeError(Exception):
    """The compiled operators are not those this package calls."""


class Native:
    """The compiled operators.

    Raises OSError or AttributeError when the library or the OpenMP runtime lacks something, and
    NativeError when the library was compiled from other C than this.
    """

    def __init__(self, path: str, openmp: ctypes.CDLL | None) -> None:
        functions = ctypes.CDLL(path)
        version = functions.ppcls_native_version
        version.argtypes, version.restype = [], c_int64
        if version() != VERSION:
            raise NativeError(f"expected version {VERSION} of the C, got {version()}")
        arguments = [POINTER(BatchNormCall), POINTER(_Threads)]
        self._forward = functions.ppcls_batch_norm_forward
        self._backward = functions.ppcls_batch_norm_backward
        for function in (self._forward, self._backward):
            function.argtypes, function.restype = arguments, None
        self._threads = None if openmp is None else _threads_of(openmp)

    def forward(self, call: BatchNormCall) -> None:
        """Write `target`, `mean` and `inverse_deviation`, and update the running statistics."""
        self._forward(call, self._threads)

    def backward(self, call: BatchNormCall) -> None:
        """Write the three gradients; that of the source only where there is room for it."""
        self._backward(call, self._threads)


def _threads_of(runtime: ctypes.CDLL) -> _Threads:
    names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
    return _Threads(*(ctypes.cast(getattr(runtime, name), c_void_p) for name in names))


def load() -> Native | None:
    """The compiled operators; None where they were not compiled or do not load."""
    spec = importlib.util.find_spec(MODULE)
    if spec is None or spec.origin is None:
        return None
    openmp = Path(paddle.__file__).parent / "libs" / "libiomp5.so"
    try:
        return Native(spec.origin, ctypes.CDLL(str(openmp)) if openmp.exists() else None)
    except (OSError, AttributeError, NativeError) as error:
        logger.info("%s: not used (install the package again to compile it): %s", MODULE, error)
        return None
