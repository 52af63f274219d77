"""A thread that writes: in order, bounded, and never wrong in silence."""

import threading

import pytest

from ppcls.engine.background import BackgroundWriter
from ppcls.utils.errors import JobError


def test_jobs_run_in_order_while_the_caller_goes_on():
    writer, gate, done = BackgroundWriter(), threading.Event(), []
    writer.submit(gate.wait)
    writer.submit(lambda: done.append(1))
    assert done == []
    gate.set()
    writer.submit(lambda: done.append(2))
    writer.close()
    assert done == [1, 2]


def test_a_third_job_waits_for_the_first():
    writer, gate = BackgroundWriter(), threading.Event()
    writer.submit(gate.wait)
    writer.submit(lambda: None)
    waiting = threading.Thread(target=writer.submit, args=(lambda: None,))
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    gate.set()
    waiting.join(5)
    assert not waiting.is_alive()
    writer.close()


@pytest.mark.parametrize("look", ["check", "wait", "close", "submit"])
def test_an_error_is_raised_by_the_next_look_and_ends_the_rest(look):
    def fail():
        raise JobError("the disk is full")

    writer, done, failed = BackgroundWriter(), [], threading.Event()
    gate = threading.Event()

    def later():
        gate.wait()
        done.append(1)

    def failing():
        try:
            fail()
        finally:
            failed.set()

    writer.submit(failing)
    failed.wait()
    while not writer._jobs[0].done():
        pass
    gate.set()
    with pytest.raises(JobError, match="the disk is full"):
        writer.submit(later) if look == "submit" else getattr(writer, look)()
    assert done == []
    writer.close()


def test_it_can_be_used_again_after_closing():
    writer, done = BackgroundWriter(), []
    for number in range(2):
        writer.submit(lambda number=number: done.append(number))
        writer.close()
    assert done == [0, 1]
