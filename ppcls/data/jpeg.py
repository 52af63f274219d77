"""JPEG files decoded by libjpeg-turbo (through simplejpeg) to the pixels that DecodeImage gives.

Only the files are taken of which the same pixels are known: baseline, grey or YCbCr with the usual
chroma sampling, not to be turned, undamaged. All others go to DecodeImage itself. Whether OpenCV or
Pillow, as they are installed, do decode as libjpeg-turbo does is tried out first.
"""

from __future__ import annotations

import functools
import io
from typing import Any, Literal

import numpy as np
from PIL import Image

from ppcls.data.transforms import DecodeImage

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

_MAX_PIXELS = 1 << 26  # larger ones go to the libraries that have limits of their own
_BASELINE, _HUFFMAN, _SCAN, _APP1 = 0xC0, 0xC4, 0xDA, 0xE1
_WITHOUT_LENGTH = (0x01, *range(0xD0, 0xDA))
# Horizontal and vertical sampling of the components: grey, 4:4:4, 4:2:2 and 4:2:0. What decoders
# make of others differs from version to version.
_SAMPLINGS = {b"\x11", b"\x11\x11\x11", b"\x21\x11\x11", b"\x22\x11\x11"}
_ORIENTATION, _SHORT = 0x0112, 3
_BYTE_ORDERS: dict[bytes, Literal["little", "big"]] = {b"II*\0": "little", b"MM\0*": "big"}


class DecodeJpeg:
    """What `plain` does, in about a third of the time for most JPEG files.

    Raises what `plain` raises, for the same files. Data damaged so that no decoder notices may give
    other pixels, as it does between versions of OpenCV.
    """

    def __init__(self, plain: DecodeImage) -> None:
        self.plain = plain
        self._colorspace = "RGB" if plain.to_rgb else "BGR"
        self._turns = plain.backend == "cv2"

    def __call__(self, image: Any, rng: np.random.Generator) -> np.ndarray:
        if isinstance(image, bytes) and is_well_known(image, turns=self._turns):
            try:
                return simplejpeg.decode_jpeg(image, self._colorspace)
            except ValueError:
                pass  # damaged: what becomes of it is for the plain decoder to say
        return self.plain(image, rng)


def version() -> str | None:
    """Version of simplejpeg, or None when it is not installed."""
    return None if simplejpeg is None else simplejpeg.__version__


@functools.lru_cache
def agrees(backend: str) -> bool:
    """Whether the library `backend` gives the pixels of simplejpeg, for every kind of file taken.

    Distributions build OpenCV and Pillow with JPEG libraries of their own.
    """
    decode = DecodeImage(backend=backend)
    rng = np.random.default_rng(0)
    return all(
        np.array_equal(simplejpeg.decode_jpeg(data, "RGB"), decode(data, rng))
        for data in _probes(rng)
    )


def _probes(rng: np.random.Generator) -> list[bytes]:
    """Small files of every kind that is taken, of noise and so of every frequency."""
    noise = Image.fromarray(rng.integers(0, 256, (45, 67, 3), dtype=np.uint8))
    kinds = [(noise, {"subsampling": number}) for number in (0, 1, 2)] + [(noise.convert("L"), {})]
    files = []
    for picture, options in kinds:
        for quality in (50, 90):
            file = io.BytesIO()
            picture.save(file, "JPEG", quality=quality, **options)
            files.append(file.getvalue())
    return files


def is_well_known(data: bytes, *, turns: bool) -> bool:
    """Whether a file is of the kinds whose pixels are known; False for what is no JPEG file.

    turns: whether the plain decoder turns the image as its EXIF orientation says.
    """
    if not data.startswith(b"\xff\xd8"):
        return False
    has_frame = has_tables = False
    exif_blocks = 0
    position, end = 2, len(data) - 4
    while position <= end and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == _SCAN:
            return has_frame and has_tables
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        if marker in _WITHOUT_LENGTH:
            return False
        length = data[position + 2] << 8 | data[position + 3]
        if marker == _HUFFMAN:
            has_tables = True
        elif marker == _BASELINE:
            if has_frame or not _is_usual_frame(data[position + 4 : position + 2 + length]):
                return False
            has_frame = True
        elif 0xC0 < marker <= 0xCF:  # progressive, lossless, arithmetic
            return False
        elif marker == _APP1 and turns and _is_exif(data[position + 4 : position + 14]):
            exif_blocks += 1
            if exif_blocks > 1 or not _is_upright(data[position + 10 : position + 2 + length]):
                return False
        position += 2 + length
    return False


def _is_usual_frame(frame: bytes) -> bool:
    """Whether a frame header has 8 bits, grey or 3 components, usual sampling and usual size."""
    if len(frame) < 6 or len(frame) != 6 + 3 * frame[5]:
        return False
    height, width = frame[1] << 8 | frame[2], frame[3] << 8 | frame[4]
    limit = min(_MAX_PIXELS, Image.MAX_IMAGE_PIXELS or _MAX_PIXELS)
    return frame[0] == 8 and 0 < height * width <= limit and frame[7::3] in _SAMPLINGS


def _is_exif(start: bytes) -> bool:
    """Whether an APP1 block that starts so may turn the image: OpenCV skips 6 bytes unread."""
    return start.startswith(b"Exif\0\0") or start[6:] in _BYTE_ORDERS


def _is_upright(exif: bytes) -> bool:
    """Whether an EXIF block (from its byte order on) surely asks for no turn."""
    order = _BYTE_ORDERS.get(exif[:4])
    if order is None:
        return False

    def number(at: int, size: int) -> int:
        return int.from_bytes(exif[at : at + size], order)

    start = number(4, 4)
    count = number(start, 2)
    if start + 2 + 12 * count > len(exif):
        return False
    entries = range(start + 2, start + 2 + 12 * count, 12)
    turns = [at for at in entries if number(at, 2) == _ORIENTATION]
    upright = (_SHORT, 1, 1)  # one short number, 1
    return all((number(at + 2, 2), number(at + 4, 4), number(at + 8, 2)) == upright for at in turns)
