"""Whole shards: written, listed and verified, as `scripts/make_shards.py` does."""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ppcls.data.datasets.base import ClassificationDataset, naming
from ppcls.data.datasets.folder import IMAGE_SUFFIXES
from ppcls.data.datasets.shard_index import Entry, Shard, ShardIndex
from ppcls.data.datasets.tar_reader import BLOCK
from ppcls.data.datasets.tar_walk import walk
from ppcls.data.datasets.web_samples import (
    find_samples,
    open_writer,
    read_sample,
    stream_samples,
)
from ppcls.utils.errors import DataError, UserError
from ppcls.utils.fileio import map_file, to_json

_CHUNK = 1 << 20
_OVERHEAD = 40 * BLOCK  # at most: headers, padding, small members, the end of the archive


class Limits(NamedTuple):
    """Most samples and bytes of a shard. A sample larger than that has one of its own."""

    samples: int
    size: int


class Source(NamedTuple):
    """A sample on its way into a shard: its file's name below the data set, suffix included."""

    name: str
    image: bytes
    label: int


def read_source(dataset: ClassificationDataset, index: int, root: str | None) -> Source:
    """Read a sample as its file's own bytes; pixels, as CIFAR has them, become a PNG file.

    root: folder to leave out of the name. Raises DataError that names the sample.
    """
    with naming(lambda: dataset.describe(index)):
        content = dataset.read(index)
        where = dataset.describe(index)
        if isinstance(content, np.ndarray):
            name = re.sub(r" #([0-9]+)$", r"_\1", os.path.basename(where)) + ".png"
            content = to_png(content)
        else:
            name = os.path.relpath(where, root) if root else os.path.basename(where)
        if not name.lower().endswith(IMAGE_SUFFIXES):
            raise ValueError(f"expected a name that ends in {', '.join(IMAGE_SUFFIXES)}")
        return Source(name, content, int(dataset.labels[index]))


def to_png(pixels: np.ndarray) -> bytes:
    """HWC uint8 RGB as a PNG file, which has the same pixels."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


class ShardsWriter:
    """Writes samples into `folder`: PREFIX-000000.tar and on, a new one where a limit is reached.

    Keys are running numbers: unique whatever the files are called, and free of dots. The same
    samples give the same bytes.

    Attributes:
        shards: that are finished.
        entries: lines of the table.
    """

    def __init__(
        self, folder: Path, prefix: str, limits: Limits, *, with_names: bool = False
    ) -> None:
        self.folder, self.prefix, self.limits, self.with_names = folder, prefix, limits, with_names
        self.shards: list[Shard] = []
        self.entries: list[Entry] = []
        self._open: _OpenShard | None = None

    def write(self, source: Source) -> None:
        if self._open is not None and self._is_full(source):
            self.finish()
        if self._open is None:
            self._open = _OpenShard(self.folder / f"{self.prefix}-{len(self.shards):06d}.tar")
        key = f"{len(self.entries):09d}"
        kind = source.name.rpartition(".")[2].lower()
        fields = {kind: source.image, "cls": str(source.label).encode()}
        if self.with_names:
            fields["json"] = to_json({"name": source.name}).encode("utf-8", "backslashreplace")
        offset, length = self._open.add({"__key__": key, **fields})
        self.entries.append(Entry(offset, length, source.label, key, source.name))

    def _is_full(self, source: Source) -> bool:
        assert self._open is not None
        size = self._open.size + len(source.image) + _OVERHEAD
        return self._open.samples >= self.limits.samples or size > self.limits.size

    def finish(self) -> None:
        """Finish the shard begun last."""
        if self._open is not None:
            self.shards.append(self._open.close())
            self._open = None


class _OpenShard:
    def __init__(self, path: Path) -> None:
        self.path, self.samples = path, 0
        self._file = _HashingFile(path)
        self._writer = open_writer(self._file)

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self._writer.tarstream.offset

    def add(self, sample: dict[str, str | bytes]) -> tuple[int, int]:
        """Write a sample; return its offset and length."""
        offset = self.size
        self._writer.write(sample)
        self.samples += 1
        return offset, self.size - offset

    def close(self) -> Shard:
        self._writer.close()
        self._file.close()
        return Shard(self.path.name, self.samples, self._file.size, self._file.sha256.hexdigest())


class _HashingFile(io.RawIOBase):
    """A new file to write to, which knows its size and SHA-256."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "xb")
        self.size, self.sha256 = 0, hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.size += len(data)
        self.sha256.update(data)
        return self._file.write(data)

    def close(self) -> None:
        if not self.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        super().close()


def sha256_of(path: str) -> str:
    """SHA-256 of a file. Raises DataError when it cannot be read."""
    found = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                found.update(chunk)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    return found.hexdigest()


def list_shard(path: str) -> Iterator[Entry]:
    """Yield the samples of a shard in order. The name is the image member's.

    Each is read where it lies, and by webdataset as it streams the file; both must find the same.
    Raises DataError with the shard, and the first member of a sample that cannot be used.
    """
    try:
        archive = map_file(path)
    except UserError as error:
        raise DataError(str(error)) from error
    where = [path]
    with naming(lambda: ": ".join(where)), open(path, "rb") as file:
        streamed = stream_samples(file)
        for group in find_samples(walk(archive, is_whole=True)):
            where[1:] = [group[0].name]
            start, end = group[0].start, group[-1].end
            sample = read_sample(archive[start:end])
            if next(streamed, None) != sample:
                raise ValueError("expected the sample that webdataset reads, found another")
            skip = len(sample.key) + 1
            image = next(m.name for m in group if m.name[skip:].lower() == sample.kind)
            yield Entry(start, end - start, sample.label, sample.key, image)
            where[1:] = []
        if next(streamed, None) is not None:
            raise ValueError("expected the samples that webdataset reads, found fewer")


def verify_shard(index: ShardIndex, number: int) -> None:
    """Check a whole shard against its index: SHA-256, and every sample, read by webdataset.

    Raises DataError with the shard and the key.
    """
    path = index.path(number)
    expected, found_hash = index.shards[number].sha256, sha256_of(path)
    if found_hash != expected:
        raise DataError(f"{path}: expected the SHA-256 {expected} (index), found {found_hash}")
    entries, places = list(list_shard(path)), index.samples(number)
    if len(entries) != len(places):
        raise DataError(f"{path}: expected {len(places)} samples (index), found {len(entries)}")
    for place, found in zip(places, entries, strict=True):
        wanted = index.entry(place)
        if found[:4] != wanted[:4]:
            raise DataError(
                f"{index.describe(place)}: expected {_in_words(wanted)} (index), "
                f"found {_in_words(found)}"
            )


def _in_words(entry: Entry) -> str:
    return (
        f"class {entry.label} under the key {entry.key!r} in {entry.length:,} bytes from byte "
        f"{entry.offset:,} on"
    )
