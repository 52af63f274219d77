"""The loss of SSD: where the boxes are, and what is in them.

Source: PingoLH/PytorchSSD-HarDNet (MIT), file `layers/modules/multibox_loss.py`; W. Liu et al.,
"SSD: Single Shot MultiBox Detector", ECCV 2016, section 2.2.
"""

from __future__ import annotations

from typing import NamedTuple

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from ppcls.arch.detection.boxes import encode
from ppcls.arch.detection.matching import match
from ppcls.loss.combined import LOSSES

# Of a box's side to its prior's; far below what the data pipeline keeps.
_SMALLEST = 1e-6


class MultiBoxSums(NamedTuple):
    """What to add up over steps and processes before dividing once."""

    loc: Tensor  # [] float32, carries the gradient
    conf: Tensor  # [] float32, carries the gradient
    positives: Tensor  # [] float32, priors that answer for a box

    def normalised(self, positives: Tensor) -> dict[str, Tensor]:
        """Divide by a number of positives: "loc", "conf" and their sum "loss"."""
        loc, conf = self.loc / positives, self.conf / positives
        return {"loc": loc, "conf": conf, "loss": loc + conf}


@LOSSES.register()
class MultiBoxLoss(nn.Layer):
    """Smooth L1 on the offsets of positives, cross-entropy on positives and the worst negatives.

    neg_ratio: negatives per positive of an image; an image without positives has none.
    overlap: IoU from which a prior answers for a box.
    official_quirks: behave as the official code where this loss departs from it:

    - a batch without any positive: the official loss is 0/0, NaN; here it is 0, with gradient 0;
    - a box without width or height (COCO has some): its offset is -inf and the official loss inf,
      with a finite gradient; here its side counts as at least 1e-6 of the prior's, so that the loss
      is finite and the gradient the same.

    Raises ValueError for a number out of range.
    """

    def __init__(
        self, neg_ratio: float = 3.0, overlap: float = 0.5, official_quirks: bool = False
    ) -> None:
        super().__init__()
        if neg_ratio < 0:
            raise ValueError(f"neg_ratio: expected a number >= 0, got {neg_ratio!r}")
        if not 0 < overlap <= 1:
            raise ValueError(f"overlap: expected a number in (0, 1], got {overlap!r}")
        self.neg_ratio, self.overlap = neg_ratio, overlap
        self.official_quirks = official_quirks

    def forward(
        self, loc: Tensor, conf: Tensor, priors: Tensor, boxes: Tensor, labels: Tensor
    ) -> dict[str, Tensor]:
        """Return "loc", "conf" and their sum "loss", divided by the positives of this batch.

        For the arguments see `sums`.
        """
        sums = self.sums(loc, conf, priors, boxes, labels)
        return sums.normalised(self.divisor(sums.positives))

    def divisor(self, positives: Tensor) -> Tensor:
        """What to divide sums by, for a count of positives: at least 1, unless quirks are kept."""
        return positives if self.official_quirks else positives.clip(min=1.0)

    def sums(
        self, loc: Tensor, conf: Tensor, priors: Tensor, boxes: Tensor, labels: Tensor
    ) -> MultiBoxSums:
        """Return both losses summed over the batch, and how many positives it has.

        loc: [B, P, 4] predicted offsets. conf: [B, P, C] scores before softmax, class 0 is the
        background. priors: [P, 4] float32 centres. boxes: [B, M, 4] float32 relative corners.
        labels: [B, M] int64 from 1 to C - 1; rows with 0 are padding. Computed in float32 (float64
        for float64 predictions), also under mixed precision.
        """
        with paddle.amp.auto_cast(enable=False):
            loc, conf = _wide(loc), _wide(conf)
            matches = match(boxes, labels, priors, self.overlap)
            is_positive = matches.labels > 0
            targets = self._targets(matches.boxes, is_positive, priors).astype(loc.dtype)
            offsets = F.smooth_l1_loss(loc, targets, reduction="none").sum(axis=-1)
            entropy = F.cross_entropy(conf, matches.labels.unsqueeze(-1), reduction="none")
            entropy = entropy.squeeze(-1)
            is_counted = is_positive | self._negatives(entropy.detach(), is_positive)
            return MultiBoxSums(
                _sum_where(is_positive, offsets),
                _sum_where(is_counted, entropy),
                is_positive.astype(loc.dtype).sum(),
            )

    @paddle.no_grad()
    def _targets(self, boxes: Tensor, is_positive: Tensor, priors: Tensor) -> Tensor:
        """Return the offsets [B, P, 4] of positives, 0 elsewhere."""
        offsets = encode(boxes, priors, 0.0 if self.official_quirks else _SMALLEST)
        return paddle.where(is_positive.unsqueeze(-1), offsets, paddle.zeros_like(offsets))

    @paddle.no_grad()
    def _negatives(self, entropy: Tensor, is_positive: Tensor) -> Tensor:
        """Mark [B, P] the negatives with the largest loss, `neg_ratio` times the positives.

        Of P - 1 at most, as in the official code. The mining score is the cross-entropy itself.
        """
        priors = entropy.shape[1]
        score = paddle.where(is_positive, paddle.zeros_like(entropy), entropy)
        wanted = is_positive.astype("float32").sum(axis=1, keepdim=True) * self.neg_ratio
        rank = score.argsort(axis=1, descending=True).argsort(axis=1).astype("float32")
        return rank < wanted.floor().clip(max=float(priors - 1))


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == paddle.float64 else x.astype("float32")


def _sum_where(mask: Tensor, values: Tensor) -> Tensor:
    return paddle.where(mask, values, paddle.zeros_like(values)).sum()
