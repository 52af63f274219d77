"""What one training step computes: the part of training that differs between kinds of networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import paddle
from paddle import nn

from ppcls.data.loader import Batch
from ppcls.engine.evaluator import logits_of
from ppcls.engine.precision import Precision
from ppcls.loss import CombinedLoss
from ppcls.metric import MetricGroup
from ppcls.utils.errors import UserError


class StepResult(NamedTuple):
    """One rank's part of a step.

    sums: per name of the log, a sum over what `divisor` counts, on the device.
    divisor: what the sums and the gradient are divided by in the end, added up over ranks and the
        steps of an update: images, or for a detector the priors that matched an object.
    loss: scalar to differentiate, a mean over this rank's images.
    weight: how many images that mean stands for.
    """

    sums: dict[str, paddle.Tensor]
    divisor: Any
    loss: paddle.Tensor
    weight: int


class Task(Protocol):
    """A kind of network in training.

    names: of all results, in the order of the log.
    rehearse: raises UserError when the network does not take an image, or gives something else.
    gradient_factor: what the gradient, a mean over the `planned` images, is multiplied by, now that
    the sum of the divisors is known.
    divides_by_images: whether `divisor` is the number of images, which is known in advance.
    """

    names: list[str]
    divides_by_images: bool

    def rehearse(self, model: nn.Layer, image: paddle.Tensor, class_num: int) -> None: ...

    def gradient_factor(self, planned: int, divisor: int) -> float: ...

    def forward(self, network: nn.Layer, batch: Any) -> StepResult:
        """Compute the step of a batch that has images."""

    def forward_nothing(self, network: nn.Layer, parameters: Sequence) -> StepResult:
        """Take part in a step of which this rank has no image; may change the network's mode."""


class ClassificationTask:
    """Logits against labels."""

    divides_by_images = True

    def __init__(
        self,
        loss: CombinedLoss,
        metric: MetricGroup,
        precision: Precision,
        image_shape: Sequence[int],
    ) -> None:
        self.loss, self.metric, self.precision = loss, metric, precision
        self.image_shape = list(image_shape)
        # Metrics first, then the losses, as PaddleClas prints them.
        self.names = [*metric.names, *loss.names, "loss"]

    def rehearse(self, model: nn.Layer, image: paddle.Tensor, class_num: int) -> None:
        logits = logits_of(model, image)
        if logits.shape[1] != class_num:
            raise UserError(
                f"Arch: expected logits of {class_num} classes (Arch.class_num), "
                f"got {logits.shape[1]}"
            )

    def gradient_factor(self, planned: int, divisor: int) -> float:
        return planned / divisor if divisor else 0.0

    def forward(self, network: nn.Layer, batch: Batch) -> StepResult:
        count = len(batch.indices)
        with self.precision.autocast():
            logits = logits_of(network, batch.images)
        parts = self.losses(logits, batch)
        with paddle.no_grad():
            sums = {name: value.detach() * count for name, value in parts.items()}
            sums |= self.metric.sums(logits.detach(), batch.labels)
        return StepResult(sums, count, parts["loss"], count)

    def losses(self, logits: paddle.Tensor, batch: Batch) -> dict[str, paddle.Tensor]:
        """Return the scalars of `CombinedLoss` for a batch whose logits [n, C] are these."""
        return self.loss(logits, batch.labels)

    def forward_nothing(self, network: nn.Layer, parameters: Sequence) -> StepResult:
        with self.precision.autocast():
            return nothing(network, parameters, self.image_shape, self.names)


def nothing(
    network: nn.Layer, parameters: Sequence, image_shape: list[int], names: list[str]
) -> StepResult:
    """Join the ranks' gradient average without an image, leaving batch norm alone."""
    network.eval()
    network(paddle.zeros([1, *image_shape]))  # readies the average
    # Not from the output: compiled for evaluation, a network has no backward pass.
    loss = paddle.add_n([p.astype("float32").sum() for p in parameters]) * 0.0
    return StepResult({name: paddle.zeros([]) for name in names}, 0, loss, 0)
