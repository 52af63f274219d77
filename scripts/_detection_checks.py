"""What prepare_voc.py and prepare_coco.py share: looking at every image, counts, and reporting."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from PIL import Image, UnidentifiedImageError

from ppcls.data.datasets import DetectionDataset
from ppcls.utils.errors import DataError, UserError

T = TypeVar("T")

DECODE = [{"DecodeImage": {"to_rgb": False}}]  # the least a detection data set needs to be made
MOST_SHOWN = 20
_ORIENTATION = 0x0112  # EXIF tag; from 5 on the image is turned by a quarter when it is read
_SECONDS_BETWEEN = 5.0


def collect(what: str, items: Iterable[T], check: Callable[[T], None]) -> list[str]:
    """Call `check` for every item; return the text of each DataError, with progress on stderr."""
    items = list(items)
    problems: list[str] = []
    start = said = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if now - said >= _SECONDS_BETWEEN:
            said, rate = now, done / (now - start)
            left = (len(items) - done) / rate
            print(f"{what}: {done}/{len(items)}, {rate:.0f}/s, {left:.0f} s left", file=sys.stderr)
        try:
            check(item)
        except DataError as error:
            problems.append(str(error))
    return problems


def check_images(dataset: DetectionDataset, what: str) -> None:
    """Read every image's header; raise UserError unless all sizes are as annotated."""

    def check(index: int) -> None:
        path = dataset.describe(index)
        height, width = dataset.sizes[index].tolist()
        found = stored_size(path)
        if found != (width, height):
            raise DataError(
                f"{path}: expected an image of {width}x{height} as its annotation says, "
                f"found {found[0]}x{found[1]}"
            )

    refuse(collect(f"{what}, image sizes", range(len(dataset)), check), what)


def stored_size(path: str) -> tuple[int, int]:
    """Width and height of an image as OpenCV will read it, from its header."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            is_turned = image.getexif().get(_ORIENTATION, 1) >= 5
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: expected an image, found no known format") from error
    except Exception as error:  # Pillow raises nearly anything for a damaged file
        raise DataError(f"{path}: cannot be read: {error or type(error).__name__}") from error
    return (height, width) if is_turned else (width, height)


def refuse(problems: list[str], what: str) -> None:
    """Print the problems, if there are any, and raise UserError with their number."""
    if not problems:
        return
    for problem in problems[:MOST_SHOWN]:
        print(problem, file=sys.stderr)
    more = len(problems) - MOST_SHOWN
    if more > 0:
        print(f"... and {more} more", file=sys.stderr)
    raise UserError(f"{what}: found {len(problems)} problem(s); the first is {problems[0]}")


def check_count(what: str, found: int, expected: int) -> None:
    if found != expected:
        raise UserError(
            f"{what}: expected {expected} images, found {found}; for a part of the set use --subset"
        )


def count_boxes(dataset: DetectionDataset) -> int:
    return sum(len(dataset.ground_truth(index).boxes) for index in range(len(dataset)))


def check_folder(path: Path) -> None:
    if not path.is_dir():
        raise UserError(f"{path}: expected a folder, found none")
