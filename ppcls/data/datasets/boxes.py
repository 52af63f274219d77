"""Boxes of many images in a few arrays, checked and counted while they are collected."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_logger = logging.getLogger("ppcls")

# A narrower box has no area: float32 cannot tell its corners apart in an image of 100,000 pixels.
_LEAST_SIDE = 0.01
MAX_IMAGE_SIDE = 100_000

# Why a box is left out, as the log says it.
_NO_AREA = "have no area"
_OUTSIDE = "are outside their image"
OUTLINE_WITHOUT_AREA = "have an outline without area"


class GroundTruth(NamedTuple):
    """What is annotated in one image, for training and evaluation alike.

    boxes: [m, 4] float32, corners x1, y1, x2, y2 in pixels of the stored image.
    labels: [m] int64, 1..class_num-1.
    difficult: [m] bool, VOC's flag of objects that evaluation ignores.
    crowd: [m] bool, COCO's flag of boxes around many objects.
    """

    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray
    crowd: np.ndarray

    def take(self, keep: np.ndarray) -> GroundTruth:
        """The rows chosen by `keep` [m] bool."""
        return GroundTruth(*(array[keep] for array in self))


class BoxTable:
    """Annotations of a data set: arrays that workers share, not a million Python objects.

    Call `add_image`, then `add` for each of its boxes, image after image; then `finish`.

    Attributes:
        clipped: boxes that reached beyond their image and were cut to it.
        dropped: boxes that were left out, counted by reason.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.clipped = 0
        self.dropped: Counter[str] = Counter()
        self._first_clipped = ""
        self._first_dropped: dict[str, str] = {}
        self._sizes: list[tuple[int, int]] = []
        self._starts: list[int] = []
        self._rows: list[tuple] = []

    def add_image(self, height: int, width: int) -> None:
        self._sizes.append((height, width))
        self._starts.append(len(self._rows))

    def add(
        self,
        box: tuple[float, float, float, float],
        label: int,
        name: str,
        *,
        difficult: bool = False,
        crowd: bool = False,
        is_cut: bool = False,
    ) -> None:
        """Add finite corners `box` to the last image, cut to it.

        `name` says in the log which one it is, `is_cut` that it reaches beyond the image though the
        caller may have cut it already.
        """
        height, width = self._sizes[-1]
        x1, y1, x2, y2 = box
        cut = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
        if min(cut[2] - cut[0], cut[3] - cut[1]) < _LEAST_SIDE:
            is_flat = min(x2 - x1, y2 - y1) < _LEAST_SIDE and not is_cut
            self.drop(name, _NO_AREA if is_flat else _OUTSIDE)
            return
        if is_cut or cut != box:
            self.clipped += 1
            self._first_clipped = self._first_clipped or name
        self._rows.append((*cut, label, difficult, crowd))

    def drop(self, name: str, reason: str) -> None:
        """Leave a box of the last image out, and count why."""
        self.dropped[reason] += 1
        self._first_dropped.setdefault(reason, name)

    def finish(self) -> None:
        """Turn what was added into arrays, and say in the log what was changed."""
        rows = np.array(self._rows, dtype=np.float64).reshape(-1, 7)
        self.boxes = rows[:, :4].astype(np.float32)
        self.labels = rows[:, 4].astype(np.int64)
        self.difficult, self.crowd = rows[:, 5] > 0, rows[:, 6] > 0
        self.sizes = np.array(self._sizes, dtype=np.int64).reshape(-1, 2)
        self.bounds = np.array([*self._starts, len(rows)], dtype=np.int64)
        total = len(self._rows) + sum(self.dropped.values())
        self._rows, self._sizes, self._starts = [], [], []
        self._log(total)

    def _log(self, total: int) -> None:
        if self.clipped:
            _logger.info(
                "%s: %d of %d boxes reach beyond their image and were cut to it (first: %s)",
                *(self.source, self.clipped, total, self._first_clipped),
            )
        for reason, count in self.dropped.items():
            _logger.warning(
                "%s: %d of %d boxes %s and were left out (first: %s)",
                *(self.source, count, total, reason, self._first_dropped[reason]),
            )

    def digest(self) -> str:
        """SHA-256 of the boxes, labels and flags of each image, in order."""
        found = hashlib.sha256()
        parts = (self.boxes, self.labels, self.difficult, self.crowd, self.sizes, self.bounds)
        for array, dtype in zip(parts, ("<f4", "<i8", "?", "?", "<i8", "<i8"), strict=True):
            found.update(array.astype(dtype).tobytes())
        return found.hexdigest()

    def ground_truth(self, image: int) -> GroundTruth:
        rows = slice(self.bounds[image], self.bounds[image + 1])
        return GroundTruth(
            self.boxes[rows], self.labels[rows], self.difficult[rows], self.crowd[rows]
        )


def without(boxes: GroundTruth | BoxTable, flags: Sequence[str]) -> np.ndarray:
    """Which boxes [m] bool have none of `flags` ("difficult", "crowd")."""
    keep = np.ones(len(boxes.labels), dtype=bool)
    for flag in flags:
        keep &= ~getattr(boxes, flag)
    return keep
