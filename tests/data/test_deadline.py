"""Work with a limit in time, and samples that never come."""

import os
import threading
import time

import numpy as np
import pytest

from ppcls.data.datasets import Sample
from ppcls.data.deadline import Deadline, Stalled
from ppcls.data.loader import Loader, LoaderConfig
from ppcls.data.sampler import EvalSampler
from ppcls.utils.errors import JobError


def test_results_and_errors_pass_through():
    deadline = Deadline(30)
    assert [deadline.map(abs, items) for items in ([-2, 3], [], [-4])] == [[2, 3], [], [4]]
    with pytest.raises(ZeroDivisionError):
        deadline.map(lambda n: 7 // n, [1, 0, 2])
    assert deadline.map(int, ["5"]) == [5]


def test_what_stalls_is_left_alone_and_the_next_call_works():
    deadline, gate = Deadline(0.1), threading.Event()
    start = time.monotonic()
    with pytest.raises(Stalled, match="expected an answer within 0.1 s, got none") as caught:
        deadline.map(lambda item: item or gate.wait(), [1, 2, 0, 3])
    assert caught.value.done == 2
    assert time.monotonic() - start < 20
    assert deadline.map(int, ["5"]) == [5]
    gate.set()


def test_the_limit_is_that_of_an_item():
    assert Deadline(0.5).map(time.sleep, [0.1] * 8) == [None] * 8


def test_a_forked_process_has_a_thread_of_its_own():
    deadline = Deadline(30)
    deadline.map(int, ["5"])
    child = os.fork()
    if child == 0:
        os._exit(deadline.map(int, ["7"])[0])
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_a_limit_must_be_positive():
    with pytest.raises(ValueError, match="seconds: expected a number > 0, got 0"):
        Deadline(0)


class Pipe:
    """A data set whose sample 3 is read from a pipe nobody writes to."""

    on_error = "skip"  # a server that does not answer is no broken image

    def __init__(self, path):
        self.path = path
        os.mkfifo(path)

    def __len__(self):
        return 6

    def describe(self, index):
        return str(self.path)

    def load(self, key):
        if key.index == 3:
            self.path.read_bytes()
        return Sample(np.zeros((3, 4, 4), np.float32), np.int64(0), key.index)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_that_never_comes_ends_the_loading_in_bounded_time(tmp_path, workers):
    config = LoaderConfig(num_workers=workers, read_timeout=0.3)
    loader = Loader(Pipe(tmp_path / "3.jpg"), EvalSampler(6, 1), config)
    start = time.monotonic()
    with pytest.raises(JobError, match=r"3.jpg: expected an answer within 0.3 s, got none: a disk"):
        list(loader)
    assert time.monotonic() - start < 60
