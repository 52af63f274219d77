"""The operations AutoAugment and its descendants choose from, each with one amount, on PIL images.

The operations are those of E. D. Cubuk et al., "AutoAugment: Learning Augmentation Policies from
Data", CVPR 2019, table 6, and SolarizeAdd of its later ImageNet policy. What differs between the
descendants is which amounts they draw; that is in their own modules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from ppcls.data.transforms.base import as_pil

Filter = Literal["nearest", "bilinear", "bicubic"]
NEAREST = Image.Resampling.NEAREST
FILTERS = {
    "nearest": NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
GREY = (128, 128, 128)
_HALF = 128  # SolarizeAdd brightens values below it


class Step(NamedTuple):
    """One operation on an image.

    amount: degrees anticlockwise (Rotate); pixels the image moves left or up (Translate); rows per
        column or columns per row (Shear); factor, 1 changes nothing (Brightness, Color, Contrast,
        Sharpness); bits kept, 0..8 (Posterize); lowest inverted value (Solarize); value added to
        those below 128 (SolarizeAdd). The others have none.
    resample: filter of Rotate, Translate and Shear.
    """

    name: str
    amount: float = 0.0
    resample: Image.Resampling = NEAREST


class Policy:
    """Draw steps for an image and apply them. HWC uint8 RGB in and out, same size.

    fillcolor: RGB of what moves in from outside, 0..255.
    """

    def __init__(self, fillcolor: list[int] | tuple[int, ...]) -> None:
        if len(fillcolor) != 3 or not all(0 <= value <= 255 for value in fillcolor):
            raise ValueError(
                f"fillcolor: expected 3 numbers from 0 to 255, got {list(fillcolor)!r}"
            )
        self.fillcolor = (fillcolor[0], fillcolor[1], fillcolor[2])

    def draw(self, rng: np.random.Generator, size: tuple[int, int]) -> list[Step]:
        """Steps for an image of this width and height, in their order."""
        raise NotImplementedError

    def __call__(self, image: Any, rng: np.random.Generator) -> np.ndarray:
        picture = as_pil(image)
        for step in self.draw(rng, picture.size):
            picture = apply_step(picture, step, self.fillcolor)
        return np.asarray(picture)


def either_sign(amount: float, rng: np.random.Generator) -> float:
    """Return `amount` or its negative, each half of the time."""
    return amount if rng.random() < 0.5 else -amount


def apply_step(image: Image.Image, step: Step, fillcolor: tuple[int, int, int]) -> Image.Image:
    """Apply one step to an RGB image."""
    if step.name in _GEOMETRY:
        matrix = _GEOMETRY[step.name](step.amount)
        return image.transform(
            image.size, Image.Transform.AFFINE, matrix, step.resample, fillcolor=fillcolor
        )
    if step.name == "Rotate":
        return image.rotate(step.amount, step.resample, fillcolor=fillcolor)
    return _VALUES[step.name](image, step.amount)


# Where an output pixel (x, y) comes from: (a, b, c, d, e, f) is (ax + by + c, dx + ey + f).
_GEOMETRY: dict[str, Callable[[float], tuple[float, ...]]] = {
    "ShearX": lambda amount: (1, amount, 0, 0, 1, 0),
    "ShearY": lambda amount: (1, 0, 0, amount, 1, 0),
    "TranslateX": lambda amount: (1, 0, amount, 0, 1, 0),
    "TranslateY": lambda amount: (1, 0, 0, 0, 1, amount),
}


def _posterize(image: Image.Image, bits: float) -> Image.Image:
    # Not ImageOps.posterize: policies ask for 0 bits too, a black image, which new Pillows refuse.
    mask = 256 - 2 ** (8 - min(int(bits), 8))
    return image.point([value & mask for value in range(256)] * 3)


def _solarize_add(image: Image.Image, added: float) -> Image.Image:
    table = [min(255, int(value + added)) if value < _HALF else value for value in range(256)]
    return image.point(table * 3)


_VALUES: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "Identity": lambda image, _: image,
    "AutoContrast": lambda image, _: ImageOps.autocontrast(image),
    "Equalize": lambda image, _: ImageOps.equalize(image),
    "Invert": lambda image, _: ImageOps.invert(image),
    "Brightness": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    "Color": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    "Contrast": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "Sharpness": lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor),
    "Posterize": _posterize,
    "Solarize": lambda image, threshold: ImageOps.solarize(image, threshold),
    "SolarizeAdd": _solarize_add,
}
