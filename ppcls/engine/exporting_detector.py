"""From a detection recipe to what is exported: the network with its post-processing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import paddle

from ppcls.arch.registry import canonical_name
from ppcls.data.images import Preparation, PreparedImage
from ppcls.deploy.detector import Detector, input_specs, worst_difference
from ppcls.deploy.export import Plan
from ppcls.deploy.fuse import fuse
from ppcls.deploy.package import InputSpec, Manifest
from ppcls.deploy.verify import Arrays, Check, Difference
from ppcls.engine.build import Session, require_weights
from ppcls.engine.classify import inference_transforms
from ppcls.engine.detect import read_names
from ppcls.engine.detection import check_detector, check_finite
from ppcls.engine.exporting import CHECK_IMAGES, GraphOptions, deployed_network, real_images
from ppcls.utils.errors import ConfigError, UserError

TOLERANCE = 1e-3  # pixels of a box, hundredths of a score


def detector_plan(session: Session, options: GraphOptions) -> Plan:
    """Plan the export of a recipe's detector, with the weights it names and `Infer.Detection`.

    Raises UserError for weights that are missing or do not fit, and for an option that detectors
    do not have.
    """
    _check_options(options)
    recipe = session.recipe
    require_weights(session)
    names = read_names(recipe)
    entries, where = inference_transforms(recipe)
    prepare = Preparation(entries, where, task="detection")
    network = deployed_network(session)
    check_detector(network)
    network.eval()
    size = network.size
    images = [prepare(image, name) for name, image in real_images(recipe, CHECK_IMAGES)]
    _check_sizes(images, size, where)
    fused = fuse(network, input_specs(size, options.batch)[:1])
    post = recipe.Infer.Detection
    whole = Detector(network, network.prior_array, recipe.class_num, post)
    return Plan(
        layer=Detector(fused, network.prior_array, recipe.class_num, post),
        inputs=input_specs(size, options.batch),
        manifest=Manifest(
            task="detection",
            arch=canonical_name(recipe.Arch["name"]) or recipe.Arch["name"],
            class_num=recipe.class_num,
            input=InputSpec(shape=[options.batch, 3, size, size]),
            output="detections",
            transform_ops=entries,
            class_names=names,
            threshold=recipe.Infer.threshold,
            detection=dataclasses.asdict(post),
        ),
        checks=[_check(whole, batch) for batch in _batches(images, options.batch)],
        compare=compare_detections,
    )


def _check_options(options: GraphOptions) -> None:
    for name in ("bake_normalization", "softmax", "dynamic_size"):
        if getattr(options, name):
            flag = "--" + name.replace("_", "-")
            raise UserError(
                f"{flag}: expected a classifier, got a detector, which has no such form"
            )


def _check_sizes(images: Sequence[PreparedImage], size: int, where: str) -> None:
    for image in images:
        if image.tensor.shape != (3, size, size):
            raise ConfigError(
                f"{where}: expected images [3, {size}, {size}], as Arch.size says, "
                f"got {list(image.tensor.shape)}"
            )


def _batches(images: list[PreparedImage], batch: int | None) -> list[list[PreparedImage]]:
    """Group images into batches that the graph takes: one alone and the others, if it takes any."""
    if batch is not None:
        return [[images[i % len(images)] for i in range(batch)]]
    return [images[:1], *([images[1:]] if len(images) > 1 else [])]


@paddle.no_grad()
def _check(detector: Detector, images: Sequence[PreparedImage]) -> Check:
    detector.eval()
    inputs = [
        np.stack([image.tensor for image in images]),
        np.array([image.size for image in images], np.float32),
    ]
    check_finite(detector.network(paddle.to_tensor(inputs[0]))[1])
    outputs = detector(*map(paddle.to_tensor, inputs))
    return Check(inputs, [output.numpy() for output in outputs])


def compare_detections(expected: Arrays, found: Arrays) -> Difference:
    """Compare a detector's outputs; the difference is absolute, see `worst_difference`."""
    return Difference(worst_difference(expected, found), 1.0)
