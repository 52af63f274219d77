"""From a recipe to what is exported: the network, its input, and real images to check it with."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
from paddle import nn
from paddle.static import InputSpec

from ppcls.arch.registry import canonical_name
from ppcls.data.datasets.base import naming
from ppcls.data.loader import build_dataset
from ppcls.data.transforms import build_transforms
from ppcls.deploy.export import Plan
from ppcls.deploy.fuse import fuse
from ppcls.deploy.graph import Classifier, split_normalization, with_chw
from ppcls.deploy.package import InputSpec as ManifestInput
from ppcls.deploy.package import Manifest
from ppcls.deploy.verify import Check
from ppcls.engine.build import Session, build_network, require_weights
from ppcls.engine.classify import images_to_infer, inference_transforms
from ppcls.engine.config import Recipe
from ppcls.engine.evaluator import logits_of
from ppcls.engine.names import class_names
from ppcls.utils.errors import DataError, JobError, UserError

logger = logging.getLogger("ppcls")

CHECK_IMAGES = 5  # how many an export is checked with
# A file's name, and its bytes or its pixels [H, W, 3] uint8 RGB.
NamedImage = tuple[str, "bytes | np.ndarray"]


@dataclass(frozen=True, kw_only=True)
class GraphOptions:
    """What is inside the exported graph, and which sizes it takes.

    batch: images at once; None for any number. dynamic_size: any height and width.
    """

    bake_normalization: bool = False
    softmax: bool = False
    dynamic_size: bool = False
    batch: int | None = None


def classifier_plan(session: Session, options: GraphOptions) -> Plan:
    """Plan the export of a recipe's classifier, with the weights it names.

    Raises UserError for weights that are missing or do not fit, transforms that cannot be baked
    in, or a size the network does not take.
    """
    recipe = session.recipe
    require_weights(session)
    names = class_names(recipe.Infer.PostProcess, recipe.class_num)
    entries, where = inference_transforms(recipe)
    entries = with_chw(entries, where)
    network = deployed_network(session)
    network.eval()
    if options.bake_normalization:
        kept, normalization = split_normalization(entries, where)
    else:
        kept, normalization = entries, None
    spec = _input(recipe, options)
    pairs = _inputs(recipe, entries, kept, where, options)
    checks = [_check(network, array, given, recipe, options.softmax) for array, given in pairs]
    height, width = (None, None) if options.dynamic_size else recipe.Global.image_shape[1:]
    traced = [InputSpec([options.batch, pairs[0][0].shape[1], height, width], "float32", "image")]
    return Plan(
        layer=Classifier(fuse(network, traced), normalization, options.softmax),
        inputs=[InputSpec(list(spec.shape), spec.dtype, "image")],  # it changes its list
        manifest=Manifest(
            task="classification",
            arch=canonical_name(recipe.Arch["name"]) or recipe.Arch["name"],
            class_num=recipe.class_num,
            input=spec,
            output="probabilities" if options.softmax else "logits",
            transform_ops=kept,
            class_names=[names[i] for i in sorted(names)] if names is not None else None,
            topk=min(recipe.Infer.PostProcess.topk, recipe.class_num),
        ),
        checks=checks,
    )


def deployed_network(session: Session) -> nn.Layer:
    """Build a recipe's network for export: how it was trained leaves no trace in what is written.

    Layout and synchronised batch norm are about training; the weights are the same without.
    """
    plain = {"data_format": "NCHW", "use_sync_bn": False}
    arch = session.recipe.Arch
    arch = arch | {key: value for key, value in plain.items() if key in arch}
    recipe = dataclasses.replace(session.recipe, Arch=arch)
    return build_network(dataclasses.replace(session, recipe=recipe))


def _input(recipe: Recipe, options: GraphOptions) -> ManifestInput:
    channels, *size = recipe.Global.image_shape
    size = [None, None] if options.dynamic_size else size
    if options.bake_normalization:
        shape = [options.batch, *size, channels]
        return ManifestInput(shape=shape, layout="NHWC", dtype="uint8")
    return ManifestInput(shape=[options.batch, channels, *size])


def _inputs(
    recipe: Recipe, entries: list, kept: list, where: str, options: GraphOptions
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return batches of real images: what the network takes, and what the exported graph takes."""
    images = real_images(recipe, CHECK_IMAGES)
    arrays = _transform(images, entries, where)
    given = _transform(images, kept, where)
    _check_sizes(recipe, arrays, options.dynamic_size, where)
    is_nhwc = options.bake_normalization
    if is_nhwc and given[0].dtype != np.uint8:
        raise UserError(
            f"{where}: expected uint8 images before NormalizeImage to bake it in, "
            f"got {given[0].dtype}"
        )
    pairs = []
    for rows in _batches([array.shape for array in arrays], options.batch):
        batch = np.stack([arrays[row] for row in rows]), np.stack([given[row] for row in rows])
        pairs.append(batch)
    if options.dynamic_size:  # and one of another size
        array, pixels = pairs[0]
        doubled = np.concatenate([pixels] * 2, axis=2 if is_nhwc else 3)
        pairs.append((np.concatenate([array] * 2, axis=3), doubled))
    return pairs


def _transform(images: Sequence[NamedImage], entries: list, where: str) -> list[np.ndarray]:
    transforms = build_transforms(entries, where)
    arrays = []
    for name, image in images:
        with naming(lambda name=name: name):
            arrays.append(np.ascontiguousarray(transforms(image, np.random.default_rng(0))))
    return arrays


def _check_sizes(recipe: Recipe, arrays: list, dynamic_size: bool, where: str) -> None:
    expected = tuple(recipe.Global.image_shape)
    for array in arrays:
        if array.shape != expected and not (dynamic_size and array.shape[0] == expected[0]):
            raise UserError(
                f"Global.image_shape: expected the shape {where} give, {list(array.shape)}, got "
                f"{list(expected)}; type -o Global.image_shape={list(array.shape)}, or "
                "--dynamic-size"
            )


def _batches(shapes: Sequence[tuple[int, ...]], batch: int | None) -> Iterator[list[int]]:
    """Group images, by position, into batches that the graph takes."""
    if batch is not None:
        same = [i for i, shape in enumerate(shapes) if shape == shapes[0]]
        yield [same[i % len(same)] for i in range(batch)]
    elif len(set(shapes)) > 1:
        yield from ([i] for i in range(len(shapes)))
    else:
        yield [0]
        yield from [list(range(1, len(shapes)))] if len(shapes) > 1 else []


@paddle.no_grad()
def _check(
    network: nn.Layer, array: np.ndarray, given: np.ndarray, recipe: Recipe, softmax: bool
) -> Check:
    try:
        logits = logits_of(network, paddle.to_tensor(array.astype(np.float32)))
    except UserError as error:
        shape = recipe.Global.image_shape
        raise UserError(
            f"Global.image_shape: expected a size the network takes, got {shape}: {error}"
        ) from error
    if list(logits.shape) != [len(array), recipe.class_num]:
        raise UserError(
            f"Arch: expected logits of {recipe.class_num} classes (Arch.class_num), "
            f"got shape {list(logits.shape)}"
        )
    if not np.isfinite(logits.numpy()).all():
        raise JobError("the network's output is not finite: its weights may be damaged")
    result = nn.functional.softmax(logits, axis=-1) if softmax else logits
    return Check([given], [result.numpy()])


def real_images(recipe: Recipe, count: int) -> list[NamedImage]:
    """Return up to `count` images: of DataLoader.Eval, else of Infer.infer_imgs, else two
    photographs of scikit-learn's, else two that are drawn here. The log says which."""
    reasons = []
    for source, read in _SOURCES.items():
        try:
            images = read(recipe, count)
        except (DataError, ImportError) as error:
            reasons.append(f"{source}: {error}")
        else:
            if reasons:
                logger.info("no images for the check from %s", "; ".join(reasons))
            logger.info("images of the check: %d of %s", len(images), source)
            return images
    raise AssertionError("drawn images are always there")


def _evaluation_images(recipe: Recipe, count: int) -> list[NamedImage]:
    if recipe.DataLoader.Eval is None:
        raise DataError("no such section")
    section, where = recipe.DataLoader.Eval.dataset, "DataLoader.Eval.dataset"
    dataset = build_dataset(section, where, seed=recipe.Global.seed, class_num=recipe.class_num)
    chosen = _spread(len(dataset), count)
    images = []
    for index in chosen:
        with naming(lambda index=index: dataset.describe(index)):
            images.append((dataset.describe(index), dataset.read(index)))
    return images


def _listed_images(recipe: Recipe, count: int) -> list[NamedImage]:
    if recipe.Infer.infer_imgs is None:
        raise DataError("none named")
    paths = images_to_infer(recipe)
    return [(str(paths[i]), paths[i].read_bytes()) for i in _spread(len(paths), count)]


def _photographs(recipe: Recipe, count: int) -> list[NamedImage]:
    from sklearn.datasets import load_sample_images

    found = load_sample_images()
    return list(zip(found.filenames, found.images, strict=True))[:count]


def _drawn_images(recipe: Recipe, count: int) -> list[NamedImage]:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (min(count, 2), 12, 16, 3), dtype=np.uint8)
    large = coarse.repeat(40, axis=1).repeat(40, axis=2)
    return [(f"drawn image {number}", image) for number, image in enumerate(large)]


_SOURCES: dict[str, Callable[[Recipe, int], list[NamedImage]]] = {
    "DataLoader.Eval": _evaluation_images,
    "Infer.infer_imgs": _listed_images,
    "scikit-learn's photographs": _photographs,
    "the drawn images": _drawn_images,
}


def _spread(total: int, count: int) -> list[int]:
    """Return up to `count` positions, evenly over `total`."""
    if total < 1:
        raise DataError("no image")
    return sorted({int(i) for i in np.linspace(0, total - 1, min(count, total))})


def with_checkpoint(overrides: Sequence[str], path: Any) -> list[str]:
    """Return overrides that also name `path` as the weights, if there is one."""
    return [*overrides, *([f"Global.pretrained_model={json.dumps(str(path))}"] if path else [])]


def options_of(args: Any) -> GraphOptions:
    """Read a tool's arguments of the same names."""
    return GraphOptions(**{f.name: getattr(args, f.name) for f in dataclasses.fields(GraphOptions)})
