"""What detection metrics work on: the detections of an image, its true objects, and a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from ppcls.utils.errors import JobError


class Detections(NamedTuple):
    """What a network found in one image. Boxes are corners in pixels of the original image."""

    labels: np.ndarray  # [k] int64, classes of the network; 0, the background, never occurs
    scores: np.ndarray  # [k] float32
    boxes: np.ndarray  # [k, 4] float32: x1, y1, x2, y2


class Objects(NamedTuple):
    """The annotated objects of one image. Boxes are corners in pixels of the original image."""

    boxes: np.ndarray  # [n, 4] float32: x1, y1, x2, y2
    labels: np.ndarray  # [n] int64, 1 and above
    difficult: np.ndarray  # [n] bool: VOC's difficult objects
    crowd: np.ndarray  # [n] bool: COCO's regions of many objects


class AnnotatedImages(Protocol):
    """What a metric asks of a data set. Images are known by their index in it."""

    class_names: Sequence[str]  # [class_num], the background first
    image_ids: Sequence[int | str]  # what the annotations call each image
    official_quirks: bool  # corners are the first and last pixel's numbers, not their outer edges

    def __len__(self) -> int:
        """Return the number of images."""

    def ground_truth(self, index: int) -> Objects:
        """Return the annotated objects of an image."""


class CocoImages(AnnotatedImages, Protocol):
    """A data set that was read from a COCO annotation file."""

    anno_path: str
    category_ids: Sequence[int]  # [class_num], COCO's ids; anything for the background


def no_detections() -> Detections:
    return Detections(np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros((0, 4), np.float32))


def split_rows(
    rows: np.ndarray, counts: np.ndarray, indices: Sequence[int]
) -> dict[int, Detections]:
    """Cut what post-processing returns for a batch into the detections of each image.

    rows: [K, 6] float32 (class, score, x1, y1, x2, y2), image after image. counts: [B] rows of each
    image. indices: the images' places in the data set. Returns one entry per index, in this order,
    also for images without detections.

    Raises JobError for a number that is not finite.
    """
    rows = np.asarray(rows, np.float32).reshape(-1, 6)
    counts = np.asarray(counts, np.int64).reshape(-1)
    assert len(counts) == len(indices) and counts.sum() == len(rows), "rows of other images"
    if not np.isfinite(rows).all():
        raise JobError("the network's detections are not finite: its weights may be damaged")
    parts = np.split(rows, np.cumsum(counts)[:-1]) if len(counts) else []
    return {
        int(index): Detections(part[:, 0].astype(np.int64), part[:, 1].copy(), part[:, 2:6].copy())
        for index, part in zip(indices, parts, strict=True)
    }


def image_order(detections: Mapping[int, Detections], images: AnnotatedImages) -> list[int]:
    """Return the images `detections` has an entry for, in the order of the data set."""
    indices = sorted(detections)
    assert not indices or 0 <= indices[0] <= indices[-1] < len(images), "unknown image"
    return indices
