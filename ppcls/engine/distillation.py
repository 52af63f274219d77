"""A step of distillation: the student's logits against labels and against a teacher's logits.

The teacher is no part of what trains. It belongs to the task, so that whatever looks at the model
(optimizer, moving average, checkpoints, `train()`, `DataParallel`, compilation) sees the student
alone: the teacher has no gradients and evaluates all the time. Each process has a copy.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
from paddle import nn

from ppcls.arch import build_model
from ppcls.arch.distillation import DISTILLATION_MODEL, Distillation
from ppcls.arch.registry import canonical_name
from ppcls.arch.weights import load_pretrained
from ppcls.data.loader import Batch
from ppcls.engine import parallel
from ppcls.engine.evaluator import logits_of
from ppcls.engine.precision import Precision
from ppcls.engine.task import ClassificationTask
from ppcls.loss import CombinedLoss
from ppcls.metric import MetricGroup
from ppcls.utils import schema
from ppcls.utils.errors import ConfigError, JobError, UserError

logger = logging.getLogger("ppcls")


@dataclass(frozen=True)
class Teacher:
    """A network that is done with learning.

    where: what errors call it. digest: of its weights, see `weights_digest`.
    """

    network: nn.Layer
    where: str
    digest: str


def build_teacher(config: Distillation, precision: Precision) -> Teacher:
    """Build the teacher of a recipe with its weights, frozen and in evaluation mode.

    Raises ConfigError when it names no weights, UserError for those that do not fit, JobError when
    processes read different ones.
    """
    section = dict(config.network)
    arch = canonical_name(section["name"])
    where = f"{config.where}.pretrained"
    weights = schema.coerce(section.pop("pretrained", None), bool | str | None, where)
    if not weights:
        raise ConfigError(
            f"{where}: expected the teacher's weights (a path, an address, a published name, or "
            "True), found none"
        )
    if weights is True and arch is None:
        section["pretrained"] = True  # PaddleClas's zoo knows where its own are
    network = build_model({"Arch": section}, config.where)
    if "pretrained" not in section:
        try:
            load_pretrained(network, arch, weights, new_head=False)
        except UserError as error:
            raise UserError(f"{config.where}: {error}") from error
    for parameter in network.parameters():
        parameter.stop_gradient = True
    network.eval()
    digest = weights_digest(network)
    _check_all_read(digest, where)
    logger.info("the teacher of %s: %s (SHA-256 %.12s)", config.student, section["name"], digest)
    precision.prepare(network)
    return Teacher(network, config.where, digest)


def weights_digest(network: nn.Layer) -> str:
    """Return the SHA-256 of a state: names, kinds, shapes and values."""
    found = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        array = np.ascontiguousarray(tensor.numpy())
        found.update(f"{name} {array.dtype.str} {array.shape}\0".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def _check_all_read(digest: str, where: str) -> None:
    """On several hosts the same path may be another file."""
    found = {part.decode() for part in parallel.gather_bytes(digest.encode())}
    if len(found) > 1:
        shown = ", ".join(sorted(f"{one:.12}" for one in found))
        raise JobError(f"{where}: expected all processes to read the same weights, found {shown}")


class DistillationTask(ClassificationTask):
    """Logits against labels, and against those of `teacher` for the same images."""

    def __init__(
        self,
        loss: CombinedLoss,
        metric: MetricGroup,
        precision: Precision,
        image_shape: Sequence[int],
        teacher: Teacher,
    ) -> None:
        super().__init__(loss, metric, precision, image_shape)
        self.teacher = teacher

    def rehearse(self, model: nn.Layer, image: paddle.Tensor, class_num: int) -> None:
        """Raise UserError, too, when the teacher does not take the image or knows other classes."""
        super().rehearse(model, image, class_num)
        try:
            taught = self._taught(image)
        except UserError as error:
            raise UserError(f"{self.teacher.where}: {error}") from error
        if taught.shape[1] != class_num:
            raise UserError(
                f"{self.teacher.where}: expected logits of {class_num} classes, as the student's, "
                f"got {taught.shape[1]}"
            )

    def losses(self, logits: paddle.Tensor, batch: Batch) -> dict[str, paddle.Tensor]:
        return self.loss(logits, batch.labels, self._taught(batch.images))

    @paddle.no_grad()
    def _taught(self, images: paddle.Tensor) -> paddle.Tensor:
        with self.precision.autocast():
            return logits_of(self.teacher.network, images)


def check_models(
    config: Distillation | None, loss: CombinedLoss, metric: MetricGroup, phase: str
) -> None:
    """Raise ConfigError when losses and metrics of `phase` do not fit the recipe's models.

    Those that name models must name the recipe's. Only training has a teacher, and one that nobody
    learns from is a mistake.
    """
    for where, part in _parts(loss, metric, phase):
        check = getattr(part, "check_models", None)
        if check is None:
            continue
        if config is None:
            raise ConfigError(
                f"{where}: expected Arch.name: {DISTILLATION_MODEL}, whose models it names, "
                "got a single network"
            )
        try:
            check(config.student, config.teacher)
        except ValueError as error:
            raise ConfigError(f"{where}.{error}") from error
    found = loss.with_teacher()
    if phase == "Eval" and found:
        raise ConfigError(
            f"Loss.Eval: expected losses of labels, since no teacher takes part in an evaluation, "
            f"got {', '.join(found)}"
        )
    if phase == "Train" and config is not None and not found:
        raise ConfigError(
            f"Loss.Train: expected a loss between {config.student} and {config.teacher}, such as "
            f"DistillationKLDivLoss, got {', '.join(loss.names)}"
        )


def _parts(loss: CombinedLoss, metric: MetricGroup, phase: str) -> list[tuple[str, Any]]:
    """Losses and metrics, and where they stand in the recipe."""
    losses = zip(loss.names, loss.losses, strict=True)
    return [
        *((f"Loss.{phase}[{i}].{name}", layer) for i, (name, layer) in enumerate(losses)),
        *((f"Metric.{phase}[{i}].{type(m).__name__}", m) for i, m in enumerate(metric.metrics)),
    ]
