"""Official state dicts, filled by the rule of `tests/assets`: reproducible, never degenerate."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np

ASSETS = Path(__file__).resolve().parents[1] / "assets"
FILES = {"HarDNet39_ds": "hardnet39ds", "HarDNet68": "hardnet68"}


def names_and_shapes(arch: str) -> dict[str, tuple[int, ...]]:
    if arch not in FILES:
        return _from_paddle_names(arch)
    rows = json.loads((ASSETS / f"{FILES[arch]}.state_dict.json").read_text())
    return {name: tuple(shape) for name, shape, _ in rows}


def _from_paddle_names(arch: str) -> dict[str, tuple[int, ...]]:
    """Written out here a second time, so that the conversion is not compared with itself."""
    result: dict[str, tuple[int, ...]] = {}
    shapes = json.loads((ASSETS / "hardnet_state_dicts.json").read_text())[arch]
    for name, shape in shapes.items():
        name = name.replace("._mean", ".running_mean").replace("._variance", ".running_var")
        result[name] = tuple(shape[::-1] if len(shape) == 2 else shape)
        if name.endswith(".running_var"):
            result[name.replace("running_var", "num_batches_tracked")] = ()
    return result


def weights(arch: str, seed: int = 0) -> dict[str, np.ndarray]:
    """W(seed): each tensor from its own generator, seeded by its name."""
    shapes = names_and_shapes(arch)
    return {name: _values(name, shape, shapes, seed) for name, shape in shapes.items()}


def _values(name: str, shape: tuple, names, seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    stem, _, last = name.rpartition(".")
    is_norm = f"{stem}.running_var" in names
    if last == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if last == "running_var" or (is_norm and last == "weight"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if len(shape) >= 2:
        return (rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)
    return (0.1 * rng.standard_normal(shape)).astype(np.float32)
