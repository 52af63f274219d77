"""Write scikit-learn's handwritten digits as a small ImageNet-style data set.

OUT_DIR gets `train/<digit>/<number>.png`, `val/<digit>/<number>.png`, and PaddleClas's lists
`train_list.txt`, `val_list.txt` (`path label`) and `label_list.txt` (`label name`).

Source: `sklearn.datasets.load_digits`, 1,797 grey images of 8x8 pixels with values 0..16, from the
UCI set "Optical Recognition of Handwritten Digits" (Alpaydin, Kaynak; CC BY 4.0). A network of
stride 32 would reduce 8x8 to nothing, so each is stored as 32x32: values times 255/16, rounded,
then four times larger by Pillow's bilinear filter.

Split: images ordered by digit, then by their number; every fifth goes to validation. That gives
1,438 and 359 images, the same in every run, with each digit's share within one image of a fifth.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image

# Also from a clone that is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ppcls.utils.cli import make_parser, run  # noqa: E402
from ppcls.utils.errors import UserError  # noqa: E402
from ppcls.utils.fileio import atomic_folder  # noqa: E402

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIDE = 32
VAL_EVERY = 5
LISTS = ("train_list.txt", "val_list.txt")


def split(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Image numbers of each half, for `labels` [n]."""
    order = np.argsort(labels, kind="stable")
    is_val = np.arange(len(order)) % VAL_EVERY == VAL_EVERY - 1
    return {"train": np.sort(order[~is_val]), "val": np.sort(order[is_val])}


def to_picture(digit: np.ndarray) -> Image.Image:
    """An 8x8 array of 0..16 as a 32x32 grey picture of 0..255."""
    grey = np.rint(digit * (255.0 / 16.0)).astype(np.uint8)
    return Image.fromarray(grey).resize((SIDE, SIDE), Image.Resampling.BILINEAR)


def write_set(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Write the pictures and the three lists of `images` [n, 8, 8] and `labels` [n]."""
    for half, numbers in split(labels).items():
        for name in range(len(DIGITS)):
            (folder / half / str(name)).mkdir(parents=True)
        lines = []
        for number in numbers.tolist():
            path = f"{half}/{labels[number]}/{number:04d}.png"
            to_picture(images[number]).save(folder / path)
            lines.append(f"{path} {labels[number]}\n")
        (folder / f"{half}_list.txt").write_text("".join(lines), encoding="utf-8")
    names = "".join(f"{label} {name}\n" for label, name in enumerate(DIGITS))
    (folder / "label_list.txt").write_text(names, encoding="utf-8")


def is_complete(folder: Path) -> bool:
    """Whether the lists are there, and every picture they name."""
    if not all((folder / name).is_file() for name in (*LISTS, "label_list.txt")):
        return False
    lines = [line for name in LISTS for line in (folder / name).read_text("utf-8").splitlines()]
    paths = [folder / line.rsplit(" ", 1)[0] for line in lines]
    return bool(paths) and all(path.is_file() and path.stat().st_size for path in paths)


def prepare(folder: Path) -> str:
    """Make the data set at `folder` if it is not there, whole or not at all; say what was done."""
    if is_complete(folder):
        return f"{folder}: complete, nothing to do"
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"{folder}: expected no such folder, an empty one, or a complete digits data set, "
            "found something else; remove it or choose another place"
        )
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError("scikit-learn is needed: pip install scikit-learn") from error
    digits = load_digits()
    atomic_folder(folder, lambda draft: write_set(draft, digits.images, digits.target))
    return f"{folder}: wrote {len(digits.target)} pictures of {SIDE}x{SIDE} and their lists"


def command(args: argparse.Namespace) -> dict[str, int | str]:
    print(prepare(args.out_dir))
    counts = {
        name.removesuffix("_list.txt"): (args.out_dir / name).read_text("utf-8").count("\n")
        for name in LISTS
    }
    return {"folder": str(args.out_dir), "classes": len(DIGITS), **counts}


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, "python scripts/prepare_digits.py dataset/digits", config=False)
    parser.add_argument("out_dir", metavar="OUT_DIR", type=Path)
    return run(parser, command, argv)


if __name__ == "__main__":
    sys.exit(main())
