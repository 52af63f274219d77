"""Detectors in the engine: the training step, the evaluation, and detecting in pictures.

`Global.task: detection` chooses them. `Loss.Train` names one MultiBoxLoss, `Metric.Eval` names
COCOMetric or VOCMetric, `Infer.Detection` says which boxes are kept.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn

from ppcls.arch.detection.postprocess import PostProcess, PostProcessConfig
from ppcls.data.datasets.detection import DetectionDataset
from ppcls.data.loader import DetectionBatch, Loader, worker_deaths
from ppcls.engine import parallel
from ppcls.engine.gather import gather_detections
from ppcls.engine.precision import Precision
from ppcls.engine.task import StepResult, nothing
from ppcls.loss.combined import LOSSES
from ppcls.loss.multibox import MultiBoxLoss
from ppcls.metric.detection import (
    DetectionMetric,
    Detections,
    check_file_names,
    coco_results,
    split_rows,
    write_coco_results,
    write_voc_results,
)
from ppcls.utils import schema
from ppcls.utils.errors import ConfigError, DataError, JobError, UserError

logger = logging.getLogger("ppcls")


def build_multibox(entries: Any, where: str) -> tuple[MultiBoxLoss, float]:
    """Build the loss of `[{MultiBoxLoss: {weight: 1.0, neg_ratio: 3}}]`, and return its weight."""
    if not isinstance(entries, (list, tuple)) or len(entries) != 1:
        raise ConfigError(f"{where}: expected a list of one MultiBoxLoss, got {entries!r}")
    name, params = schema.split_entry(entries[0], f"{where}[0]")
    if name != "MultiBoxLoss":
        raise ConfigError(f"{where}[0]: expected MultiBoxLoss (Global.task: detection), got {name}")
    place = f"{where}[0].{name}"
    weight = schema.coerce(params.get("weight", 1.0), float, f"{place}.weight")
    own = {key: value for key, value in params.items() if key != "weight"}
    return schema.build(LOSSES.get(name), own, place), weight


class DetectionTask:
    """Boxes and classes against priors; the loss is a mean over the priors that match an object.

    These are counted over all steps and processes of an update, as the official code gathers the
    outputs of all GPUs first: N processes with b images each learn what one with N * b does.
    """

    divides_by_images = False
    names = ["loc", "conf", "loss"]

    def __init__(
        self, loss: MultiBoxLoss, weight: float, precision: Precision, image_shape: Sequence[int]
    ) -> None:
        self.loss, self.weight, self.precision = loss, weight, precision
        self.image_shape = list(image_shape)
        self._priors: paddle.Tensor | None = None

    def rehearse(self, model: nn.Layer, image: paddle.Tensor, class_num: int) -> None:
        """Raise UserError when `model` is no detector for images [1, C, H, W] like this one."""
        check_detector(model)
        if list(image.shape[1:]) != self.image_shape:
            raise ConfigError(
                f"Global.image_shape: expected that of a training image, {list(image.shape[1:])}, "
                f"got {self.image_shape}"
            )
        try:
            loc, conf = model(image)
        except ValueError as error:
            raise UserError(f"Arch: the network refuses its input: {error}") from error
        if conf.shape[2] != class_num:
            raise UserError(f"Arch: expected {class_num} classes, got {conf.shape[2]}")

    def forward(self, network: nn.Layer, batch: DetectionBatch) -> StepResult:
        count = len(batch.indices)
        with self.precision.autocast():
            loc, conf = network(batch.images)
        parts = self.loss.sums(loc, conf, self._own_priors(network), batch.boxes, batch.labels)
        loc_sum, conf_sum = parts.loc * self.weight, parts.conf * self.weight
        total = loc_sum + conf_sum
        sums = {"loc": loc_sum.detach(), "conf": conf_sum.detach(), "loss": total.detach()}
        return StepResult(sums, parts.positives.detach(), total / count, count)

    def forward_nothing(self, network: nn.Layer, parameters: Sequence) -> StepResult:
        with self.precision.autocast():
            return nothing(network, parameters, self.image_shape, self.names)

    def gradient_factor(self, planned: int, positives: int) -> float:
        """What turns a gradient averaged over images into one averaged over positives."""
        if positives:
            return planned / positives
        return float("nan") if self.loss.official_quirks else 0.0

    def _own_priors(self, network: nn.Layer) -> paddle.Tensor:
        if self._priors is None:
            self._priors = parallel.unwrap(network).priors
        return self._priors


def check_detector(model: nn.Layer) -> None:
    """Raise ConfigError when a network is no detector."""
    if not hasattr(model, "priors"):
        raise ConfigError(
            "Arch.name: expected a detector such as SSD_HarDNet68 (Global.task: detection), "
            f"got {type(model).__name__}"
        )


def check_finite(conf: paddle.Tensor) -> None:
    """Raise JobError when scores are not finite: a box of score NaN would just not be found."""
    if not bool(paddle.isfinite(conf.astype("float32")).all()):
        raise JobError("the network's output is not finite: its weights may be damaged")


@dataclass(frozen=True)
class DetectionResult:
    """What an evaluation found; fractions, NaN where nothing was there to be found."""

    metrics: dict[str, float]  # those worth a log line
    details: dict[str, float]  # all of them, per class too
    samples: int
    skipped: int = 0
    seconds: float = field(default=0.0, compare=False)

    losses: dict[str, float] = field(default_factory=dict)  # none is computed

    def to_json(self) -> dict[str, Any]:
        counts = {"samples": self.samples, "skipped": self.skipped, "seconds": self.seconds}
        return {**self.metrics, **counts, "details": self.details}


class DetectionEvaluator:
    """Runs a detector over a data set, every image exactly once over all ranks.

    results_dir: where rank 0 writes the detections, `bbox.json` for COCO, a text file per class
    for VOC; None writes none.

    Raises UserError for a data set that a metric cannot judge, or whose results cannot be written.
    """

    def __init__(
        self,
        loader: Loader,
        metrics: list[DetectionMetric],
        config: PostProcessConfig,
        precision: Precision,
        print_step: int = 10,
        results_dir: Path | None = None,
    ) -> None:
        self.loader, self.metrics, self.config = loader, metrics, config
        self.precision, self.print_step, self.results_dir = precision, print_step, results_dir
        for metric in metrics:
            metric.check(loader.dataset)
        if results_dir is not None and not hasattr(loader.dataset, "anno_path"):
            check_file_names(loader.dataset)

    @property
    def deciding(self) -> str:
        """The metric that chooses the best model."""
        return self.metrics[0].names[0]

    @paddle.no_grad()
    def evaluate(
        self, model: nn.Layer, before_batch: Callable[[], None] = lambda: None
    ) -> DetectionResult:
        """Return the metrics of `model`, which keeps its mode.

        before_batch: called before each batch; what it raises ends the evaluation. Raises DataError
        when no image could be used. Every rank judges the detections of all: a rank that waited
        for another would be given up for lost.
        """
        model = parallel.unwrap(model)
        was_training, start = model.training, time.perf_counter()
        model.eval()
        try:
            with worker_deaths():
                own = self._run(model, start, before_batch)
        finally:
            if was_training:
                model.train()
        found = gather_detections(own)
        if not found:
            raise DataError("DataLoader.Eval: expected at least one usable image, found none")
        skipped = round(parallel.sum_over_ranks({"n": self.loader.skipped})["n"])
        details: dict[str, float] = {}
        for metric in self.metrics:
            details |= metric.evaluate(found, self.loader.dataset)
        if self.results_dir is not None and parallel.distributed.rank() == 0:
            write_results(found, self.loader.dataset, self.results_dir)
        names = [name for metric in self.metrics for name in metric.names]
        metrics = {name: details[name] for name in names}
        seconds = time.perf_counter() - start
        return DetectionResult(metrics, details, len(found), skipped, seconds)

    def _run(
        self, model: nn.Layer, start: float, before_batch: Callable[[], None]
    ) -> dict[int, Detections]:
        post, priors = PostProcess(model.class_num, self.config), model.priors
        own: dict[int, Detections] = {}
        for step, batch in enumerate(self.loader):
            before_batch()
            if not len(batch.indices):
                continue
            with self.precision.autocast():
                loc, conf = model(batch.images)
            check_finite(conf)
            sizes = paddle.to_tensor(batch.sizes[:, ::-1].copy())  # (width, height)
            rows, counts = post(loc, conf, priors, sizes)
            own |= split_rows(rows.numpy(), counts.numpy(), batch.indices.tolist())
            if step and step % self.print_step == 0:
                rate = len(own) / (time.perf_counter() - start)
                left = (len(self.loader) - step) * self.loader.sampler.batch_size / rate
                place = (step, len(self.loader), rate, left)
                logger.info("[Eval][Iter: %d/%d]ips: %.2f samples/s, eta: %ds", *place)
        return own


def write_results(found: dict[int, Detections], images: DetectionDataset, folder: Path) -> None:
    """Write detections as COCO's `bbox.json`, or as VOC's text files for a VOC data set."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Global.results_dir: {folder} cannot be made: {error.strerror}") from error
    if not hasattr(images, "anno_path"):
        write_voc_results(folder, found, images)
        return
    by_id = {images.image_ids[index]: detections for index, detections in found.items()}
    ids, plus_one = np.asarray(images.category_ids).tolist(), images.official_quirks
    write_coco_results(folder / "bbox.json", coco_results(by_id, ids, plus_one=plus_one))
    logger.info("detections: %s", folder / "bbox.json")
