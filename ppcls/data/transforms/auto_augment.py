"""AutoAugment, RandAugment and TrivialAugment: a few random operations per image.

Sources: E. D. Cubuk et al., CVPR 2019 (AutoAugment); E. D. Cubuk et al., "RandAugment", 2020;
S. G. Mueller and F. Hutter, "TrivialAugment", ICCV 2021. AutoAugment and RandAugment follow
PaddleClas in names, parameters and amounts, except that a rotation goes either way, as in the
papers; PaddleClas always turns anticlockwise. TrivialAugment follows torchvision's
TrivialAugmentWide; PaddleClas has none.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ppcls.data.transforms.base import TRANSFORMS
from ppcls.data.transforms.image_ops import (
    FILTERS,
    GREY,
    Filter,
    Policy,
    Step,
    either_sign,
)
from ppcls.data.transforms.policies import IMAGENET, Choice

_TOP_LEVEL = 9  # AutoAugment's levels are 0..9
_RAND_LEVELS = 10.0  # the magnitude at which RandAugment's amounts reach AutoAugment's largest
_MOST_RAND = 30.0  # the largest magnitude in the RandAugment paper
_MOVED = 150.0 / 331.0  # of the image's side; the policies were learned on 331 pixels
_PLAIN = ("AutoContrast", "Equalize", "Identity", "Invert")  # have no amount
_FACTORS = ("Brightness", "Color", "Contrast", "Sharpness")


@TRANSFORMS.register()
class AutoAugment(Policy):
    """One of the 25 learned pairs of operations for ImageNet, each operation with its probability.

    Amounts of level n = 0..9, in tenths of the range's ends: Shear 0..0.3, Rotate 0..30 degrees,
    factors 1 +- 0..0.9 (all these either way), Posterize 8..4 bits, Solarize 256..0.
    HWC uint8 RGB in and out.
    """

    def __init__(self, fillcolor: list[int] | tuple[int, ...] = GREY) -> None:
        super().__init__(fillcolor)

    def draw(self, rng: np.random.Generator, size: tuple[int, int]) -> list[Step]:
        pair = IMAGENET[int(rng.integers(len(IMAGENET)))]
        return [self._step(choice, rng) for choice in pair if rng.random() < choice.prob]

    def _step(self, choice: Choice, rng: np.random.Generator) -> Step:
        name, share = choice.name, choice.level / _TOP_LEVEL
        if name in _PLAIN:
            return Step(name)
        if name == "Posterize":
            return Step(name, round(8 - 4 * share))
        if name == "Solarize":
            return Step(name, 256 * (1 - share))
        if name in _FACTORS:
            return Step(name, 1 + either_sign(0.9 * share, rng))
        if name == "Rotate":
            return Step(name, either_sign(30 * share, rng))
        return Step(name, either_sign(0.3 * share, rng), FILTERS["bicubic"])  # ShearX


# What an operation's amount is at a share of RandAugment's range for an image of this width and
# height, and whether it goes either way.
_RAND_AMOUNTS: dict[str, tuple[Callable[[float, tuple[int, int]], float], bool]] = {
    "ShearX": (lambda share, _: 0.3 * share, True),
    "ShearY": (lambda share, _: 0.3 * share, True),
    "TranslateX": (lambda share, size: _MOVED * share * size[0], True),
    "TranslateY": (lambda share, size: _MOVED * share * size[1], True),
    "Rotate": (lambda share, _: 30 * share, True),
    "Color": (lambda share, _: 0.9 * share, True),
    "Posterize": (lambda share, _: int(4 * share), False),
    "Solarize": (lambda share, _: 256 * share, False),
    "Contrast": (lambda share, _: 0.9 * share, True),
    "Sharpness": (lambda share, _: 0.9 * share, True),
    "Brightness": (lambda share, _: 0.9 * share, True),
    "AutoContrast": (lambda *_: 0.0, False),
    "Equalize": (lambda *_: 0.0, False),
    "Invert": (lambda *_: 0.0, False),
}


@TRANSFORMS.register()
class RandAugment(Policy):
    """`num_layers` operations, each one of 14 with equal chance, all of one magnitude.

    At magnitude m: Shear 0.03m, Translate 150/331 of the side times m/10, Rotate 3m degrees,
    factors 1 +- 0.09m (all these either way); Posterize keeps int(0.4m) bits and Solarize inverts
    from 25.6m, so that these two grow weaker with m. HWC uint8 RGB in and out.

    Args:
        num_layers: operations per image.
        magnitude: 0..30; AutoAugment's largest amounts are those of 10.
        interpolation: filter of shears, translations and rotations.
    """

    def __init__(
        self,
        num_layers: int = 2,
        magnitude: float = 5,
        fillcolor: list[int] | tuple[int, ...] = GREY,
        interpolation: Filter = "bicubic",
    ) -> None:
        super().__init__(fillcolor)
        if num_layers < 1:
            raise ValueError(f"num_layers: expected a number >= 1, got {num_layers!r}")
        if not 0 <= magnitude <= _MOST_RAND:
            raise ValueError(
                f"magnitude: expected a number from 0 to {_MOST_RAND:.0f}, got {magnitude!r}"
            )
        self.num_layers = num_layers
        self.share = magnitude / _RAND_LEVELS
        self.resample = FILTERS[interpolation]

    def draw(self, rng: np.random.Generator, size: tuple[int, int]) -> list[Step]:
        return [self._step(rng, size) for _ in range(self.num_layers)]

    def _step(self, rng: np.random.Generator, size: tuple[int, int]) -> Step:
        name = list(_RAND_AMOUNTS)[int(rng.integers(len(_RAND_AMOUNTS)))]
        amount_of, is_signed = _RAND_AMOUNTS[name]
        amount = amount_of(self.share, size)
        if is_signed:
            amount = either_sign(amount, rng)
        return Step(name, 1 + amount if name in _FACTORS else amount, self.resample)


# The largest amounts of TrivialAugment's "wide" space; these go either way.
_WIDE = {
    "ShearX": 0.99,
    "ShearY": 0.99,
    "TranslateX": 32.0,
    "TranslateY": 32.0,
    "Rotate": 135.0,
    "Brightness": 0.99,
    "Color": 0.99,
    "Contrast": 0.99,
    "Sharpness": 0.99,
}
_TRIVIAL = ("Identity", *_WIDE, "Posterize", "Solarize", "AutoContrast", "Equalize")


@TRANSFORMS.register()
class TrivialAugment(Policy):
    """One of 14 operations with equal chance, its strength drawn too: nothing to tune.

    Strengths are `num_magnitude_bins` equal steps over Shear 0..0.99, Translate 0..32 pixels,
    Rotate 0..135 degrees, factors 1 +- 0..0.99 (all these either way), Posterize 8..2 bits,
    Solarize 255..0. HWC uint8 RGB in and out.

    Args:
        num_magnitude_bins: strengths per operation, at least 2.
        interpolation: filter of shears, translations and rotations.
    """

    def __init__(
        self,
        num_magnitude_bins: int = 31,
        interpolation: Filter = "nearest",
        fillcolor: list[int] | tuple[int, ...] = (0, 0, 0),
    ) -> None:
        super().__init__(fillcolor)
        if num_magnitude_bins < 2:
            raise ValueError(
                f"num_magnitude_bins: expected a number >= 2, got {num_magnitude_bins!r}"
            )
        self.bins = num_magnitude_bins
        self.resample = FILTERS[interpolation]

    def draw(self, rng: np.random.Generator, size: tuple[int, int]) -> list[Step]:
        name = _TRIVIAL[int(rng.integers(len(_TRIVIAL)))]
        share = int(rng.integers(self.bins)) / (self.bins - 1)
        if name in _PLAIN:
            return [Step(name)]
        if name == "Posterize":
            return [Step(name, 8 - round(6 * share))]
        if name == "Solarize":
            return [Step(name, 255 * (1 - share))]
        amount = either_sign(_WIDE[name] * share, rng)
        if name in ("TranslateX", "TranslateY"):
            amount = int(amount)
        return [Step(name, 1 + amount if name in _FACTORS else amount, self.resample)]
