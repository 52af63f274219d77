"""What every runtime offers, and the options they all understand."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args

import numpy as np

from ppcls.deploy.package import Manifest
from ppcls.utils.errors import UserError

Precision = Literal["float32", "bfloat16"]
Hint = Literal["latency", "throughput"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to run a network. Raises UserError for a value out of range."""

    threads: int | None = None  # None: as many as there are cores
    precision: Precision = "float32"
    hint: Hint = "latency"  # what counts: the time of one batch, or images per second

    def __post_init__(self) -> None:
        for name, kind in (("precision", Precision), ("hint", Hint)):
            known, value = get_args(kind), getattr(self, name)
            if value not in known:
                raise UserError(f"{name}: expected {' or '.join(known)}, got {value!r}")
        if self.threads is not None and (type(self.threads) is not int or self.threads < 1):
            raise UserError(f"threads: expected a whole number from 1, got {self.threads!r}")


class Runtime(Protocol):
    """A network, loaded."""

    name: str  # the form of the network
    threads: int
    streams: int  # calls of `run` at a time that keep the machine busy
    versions: dict[str, str]  # package -> version

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Compute one batch. May be called from several threads.

        inputs: those of `ppcls.deploy.package.Manifest`, contiguous, in its order. The outputs are
        the caller's own.
        """
        ...


def input_names(manifest: Manifest) -> list[str]:
    """Return the names of a network's inputs, in the order of `Runtime.run`."""
    return ["image", "image_sizes"] if manifest.task == "detection" else ["image"]


def check_names(path: Path, found: Collection[str], manifest: Manifest) -> None:
    """Raise UserError when a file's network has other inputs than its manifest says."""
    expected = input_names(manifest)
    if set(found) != set(expected):
        raise UserError(
            f"{path}: expected a network with the inputs {', '.join(expected)}, "
            f"found {', '.join(found) or 'none'}"
        )


def refused(path: Path, package: str, version: str, error: Exception) -> UserError:
    """Return the error of a file that a runtime cannot load."""
    reason = " ".join(str(error).split())[:300]
    return UserError(f"{path}: {package} {version} cannot load it: {reason}")
