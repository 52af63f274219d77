"""Evaluation: every image once, sums divided once."""

import logging

import numpy as np
import paddle
import pytest
from paddle import nn
from tiny_run import CLASSES, TinyImages, arrays, evaluator, tiny_net

from ppcls.engine.evaluator import as_logits
from ppcls.utils.errors import DataError, UserError


def logits_of(model, dataset):
    model.eval()
    images = np.stack([dataset[i].image for i in range(len(dataset))])
    return model(paddle.to_tensor(images)).numpy().astype("float64")


def expected_of(model, dataset):
    """Mean cross-entropy, and how many are right, by NumPy."""
    logits, rows = logits_of(model, dataset), np.arange(len(dataset))
    right = logits[rows, dataset.labels]
    loss = np.log(np.exp(logits).sum(axis=1)) - right
    rank = (logits > right[:, None]).sum(axis=1)
    return loss.mean(), int((rank < 1).sum()), int((rank < 2).sum())


@pytest.mark.parametrize("batch_size", [1, 4, 7, 60, 64])
def test_each_image_counts_once(batch_size):
    dataset, model = TinyImages(30), tiny_net()
    loss, top1, top2 = expected_of(model, dataset)
    result = evaluator(dataset, batch_size=batch_size).evaluate(model)
    assert (result.samples, result.skipped) == (30, 0)
    assert result.correct == {"top1": top1, "top2": top2}
    assert result.metrics == {"top1": top1 / 30, "top2": top2 / 30}
    assert result.losses["loss"] == result.losses["CELoss"] == pytest.approx(loss, rel=1e-6)
    assert result.to_json().keys() == {
        *("top1", "top2", "loss", "samples", "skipped", "correct", "seconds")
    }


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_the_shares_of_several_processes_add_up(world_size):
    dataset, model = TinyImages(10), tiny_net()
    whole = evaluator(dataset).evaluate(model)
    parts = [
        evaluator(dataset, batch_size=2, rank=rank, world_size=world_size).evaluate(model)
        for rank in range(world_size)
    ]
    assert sum(part.samples for part in parts) == 10
    assert sum(part.correct["top1"] for part in parts) == whole.correct["top1"]


@pytest.mark.parametrize("training", [True, False])
def test_the_network_keeps_its_mode_and_its_statistics(training):
    model = tiny_net(dropout=0.5)
    model.train() if training else model.eval()
    before = arrays(model)
    first, second = (evaluator(TinyImages(20)).evaluate(model) for _ in range(2))
    assert first == second  # no dropout
    assert model.training == training
    for name, array in arrays(model).items():
        np.testing.assert_array_equal(array, before[name])


def test_the_mode_comes_back_after_an_error():
    model = tiny_net()
    with pytest.raises(DataError, match="image 3: damaged"):
        evaluator(TinyImages(20, broken={3})).evaluate(model)
    assert model.training


def test_skipped_images_do_not_count():
    dataset = TinyImages(20, broken={0, 1, 2, 3, 19}, on_error="skip")
    result = evaluator(dataset, batch_size=4).evaluate(tiny_net())
    assert (result.samples, result.skipped) == (15, 5)
    with pytest.raises(DataError, match="DataLoader.Eval: expected at least one usable image"):
        evaluator(TinyImages(3, broken={0, 1, 2}, on_error="skip")).evaluate(tiny_net())


def test_progress_is_shown(caplog):
    caplog.set_level(logging.INFO, "ppcls")
    evaluator(TinyImages(60), batch_size=2).evaluate(tiny_net())
    lines = [line for line in caplog.messages if line.startswith("[Eval][Iter: ")]
    assert [line.split("]")[1] for line in lines] == ["[Iter: 10/30", "[Iter: 20/30"]


def test_logits():
    logits = paddle.zeros([2, CLASSES])
    assert as_logits(logits) is logits
    assert as_logits({"logits": logits, "features": None}) is logits
    for wrong in ([logits], paddle.zeros([2, 3, 4]), {"features": logits}):
        with pytest.raises(UserError, match="Arch: expected a network that returns logits"):
            as_logits(wrong)


def test_a_network_that_returns_no_logits():
    with pytest.raises(UserError, match="Arch: expected a network that returns logits"):
        evaluator(TinyImages(4)).evaluate(nn.Identity())
