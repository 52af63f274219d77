"""TimmAutoAugment: AutoAugment, RandAugment or AugMix, named by timm's strings.

Sources: see `timm_levels`; AugMix is that of D. Hendrycks et al., "AugMix", ICLR 2020.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from PIL import Image

from ppcls.data.transforms.base import TRANSFORMS, as_pil, width_height
from ppcls.data.transforms.image_ops import FILTERS, Policy, Step, apply_step
from ppcls.data.transforms.policies import IMAGENET, IMAGENET_V0, Choice
from ppcls.data.transforms.timm_levels import Levels, increasing, parse_policy

_MOVED, _AUGMIX_MOVED = 0.45, 0.3  # largest translation, of the side
_UNIFORM_FROM = 100.0  # a larger mstd means: any magnitude from 0 to m
_AUGMIX_DEPTH = 3  # largest, when it is drawn

# RandAugment's operations, and how likely each one is with `w0`.
_RAND = {
    "AutoContrast": 0.025,
    "Equalize": 0.005,
    "Invert": 0.0,
    "Rotate": 0.3,
    "Posterize": 0.0,
    "Solarize": 0.005,
    "SolarizeAdd": 0.005,
    "Color": 0.025,
    "Contrast": 0.005,
    "Brightness": 0.005,
    "Sharpness": 0.025,
    "ShearX": 0.2,
    "ShearY": 0.2,
    "TranslateX": 0.1,
    "TranslateY": 0.1,
}
_AUGMIX = (
    "AutoContrast Color Contrast Brightness Sharpness Equalize Rotate Posterize Solarize "
    "ShearX ShearY TranslateX TranslateY"
).split()


class _Rand(Policy):
    """timm's RandAugment."""

    def __init__(self, fillcolor: list[int], levels: Levels, parts: dict[str, float]) -> None:
        super().__init__(fillcolor)
        self.levels = levels
        self.names = [increasing(name) if parts.get("inc") else name for name in _RAND]
        self.magnitude = parts.get("m", 10)
        self.layers = int(parts.get("n", 2))
        self.prob = parts.get("p", 0.5)
        self.weights = list(_RAND.values()) if "w" in parts else None
        likely = sum(weight > 0 for weight in _RAND.values())
        if self.weights and self.layers > likely:
            raise ValueError(
                f"config_str: expected at most n{likely} with w0, which takes no operation twice, "
                f"got n{self.layers}"
            )

    def draw(self, rng: np.random.Generator, size: tuple[int, int]) -> list[Step]:
        chosen = rng.choice(
            len(self.names), self.layers, replace=self.weights is None, p=self.weights
        )
        names = [self.names[place] for place in chosen if rng.random() < self.prob]
        return [self.levels.step(name, self.magnitude, size, rng) for name in names]


class _Pairs(Policy):
    """timm's AutoAugment. `policy` is one of `timm_levels.POLICIES`."""

    def __init__(self, fillcolor: list[int], levels: Levels, policy: str) -> None:
        super().__init__(fillcolor)
        self.levels = levels
        self.pairs = IMAGENET if policy.startswith("original") else IMAGENET_V0
        self.posterize = {"original": "PosterizeOriginal", "v0": "Posterize"}.get(
            policy, "PosterizeIncreasing"
        )

    def draw(self, rng: np.random.Generator, size: tuple[int, int]) -> list[Step]:
        pair = self.pairs[int(rng.integers(len(self.pairs)))]
        return [self._step(choice, rng, size) for choice in pair if rng.random() < choice.prob]

    def _step(self, choice: Choice, rng: np.random.Generator, size: tuple[int, int]) -> Step:
        name = self.posterize if choice.name == "Posterize" else choice.name
        return self.levels.step(name, choice.level, size, rng)


class _AugMix(Policy):
    """Several chains of operations, mixed with each other and then with the image."""

    def __init__(self, fillcolor: list[int], levels: Levels, parts: dict[str, float]) -> None:
        super().__init__(fillcolor)
        self.levels = levels
        self.magnitude = parts.get("m", 3)
        self.width = int(parts.get("w", 3))
        self.depth = int(parts["d"]) if "d" in parts else None
        self.alpha = parts.get("a", 1.0)

    def draw(self, rng: np.random.Generator, size: tuple[int, int]) -> list[Step]:
        """Steps of one chain."""
        depth = self.depth or int(rng.integers(1, _AUGMIX_DEPTH + 1))
        names = [
            increasing(_AUGMIX[int(place)]) for place in rng.integers(len(_AUGMIX), size=depth)
        ]
        return [self.levels.step(name, self.magnitude, size, rng) for name in names]

    def __call__(self, image: Any, rng: np.random.Generator) -> np.ndarray:
        picture = as_pil(image)
        weights = rng.dirichlet([self.alpha] * self.width)
        share = rng.beta(self.alpha, self.alpha)
        mixed = np.zeros((picture.height, picture.width, 3))
        for weight in weights:
            chain = picture
            for step in self.draw(rng, picture.size):
                chain = apply_step(chain, step, self.fillcolor)
            mixed += weight * np.asarray(chain)
        mixed = (1 - share) * np.asarray(picture) + share * mixed
        return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


@TRANSFORMS.register()
class TimmAutoAugment:
    """An augmentation named by timm's string. HWC uint8 RGB in and out, same size.

    - `rand`: n operations (2), each one of 15 with equal chance and left out with probability
      1 - p (0.5), of magnitude m (10). `mstd` is the noise on m (above 100: any magnitude up to
      m), `mmax` the largest magnitude (10), `inc1` makes all effects grow with m, `w0` prefers
      geometry and takes no operation twice.
    - `original`, `originalr`, `v0`, `v0r`: AutoAugment's pairs for ImageNet, with `mstd`.
    - `augmix`: w chains (3) of d operations (1 to 3) of magnitude m (3, and by default any up to
      it), mixed with each other and the image by weights of a Dirichlet and Beta distribution of
      parameter a (1).

    Args:
        prob: of changing the image at all.
        interpolation: filter of shears, translations and rotations; "random" draws bilinear or
            bicubic for each.
        img_size: accepted because PaddleClas's files name it; translations are shares of the
            image's own side.
        mean: colour of what moves in from outside, 0..1 per channel; ImageNet's when absent.
    """

    def __init__(
        self,
        prob: float = 1.0,
        config_str: str = "rand-m9-mstd0.5-inc1",
        interpolation: Literal["nearest", "bilinear", "bicubic", "random"] = "bicubic",
        img_size: int | list[int] = 224,
        mean: list[float] | tuple[float, ...] = (0.485, 0.456, 0.406),
    ) -> None:
        if not 0 <= prob <= 1:
            raise ValueError(f"prob: expected a number from 0 to 1, got {prob!r}")
        if len(mean) != 3 or not all(0 <= value <= 1 for value in mean):
            raise ValueError(f"mean: expected 3 numbers from 0 to 1, got {list(mean)!r}")
        width_height(img_size, "img_size")
        self.prob = prob
        names = ("bilinear", "bicubic") if interpolation == "random" else (interpolation,)
        filters = tuple(FILTERS[name] for name in names)
        self.policy = _build(config_str, [round(255 * value) for value in mean], filters)

    def __call__(self, image: Any, rng: np.random.Generator) -> np.ndarray:
        if rng.random() >= self.prob:
            return np.asarray(as_pil(image))
        return self.policy(image, rng)


def _build(config_str: str, fillcolor: list[int], filters: tuple[Image.Resampling, ...]) -> Policy:
    kind, parts = parse_policy(config_str)
    std = parts.get("mstd", math.inf if kind == "augmix" else 0.0)
    std = math.inf if std > _UNIFORM_FROM else std
    moved = _AUGMIX_MOVED if kind == "augmix" else _MOVED
    levels = Levels(std, moved, filters, **({"highest": parts["mmax"]} if "mmax" in parts else {}))
    if kind == "rand":
        return _Rand(fillcolor, levels, parts)
    if kind == "augmix":
        return _AugMix(fillcolor, levels, parts)
    return _Pairs(fillcolor, levels, kind)
