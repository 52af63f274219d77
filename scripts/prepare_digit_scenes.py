#!/usr/bin/env python3
"""Write a small detection data set in COCO's format: handwritten digits on photographs.

OUT_DIR gets `train/<number>.jpg`, `val/<number>.jpg`, `annotations/instances_train.json`,
`annotations/instances_val.json` and `label_list.txt` (names of the labels 1..10, one a line).

A scene is a random part of one of scikit-learn's two photographs with 1 to 12 of its handwritten
digits on it, 40 to 140 pixels high, turned a little, in dark or bright ink, hardly overlapping. A
box is tight around the ink. Validation uses other handwritings (the split of prepare_digits.py) and
other parts of the photographs than training. The same options give the same files, byte for byte,
with the same versions of NumPy and Pillow.

Sources: `sklearn.datasets.load_digits`, 1,797 pictures of 8x8 pixels (UCI, "Optical Recognition of
Handwritten Digits", Alpaydin, Kaynak; CC BY 4.0), and `load_sample_images`: china.jpg (Wouter
Duijn) and flower.jpg (Stefan Baudy), both CC BY 2.0.
"""

from __future__ import annotations

import argparse
import colorsys
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

# Also from a clone that is not installed.
sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from prepare_digits import DIGITS, split  # noqa: E402

from ppcls.utils.cli import make_parser, run  # noqa: E402
from ppcls.utils.errors import UserError  # noqa: E402
from ppcls.utils.fileio import atomic_folder  # noqa: E402

HALVES = ("train", "val")
TRAIN_SHARE = 0.6  # of each photograph's width, from the left
CROP_SIDES = (0.35, 0.6)  # of a photograph's height: a scene's background before resizing
DIGIT_SIDES = (40, 140)  # pixels of the digit's height
MAX_TURN = 12.0  # degrees
MAX_OVERLAP = 0.05  # of the smaller box
MIN_CONTRAST = 90.0  # grey levels between ink and what is around it
TRIES = 40  # for a place, before a digit is left out
QUALITY = 90


class Source(NamedTuple):
    """What one half is made of: photographs [h, w, 3], digits [n, 8, 8] and their labels [n]."""

    photos: list[np.ndarray]
    digits: np.ndarray
    labels: np.ndarray


class Scene(NamedTuple):
    """A picture, its boxes (x, y, width, height in pixels) and their digits."""

    picture: Image.Image
    boxes: list[tuple[int, int, int, int]]
    labels: list[int]


class Options(NamedTuple):
    """Scenes of each half, pixels of their side, most digits in one, and the seed."""

    train: int
    val: int
    size: int
    digits: int
    seed: int


def load_sources() -> dict[str, Source]:
    try:
        from sklearn.datasets import load_digits, load_sample_images
    except ImportError as error:
        raise UserError("scikit-learn is needed: pip install scikit-learn") from error
    digits, photos = load_digits(), load_sample_images().images
    cuts = [round(photo.shape[1] * TRAIN_SHARE) for photo in photos]
    parts = {
        "train": [photo[:, :cut] for photo, cut in zip(photos, cuts, strict=True)],
        "val": [photo[:, cut:] for photo, cut in zip(photos, cuts, strict=True)],
    }
    numbers = split(digits.target)
    return {
        half: Source(parts[half], digits.images[numbers[half]], digits.target[numbers[half]])
        for half in HALVES
    }


def draw_background(photos: list[np.ndarray], size: int, rng: np.random.Generator) -> np.ndarray:
    """A random square of a random photograph, perhaps mirrored: [size, size, 3] float64."""
    photo = photos[rng.integers(len(photos))]
    height, width = photo.shape[:2]
    side = round(height * rng.uniform(*CROP_SIDES))
    top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
    crop = photo[top : top + side, left : left + side]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    picture = Image.fromarray(np.ascontiguousarray(crop))
    return np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float64)


def draw_stroke(digit: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """A digit of 0..16 enlarged to about `side` pixels as opacity [h, w] 0..1, cut to its ink."""
    padded = np.pad(digit / 16.0, 2).astype(np.float32)
    scale = side / 8.0
    grey = Image.fromarray(padded).resize(
        (round(12 * scale), round(12 * scale)), Image.Resampling.BICUBIC
    )
    turned = grey.rotate(rng.uniform(-MAX_TURN, MAX_TURN), Image.Resampling.BICUBIC)
    # Steeper than the enlarged grey values: a stroke with an edge of a few pixels.
    opacity = np.clip((np.asarray(turned, dtype=np.float64) - 0.3) / 0.25, 0.0, 1.0)
    rows, columns = np.nonzero(opacity >= 0.5)
    return opacity[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def draw_ink(around: float, rng: np.random.Generator) -> np.ndarray:
    """A dark or bright colour [3] that is well apart from the grey level `around`."""
    while True:
        is_bright = rng.random() < 0.5
        value = rng.uniform(0.85, 1.0) if is_bright else rng.uniform(0.0, 0.35)
        saturation = rng.uniform(0.0, 0.6 if is_bright else 1.0)
        ink = 255.0 * np.array(colorsys.hsv_to_rgb(rng.random(), saturation, value))
        if abs(grey_level(ink) - around) >= MIN_CONTRAST:
            return ink


def grey_level(colour: np.ndarray) -> float:
    return float(colour @ np.array([0.299, 0.587, 0.114]))


def overlaps(box: tuple[int, int, int, int], others: list[tuple[int, int, int, int]]) -> bool:
    """Whether `box` covers more than MAX_OVERLAP of itself or of one of `others`."""
    x, y, w, h = box
    for other_x, other_y, other_w, other_h in others:
        width = min(x + w, other_x + other_w) - max(x, other_x)
        height = min(y + h, other_y + other_h) - max(y, other_y)
        if min(width, height) > 0 and width * height > MAX_OVERLAP * min(w * h, other_w * other_h):
            return True
    return False


def draw_scene(source: Source, options: Options, rng: np.random.Generator) -> Scene:
    """Put 1 to `options.digits` digits on a background; one without a free place is left out."""
    size = options.size
    canvas = draw_background(source.photos, size, rng)
    boxes: list[tuple[int, int, int, int]] = []
    labels: list[int] = []
    for _ in range(int(rng.integers(1, options.digits + 1))):
        number = int(rng.integers(len(source.labels)))
        # Uniform in the logarithm: as many from 40 to 75 pixels as from 75 to 140.
        side = round(float(np.exp(rng.uniform(*np.log(DIGIT_SIDES)))))
        stroke = draw_stroke(source.digits[number], side, rng)
        box = find_place(stroke.shape, size, boxes, rng)
        if box is not None:
            blend(canvas, stroke, box, rng)
            boxes.append(box)
            labels.append(int(source.labels[number]))
    return Scene(Image.fromarray(np.rint(canvas).astype(np.uint8)), boxes, labels)


def find_place(
    shape: tuple[int, ...], size: int, boxes: list, rng: np.random.Generator
) -> tuple[int, int, int, int] | None:
    height, width = shape
    for _ in range(TRIES):
        x, y = int(rng.integers(size - width + 1)), int(rng.integers(size - height + 1))
        if not overlaps((x, y, width, height), boxes):
            return x, y, width, height
    return None


def blend(
    canvas: np.ndarray,
    stroke: np.ndarray,
    box: tuple[int, int, int, int],
    rng: np.random.Generator,
) -> None:
    """Paint `stroke` into `canvas` at `box`, in a colour that can be read there."""
    x, y, width, height = box
    region = canvas[y : y + height, x : x + width]
    ink = draw_ink(grey_level(region.mean(axis=(0, 1))), rng)
    opacity = stroke[:, :, None] * rng.uniform(0.85, 1.0)
    region[:] = region * (1.0 - opacity) + ink * opacity


def draw_half(half: str, source: Source, options: Options) -> Iterator[Scene]:
    """Scenes of one half; each depends on (seed, half, its number) alone."""
    for number in range(getattr(options, half)):
        rng = np.random.default_rng([options.seed, HALVES.index(half), number])
        yield draw_scene(source, options, rng)


def write_half(folder: Path, half: str, source: Source, options: Options) -> None:
    """Write one half's pictures and its annotation file."""
    (folder / half).mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, scene in enumerate(draw_half(half, source, options), 1):
        name = f"{number:06d}.jpg"
        scene.picture.save(folder / half / name, "JPEG", quality=QUALITY)
        side = options.size
        images.append({"id": number, "file_name": name, "width": side, "height": side})
        for box, label in zip(scene.boxes, scene.labels, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": label + 1,
                    "bbox": list(box),
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                    "segmentation": [],
                }
            )
    content = {
        "info": {"description": f"digit scenes, {half}", "options": options._asdict()},
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": digit + 1, "name": name, "supercategory": "digit"}
            for digit, name in enumerate(DIGITS)
        ],
    }
    annotation_file(folder, half).write_text(json.dumps(content), encoding="utf-8")


def annotation_file(folder: Path, half: str) -> Path:
    return folder / "annotations" / f"instances_{half}.json"


def write_set(folder: Path, options: Options) -> None:
    (folder / "annotations").mkdir()
    for half, source in load_sources().items():
        write_half(folder, half, source, options)
    names = "".join(f"{name}\n" for name in DIGITS)
    (folder / "label_list.txt").write_text(names, encoding="utf-8")


def is_complete(folder: Path, options: Options) -> bool:
    """Whether both halves, made with these options, are there with every picture they name."""
    for half in HALVES:
        try:
            content = json.loads(annotation_file(folder, half).read_text("utf-8"))
            names = [image["file_name"] for image in content["images"]]
            made_with = content["info"]["options"]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        paths = [folder / half / name for name in names]
        if made_with != options._asdict() or len(names) != getattr(options, half):
            return False
        if not all(path.is_file() and path.stat().st_size for path in paths):
            return False
    return (folder / "label_list.txt").is_file()


def check_options(args: argparse.Namespace) -> Options:
    limits = {"train": 1, "val": 1, "size": 200, "digits": 1, "seed": 0}
    for name, low in limits.items():
        if getattr(args, name) < low:
            raise UserError(f"--{name}: expected a number >= {low}, got {getattr(args, name)}")
    return Options(**{name: getattr(args, name) for name in limits})


def command(args: argparse.Namespace) -> dict[str, Any]:
    folder, options = args.out_dir, check_options(args)
    if is_complete(folder, options):
        print(f"{folder}: complete, nothing to do")
    else:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(
                f"{folder}: expected no such folder, an empty one, or the digit scenes of these "
                "options, found something else; remove it or choose another place"
            )
        atomic_folder(folder, lambda draft: write_set(draft, options))
        print(
            f"{folder}: wrote {options.train} training and {options.val} validation scenes of "
            f"{options.size}x{options.size}"
        )
    return {"folder": str(folder), "classes": len(DIGITS), **options._asdict()}


def main(argv: list[str] | None = None) -> int:
    example = "python scripts/prepare_digit_scenes.py dataset/digit_scenes"
    parser = make_parser(__doc__, example, config=False)
    parser.add_argument("out_dir", metavar="OUT_DIR", type=Path)
    parser.add_argument("--train", type=int, default=1600, help="training scenes (1600)")
    parser.add_argument("--val", type=int, default=200, help="validation scenes (200)")
    parser.add_argument("--size", type=int, default=300, help="pixels of a scene's side (300)")
    parser.add_argument("--digits", type=int, default=12, help="most digits in a scene (12)")
    parser.add_argument("--seed", type=int, default=0, help="whole number >= 0 (0)")
    return run(parser, command, argv)


if __name__ == "__main__":
    sys.exit(main())
