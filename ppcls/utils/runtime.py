"""Settings of the process that must be made before Paddle is imported."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
import os
import sys
import warnings
from pathlib import Path

from ppcls.utils import distributed
from ppcls.utils.errors import UserError

THREADS_VARIABLE = "PPCLS_NUM_THREADS"
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4  # glibc's malloc.h
_PADDLE_NOISE = (
    "OMP_NUM_THREADS set to",
    "speed will not be optimized if you use data parallel",
    "fail if this PaddlePaddle binary is compiled with OpenBlas",
    " OpenBlas does not support multi-threads",
    "PLEASE USE OMP_NUM_THREADS WISELY",
    "No ccache found",
    "warnings.warn(warning_message)",
)


def import_paddle() -> str:
    """Choose CPU threads and MKL's code path, import Paddle, and say what was chosen.

    What the user set in the environment stays: `PPCLS_NUM_THREADS`, `OMP_NUM_THREADS`,
    `MKL_DEBUG_CPU_TYPE`. Raises UserError when Paddle is not installed.
    """
    if "paddle" in sys.modules:
        return f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS')} (Paddle was loaded before)"
    chosen = [_choose_threads(), _choose_mkl_path()]
    # Pillow first: on Paddle 2.6 its zlib symbols clash with those of Paddle's own library.
    importlib.import_module("PIL.Image")
    noise = io.StringIO()
    try:
        with contextlib.redirect_stderr(noise):
            paddle = importlib.import_module("paddle")
    except ModuleNotFoundError as error:
        if error.name != "paddle":
            raise
        raise UserError(
            "expected the package 'paddle', found none; install it with: pip install paddlepaddle "
            "(CPU) or pip install paddlepaddle-gpu (GPU)"
        ) from error
    finally:
        for line in noise.getvalue().splitlines():
            if not any(known in line for known in _PADDLE_NOISE):
                print(line, file=sys.stderr)
    # Said at every start of a training, of the behaviour everybody expects.
    warnings.filterwarnings("ignore", message="When training, we now always track global mean")
    # Paddle's own handler allocates memory: a SIGTERM that arrives inside malloc hung the process.
    paddle.disable_signal_handler()
    return ", ".join(text for text in chosen if text)


def _choose_threads() -> str:
    """Set OMP_NUM_THREADS to this process's share of the cores. Paddle's own default is 1."""
    wanted = wanted_threads()
    current = os.environ.get("OMP_NUM_THREADS")
    # The launcher's own import of Paddle leaves a 1 behind: under it, 1 means nobody chose.
    is_chosen = current is not None and not (distributed.is_launched() and current == "1")
    if wanted is None and is_chosen:
        return f"OMP_NUM_THREADS={current} (as set)"
    share = max(1, usable_cores() // distributed.local_size())
    os.environ["OMP_NUM_THREADS"] = str(wanted or share)
    return f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']} ({'as set' if wanted else 'chosen'})"


def _choose_mkl_path() -> str:
    """On AMD processors let the MKL inside Paddle use AVX2; by itself it takes its slowest path."""
    if "MKL_DEBUG_CPU_TYPE" in os.environ:
        return f"MKL_DEBUG_CPU_TYPE={os.environ['MKL_DEBUG_CPU_TYPE']} (as set)"
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    if "AuthenticAMD" not in text or " avx2" not in text:
        return ""
    os.environ["MKL_DEBUG_CPU_TYPE"] = "5"
    return "MKL_DEBUG_CPU_TYPE=5 (chosen: AMD processor)"


def keep_freed_memory() -> bool:
    """Let the C library keep what is freed for the next tensors, and say whether it does.

    Paddle on a CPU takes every tensor from `malloc`. glibc returns large ones to the system when
    they are freed, and each new one costs a page fault every 4 kB.
    Kept memory is at most what the process has held at its peak. What the user set in the
    environment stays: `MALLOC_MMAP_MAX_`, `GLIBC_TUNABLES`...
    """
    return _tune_malloc({_MMAP_MAX: 0, _TRIM_THRESHOLD: -1, _TOP_PAD: 64 * 2**20})


def return_freed_memory() -> bool:
    """Let the C library return every freed tensor of a megabyte at once, and say whether it does.

    The opposite of `keep_freed_memory`: a process then holds little more than its tensors.
    """
    return _tune_malloc({_MMAP_THRESHOLD: 2**20, _TRIM_THRESHOLD: 2**20})


def settle_memory(*, thrifty: bool) -> None:
    """Choose between time, the default of the tools on a CPU, and memory."""
    if thrifty:
        return_freed_memory()
    else:
        keep_freed_memory()


def _tune_malloc(values: dict[int, int]) -> bool:
    is_chosen = any(name.startswith("MALLOC_") for name in os.environ)
    mallopt = None if sys.platform == "win32" else getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or is_chosen or "GLIBC_TUNABLES" in os.environ:
        return False
    return all(mallopt(parameter, value) == 1 for parameter, value in values.items())


def wanted_threads() -> int | None:
    """Return the number in `PPCLS_NUM_THREADS`; None when nobody set it."""
    text = os.environ.get(THREADS_VARIABLE)
    if text is None:
        return None
    if not (text.isdecimal() and int(text) >= 1):
        raise UserError(f"{THREADS_VARIABLE}: expected a whole number from 1, got {text!r}")
    return int(text)


def peak_bytes() -> int | None:
    """Return the most memory this process has held so far; None where the system does not say."""
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def peak_tensor_bytes() -> int | None:
    """Return the most memory Paddle's tensors on the host have held so far, all at the same time.

    None before Paddle is loaded, and where it does not count.
    """
    paddle = sys.modules.get("paddle")
    core = None if paddle is None else paddle.base.core
    count = getattr(core, "host_memory_stat_peak_value", None)
    return None if count is None else count("Allocated", 0)


def usable_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
