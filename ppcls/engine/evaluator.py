"""Evaluation: sums and counts over batches and ranks, divided once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import paddle
from paddle import nn

from ppcls.data.loader import Loader, worker_deaths
from ppcls.engine import parallel
from ppcls.engine.precision import Precision
from ppcls.loss import CombinedLoss
from ppcls.metric import MetricGroup
from ppcls.metric.results import check_finite
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


def averaged_logits(model: nn.Layer, images: paddle.Tensor, *, flip: bool) -> paddle.Tensor:
    """Run `model` on images [n, C, H, W]: logits [n, class_num].

    With `flip`, the mean in float32 of the logits of the images and of their mirror images.
    """
    logits = logits_of(model, images)
    if not flip:
        return logits
    mirrored = logits_of(model, paddle.flip(images, axis=[3]))
    return (logits.astype("float32") + mirrored.astype("float32")) / 2


class Predictions(NamedTuple):
    """What was found in an evaluation, image by image, in no particular order.

    labels, predicted: [samples] int64, the class an image has, and that of its largest logit.
    class_names: the data set's, if it has any; there may be more classes.
    """

    labels: np.ndarray
    predicted: np.ndarray
    class_names: list[str] | None = None


@dataclass(frozen=True)
class EvalResult:
    """Means over all images of all ranks; metrics are fractions."""

    losses: dict[str, float]  # "loss" is the weighted sum
    metrics: dict[str, float]
    correct: dict[str, int]  # the sums behind `metrics`
    samples: int
    skipped: int = 0
    seconds: float = field(default=0.0, compare=False)
    predictions: Predictions | None = field(default=None, compare=False)  # of all ranks

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
    """Runs a network over a data set, every image exactly once over all ranks.

    flip: average the logits of an image and its mirror image. keep_predictions: give them too.
    """

    def __init__(
        self,
        loader: Loader,
        loss: CombinedLoss,
        metric: MetricGroup,
        precision: Precision,
        print_step: int = 10,
        *,
        flip: bool = False,
        keep_predictions: bool = False,
    ) -> None:
        self.loader = loader
        self.loss = loss
        self.metric = metric
        self.precision = precision
        self.print_step = print_step
        self.flip = flip
        self.keep_predictions = keep_predictions
        self._found: list[np.ndarray] = []

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
            predictions=self._predictions() if self.keep_predictions else None,
        )

    def _predictions(self) -> Predictions:
        labels, predicted = gather_pairs(self._found)
        return Predictions(labels, predicted, self.loader.dataset.class_names)

    def _run(
        self, model: nn.Layer, start: float, before_batch: Callable[[], None]
    ) -> tuple[dict[str, float], int]:
        sums: dict[str, float] = {}
        samples = 0
        self._found = []
        for step, batch in enumerate(self.loader):
            before_batch()
            count = len(batch.indices)
            if count == 0:
                continue
            with self.precision.autocast():
                logits = averaged_logits(model, batch.images, flip=self.flip)
            if self.keep_predictions:
                self._found.append(_pairs(logits, batch.labels))
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


def _pairs(logits: paddle.Tensor, labels: paddle.Tensor) -> np.ndarray:
    """Return rows of labels and of predictions: [2, n] int64.

    The lower class number wins a tie, as in TopkAcc. Raises JobError for what is not finite.
    """
    scores = logits.astype("float32").numpy()
    check_finite(scores)
    return np.stack([labels.numpy().reshape(-1), scores.argmax(axis=1)]).astype(np.int64)


def gather_pairs(own: Sequence[np.ndarray]) -> np.ndarray:
    """Join arrays [2, n] int64 of every process on every process. All must call this."""
    joined = np.concatenate([np.zeros((2, 0), np.int64), *own], axis=1)
    parts = parallel.gather_bytes(joined.astype("<i8").tobytes())
    found = [np.frombuffer(part, "<i8").reshape(2, -1) for part in parts]
    return np.concatenate(found, axis=1).astype(np.int64)
