"""COCO's average precision, by pycocotools (the extra `det`).

Source: PingoLH/PytorchSSD-HarDNet (MIT), which writes COCO's result format and lets a copy of
pycocotools judge it. Settings are pycocotools' own: IoU 0.50 to 0.95, at most 1, 10 and 100
detections. The tool applies these limits per image and class, so with a network that keeps at most
50 per class, the limit of 100 never cuts anything.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ppcls.metric.detection.registry import DETECTION_METRICS
from ppcls.metric.detection.types import AnnotatedImages, CocoImages, Detections, image_order
from ppcls.utils.errors import ConfigError, DataError, UserError
from ppcls.utils.fileio import atomic_write_text

if TYPE_CHECKING:
    from pycocotools.coco import COCO

logger = logging.getLogger("ppcls")

STAT_NAMES = tuple("AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl".split())
MAX_DETECTIONS = (1, 10, 100)


@dataclass(frozen=True)
class CocoResult:
    """What pycocotools found. Numbers are fractions, NaN where there is nothing to be found."""

    stats: dict[str, float]  # the twelve of STAT_NAMES
    per_class: dict[str, float]  # AP by the category names of the annotation file
    summary: str  # the twelve lines pycocotools prints
    images: int

    def table(self) -> str:
        """Return the twelve numbers in per cent, under their names."""
        cells = ["-" if np.isnan(x) else f"{100 * x:.1f}" for x in self.stats.values()]
        widths = [max(len(name), 5) for name in self.stats]
        rows = (self.stats, cells)
        return "\n".join(
            " ".join(text.rjust(width) for text, width in zip(row, widths, strict=True))
            for row in rows
        )


@DETECTION_METRICS.register()
class COCOMetric:
    """The twelve numbers of COCO, for a data set that was read from a COCO annotation file.

    plus_one: see `coco_results`; null follows the data set's reading of boxes (`official_quirks`).
    Raises UserError when pycocotools is not installed.
    """

    names = list(STAT_NAMES)

    def __init__(self, plus_one: bool | None = None) -> None:
        _import_pycocotools()  # now, and not after hours of training
        self.plus_one = plus_one

    def check(self, images: AnnotatedImages) -> None:
        """Raise ConfigError unless the data set was read from a COCO annotation file."""
        if getattr(images, "anno_path", None) is None:
            raise ConfigError(
                "COCOMetric: expected a data set with a COCO annotation file, got a "
                f"{type(images).__name__}; use VOCMetric"
            )

    def evaluate(
        self, detections: Mapping[int, Detections], images: CocoImages
    ) -> dict[str, float]:
        """Return `names`, then `AP/<category>`; see `DetectionMetric`.

        The true objects come from the annotation file itself, with their areas and crowd flags.
        """
        self.check(images)
        plus_one = images.official_quirks if self.plus_one is None else self.plus_one
        by_id = {images.image_ids[i]: detections[i] for i in image_order(detections, images)}
        logger.info("COCO: judging %d images, which may take minutes", len(by_id))
        result = coco_ap(images.anno_path, images.category_ids, by_id, plus_one=plus_one)
        logger.info("COCO, %d images:\n%s", result.images, result.table())
        logger.debug("%s", result.summary)
        return result.stats | {f"AP/{name}": value for name, value in result.per_class.items()}


def coco_ap(
    annotations: str | Path | COCO,
    category_ids: Sequence[int],
    detections: Mapping[Any, Detections],
    *,
    plus_one: bool = True,
) -> CocoResult:
    """Judge detections by the annotations of the same images.

    annotations: a COCO annotation file, or pycocotools' object. category_ids: the category id of
    each label, that of the background first and unused; other categories are left out. detections:
    by image id; exactly these images are judged, so one in which nothing was found needs an entry
    too. plus_one: see `coco_results`.

    Raises UserError when pycocotools is not installed, DataError for a file that cannot be used.
    """
    COCO, COCOeval = _import_pycocotools()
    if isinstance(annotations, (str, Path)):
        content, where = read_annotations(annotations), str(annotations)
    else:
        content, where = annotations.dataset, "annotations"
    truth = restrict(content, detections, _known(category_ids), where)
    found = {**truth, "annotations": _as_annotations(detections, category_ids, plus_one)}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        judge = COCOeval(_index(COCO, truth), _index(COCO, found), "bbox")
        judge.params.maxDets = list(MAX_DETECTIONS)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    names = {row["id"]: str(row.get("name", row["id"])) for row in truth["categories"]}
    return CocoResult(
        stats={k: _or_nan(v) for k, v in zip(STAT_NAMES, judge.stats, strict=True)},
        per_class=_per_class(judge.eval["precision"], [names[i] for i in judge.params.catIds]),
        summary="\n".join(line for line in printed.getvalue().splitlines() if "@[" in line),
        images=len(detections),
    )


def coco_results(
    detections: Mapping[Any, Detections],
    category_ids: Sequence[int],
    *,
    plus_one: bool = True,
) -> list[dict[str, Any]]:
    """Return detections, by image id, in COCO's result format: bbox is [x, y, width, height].

    plus_one: width = x2 - x1 + 1, and the same for the height, as the official code writes it. It
    is the inverse of reading annotations as x2 = x1 + width - 1, which is what the data set does
    and what a network trained on it has learnt: a box found exactly is then exactly the annotated
    one. Say False for boxes whose x2 is x1 + width.
    """
    offset = 1.0 if plus_one else 0.0
    results = []
    for image_id, (labels, scores, boxes) in detections.items():
        corners = np.asarray(boxes, np.float64).reshape(-1, 4)
        sizes = corners[:, 2:] - corners[:, :2] + offset
        xywh = np.concatenate([corners[:, :2], sizes], axis=1).tolist()
        categories = np.asarray(category_ids)[labels].tolist()
        for category, score, bbox in zip(categories, scores.tolist(), xywh, strict=True):
            name = {"image_id": _plain(image_id), "category_id": category}
            results.append({**name, "bbox": bbox, "score": score})
    return results


def write_coco_results(path: str | Path, results: list[dict[str, Any]]) -> None:
    """Write what `coco_results` returns as JSON that COCO's server and `COCO.loadRes` read.

    No digit is lost: pycocotools finds in the file the numbers `coco_ap` finds.
    """
    atomic_write_text(path, json.dumps(results, allow_nan=False))


def read_annotations(path: str | Path) -> dict[str, Any]:
    """Return the content of a COCO annotation file. Raises DataError for anything else."""
    try:
        content = json.loads(Path(path).read_bytes())  # UTF-8 or -16, with or without a mark
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such annotation file") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected COCO annotations in JSON: {error}") from error
    for key in ("images", "annotations", "categories"):
        rows = content.get(key) if isinstance(content, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise DataError(f"{path}: expected COCO annotations, found no list of {key}")
    return content


def restrict(
    content: Mapping[str, Any],
    image_ids: Collection[Hashable],
    category_ids: Collection[int],
    where: str,
) -> dict[str, Any]:
    """Return the part of COCO annotations about these images and categories.

    Annotations are numbered anew from 1: pycocotools takes an object numbered 0 as never found. An
    object without `iscrowd` is no crowd, one without `area` has that of its box.

    Raises DataError for an image or category the annotations do not have, and for a damaged object.
    """
    images = [row for row in content["images"] if row.get("id") in image_ids]
    categories = [row for row in content["categories"] if row.get("id") in category_ids]
    for kind, wanted, rows in (
        ("image", image_ids, images),
        ("category", category_ids, categories),
    ):
        missing = set(wanted) - {row["id"] for row in rows}
        if missing:
            raise DataError(f"{where}: expected the {kind} {min(missing, key=str)!r}, found none")
    annotations = [
        _annotation(row, number, where)
        for number, row in enumerate(
            (
                row
                for row in content["annotations"]
                if row.get("image_id") in image_ids and row.get("category_id") in category_ids
            ),
            1,
        )
    ]
    return {"images": images, "annotations": annotations, "categories": categories}


def _known(category_ids: Sequence[int]) -> set[int]:
    return {int(number) for number in category_ids[1:]}


def _annotation(row: Mapping[str, Any], number: int, where: str) -> dict[str, Any]:
    bbox = row.get("bbox")
    try:
        x, y, width, height = map(float, bbox)
        area = float(row.get("area", width * height))
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{where}: annotation {row.get('id')!r}: expected a bbox [x, y, width, height] and a "
            f"number as area, got {bbox!r} and {row.get('area')!r}"
        ) from error
    return {
        "id": number,
        "image_id": row["image_id"],
        "category_id": row["category_id"],
        "bbox": [x, y, width, height],
        "area": area,
        "iscrowd": int(bool(row.get("iscrowd", 0))),
    }


def _import_pycocotools() -> tuple[Any, Any]:
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise UserError(
            "COCOMetric: expected the package 'pycocotools', found none; "
            "install it with: pip install 'hardnet-paddle[det]'"
        ) from error
    return COCO, COCOeval


def _as_annotations(
    detections: Mapping[Any, Detections], category_ids: Sequence[int], plus_one: bool
) -> list[dict[str, Any]]:
    """Return results with what pycocotools' own `loadRes` adds; that one refuses an empty list."""
    rows = coco_results(detections, category_ids, plus_one=plus_one)
    for number, row in enumerate(rows, 1):
        _, _, width, height = row["bbox"]
        row |= {"id": number, "area": width * height, "iscrowd": 0}
    return rows


def _index(COCO: Any, content: dict[str, Any]) -> COCO:
    """Return pycocotools' object for annotations that are in memory already."""
    coco = COCO()
    coco.dataset = content
    coco.createIndex()
    return coco


def _per_class(precision: np.ndarray, names: list[str]) -> dict[str, float]:
    """precision: pycocotools' [IoU, recall, category, area, limit], -1 where nothing exists."""
    values = precision[:, :, :, 0, -1]
    return {name: _or_nan(values[:, :, k].mean()) for k, name in enumerate(names)}


def _or_nan(value: float) -> float:
    """pycocotools says -1 for a number that does not exist, such as the AP of no small objects."""
    return float("nan") if value < 0 else float(value)


def _plain(value: Any) -> Any:
    """Return an image id as JSON can write it: NumPy's integers are none of Python's."""
    return value.item() if isinstance(value, np.generic) else value
