"""Which prior answers for which ground-truth box.

Source: PingoLH/PytorchSSD-HarDNet (MIT), function `match` of `utils/box_utils.py`, here for a whole
batch at once.
"""

from __future__ import annotations

from typing import NamedTuple

import paddle
from paddle import Tensor

from ppcls.arch.detection.boxes import pairwise_iou, to_corners

# Images are matched in groups, so that a group's overlaps stay below so many numbers (64 MB).
_GROUP = 1 << 24


class Matches(NamedTuple):
    """What each prior of each image is to predict."""

    labels: Tensor  # [B, P] int64, 0 is background
    boxes: Tensor  # [B, P, 4] float32 corners; any value where the label is 0


@paddle.no_grad()
def match(boxes: Tensor, labels: Tensor, priors: Tensor, overlap: float = 0.5) -> Matches:
    """Give each prior a label and a box.

    boxes: [B, M, 4] float32 relative corners. labels: [B, M] int64 from 1; rows with 0 are padding,
    and an image may have no others. priors: [P, 4] float32 centres.

    A prior takes the box it overlaps most (of equals the first), and is background below `overlap`.
    Each box is given its best prior (of equals the first) whatever their overlap; if several boxes
    share it, the last of them has it.
    """
    batch, rows = labels.shape
    if rows == 0:
        nothing = paddle.zeros([batch, priors.shape[0]], "int64")
        return Matches(nothing, paddle.zeros([*nothing.shape, 4], boxes.dtype))
    corners = to_corners(priors)
    images = max(1, _GROUP // (rows * priors.shape[0]))
    groups = [
        _match(boxes[start : start + images], labels[start : start + images], corners, overlap)
        for start in range(0, batch, images)
    ]
    return Matches(*(paddle.concat(parts) for parts in zip(*groups, strict=True)))


def _match(boxes: Tensor, labels: Tensor, corners: Tensor, overlap: float) -> Matches:
    is_box = labels > 0
    # Padding overlaps less than anything.
    iou = pairwise_iou(boxes, corners)
    iou = paddle.where(is_box.unsqueeze(-1), iou, paddle.full_like(iou, -1))
    best_box, best = iou.argmax(axis=1), iou.max(axis=1)  # [B, P]
    owner = _forced_owners(iou.argmax(axis=2), is_box, corners.shape[0])
    is_forced = owner >= 0
    box = paddle.where(is_forced, owner, best_box)
    is_object = paddle.logical_or(is_forced, best >= overlap)
    found = _rows(labels.unsqueeze(-1), box).squeeze(-1)
    return Matches(paddle.where(is_object, found, paddle.zeros_like(found)), _rows(boxes, box))


def _forced_owners(best_prior: Tensor, is_box: Tensor, priors: int) -> Tensor:
    """Return the box [B, P] whose best prior each prior is, -1 for none.

    best_prior: [B, M]. Only the last of several boxes writes: a scatter to one place from many
    would leave the order open.
    """
    batch, rows = best_prior.shape
    place = paddle.where(is_box, best_prior, paddle.full_like(best_prior, priors))
    number = paddle.arange(rows)
    is_later = number.unsqueeze(0) > number.unsqueeze(1)  # [M, M]: column after row
    is_same = place.unsqueeze(2) == place.unsqueeze(1)
    is_beaten = paddle.logical_and(is_same, is_later).any(axis=2)
    place = paddle.where(is_beaten, paddle.full_like(place, priors), place)
    owners = paddle.full([batch, priors + 1], -1, "int64")  # the last column takes the others
    values = number.unsqueeze(0).expand([batch, rows])
    return paddle.put_along_axis(owners, place, values, axis=1)[:, :priors]


def _rows(table: Tensor, index: Tensor) -> Tensor:
    """Return table[b, index[b, p]] as [B, P, D] for a table [B, M, D] and an index [B, P]."""
    batch, rows, width = table.shape
    flat = index + paddle.arange(batch).unsqueeze(1) * rows
    return paddle.gather(table.reshape([-1, width]), flat.flatten()).reshape(
        [batch, index.shape[1], width]
    )
