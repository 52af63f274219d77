"""Post-processing as users have it, one class after the other, to measure ours against.

The procedure is that of PingoLH/PytorchSSD-HarDNet (MIT), `test.py`: softmax and decoding of all
boxes at once, the boxes that are not background, then per class threshold, suppression and limit.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor

from ppcls.arch.detection.boxes import decode, encode, pairwise_iou, to_corners
from ppcls.arch.detection.postprocess import PostProcessConfig
from ppcls.arch.detection.priors import PRIORS, prior_boxes

KINDS = ("dense", "typical", "empty")
Predictions = tuple[Tensor, Tensor, Tensor, Tensor]  # loc, conf, priors, image_sizes


def predictions(kind: str, size: int = 512, class_num: int = 81, seed: int = 0) -> Predictions:
    """Make up what a network gives for one image.

    dense: noise, thousands of boxes of each class over the threshold, as from an untrained network.
    typical: background, but for 12 objects, whose priors are confident by how well they overlap.
    empty: background alone.
    """
    rng = np.random.default_rng(seed)
    priors = paddle.to_tensor(prior_boxes(PRIORS["coco", size]))
    conf = rng.standard_normal((len(priors), class_num)).astype("float32")
    loc = rng.standard_normal((len(priors), 4)).astype("float32")
    if kind != "dense":
        conf[:, 0] += 10
    if kind == "typical":
        _add_objects(loc, conf, priors, rng)
    sizes = paddle.to_tensor([[640.0, 427.0]])
    return paddle.to_tensor(loc[None]), paddle.to_tensor(conf[None]), priors, sizes


def _add_objects(loc: np.ndarray, conf: np.ndarray, priors: Tensor, rng: np.random.Generator):
    objects = 12
    side = rng.uniform(0.08, 0.5, (objects, 2))
    first = rng.uniform(0, 1 - side)
    truth = paddle.to_tensor(np.concatenate([first, first + side], 1).astype("float32"))
    overlap = pairwise_iou(truth, to_corners(priors)).numpy()
    owner, best = overlap.argmax(axis=0), overlap.max(axis=0)
    near = np.flatnonzero(best > 0.4)
    offsets = encode(truth[owner[near]], priors[near]).numpy()
    loc[near] = offsets + 0.3 * loc[near]
    labels = rng.integers(1, conf.shape[1], (objects, 2))[owner[near]]
    confidence = 20 * best[near] + rng.standard_normal(len(near))
    conf[near, labels[:, 0]] += confidence
    conf[near, labels[:, 1]] += confidence - 3  # a class taken for it


def paddle_loop(
    loc: Tensor, conf: Tensor, priors: Tensor, image_sizes: Tensor, config: PostProcessConfig
) -> np.ndarray:
    """Return the rows [K, 6] of one image, by Paddle's operators class by class."""
    scores = F.softmax(conf[0], axis=-1)
    boxes = decode(loc[0], priors) * paddle.concat([image_sizes[0], image_sizes[0]])
    foreground = paddle.nonzero(scores[:, 0] < config.background).flatten()
    found = []
    if len(foreground):
        boxes, scores = paddle.gather(boxes, foreground), paddle.gather(scores, foreground)
        for label in range(1, scores.shape[1]):
            of_class = scores[:, label]
            index = paddle.nonzero(of_class > config.score).flatten()
            if not len(index):
                continue
            chosen, score = paddle.gather(boxes, index), paddle.gather(of_class, index)
            keep = paddle.vision.ops.nms(chosen, config.iou, score)[: config.per_class]
            score = paddle.gather(score, keep).unsqueeze(1)
            rows = [paddle.full_like(score, label), score, paddle.gather(chosen, keep)]
            found.append(paddle.concat(rows, axis=1))
    rows = paddle.concat(found) if found else paddle.zeros([0, 6])
    if len(rows) > config.per_image:
        lowest = paddle.topk(rows[:, 1], config.per_image)[0][-1]
        rows = paddle.gather(rows, paddle.nonzero(rows[:, 1] >= lowest).flatten())
    return rows.numpy()


def numpy_loop(
    loc: Tensor, conf: Tensor, priors: Tensor, image_sizes: Tensor, config: PostProcessConfig
) -> np.ndarray:
    """Return the rows [K, 6] of one image, by NumPy after Paddle's softmax and decoding."""
    scores, boxes = F.softmax(conf[0], axis=-1).numpy(), decode(loc[0], priors).numpy()
    return select(boxes, scores, image_sizes[0].numpy(), config)


def select(
    boxes: np.ndarray, scores: np.ndarray, size: np.ndarray, config: PostProcessConfig
) -> np.ndarray:
    """Return the rows [K, 6] of one image.

    boxes: relative corners [P, 4]; scores: [P, C]; size: (width, height) in pixels.
    """
    is_kept = scores[:, 0] < np.float32(config.background)
    boxes, scores = boxes[is_kept] * np.tile(size, 2).astype("float32"), scores[is_kept]
    found = [np.zeros((0, 6), "float32")]
    for label in range(1, scores.shape[1]):
        index = np.flatnonzero(scores[:, label] > np.float32(config.score))
        if not len(index):
            continue
        chosen, score = boxes[index], scores[index, label]
        keep = nms(chosen, score, config.iou, int(config.legacy_pixels))[: config.per_class]
        rows = [np.full((len(keep), 1), label), score[keep, None], chosen[keep]]
        found.append(np.concatenate(rows, axis=1, dtype="float32"))
    rows = np.concatenate(found)
    if len(rows) > config.per_image:
        rows = rows[rows[:, 1] >= np.sort(rows[:, 1])[-config.per_image]]
    return rows


def nms(boxes: np.ndarray, scores: np.ndarray, iou: float, plus: int = 0) -> list[int]:
    """Return the indices of kept corners [n, 4], best first: the well-known `py_cpu_nms`.

    plus: 1 counts pixels, as the original does.
    """
    x1, y1, x2, y2 = boxes.T
    areas = (x2 - x1 + plus) * (y2 - y1 + plus)
    order = np.argsort(-scores, kind="stable")
    keep = []
    while order.size > 0:
        first, order = order[0], order[1:]
        keep.append(first)
        width = np.minimum(x2[first], x2[order]) - np.maximum(x1[first], x1[order]) + plus
        height = np.minimum(y2[first], y2[order]) - np.maximum(y1[first], y1[order]) + plus
        shared = np.maximum(0, width) * np.maximum(0, height)
        order = order[shared / (areas[first] + areas[order] - shared) <= iou]
    return keep


LOOPS: dict[str, Callable[..., np.ndarray]] = {"Paddle": paddle_loop, "NumPy": numpy_loop}
