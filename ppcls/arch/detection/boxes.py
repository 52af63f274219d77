"""Forms of boxes, their overlap, and the offsets an SSD predicts, in Paddle.

Corners are (x1, y1, x2, y2), centres (cx, cy, w, h). Source: PingoLH/PytorchSSD-HarDNet (MIT),
file `utils/box_utils.py`.
"""

from __future__ import annotations

import paddle
from paddle import Tensor

# How far offsets of centres and of sizes are scaled.
CENTRE_VARIANCE, SIZE_VARIANCE = 0.1, 0.2


def to_corners(boxes: Tensor) -> Tensor:
    """Turn centres [..., 4] into corners."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return paddle.concat([centre - half, centre + half], axis=-1)


def pairwise_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the IoU [..., M, P] of corners [..., M, 4] with corners [P, 4].

    Two boxes without area have none; a coordinate is a number, not a pixel (no +1).
    """
    # One coordinate at a time: [M, P, 2] in between would double the memory.
    x1, y1, x2, y2 = (part.unsqueeze(-1) for part in boxes.unbind(-1))
    u1, v1, u2, v2 = others.unbind(-1)
    width = (paddle.minimum(x2, u2) - paddle.maximum(x1, u1)).clip(min=0)
    height = (paddle.minimum(y2, v2) - paddle.maximum(y1, v1)).clip(min=0)
    shared = width * height
    union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - shared
    return paddle.where(union > 0, shared / union, paddle.zeros_like(shared))


def encode(boxes: Tensor, priors: Tensor, smallest: float = 0.0) -> Tensor:
    """Return the offsets [..., P, 4] that turn priors [P, 4] (centres) into corners [..., P, 4].

    `smallest` bounds the quotient of box and prior sides from below: with 0 the offset of a box
    without width is -inf.
    """
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    offset = (centre - priors[:, :2]) / (CENTRE_VARIANCE * priors[:, 2:])
    quotient = (boxes[..., 2:] - boxes[..., :2]) / priors[:, 2:]
    quotient = quotient.clip(min=smallest) if smallest else quotient
    return paddle.concat([offset, paddle.log(quotient) / SIZE_VARIANCE], axis=-1)


def decode(offsets: Tensor, priors: Tensor) -> Tensor:
    """Return the corners [..., P, 4] of predicted offsets [..., P, 4], relative to the image.

    priors: [P, 4] centres. The result is not clipped to the image.
    """
    return decode_parts(offsets[..., :2], offsets[..., 2:], priors[:, :2], priors[:, 2:])


def decode_parts(shifts: Tensor, growths: Tensor, centres: Tensor, sides: Tensor) -> Tensor:
    """Do what `decode` does, of the two halves of offsets [..., P, 2] and of priors [P, 2]."""
    centre = centres + CENTRE_VARIANCE * shifts * sides
    size = sides * paddle.exp(SIZE_VARIANCE * growths)
    first = centre - size / 2
    return paddle.concat([first, first + size], axis=-1)
