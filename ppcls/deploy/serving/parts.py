"""How many parts an image file is made of, counted before any decoder sees it.

A megabyte can hold a quarter of a million segments or some ten thousand scans of a JPEG file. Every
scan costs as much as decoding a picture, and readers that compare each part with all before it take
minutes: OpenCV for 250,000 EXIF segments, Pillow for as many comments of a PPM file in plain text.
"""

from __future__ import annotations

import re

MOST_PARTS = 10_000  # libpng's own files have one for each 8 KiB
MOST_SCANS = 100  # libtiff's limit; progressive files have some ten

_JPEG, _PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
_PLAIN_PPM = (b"P1", b"P2", b"P3")
# A byte 0xff and what it means, but for those inside the data of a scan and those without a length.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
_SCAN, _END = 0xDA, 0xD9


def too_many_parts(data: bytes) -> str | None:
    """Return what a file has too much of, such as "10000 chunks", or None.

    Only the parts of JPEG, PNG and plain PPM files are counted: other readers take seconds at most.
    """
    if data.startswith(_JPEG):
        return _jpeg(data)
    if data.startswith(_PNG):
        return _png(data)
    if data.startswith(_PLAIN_PPM) and data.count(b"#") > MOST_PARTS:
        return f"{MOST_PARTS} comments"
    return None


def _jpeg(data: bytes) -> str | None:
    position, parts, scans = len(_JPEG), 0, 0
    while (marker := _MARKER.search(data, position)) and data[marker.start() + 1] != _END:
        # Bytes of filling before the first scan are read one by one; later ones are the scan's.
        parts += 1 if scans else 1 + marker.start() - position
        scans += data[marker.start() + 1] == _SCAN
        if parts > MOST_PARTS:
            return f"{MOST_PARTS} segments"
        if scans > MOST_SCANS:
            return f"{MOST_SCANS} scans"
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return None


def _png(data: bytes) -> str | None:
    position = len(_PNG)
    for _ in range(MOST_PARTS):
        position += 12 + int.from_bytes(data[position : position + 4], "big")
        if position >= len(data):
            return None
    return f"{MOST_PARTS} chunks"
