"""Samples as WebDataset lays them out in a tar archive, through the webdataset library.

A sample is the members of one key, one after the other: `KEY.jpg`, `KEY.cls` and what else there
may be, such as `KEY.json`. KEY ends at the first dot of the name's last part. This module alone
imports webdataset (https://github.com/webdataset/webdataset, BSD-3-Clause). The library writes
shards, reads whole ones when they are indexed or verified, and says which members are a sample.
What it leaves alone:

- its shuffling and splitting among processes, which go by the stream: no exact epochs;
- its reader where one sample is wanted: it takes a stream, and opening one for each image takes
  more time than opening the image's own file (`tools/benchmark.py shards`). An image's bytes are
  read where the index says (`shard_index`), which lists what the library has read;
- its decoders: `.pyd`, `.pickle` and `.pth` members would be unpickled. All members stay bytes;
- its opening of addresses (`gopen`): `pipe:` runs a shell command;
- `wids`, once its reader by index: it imports PyTorch, may unpickle an `.index` file beside a
  shard, and follows negative sizes for ever.

`tar_walk` looks at every header first, whoever reads on.
"""

from __future__ import annotations

import itertools
import re
import tarfile
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple

from ppcls.data.datasets.folder import IMAGE_SUFFIXES
from ppcls.data.datasets.tar_walk import Member, walk
from ppcls.utils.errors import DataError

MAX_SAMPLE_BYTES = 256 << 20
MAX_MEMBERS = 64  # of a sample
IMAGE_FIELDS = frozenset(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)

_LABEL = re.compile(rb"\s*([0-9]{1,9})\s*")


class WebSample(NamedTuple):
    """A key, the bytes of its image with their kind ("jpg"), and its class."""

    key: str
    kind: str
    image: bytes
    label: int


def require_webdataset(where: str) -> Any:
    """Return the library's module that reads archives. Raises DataError when it is missing."""
    try:
        import webdataset.tariterators
    except ImportError as error:
        raise DataError(
            f"{where}: reading shards needs the package webdataset: pip install -e '.[shards]'"
        ) from error
    return webdataset.tariterators


def read_sample(archive: bytes) -> WebSample:
    """Read the one sample that a part of an archive holds.

    Raises ValueError for members that are refused, and for a sample without one image and a class.
    """
    members = list(itertools.islice(walk(archive, is_whole=False), MAX_MEMBERS + 1))
    if len(members) > MAX_MEMBERS:
        raise ValueError(f"expected at most {MAX_MEMBERS} members of a sample, found more")
    names = [member.name for member in members]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"expected each member once, found {twice!r} twice")
    files = (
        {"fname": name, "data": archive[start : start + size]} for name, _, start, size in members
    )
    samples = list(_group(files))
    if len(samples) != 1:
        keys = " and ".join(repr(sample["__key__"]) for sample in samples[:2])
        raise ValueError(f"expected members of one key, found {keys or ', '.join(names)}")
    return _sample(samples[0])


def stream_samples(file: BinaryIO) -> Iterator[WebSample]:
    """Read a whole archive with the library's own reader, after `tar_walk` has passed its members.

    Raises ValueError for what the library does not read.
    """
    library = require_webdataset("shards")
    try:
        # By default names that begin with "__" would be left out.
        for fields in _group(library.tar_file_iterator(file, skip_meta=None)):
            yield _sample(fields)
    except tarfile.TarError as error:
        raise ValueError(f"expected members of a tar archive, found {error.args[0]}") from error


def _group(files: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Let the library group members by key: kind ("jpg") to bytes, and "__key__"."""
    library = require_webdataset("shards")
    return library.group_by_keys({**file, "__url__": ""} for file in files)


def _sample(fields: dict[str, Any]) -> WebSample:
    key = fields["__key__"]
    kinds = sorted(IMAGE_FIELDS & fields.keys())
    if len(kinds) != 1:
        names = [f"{key}.{kind}" for kind in kinds or sorted(fields) if kind[0] != "_"]
        raise ValueError(f"expected one image of the key {key!r}, found {', '.join(names)}")
    if "cls" not in fields:
        raise ValueError(f"expected {key}.cls beside {key}.{kinds[0]}, found none")
    return WebSample(key, kinds[0], fields[kinds[0]], _label(key, fields["cls"]))


def find_samples(members: Iterator[Member]) -> Iterator[list[Member]]:
    """Yield the members of one key after the other, as they lie in an archive."""
    group: list[Member] = []
    key = ""
    for member in members:
        before, key = key, key_of(member.name)
        if group and key != before:
            yield group
            group = []
        group.append(member)
    if group:
        yield group


def key_of(name: str) -> str:
    """The key of a member's name. Raises ValueError for a name that has none."""
    key, _ = require_webdataset(name).base_plus_ext(name)
    if key is None:
        raise ValueError(f"expected a member named KEY.SUFFIX, found {name!r}")
    return key


def open_writer(file: BinaryIO) -> Any:
    """Return the library's writer of samples into `file`: the same samples, the same bytes.

    `writer.tarstream.offset` says how many bytes are written.
    """
    require_webdataset("shards")
    import webdataset

    options: dict[str, Any] = {"user": "", "group": "", "mode": 0o444, "mtime": 0}
    return webdataset.TarWriter(file, encoder=False, compress=False, **options)


def _label(key: str, text: bytes) -> int:
    match = _LABEL.fullmatch(text)
    if match is None:
        raise ValueError(f"{key}.cls: expected a class number, found {text[:20]!r}")
    return int(match[1])
