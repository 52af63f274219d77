"""Which items share a batch, and who gets which answer or error."""

import threading
import time

import pytest

from ppcls.deploy.serving.batcher import Batcher
from ppcls.utils.errors import DataError


class Squares:
    """An engine that waits for `gate`, and fails on the items of `bad`."""

    def __init__(self, *bad):
        self.gate = threading.Event()
        self.batches = []
        self.bad = bad

    def __call__(self, batch):
        self.batches.append(batch)
        assert self.gate.wait(10)
        for item in batch:
            if item in self.bad:
                raise DataError(f"{item} is bad")
        return [{"square": item * item} for item in batch]


@pytest.fixture
def make():
    made = []

    def make(run, **options):
        made.append(Batcher(run, **{"max_batch": 4, "max_delay": 0.0, **options}))
        return made[-1]

    yield make
    for batcher in made:
        batcher.close()


def wait_for(is_so):
    end = time.monotonic() + 5
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_each_item_gets_its_own_answer(make):
    run = Squares()
    run.gate.set()
    futures = [make(run).submit(item) for item in range(3)]
    assert [future.result(5).result["square"] for future in futures] == [0, 1, 4]


def test_what_gathers_during_a_batch_is_the_next_one(make):
    run = Squares()
    batcher = make(run)
    first = batcher.submit(0)
    wait_for(lambda: run.batches)
    rest = [batcher.submit(item) for item in range(1, 7)]
    assert batcher.depth == 6
    run.gate.set()
    assert first.result(5).batch == 1
    assert [future.result(5).batch for future in rest] == [4, 4, 4, 4, 2, 2]
    assert run.batches == [[0], [1, 2, 3, 4], [5, 6]]


def test_a_full_batch_does_not_wait(make):
    run = Squares()
    run.gate.set()
    batcher = make(run, max_delay=60, max_batch=2)
    futures = [batcher.submit(1), batcher.submit(2)]
    assert [future.result(5).result["square"] for future in futures] == [1, 4]


def test_one_item_waits_no_longer_than_the_delay(make):
    run = Squares()
    run.gate.set()
    answer = make(run, max_delay=0.05).submit(1).result(5)
    assert 0.045 < answer.queued < 2


def test_a_cancelled_item_leaves_the_queue(make):
    run = Squares()
    batcher = make(run)
    batcher.submit(0)
    wait_for(lambda: run.batches)
    gone, stays = batcher.submit(1), batcher.submit(2)
    assert gone.cancel() and batcher.depth == 1
    run.gate.set()
    assert stays.result(5).result["square"] == 4
    assert run.batches == [[0], [2]]


def test_only_the_item_at_fault_fails(make):
    run = Squares(2)
    batcher = make(run)
    batcher.submit(0)
    wait_for(lambda: run.batches)
    futures = [batcher.submit(item) for item in (1, 2, 3)]
    run.gate.set()
    assert futures[0].result(5).result["square"] == 1
    with pytest.raises(DataError, match="2 is bad"):
        futures[1].result(5)
    assert futures[2].result(5).result["square"] == 9


def test_an_engine_that_forgets_an_item_fails(make):
    future = make(lambda batch: []).submit(1)
    with pytest.raises(Exception, match="expected 1 results of a batch, got 0"):
        future.result(5)


def test_closing_computes_what_waits(make):
    run = Squares()
    batcher = make(run, max_delay=60)
    futures = [batcher.submit(item) for item in range(6)]
    run.gate.set()
    batcher.close()
    assert [future.result(0).result["square"] for future in futures] == [0, 1, 4, 9, 16, 25]
    with pytest.raises(RuntimeError):
        batcher.submit(1)


def test_two_workers_lose_nothing(make):
    run = Squares()
    run.gate.set()
    sizes = []
    batcher = make(
        run, workers=2, max_delay=0.001, observe=lambda size, seconds: sizes.append(size)
    )
    futures = [batcher.submit(item) for item in range(200)]
    assert [future.result(5).result["square"] for future in futures] == [i * i for i in range(200)]
    batcher.close()
    assert sum(sizes) == 200 and max(sizes) <= 4
