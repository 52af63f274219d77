"""Losses between a student's logits and its teacher's, under PaddleClas's names.

Source: G. Hinton et al., "Distilling the Knowledge in a Neural Network", 2015 (arXiv:1503.02531);
for the symmetric one Y. Zhang et al., "Deep Mutual Learning", CVPR 2018.

A recipe names the models of a loss, as PaddleClas's recipes do; here there is one pair, the model
that learns and its teacher, and any other is an error. Hinton's mix of both objectives with one
share alpha is a `weight` of alpha here and of 1 - alpha at the loss of the labels.
"""

from __future__ import annotations

import math
from typing import Literal

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from ppcls.loss.celoss import CELoss
from ppcls.loss.combined import LOSSES

Pairs = list[tuple[str, str]]


class _PairLoss(nn.Layer):
    """What the losses between two models share.

    model_name_pairs: [[student, teacher]], by their names in `Arch.models`.
    key: which output of the models is compared; there is one.
    """

    needs_teacher = True
    takes_soft_labels = True  # whatever the labels are: it looks at none
    reduction = "mean"

    def __init__(self, model_name_pairs: Pairs, key: Literal["logits"] | None = None) -> None:
        super().__init__()
        self.pairs = [tuple(pair) for pair in model_name_pairs]

    def check_models(self, student: str, teacher: str) -> None:
        """Raise ValueError unless the pair is that of the recipe."""
        if self.pairs != [(student, teacher)]:
            found = [list(pair) for pair in self.pairs]
            raise ValueError(
                f"model_name_pairs: expected {[[student, teacher]]}, the model that learns and its "
                f"teacher, got {found}"
            )

    def forward(self, logits: Tensor, taught: Tensor) -> Tensor:
        """Return a scalar, float32 (float64 for float64 logits), also under mixed precision.

        logits, taught: [N, C] floating, the student's and the teacher's; only the student's have a
        gradient.
        """
        with paddle.amp.auto_cast(enable=False):
            return self._compare(_wide(logits), _wide(taught.detach())).mean()

    def _compare(self, logits: Tensor, taught: Tensor) -> Tensor:
        """Return the loss of each sample: [N]."""
        raise NotImplementedError


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == paddle.float64 else logits.astype("float32")


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(p || q) of each row: [N, C] log-probabilities to [N]."""
    return (log_p.exp() * (log_p - log_q)).sum(axis=-1)


@LOSSES.register()
class DistillationKLDivLoss(_PairLoss):
    """T^2 * KL(teacher || student), both softened by the temperature T: softmax(logits / T).

    T^2 keeps the size of the gradient, which softening divides by it (Hinton et al., section 2).
    Raises ValueError for a temperature of 0 or less.
    """

    def __init__(
        self,
        model_name_pairs: Pairs,
        temperature: float = 4.0,
        key: Literal["logits"] | None = None,
    ) -> None:
        super().__init__(model_name_pairs, key)
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature: expected a number > 0, got {temperature!r}")
        self.temperature = temperature

    def _compare(self, logits: Tensor, taught: Tensor) -> Tensor:
        soft, target = (F.log_softmax(x / self.temperature) for x in (logits, taught))
        return divergence(target, soft) * self.temperature**2


@LOSSES.register()
class DistillationCELoss(_PairLoss):
    """Cross-entropy of the student against the teacher's probabilities.

    Its gradient is that of DistillationKLDivLoss at temperature 1; the least value is not 0. There
    is no `epsilon`: PaddleClas's smooths the teacher's logits as if they were probabilities.
    """

    def _compare(self, logits: Tensor, taught: Tensor) -> Tensor:
        return -(F.softmax(taught) * F.log_softmax(logits)).sum(axis=-1)


@LOSSES.register()
class DistillationDMLLoss(_PairLoss):
    """(KL(teacher || student) + KL(student || teacher)) / 2, which release/2.0 calls JSDivLoss.

    act: what makes probabilities of logits. PaddleClas's sigmoid is not offered: the divergence of
    probabilities that do not add up to 1 can be negative.
    """

    def __init__(
        self,
        model_name_pairs: Pairs,
        act: Literal["softmax"] = "softmax",
        key: Literal["logits"] | None = None,
    ) -> None:
        super().__init__(model_name_pairs, key)

    def _compare(self, logits: Tensor, taught: Tensor) -> Tensor:
        own, other = F.log_softmax(logits), F.log_softmax(taught)
        return (divergence(other, own) + divergence(own, other)) / 2


@LOSSES.register()
class DistillationGTCELoss(CELoss):
    """CELoss of the student against the labels ("ground truth"), hard or soft.

    model_names: [student]. The teacher is frozen: its own cross-entropy would teach nobody. key:
    as of the other losses here.
    """

    def __init__(
        self,
        model_names: list[str],
        epsilon: float | None = None,
        key: Literal["logits"] | None = None,
        reduction: Literal["mean", "sum"] = "mean",
    ) -> None:
        super().__init__(epsilon, reduction)
        self.model_names = list(model_names)

    def check_models(self, student: str, teacher: str) -> None:
        """Raise ValueError unless the one model named is the student."""
        if self.model_names != [student]:
            raise ValueError(
                f"model_names: expected {[student]}, the model that learns, got {self.model_names}"
            )
