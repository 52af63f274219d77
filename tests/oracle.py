"""Weights and inputs any implementation can make for itself, without a file.

A tensor is drawn from a generator seeded with its official (PyTorch) name, in the official layout,
so that a PyTorch run elsewhere and a Paddle run here have the same network. The stored outputs in
`assets/hardnet*.npz` and `assets/train_parity_hardnet39ds.npz` were made by the official PyTorch
code (PingoLH/Pytorch-HarDNet, commit de9662f) with `tensor(0, ...)` and `image(seed, shape)`;
`assets/ssd_hardnet68_512.npz` likewise (PingoLH/PytorchSSD-HarDNet, commit a2a0a26).
"""

from __future__ import annotations

import zlib

import numpy as np

_SUFFIXES = {"_mean": "running_mean", "_variance": "running_var"}


def official_name(name: str) -> str:
    """`base.4.norm._mean` -> `base.4.norm.running_mean`."""
    prefix, _, last = name.rpartition(".")
    return f"{prefix}.{_SUFFIXES.get(last, last)}"


def tensor(seed: int, name: str, shape: tuple[int, ...], is_norm: bool) -> np.ndarray:
    """The float64 tensor of an official name and shape."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if name.endswith("running_var") or (is_norm and name.endswith("weight")):
        return rng.uniform(0.5, 1.5, shape)
    if len(shape) >= 2:
        return rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    if name == "L2Norm.weight":
        return rng.uniform(5, 20, shape)
    return 0.1 * rng.standard_normal(shape)


def weights(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """A Paddle state dict, float32, for names and shapes such as those of `model.state_dict()`."""
    state = {}
    for name, shape in shapes.items():
        is_norm = f"{name.rpartition('.')[0]}._variance" in shapes
        is_linear = len(shape) == 2  # Paddle keeps linear weights transposed
        official = tuple(shape)[::-1] if is_linear else tuple(shape)
        array = tensor(seed, official_name(name), official, is_norm).astype("float32")
        state[name] = array.T if is_linear else array
    return state


def fill(model, seed: int = 0):
    """Put `weights(...)` into a network in place, and return it."""
    state = model.state_dict()
    for name, array in weights({n: tuple(t.shape) for n, t in state.items()}, seed).items():
        state[name].set_value(array.astype(state[name].numpy().dtype))
    return model


def image(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Standard-normal input, float32."""
    return np.random.default_rng([seed, 12345]).standard_normal(shape).astype("float32")


def sample_indices(size: int, count: int) -> np.ndarray:
    """The flat places at which stored values were taken."""
    if size <= count:
        return np.arange(size)
    return np.arange(count) * (size - 1) // (count - 1)


def even_indices(size: int, count: int) -> np.ndarray:
    """The same for the detector's file: evenly spaced, rounded."""
    return np.linspace(0, size - 1, min(count, size)).round().astype("int64")
