"""Pascal VOC's mean average precision, at an IoU above 0.5.

Source: the VOC development kit's rules as PingoLH/PytorchSSD-HarDNet (MIT) applies them. Each
detection looks at the object of its class and image it overlaps most, and finds it if the IoU is
above the threshold and no better-scored detection found it before. Difficult objects need not be
found, and who finds one is neither right nor wrong.

What differs: equal scores keep the order of images and of detections (the official sort is free
there), recall is compared in whole numbers (0.3 is reached by 3 of 10), and a class nobody detects
has AP 0 (the official code stops).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from ppcls.metric.detection.registry import DETECTION_METRICS
from ppcls.metric.detection.types import AnnotatedImages, Detections, Objects, image_order
from ppcls.utils.errors import DataError
from ppcls.utils.fileio import atomic_write_text

logger = logging.getLogger("ppcls")

Metric = Literal["11point", "area"]


@dataclass(frozen=True)
class VocResult:
    """APs are fractions; NaN for a class that has no object to be found."""

    mean: float  # over the classes that are not NaN
    per_class: dict[str, float]
    images: int

    def table(self) -> str:
        """Return a line per class, in per cent."""
        width = max(map(len, [*self.per_class, "mAP"]))
        rows = [*self.per_class.items(), ("mAP", self.mean)]
        return "\n".join(
            f"{name.ljust(width)} {'no objects' if np.isnan(ap) else f'{100 * ap:5.1f}'}"
            for name, ap in rows
        )


@DETECTION_METRICS.register()
class VOCMetric:
    """Pascal VOC's mAP.

    Args:
        metric: `11point` is the mean of the best precision at recalls 0, 0.1 ... 1 (VOC 2007),
            `area` the area under the curve of best precisions (VOC 2010 and later).
        iou: two boxes meet when their IoU is above this.
        plus_one: a box is x2 - x1 + 1 wide, as VOC counts from pixel to pixel; null does so for a
            data set whose corners are pixel numbers (its `official_quirks`), not outer edges.
        official_quirks: judge what the official result files hold, scores of 3 decimals and
            coordinates of 1, and compare recalls as floating-point numbers.

    Raises ValueError for an iou outside 0..1.
    """

    names = ["mAP"]

    def __init__(
        self,
        metric: Metric = "11point",
        iou: float = 0.5,
        plus_one: bool | None = None,
        official_quirks: bool = False,
    ) -> None:
        if not 0 <= iou < 1:
            raise ValueError(f"iou: expected a number in 0..1, got {iou!r}")
        self.metric = metric
        self.iou = iou
        self.plus_one = plus_one
        self.official_quirks = official_quirks

    def check(self, images: AnnotatedImages) -> None:
        """Any data set will do."""

    def evaluate(
        self, detections: Mapping[int, Detections], images: AnnotatedImages
    ) -> dict[str, float]:
        """Return `mAP`, then `mAP/<class>`; see `DetectionMetric`."""
        result = voc_map(
            detections,
            images,
            metric=self.metric,
            iou=self.iou,
            plus_one=images.official_quirks if self.plus_one is None else self.plus_one,
            official_quirks=self.official_quirks,
        )
        logger.info("VOC (%s), %d images:\n%s", self.metric, result.images, result.table())
        return {"mAP": result.mean} | {f"mAP/{k}": v for k, v in result.per_class.items()}


def voc_map(
    detections: Mapping[int, Detections],
    images: AnnotatedImages,
    *,
    metric: Metric = "11point",
    iou: float = 0.5,
    plus_one: bool = True,
    official_quirks: bool = False,
) -> VocResult:
    """Judge the images `detections` has an entry for; the arguments are those of VOCMetric.

    Crowds, which only COCO has, are treated as difficult objects.
    """
    names = images.class_names
    positives = np.zeros(len(names), np.int64)
    parts = [_no_pairs()]
    seen = 0  # objects of the images before
    for index in image_order(detections, images):
        found, objects = detections[index], images.ground_truth(index)
        if official_quirks:
            found, objects = _as_in_files(found, objects, plus_one)
        parts.append(_pair(found, objects, iou, plus_one or official_quirks, seen))
        seen += len(objects.labels)
        needed = objects.labels[~(objects.difficult | objects.crowd)]
        positives += np.bincount(needed, minlength=len(positives))
    pairs = Pairs(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    per_class = {
        name: _class_ap(pairs, label, int(positives[label]), metric, official_quirks)
        for label, name in enumerate(names[1:], 1)
    }
    known = [ap for ap in per_class.values() if not np.isnan(ap)]
    mean = float(np.mean(known)) if known else float("nan")
    return VocResult(mean, per_class, images=len(detections))


class Pairs(NamedTuple):
    """Detections of many images, each with the object it overlaps most."""

    labels: np.ndarray  # [K] int64
    scores: np.ndarray  # [K] float64
    objects: np.ndarray  # [K] int64: a number of its own for every object, -1 for none
    ignored: np.ndarray  # [K] bool: that object is a difficult one


def _no_pairs() -> Pairs:
    return Pairs(np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int64), np.zeros(0, bool))


def _pair(found: Detections, objects: Objects, iou: float, plus_one: bool, first: int) -> Pairs:
    """Pair the detections of one image; its objects are numbered from `first`."""
    labels, scores = found.labels, found.scores.astype(np.float64)
    if not len(labels) or not len(objects.labels):
        nothing = np.full(len(labels), -1, np.int64)
        return Pairs(labels, scores, nothing, np.zeros(len(labels), bool))
    overlaps = box_iou(found.boxes, objects.boxes, plus_one)
    overlaps[labels[:, None] != objects.labels] = -1.0
    best = overlaps.argmax(axis=1)
    meets = overlaps[np.arange(len(best)), best] > iou
    ignored = meets & (objects.difficult | objects.crowd)[best]
    return Pairs(labels, scores, np.where(meets, first + best, -1), ignored)


def box_iou(a: np.ndarray, b: np.ndarray, plus_one: bool) -> np.ndarray:
    """Return the IoU of corner boxes a [k, 4] and b [n, 4] as [k, n] float64; 0 without an area.

    plus_one: a box from x1 to x2 is x2 - x1 + 1 wide.
    """
    offset = 1.0 if plus_one else 0.0
    a, b = a.astype(np.float64)[:, None], b.astype(np.float64)[None]
    low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
    common = (high - low + offset).clip(min=0).prod(axis=-1)
    areas = [(box[..., 2:] - box[..., :2] + offset).prod(axis=-1) for box in (a, b)]
    union = areas[0] + areas[1] - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)


def _class_ap(pairs: Pairs, label: int, positives: int, metric: Metric, quirks: bool) -> float:
    if positives == 0:
        return float("nan")
    chosen = np.flatnonzero((pairs.labels == label) & ~pairs.ignored)
    order = chosen[np.argsort(-pairs.scores[chosen], kind="stable")]
    return average_precision(_first_finds(pairs.objects[order]), positives, metric, quirks)


def _first_finds(objects: np.ndarray) -> np.ndarray:
    """Return where a number that is not -1 occurs for the first time: [K] bool."""
    first = np.zeros(len(objects), bool)
    first[np.unique(objects, return_index=True)[1]] = True
    return first & (objects >= 0)


def average_precision(
    is_right: np.ndarray, positives: int, metric: Metric, float_recall: bool = False
) -> float:
    """Return the AP of detections ordered from the best score to the worst.

    is_right: [K] bool. positives: objects there are to find, at least 1. metric: see VOCMetric.
    float_recall: for `11point`, compare recalls as floating-point numbers, like the official code,
    where 3 of 10 objects are less than a recall of 0.3.
    """
    right = is_right.cumsum()
    precision = right / np.arange(1, len(right) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]  # at this recall or a higher one
    if metric == "area":
        return float(best[is_right].sum() / positives)
    if float_recall:
        starts = np.searchsorted(right / positives, np.arange(0.0, 1.1, 0.1))
    else:
        starts = np.searchsorted(right * 10, np.arange(11) * positives)
    return float(np.append(best, 0.0)[starts].sum() / 11)


def _as_in_files(found: Detections, objects: Objects, plus_one: bool) -> tuple[Detections, Objects]:
    """Return what official result and annotation files say: pixels counted from 1, and rounded."""
    scores = np.char.mod("%.3f", found.scores.astype(np.float64)).astype(np.float64)
    corners = _from_one(found.boxes, plus_one).astype(np.float64)
    boxes = np.char.mod("%.1f", corners).astype(np.float64)
    return (
        Detections(found.labels, scores, boxes),
        Objects(_from_one(objects.boxes, plus_one), *objects[1:]),
    )


def _from_one(boxes: np.ndarray, plus_one: bool) -> np.ndarray:
    """Return corners as numbers of the first and last pixel, the first of the image being 1."""
    return boxes + np.array([1, 1, plus_one, plus_one], np.float32)


def check_file_names(images: AnnotatedImages) -> None:
    """Raise DataError for a class that `write_voc_results` could not name a file by."""
    for name in images.class_names[1:]:
        if "/" in name or "\\" in name:
            raise DataError(f"class {name!r}: expected a name that can be part of a file name")


def write_voc_results(
    folder: str | Path, detections: Mapping[int, Detections], images: AnnotatedImages
) -> None:
    """Write VOC's `comp4_det_test_<class>.txt`, a file per class, into an existing folder.

    Each line is `image score x1 y1 x2 y2`: a score of 3 decimals, corners of 1, counted from 1.
    """
    check_file_names(images)
    order = image_order(detections, images)
    for label, name in enumerate(images.class_names[1:], 1):
        lines = [
            f"{images.image_ids[i]} {score:.3f} {x1:.1f} {y1:.1f} {x2:.1f} {y2:.1f}\n"
            for i in order
            for score, (x1, y1, x2, y2) in _of_class(detections[i], label, images.official_quirks)
        ]
        atomic_write_text(Path(folder) / f"comp4_det_test_{name}.txt", "".join(lines))


def _of_class(found: Detections, label: int, plus_one: bool) -> list[tuple[float, list[float]]]:
    chosen = found.labels == label
    corners = _from_one(found.boxes[chosen], plus_one)
    return list(zip(found.scores[chosen].tolist(), corners.tolist(), strict=True))
