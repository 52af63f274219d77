"""What int8 quantisation needs of a recipe: images to calibrate with, and a score to hold.

recipe + manifest --> `calibration_inputs`, `build_evaluate` --> ppcls.deploy.quantize
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import paddle
from paddle import nn

from ppcls.data.datasets import ImageDataset
from ppcls.data.datasets.detection import DetectionSample
from ppcls.data.loader import build_dataset, worker_deaths
from ppcls.deploy.package import InputSpec, Manifest
from ppcls.deploy.quantize import Evaluate, Infer
from ppcls.engine.build import Session, build_evaluator
from ppcls.engine.config import Recipe
from ppcls.engine.detection import DetectionEvaluator
from ppcls.engine.precision import Precision
from ppcls.metric.detection import Detections, split_rows
from ppcls.utils import seeding
from ppcls.utils.errors import ConfigError, DataError, UserError

_CALIBRATION_STREAM = 7  # keeps the choice of images apart from the data pipeline's seeds
_TOP1 = [{"TopkAcc": {"topk": [1]}}]


def calibration_inputs(
    recipe: Recipe, manifest: Manifest, count: int = 300
) -> Iterator[list[np.ndarray]]:
    """Yield inputs of an exported network, one image each: `count` of DataLoader.Train.

    They depend on `Global.seed`, and are transformed as `manifest` says, without augmentation.
    Raises DataError when there are no such images, at once and not when the first is asked for.
    """
    dataset = _training_images(recipe, manifest)
    seed = seeding.derive(recipe.Global.seed, _CALIBRATION_STREAM)
    order = np.random.default_rng(seed).permutation(len(dataset)).tolist()
    return _inputs(dataset, order, count, manifest)


def build_evaluate(session: Session, manifest: Manifest) -> tuple[Evaluate, str]:
    """Return a function that scores an exported network on DataLoader.Eval, and the score's name.

    The score is a fraction: of a classifier the metric that chooses the best model, top-1 when
    Metric.Eval has none; of a detector the first of Metric.Eval.
    """
    recipe = session.recipe
    if recipe.DataLoader.Eval is None:
        raise ConfigError(
            "DataLoader.Eval: expected a section whose images hold int8 to its accuracy, found none"
        )
    section = dataclasses.replace(
        recipe.DataLoader.Eval, dataset=_with_transforms(recipe.DataLoader.Eval.dataset, manifest)
    )
    metric = recipe.Metric
    if not metric.Eval and manifest.task == "classification":
        metric = dataclasses.replace(metric, Eval=_TOP1)
    loaders = dataclasses.replace(recipe.DataLoader, Eval=section)
    recipe = dataclasses.replace(recipe, DataLoader=loaders, Metric=metric)
    session = dataclasses.replace(session, recipe=recipe)
    evaluator = build_evaluator(session, Precision(recipe.AMP, session.device))

    def evaluate(infer: Infer) -> float:
        if isinstance(evaluator, DetectionEvaluator):
            return _detector_score(evaluator, infer, manifest.input)
        layer = _Deployed(infer, manifest.input)
        return evaluator.evaluate(layer).metrics[evaluator.deciding]

    return evaluate, evaluator.deciding


def network_images(images: np.ndarray, spec: InputSpec) -> np.ndarray:
    """Turn a batch of the data pipeline, [N, C, H, W] float32, into the input `spec` describes."""
    if spec.layout == "NHWC":
        images = images.transpose(0, 2, 3, 1)
    if spec.dtype == "uint8":
        images = np.rint(images)
    return np.ascontiguousarray(images, dtype=spec.dtype)


def _training_images(recipe: Recipe, manifest: Manifest) -> ImageDataset:
    config = recipe.DataLoader.Train
    if config is None:
        raise ConfigError(
            "DataLoader.Train: expected a section whose images calibrate int8, found none"
        )
    where = "DataLoader.Train.dataset"
    section = _with_transforms(config.dataset, manifest)
    try:
        dataset = build_dataset(section, where, seed=recipe.Global.seed, class_num=recipe.class_num)
    except DataError as error:
        raise DataError(
            f"DataLoader.Train: expected images to calibrate int8 with: {error}"
        ) from error
    if not len(dataset):
        raise DataError("DataLoader.Train: expected images to calibrate int8 with, found none")
    return dataset


def _with_transforms(section: Any, manifest: Manifest) -> dict[str, Any]:
    return {**section, "transform_ops": manifest.transform_ops}


def _inputs(
    dataset: ImageDataset, order: list[int], count: int, manifest: Manifest
) -> Iterator[list[np.ndarray]]:
    found = 0
    for index in order:
        sample = dataset[index]
        if sample is None:  # on_error: skip
            continue
        image = network_images(sample.image[None], manifest.input)
        yield [image, *_size(sample)]
        found += 1
        if found == count:
            return


def _size(sample: Any) -> list[np.ndarray]:
    """Return the input `image_sizes` of one image, if it is a detector's."""
    if not isinstance(sample, DetectionSample):
        return []
    height, width = sample.size
    return [np.array([[width, height]], np.float32)]


class _Deployed(nn.Layer):
    """An exported classifier, as the evaluation takes networks."""

    def __init__(self, infer: Infer, spec: InputSpec) -> None:
        super().__init__()
        self.infer: Callable[..., list[np.ndarray]] = infer
        self.spec = spec

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        return paddle.to_tensor(self.infer(network_images(images.numpy(), self.spec))[0])


def _detector_score(evaluator: DetectionEvaluator, infer: Infer, spec: InputSpec) -> float:
    """Score a detector that has its post-processing inside."""
    found: dict[int, Detections] = {}
    with worker_deaths():
        for batch in evaluator.loader:
            if not len(batch.indices):
                continue
            sizes = batch.sizes[:, ::-1].astype(np.float32)  # (width, height)
            rows, counts = infer(network_images(batch.images.numpy(), spec), sizes)
            found |= split_rows(rows, counts, batch.indices.tolist())
    if not found:
        raise UserError("DataLoader.Eval: expected at least one usable image, found none")
    metric = evaluator.metrics[0]
    return metric.evaluate(found, evaluator.loader.dataset)[metric.names[0]]
