"""Transforms of images with boxes: what one is, the registry of them, and their composition.

A box transform is a small callable `transform(image, boxes, labels, rng)` that gives the three
anew. Unless it says otherwise the image is HWC uint8, in BGR order as the official recipe reads it:

    image: [H, W, 3] uint8
    boxes: [m, 4] float32, corners x1, y1, x2, y2 in pixels of this image, 0 <= x1 < x2 <= W
    labels: [m] int64, one per box; 0, the background, does not occur

All randomness comes from `rng`. Names and parameters are PaddleDetection's where it has them. The
pixel transforms of `TRANSFORMS` that leave every pixel in its place work in the same list.

There is no multi-scale training: SSD's prior boxes and heads are laid out for one input size.

Source of the recipe: https://github.com/PingoLH/PytorchSSD-HarDNet (MIT).
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np

from ppcls.data.transforms.base import TRANSFORMS, Transform
from ppcls.data.transforms.color import ToCHWImage
from ppcls.utils.errors import ConfigError, did_you_mean
from ppcls.utils.registry import Registry
from ppcls.utils.schema import build_entry, split_entry

PIXEL_TRANSFORMS = ("ColorJitter", "DecodeImage", "NormalizeImage", "ToCHWImage")


class Boxed(NamedTuple):
    """An image, its boxes and their labels, on the way through the transforms."""

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray


class BoxTransform(Protocol):
    def __call__(
        self, image: Any, boxes: np.ndarray, labels: np.ndarray, rng: np.random.Generator
    ) -> Boxed: ...


BOX_TRANSFORMS: Registry = Registry("box transform")


class PixelTransform:
    """A transform of the image alone, as a box transform."""

    def __init__(self, transform: Transform) -> None:
        self.transform = transform

    def __call__(
        self, image: Any, boxes: np.ndarray, labels: np.ndarray, rng: np.random.Generator
    ) -> Boxed:
        return Boxed(self.transform(image, rng), boxes, labels)


@BOX_TRANSFORMS.register()
def Permute() -> PixelTransform:
    """PaddleDetection's name of ToCHWImage."""
    return PixelTransform(ToCHWImage())


class BoxCompose:
    """Apply `transforms` in order, each with the same generator."""

    def __init__(self, transforms: list[BoxTransform]) -> None:
        self.transforms = transforms

    @property
    def gives_chw(self) -> bool:
        """Whether the image of the result is CHW."""
        pixel = [op.transform for op in self.transforms if isinstance(op, PixelTransform)]
        return any(isinstance(transform, ToCHWImage) for transform in pixel)

    def __call__(
        self, image: Any, boxes: np.ndarray, labels: np.ndarray, rng: np.random.Generator
    ) -> Boxed:
        sample = Boxed(image, boxes, labels)
        for transform in self.transforms:
            sample = transform(*sample, rng)
        return sample


def build_box_transforms(entries: list | None, where: str) -> BoxCompose:
    """Build a YAML list of `Name: {parameters}`; errors name `where[i].Name.parameter`."""
    if entries is None:
        entries = []
    if not isinstance(entries, list):
        raise ConfigError(f"{where}: expected a list of box transforms, got {entries!r}")
    return BoxCompose([_build(entry, f"{where}[{i}]") for i, entry in enumerate(entries)])


def _build(entry: Any, where: str) -> BoxTransform:
    name, _ = split_entry(entry, where)
    if name in PIXEL_TRANSFORMS:
        return PixelTransform(build_entry(TRANSFORMS, entry, where))
    if name in BOX_TRANSFORMS:
        return build_entry(BOX_TRANSFORMS, entry, where, config_path=f"{where}.{name}")
    known = sorted([*PIXEL_TRANSFORMS, *BOX_TRANSFORMS])
    if name in TRANSFORMS:
        raise ConfigError(
            f"{where}: {name} would move the image and not its boxes; expected one of "
            f"{', '.join(known)}"
        )
    hint = did_you_mean(name, known) or ";"
    raise ConfigError(f"{where}: unknown box transform {name!r}{hint} known: {', '.join(known)}")


@BOX_TRANSFORMS.register()
class Augment:
    """Apply `transform_ops` to an image with boxes, unless they leave none: then change nothing.

    Boxes whose width or height after `transform_ops` is not above `min_side` are dropped. If none
    is left, the image goes on as it came, with every box it came with. An image without boxes
    passes unchanged. So does the official preparation, whose random steps all belong in here.

    Args:
        transform_ops: YAML list of box transforms.
        min_side: share of the image's width (height) that a box must be wider (higher) than.
    """

    def __init__(
        self, transform_ops: list, min_side: float = 0.01, config_path: str = "Augment"
    ) -> None:
        if not 0 <= min_side < 1:
            raise ValueError(f"min_side: expected a number >= 0 and below 1, got {min_side!r}")
        self.transforms = build_box_transforms(transform_ops, f"{config_path}.transform_ops")
        if self.transforms.gives_chw:
            raise ValueError("transform_ops: expected no Permute or ToCHWImage here; put it after")
        self.min_side = min_side

    def __call__(
        self, image: Any, boxes: np.ndarray, labels: np.ndarray, rng: np.random.Generator
    ) -> Boxed:
        if not len(boxes):
            return Boxed(image, boxes, labels)
        changed = self.transforms(image, boxes, labels, rng)
        height, width = changed.image.shape[:2]
        sides = (changed.boxes[:, 2:] - changed.boxes[:, :2]) / np.array([width, height])
        keep = sides.min(axis=1) > self.min_side
        if not keep.any():
            return Boxed(image, boxes, labels)
        return Boxed(changed.image, changed.boxes[keep], changed.labels[keep])
