"""What an image file's header says, looked at before anything is decoded.

A few hundred bytes may claim a picture of gigabytes, and a strip one pixel high may become one when
its shorter side is scaled up. Pillow reads the header only; the engine decodes later.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

from PIL import Image, UnidentifiedImageError

from ppcls.deploy.serving.errors import RequestError
from ppcls.deploy.serving.parts import too_many_parts

# Pillow's names of the formats `tools/infer.py` takes (IMAGE_SUFFIXES).
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "PPM", "TIFF")
_KNOWN = "JPEG, PNG, BMP, WebP, GIF, PPM or TIFF"


def shorter_side(transform_ops: Iterable[Any]) -> int:
    """Pixels the transforms scale the shorter side of an image to; 0 when they do not."""
    sides = [0]
    for entry in transform_ops:
        options = entry.get("ResizeImage") if isinstance(entry, dict) else None
        if isinstance(options, dict) and isinstance(options.get("resize_short"), int):
            sides.append(options["resize_short"])
    return max(sides)


def check_header(data: bytes, name: str, max_pixels: int, short: int = 0) -> None:
    """Refuse a file that is no image, or one too large to decode, by its header.

    Args:
        name: what the client calls the image, for errors.
        short: pixels its shorter side will be scaled to (see `shorter_side`), 0 if it is not.

    Raises:
        RequestError: 415 for bytes that are no image of a known format, 400 for a damaged header
            or an animation, 413 for more than `max_pixels` pixels, also after scaling, and for a
            file of so many parts that reading them would take minutes.
    """
    if not data:
        raise RequestError(400, f"{name}: expected an image, found no bytes")
    most = too_many_parts(data)
    if most is not None:
        raise RequestError(413, f"{name}: expected a file of at most {most}, found more")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            is_animated = bool(getattr(image, "is_animated", False))
    except UnidentifiedImageError as error:
        raise RequestError(415, f"{name}: expected a {_KNOWN} file, found none of them") from error
    except Image.DecompressionBombError as error:
        raise RequestError(413, f"{name}: expected at most {max_pixels} pixels: {error}") from error
    except Exception as error:  # Pillow's readers raise nearly anything for a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RequestError(400, f"{name}: the header cannot be read: {reason}") from error
    _check_size(name, width, height, max_pixels, short)
    if is_animated:
        raise RequestError(400, f"{name}: expected one picture, found an animation or several")


def _check_size(name: str, width: int, height: int, max_pixels: int, short: int) -> None:
    if min(width, height) < 1:
        raise RequestError(400, f"{name}: expected a picture, found {width} x {height} pixels")
    if width * height > max_pixels:
        raise RequestError(
            413, f"{name}: expected at most {max_pixels} pixels, found {width} x {height}"
        )
    scaled = short * short * max(width, height) // min(width, height)
    if scaled > max_pixels:
        raise RequestError(
            413,
            f"{name}: expected at most {max_pixels} pixels once the shorter side is scaled to "
            f"{short}, found {scaled} ({width} x {height})",
        )
