"""Images in WebDataset's tar shards, in any order and on any number of processes.

A folder of millions of files asks the metadata server of a cluster for each of them; shards are a
few large files. Their samples are found by an index (see `shard_index`), so the samplers, the order
and the draws are those of a folder of images, and a training is the same bit for bit.
"""

from __future__ import annotations

import functools
import os
import re
import zlib
from typing import NoReturn

from ppcls.data.datasets.base import DATASETS, ClassificationDataset, OnError, check_class_num
from ppcls.data.datasets.shard_index import INDEX_NAME, read_index
from ppcls.data.datasets.web_samples import read_sample, require_webdataset
from ppcls.utils.errors import DataError

_OPEN_SHARDS = 128  # per process; systems allow 1,024 files or more
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|pipe:")


@DATASETS.register()
class WebDataset(ClassificationDataset):
    """Shards in `shard_dir` with the index that `scripts/make_shards.py` writes.

    At start the index, its table and the size of every shard are checked; a sample, when it is
    read: all but the image's content must be what the index was made of.

    Args:
        shard_dir: folder of the shards and their index.
        index_file: name of the index there.
        class_num: at least the index's own number of classes.

    Raises:
        DataError: an address instead of a folder, no webdataset, or an index or shard that cannot
            be used, with the shard and the key.
    """

    def __init__(
        self,
        shard_dir: str,
        transform_ops: list,
        index_file: str = INDEX_NAME,
        on_error: OnError = "raise",
        seed: int = 0,
        class_num: int | None = None,
        config_path: str = "",
    ) -> None:
        super().__init__(transform_ops, on_error=on_error, seed=seed, config_path=config_path)
        check_folder(shard_dir, self.where("shard_dir"))
        require_webdataset(self.where("name"))
        path = os.path.join(shard_dir, index_file)
        self.index = read_index(path)
        self.labels = self.index.labels
        self.class_num = check_class_num(self.index.class_num, class_num, path)
        self.class_names = self.index.class_names
        paths = [self.index.path(number) for number in range(len(self.index.shards))]
        self._files = functools.lru_cache(_OPEN_SHARDS)(lambda number: _File(paths[number]))

    def read(self, index: int) -> bytes:
        offset, length, start, size, crc, _ = self.index.numbers[index].tolist()
        archive = self._files(self.index.shard_of(index)).read(offset, length)
        end = start + size
        if zlib.crc32(archive[end:], zlib.crc32(archive[:start])) != crc:
            self._refuse(index, archive)
        return archive[start:end]

    def _refuse(self, index: int, archive: bytes) -> NoReturn:
        """Raise ValueError saying what about a sample is not as the index says."""
        sample = read_sample(archive)
        key, label = self.index.keys[index], self.labels[index]
        if sample.key != key or sample.label != label:
            raise ValueError(
                f"expected the key {key!r} of class {label} (index), "
                f"found {sample.key!r} of class {sample.label}"
            )
        raise ValueError("expected the members the index was made of (CRC-32), found others")

    def describe(self, index: int) -> str:
        return self.index.describe(index)

    def sample_name(self, index: int) -> str:
        return os.path.basename(self.index.names[index])


class _File:
    """A file open for reading at any place, by any thread, and by processes forked later.

    It is closed with the last reference to it, which a reader in another thread may hold.
    """

    def __init__(self, path: str) -> None:
        self._descriptor = -1
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def read(self, offset: int, length: int) -> bytes:
        data = os.pread(self._descriptor, length, offset)
        if len(data) < length:
            raise ValueError(
                f"expected {length:,} bytes from byte {offset:,} on, found {len(data):,}: "
                "the shard is cut short"
            )
        return data


def check_folder(path: str, where: str) -> None:
    """Raise DataError unless `path` is a folder of this machine."""
    if _ADDRESS.match(path):
        raise DataError(
            f"{where}: expected a folder, got the address {path!r}; copy the shards, or mount them"
        )
    if not os.path.isdir(path):
        raise DataError(f"{where}: expected a folder of shards, got {path!r}")
