"""What a prediction says, in PaddleClas's words: one for all tools and runtimes.

With NumPy alone: an image may be classified where there is no Paddle.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ppcls.metric.detection.types import Detections
from ppcls.utils.errors import JobError

Result = dict[str, Any]
MOST_DESCRIBED = 10  # detections in the line of one image


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities [N, C] float32 of logits [N, C]."""
    logits = logits.astype(np.float32)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def check_finite(values: np.ndarray) -> None:
    """Raise JobError for a network's output that is no number, or infinite."""
    if not np.isfinite(values).all():
        raise JobError("the network's output is not finite: its weights may be damaged")


def top_classes(
    name: str | None,
    scores: np.ndarray,
    k: int,
    names: Mapping[int, str] | Sequence[str] | None,
) -> Result:
    """Return the `k` best classes of an image, best first, as PaddleClas does: file_name,
    class_ids, scores and, with `names` of the classes, label_names.

    scores: [C]. Equal ones keep the order of the classes.
    """
    best = np.argsort(-scores, kind="stable")[:k]
    result: Result = {
        "file_name": name,
        "class_ids": [int(i) for i in best],
        "scores": [float(scores[i]) for i in best],
    }
    if names is not None:
        result["label_names"] = [names[int(i)] for i in best]
    return result


def describe_classes(result: Result) -> str:
    """Return the log line of `top_classes`."""

    def parts() -> Iterator[str]:
        labels = result.get("label_names") or [""] * len(result["class_ids"])
        for number, score, label in zip(result["class_ids"], result["scores"], labels, strict=True):
            yield f"{number} {label} {score:.4f}".replace("  ", " ")

    return f"{result['file_name']}: {', '.join(parts())}"


def numbered_names(class_num: int) -> list[str]:
    """Return a detector's class names where nobody gave any, the background first."""
    return ["background", *map(str, range(1, class_num))]


def found_objects(name: str | None, found: Detections, names: Sequence[str]) -> Result:
    """Return the detections of an image, best first: file_name, labels, label_names, scores and
    boxes (x1, y1, x2, y2 in pixels of the original image, not cut to it)."""
    order = np.argsort(-found.scores, kind="stable")
    labels = found.labels[order].tolist()
    return {
        "file_name": name,
        "labels": labels,
        "label_names": [names[label] for label in labels],
        "scores": found.scores[order].tolist(),
        "boxes": found.boxes[order].tolist(),
    }


def as_detections(result: Result) -> Detections:
    """Return what `found_objects` was made of, best first."""
    return Detections(
        np.array(result["labels"], np.int64),
        np.array(result["scores"], np.float32),
        np.array(result["boxes"], np.float32).reshape(-1, 4),
    )


def describe_objects(result: Result, threshold: float) -> str:
    """Return the log line of `found_objects`: the best of the scores from `threshold` on."""
    rows = zip(result["label_names"], result["scores"], result["boxes"], strict=True)
    found = [row for row in rows if row[1] >= threshold]
    shown = [
        f"{name} {score:.3f} [{', '.join(f'{x:.0f}' for x in box)}]"
        for name, score, box in found[:MOST_DESCRIBED]
    ]
    more = f" and {len(found) - len(shown)} more" if len(found) > len(shown) else ""
    return f"{result['file_name']}: {'; '.join(shown) or 'nothing'}{more}"
