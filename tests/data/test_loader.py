import logging
import os
import signal

import numpy as np
import pytest
from PIL import Image

from ppcls.data.datasets import Sample
from ppcls.data.loader import Loader, LoaderConfig, build_eval_loader, build_train_loader
from ppcls.data.sampler import EvalSampler
from ppcls.utils.errors import ConfigError, DataError, JobError

COUNT = 11
RANDOM_OPS = [
    {"DecodeImage": {"to_rgb": True, "channel_first": False}},
    {"RandCropImage": {"size": 16, "interpolation": "random"}},
    {"RandFlipImage": {"flip_code": 1}},
    {"ColorJitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}},
    {"NormalizeImage": {"scale": "1.0/255.0", "order": ""}},
]
DECODE = RANDOM_OPS[:1]


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    lines = []
    for i in range(COUNT):
        array = rng.integers(0, 256, (20 + i, 30 - i, 3), dtype=np.uint8)
        Image.fromarray(array).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png {i % 4}\n")
    (tmp_path / "list.txt").write_text("".join(lines))
    return tmp_path


def section(root, workers=0, batch_size=4, ops=RANDOM_OPS, sampler=None, loader=None, **dataset):
    return {
        "dataset": {
            "name": "ImageNetDataset",
            "image_root": str(root),
            "cls_label_path": str(root / "list.txt"),
            "transform_ops": ops,
            **dataset,
        },
        "sampler": {
            "name": "DistributedBatchSampler",
            "batch_size": batch_size,
            "drop_last": False,
            "shuffle": True,
            **(sampler or {}),
        },
        "loader": {"num_workers": workers, "use_shared_memory": True, **(loader or {})},
    }


def train(root, *, rank=0, world_size=1, **options):
    return build_train_loader(
        section(root, **options), "D.Train", seed=3, rank=rank, world_size=world_size
    )


def evaluation(root, *, rank=0, world_size=1, **options):
    config = section(root, sampler={"shuffle": False}, **options)
    return build_eval_loader(config, "D.Eval", rank=rank, world_size=world_size)


def read(loader, epochs=(0, 1)):
    batches = []
    for epoch in epochs:
        loader.sampler.set_epoch(epoch)
        batches += [(b.images.numpy(), b.labels.numpy(), b.indices) for b in loader]
    return batches


def assert_same(batches, others):
    assert len(batches) == len(others) > 0
    for batch, other in zip(batches, others, strict=True):
        for item, expected in zip(batch, other, strict=True):
            assert item.dtype == expected.dtype and np.array_equal(item, expected)


def test_batches_do_not_depend_on_workers(root):
    expected = read(train(root))
    assert [len(batch[2]) for batch in expected] == [4, 4, 3] * 2
    images, labels, indices = expected[0]
    assert images.shape == (4, 3, 16, 16) and images.dtype == np.float32
    assert labels.dtype == indices.dtype == np.int64
    assert labels.tolist() == [i % 4 for i in indices.tolist()]
    for workers in (1, 3):
        assert_same(read(train(root, workers=workers)), expected)
    assert_same(read(train(root, workers=2, loader={"use_shared_memory": False})), expected)


@pytest.mark.parametrize("world_size", [2, 3])
def test_global_batches_do_not_depend_on_processes(root, world_size):
    expected = read(train(root, batch_size=6))
    ranks = [
        read(train(root, batch_size=6 // world_size, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    joined = []
    for parts in zip(*ranks, strict=True):
        filled = [part for part in parts if len(part[2])]
        joined.append([np.concatenate(items) for items in zip(*filled, strict=True)])
    assert_same(joined, expected)
    for epoch in (joined[:2], joined[2:]):
        assert sorted(np.concatenate([batch[2] for batch in epoch])) == list(range(COUNT))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_rank_may_get_an_empty_batch(root, workers):
    loader = train(root, batch_size=5, rank=1, world_size=2, workers=workers)
    sizes = [(tuple(b.images.shape), tuple(b.labels.shape), b.indices.shape) for b in loader]
    assert sizes == [((5, 3, 16, 16), (5,), (5,)), ((0, 3, 0, 0), (0,), (0,))]


def test_resume_inside_an_epoch(root):
    loader = train(root, workers=1)
    whole = read(loader, [2])
    loader.sampler.set_start(2)
    assert_same(read(loader, [2]), whole[2:])
    assert_same(read(loader, [2]), whole)
    loader.sampler.set_start(3)
    assert read(loader, [2]) == []


def test_an_iteration_may_be_left_early(root):
    loader = train(root, workers=2)
    first = next(iter(loader)).indices
    assert np.array_equal(next(iter(loader)).indices, first)


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (4, 1), (13, 0)])
def test_evaluation_sees_each_image_once(root, world_size, workers):
    seen = []
    for rank in range(world_size):
        loader = evaluation(root, rank=rank, world_size=world_size, workers=workers)
        batches = list(loader)
        assert len(batches) == len(loader)
        seen += [index for batch in batches for index in batch.indices.tolist()]
    assert seen == list(range(COUNT))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_worker_error_arrives_as_one_sentence(root, workers):
    (root / "6.png").write_bytes(b"no image")
    loader = evaluation(root, workers=workers)
    with pytest.raises(DataError) as caught:
        list(loader)
    assert str(caught.value).startswith(f"{root / '6.png'}: cannot decode the image")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_samples_are_counted_and_named_once(root, workers, monkeypatch):
    for name in ("4.png", "5.png"):
        (root / name).write_bytes(b"no image")
    (root / "9.png").unlink()
    loader = evaluation(root, workers=workers, batch_size=2, on_error="skip")
    records = []
    monkeypatch.setattr(logging.getLogger("ppcls"), "handle", records.append)
    for _ in range(2):
        batches = list(loader)
        indices = [batch.indices.tolist() for batch in batches]
        assert indices == [[0, 1], [2, 3], [], [6, 7], [8], [10]]
        assert [len(batch.images) for batch in batches] == [2, 2, 0, 2, 1, 1]
        assert loader.skipped == 3
    assert [record.levelno for record in records] == [logging.WARNING] * 3
    for record, name in zip(records, ("4.png", "5.png", "9.png"), strict=True):
        assert record.getMessage().startswith(f"skipped {root / name}: cannot")


def test_sizes_must_agree_within_a_batch(root):
    loader = evaluation(root, ops=DECODE)
    with pytest.raises(DataError, match=r"1.png: .* 3x20x30 like .*0.png .* got 3x21x29; add"):
        list(loader)
    assert len(list(evaluation(root, ops=DECODE, batch_size=1))) == COUNT


class Scripted:
    """A data set whose sample 3 does something."""

    on_error = "raise"

    def __init__(self, action):
        self.action = action

    def __len__(self):
        return 6

    def describe(self, index):
        return f"sample {index}"

    def load(self, key):
        if key.index == 3:
            self.action()
        return Sample(np.zeros((3, 4, 4), np.float32), np.int64(0), key.index)


@pytest.mark.parametrize(
    "action", [lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: os._exit(3)]
)
def test_a_worker_that_dies_raises(action):
    loader = Loader(Scripted(action), EvalSampler(6, 1), LoaderConfig(num_workers=1, timeout=1))
    with pytest.raises(JobError, match="of 6 batches: a worker process died"):
        list(loader)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bug_in_a_transform_shows_its_traceback(workers):
    config = LoaderConfig(num_workers=workers)
    loader = Loader(Scripted(lambda: {}["absent"]), EvalSampler(6, 2), config)
    with pytest.raises(RuntimeError, match="KeyError: 'absent'"):
        list(loader)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_that_cannot_be_made_raises(workers, monkeypatch):
    def fail(samples):
        if samples:
            raise MemoryError("no room for the batch")
        return ""

    monkeypatch.setattr("ppcls.data.loader._size_error", fail)  # workers are forked, so it holds
    dataset = Scripted(lambda: None)
    loader = Loader(dataset, EvalSampler(6, 2), LoaderConfig(num_workers=workers))
    with pytest.raises(RuntimeError, match="no room for the batch"):
        list(loader)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": {"batch_size": 0}}, "D.Train.sampler.batch_size: expected a number >= 1"),
        ({"sampler": {"batch_sise": 1}}, "did you mean 'batch_size'"),
        ({"sampler": {"name": "PKSampler"}}, "D.Train.sampler.name: expected one of"),
        ({"loader": {"num_workers": -1}}, "D.Train.loader.num_workers: expected a number >= 0"),
        (
            {"sampler": {"batch_size": 12, "drop_last": True}},
            "D.Train.sampler.batch_size: expected at most 11",
        ),
        ({"name": "ImagenetDataset"}, "did you mean 'ImageNetDataset'"),
        (
            {"batch_transform_ops": [{"MixupOperator": {"alpha": -1}}]},
            r"D.Train.dataset.batch_transform_ops\[0\].MixupOperator.alpha: expected a number > 0",
        ),
    ],
)
def test_wrong_settings_are_named(root, options, message):
    with pytest.raises(ConfigError, match=message):
        train(root, **options)


def test_empty_batch_transforms_are_accepted(root):
    assert len(train(root, batch_transform_ops=None)) == 3


@pytest.mark.parametrize("name", ["drop_last", "shuffle"])
def test_evaluation_refuses_to_lose_or_mix_images(root, name):
    config = section(root, sampler={"shuffle": False, name: True})
    with pytest.raises(ConfigError, match=f"D.Eval.sampler.{name}: expected false"):
        build_eval_loader(config, "D.Eval")


def test_class_num_bounds_the_labels(root):
    with pytest.raises(DataError, match=r"list.txt:4: expected a label from 0 to 2, got 3"):
        build_eval_loader(section(root, sampler={"shuffle": False}), "D.Eval", class_num=3)
