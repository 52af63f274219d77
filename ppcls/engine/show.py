"""What a network sees: one batch of a recipe as a sheet of pictures with their labels.

The batch is the loader's own, after all transforms, mixing and normalisation; only the
normalisation is undone, and what then lies outside 0..255 is cut.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from ppcls.data.batch import Batch, DetectionBatch
from ppcls.data.datasets import DetectionDataset, ImageDataset
from ppcls.data.loader import (
    DataLoaderConfig,
    Loader,
    LoaderConfig,
    build_eval_loader,
    build_train_loader,
)
from ppcls.data.sampler import GlobalBatchSampler, SampleKey
from ppcls.data.transforms import DecodeImage, NormalizeImage
from ppcls.data.transforms.boxes import PixelTransform
from ppcls.engine.config import Recipe
from ppcls.engine.draw import contact_sheet, draw_boxes
from ppcls.engine.names import all_names, class_names
from ppcls.utils.errors import ConfigError, UserError

Split = Literal["Train", "Eval"]

_SIDE = 160  # pixels a picture of the sheet has at least, enlarged by a whole number
_WIDTH = 1200  # about, of a sheet


class Tile(NamedTuple):
    """A picture and the lines beneath it."""

    picture: Image.Image
    caption: list[str]


def load_batch(
    recipe: Recipe, split: Split, epoch: int, step: int
) -> tuple[ImageDataset, Batch | DetectionBatch]:
    """Return a data set and one of its batches, as a run of one process sees it.

    epoch: from 1 on, and step: from 0 on, as a run's log counts them; an evaluation has no epochs.
    Raises ConfigError for a recipe without that section, UserError for a step that it has not.
    """
    config, where = getattr(recipe.DataLoader, split), f"DataLoader.{split}"
    if config is None:
        raise ConfigError(f"{where}: expected a section with dataset and sampler, found none")
    loader = _build(config, where, recipe, split)
    if not 0 <= step < len(loader):
        raise UserError(f"--step: expected a number from 0 to {len(loader) - 1}, got {step}")
    if isinstance(loader.sampler, GlobalBatchSampler):
        loader.sampler.set_epoch(epoch - 1)
        loader.sampler.set_start(step)
    else:
        keys = next(itertools.islice(loader.sampler, step, None))
        quick = LoaderConfig(num_workers=0, pipeline=config.loader.pipeline)
        loader = Loader(loader.dataset, _OneBatch(keys), quick, where=where)
    return loader.dataset, next(iter(loader))


def _build(config: DataLoaderConfig, where: str, recipe: Recipe, split: Split) -> Loader:
    """The loader of a section without workers, which one batch does not need."""
    build = build_train_loader if split == "Train" else build_eval_loader
    config = replace(config, loader=replace(config.loader, num_workers=0))
    return build(config, where, seed=recipe.Global.seed, class_num=recipe.class_num)


class _OneBatch:
    """A sampler of one batch, known already."""

    remaining = 1

    def __init__(self, keys: list[SampleKey]) -> None:
        self.keys = keys

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[list[SampleKey]]:
        return iter([self.keys])


def restore_pixels(images: np.ndarray, dataset: ImageDataset) -> np.ndarray:
    """Undo the normalisation of `dataset`: [n, C, H, W] float32 to [n, H, W, 3] uint8 RGB."""
    transforms = _pixel_transforms(dataset)
    images = images[:, :3].astype(np.float64)
    for transform in reversed(transforms):
        if isinstance(transform, NormalizeImage):
            mean, std = (part.reshape(1, 3, 1, 1) for part in (transform.mean, transform.std))
            images = (images * std + mean) / transform.scale
    if any(isinstance(transform, DecodeImage) and not transform.to_rgb for transform in transforms):
        images = images[:, ::-1]
    return np.clip(np.rint(images), 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


def _pixel_transforms(dataset: ImageDataset) -> list[Any]:
    if isinstance(dataset, DetectionDataset):
        others = dataset.transforms.transforms
        pixel = [op.transform for op in others if isinstance(op, PixelTransform)]
        return [dataset.decode, *pixel]
    return list(dataset.transforms.transforms)


def label_lines(label: np.ndarray, names: Sequence[str]) -> list[str]:
    """Words for a class number, or for the shares [class_num] of a mixed image, largest first."""
    if label.ndim == 0:
        return [names[int(label)]]
    order = np.argsort(-label, kind="stable")
    shares = [(names[i], float(label[i])) for i in order if label[i] > 0]
    if len(shares) == 1:
        return [shares[0][0]]
    return [f"{name} {100 * share:.1f} %" for name, share in shares]


def names_of(dataset: ImageDataset, recipe: Recipe) -> list[str]:
    """Names of the labels: of the recipe's file, or else of the data set, or else numbers."""
    if isinstance(dataset, DetectionDataset):
        return dataset.class_names
    found = class_names(recipe.Infer.PostProcess, recipe.class_num)
    if found is not None:
        return [found[label] for label in range(recipe.class_num)]
    return all_names(dataset.class_names or [], dataset.class_num)


def make_tiles(
    batch: Batch | DetectionBatch, dataset: ImageDataset, names: Sequence[str], count: int
) -> list[Tile]:
    """Return pictures of the first `count` images of a batch, boxes drawn on them.

    Raises UserError for a batch whose images were all left out.
    """
    if not len(batch.indices):
        raise UserError("expected a batch with images, found all of them skipped")
    pixels = restore_pixels(batch.images[:count].numpy(), dataset)
    labels = batch.labels[:count].numpy()
    if isinstance(batch, DetectionBatch):
        rows = zip(pixels, batch.boxes[:count].numpy(), labels, strict=True)
        return [_boxed(image, boxes, own, names) for image, boxes, own in rows]
    return [
        Tile(enlarge(image), label_lines(label, names))
        for image, label in zip(pixels, labels, strict=True)
    ]


def _boxed(image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Tile:
    """boxes: [M, 4], relative; labels: [M], 0 where an image has fewer boxes."""
    picture = enlarge(image)
    is_box = labels > 0
    own = [int(label) for label in labels[is_box]]
    corners = boxes[is_box] * np.array(picture.size * 2, np.float32)
    texts = [names[label] for label in own]
    count = len(own)
    words = f"{count} box" if count == 1 else f"{count} boxes"
    return Tile(draw_boxes(picture, corners, own, texts), [words])


def enlarge(image: np.ndarray) -> Image.Image:
    """HWC uint8 RGB as a picture whose pixels, if it is small, are squares one can see."""
    factor = max(1, math.ceil(_SIDE / min(image.shape[:2])))
    picture = Image.fromarray(image)
    size = picture.width * factor, picture.height * factor
    return picture.resize(size, Image.Resampling.NEAREST)


def make_sheet(tiles: Sequence[Tile], columns: int | None = None) -> Image.Image:
    """Lay tiles out, in as many columns as fit unless told."""
    cell = tuple(max(sides) for sides in zip(*(tile.picture.size for tile in tiles), strict=True))
    columns = columns or max(1, _WIDTH // cell[0])
    return contact_sheet(
        [tile.picture for tile in tiles], columns, cell, captions=[tile.caption for tile in tiles]
    )
