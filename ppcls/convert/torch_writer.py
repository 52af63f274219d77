"""Writing state dicts PyTorch reads, without PyTorch: its zip container, or safetensors."""

from __future__ import annotations

import io
import math
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ppcls.convert.torch_reader import DTYPES, STORAGES
from ppcls.utils.errors import UserError
from ppcls.utils.fileio import atomic_write
from ppcls.utils.pickle_writer import Call, Name, Persistent, PickleWriter, little_endian, raw_bytes
from ppcls.utils.safetensors_file import save_safetensors

_ALIGNMENT = 64
_FOLDER = "archive"
_STORAGE_OF = {
    np.dtype("bool" if name == "bool" else DTYPES[name]): storage
    for storage, name in STORAGES.items()
    if name != "bfloat16" and storage != "UntypedStorage"
}


def save_torch_state_dict(path: str | Path, state: Mapping[str, np.ndarray]) -> None:
    """Write `state` atomically as an OrderedDict of contiguous tensors.

    A `.safetensors` path gives that format, any other the zip container, which
    `torch.load(path, weights_only=True)` reads. The bytes depend on `state` alone.
    Raises UserError for a dtype PyTorch has no storage for.
    """
    if Path(path).suffix == ".safetensors":
        save_safetensors(path, state, {"format": "pt"})
        return
    arrays = [little_endian(value) for value in state.values()]
    for name, array in zip(state, arrays, strict=True):
        if array.dtype not in _STORAGE_OF:
            raise UserError(f"{path}: PyTorch has no storage for {name}, an array of {array.dtype}")
    content = OrderedDict(
        (name, _tensor(array, str(index)))
        for index, (name, array) in enumerate(zip(state, arrays, strict=True))
    )
    pickled = io.BytesIO()
    PickleWriter(pickled, protocol=2).dump(content)

    def write(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            _add(archive, file, "data.pkl", pickled.getvalue())
            _add(archive, file, "byteorder", b"little")
            for index, array in enumerate(arrays):
                _add(archive, file, f"data/{index}", raw_bytes(array))
            _add(archive, file, "version", b"3\n")

    atomic_write(path, write)


def _tensor(array: np.ndarray, key: str) -> Call:
    storage = Name("torch", _STORAGE_OF[array.dtype])
    strides = tuple(math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim))
    return Call(
        Name("torch._utils", "_rebuild_tensor_v2"),
        (
            Persistent(("storage", storage, key, "cpu", array.size)),
            0,
            array.shape,
            strides,
            False,
            OrderedDict(),
        ),
    )


def _add(archive: zipfile.ZipFile, file: BinaryIO, name: str, content: bytes | memoryview) -> None:
    """Store an entry with its data aligned, as PyTorch does, so that it can be mapped."""
    info = zipfile.ZipInfo(f"{_FOLDER}/{name}")  # dated 1980: equal states, equal files
    data_start = file.tell() + 30 + len(info.filename) + 4
    padding = -data_start % _ALIGNMENT
    info.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
    archive.writestr(info, content)
