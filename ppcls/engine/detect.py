"""Detecting objects in pictures that have no annotations: the section `Infer`."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn

from ppcls.arch.detection.postprocess import PostProcess
from ppcls.data.datasets.base import as_chw, naming
from ppcls.data.datasets.detection import split_decode
from ppcls.data.transforms import build_box_transforms
from ppcls.engine.build import Session, build_network, require_weights, to_static
from ppcls.engine.classify import images_to_infer, inference_transforms
from ppcls.engine.config import Recipe
from ppcls.engine.detection import check_detector, check_finite
from ppcls.engine.draw import draw_detections, save_picture
from ppcls.engine.precision import Precision
from ppcls.metric.detection import Detections, split_rows
from ppcls.utils.errors import ConfigError, DataError, UserError

logger = logging.getLogger("ppcls")

MOST_LOGGED = 10  # detections in the line of one image


def detect(session: Session) -> list[dict[str, Any]]:
    """Detect objects in `Infer.infer_imgs`, write pictures with their boxes, log a line per image.

    Returns per image: file_name, picture (where it was written), and of every detection kept by
    `Infer.Detection`, best first, labels, label_names, scores and boxes (x1, y1, x2, y2 in pixels
    of the original image, not cut to it). Pictures show those from `Infer.threshold` on, the log
    the best ten of them. Raises UserError for settings or images that cannot be used.
    """
    recipe = session.recipe
    require_weights(session)
    paths = images_to_infer(recipe)
    names = read_names(recipe)
    entries, where = inference_transforms(recipe)
    decode, transforms = split_decode(build_box_transforms(entries, where), where)
    precision = Precision(recipe.AMP, session.device)
    model = build_network(session)
    check_detector(model)
    precision.prepare(model)
    network = to_static(session, model)
    network.eval()
    post = PostProcess(recipe.class_num, recipe.Infer.Detection)
    targets = picture_paths(paths, Path(recipe.Infer.output_dir))
    results = []
    for start in range(0, len(paths), recipe.Infer.batch_size):
        batch = paths[start : start + recipe.Infer.batch_size]
        pixels, images = zip(*(_load(path, decode, transforms) for path in batch), strict=True)
        found = _run(network, model, post, images, pixels, precision)
        for path, picture, detections in zip(batch, pixels, found, strict=True):
            shown = draw_detections(picture, detections, names, recipe.Infer.threshold)
            save_picture(shown, targets[path])
            results.append(_result(path, targets[path], detections, names))
            logger.info("%s", log_line(results[-1], recipe.Infer.threshold))
    return results


def read_names(recipe: Recipe) -> list[str]:
    """Return the classes' names, the background first: those of `Infer.label_list`, or numbers."""
    path, count = recipe.Infer.label_list, recipe.class_num
    if path is None:
        return ["background", *map(str, range(1, count))]
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


def _load(path: Path, decode: Any, transforms: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return an image as RGB pixels, HWC uint8, and as the network takes it, CHW float32."""
    rng = np.random.default_rng(0)
    with naming(lambda: str(path)):
        image = decode(path.read_bytes(), rng)
        pixels = image if decode.to_rgb else np.ascontiguousarray(image[:, :, ::-1])
        nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
        ready, *_ = transforms(image, *nothing, rng)
        return pixels, as_chw(ready, transforms.gives_chw)


@paddle.no_grad()
def _run(
    network: nn.Layer,
    model: nn.Layer,
    post: PostProcess,
    images: tuple[np.ndarray, ...],
    pixels: tuple[np.ndarray, ...],
    precision: Precision,
) -> list[Detections]:
    with precision.autocast():
        loc, conf = network(paddle.to_tensor(np.stack(images)))
    check_finite(conf)
    sizes = [[image.shape[1], image.shape[0]] for image in pixels]
    rows, counts = post(loc, conf, model.priors, paddle.to_tensor(sizes))
    return list(split_rows(rows.numpy(), counts.numpy(), range(len(images))).values())


def picture_paths(paths: list[Path], folder: Path) -> dict[Path, Path]:
    """Where each picture goes: under its own name, numbered when two have the same one.

    Makes `folder`. Raises UserError when that fails, or an image itself would be written over.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Infer.output_dir: {folder} cannot be made: {error.strerror}") from error
    targets: dict[Path, Path] = {}
    taken: set[str] = set()
    for path in paths:
        suffix = path.suffix.lower() if path.suffix.lower() in (".png", ".jpg", ".jpeg") else ".png"
        name, number = path.stem + suffix, 1
        while name in taken:
            number += 1
            name = f"{path.stem}_{number}{suffix}"
        taken.add(name)
        targets[path] = folder / name
    _check_not_inputs(targets.values(), paths)
    return targets


def _check_not_inputs(targets: Iterable[Path], images: Iterable[Path]) -> None:
    """Raise ConfigError when a picture would be written over one of the images."""
    originals = {image.resolve() for image in images}
    over = next((target for target in targets if target.resolve() in originals), None)
    if over is not None:
        raise ConfigError(
            "Infer.output_dir: expected a folder whose pictures are no images of "
            f"Infer.infer_imgs, but {over} would be written over"
        )


def _result(path: Path, picture: Path, found: Detections, names: list[str]) -> dict[str, Any]:
    order = np.argsort(-found.scores, kind="stable")
    labels = found.labels[order].tolist()
    return {
        "file_name": str(path),
        "picture": str(picture),
        "labels": labels,
        "label_names": [names[label] for label in labels],
        "scores": found.scores[order].tolist(),
        "boxes": found.boxes[order].tolist(),
    }


def log_line(result: dict[str, Any], threshold: float) -> str:
    """One image's detections of at least `threshold`, the best of them written out."""
    rows = zip(result["label_names"], result["scores"], result["boxes"], strict=True)
    found = [row for row in rows if row[1] >= threshold]
    shown = [
        f"{name} {score:.3f} [{', '.join(f'{x:.0f}' for x in box)}]"
        for name, score, box in found[:MOST_LOGGED]
    ]
    more = f" and {len(found) - len(shown)} more" if len(found) > len(shown) else ""
    return f"{result['file_name']}: {'; '.join(shown) or 'nothing'}{more} -> {result['picture']}"
