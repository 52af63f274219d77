"""Reading a few members of a small tar archive, plain or gzip-compressed, that may be hostile.

The standard library's tarfile follows a negative size for ever (CVE-2025-8194), takes an extended
header of any size into memory and walks any number of members. This reader knows what archives of
data sets need, files and folders in ustar, GNU or pax headers, and refuses the rest early.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from ppcls.utils.errors import DataError, UserError
from ppcls.utils.fileio import map_file

MAX_ARCHIVE_BYTES = 256 << 20
MAX_TOTAL_BYTES = 400 << 20
MAX_MEMBER_BYTES = 200 << 20  # also all wanted members together; CIFAR-100's train is 155 MB
MAX_EXTENSION_BYTES = 64 << 10
MAX_MEMBERS = 64

BLOCK = 512
_CHUNK = 1 << 18
_GZIP = b"\x1f\x8b"
_OCTAL = re.compile(rb" *([0-7]*)[ \0]*")
FILES, FOLDER = (b"0", b"\0"), b"5"
_EXTENSIONS = (b"x", b"g", b"L")  # times, owners, long names: nothing that is needed here


@dataclass(frozen=True)
class Header:
    name: str
    size: int
    kind: bytes


def read_members(
    path: str, wanted: Collection[str], where: str
) -> tuple[dict[str, bytearray], list[str]]:
    """Return the contents of the wanted members, and the names met until all were found.

    A leading "./" of a name is ignored. `where` starts every error. Raises DataError for a file
    that is missing, damaged, or larger in any respect than the limits above.
    """
    stream = _Stream(_open(path, where), where)
    contents: dict[str, bytearray] = {}
    names: list[str] = []
    for header in _headers(stream):
        if header.kind not in _EXTENSIONS:
            names.append(header.name)
        name = header.name.removeprefix("./")
        if header.kind in FILES and name in wanted:
            if header.size + sum(map(len, contents.values())) > MAX_MEMBER_BYTES:
                raise stream.error(f"expected at most {MAX_MEMBER_BYTES:,} bytes to read", name)
            contents[name] = stream.read(header.size)
            if len(contents) == len(wanted):
                break
        else:
            stream.skip(header.size)
        stream.skip(-header.size % BLOCK)
    return contents, names


class _Stream:
    """The decompressed archive, read forwards only."""

    def __init__(self, pieces: Iterator[bytes], where: str) -> None:
        self.pieces = pieces
        self.where = where
        self.pending = b""
        self.position = 0

    def error(self, expected: str, name: str = "") -> DataError:
        return DataError(f"{self.where}: {name}{': ' if name else ''}{expected}")

    def chunks(self, count: int) -> Iterator[bytes]:
        """Yield the next `count` bytes in pieces, fewer where the archive ends."""
        while count:
            self.pending = self.pending or next(self.pieces, b"")
            if not self.pending:
                return
            part, self.pending = self.pending[:count], self.pending[count:]
            self.position += len(part)
            count -= len(part)
            yield part

    def read(self, count: int) -> bytearray:
        content = bytearray(count)
        end = 0
        for part in self.chunks(count):
            content[end : end + len(part)] = part
            end += len(part)
        self._check_length(count, end)
        return content

    def skip(self, count: int) -> None:
        self._check_length(count, sum(map(len, self.chunks(count))))

    def _check_length(self, count: int, found: int) -> None:
        if found < count:
            raise self.error(f"expected {count:,} more bytes, found {found:,}: it is cut short")


def _open(path: str, where: str) -> Iterator[bytes]:
    try:
        data = map_file(path, MAX_ARCHIVE_BYTES)
    except UserError as error:
        reason = getattr(error.__cause__, "strerror", None)
        raise DataError(f"{where}: {reason or str(error).removeprefix(f'{path}: ')}") from error
    if data[:2] == _GZIP:
        return _inflate(data, where)
    return (data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK))


def _inflate(data: Any, where: str) -> Iterator[bytes]:
    """Yield the content of one gzip member in pieces of at most `_CHUNK` bytes."""
    inflater = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    produced = 0
    for start in range(0, len(data), _CHUNK):
        # Blocks without content cost time yet count towards no other limit.
        if start > produced + _CHUNK:
            raise DataError(f"{where}: expected gzip data, found {produced:,} bytes in {start:,}")
        tail, full = data[start : start + _CHUNK], False
        while tail or full:
            try:
                piece = inflater.decompress(tail, _CHUNK)
            except zlib.error as error:
                raise DataError(f"{where}: expected gzip data, found {error}") from error
            produced += len(piece)
            if piece:
                yield piece
            if inflater.eof:
                return
            tail, full = inflater.unconsumed_tail, len(piece) == _CHUNK
    raise DataError(f"{where}: expected the end of the gzip data, found it cut short")


def _headers(stream: _Stream) -> Iterator[Header]:
    """Yield the headers, each checked; the caller moves the stream past the member's content."""
    for _ in range(MAX_MEMBERS):
        start = stream.position
        block = b"".join(stream.chunks(BLOCK))
        if start and (not block or not any(block)):
            return
        header = _parse(block, stream, start)
        limit = MAX_EXTENSION_BYTES if header.kind in _EXTENSIONS else MAX_MEMBER_BYTES
        if header.size > limit:
            raise stream.error(
                f"expected at most {limit:,} bytes, found {header.size:,}", header.name
            )
        total = stream.position + header.size
        if total > MAX_TOTAL_BYTES:
            raise stream.error(
                f"expected at most {MAX_TOTAL_BYTES:,} bytes, found {total:,} or more"
            )
        yield header
    if any(b"".join(stream.chunks(BLOCK))):
        raise stream.error(f"expected at most {MAX_MEMBERS} members, found more")


def _parse(block: bytes, stream: _Stream, start: int) -> Header:
    if not is_header(block):
        expected = f"a tar header at byte {start:,}" if start else "a tar or tar.gz archive"
        raise stream.error(f"expected {expected}, found other data")
    name = _text(raw_name(block))
    kind = block[156:157]
    if kind not in (*FILES, FOLDER, *_EXTENSIONS):
        raise stream.error(f"expected a file or a folder, found type {kind!r}", name)
    size = raw_size(block)
    if size is None:
        raise stream.error(f"expected a size in octal digits, found {block[124:136]!r}", name)
    return Header(name, 0 if kind == FOLDER else size, kind)


def is_header(block: bytes) -> bool:
    """Whether a block of 512 bytes has a tar header's checksum."""
    if len(block) < BLOCK:
        return False
    return _octal(block[148:156]) == sum(block) - sum(block[148:156]) + 8 * ord(" ")


def raw_name(block: bytes) -> bytes:
    """The name in a header, with its ustar prefix."""
    name = block[:100].split(b"\0")[0]
    if block[257:263] == b"ustar\0" and block[345]:
        name = block[345:500].split(b"\0")[0] + b"/" + name
    return name


def raw_size(block: bytes) -> int | None:
    """The size in a header; None for what is not octal digits, such as a negative number."""
    return _octal(block[124:136])


def _octal(field: bytes) -> int | None:
    match = _OCTAL.fullmatch(field)
    return int(match[1] or b"0", 8) if match else None


def _text(field: bytes) -> str:
    """Return a name that is safe to show: no line breaks, no control characters."""
    return field.decode("latin-1").encode("unicode_escape").decode()
