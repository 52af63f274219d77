"""Bytes of an image file to pixels."""

from __future__ import annotations

import io

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from ppcls.data.transforms.base import TRANSFORMS, Backend

_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_PNG_START, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND"
_WIDE_GREY_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")


@TRANSFORMS.register()
class DecodeImage:
    """Encoded bytes -> HWC uint8 RGB array.

    Grey, palette, RGBA, CMYK and 16-bit files give 3 channels of 8 bits; transparency is dropped.
    An array is taken as already decoded RGB and passes unchanged; a PIL image is converted.

    As in PaddleClas, `cv2` turns the image the way its EXIF orientation says and `pil` does not.

    Args:
        to_rgb: false leaves the channels in BGR order.
        to_np: accepted because release/2.0 configurations name it; the result is always an array.
        channel_first: give CHW instead. Later transforms expect HWC, so this is for a list of one.
        backend: the library that decodes.

    Raises:
        ValueError: bytes that are no image, cut short, or an image of more pixels than
            `PIL.Image.MAX_IMAGE_PIXELS` (`pil`) or OpenCV's own limit of 2**30 (`cv2`).
    """

    def __init__(
        self,
        to_rgb: bool = True,
        to_np: bool = False,
        channel_first: bool = False,
        backend: Backend = "cv2",
    ) -> None:
        self.to_rgb = to_rgb
        self.channel_first = channel_first
        self.backend = backend.lower()

    def __call__(
        self, image: bytes | np.ndarray | Image.Image, rng: np.random.Generator
    ) -> np.ndarray:
        if isinstance(image, np.ndarray):
            return image
        if isinstance(image, Image.Image):
            array = pil_to_rgb(image)
        elif isinstance(image, (bytes, bytearray, memoryview)):
            decode = decode_pil if self.backend == "pil" else decode_cv2
            array = decode(bytes(image))
        else:
            raise ValueError(f"expected the bytes of an image file, got {type(image).__name__}")
        if not self.to_rgb:
            array = np.ascontiguousarray(array[:, :, ::-1])
        return array.transpose(2, 0, 1) if self.channel_first else array


def decode_cv2(data: bytes) -> np.ndarray:
    """Decode with OpenCV to HWC uint8 RGB, turned as the EXIF orientation says."""
    if not data:
        raise ValueError("cannot decode the image: the file is empty")
    try:
        image = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        if "validateInputImageSize" in str(error):
            raise ValueError(
                "cannot decode the image: expected a size within OpenCV's limits "
                "(OPENCV_IO_MAX_IMAGE_PIXELS and the like), got a larger one"
            ) from error
        raise ValueError(f"cannot decode the image: {' '.join(str(error).split())}") from error
    if image is None:
        raise ValueError("cannot decode the image: not a format OpenCV reads, or a damaged file")
    if not _looks_complete(data):
        decode_pil(data)  # OpenCV fills what is missing with grey and does not say so; Pillow does.
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def decode_pil(data: bytes) -> np.ndarray:
    """Decode with Pillow to HWC uint8 RGB; the EXIF orientation is not applied."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                raise ValueError(f"expected at most {limit} pixels, got {image.size}")
            return pil_to_rgb(image)
    except UnidentifiedImageError as error:  # its own text names a memory address
        raise ValueError("cannot decode the image: it is of no known format") from error
    except Exception as error:
        # Pillow's readers raise nearly anything for a damaged file: OSError, SyntaxError,
        # struct.error, zlib.error, IndexError, DecompressionBombError...
        raise ValueError(f"cannot decode the image: {error or type(error).__name__}") from error


def pil_to_rgb(image: Image.Image) -> np.ndarray:
    """Return any PIL image as an HWC uint8 RGB array."""
    if image.mode in _WIDE_GREY_MODES:
        # `convert` would clip 16-bit values at 255. The high byte is what OpenCV keeps, and what
        # Pillow itself keeps of 16-bit colour.
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError("expected 8-bit or 16-bit pixels, got 32-bit values")
        return np.repeat((grey >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise ValueError("expected 8-bit or 16-bit pixels, got floating-point values")
    return np.array(image.convert("RGB"))


def _looks_complete(data: bytes) -> bool:
    """Whether the end of a JPEG or PNG file is there; True for the formats OpenCV checks itself.

    False is only a suspicion: the caller has Pillow decode the file to be sure.
    """
    if data.startswith(_JPEG_START):
        scan = _jpeg_scan_start(data)
        return scan is not None and data.find(_JPEG_END, scan) >= 0
    if data.startswith(_PNG_START):
        return data.rfind(_PNG_END) >= 0
    return True


def _jpeg_scan_start(data: bytes) -> int | None:
    """Position of the first scan, past the headers, whose thumbnail may hold an end marker too."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xDA:
            return position
        if marker == 0xFF:  # a fill byte
            position += 1
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return None
