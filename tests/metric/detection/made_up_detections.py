"""Made-up data sets and detections."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import numpy as np

from ppcls.metric.detection import Detections, Objects


@dataclass
class Images:
    """A data set as metrics see it."""

    truth: list[Objects]
    class_names: list[str] = field(default_factory=lambda: ["background", "cat", "dog"])
    image_ids: list = field(default_factory=list)
    official_quirks: bool = True

    def __post_init__(self):
        self.image_ids = self.image_ids or [f"{i:06d}" for i in range(len(self.truth))]

    def __len__(self):
        return len(self.truth)

    def ground_truth(self, index):
        return self.truth[index]


@dataclass
class CocoFileImages(Images):
    anno_path: str = ""
    category_ids: np.ndarray = field(default_factory=lambda: np.array([-1, 7, 9]))


def objects(*rows, difficult=(), crowd=()):
    """Rows of (label, x1, y1, x2, y2); `difficult` and `crowd` are numbers of rows."""
    table = np.array(rows, np.float32).reshape(-1, 5)
    flags = [np.isin(np.arange(len(table)), list(chosen)) for chosen in (difficult, crowd)]
    return Objects(table[:, 1:], table[:, 0].astype(np.int64), *flags)


def found(*rows):
    """Rows of (label, score, x1, y1, x2, y2)."""
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(table[:, 0].astype(np.int64), table[:, 1], table[:, 2:])


def random_images(count, classes, seed, kind=Images, **options):
    """Images with up to 6 objects; about one in five is difficult."""
    rng = np.random.default_rng(seed)
    truth = []
    for _ in range(count):
        n = int(rng.integers(0, 7))
        boxes = random_boxes(rng, n)
        labels = rng.integers(1, classes + 1, n)
        truth.append(Objects(boxes, labels, rng.random(n) < 0.2, np.zeros(n, bool)))
    return kind(truth, ["background", *(f"c{k}" for k in range(classes))], **options)


def random_boxes(rng, n):
    corner, size = rng.integers(0, 200, (n, 2)), rng.integers(1, 120, (n, 2))
    return np.concatenate([corner, corner + size], axis=1).astype(np.float32)


def random_detections(images, seed, scores=20):
    """Near hits, doubles, wrong classes and noise; only `scores` different scores, so many ties."""
    rng = np.random.default_rng(seed)
    result = {}
    for index, truth in enumerate(images.truth):
        picked = rng.integers(0, len(truth.labels), 9) if len(truth.labels) else np.zeros(0, int)
        near = truth.boxes[picked] + rng.integers(-9, 10, (len(picked), 4))
        far = random_boxes(rng, int(rng.integers(0, 4)))
        kinds = np.where(rng.random(len(picked)) < 0.8, truth.labels[picked], 1)
        labels = [kinds, rng.integers(1, len(images.class_names), len(far))]
        boxes = np.concatenate([near, far]).astype(np.float32)
        boxes[:, 2:] = np.maximum(boxes[:, :2], boxes[:, 2:])
        points = (rng.integers(0, scores, len(boxes)) / scores).astype(np.float32)
        result[index] = Detections(np.concatenate(labels).astype(np.int64), points, boxes)
    return result


def write_annotations(path, annotations, image_ids, categories=((7, "cat"), (9, "dog"))):
    """annotations: dicts; an id is added to those without."""
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "height": 400, "width": 400} for i in image_ids
        ],
        "categories": [{"id": i, "name": name} for i, name in categories],
        "annotations": [{"id": n, **row} for n, row in enumerate(annotations, 1)],
    }
    path.write_text(json.dumps(content))
    return str(path)


def annotation(image_id, category_id, bbox, **more):
    area = bbox[2] * bbox[3]
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, "area": area} | {
        "iscrowd": 0,
        **more,
    }
