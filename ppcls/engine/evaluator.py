"""Evaluation: sums and counts over batches and ranks, divided once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import paddle
from paddle import nn

from ppcls.data.loader import Loader, worker_deaths
from ppcls.engine import parallel
from ppcls.engine.precision import Precision
from ppcls.loss import CombinedLoss
from ppcls.metric import MetricGroup
from ppcls.utils.errors import DataError, UserError

logger = logging.getLogger("ppcls")


def as_logits(outputs: Any) -> paddle.Tensor:
    """Return the logits [N, class_num] among what a zoo network returns."""
    if isinstance(outputs, dict) and "logits" in outputs:
        outputs = outputs["logits"]
    if not isinstance(outputs, paddle.Tensor) or outputs.ndim != 2:
        raise UserError(
            "Arch: expected a network that returns logits [N, class_num], "
            f"got {type(outputs).__name__}"
        )
    return outputs


def logits_of(model: nn.Layer, images: paddle.Tensor) -> paddle.Tensor:
    """Run `model` on images [n, C, H, W]; see `as_logits`.

    Raises UserError for images the network cannot take, such as too small ones.
    """
    try:
        outputs = model(images)
    except ValueError as error:
        raise UserError(f"Arch: the network refuses its input: {error}") from error
    return as_logits(outputs)


@dataclass(frozen=True)
class EvalResult:
    """Means over all images of all ranks; metrics are fractions."""

    losses: dict[str, float]  # "loss" is the weighted sum
    metrics: dict[str, float]
    correct: dict[str, int]  # the sums behind `metrics`
    samples: int
    skipped: int = 0
    seconds: float = field(default=0.0, compare=False)

    def to_json(self) -> dict[str, float | int]:
        return {
            **self.metrics,
            "loss": self.losses["loss"],
            "samples": self.samples,
            "skipped": self.skipped,
            "correct": self.correct,
            "seconds": self.seconds,
        }


class Evaluator:
    """Runs a network over a data set, every image exactly once over all ranks."""

    def __init__(
        self,
        loader: Loader,
        loss: CombinedLoss,
        metric: MetricGroup,
        precision: Precision,
        print_step: int = 10,
    ) -> None:
        self.loader = loader
        self.loss = loss
        self.metric = metric
        self.precision = precision
        self.print_step = print_step

    @property
    def deciding(self) -> str:
        """The metric that chooses the best model: top-1, or else the first of the recipe."""
        return "top1" if "top1" in self.metric.names else self.metric.names[0]

    @paddle.no_grad()
    def evaluate(
        self, model: nn.Layer, before_batch: Callable[[], None] = lambda: None
    ) -> EvalResult:
        """Return the losses and metrics of `model`, which keeps its mode.

        before_batch: called before each batch; what it raises ends the evaluation. Raises DataError
        when no image could be used.
        """
        model = parallel.unwrap(model)
        was_training = model.training
        model.eval()
        start = time.perf_counter()
        try:
            with worker_deaths():
                sums, samples = self._run(model, start, before_batch)
        finally:
            if was_training:
                model.train()
        names = [*self.loss.names, "loss", *self.metric.names]
        total = {name: sums.get(name, 0.0) for name in names}
        total |= {"samples": samples, "skipped": self.loader.skipped}
        total = parallel.sum_over_ranks(total)
        count = round(total["samples"])
        if count == 0:
            raise DataError("DataLoader.Eval: expected at least one usable image, found none")
        return EvalResult(
            losses={name: total[name] / count for name in (*self.loss.names, "loss")},
            metrics={name: total[name] / count for name in self.metric.names},
            correct={name: round(total[name]) for name in self.metric.names},
            samples=count,
            skipped=round(total["skipped"]),
            seconds=time.perf_counter() - start,
        )

    def _run(
        self, model: nn.Layer, start: float, before_batch: Callable[[], None]
    ) -> tuple[dict[str, float], int]:
        sums: dict[str, float] = {}
        samples = 0
        for step, batch in enumerate(self.loader):
            before_batch()
            count = len(batch.indices)
            if count == 0:
                continue
            with self.precision.autocast():
                logits = logits_of(model, batch.images)
            parts = self.loss.sums(logits, batch.labels) | self.metric.sums(logits, batch.labels)
            for name, value in parts.items():
                sums[name] = sums.get(name, 0.0) + float(value)
            samples += count
            if step and step % self.print_step == 0:
                rate = samples / (time.perf_counter() - start)
                left = (len(self.loader) - step) * self.loader.sampler.batch_size / rate
                logger.info(
                    "[Eval][Iter: %d/%d]ips: %.2f samples/s, eta: %ds",
                    step,
                    len(self.loader),
                    rate,
                    left,
                )
        return sums, samples
