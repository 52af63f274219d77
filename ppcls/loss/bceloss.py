"""Binary cross-entropy per class, as in "ResNet strikes back" (R. Wightman et al., 2021).

Names and defaults are those of PaddleClas's BCELoss. `epsilon` also smooths soft labels, as there;
timm smooths whole-number labels only.
"""

from __future__ import annotations

from typing import Literal

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from ppcls.loss.celoss import check_arguments
from ppcls.loss.combined import LOSSES


@LOSSES.register()
class BCELoss(nn.Layer):
    """Sigmoid cross-entropy of every class on its own: is it in the image or not.

    epsilon: label smoothing before the threshold; targets become (1 - e) * target + e / C.
    target_threshold: targets above it become 1 and the rest 0, so that both images of a mixed pair
        count in full if they have a share above it; null keeps the targets as they are.
    reduction: over samples and classes.
    Raises ValueError for an epsilon outside [0, 1) or a threshold outside it.
    """

    takes_soft_labels = True

    def __init__(
        self,
        epsilon: float = 0.0,
        target_threshold: float | None = 0.2,
        reduction: Literal["mean", "sum"] = "mean",
    ) -> None:
        super().__init__()
        check_arguments(epsilon, reduction)
        if target_threshold is not None and not 0 <= target_threshold < 1:
            raise ValueError(
                f"target_threshold: expected a number in [0, 1) or null, got {target_threshold!r}"
            )
        self.epsilon = epsilon
        self.target_threshold = target_threshold
        self.reduction = reduction

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return a scalar, float32 (float64 for float64 logits), also under mixed precision.

        logits: [N, C] floating. label: [N] or [N, 1] integer class numbers, or [N, C] floating
        probabilities.
        """
        with paddle.amp.auto_cast(enable=False):
            if logits.dtype != paddle.float64:
                logits = logits.astype("float32")
            if not label.is_floating_point():
                label = F.one_hot(label.flatten(), logits.shape[-1])
            target = label.astype(logits.dtype)
            if self.epsilon:
                target = F.label_smooth(target, epsilon=self.epsilon)
            if self.target_threshold is not None:
                target = (target > self.target_threshold).astype(logits.dtype)
            return F.binary_cross_entropy_with_logits(logits, target, reduction=self.reduction)
