"""Batches of images mixed in pairs, the same however an epoch is cut into batches.

An image's partner and its draws depend on (seed, epoch, place in the epoch's order) alone: not on
batch size, accumulation, processes or workers, and not on where a run was stopped. Partners are
half a block of eight places apart. In a shuffled order that is as random as a random pairing, no
image meets itself, and up to four copies side by side (repeated augmentation) do not meet either;
more of them, and those a class-balanced order has anywhere, may.

A rank loads the partners outside its own batch too: none when its batch size is a multiple of
eight, at most eight otherwise. So the last, short batch is mixed like any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import paddle

from ppcls.data.batch import Batch, LabelBatching
from ppcls.data.batch_ops import BatchOp
from ppcls.data.datasets import Sample
from ppcls.data.sampler import EpochOrder, GlobalBatchSampler, SampleKey, mixing_rng

_BLOCK = 8


def partner_of(place: int, count: int) -> int:
    """Place of the partner of the image at `place` of an epoch of `count`.

    Everyone is somebody's partner once. Only the image of an epoch of one is its own.
    """
    last = max(count // _BLOCK - 1, 0)  # the last block has the rest, too
    block = min(place // _BLOCK, last)
    first = block * _BLOCK
    size = count - first if block == last else _BLOCK
    return first + (place - first + size // 2) % size


class MixPlan(NamedTuple):
    """What a worker must know to mix a batch; it follows the batch's keys.

    epoch: of the batch.
    first: place of the batch's first image in the epoch's order; the others follow.
    partners: for each image of the batch, which of the keys is its partner. Keys past
        `len(partners)` are partners only.
    """

    epoch: int
    first: int
    partners: list[int]


class MixingSampler:
    """The batches of `sampler`, each with the keys of partners outside it and a MixPlan.

    A rank's places in the order follow each other (`spread` of a sampler with copies is off).
    """

    def __init__(self, sampler: GlobalBatchSampler) -> None:
        self.sampler = sampler

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[list[SampleKey | MixPlan]]:
        return (_plan(*step) for step in self.sampler.steps())


def _plan(order: EpochOrder, own: range) -> list[SampleKey | MixPlan]:
    partners = [partner_of(place, len(order)) for place in own]
    places = [*own, *sorted(set(partners) - set(own))]
    number = {place: i for i, place in enumerate(places)}
    plan = MixPlan(order.epoch, own.start, [number[place] for place in partners])
    return [*order.keys(places), plan]


class PairedSample(NamedTuple):
    """An image to be mixed with its partner, if that one could be loaded.

    epoch, place: where it stands, which decides the draws.
    """

    sample: Sample
    partner: Sample | None
    epoch: int
    place: int

    @property
    def index(self) -> int:
        return self.sample.index


def pair_up(samples: Sequence[Sample | None], plan: MixPlan) -> list[PairedSample]:
    """Pair what the keys of a plan gave; None stands for a sample that was left out."""
    own = samples[: len(plan.partners)]
    return [
        PairedSample(sample, samples[partner], plan.epoch, plan.first + i)
        for i, (sample, partner) in enumerate(zip(own, plan.partners, strict=True))
        if sample is not None
    ]


class MixedBatching:
    """Images with one label each, mixed in pairs by `op`: labels are [n, class_num] float32.

    An image whose partner is missing, or that `op` leaves alone, has all of its label.
    """

    def __init__(self, op: BatchOp, class_num: int, seed: int) -> None:
        self.op = op
        self.class_num = class_num
        self.seed = seed

    def stack(self, samples: list[PairedSample]) -> dict[str, Any]:
        mixed = [self._mix(paired) for paired in samples]
        return {
            "images": np.stack([image for image, _ in mixed]),
            "labels": np.stack([label for _, label in mixed]),
        }

    def _mix(self, paired: PairedSample) -> tuple[np.ndarray, np.ndarray]:
        sample, partner = paired.sample, paired.partner
        rng = mixing_rng(self.seed, paired.epoch, paired.place)
        mix = self.op.draw(rng, *sample.image.shape[1:])
        if mix is None or partner is None:
            label = np.zeros(self.class_num, np.float32)
            label[int(sample.label)] = 1
            return sample.image, label
        label = mix.labels(int(sample.label), int(partner.label), self.class_num)
        return mix.images(sample.image, partner.image), label

    def batch(self, fields: dict[str, Any], indices: np.ndarray) -> Batch:
        return LabelBatching().batch(fields, indices)

    def empty(self) -> Batch:
        empty = LabelBatching().empty()
        return empty._replace(labels=paddle.to_tensor(np.zeros((0, self.class_num), np.float32)))
