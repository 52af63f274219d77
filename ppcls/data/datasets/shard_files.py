"""Whole shards: written, listed and verified, as `scripts/make_shards.py` does."""

from __future__ import annotations

import hashlib
import io
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ppcls.data.datasets.base import ClassificationDataset, naming
from ppcls.data.datasets.folder import IMAGE_SUFFIXES
from ppcls.data.datasets.shard_index import Entry, Shard, ShardIndex
from ppcls.data.datasets.tar_reader import BLOCK
from ppcls.data.datasets.tar_walk import Member, walk
from ppcls.data.datasets.web_samples import (
    WebSample,
    find_samples,
    open_writer,
    read_sample,
    stream_samples,
)
from ppcls.utils import fileio
from ppcls.utils.errors import DataError, UserError
from ppcls.utils.fileio import map_file, to_json

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
        self._names: list[str] = []  # of its samples

    def write(self, source: Source) -> None:
        if self._open is not None and self._is_full(source):
            self.finish()
        if self._open is None:
            self._open = _OpenShard(self.folder / f"{self.prefix}-{len(self.shards):06d}.tar")
        kind = source.name.rpartition(".")[2].lower()
        fields = {kind: source.image, "cls": str(source.label).encode()}
        if self.with_names:
            fields["json"] = to_json({"name": source.name}).encode("utf-8", "backslashreplace")
        self._open.write({"__key__": f"{len(self.entries) + len(self._names):09d}", **fields})
        self._names.append(source.name)

    def _is_full(self, source: Source) -> bool:
        assert self._open is not None
        size = self._open.size + len(source.image) + _OVERHEAD
        return len(self._names) >= self.limits.samples or size > self.limits.size

    def finish(self) -> None:
        """Finish the shard begun last: read it back, for the table."""
        if self._open is not None:
            path = self._open.path
            file = self._open.close()
            found = list(list_shard(str(path)))
            for entry, name in zip(found, self._names, strict=True):
                self.entries.append(entry._replace(name=name))
            self.shards.append(Shard(path.name, len(found), file.size, file.sha256.hexdigest()))
            self._open, self._names = None, []


class _OpenShard:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = _HashingFile(path)
        self._writer = open_writer(self._file)
        self.write = self._writer.write

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self._writer.tarstream.offset

    def close(self) -> _HashingFile:
        self._writer.close()
        self._file.close()
        return self._file


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
    """SHA-256 of a shard. Raises DataError when it cannot be read."""
    try:
        return fileio.sha256_of(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


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
            yield _entry(group, sample, archive[start:end])
            where[1:] = []
        if next(streamed, None) is not None:
            raise ValueError("expected the samples that webdataset reads, found fewer")


def _entry(group: list[Member], sample: WebSample, archive: bytes) -> Entry:
    skip = len(sample.key) + 1
    image = next(m for m in group if m.name[skip:].lower() == sample.kind)
    start = image.data - group[0].start
    crc = zlib.crc32(archive[start + image.size :], zlib.crc32(archive[:start]))
    place = (group[0].start, len(archive), start, image.size, crc)
    return Entry(*place, sample.label, sample.key, image.name)


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
        if found[:-1] != wanted[:-1]:
            raise DataError(
                f"{index.describe(place)}: expected {_in_words(wanted)} (index), "
                f"found {_in_words(found)}"
            )


def _in_words(entry: Entry) -> str:
    return (
        f"class {entry.label} under the key {entry.key!r} in {entry.length:,} bytes from byte "
        f"{entry.offset:,} on (CRC-32 {entry.crc:08x})"
    )
