"""Boxes of many images in a few arrays, checked and counted while they are collected."""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np

_logger = logging.getLogger("ppcls")

# A narrower box has no area: float32 cannot tell its corners apart in an image of 100,000 pixels.
_LEAST_SIDE = 0.01
MAX_IMAGE_SIDE = 100_000


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
        dropped: boxes without area inside their image, which were left out.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.clipped = self.dropped = 0
        self._first_clipped = self._first_dropped = ""
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

        `name` says in the log which one it is, `is_cut` that the caller has already cut it.
        """
        height, width = self._sizes[-1]
        x1, y1, x2, y2 = box
        cut = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
        if min(cut[2] - cut[0], cut[3] - cut[1]) < _LEAST_SIDE:
            self.dropped += 1
            self._first_dropped = self._first_dropped or name
            return
        if is_cut or cut != box:
            self.clipped += 1
            self._first_clipped = self._first_clipped or name
        self._rows.append((*cut, label, difficult, crowd))

    def finish(self) -> None:
        """Turn what was added into arrays, and say in the log what was changed."""
        rows = np.array(self._rows, dtype=np.float64).reshape(-1, 7)
        self.boxes = rows[:, :4].astype(np.float32)
        self.labels = rows[:, 4].astype(np.int64)
        self.difficult, self.crowd = rows[:, 5] > 0, rows[:, 6] > 0
        self.sizes = np.array(self._sizes, dtype=np.int64).reshape(-1, 2)
        self.bounds = np.array([*self._starts, len(rows)], dtype=np.int64)
        total = len(self._rows) + self.dropped
        self._rows, self._sizes, self._starts = [], [], []
        if self.clipped:
            _logger.info(
                "%s: %d of %d boxes reach beyond their image and were cut to it (first: %s)",
                *(self.source, self.clipped, total, self._first_clipped),
            )
        if self.dropped:
            _logger.warning(
                "%s: %d of %d boxes have no area inside their image and were left out (first: %s)",
                *(self.source, self.dropped, total, self._first_dropped),
            )

    def ground_truth(self, image: int) -> GroundTruth:
        rows = slice(self.bounds[image], self.bounds[image + 1])
        return GroundTruth(
            self.boxes[rows], self.labels[rows], self.difficult[rows], self.crowd[rows]
        )
