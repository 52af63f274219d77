"""Mixup and CutMix: what is drawn for one image and its partner, and what becomes of the two.

Sources: H. Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018; S. Yun et al.,
"CutMix", ICCV 2019. Names and parameters are PaddleClas's. There and in most code a whole batch
shares one draw; here each image has its own, so that the result does not depend on how an epoch is
cut into batches (see `mixing`, which also says who is whose partner).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from ppcls.utils import schema
from ppcls.utils.errors import ConfigError
from ppcls.utils.registry import Registry

BATCH_OPS: Registry = Registry("batch transform")

# float32 holds every multiple of this up to 1, so that both shares of a label add up to 1 exactly.
_GRAIN = 2.0**-24


class Mix(NamedTuple):
    """How an image is mixed with its partner.

    share: of the image itself in the result and in the label, 0..1, a multiple of 2**-24.
    box: (top, bottom, left, right) in pixels, cut from the partner; None blends all pixels.
    """

    share: float
    box: tuple[int, int, int, int] | None = None

    def images(self, image: np.ndarray, partner: np.ndarray) -> np.ndarray:
        """Mix two [C, H, W] float32 images into a new one."""
        if self.box is None:
            return np.float32(self.share) * image + np.float32(1 - self.share) * partner
        top, bottom, left, right = self.box
        mixed = image.copy()
        mixed[:, top:bottom, left:right] = partner[:, top:bottom, left:right]
        return mixed

    def labels(self, label: int, partner: int, class_num: int) -> np.ndarray:
        """Mix two labels: [class_num] float32 that adds up to exactly 1."""
        mixed = np.zeros(class_num, np.float32)
        mixed[label] += np.float32(self.share)
        mixed[partner] += np.float32(1 - self.share)
        return mixed


class BatchOp(Protocol):
    """What `batch_transform_ops` names."""

    def draw(self, rng: np.random.Generator, height: int, width: int) -> Mix | None:
        """Draw how to mix an image of this size; None leaves it as it is."""


def on_grain(share: float) -> float:
    """Return the multiple of 2**-24 closest to `share`, which is at most 2**-25 away."""
    return round(share / _GRAIN) * _GRAIN


def _check_alpha(alpha: float) -> float:
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha: expected a number > 0, got {alpha!r}")
    return alpha


@BATCH_OPS.register()
class MixupOperator:
    """Blend an image with its partner; its share is drawn from Beta(alpha, alpha)."""

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = _check_alpha(alpha)

    def draw(self, rng: np.random.Generator, height: int, width: int) -> Mix:
        return Mix(on_grain(rng.beta(self.alpha, self.alpha)))


@BATCH_OPS.register()
class CutmixOperator:
    """Paste a box of the partner into an image.

    The box has the image's proportions and an area of 1 - lambda with lambda from
    Beta(alpha, alpha), its middle is any pixel, and what lies outside the image is lost: the label
    follows the pixels that are left.
    """

    def __init__(self, alpha: float = 0.2) -> None:
        self.alpha = _check_alpha(alpha)

    def draw(self, rng: np.random.Generator, height: int, width: int) -> Mix:
        side = math.sqrt(1 - rng.beta(self.alpha, self.alpha))
        top, bottom = _span(rng, height, side)
        left, right = _span(rng, width, side)
        pasted = (bottom - top) * (right - left) / (height * width)
        return Mix(on_grain(1 - pasted), (top, bottom, left, right))


def _span(rng: np.random.Generator, length: int, share: float) -> tuple[int, int]:
    """Draw the ends of a stretch of up to `share` of `length`, around any of its places."""
    half = int(length * share) // 2
    middle = int(rng.integers(length))
    return max(middle - half, 0), min(middle + half, length)


@BATCH_OPS.register()
class OpSampler:
    """One of several operators per image, by the `prob` of each; what is missing to 1 is none.

    OpSampler:
        MixupOperator: {alpha: 0.8, prob: 0.5}
        CutmixOperator: {alpha: 1.0, prob: 0.5}
    """

    def __init__(self, *, config_path: str = "OpSampler", **operators: dict) -> None:
        if not operators:
            raise ConfigError(f"{config_path}: expected operators with a 'prob' each, found none")
        self.operators: list[BatchOp] = []
        self.bounds: list[float] = []  # of each one's part of 0..1
        total = 0.0
        for name, params in operators.items():
            operator, prob = _build_with_prob(name, params, f"{config_path}.{name}")
            total += prob
            self.operators.append(operator)
            self.bounds.append(total)
        if total > 1 + 1e-9:
            raise ConfigError(f"{config_path}: expected probs of 1 or less in all, got {total:g}")

    def draw(self, rng: np.random.Generator, height: int, width: int) -> Mix | None:
        chance = rng.random()
        for operator, bound in zip(self.operators, self.bounds, strict=True):
            if chance < bound:
                return operator.draw(rng, height, width)
        return None


def _build_with_prob(name: str, params: Any, where: str) -> tuple[BatchOp, float]:
    factory = BATCH_OPS.get(name, where.rpartition(".")[0])
    if factory is OpSampler:
        raise ConfigError(f"{where}: expected an operator, got another OpSampler")
    if not isinstance(params, Mapping) or "prob" not in params:
        raise ConfigError(f"{where}: missing key 'prob'")
    prob = schema.coerce(params["prob"], float, f"{where}.prob")
    if not 0 <= prob <= 1:
        raise ConfigError(f"{where}.prob: expected a number from 0 to 1, got {prob!r}")
    own = {key: value for key, value in params.items() if key != "prob"}
    return schema.build(factory, own, where), prob


def build_batch_op(entries: Any, where: str) -> BatchOp | None:
    """Build PaddleClas's list `[{MixupOperator: {alpha: 0.2}}]` of one entry; None for no entry.

    Raises ConfigError naming the entry, such as
    "D.batch_transform_ops[0].MixupOperator.alpha: expected a number > 0, got 0".
    """
    if not entries and (entries is None or isinstance(entries, (list, tuple))):
        return None
    if not isinstance(entries, (list, tuple)):
        raise ConfigError(f"{where}: expected a list of one operator, got {entries!r}")
    if len(entries) > 1:
        names = ", ".join(schema.split_entry(e, f"{where}[{i}]")[0] for i, e in enumerate(entries))
        raise ConfigError(
            f"{where}: expected one operator (OpSampler chooses among several), got {names}"
        )
    name, _ = schema.split_entry(entries[0], f"{where}[0]")
    return schema.build_entry(
        BATCH_OPS, entries[0], f"{where}[0]", config_path=f"{where}[0].{name}"
    )
