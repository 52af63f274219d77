"""timm's policy strings and its levels, for `timm_augment`.

Source of names and amounts: `timm/data/auto_augment.py` of huggingface/pytorch-image-models
(Apache-2.0), which PaddleClas follows. Different from both: `inc0` means what it says, where they
take any digit for yes, and what a string cannot mean is an error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from ppcls.data.transforms.image_ops import Step, either_sign
from ppcls.utils.errors import did_you_mean
from ppcls.utils.schema import parse_number

_LEVELS = 10.0


class _Number(NamedTuple):
    """What may stand behind a key of a string."""

    low: float
    high: float
    is_whole: bool = True

    def allows(self, number: float) -> bool:
        if not self.low <= number <= self.high:
            return False
        return not self.is_whole or number == int(number)

    def __str__(self) -> str:
        kind = "a whole number" if self.is_whole else "a number"
        if math.isinf(self.high):
            return f"{kind} >= {self.low:g}"
        return f"{kind} from {self.low:g} to {self.high:g}"


_MSTD = _Number(0, math.inf, is_whole=False)
POLICIES = ("original", "originalr", "v0", "v0r")
_KINDS: dict[str, dict[str, _Number]] = {
    "rand": {
        "m": _Number(0, 30),
        "n": _Number(1, 100),
        "p": _Number(0, 1, is_whole=False),
        "w": _Number(0, 0),
        "inc": _Number(0, 1),
        "mstd": _MSTD,
        "mmax": _Number(1, 100),
    },
    "augmix": {
        "m": _Number(0, 10),
        "w": _Number(1, 100),
        "d": _Number(1, 100),
        "a": _Number(1e-3, 1e3, is_whole=False),
        "mstd": _MSTD,
    },
    **{name: {"mstd": _MSTD} for name in POLICIES},
}
_GROWING = ("Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness")


def increasing(name: str) -> str:
    """Name of the variant of an operation whose effect grows with the level."""
    return f"{name}Increasing" if name in _GROWING else name


def parse_policy(text: str) -> tuple[str, dict[str, float]]:
    """Read `rand-m9-mstd0.5-inc1` as ("rand", {"m": 9, "mstd": 0.5, "inc": 1}).

    Raises ValueError beginning with `config_str`.
    """
    kind, *parts = text.split("-")
    if kind not in _KINDS:
        hint = did_you_mean(kind, _KINDS) or ";"
        raise ValueError(
            f"config_str: unknown policy {kind!r} in {text!r}{hint} known: {', '.join(_KINDS)}"
        )
    values: dict[str, float] = {}
    for part in parts:
        key, value = _read_part(part, _KINDS[kind], text)
        if key in values:
            raise ValueError(f"config_str: expected each key once in {text!r}, got {key!r} again")
        values[key] = value
    return kind, values


def _read_part(part: str, known: dict[str, _Number], text: str) -> tuple[str, float]:
    match = re.fullmatch(r"([a-z]+)(\d.*)", part)
    if match is None or match[1] not in known:
        raise ValueError(
            f"config_str: expected one of {', '.join(known)} with a number in {text!r}, "
            f"got {part!r}"
        )
    wanted, number = known[match[1]], parse_number(match[2])
    if number is None or not wanted.allows(number):
        raise ValueError(
            f"config_str: expected {wanted} after {match[1]!r} in {text!r}, got {part!r}"
        )
    return match[1], int(number) if wanted.is_whole else number


@dataclass(frozen=True)
class Levels:
    """How a level becomes an amount. Levels run 0..10, with `highest` above 10 up to that.

    std: of the noise on a level; infinite: any level from 0 to the given one.
    moved: largest translation, as a share of the side.
    filters: of which one is drawn per operation.
    """

    std: float
    moved: float
    filters: tuple[Image.Resampling, ...]
    highest: float = _LEVELS

    def step(
        self, name: str, level: float, size: tuple[int, int], rng: np.random.Generator
    ) -> Step:
        """Draw operation `name` at about this level, for an image of this width and height."""
        if math.isinf(self.std):
            level = rng.uniform(0, level)
        elif self.std > 0:
            level = rng.normal(level, self.std)
        share = min(max(level, 0.0), self.highest) / _LEVELS
        operation = re.sub("Increasing$|Original$", "", name)
        if operation not in ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"):
            return Step(operation, _AMOUNTS[name](share, rng) if name in _AMOUNTS else 0.0)
        side = {"TranslateX": size[0], "TranslateY": size[1]}.get(operation, 0)
        largest = {"Rotate": 30.0, "ShearX": 0.3, "ShearY": 0.3}.get(operation, self.moved * side)
        amount = either_sign(largest * share, rng)
        which = int(rng.integers(len(self.filters))) if len(self.filters) > 1 else 0
        return Step(operation, amount, self.filters[which])


def _factor(share: float, rng: np.random.Generator) -> float:
    return 0.1 + 1.8 * share


def _growing_factor(share: float, rng: np.random.Generator) -> float:
    return max(0.1, 1 + either_sign(0.9 * share, rng))


_AMOUNTS: dict[str, Callable[[float, np.random.Generator], float]] = {
    **{name: _factor for name in ("Color", "Contrast", "Brightness", "Sharpness")},
    **{
        f"{name}Increasing": _growing_factor
        for name in ("Color", "Contrast", "Brightness", "Sharpness")
    },
    "Posterize": lambda share, _: int(4 * share),
    "PosterizeIncreasing": lambda share, _: max(0, 4 - int(4 * share)),
    "PosterizeOriginal": lambda share, _: 4 + int(4 * share),
    "Solarize": lambda share, _: int(256 * share),
    "SolarizeIncreasing": lambda share, _: max(0, 256 - int(256 * share)),
    "SolarizeAdd": lambda share, _: int(110 * share),
}
