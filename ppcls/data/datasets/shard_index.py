"""The index of a folder of shards: which bytes of which file are which sample.

    index.json  the shards in order, as the index of webdataset's `wids` lists them, with their
                SHA-256, the classes, and the SHA-256 of the table
    index.tsv   a line for each sample in order, its columns those of `Entry`

A sample is read without looking at its headers one by one: they were looked at when the index was
made, and the CRC-32 of all but the image says that they, and the class, are still the same.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
import os
import re
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ppcls.data.datasets.lists import PathTable
from ppcls.data.datasets.tar_reader import BLOCK
from ppcls.data.datasets.web_samples import MAX_SAMPLE_BYTES
from ppcls.utils.errors import DataError, UserError
from ppcls.utils.fileio import atomic_write, atomic_write_text, map_file, to_json

INDEX_NAME = "index.json"
KIND = "wids-shard-index-v1"
MAX_INDEX_BYTES = 64 << 20
MAX_TABLE_BYTES = 4 << 30

_SHA256 = re.compile(r"[0-9a-f]{64}")
_LINE = re.compile(rb"([0-9]{1,15})\t" * 5 + rb"([0-9]{1,9})\t([^\t]+)\t([^\t]+)")


@dataclass(frozen=True)
class Shard:
    """A file of the index: its name beside the index, its samples, its bytes and their SHA-256."""

    url: str
    nsamples: int
    filesize: int
    sha256: str


class Entry(NamedTuple):
    """A line of the table.

    offset, length: of all members of the sample and their headers, in the shard.
    start, size: of the image's content, from `offset` on.
    crc: CRC-32 of all but the image's content.
    name: the file's before it went into a shard; for people, and for `ImageDataset.digest`.
    """

    offset: int
    length: int
    start: int
    size: int
    crc: int
    label: int
    key: str
    name: str


_NUMBERS = len(Entry._fields) - 2  # columns before the texts


class Table(NamedTuple):
    """The lines of the table: numbers [n, 6] int64, n keys, and n names."""

    numbers: np.ndarray
    keys: PathTable
    names: PathTable

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> Table:
        numbers = np.array([entry[:_NUMBERS] for entry in entries], np.int64)
        keys, names = (PathTable(entry[column] for entry in entries) for column in (-2, -1))
        return cls(numbers.reshape(-1, _NUMBERS), keys, names)


class ShardIndex:
    """Where samples are.

    Attributes:
        folder: of the shards.
        shards: in order.
        class_num: labels are 0..class_num-1.
        class_names: one per class, or None.
        numbers: [n, 6] int64, the columns of Entry before the texts; labels: [n] int64 of them.
        keys, names: n texts.
    """

    def __init__(
        self,
        folder: Path,
        shards: list[Shard],
        class_num: int,
        class_names: list[str] | None,
        table: Table,
    ) -> None:
        self.folder, self.shards = folder, shards
        self.class_num, self.class_names = class_num, class_names
        self.numbers, self.keys, self.names = table
        self.labels = np.ascontiguousarray(table.numbers[:, -1])
        self.ends = list(itertools.accumulate(shard.nsamples for shard in shards))

    def __len__(self) -> int:
        return len(self.labels)

    def shard_of(self, index: int) -> int:
        """Number of the shard that holds a sample."""
        return bisect.bisect_right(self.ends, index)

    def path(self, number: int) -> str:
        return os.path.join(self.folder, self.shards[number].url)

    def describe(self, index: int) -> str:
        """Shard, key and name of a sample."""
        key, name = self.keys[index], self.names[index]
        more = "" if name.startswith(f"{key}.") else f" ({name})"
        return f"{self.path(self.shard_of(index))}: {key}{more}"

    def samples(self, number: int) -> range:
        """Places of a shard's samples."""
        end = self.ends[number]
        return range(end - self.shards[number].nsamples, end)

    def entry(self, index: int) -> Entry:
        return Entry(*self.numbers[index].tolist(), self.keys[index], self.names[index])

    def check(self) -> None:
        """Check what is cheap: every shard is there with its size, and every line makes sense.

        Raises DataError with the shard and the key.
        """
        for number, shard in enumerate(self.shards):
            path = self.path(number)
            found = _size_of(path)
            if found != shard.filesize:
                what = "it is cut short" if found < shard.filesize else "it was changed"
                raise DataError(
                    f"{path}: expected {shard.filesize:,} bytes (index), found {found:,}: {what}"
                )
            self._check_ranges(number)
        wrong = np.flatnonzero((self.labels < 0) | (self.labels >= self.class_num))
        if len(wrong):
            raise DataError(
                f"{self.describe(wrong[0])}: expected a class from 0 to {self.class_num - 1} "
                f"(class_num of the index), found {self.labels[wrong[0]]}"
            )
        self._check_keys()

    def _check_ranges(self, number: int) -> None:
        places = self.samples(number)
        offsets, lengths, starts, sizes, *_ = self.numbers[places.start : places.stop].T
        ends = offsets + lengths
        before = np.concatenate([[0], ends[:-1]])
        is_wrong = (offsets < before) | (ends > self.shards[number].filesize)
        is_wrong |= (offsets % BLOCK != 0) | (lengths % BLOCK != 0) | (lengths < 2 * BLOCK)
        is_wrong |= (starts < BLOCK) | (starts + sizes > lengths) | (lengths > MAX_SAMPLE_BYTES)
        wrong = np.flatnonzero(is_wrong)
        if len(wrong):
            first = int(wrong[0])
            raise DataError(
                f"{self.describe(places[first])}: expected bytes of the shard after those of the "
                f"sample before, at most {MAX_SAMPLE_BYTES:,}, found {lengths[first]:,} from byte "
                f"{offsets[first]:,} on"
            )

    def _check_keys(self) -> None:
        if len({self.keys[index] for index in range(len(self))}) == len(self):
            return
        known: dict[str, int] = {}
        for index in range(len(self)):
            first = known.setdefault(self.keys[index], index)
            if first != index:
                shard = self.path(self.shard_of(first))
                raise DataError(
                    f"{self.describe(index)}: expected each key once, found it in {shard} too"
                )


def write_index(
    folder: Path,
    shards: list[Shard],
    entries: Iterable[Entry],
    class_num: int,
    class_names: list[str] | None = None,
    *,
    name: str = INDEX_NAME,
) -> None:
    """Write the table, then the index. Raises UserError where nothing can be written."""
    table = b"".join(_line(entry) for entry in entries)
    table_name = str(Path(name).with_suffix(".tsv"))
    index = {
        "__kind__": KIND,
        "wids_version": 1,
        "shardlist": [asdict(shard) for shard in shards],
        "table": {"url": table_name, "sha256": hashlib.sha256(table).hexdigest()},
        "class_num": class_num,
        "class_names": class_names,
    }
    atomic_write(folder / table_name, lambda file: file.write(table))
    atomic_write_text(folder / name, to_json(index, indent=1) + "\n")


def _line(entry: Entry) -> bytes:
    texts = [str(value) for value in entry]
    if any(ord(letter) < 32 for text in texts for letter in text):
        raise DataError(f"{entry.name!r}: expected a name without control characters")
    return os.fsencode("\t".join(texts)) + b"\n"


def read_index(path: str | Path) -> ShardIndex:
    """Read an index and its table, and check them (see ShardIndex.check).

    Raises DataError for files that are missing, damaged, or not each other's.
    """
    path = Path(path)
    index = _read_json(path)
    shards = _shards_of(index, path)
    class_num, names = _classes_of(index, path)
    table = _read_table(index, path)
    expected, lines = sum(shard.nsamples for shard in shards), len(table.numbers)
    if lines != expected:
        raise DataError(f"{path}: expected {expected} samples in its table, found {lines}")
    found = ShardIndex(path.parent, shards, class_num, names, table)
    found.check()
    return found


def _read_json(path: Path) -> dict[str, Any]:
    if path.parent.is_dir() and not path.exists():
        raise DataError(
            f"{path}: no such index; make the shards with scripts/make_shards.py, or with its "
            "option --index an index of shards that are there"
        )
    try:
        index = json.loads(bytes(_map(path, MAX_INDEX_BYTES)[:]))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected an index in JSON, found {error}") from error
    version = index.get("wids_version") if isinstance(index, dict) else None
    if version != 1 or not isinstance(index.get("shardlist"), list) or not index["shardlist"]:
        raise DataError(
            f"{path}: expected an index of shards with wids_version 1 and a shardlist, found others"
        )
    return index


def _shards_of(index: dict[str, Any], path: Path) -> list[Shard]:
    shards = [_shard(item, f"{path}: shardlist[{i}]") for i, item in enumerate(index["shardlist"])]
    names = [shard.url for shard in shards]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{path}: expected each shard once, found {twice!r} twice")
    return shards


def _shard(item: Any, where: str) -> Shard:
    item = item if isinstance(item, dict) else {}
    url = file_name(item.get("url"), f"{where}.url")
    for key in ("nsamples", "filesize"):
        if type(item.get(key)) is not int or not 0 < item[key] < 1 << 50:
            raise DataError(f"{where}.{key}: expected a number above 0, found {item.get(key)!r}")
    return Shard(url, item["nsamples"], item["filesize"], _sha256(item, where))


def file_name(value: Any, where: str) -> str:
    """Return the name of a file beside the index. Raises DataError for anything else."""
    if isinstance(value, str) and ("://" in value or value.startswith("pipe:")):
        raise DataError(f"{where}: expected a file beside the index, found the address {value!r}")
    is_plain = isinstance(value, str) and value.isprintable() and value not in ("", ".", "..")
    if not is_plain or "/" in value or "\\" in value:
        raise DataError(f"{where}: expected a file beside the index, found {value!r}")
    return value


def _sha256(item: dict[str, Any], where: str) -> str:
    found = item.get("sha256")
    if not isinstance(found, str) or not _SHA256.fullmatch(found):
        raise DataError(f"{where}.sha256: expected 64 hexadecimal digits, found {found!r}")
    return found


def _classes_of(index: dict[str, Any], path: Path) -> tuple[int, list[str] | None]:
    class_num, names = index.get("class_num"), index.get("class_names")
    if type(class_num) is not int or not 0 < class_num < 1 << 31:
        raise DataError(f"{path}: class_num: expected a number above 0, found {class_num!r}")
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if names is not None and (not is_list or len(names) != class_num):
        raise DataError(f"{path}: class_names: expected {class_num} texts or null, found others")
    return class_num, names


def _read_table(index: dict[str, Any], path: Path) -> Table:
    item = index.get("table")
    if not isinstance(item, dict):
        raise DataError(
            f"{path}: expected a table of samples, found none; scripts/make_shards.py --index "
            "makes an index with one"
        )
    table = path.parent / file_name(item.get("url"), f"{path}: table.url")
    data = bytes(_map(table, MAX_TABLE_BYTES)[:])
    if hashlib.sha256(data).hexdigest() != _sha256(item, f"{path}: table"):
        raise DataError(f"{table}: expected the SHA-256 of {path.name}, found another: it changed")
    return _parse_table(data, str(table))


def _parse_table(data: bytes, where: str) -> Table:
    """Columns at once: a million lines as objects of their own would take a gigabyte."""
    numbers: array[int] = array("q")
    keys, names = [], []
    for number, line in enumerate(data.splitlines(), 1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise DataError(
                f"{where}:{number}: expected {', '.join(Entry._fields)}, found {line[:80]!r}"
            )
        *values, key, name = match.groups()
        numbers.extend(map(int, values))
        keys.append(os.fsdecode(key))
        names.append(os.fsdecode(name))
    columns = np.frombuffer(numbers, np.int64).reshape(-1, _NUMBERS)
    return Table(columns, PathTable(keys), PathTable(names))


def _map(path: Path, max_bytes: int) -> Any:
    try:
        return map_file(path, max_bytes)
    except UserError as error:
        raise DataError(str(error)) from error


def _size_of(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise DataError(f"{path}: expected a shard of the index, found {error.strerror}") from error
