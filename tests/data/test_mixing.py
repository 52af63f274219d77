"""Mixed batches: who is whose partner, and that nothing else changes them."""

import numpy as np
import pytest

from ppcls.data.batch_ops import build_batch_op
from ppcls.data.datasets import ClassificationDataset
from ppcls.data.loader import (
    Loader,
    LoaderConfig,
    build_dataset,
    build_eval_loader,
    build_train_loader,
)
from ppcls.data.mixing import MixingSampler, MixPlan, partner_of
from ppcls.data.sampler import GlobalBatchSampler, mixing_rng, sample_rng
from ppcls.utils.errors import ConfigError, DataError

CLASSES = 5
BOTH = [{"OpSampler": {"MixupOperator": {"prob": 0.4}, "CutmixOperator": {"prob": 0.4}}}]
MIXUP = [{"MixupOperator": {"alpha": 0.8}}]
OPS = [{"NormalizeImage": {"scale": 1, "mean": [0] * 3, "std": [1] * 3, "order": "hwc"}}]


class Shades(ClassificationDataset):
    """Image i is 8x8 pixels of value i, of class i % 5."""

    def __init__(self, count, broken=(), **options):
        super().__init__(OPS, config_path="D", **options)
        self.labels = np.arange(count) % CLASSES
        self.class_num = CLASSES
        self.broken = set(broken)

    def read(self, index):
        if index in self.broken:
            raise ValueError("damaged")
        return np.full((8, 8, 3), index, np.uint8)

    def describe(self, index):
        return f"image {index}"


def mixed(
    count=83, batch_size=16, *, ops=MIXUP, epochs=(0, 1), start=0, workers=0, seed=3, rank=0,
    world_size=1, drop_last=False, **options,
):  # fmt: skip
    """Batches of a rank: (images, labels, indices) each."""
    dataset = Shades(count, seed=seed, **options)
    sampler = GlobalBatchSampler(
        count, batch_size, seed=seed, rank=rank, world_size=world_size, drop_last=drop_last
    )
    config = LoaderConfig(num_workers=workers)
    loader = Loader(dataset, sampler, config, build_batch_op(ops, "D"))
    batches = []
    for epoch in epochs:
        sampler.set_epoch(epoch)
        sampler.set_start(start)
        batches += [(b.images.numpy(), b.labels.numpy(), b.indices) for b in loader]
    return batches, loader


def joined(batches):
    filled = [batch for batch in batches if len(batch[2])]
    return [np.concatenate(items) for items in zip(*filled, strict=True)]


def assert_equal(found, expected):
    for array, other in zip(found, expected, strict=True):
        assert array.dtype == other.dtype and np.array_equal(array, other)


# Partners


@pytest.mark.parametrize("count", [*range(1, 40), 64, 103])
def test_everyone_is_somebodys_partner_once(count):
    partners = [partner_of(place, count) for place in range(count)]
    assert sorted(partners) == list(range(count))
    distances = [abs(place - partner) for place, partner in enumerate(partners)]
    assert count == 1 or min(distances) >= min(4, count // 2)
    assert max(distances) < 16


def test_partners_are_inside_a_batch_of_a_multiple_of_eight():
    for batch_size, extra in ((8, 0), (16, 0), (24, 0), (20, 8), (3, 3)):
        batches = list(MixingSampler(GlobalBatchSampler(960, batch_size)))
        extras = [len(batch) - 1 - len(batch[-1].partners) for batch in batches]
        assert max(extras) <= extra, batch_size
        for batch in batches:
            assert isinstance(batch[-1], MixPlan) and len(batch[-1].partners) == batch_size


# What a batch holds


def test_images_and_labels_are_mixed_alike():
    """Image i has the value i everywhere: pixels tell who is in a result, and how much of it."""
    batches, loader = mixed(40, 16, epochs=(0,))
    order = loader.sampler.order(0)
    partner = {int(order[p]): int(order[partner_of(p, 40)]) for p in range(40)}
    shares = []
    for images, labels, indices in batches:
        assert images.shape[1:] == (3, 8, 8) and labels.shape == (len(indices), CLASSES)
        assert images.dtype == labels.dtype == np.float32
        assert (labels.sum(axis=1, dtype=np.float64) == 1).all()
        for image, label, index in zip(images, labels, indices.tolist(), strict=True):
            other = partner[index]
            share = (image.mean() - other) / (index - other)
            expected = np.zeros(CLASSES)
            expected[index % CLASSES] += share
            expected[other % CLASSES] += 1 - share
            np.testing.assert_allclose(label, expected, atol=1e-5)
            shares.append(share)
    assert len(shares) == 40 and np.std(shares) > 0.2 and len(set(np.round(shares, 5))) > 35


def test_cutmix_pixels_are_the_labels_share():
    for images, labels, indices in mixed(40, 16, ops=[{"CutmixOperator": {"alpha": 1.0}}])[0]:
        for image, label, index in zip(images, labels, indices.tolist(), strict=True):
            own = (image[0] == index).mean()
            assert label[index % CLASSES] in (own, 1)  # 1: the partner has the same class


@pytest.mark.parametrize("count", [1, 2, 17, 33])
def test_the_last_batch_is_mixed_too(count):
    """Of one image after a full batch, with a partner from the batch before it."""
    batches, _ = mixed(count, 16, epochs=(0,))
    images, labels, indices = batches[-1]
    assert len(indices) == (count % 16 or 16)
    assert (labels.sum(axis=1, dtype=np.float64) == 1).all()
    if count in (17, 33):
        assert not np.isclose(images[0].mean(), indices[0], atol=1e-3)
    if count == 1:
        assert np.allclose(images[0], 0) and labels[0].tolist() == [1, 0, 0, 0, 0]


# What may not change it


@pytest.mark.parametrize(
    "ops", [pytest.param(MIXUP, marks=pytest.mark.slow), BOTH], ids=["mixup", "both"]
)
def test_batch_size_accumulation_workers_and_processes_do_not_change_a_sample(ops):
    expected = joined(mixed(ops=ops)[0])
    for batch_size in (1, 5, 32, 200):
        assert_equal(joined(mixed(batch_size=batch_size, ops=ops)[0]), expected)
    assert_equal(joined(mixed(batch_size=10, workers=2, ops=ops)[0]), expected)
    for world_size, batch_size in ((2, 8), (3, 7)):
        ranks = [
            mixed(batch_size=batch_size, rank=rank, world_size=world_size, ops=ops)[0]
            for rank in range(world_size)
        ]
        steps = [batch for step in zip(*ranks, strict=True) for batch in step]
        assert_equal(joined(steps), expected)
    dropped = joined(mixed(drop_last=True, ops=ops, epochs=(0,))[0])
    assert_equal(dropped, [array[: len(dropped[2])] for array in expected])


def test_seed_and_epoch_change_it():
    first, second = (joined(mixed(epochs=(epoch,))[0]) for epoch in (0, 1))
    other = joined(mixed(epochs=(0,), seed=4)[0])
    for batches in (second, other):
        order, reference = np.argsort(batches[2]), np.argsort(first[2])
        assert not np.isclose(batches[0][order], first[0][reference]).all(axis=(1, 2, 3)).any()


def test_going_on_inside_an_epoch():
    whole = mixed(epochs=(2,), ops=BOTH, workers=1)[0]
    rest = mixed(epochs=(2,), ops=BOTH, start=3)[0]
    for batch, expected in zip(rest, whole[3:], strict=True):
        assert_equal(batch, expected)


def test_a_rank_without_images_gets_soft_labels_of_none():
    images, labels, indices = mixed(9, 4, rank=1, world_size=2, epochs=(0,))[0][-1]
    assert images.shape == (0, 3, 0, 0) and labels.shape == (0, CLASSES) and not len(indices)
    assert labels.dtype == np.float32


def test_streams_do_not_meet():
    streams = {mixing_rng(1, 2, place).random() for place in range(4)}
    streams |= {sample_rng(1, 2, index).random() for index in range(4)}
    assert len(streams) == 8


# Broken images


def test_a_skipped_image_leaves_its_partner_as_it_is():
    order = GlobalBatchSampler(40, 16, seed=3).order(0)
    broken = int(order[10])
    lonely = int(order[14])  # its partner is at place 10
    for batch_size in (16, 12):  # at 12 the partner belongs to another batch
        batches, loader = mixed(40, batch_size, broken=[broken], on_error="skip", epochs=(0,))
        images, labels, indices = joined(batches)
        assert sorted(indices) == sorted(set(range(40)) - {broken}) and loader.skipped == 1
        row = indices.tolist().index(lonely)
        assert (images[row] == lonely).all()
        assert labels[row].tolist() == np.eye(CLASSES)[lonely % CLASSES].tolist()


def test_a_broken_partner_is_named():
    with pytest.raises(DataError, match="image 7: damaged"):
        mixed(40, 16, broken=[7])


# The section


def section(root, **dataset):
    common = {"name": "ImageNetDataset", "image_root": str(root), "transform_ops": OPS}
    return {
        "dataset": {**common, "cls_label_path": str(root / "list.txt"), **dataset},
        "sampler": {"batch_size": 4},
    }


@pytest.fixture
def root(tmp_path):
    from PIL import Image

    for i in range(6):
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "list.txt").write_text("".join(f"{i}.png {i % 3}\n" for i in range(6)))
    return tmp_path


def test_the_section_builds_mixed_batches(root):
    ops = [{"DecodeImage": None}, *OPS]
    config = section(root, transform_ops=ops, batch_transform_ops=MIXUP)
    loader = build_train_loader(config, "D.Train", class_num=7)
    assert [batch.labels.shape for batch in loader] == [[4, 7], [2, 7]]
    assert len(build_dataset(config["dataset"], "D.Train.dataset")) == 6
    with pytest.raises(ConfigError, match="D.Eval.dataset.batch_transform_ops: expected none in"):
        build_eval_loader(config, "D.Eval")
    plain = build_train_loader(section(root, transform_ops=ops, batch_transform_ops=[]), "D.Train")
    assert [batch.labels.shape for batch in plain] == [[4], [2]]
