"""Post-processing as the official code does it: one class after the other, in Python.

Source of the procedure: PingoLH/PytorchSSD-HarDNet (MIT), `test.py`. For comparison only.
"""

from __future__ import annotations

import numpy as np
import paddle


def nms(boxes: np.ndarray, scores: np.ndarray, iou: float, plus: int) -> list[int]:
    """Indices of kept corners [n, 4], best first."""
    x1, y1, x2, y2 = boxes.T
    area = (x2 - x1 + plus) * (y2 - y1 + plus)
    order = np.argsort(-scores, kind="stable")
    keep = []
    while len(order):
        first, order = order[0], order[1:]
        keep.append(first)
        width = np.minimum(x2[first], x2[order]) - np.maximum(x1[first], x1[order]) + plus
        height = np.minimum(y2[first], y2[order]) - np.maximum(y1[first], y1[order]) + plus
        shared = np.maximum(width, 0) * np.maximum(height, 0)
        order = order[shared / (area[first] + area[order] - shared) <= iou]
    return keep


def select(boxes, scores, size, config, suppress=nms) -> np.ndarray:
    """One image: relative corners [P, 4], scores [P, C] and (width, height) to rows [K, 6]."""
    boxes = boxes * np.array([*size, *size], "float32")
    is_kept = scores[:, 0] < np.float32(config.background)
    boxes, scores = boxes[is_kept], scores[is_kept]
    found = []
    for label in range(1, scores.shape[1]):
        index = np.flatnonzero(scores[:, label] > np.float32(config.score))
        if not len(index):
            continue
        chosen = boxes[index], scores[index, label]
        keep = suppress(*chosen, config.iou, int(config.legacy_pixels))[: config.per_class]
        rows = np.concatenate([chosen[1][keep, None], chosen[0][keep]], axis=1)
        found.append(np.insert(rows, 0, label, axis=1))
    rows = np.concatenate([np.zeros((0, 6), "float32"), *found])
    if len(rows) > config.per_image:
        rows = rows[rows[:, 1] >= np.sort(rows[:, 1])[-config.per_image]]
    return rows.astype("float32")


def paddle_nms(boxes: np.ndarray, scores: np.ndarray, iou: float, plus: int) -> np.ndarray:
    """`nms` by `paddle.vision.ops.nms`, the way of a port class by class."""
    assert plus == 0
    return paddle.vision.ops.nms(paddle.to_tensor(boxes), iou, paddle.to_tensor(scores)).numpy()
