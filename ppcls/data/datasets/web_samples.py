"""Samples as WebDataset lays them out in a tar archive, through the webdataset library.

A sample is the members of one key, one after the other: `KEY.jpg`, `KEY.cls` and what else there
may be, such as `KEY.json`. KEY ends at the first dot of the name's last part. This module alone
imports webdataset (https://github.com/webdataset/webdataset, BSD-3-Clause), and takes from it the
reading of a sample's members, their grouping by key, and the writer. What it leaves alone:

- its shuffling and splitting among processes, which go by the stream: no exact epochs;
- its decoders: `.pyd`, `.pickle` and `.pth` members would be unpickled. All members stay bytes;
- its opening of addresses (`gopen`): `pipe:` runs a shell command;
- `wids`, once its reader by index: it imports PyTorch, may unpickle an `.index` file beside a
  shard, and follows negative sizes for ever.

So an index (`shard_index`) says which bytes of a shard are a sample, `tar_walk` looks at them, and
webdataset reads them.
"""

from __future__ import annotations

import io
import itertools
import re
import tarfile
from collections.abc import Iterator
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


def read_sample(archive: bytes, where: str = "shards") -> WebSample:
    """Read the one sample that a part of an archive holds.

    Raises ValueError for members that are refused, and for a sample without one image and a class.
    """
    members = list(itertools.islice(walk(archive, is_whole=False), MAX_MEMBERS + 1))
    _check_names(members)
    fields = _fields(archive, members, require_webdataset(where))
    key = fields.pop("__key__")
    kinds = sorted(IMAGE_FIELDS & fields.keys())
    if len(kinds) != 1:
        found = ", ".join(f"{key}.{kind}" for kind in kinds or sorted(fields))
        raise ValueError(f"expected one image of the key {key!r}, found {found or 'nothing'}")
    if "cls" not in fields:
        raise ValueError(f"expected {key}.cls beside {key}.{kinds[0]}, found none")
    return WebSample(key, kinds[0], fields[kinds[0]], _label(key, fields["cls"]))


def find_samples(members: Iterator[Member]) -> Iterator[list[Member]]:
    """Yield the members of one key after the other, as they lie in an archive."""
    group: list[Member] = []
    for member in members:
        if group and key_of(member.name) != key_of(group[0].name):
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


def _check_names(members: list[Member]) -> None:
    names = [member.name for member in members]
    if len(names) > MAX_MEMBERS:
        raise ValueError(f"expected at most {MAX_MEMBERS} members of a sample, found more")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"expected each member once, found {twice!r} twice")
    keys = sorted({key_of(name) for name in names})
    if len(keys) != 1:
        found = " and ".join(repr(key) for key in keys[:2]) or "nothing"
        raise ValueError(f"expected the members of one key, found {found}")


def _fields(archive: bytes, members: list[Member], library: Any) -> dict[str, Any]:
    """Let the library read the members and group them: kind ("jpg") to bytes, and "__key__"."""
    # Its address is part of a sample; names that begin with "__" are samples here like others.
    try:
        files = [
            {**found, "__url__": ""}
            for found in library.tar_file_iterator(io.BytesIO(archive), skip_meta=None)
        ]
        samples = list(library.group_by_keys(files))
    except tarfile.TarError as error:
        raise ValueError(f"expected members of a tar archive, found {error.args[0]}") from error
    read = [(found["fname"], len(found["data"])) for found in files]
    if read != [(member.name, member.size) for member in members] or len(samples) != 1:
        raise ValueError("expected the same members by every way of reading, found others")
    return {name: value for name, value in samples[0].items() if name != "__url__"}


def _label(key: str, text: bytes) -> int:
    match = _LABEL.fullmatch(text)
    if match is None:
        raise ValueError(f"{key}.cls: expected a class number, found {text[:20]!r}")
    return int(match[1])
