#!/usr/bin/env python3
"""Write a small stand-in for CIFAR-100, in its format, from scikit-learn's handwritten digits.

100 classes: digit x style, class = 10 * digit + style. A style is one of five ink colours (white,
red, green, blue, yellow) on black, or black ink on one of them; neither a crop nor a flip turns one
into another. Every chosen picture of a digit is there once in each of the ten styles.

It is easier than CIFAR-100, and says nothing about it: it exercises the same code on real, if
few, handwritings. Source: 1,797 pictures of 8x8 pixels (see prepare_digits.py, whose enlargement
to 32x32 and split are used: no handwriting of the test half is in the training half).

Without limits there are 14,380 training and 3,590 test images. The same options give the same
archive, byte for byte.
"""

from __future__ import annotations

import argparse
import gzip
import io
import pickle
import sys
import tarfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from prepare_digits import DIGITS, split, to_picture  # noqa: E402

from ppcls.utils.cli import make_parser, run  # noqa: E402
from ppcls.utils.errors import UserError  # noqa: E402
from ppcls.utils.fileio import atomic_write  # noqa: E402

COLOURS = {
    "white": (255, 255, 255),
    "red": (255, 64, 64),
    "green": (64, 255, 64),
    "blue": (64, 64, 255),
    "yellow": (255, 255, 64),
}
STYLES = [f"{name} ink" for name in COLOURS] + [f"black on {name}" for name in COLOURS]
FOLDER = "cifar-100-python"
EXAMPLE = "python scripts/make_digits_cifar100.py dataset/digits-cifar100.tar.gz"


def paint(grey: np.ndarray, style: int) -> np.ndarray:
    """Grey [32, 32] uint8 in a style, as CIFAR's row of 3 x 32 x 32 uint8."""
    ink = grey if style < len(COLOURS) else 255 - grey
    colour = np.array(list(COLOURS.values())[style % len(COLOURS)], dtype=np.uint16)
    planes = ink[None].astype(np.uint16) * colour[:, None, None] // 255
    return planes.astype(np.uint8).reshape(-1)


def choose(numbers: np.ndarray, labels: np.ndarray, per_digit: int) -> np.ndarray:
    """The first `per_digit` pictures of each digit among `numbers`, all of them for 0."""
    if per_digit == 0:
        return numbers
    groups = [numbers[labels[numbers] == digit][:per_digit] for digit in range(len(DIGITS))]
    return np.sort(np.concatenate(groups))


def batch(images: np.ndarray, labels: np.ndarray, numbers: np.ndarray) -> dict[str, Any]:
    """What a member of the archive holds."""
    pictures = {number: np.asarray(to_picture(images[number])) for number in numbers.tolist()}
    rows = [(number, style) for number in pictures for style in range(len(STYLES))]
    return {
        "data": np.stack([paint(pictures[number], style) for number, style in rows]),
        "fine_labels": [int(labels[number]) * len(STYLES) + style for number, style in rows],
        "coarse_labels": [int(labels[number]) for number, _ in rows],
        "filenames": [f"{number:04d}_{style}.png" for number, style in rows],
    }


def write_archive(file: BinaryIO, members: dict[str, dict]) -> None:
    with (
        gzip.GzipFile(fileobj=file, filename="", mode="wb", compresslevel=6, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        for name, content in members.items():
            data = pickle.dumps(content, protocol=2)
            info = tarfile.TarInfo(f"{FOLDER}/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def make(path: Path, train_per_digit: int, test_per_digit: int) -> dict[str, Any]:
    """Write the archive; return what is in it."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError("scikit-learn is needed: pip install scikit-learn") from error
    digits = load_digits()
    halves = split(digits.target)
    counts = {"train": train_per_digit, "test": test_per_digit}
    chosen = {
        name: choose(halves[half], digits.target, counts[name])
        for name, half in (("train", "train"), ("test", "val"))
    }
    members = {
        name: batch(digits.images, digits.target, numbers) for name, numbers in chosen.items()
    }
    members["meta"] = {
        "fine_label_names": [f"{digit} {style}" for digit in DIGITS for style in STYLES],
        "coarse_label_names": list(DIGITS),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path.parent}: cannot be made: {error.strerror}") from error
    atomic_write(path, lambda file: write_archive(file, members))
    sizes = {name: len(members[name]["fine_labels"]) for name in chosen}
    print(f"{path}: {sizes['train']} training and {sizes['test']} test images of 100 classes")
    return {"file": str(path), **sizes}


def command(args: argparse.Namespace) -> dict[str, Any]:
    for name in ("train_per_digit", "test_per_digit"):
        if getattr(args, name) < 0:
            raise UserError(f"--{name.replace('_', '-')}: expected 0 or more")
    return make(args.file, args.train_per_digit, args.test_per_digit)


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, EXAMPLE, config=False)
    parser.add_argument("file", metavar="FILE", type=Path, help="the .tar.gz to write")
    text = "pictures of each digit, each in ten styles (default: all)"
    parser.add_argument("--train-per-digit", type=int, default=0, metavar="N", help=text)
    parser.add_argument("--test-per-digit", type=int, default=0, metavar="N", help=text)
    return run(parser, command, argv)


if __name__ == "__main__":
    sys.exit(main())
