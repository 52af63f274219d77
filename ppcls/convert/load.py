"""Weights of one network from any file that holds them, under Paddle's names."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ppcls.convert.architectures import find_architecture, loadable
from ppcls.convert.mapping import COUNTER, SUFFIXES, class_count, closest, torch_to_paddle
from ppcls.convert.torch_reader import load_torch_state_dict
from ppcls.utils.errors import UserError
from ppcls.utils.fileio import map_file
from ppcls.utils.pdparams import TORCH_MAGIC, load_paddle_state_dict
from ppcls.utils.safe_pickle import MAX_FILE_BYTES
from ppcls.utils.safetensors_file import is_safetensors

_TORCH_ENDINGS = (COUNTER, *(f".{torch}" for torch, _ in SUFFIXES))


def load_weights(path: str | Path, arch: str | None = None) -> dict[str, np.ndarray]:
    """Read a `.pdparams`, PyTorch or `.safetensors` file as Paddle's names to arrays.

    The content decides, not the suffix. PyTorch's names and layouts are converted for the network
    `arch`, whatever its class count; those for a detector's trunk will do for it too. Weights of
    any network may come under Paddle's names. Raises UserError: no such file, damaged, not plain
    data, or PyTorch's weights of another network.
    """
    data = map_file(path, MAX_FILE_BYTES)
    if not (_is_torch(data) or is_safetensors(data)):
        return load_paddle_state_dict(path)
    state = load_torch_state_dict(path)
    if is_safetensors(data) and not any(name.endswith(_TORCH_ENDINGS) for name in state):
        return state
    if arch is None:
        raise UserError(f"{path}: PyTorch's weights can be loaded into the HarDNets alone")
    try:
        row = closest(state, loadable(arch))
        return torch_to_paddle(state, row, class_count(state, find_architecture(row)))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _is_torch(data: bytes) -> bool:
    """Whether these are the zip container of PyTorch or the older one, which begins so."""
    return data[:2] == b"PK" or TORCH_MAGIC.to_bytes(10, "little") in data[:32]
