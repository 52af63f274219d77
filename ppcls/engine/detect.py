"""Detecting objects in pictures that have no annotations: the section `Infer`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn

from ppcls.arch.detection.postprocess import PostProcess
from ppcls.data.images import Preparation, PreparedImage
from ppcls.engine.build import Session, build_network, make_fast, require_weights
from ppcls.engine.classify import images_to_infer, inference_transforms
from ppcls.engine.config import Recipe
from ppcls.engine.detection import check_detector, check_finite
from ppcls.engine.draw import draw_detections, picture_paths, save_picture
from ppcls.engine.precision import Precision
from ppcls.metric.detection import Detections, split_rows
from ppcls.metric.results import describe_objects, found_objects, numbered_names
from ppcls.utils.errors import DataError

logger = logging.getLogger("ppcls")


def detect(session: Session) -> list[dict[str, Any]]:
    """Detect objects in `Infer.infer_imgs`, write pictures with their boxes, log a line per image.

    Returns per image: file_name, picture (where it was written), and of every detection kept by
    `Infer.Detection`, best first, labels, label_names, scores and boxes (x1, y1, x2, y2 in pixels
    of the original image, not cut to it). Pictures show those from `Infer.threshold` on, the log
    the best of them. Raises UserError for settings or images that cannot be used.
    """
    recipe = session.recipe
    require_weights(session)
    paths = images_to_infer(recipe)
    names = read_names(recipe)
    prepare = Preparation(*inference_transforms(recipe), task="detection")
    precision = Precision(recipe.AMP, session.device)
    model = build_network(session)
    check_detector(model)
    precision.prepare(model)
    network = make_fast(session, model)
    network.eval()
    post = PostProcess(recipe.class_num, recipe.Infer.Detection)
    targets = picture_paths(paths, Path(recipe.Infer.output_dir), "Infer.output_dir")
    results = []
    for start in range(0, len(paths), recipe.Infer.batch_size):
        batch = paths[start : start + recipe.Infer.batch_size]
        images = [prepare(path, keep_pixels=True) for path in batch]
        found = _run(network, model, post, images, precision)
        for path, image, detections in zip(batch, images, found, strict=True):
            shown = draw_detections(image.pixels, detections, names, recipe.Infer.threshold)
            save_picture(shown, targets[path])
            result = found_objects(image.name, detections, names)
            results.append({**result, "picture": str(targets[path])})
            line = describe_objects(result, recipe.Infer.threshold)
            logger.info("%s -> %s", line, targets[path])
    return results


def read_names(recipe: Recipe) -> list[str]:
    """Return the classes' names, the background first: those of `Infer.label_list`, or numbers."""
    path, count = recipe.Infer.label_list, recipe.class_num
    if path is None:
        return numbered_names(count)
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Infer.label_list: {path} cannot be read: {error}") from error
    names = [line.strip() for line in lines if line.strip()]
    if len(names) != count - 1:
        raise DataError(
            f"{path}: expected {count - 1} names, one a line (Arch.class_num {count} counts the "
            f"background too), found {len(names)}"
        )
    return ["background", *names]


@paddle.no_grad()
def _run(
    network: nn.Layer,
    model: nn.Layer,
    post: PostProcess,
    images: list[PreparedImage],
    precision: Precision,
) -> list[Detections]:
    with precision.autocast():
        loc, conf = network(paddle.to_tensor(np.stack([image.tensor for image in images])))
    check_finite(conf)
    sizes = [list(image.size) for image in images]
    rows, counts = post(loc, conf, model.priors, paddle.to_tensor(sizes))
    return list(split_rows(rows.numpy(), counts.numpy(), range(len(images))).values())
