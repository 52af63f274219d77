"""Which samples make a step, as a function of (seed, epoch, global batch) and nothing else.

Random streams, all NumPy `default_rng` of a list of whole numbers:

- the order of an epoch: `[seed, epoch]`
- a sample's augmentation: `[seed, epoch, index, 1]`; the 1 keeps it apart from the order's stream,
  which NumPy reads as `[seed, epoch, 0, 0]`. An epoch may have a sample several times: its further
  copies have `[seed, epoch, index, 1, copy]`, copy being 1, 2...
- how an image is mixed with another: `[seed, epoch, place in the order, 7]`
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

_AUGMENTATION_STREAM, _MIXING_STREAM = 1, 7


class SampleKey(NamedTuple):
    """A sample in an epoch: all a worker needs to know to compute it.

    copy: how often the epoch's order has the same sample before.
    """

    epoch: int
    index: int
    copy: int = 0


def order_rng(seed: int, epoch: int) -> np.random.Generator:
    """Generator of an epoch's order."""
    return np.random.default_rng([seed, epoch])


def sample_rng(seed: int, epoch: int, index: int, copy: int = 0) -> np.random.Generator:
    """Generator of the augmentation of one copy of a sample in one epoch."""
    stream = [seed, epoch, index, _AUGMENTATION_STREAM]
    return np.random.default_rng([*stream, copy] if copy else stream)


def mixing_rng(seed: int, epoch: int, place: int) -> np.random.Generator:
    """Generator of how the image at a place of an epoch's order is mixed with another."""
    return np.random.default_rng([seed, epoch, place, _MIXING_STREAM])


@dataclass(frozen=True)
class EpochOrder:
    """What an epoch has, place by place.

    indices: [places] int64, of the data set.
    copies: [places] int64, how often the same index stands before.
    """

    epoch: int
    indices: np.ndarray
    copies: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def keys(self, places: Iterable[int]) -> list[SampleKey]:
        """Keys of the samples at some places."""
        epoch, indices, copies = self.epoch, self.indices, self.copies
        return [SampleKey(epoch, int(indices[place]), int(copies[place])) for place in places]


def copy_numbers(indices: np.ndarray) -> np.ndarray:
    """Count for each place how often its index stands before it: [places] int64."""
    by_index = np.argsort(indices, kind="stable")
    sorted_indices = indices[by_index]
    is_first = np.r_[True, sorted_indices[1:] != sorted_indices[:-1]][: len(indices)]
    runs = np.arange(len(indices))
    copies = np.empty(len(indices), np.int64)
    copies[by_index] = runs - np.maximum.accumulate(np.where(is_first, runs, 0))
    return copies


def share(size: int, rank: int, world_size: int) -> slice:
    """Contiguous share of `range(size)` of one rank; the shares' sizes differ by at most one."""
    base, extra = divmod(size, world_size)
    start = rank * base + min(rank, extra)
    return slice(start, start + base + (rank < extra))


def _check(num_samples: int, batch_size: int, rank: int, world_size: int) -> None:
    if num_samples < 0:
        raise ValueError(f"num_samples: expected a number >= 0, got {num_samples!r}")
    if batch_size < 1:
        raise ValueError(f"batch_size: expected a number >= 1, got {batch_size!r}")
    if world_size < 1:
        raise ValueError(f"world_size: expected a number >= 1, got {world_size!r}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank: expected a number from 0 to {world_size - 1}, got {rank!r}")


class GlobalBatchSampler:
    """Batches of training: every step's global batch, of which this rank takes its share.

    The global batch of step s is `order(epoch)[s * G : (s + 1) * G]` with G = batch_size *
    world_size, so a step sees the same samples on any number of processes that give the same G.
    Each rank owns a contiguous share. The last, partial global batch is shared as evenly as
    possible, and may leave some ranks nothing; `drop_last` leaves it out instead.

    Args:
        batch_size: samples per process and step.
        seed: whole number >= 0.
        global_batch_size: G, when it is not batch_size * world_size; shares may then differ by one.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        shuffle: bool = True,
        drop_last: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        global_batch_size: int | None = None,
    ) -> None:
        _check(num_samples, batch_size, rank, world_size)
        if global_batch_size is not None and global_batch_size < 1:
            raise ValueError(f"global_batch_size: expected a number >= 1, got {global_batch_size}")
        if seed < 0:
            raise ValueError(f"seed: expected a number >= 0, got {seed!r}")
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.global_batch_size = global_batch_size or batch_size * world_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self._epoch = 0
        self._start = 0

    @property
    def epoch(self) -> int:
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        if epoch < 0:
            raise ValueError(f"epoch: expected a number >= 0, got {epoch!r}")
        self._epoch = epoch

    def set_start(self, step: int) -> None:
        """Begin the next iteration, and only that one, at `step` of its epoch (for resuming)."""
        if not 0 <= step <= len(self):
            raise ValueError(f"step: expected a number from 0 to {len(self)}, got {step!r}")
        self._start = step

    @property
    def remaining(self) -> int:
        """Batches the next iteration will give."""
        return len(self) - self._start

    def order(self, epoch: int) -> np.ndarray:
        """Sample indices of an epoch in order: [num_samples] int64."""
        if not self.shuffle:
            return np.arange(self.num_samples, dtype=np.int64)
        return order_rng(self.seed, epoch).permutation(self.num_samples).astype(np.int64)

    def copies(self, order: np.ndarray) -> np.ndarray:
        """How often the sample of each place of an order stands before: [num_samples] int64."""
        return np.zeros(len(order), np.int64)

    def __len__(self) -> int:
        """Steps of an epoch, the same on every rank."""
        whole, rest = divmod(self.num_samples, self.global_batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def global_size(self, step: int) -> int:
        """Samples of a step over all ranks."""
        if not 0 <= step < len(self):
            raise ValueError(f"step: expected a number from 0 to {len(self) - 1}, got {step!r}")
        return min(self.global_batch_size, self.num_samples - step * self.global_batch_size)

    def local_size(self, step: int) -> int:
        """Samples of a step on this rank."""
        own = share(self.global_size(step), self.rank, self.world_size)
        return own.stop - own.start

    def own(self, step: int) -> range:
        """Places in the epoch's order that this rank takes in a step."""
        own = share(self.global_size(step), self.rank, self.world_size)
        first = step * self.global_batch_size
        return range(first + own.start, first + own.stop)

    def steps(self) -> Iterator[tuple[EpochOrder, range]]:
        """The steps of the next iteration: (the epoch's order, this rank's places in it)."""
        epoch, start, self._start = self._epoch, self._start, 0
        indices = self.order(epoch)
        order = EpochOrder(epoch, indices, self.copies(indices))
        return ((order, self.own(step)) for step in range(start, len(self)))

    def __iter__(self) -> Iterator[list[SampleKey]]:
        return (order.keys(own) for order, own in self.steps())


class EvalSampler:
    """Batches of evaluation: each sample once over all ranks, in order, without padding.

    A rank owns a contiguous share of the samples, which is empty for some when there are fewer
    samples than ranks; ranks may differ in their number of batches. Keys have epoch 0.
    """

    def __init__(
        self, num_samples: int, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        _check(num_samples, batch_size, rank, world_size)
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self._own = share(num_samples, rank, world_size)

    @property
    def remaining(self) -> int:
        """Batches an iteration will give."""
        return len(self)

    def __len__(self) -> int:
        """Batches of this rank."""
        return -(-(self._own.stop - self._own.start) // self.batch_size)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for first in range(self._own.start, self._own.stop, self.batch_size):
            last = min(first + self.batch_size, self._own.stop)
            yield [SampleKey(0, index) for index in range(first, last)]
