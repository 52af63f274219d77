"""Which way a data set's images take: pixel by pixel the same, at different costs.

plain: every transform as it is written, float32 [C, H, W] handed over. The reference.
fast: JPEG files through libjpeg-turbo, HWC uint8 handed over, normalised as a batch where the
    network is. The transforms before that are the plain ones, with the same draws.
"""

from __future__ import annotations

import logging
from typing import Literal, NamedTuple

from ppcls.data import jpeg
from ppcls.data.datasets import ClassificationDataset, ImageDataset
from ppcls.data.normalization import Normalization, split_tail
from ppcls.data.transforms import (
    AutoAugment,
    ColorJitter,
    Compose,
    CropImage,
    DecodeImage,
    RandAugment,
    RandCropImage,
    RandFlipImage,
    ResizeImage,
    TimmAutoAugment,
    Transform,
    TrivialAugment,
)
from ppcls.utils.errors import ConfigError

_logger = logging.getLogger("ppcls")

PipelineName = Literal["auto", "plain", "fast"]

# Transforms that give HWC uint8 pixels when they get them.
_OF_PIXELS = (
    AutoAugment,
    ColorJitter,
    CropImage,
    RandAugment,
    RandCropImage,
    RandFlipImage,
    ResizeImage,
    TimmAutoAugment,
    TrivialAugment,
)


class Pipeline(NamedTuple):
    """What the loader reads samples from, and what it does to a batch of them, if anything."""

    dataset: ImageDataset
    normalization: Normalization | None = None


def choose_pipeline(
    name: PipelineName, dataset: ImageDataset, where: str, *, is_mixed: bool = False
) -> Pipeline:
    """Return the pipeline of a loader, and say in the log which one it is.

    where: dotted path of the section. is_mixed: whether images are mixed in pairs, in float32.
    Raises ConfigError when "fast" is asked for and cannot be.
    """
    if name == "plain":
        _logger.info("%s: plain pipeline, as loader.pipeline says", where)
        return Pipeline(dataset)
    try:
        pipeline = _fast(dataset, is_mixed)
    except ValueError as reason:
        if name == "fast":
            raise ConfigError(f"{where}.loader.pipeline: fast is not possible: {reason}") from None
        _logger.info("%s: plain pipeline: %s", where, reason)
        return Pipeline(dataset)
    decodes = any(isinstance(op, jpeg.DecodeJpeg) for op in pipeline.dataset.transforms.transforms)
    decoder = f"JPEG by simplejpeg {jpeg.version()}, " if decodes else ""
    _logger.info("%s: fast pipeline: %suint8 batches, normalised as a whole", where, decoder)
    return pipeline


def _fast(dataset: ImageDataset, is_mixed: bool) -> Pipeline:
    """Return the fast pipeline. Raises ValueError with the reason why there is none."""
    if not isinstance(dataset, ClassificationDataset):
        raise ValueError("expected images with one label each")
    if is_mixed:
        raise ValueError("expected no batch_transform_ops, which mix normalised images")
    transforms, last = split_tail(dataset.transforms.transforms)
    replaced: list[Transform] = []
    for position, transform in enumerate(transforms):
        # Exact types: a subclass may give other pixels.
        if type(transform) is DecodeImage and position == 0:
            replaced.append(_decoder(transform))
        elif type(transform) in _OF_PIXELS:
            replaced.append(transform)
        else:
            raise ValueError(f"{type(transform).__name__} at transform_ops[{position}] needs it")
    return Pipeline(dataset.giving_pixels(Compose(replaced)), Normalization.of(last))


def _decoder(plain: DecodeImage) -> jpeg.DecodeJpeg:
    if plain.channel_first:
        raise ValueError("DecodeImage.channel_first: expected false, got True")
    if jpeg.version() is None:
        raise ValueError("expected the package 'simplejpeg', found none; pip install simplejpeg")
    if not jpeg.agrees(plain.backend):
        raise ValueError(f"the installed {plain.backend} decodes JPEG unlike libjpeg-turbo")
    return jpeg.DecodeJpeg(plain)
