"""What a transform is, the registry of them, and their composition.

A transform is a small callable `transform(image, rng) -> image`. Unless it says otherwise it takes
and gives an HWC uint8 RGB array (a PIL image is taken too). All its randomness comes from `rng`,
so one sample gives one result wherever it is computed. An image it cannot handle is a ValueError;
the dataset adds the name of the file.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image

from ppcls.utils.errors import ConfigError
from ppcls.utils.registry import Registry
from ppcls.utils.schema import build_entry

# The library that decodes or resizes, in the spellings PaddleClas takes.
Backend = Literal["cv2", "pil", "CV2", "PIL"]


class Transform(Protocol):
    def __call__(self, image: Any, rng: np.random.Generator) -> Any: ...


TRANSFORMS: Registry = Registry("transform")


class Compose:
    """Apply `transforms` in order, each with the same generator."""

    def __init__(self, transforms: list[Transform]) -> None:
        self.transforms = transforms

    def __call__(self, image: Any, rng: np.random.Generator) -> Any:
        for transform in self.transforms:
            image = transform(image, rng)
        return image


def build_transforms(entries: list | None, where: str) -> Compose:
    """Build a YAML list of `Name: {parameters}`; errors name `where[i].Name.parameter`."""
    if entries is None:
        entries = []
    if not isinstance(entries, list):
        raise ConfigError(f"{where}: expected a list of transforms, got {entries!r}")
    return Compose(
        [build_entry(TRANSFORMS, entry, f"{where}[{i}]") for i, entry in enumerate(entries)]
    )


def as_array(image: Any) -> np.ndarray:
    """Return `image`, an array or a PIL image, as an array of 3 dimensions."""
    if isinstance(image, Image.Image):
        image = np.asarray(image)
    if not isinstance(image, np.ndarray):
        raise ValueError(
            f"expected an image array, got {type(image).__name__}; is DecodeImage the first "
            "transform?"
        )
    if image.ndim != 3:
        raise ValueError(f"expected an image of 3 dimensions, got shape {list(image.shape)}")
    return image


def as_pil(image: Any) -> Image.Image:
    """Return `image` as a PIL image; an array must be HWC uint8."""
    if isinstance(image, Image.Image):
        return image
    array = as_array(image)
    if array.dtype != np.uint8 or array.shape[2] != 3:
        raise ValueError(
            f"expected an HWC uint8 image of 3 channels, got {array.dtype} {list(array.shape)}"
        )
    return Image.fromarray(np.ascontiguousarray(array))


def width_height(size: int | list[int], name: str = "size") -> tuple[int, int]:
    """Read PaddleClas's `size`: one number, or [width, height] in pixels."""
    pair = [size, size] if isinstance(size, int) else list(size)
    if len(pair) != 2 or min(pair) < 1:
        raise ValueError(f"{name}: expected a number >= 1 or [width, height], got {size!r}")
    return pair[0], pair[1]
