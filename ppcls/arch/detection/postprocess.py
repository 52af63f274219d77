"""From raw predictions to detections, all images and classes at once, with Paddle's operators.

Source: PingoLH/PytorchSSD-HarDNet (MIT), files `layers/functions/detection.py` and `test.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import paddle
import paddle.nn.functional as F
from paddle import Tensor, _C_ops, nn
from paddle.framework import LayerHelper, in_dynamic_or_pir_mode

from ppcls.arch.detection.boxes import decode_parts


@dataclass(frozen=True, kw_only=True)
class PostProcessConfig:
    """Which boxes are kept."""

    score: float = 0.02  # only above
    iou: float = 0.45  # of the same class: above, the lower score goes
    per_class: int = 50  # highest scores of a class, after suppression
    per_image: int = 200  # highest scores of all classes; those equal to the last one stay too
    background: float = 0.9  # a box is only looked at below this background score
    # Until December 2019 the official code counted pixels, (x2 - x1 + 1), in the IoU, and had no
    # background filter (`background` above 1 turns it off); its published AP is of that time.
    legacy_pixels: bool = False
    # Only speed: suppression first tries so many times `per_class` of the best boxes of a class,
    # and takes all when that was too few. 0 takes all at once: no branch in an exported graph.
    first_try: int = 8

    def __post_init__(self) -> None:
        for name in ("per_class", "per_image"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 1 or more, got {getattr(self, name)!r}")
        for name in ("score", "iou", "background", "first_try"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)!r}")


COCO = PostProcessConfig()
VOC = PostProcessConfig(score=0.03, per_image=300)
TRAINING = PostProcessConfig(score=0.01)  # the official tests during training, COCO


class PostProcess(nn.Layer):
    """Softmax, decoding, per-class non-maximum suppression, limits.

    class_num: classes including the background, class 0.
    """

    def __init__(self, class_num: int, config: PostProcessConfig = COCO) -> None:
        super().__init__()
        self.class_num, self.config = class_num, config

    def forward(
        self, loc: Tensor, conf: Tensor, priors: Tensor, image_sizes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return detections [K, 6] float32 and how many each image has, [B] int32.

        loc: [B, P, 4] and conf: [B, P, C], raw. priors: [P, 4] centres. image_sizes: [B, 2],
        (width, height) of the original images in pixels.

        Rows are (class, score, x1, y1, x2, y2), corners in pixels of the original image and not
        clipped to it; image by image, in an image by class, in a class by falling score.
        """
        conf = conf.astype("float32")
        index = _hopeful(conf, self.config.score)
        scores = F.softmax(paddle.gather(conf, index, axis=1), axis=-1)
        boxes = _decode_some(loc.astype("float32"), priors, index)
        return self.select(boxes, scores, image_sizes)

    def select(self, boxes: Tensor, scores: Tensor, image_sizes: Tensor) -> tuple[Tensor, Tensor]:
        """The part after softmax and decoding: boxes [B, P, 4] relative corners, scores [B, P, C].

        Returns what `forward` does.
        """
        sizes = image_sizes.astype("float32")
        pixels = boxes * paddle.concat([sizes, sizes], axis=1).unsqueeze(1)
        is_kept = (_background(scores) < self.config.background).astype("float32")
        by_class = paddle.transpose(scores * is_kept, [0, 2, 1])
        return self._limit(*self._suppress(pixels, by_class))

    def _suppress(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Return at least the first `per_class` detections of each class, padded (`_padded`)."""
        config = self.config

        def attempt(best: int) -> tuple[Tensor, Tensor]:
            rules = config.score, config.iou, config.legacy_pixels
            return _padded(*suppress(boxes, scores, *rules, best))

        if not config.first_try:
            return attempt(-1)
        best = config.first_try * config.per_class
        rows, counts = attempt(best)
        if paddle.in_dynamic_mode() and boxes.shape[1] <= best:
            return rows, counts
        is_cut = (scores[:, 1:] > config.score).astype("int64").sum(axis=2) > best  # [B, C - 1]

        def complete() -> tuple[Tensor, Tensor]:
            # The first rows kept of the best boxes are the first kept of all.
            is_short = paddle.logical_and(is_cut, self._kept(rows, counts) < config.per_class)
            return self._when(is_short.any(), lambda: attempt(-1), (rows, counts))

        return self._when(is_cut.any(), complete, (rows, counts))

    def _when(
        self, is_needed: Tensor, work: Callable[[], tuple[Tensor, ...]], result: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """Return what `work` does, or `result` where that is known to be the same."""
        if not self.config.first_try:
            return work()
        return paddle.static.nn.cond(is_needed, work, lambda: result)

    def _group(self, rows: Tensor, image: Tensor) -> Tensor:
        """Return one number [K] per image and class, ascending like the rows."""
        return image * self.class_num + rows[:, 0].astype("int64")

    def _kept(self, rows: Tensor, counts: Tensor) -> Tensor:
        """Return how many rows each class but the background has in each image, [B, C - 1]."""
        group = self._group(rows, _owner(counts, paddle.shape(rows)[0]))
        table = _count(group, paddle.shape(counts)[0] * self.class_num)
        return table.reshape([-1, self.class_num])[:-1, 1:]

    def _limit(self, rows: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the limits per class and per image, and take the padding away.

        No limit reaches the one row of the image that is the padding.
        """
        is_over = counts.max() > min(self.config.per_class, self.config.per_image)
        rows, counts = self._when(is_over, lambda: self._limited(rows, counts), (rows, counts))
        # As a plain slice, oneDNN would cut `rows`, and fails where no row is left.
        return paddle.strided_slice(rows, [0], [0], [-1], [1]), counts[:-1]

    def _limited(self, rows: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        config, images = self.config, paddle.shape(counts)[0]
        image = _owner(counts, paddle.shape(rows)[0])
        group = self._group(rows, image)
        # Within the limit unless the row so many places before is of the same class.
        before = paddle.concat([paddle.full([config.per_class], -1, "int64"), group])
        rows, image = _take(before[: -config.per_class] != group, rows, image)
        counts = _count(image, images)

        def best() -> tuple[Tensor, Tensor]:
            lowest = paddle.gather(self._lowest_score(rows, image, counts), image)
            kept, owner = _take(rows[:, 1] >= lowest, rows, image)
            return kept, _count(owner, images)

        is_over = counts.max() > config.per_image
        rows, counts = self._when(is_over, best, (rows, counts))
        return rows, counts.astype("int32")

    def _lowest_score(self, rows: Tensor, image: Tensor, counts: Tensor) -> Tensor:
        """Return the score [B] of the last row within the limit per image; 0 if all are."""
        limit, images = self.config.per_image, paddle.shape(counts)[0].astype("int64")
        width = counts.max().clip(min=limit)
        place = paddle.arange(paddle.shape(image)[0], dtype="int64") - paddle.searchsorted(
            image, image
        )
        table = paddle.scatter(paddle.zeros([images * width]), image * width + place, rows[:, 1])
        return paddle.topk(table.reshape([images, -1]), limit, axis=1)[0][:, -1]


def _hopeful(conf: Tensor, score: float) -> Tensor:
    """Return the priors [K] of which any image may have a score above `score`, one at least.

    A class cannot have the share `score` unless its exponential is at least `score` times the
    background's. Mostly few priors are left, and no others need a softmax.
    """
    # Rounding must not lose one, hence 1e-3.
    least = math.log(score) - 1e-3 if score > 0 else -math.inf
    # The largest of classes 1 to C - 1, read once and without a copy: pooling over all numbers in
    # a row, whose first window is padding alone, then one window per prior.
    priors, classes = conf.shape[1:]
    window, padding = (1, classes - 1), [0, 0, classes - 1, 0]
    best = F.max_pool2d(conf.reshape([1, 1, 1, -1]), window, (1, classes), padding)
    gap = best.flatten()[1:] - _background(conf).flatten()
    is_hopeful = gap > least
    if conf.shape[0] != 1:
        is_hopeful = is_hopeful.reshape([-1, priors]).any(axis=0)
    return paddle.nonzero(paddle.concat([paddle.ones([1], "bool"), is_hopeful[1:]])).flatten()


# In eager mode a part of the last axis is a view, and an operator first copies a view, in several
# threads: 35 us on two cores however small it is, and far more while other programs have a core.
# So what follows takes such parts by operators that make a tensor of their own.


def _background(scores: Tensor) -> Tensor:
    """Return class 0, [B, P, 1], of [B, P, C]."""
    return paddle.index_select(scores, paddle.zeros([1], "int64"), axis=2)


def _decode_some(loc: Tensor, priors: Tensor, index: Tensor) -> Tensor:
    """Return the corners [B, K, 4] of the priors `index` [K]; see `boxes.decode`."""
    offsets, pairs = loc.reshape([0, -1, 2]), priors.reshape([-1, 2])
    first = index * 2
    second = first + 1
    return decode_parts(
        paddle.gather(offsets, first, axis=1),
        paddle.gather(offsets, second, axis=1),
        paddle.gather(pairs, first),
        paddle.gather(pairs, second),
    )


def _padded(rows: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Add one more image with one row: not all of Paddle's operators take tensors of size 0."""
    return (
        paddle.concat([rows, paddle.zeros([1, 6])]),
        paddle.concat([counts, paddle.ones([1], "int32")]),
    )


def suppress(
    boxes: Tensor,
    scores: Tensor,
    score: float,
    iou: float,
    legacy_pixels: bool = False,
    best: int = -1,
) -> tuple[Tensor, Tensor]:
    """Hard non-maximum suppression per class; class 0 is left out.

    boxes: [B, P, 4] corners. scores: [B, C, P]. Returns rows (class, score, x1, y1, x2, y2) [K, 6],
    by image, then class, then falling score, and how many each image has, [B] int32. A score must
    be above `score`, an IoU above `iou` suppresses. `best` is how many boxes of a class are looked
    at, those of the highest scores; -1: all.
    """
    # Paddle has the operator, as CPU kernel, but no public function for it. -1: no limit.
    normalized, eta, background, no_limit = not legacy_pixels, 1.0, 0, -1
    if in_dynamic_or_pir_mode():
        rows, _, counts = _C_ops.multiclass_nms3(
            boxes, scores, None, score, best, no_limit, iou, normalized, eta, background
        )
        return rows, counts
    helper = LayerHelper("multiclass_nms3")
    names = {"Out": "float32", "Index": "int32", "NmsRoisNum": "int32"}
    outputs = {name: helper.create_variable_for_type_inference(t) for name, t in names.items()}
    attrs = {
        "score_threshold": score,
        "nms_top_k": best,
        "keep_top_k": no_limit,
        "nms_threshold": iou,
        "normalized": normalized,
        "nms_eta": eta,
        "background_label": background,
    }
    inputs = {"BBoxes": boxes, "Scores": scores}
    helper.append_op(type="multiclass_nms3", inputs=inputs, attrs=attrs, outputs=outputs)
    return outputs["Out"], outputs["NmsRoisNum"]


def _owner(counts: Tensor, total: Tensor) -> Tensor:
    """Return the number [K] int64 of the image each of `total` rows belongs to."""
    number = paddle.arange(total, dtype="int64")
    return paddle.searchsorted(paddle.cumsum(counts.astype("int64")), number, right=True)


def _count(group: Tensor, groups: Tensor) -> Tensor:
    """Return how often each number below `groups` is in `group` [K] int64."""
    zeros = paddle.zeros([groups], "int64")
    return paddle.scatter_nd_add(zeros, group.unsqueeze(1), paddle.ones_like(group))


def _take(mask: Tensor, rows: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    index = paddle.nonzero(mask).flatten()
    return paddle.gather(rows, index), paddle.gather(image, index)
