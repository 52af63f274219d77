"""What every detection data set does: images with boxes."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ppcls.data.datasets.base import ImageDataset, OnError, as_chw
from ppcls.data.datasets.boxes import BoxTable, GroundTruth, without
from ppcls.data.datasets.lists import PathTable
from ppcls.data.sampler import SampleKey
from ppcls.data.transforms import BoxCompose, DecodeImage, build_box_transforms
from ppcls.data.transforms.boxes import PixelTransform
from ppcls.utils.errors import ConfigError, DataError

_logger = logging.getLogger("ppcls")


class DetectionSample(NamedTuple):
    """One image with boxes.

    image: [C, H, W] float32.
    boxes: [m, 4] float32, corners x1, y1, x2, y2 relative to `image`, 0..1; m may be 0.
    labels: [m] int64, 1..class_num-1.
    index: place in the data set.
    size: (height, width) of the stored image.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    index: int
    size: tuple[int, int]


class DetectionDataset(ImageDataset):
    """Images with any number of boxes. A subclass collects annotations and calls `keep_images`.

    Attributes:
        class_num: classes with the background, which is label 0.
        class_names: [class_num] names, "background" first.
        category_ids: [class_num] int64, the annotations' own number of each label; -1 for the
            background. Its inverse is the data set's label map.
        image_ids: the annotations' own names of the images: numbers (COCO) or text (VOC).
        sizes: [len, 2] int64, (height, width) of the stored images.
        ignored: what of the ground truth is no target in training: any of "difficult", "crowd".

    Args:
        transform_ops: YAML list of box transforms, DecodeImage first.
        skip_empty: leave out images without a target. Officially they stay, as negatives.
    """

    class_names: list[str]
    category_ids: np.ndarray
    image_ids: list
    sizes: np.ndarray

    def __init__(
        self,
        transform_ops: list,
        *,
        skip_empty: bool = False,
        ignored: Sequence[str] = (),
        on_error: OnError = "raise",
        seed: int = 0,
        config_path: str = "",
    ) -> None:
        super().__init__(on_error=on_error, seed=seed, config_path=config_path)
        transforms = build_box_transforms(transform_ops, self.where("transform_ops"))
        self.decode, self.transforms = split_decode(transforms, self.where("transform_ops"))
        self.skip_empty = skip_empty
        self.ignored = tuple(ignored)

    def keep_images(self, table: BoxTable, paths: Sequence[str], image_ids: Sequence) -> None:
        """Take over `table` and the paths and ids of its images, in the same order."""
        table.finish()
        self._table = table
        images = np.arange(len(paths))
        if self.skip_empty:
            images = np.array([i for i in images if len(self._targets(i).boxes)], dtype=np.int64)
            empty = len(paths) - len(images)
            if empty:
                _logger.info("%s: left out %d images without a box", table.source, empty)
        if not len(images) or not len(table.boxes):
            raise DataError(f"{table.source}: expected images with boxes, found none")
        if not without(table, self.ignored).any():
            raise DataError(
                f"{table.source}: expected boxes to train on, found none that is not "
                f"{' or '.join(self.ignored)}"
            )
        self._images = images
        self._paths = PathTable(paths[i] for i in images)
        self.image_ids = [image_ids[i] for i in images]
        self.sizes = table.sizes[images]

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> bytes:
        return Path(self.describe(index)).read_bytes()

    def describe(self, index: int) -> str:
        return self._paths[index]

    def annotations_digest(self) -> str:
        """SHA-256 of what is annotated: class names, and the boxes of every image."""
        names = "\0".join(self.class_names).encode("utf-8", "surrogateescape")
        return hashlib.sha256(names + b"\0" + self._table.digest().encode()).hexdigest()

    def ground_truth(self, index: int) -> GroundTruth:
        """Everything annotated in an image, whatever training leaves out."""
        return self._table.ground_truth(int(self._images[index]))

    def _targets(self, image: int) -> GroundTruth:
        truth = self._table.ground_truth(int(image))
        return truth.take(without(truth, self.ignored))

    def _turned(self, image: np.ndarray, width: int, height: int) -> str:
        """Annotations made without looking at EXIF are one cause of another size."""
        if image.shape[:2] != (width, height) or self.decode.backend != "cv2":
            return ""
        return "; is it turned by its EXIF data? DecodeImage with backend: pil leaves it unturned"

    def make_sample(self, key: SampleKey, rng: np.random.Generator) -> DetectionSample:
        index = key.index
        height, width = self.sizes[index].tolist()
        image = self.decode(self.read(index), rng)
        if image.shape[:2] != (height, width):
            raise ValueError(
                f"expected an image of {width}x{height} as its annotation says, "
                f"got {image.shape[1]}x{image.shape[0]}{self._turned(image, width, height)}"
            )
        truth = self._targets(self._images[index])
        image, boxes, labels = self.transforms(image, truth.boxes, truth.labels, rng)
        image = as_chw(image, self.transforms.gives_chw)
        scale = np.array([image.shape[2], image.shape[1]] * 2, dtype=np.float32)
        boxes = np.clip(boxes / scale, 0.0, 1.0).astype(np.float32)
        return DetectionSample(image, boxes, labels, index, (height, width))


def split_decode(transforms: BoxCompose, where: str) -> tuple[DecodeImage, BoxCompose]:
    """Take DecodeImage off the front, so that the decoded size can be checked before the rest."""
    first = transforms.transforms[0] if transforms.transforms else None
    decode = first.transform if isinstance(first, PixelTransform) else None
    return require_decode(decode, where), BoxCompose(transforms.transforms[1:])


def require_decode(first: Any, where: str) -> DecodeImage:
    """Return the first transform of a list. Raises ConfigError when it is not DecodeImage."""
    if not isinstance(first, DecodeImage) or first.channel_first:
        raise ConfigError(
            f"{where}: expected DecodeImage (without channel_first) as the first transform"
        )
    return first


def check_class_num(categories: int, class_num: int | None, where: str) -> int:
    """Return the number of classes with the background; DataError when `class_num` is another."""
    if class_num is not None and class_num != categories + 1:
        raise DataError(
            f"{where}: expected {class_num - 1} categories (class_num {class_num} counts the "
            f"background too), found {categories}; set class_num to {categories + 1}"
        )
    return categories + 1


def join_folder(dataset_dir: str | None, path: str) -> str:
    """PaddleDetection's paths: below `dataset_dir` when there is one."""
    return os.path.join(dataset_dir, path) if dataset_dir else path


def check_files(paths: Iterable[str], what: str) -> None:
    """Raise DataError for the first missing file, listing each folder once."""
    known: dict[str, set[str]] = {}
    missing = []
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in known:
            known[folder] = _names_in(folder)
        if name not in known[folder]:
            missing.append(path)
    if missing:
        more = f" and {len(missing) - 1} more are missing" if len(missing) > 1 else ""
        raise DataError(f"{missing[0]}: expected {what}, found no such file{more}")


def _names_in(folder: str) -> set[str]:
    """The names in a folder, none if it is not there."""
    try:
        return set(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError as error:
        raise DataError(f"{folder}: expected a folder to list, but {error.strerror}") from error
