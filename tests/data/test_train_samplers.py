"""Repeated augmentation and class balance, against literal models of what they promise."""

from collections import Counter

import numpy as np
import pytest
from test_loader import assert_same, read, root, section, train  # noqa: F401  (root: a fixture)
from test_mixing import MIXUP, Shades, joined

from ppcls.data.batch_ops import build_batch_op
from ppcls.data.loader import Loader, LoaderConfig, build_eval_loader, build_train_loader
from ppcls.data.sampler import SampleKey, copy_numbers, sample_rng
from ppcls.data.train_samplers import ClassBalancedSampler, RASampler, round_shares
from ppcls.utils.errors import ConfigError

LABELS = np.repeat([0, 1, 2, 4], [40, 3, 10, 1])  # class 3 has no image


def repeated(num_images=100, batch_size=12, **options):
    return RASampler(num_images, batch_size, **{"selected_round": 0, "seed": 5, **options})


def balanced(batch_size=12, labels=LABELS, **options):
    return ClassBalancedSampler(labels, batch_size, **{"seed": 5, **options})


def global_batches(build, world_size, batch, epoch=3):
    """[step][rank] -> keys."""
    ranks = [build(batch_size=batch, rank=r, world_size=world_size) for r in range(world_size)]
    for sampler in ranks:
        sampler.set_epoch(epoch)
    plans = [list(sampler) for sampler in ranks]
    for sampler, plan in zip(ranks, plans, strict=True):
        assert [len(own) for own in plan] == [sampler.local_size(s) for s in range(len(sampler))]
    return [list(step) for step in zip(*plans, strict=True)]


# Keys and their generators


def test_the_first_copy_has_the_draws_it_always_had():
    for seed, epoch, index in ((0, 0, 0), (7, 3, 11), (2**40, 9, 10**6)):
        reference = np.random.default_rng([seed, epoch, index, 1])
        draws = sample_rng(seed, *SampleKey(epoch, index)).random(4)
        assert np.array_equal(draws, reference.random(4))
    streams = {sample_rng(1, 2, index, copy).random() for index in range(9) for copy in range(9)}
    assert len(streams) == 81


def test_copy_numbers():
    rng = np.random.default_rng(1)
    for size in (0, 1, 50):
        indices = rng.integers(0, 9, size)
        seen = Counter()
        expected = []
        for index in indices.tolist():
            expected.append(seen[index])
            seen[index] += 1
        assert copy_numbers(indices).tolist() == expected


# Repeated augmentation


@pytest.mark.parametrize(("num_images", "repeats"), [(100, 3), (99, 3), (7, 2), (5, 1), (4, 9)])
def test_an_epoch_is_the_start_of_the_repeated_permutation(num_images, repeats):
    sampler = repeated(num_images, num_repeats=repeats)
    for epoch in (0, 4):
        permutation = np.random.default_rng([5, epoch]).permutation(num_images).tolist()
        expected = [(i, c) for i in permutation for c in range(repeats)][:num_images]
        sampler.set_epoch(epoch)
        keys = [key for batch in sampler for key in batch]
        assert keys == [SampleKey(epoch, *pair) for pair in expected]


@pytest.mark.parametrize(("num_images", "rounded"), [(256, 256), (511, 256), (1300, 1280)])
def test_the_length_of_an_epoch_is_deit_s(num_images, rounded):
    sampler = RASampler(num_images, 64, shuffle=True)
    assert (sampler.num_samples, len(sampler)) == (rounded, rounded // 64)
    assert RASampler(num_images, 64, selected_round=0).num_samples == num_images


@pytest.mark.parametrize("build", [repeated, balanced], ids=["repeated", "balanced"])
def test_a_step_has_the_same_samples_on_any_number_of_processes(build):
    plans = []
    for world_size in (1, 2, 3, 4):
        steps = global_batches(build, world_size, 12 // world_size)
        plans.append([sorted(key for share in step for key in share) for step in steps])
        for step in steps:
            sizes = [len(share) for share in step]
            assert max(sizes) - min(sizes) <= 1
    assert plans[0] == plans[1] == plans[2] == plans[3]
    keys = [key for step in plans[0] for key in step]
    assert len(set(keys)) == len(keys)  # no copy twice


@pytest.mark.parametrize("world_size", [3, 4, 6])
def test_copies_go_to_different_processes(world_size):
    for step in global_batches(repeated, world_size, 12 // world_size):
        for share in step:
            indices = [key.index for key in share]
            assert len(set(indices)) == len(indices)
    for step in global_batches(lambda **o: repeated(spread=False, **o), 2, 6):
        copies = [key.copy for share in step for key in share]  # in a row
        assert copies == ([0, 1, 2] * 4)[: len(copies)]


@pytest.mark.parametrize("build", [repeated, balanced], ids=["repeated", "balanced"])
def test_going_on_inside_an_epoch(build):
    sampler = build(batch_size=5, rank=1, world_size=2)
    sampler.set_epoch(2)
    whole = list(sampler)
    sampler.set_start(3)
    assert list(sampler) == whole[3:] and list(sampler) == whole


def test_copies_are_augmented_differently_and_always_alike(root):  # noqa: F811
    options = {"sampler": {"name": "RASampler", "selected_round": 0}}
    batches = read(train(root, batch_size=3, **options), epochs=(1,))
    for images, labels, indices in batches[:3]:
        assert len(set(indices.tolist())) == len(set(labels.tolist())) == 1
        assert not any(np.array_equal(images[0], images[i]) for i in (1, 2))
    assert_same(batches, read(train(root, batch_size=3, workers=2, **options), epochs=(1,)))
    plain = read(train(root, batch_size=11), epochs=(1,))[0]
    first = plain[2].tolist().index(batches[0][2][0])
    assert np.array_equal(batches[0][0][0], plain[0][first])  # copy 0 is the usual sample


def test_copies_do_not_meet_when_mixed_and_no_process_changes_them():
    def mixed(batch_size, rank=0, world_size=1):
        place = {"rank": rank, "world_size": world_size, "seed": 3, "spread": False}
        sampler = RASampler(48, batch_size, selected_round=0, **place)
        loader = Loader(
            Shades(48, seed=3), sampler, LoaderConfig(num_workers=0), build_batch_op(MIXUP, "D")
        )
        return [(b.images.numpy(), b.labels.numpy(), b.indices) for b in loader]

    whole = mixed(16)
    images, _, indices = joined(whole)
    assert np.isclose(images.mean(axis=(1, 2, 3)), indices).sum() == 0
    ranks = [mixed(8, rank, 2) for rank in (0, 1)]
    steps = [batch for step in zip(*ranks, strict=True) for batch in step]
    for found, expected in zip(joined(steps), joined(whole), strict=True):
        assert np.array_equal(found, expected)


# Class balance


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("samples", [None, 7, 400])
def test_classes_get_their_shares(beta, samples):
    sampler = balanced(beta=beta, epoch_samples=samples)
    total = samples or len(LABELS)
    weights = {c: n * n**-beta for c, n in Counter(LABELS.tolist()).items()}
    for epoch in range(3):
        order = sampler.order(epoch)
        assert len(order) == total
        found = Counter(LABELS[order].tolist())
        for label, weight in weights.items():
            assert abs(found[label] - total * weight / sum(weights.values())) < 1
            times = Counter(order.tolist())
            each = [times[i] for i in np.flatnonzero(label == LABELS)]
            assert max(each) - min(each) <= 1
    if beta == 0 and samples is None:
        assert sorted(order) == list(range(total))


def test_rounding_keeps_the_sum_and_the_mean():
    shares = np.array([0.2, 1.5, 3.3, 0.0, 2.0])
    drawn = np.array([round_shares(shares, np.random.default_rng(s)) for s in range(4000)])
    assert (drawn.sum(axis=1) == 7).all() and (np.abs(drawn - shares) < 1).all()
    np.testing.assert_allclose(drawn.mean(axis=0), shares, atol=0.03)


def test_the_order_is_drawn_from_seed_and_epoch():
    order = balanced().order(0)
    assert np.array_equal(order, balanced(batch_size=3, rank=1, world_size=2).order(0))
    for other in (balanced().order(1), balanced(seed=6).order(0)):
        assert not np.array_equal(order, other)
    assert not np.array_equal(order, np.sort(order))
    assert order.dtype == np.int64


def test_a_balanced_section_reads_labels_only(root):  # noqa: F811
    config = section(root, batch_size=4, sampler={"name": "ClassBalancedSampler", "beta": 1})
    (root / "10.png").unlink()  # of class 2, found missing when it is read
    loader = build_train_loader(config, "D.Train", seed=3)
    assert np.allclose(loader.sampler.shares, 11 / 4) and len(loader) == 3


# Mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "RASampler", "num_repeats": 0}, "num_repeats: expected a number >= 1, got 0"),
        (
            {"name": "RASampler"},
            "selected_round: expected a number from 0 to 11, the images there are, got 256",
        ),
        ({"name": "RASampler", "selected_round": -1}, "selected_round: expected a number >= 0"),
        ({"num_repeats": 2}, "num_repeats: expected none with DistributedBatchSampler, got 2"),
        ({"name": "ClassBalancedSampler", "beta": 1.5}, "beta: expected a number from 0 to 1, got"),
        ({"name": "ClassBalancedSampler", "epoch_samples": 0}, "epoch_samples: expected a number"),
        ({"name": "RASampler", "beta": 1}, "beta: expected none with RASampler, got 1.0"),
        (
            {"name": "ClassBalancedSampler", "shuffle": False},
            "shuffle: expected True with ClassBalancedSampler, whose epochs do not have every",
        ),
        ({"name": "RASamplr"}, "name: expected one of .*'RASampler'.*, got 'RASamplr'"),
    ],
)
def test_mistakes_of_the_section(root, options, message):  # noqa: F811
    with pytest.raises(ConfigError, match=rf"^D\.Train\.sampler\.{message}"):
        train(root, sampler=options)


def test_evaluation_takes_every_image_once(root):  # noqa: F811
    config = section(root, sampler={"name": "RASampler", "shuffle": False})
    with pytest.raises(ConfigError, match=r"D.Eval.sampler.name: expected DistributedBatchSampler"):
        build_eval_loader(config, "D.Eval")
