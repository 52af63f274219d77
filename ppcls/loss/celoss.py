"""Cross-entropy on logits, with label smoothing and soft labels.

Differs from PaddleClas's CELoss in two points. A smoothing outside [0, 1) is an error, where
PaddleClas trains without it. And soft labels are taken as probabilities, where PaddleClas passes
them through a softmax first (unless smoothing is on), which flattens the targets of Mixup.
"""

from __future__ import annotations

from typing import Literal

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from ppcls.loss.combined import LOSSES


def check_arguments(epsilon: float, reduction: str) -> None:
    """Raise ValueError for a smoothing outside [0, 1), or an unknown reduction."""
    if not 0 <= epsilon < 1:
        raise ValueError(f"epsilon: expected a number in [0, 1), got {epsilon!r}")
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction: expected 'mean' or 'sum', got {reduction!r}")


@LOSSES.register()
class CELoss(nn.Layer):
    """Softmax cross-entropy.

    epsilon: label smoothing; targets become (1 - epsilon) * target + epsilon / C. None and 0: none.
    reduction: over the samples of a batch.
    Raises ValueError for an epsilon outside [0, 1).
    """

    takes_soft_labels = True

    def __init__(
        self, epsilon: float | None = None, reduction: Literal["mean", "sum"] = "mean"
    ) -> None:
        super().__init__()
        self.epsilon = epsilon or 0.0
        check_arguments(self.epsilon, reduction)
        self.reduction = reduction

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return a scalar, float32 (float64 for float64 logits), also under mixed precision.

        logits: [N, C] floating. label: [N] or [N, 1] integer class numbers, or [N, C] floating
        probabilities.
        """
        with paddle.amp.auto_cast(enable=False):
            if logits.dtype != paddle.float64:
                logits = logits.astype("float32")
            if label.is_floating_point():
                target = label.astype(logits.dtype)
            elif self.epsilon:
                target = F.one_hot(label.flatten(), logits.shape[-1]).astype(logits.dtype)
            else:
                return F.cross_entropy(logits, label.flatten(), reduction=self.reduction)
            if self.epsilon:
                target = F.label_smooth(target, epsilon=self.epsilon)
            return F.cross_entropy(logits, target, soft_label=True, reduction=self.reduction)


@LOSSES.register()
class MixCELoss(CELoss):
    """CELoss under the name it has for mixed images in older PaddleClas files.

    There it is `share * CE(label) + (1 - share) * CE(partner's label)`, which is the cross-entropy
    of the mixed label.
    """
