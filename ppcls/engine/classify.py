"""Classifying images that have no labels: the section `Infer`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn

from ppcls.data.images import Preparation, list_images
from ppcls.engine.build import Session, build_network, make_fast, require_weights
from ppcls.engine.config import Recipe
from ppcls.engine.evaluator import averaged_logits
from ppcls.engine.names import class_names
from ppcls.engine.precision import Precision
from ppcls.metric.results import check_finite, describe_classes, top_classes
from ppcls.utils.errors import ConfigError, DataError, UserError

logger = logging.getLogger("ppcls")


def classify(session: Session) -> list[dict[str, Any]]:
    """Classify `Infer.infer_imgs` and log a line per image.

    Returns per image PaddleClas's keys: file_name, class_ids, scores (softmax), label_names.
    Raises UserError for settings or images that cannot be used, before any result is shown for a
    bad setting.
    """
    recipe = session.recipe
    post = recipe.Infer.PostProcess
    if post.topk > recipe.class_num:
        raise ConfigError(
            f"Infer.PostProcess.topk: expected at most {recipe.class_num} (Arch.class_num), "
            f"got {post.topk}"
        )
    paths = images_to_infer(recipe)
    require_weights(session)
    names = class_names(post, recipe.class_num)
    prepare = Preparation(*inference_transforms(recipe))
    precision = Precision(recipe.AMP, session.device)
    model = build_network(session)
    precision.prepare(model)
    model = make_fast(session, model)
    model.eval()
    results = []
    for start in range(0, len(paths), recipe.Infer.batch_size):
        batch = paths[start : start + recipe.Infer.batch_size]
        images = [prepare(path).tensor for path in batch]
        scores = _scores(model, images, precision, flip=recipe.Global.test_flip)
        for path, row in zip(batch, scores, strict=True):
            results.append(top_classes(str(path), row, post.topk, names))
            logger.info("%s", describe_classes(results[-1]))
    return results


def images_to_infer(recipe: Recipe) -> list[Path]:
    """Return the images `Infer.infer_imgs` means. Raises UserError when there are none."""
    if not recipe.Infer.infer_imgs:
        raise UserError(
            "Infer.infer_imgs: expected an image, a list or a folder, found none; "
            "type -o Infer.infer_imgs=PATH"
        )
    return list_images(Path(recipe.Infer.infer_imgs))


def inference_transforms(recipe: Recipe) -> tuple[list, str]:
    """Return `Infer.transforms`, or else those of the evaluation, and where they stand."""
    entries, where = recipe.Infer.transforms, "Infer.transforms"
    if entries is None and recipe.DataLoader.Eval is not None:
        entries = recipe.DataLoader.Eval.dataset.get("transform_ops")
        where = "DataLoader.Eval.dataset.transform_ops"
    if entries is None:
        raise ConfigError("Infer.transforms: expected a list of transforms, found none")
    return entries, where


@paddle.no_grad()
def _scores(
    model: nn.Layer, images: list[np.ndarray], precision: Precision, *, flip: bool = False
) -> np.ndarray:
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        raise DataError(f"Infer.transforms: expected images of one size, got {sorted(shapes)}")
    with precision.autocast():
        logits = averaged_logits(model, paddle.to_tensor(np.stack(images)), flip=flip)
    scores = paddle.nn.functional.softmax(logits.astype("float32")).numpy()
    check_finite(scores)
    return scores
