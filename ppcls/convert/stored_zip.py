"""A reader for the uncompressed zip archives PyTorch writes, strict about every offset.

The standard library's `zipfile` trusts the directory of an archive more than is good for files from
anywhere: entries may overlap, and a directory of millions of entries costs gigabytes. Here entries
are stored (never compressed), lie one after the other, and are views into the file.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from ppcls.utils.safe_pickle import UnsafeFileError
from ppcls.utils.safe_pickle_types import shorten

MAX_ENTRIES = 200_000
_END, _END64, _LOCATOR64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_ABSENT = 0xFFFFFFFF  # the real value is in the zip64 extra field


class Entry(NamedTuple):
    name: str
    header: int  # offset of the local header
    start: int  # offset of the data
    size: int
    crc: int


class StoredZip:
    """The entries of an archive in `data`, by name. Raises UnsafeFileError for anything unusual."""

    def __init__(self, data: Any, where: str) -> None:
        self.data = memoryview(data)
        self.where = where
        try:
            count, start, end = self._find_directory()
            self.entries = {entry.name: entry for entry in self._entries(count, start, end)}
        except (struct.error, IndexError, ValueError) as error:
            raise self._refuse("its directory is damaged or cut short") from error
        if len(self.entries) != count:
            raise self._refuse("its directory names an entry twice")
        self._check_order(start)
        self._checked: set[str] = set()

    def read(self, name: str) -> memoryview:
        """Return the data of an entry, after comparing its checksum once."""
        entry = self.entries.get(name)
        if entry is None:
            raise self._refuse(f"it has no entry {shorten(name)}")
        part = self.data[entry.start : entry.start + entry.size]
        if name not in self._checked and zlib.crc32(part) != entry.crc:
            raise self._refuse(f"the checksum of {shorten(name)} does not match its data")
        self._checked.add(name)
        return part

    def _refuse(self, reason: str) -> UnsafeFileError:
        return UnsafeFileError(f"{self.where}: cannot be read as a zip archive: {reason}")

    def _find_directory(self) -> tuple[int, int, int]:
        """Return the number of entries and the span of the central directory."""
        tail_start = max(0, len(self.data) - 22 - 65535)
        tail = bytes(self.data[tail_start:])
        found = tail.rfind(_END)
        if found < 0:
            raise self._refuse("its end is missing, so it is cut short")
        end = tail_start + found
        count, size, start, comment = struct.unpack("<10xHIIH", self._slice(end, 22))
        if end + 22 + comment != len(self.data):
            raise self._refuse("its end is cut short, or followed by something else")
        stop = end
        if end >= 20 and self._slice(end - 20, 4) == _LOCATOR64:
            stop = struct.unpack("<Q", self._slice(end - 12, 8))[0]
            if self._slice(stop, 4) != _END64:
                raise self._refuse("its zip64 end is not where it should be")
            count, size, start = struct.unpack("<3Q", self._slice(stop + 32, 24))
        if count > MAX_ENTRIES or start + size != stop:
            raise self._refuse("its directory is not where it should be, or too long")
        return count, start, stop

    def _slice(self, start: int, size: int) -> bytes:
        return bytes(self.data[start : start + size])

    def _entries(self, count: int, position: int, end: int) -> Iterator[Entry]:
        for _ in range(count):
            fields = _CENTRAL.unpack_from(self.data, position)
            signature, _, _, flags, method, _, _, crc, packed, size = fields[:10]
            name_length, extra_length, comment_length = fields[10:13]
            header = fields[16]
            position += _CENTRAL.size
            raw_name = self._slice(position, name_length)
            extra = self._slice(position + name_length, extra_length)
            position += name_length + extra_length + comment_length
            if signature != b"PK\x01\x02" or position > end:
                raise self._refuse("its directory is damaged or cut short")
            size, packed, header = _zip64_values(extra, size, packed, header)
            name = raw_name.decode("utf-8", "replace")
            if flags & 1 or method != 0 or packed != size:
                raise self._refuse(f"{shorten(name)} is compressed or encrypted, not stored")
            yield Entry(name, header, self._data_start(header, raw_name), size, crc)

    def _data_start(self, header: int, raw_name: bytes) -> int:
        fields = _LOCAL.unpack_from(self.data, header)
        start = header + _LOCAL.size
        if fields[0] != b"PK\x03\x04" or self._slice(start, fields[9]) != raw_name:
            raise self._refuse("its directory and its entries do not agree")
        return start + fields[9] + fields[10]

    def _check_order(self, directory: int) -> None:
        """Entries lie one after the other, before the directory."""
        end = 0
        for entry in sorted(self.entries.values(), key=lambda entry: entry.header):
            if entry.header < end or entry.start + entry.size > directory:
                raise self._refuse(f"{shorten(entry.name)} overlaps another entry or the directory")
            end = entry.start + entry.size


def _zip64_values(extra: bytes, *values: int) -> list[int]:
    """Replace absent sizes and offsets by those of the zip64 extra field, in its order."""
    wide: list[int] = []
    while len(extra) >= 4:
        kind, length = struct.unpack("<HH", extra[:4])
        if kind == 1:
            wide = [item[0] for item in struct.iter_unpack("<Q", extra[4 : 4 + length // 8 * 8])]
        extra = extra[4 + length :]
    return [wide.pop(0) if value == _ABSENT else value for value in values]
