import numpy as np
import pytest

from ppcls.data.sampler import EvalSampler, GlobalBatchSampler, SampleKey, order_rng, sample_rng


def steps(num_samples, batch_size, world_size, **options):
    """Batches of an epoch: [step][rank] -> list of keys."""
    ranks = [
        GlobalBatchSampler(num_samples, batch_size, rank=rank, world_size=world_size, **options)
        for rank in range(world_size)
    ]
    for sampler in ranks:
        sampler.set_epoch(4)
    batches = [list(sampler) for sampler in ranks]
    assert {len(own) for own in batches} == {len(ranks[0])}
    return [list(shares) for shares in zip(*batches, strict=True)], ranks


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("num_samples", [1, 5, 12, 35, 37])
def test_global_batches_do_not_depend_on_the_number_of_processes(num_samples, drop_last):
    plans = []
    for world_size in (1, 2, 3):
        shares, _ = steps(num_samples, 12 // world_size, world_size, drop_last=drop_last, seed=9)
        plans.append([[key for share in step for key in share] for step in shares])
    assert plans[0] == plans[1] == plans[2]
    seen = [key.index for step in plans[0] for key in step]
    whole = num_samples - num_samples % 12 if drop_last else num_samples
    assert len(set(seen)) == len(seen) == whole
    assert {key.epoch for step in plans[0] for key in step} <= {4}


def test_shares_are_even_and_announced():
    shares, ranks = steps(37, 4, 3)
    for step, parts in enumerate(shares):
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= 1
        assert sizes == [sampler.local_size(step) for sampler in ranks]
        assert sum(sizes) == ranks[0].global_size(step)
    assert [len(part) for part in shares[-1]] == [1, 0, 0]


def test_order_depends_on_seed_and_epoch_only():
    sampler = GlobalBatchSampler(50, 5, seed=1)
    first = sampler.order(0)
    assert first.dtype == np.int64 and sorted(first) == list(range(50))
    assert np.array_equal(first, order_rng(1, 0).permutation(50))
    assert np.array_equal(first, GlobalBatchSampler(50, 7, seed=1, rank=1, world_size=2).order(0))
    assert not np.array_equal(first, sampler.order(1))
    assert not np.array_equal(first, GlobalBatchSampler(50, 5, seed=2).order(0))
    assert np.array_equal(GlobalBatchSampler(50, 5, shuffle=False).order(3), np.arange(50))


def test_sample_streams_are_their_own():
    draws = {
        tuple(rng.integers(0, 2**60, 2))
        for rng in (
            order_rng(1, 2),
            sample_rng(1, 2, 0),
            sample_rng(1, 2, 1),
            sample_rng(1, 3, 0),
            sample_rng(2, 2, 0),
            order_rng(1, 0),
            sample_rng(1, 0, 0),
        )
    }
    assert len(draws) == 7


def test_resuming_inside_an_epoch_gives_the_rest_of_it_once():
    sampler = GlobalBatchSampler(23, 4, seed=5)
    sampler.set_epoch(2)
    whole = list(sampler)
    sampler.set_start(3)
    assert (sampler.remaining, len(sampler)) == (3, 6)
    assert list(sampler) == whole[3:]
    assert sampler.remaining == 6 and list(sampler) == whole
    sampler.set_start(6)
    assert list(sampler) == []
    with pytest.raises(ValueError, match="step: expected a number from 0 to 6, got 7"):
        sampler.set_start(7)


@pytest.mark.parametrize(("num_samples", "world_size"), [(10, 4), (3, 5), (8, 2), (0, 2), (7, 1)])
def test_evaluation_counts_each_sample_once(num_samples, world_size):
    seen = []
    for rank in range(world_size):
        sampler = EvalSampler(num_samples, 2, rank, world_size)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        assert all(0 < len(batch) <= 2 for batch in batches)
        seen += [key for batch in batches for key in batch]
    assert sorted(seen) == [SampleKey(0, index) for index in range(num_samples)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: expected a number >= 1"),
        ({"rank": 2, "world_size": 2}, "rank: expected a number from 0 to 1, got 2"),
        ({"seed": -1}, "seed: expected a number >= 0"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        GlobalBatchSampler(10, **{"batch_size": 2, **options})
