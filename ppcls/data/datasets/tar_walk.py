"""The members of a tar archive in memory or mapped, each header checked before anyone reads on.

Neither webdataset nor the standard library's tarfile says where a member lies while it streams, and
tarfile on Python 3.11 follows a negative size for ever (CVE-2025-8194). So this walk finds members
for an index, and looks at what tarfile is about to read: what passes here means the same to it.
Understood are files and folders in ustar, GNU or pax headers; links, devices, sparse files,
compression, sizes that are no octal digits and names that leave the archive are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from mmap import mmap
from typing import NamedTuple

from ppcls.data.datasets.tar_reader import (
    BLOCK,
    FILES,
    FOLDER,
    MAX_EXTENSION_BYTES,
    is_header,
    raw_name,
    raw_size,
)

_PAX, _PAX_ALL, _LONG_NAME = b"x", b"g", b"L"
_PAX_RECORD = re.compile(rb"([1-9][0-9]{0,5}) ([^=\n]+)=")
# How tarfile's streams recognise gzip, bzip2, xz, lzma and (Python 3.14) zstd.
_COMPRESSED = re.compile(rb"\x1f\x8b|BZh.1AY&SY|\xfd7zXZ|\]\0\0|\x28\xb5\x2f\xfd", re.DOTALL)


class Member(NamedTuple):
    """A file in an archive.

    start: byte where its first header begins, an extended one included.
    data, size: where its content begins, and its bytes.
    """

    name: str
    start: int
    data: int
    size: int

    @property
    def end(self) -> int:
        """Byte after its content, padded to whole blocks."""
        return self.data + self.size + -self.size % BLOCK


def walk(archive: bytes | mmap, *, is_whole: bool) -> Iterator[Member]:
    """Yield the files of an archive in order.

    is_whole: it must end as an archive does, in zeros and nothing after them; otherwise it is a
        part of one, of whole members only.

    Raises ValueError, as its members are reached, for what is damaged or refused.
    """
    if _COMPRESSED.match(archive[:10]):
        raise ValueError("expected a plain tar archive, found a compressed one")
    position, first, name = 0, 0, b""
    while position < len(archive):
        block = archive[position : position + BLOCK]
        if is_whole and not any(block):
            _check_end(archive, position)
            return
        if not is_header(block):
            raise ValueError(f"expected a tar header at byte {position:,}, found other data")
        kind, size = block[156:157], _size(block)
        data = position + BLOCK
        position = data + size + -size % BLOCK
        if position > len(archive):
            raise ValueError(
                f"expected {size:,} bytes of {_text(raw_name(block))!r} from byte {data:,} on, "
                f"found {max(0, len(archive) - data):,}: it is cut short"
            )
        if kind in (_PAX, _PAX_ALL, _LONG_NAME):
            name = _longer_name(kind, archive[data : data + size], name)
            continue
        name = name or raw_name(block)
        if kind in FILES:
            yield Member(_file_name(name), first, data, size)
        elif kind != FOLDER:
            raise ValueError(f"{_text(name)}: expected a file or a folder, found type {kind!r}")
        first, name = position, b""
    if is_whole:
        raise ValueError("expected the end of the archive (zeros), found none: it is cut short")
    if name:
        raise ValueError(f"{_text(name)}: expected a file after its long name, found none")


def _size(block: bytes) -> int:
    size, kind = raw_size(block), block[156:157]
    if size is None:
        raise ValueError(
            f"{_text(raw_name(block))}: expected a size in octal digits, found {block[124:136]!r}"
        )
    if kind in (_PAX, _PAX_ALL, _LONG_NAME) and size > MAX_EXTENSION_BYTES:
        raise ValueError(
            f"expected an extended header of at most {MAX_EXTENSION_BYTES:,} bytes, found {size:,}"
        )
    return 0 if kind == FOLDER else size


def _longer_name(kind: bytes, content: bytes, name: bytes) -> bytes:
    """The next member's name, where an extended header gives one, else `name`."""
    found = content.split(b"\0")[0] if kind == _LONG_NAME else _pax_path(content)
    if found and (name or kind == _PAX_ALL):
        raise ValueError(f"{_text(found)}: expected one name of a member, found another")
    return found or name


def _pax_path(content: bytes) -> bytes:
    """The name in the records `LENGTH KEY=VALUE` of a pax header; empty when it has none."""
    path, position = b"", 0
    while position < len(content):
        match = _PAX_RECORD.match(content, position)
        end = position + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(content) or content[end - 1] != 0x0A:
            raise ValueError("expected records 'LENGTH KEY=VALUE' in a pax header, found others")
        key = match[2]
        if key in (b"size", b"hdrcharset") or key.startswith(b"GNU.sparse"):
            raise ValueError(f"expected a pax header without {_text(key)!r}, found one")
        if key == b"path":
            path = content[match.end() : end - 1]
        position = end
    return path


def _check_end(archive: bytes | mmap, position: int) -> None:
    """Only zeros from `position` on: readers stop there, and would miss what follows."""
    for start in range(position, len(archive), 1 << 20):
        if any(archive[start : start + (1 << 20)]):
            raise ValueError(f"expected zeros from byte {position:,} to the end, found other data")


def _file_name(raw: bytes) -> str:
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"expected a name in UTF-8, found {raw!r}") from error
    parts = name.split("/")
    if not name.isprintable() or not parts[-1] or not parts[0] or ".." in parts or "\\" in name:
        raise ValueError(f"expected a plain relative name of a member, found {name!r}")
    return name


def _text(raw: bytes) -> str:
    """A name that is safe to show."""
    return raw.decode("latin-1").encode("unicode_escape").decode()
