"""PyTorch's containers, written by hand so that they may be wrong."""

from __future__ import annotations

import io
import struct
import zipfile
from collections import OrderedDict

import numpy as np

from ppcls.utils.pickle_writer import Call, Name, Persistent, PickleWriter

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
SYSTEM = {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": {"int": 4}}


def pickled(content) -> bytes:
    """`content` pickled; bytes stand for themselves."""
    if isinstance(content, bytes):
        return content
    buffer = io.BytesIO()
    PickleWriter(buffer, protocol=2).dump(content)
    return buffer.getvalue()


def storage(key="0", count=6, kind="FloatStorage", module="torch", location="cpu", *more):
    return Persistent(("storage", Name(module, kind), key, location, count, *more))


def tensor(source, offset=0, shape=(2, 3), stride=(3, 1), function="_rebuild_tensor_v2"):
    more = (False, OrderedDict()) if function.endswith("v2") else ()
    return Call(Name("torch._utils", function), (source, offset, shape, stride, *more))


def floats(count=6, dtype="<f4") -> bytes:
    return np.arange(count).astype(dtype).tobytes()


def zip_file(content, storages=None, folder="archive/", compression=zipfile.ZIP_STORED, **records):
    """A zip container; `storages` maps keys to bytes, `records` are further entries."""
    storages = {"0": floats()} if storages is None else storages
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr(f"{folder}data.pkl", pickled(content))
        for name, value in records.items():
            archive.writestr(folder + name.replace("__", "."), value)
        for key, data in storages.items():
            archive.writestr(f"{folder}data/{key}", data)
        archive.writestr(f"{folder}version", b"3\n")
    return buffer.getvalue()


def legacy_file(content, storages=None, counts=None, keys=None, magic=MAGIC, version=PROTOCOL):
    """The older container; `counts` are the element counts before the storages."""
    storages = {"0": floats()} if storages is None else storages
    counts = {"0": 6} if counts is None else counts
    keys = list(storages) if keys is None else keys
    head = b"".join(pickled(part) for part in (magic, version, SYSTEM, content, keys))
    return head + b"".join(struct.pack("<q", counts[key]) + storages[key] for key in storages)
