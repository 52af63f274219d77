"""The section `sampler` of training: which samples an epoch has, and how often.

- DistributedBatchSampler: every sample once.
- RASampler: repeated augmentation. Hoffer et al., "Augment your batch" (arXiv 1901.09335), and
  Berman et al., "MultiGrain" (arXiv 1902.05509); the length of an epoch is that of DeiT and timm.
- ClassBalancedSampler: rare classes more often than they are there. Kang et al., "Decoupling
  representation and classifier for long-tailed recognition" (arXiv 1910.09217), equation 1.

All draw from (seed, epoch) alone: a step's samples are the same on any number of processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ppcls.data.datasets import ClassificationDataset, ImageDataset
from ppcls.data.sampler import GlobalBatchSampler, copy_numbers, order_rng
from ppcls.utils.errors import ConfigError
from ppcls.utils.schema import at_least

SamplerName = Literal[
    "DistributedBatchSampler",
    "BatchSampler",
    "RASampler",
    "RepeatedAugSampler",
    "ClassBalancedSampler",
]
REPEATED = ("RASampler", "RepeatedAugSampler")  # DeiT's name and PaddleClas's
BALANCED = ("ClassBalancedSampler",)
_OPTIONS: dict[str, tuple[str, ...]] = {
    "num_repeats": REPEATED,
    "selected_round": REPEATED,
    "beta": BALANCED,
    "epoch_samples": BALANCED,
}


@dataclass(frozen=True)
class SamplerConfig:
    """How samples are grouped into batches, which all processes share."""

    batch_size: int  # samples per process and step
    name: SamplerName = "DistributedBatchSampler"  # BatchSampler means the same
    drop_last: bool = False
    shuffle: bool = False
    num_repeats: int | None = None  # RASampler: copies of an image, one after another; 3
    selected_round: int | None = None  # RASampler: an epoch's length is a multiple of it; 256
    beta: float | None = None  # ClassBalancedSampler: 0 as it is, 0.5 square root, 1 balanced; 1
    epoch_samples: int | None = None  # ClassBalancedSampler: an epoch's length; the data set's

    def __post_init__(self) -> None:
        at_least(1, batch_size=self.batch_size)
        at_least(1, num_repeats=self.num_repeats, epoch_samples=self.epoch_samples)
        at_least(0, selected_round=self.selected_round)
        if self.beta is not None and not 0 <= self.beta <= 1:
            raise ValueError(f"beta: expected a number from 0 to 1, got {self.beta:g}")
        for option, names in _OPTIONS.items():
            value = getattr(self, option)
            if value is not None and self.name not in names:
                raise ValueError(f"{option}: expected none with {self.name}, got {value!r}")


class RASampler(GlobalBatchSampler):
    """Repeated augmentation: each image of an epoch `num_repeats` times, augmented differently.

    The shuffled images stand in the order `num_repeats` times each, one after another, and an epoch
    is the first part of it: as many samples as the data set has, rounded down to a multiple of
    `selected_round`. So it costs what an epoch without repeats does, has about one image in
    `num_repeats`, and of the last one maybe not all copies. 0 as `selected_round` rounds nothing.

    With `spread`, as in DeiT, the places of a step are dealt out in turn: the copies of an image go
    to different processes where there are as many. A step has the same samples without it, when
    each process takes a part of them in a row.

    Raises ValueError for a `selected_round` the data set does not reach.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        *,
        num_repeats: int = 3,
        selected_round: int = 256,
        spread: bool = True,
        **options: Any,
    ) -> None:
        if num_repeats < 1:
            raise ValueError(f"num_repeats: expected a number >= 1, got {num_repeats!r}")
        if not 0 <= selected_round <= num_images:
            raise ValueError(
                f"selected_round: expected a number from 0 to {num_images}, the images there are, "
                f"got {selected_round!r}"
            )
        self.num_images = num_images
        self.num_repeats = num_repeats
        self.spread = spread
        length = num_images - num_images % selected_round if selected_round else num_images
        super().__init__(length, batch_size, **options)

    def order(self, epoch: int) -> np.ndarray:
        images = -(-self.num_samples // self.num_repeats)
        if self.shuffle:
            chosen = order_rng(self.seed, epoch).permutation(self.num_images)[:images]
        else:
            chosen = np.arange(images)
        return np.repeat(chosen.astype(np.int64), self.num_repeats)[: self.num_samples]

    def copies(self, order: np.ndarray) -> np.ndarray:
        return np.arange(len(order)) % self.num_repeats

    def own(self, step: int) -> range:
        if not self.spread:
            return super().own(step)
        first = step * self.global_batch_size
        return range(first + self.rank, first + self.global_size(step), self.world_size)


class ClassBalancedSampler(GlobalBatchSampler):
    """A class c of n_c images gets a share of an epoch in proportion to n_c^(1 - beta).

    That is weights n_c^-beta of its images: the data set as it is with `beta` 0, square-root
    sampling with 0.5, equal classes with 1. Nothing is left to chance that need not be: the samples
    of a class differ from its share by less than one, and each of its images is drawn as often as
    the others, or once more.

    Args:
        labels: [images] integer, of the data set.
        epoch_samples: samples of an epoch; None for as many as there are images.
    """

    def __init__(
        self,
        labels: np.ndarray,
        batch_size: int,
        *,
        beta: float = 1.0,
        epoch_samples: int | None = None,
        **options: Any,
    ) -> None:
        if not 0 <= beta <= 1:
            raise ValueError(f"beta: expected a number from 0 to 1, got {beta!r}")
        if epoch_samples is not None and epoch_samples < 1:
            raise ValueError(f"epoch_samples: expected a number >= 1, got {epoch_samples!r}")
        super().__init__(epoch_samples or len(labels), batch_size, **options)
        _, counts = np.unique(labels, return_counts=True)
        by_class = np.argsort(labels, kind="stable").astype(np.int64)
        self._images = np.split(by_class, np.cumsum(counts)[:-1])  # of each class that has any
        weights = counts.astype(np.float64) ** (1 - beta)
        self.shares = weights / weights.sum() * self.num_samples

    def order(self, epoch: int) -> np.ndarray:
        rng = order_rng(self.seed, epoch)
        drawn = [
            _draw(images, count, rng)
            for images, count in zip(self._images, round_shares(self.shares, rng), strict=True)
        ]
        return rng.permutation(np.concatenate(drawn))

    def copies(self, order: np.ndarray) -> np.ndarray:
        return copy_numbers(order)


def round_shares(shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Round numbers, whose sum is whole, up or down so that the sum stays: int64.

    The expected value of each is what it was (systematic sampling).
    """
    total = round(float(shares.sum()))
    ends = np.cumsum(shares) + rng.random()
    whole = np.floor(ends).astype(np.int64)
    whole[-1] = total
    return np.diff(np.minimum(whole, total), prepend=0)


def _draw(images: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return `count` of the images, each as often as the others or once more."""
    rounds, rest = divmod(int(count), len(images))
    extra = rng.permutation(images)[:rest] if rest else images[:0]
    return np.concatenate([np.tile(images, rounds), extra])


def build_train_sampler(
    config: SamplerConfig, dataset: ImageDataset, where: str, *, is_mixed: bool, **options: Any
) -> GlobalBatchSampler:
    """Build the sampler of a training section.

    is_mixed: whether images are mixed in pairs; copies then are not spread over the processes, each
    of which would load the partners too. options: of every GlobalBatchSampler.
    Raises ConfigError for what the data set does not allow.
    """
    options |= {"shuffle": config.shuffle, "drop_last": config.drop_last}
    if config.name in REPEATED + BALANCED:
        _check_special(config, dataset, where)
    try:
        if config.name in REPEATED:
            options |= _given(num_repeats=config.num_repeats, selected_round=config.selected_round)
            return RASampler(len(dataset), config.batch_size, spread=not is_mixed, **options)
        if isinstance(dataset, ClassificationDataset) and config.name in BALANCED:
            options |= _given(beta=config.beta, epoch_samples=config.epoch_samples)
            return ClassBalancedSampler(dataset.labels, config.batch_size, **options)
    except ValueError as error:
        raise ConfigError(f"{where}.{error}") from error
    return GlobalBatchSampler(len(dataset), config.batch_size, **options)


def _check_special(config: SamplerConfig, dataset: ImageDataset, where: str) -> None:
    if not isinstance(dataset, ClassificationDataset):
        raise ConfigError(
            f"{where}.name: expected DistributedBatchSampler for images with boxes, "
            f"got {config.name}"
        )
    if not config.shuffle:
        raise ConfigError(
            f"{where}.shuffle: expected True with {config.name}, whose epochs do not have every "
            "image, got False"
        )


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
