from __future__ import annotations

import numpy as np
import paddle
import pytest

from ppcls.arch.detection.priors import COCO_512, prior_boxes
from ppcls.loss import LOSSES, MultiBoxLoss
from ppcls.utils import schema
from ppcls.utils.errors import ConfigError

CLASSES = 81
SMALL = np.array([[x + 0.5, 0.5, 1, 1] for x in range(4)], "float32") / 4  # side by side
SMALL[:, 3] = 1


@pytest.fixture(scope="module")
def official(request):
    return dict(np.load(request.path.parents[1] / "assets" / "ssd_hardnet68_512.npz"))


@pytest.fixture(scope="module")
def priors():
    return paddle.to_tensor(prior_boxes(COCO_512))


def predictions(seeds, batch):
    shapes = (batch, COCO_512.count, 4), (batch, COCO_512.count, CLASSES)
    return [
        paddle.to_tensor(
            np.random.default_rng([0, seed]).standard_normal(shape).astype("float32"),
            stop_gradient=False,
        )
        for seed, shape in zip(seeds, shapes, strict=True)
    ]


def targets(*images):
    table = np.zeros((len(images), max(1, *map(len, images)), 5), "float32")
    for row, image in zip(table, images, strict=True):
        row[: len(image)] = np.reshape(image, (-1, 5))
    return paddle.to_tensor(table[..., :4]), paddle.to_tensor(table[..., 4].astype("int64"))


def small(batch=1, classes=3, seed=0, dtype="float32"):
    rng = np.random.default_rng(seed)
    return [
        paddle.to_tensor(rng.standard_normal((batch, 4, n)).astype(dtype), stop_gradient=False)
        for n in (4, classes)
    ]


@pytest.mark.parametrize("quirks", [False, True])
def test_loss_and_gradients_are_the_official_ones(official, priors, quirks):
    loc, conf = predictions((2001, 2002), 1)
    loss = MultiBoxLoss(official_quirks=quirks)
    entries = loss(loc, conf, priors, *targets(official["gt"]))
    found = [float(entries[name]) for name in ("loc", "conf")]
    np.testing.assert_allclose(found, official["loss1"], rtol=1e-5)
    assert float(entries["loss"]) == pytest.approx(sum(found), rel=1e-6)
    entries["loss"].backward()
    grads = [np.abs(x.grad.numpy()).sum(dtype="float64") for x in (loc, conf)]
    np.testing.assert_allclose(grads, official["loss1_gradabs"], rtol=1e-5)
    rows = np.abs(conf.grad.numpy()[0]).sum(axis=1) > 0
    assert rows.sum() == len(official["pos_idx"]) + official["loss1_nneg"]


def test_a_batch_with_an_image_without_boxes(official, priors):
    loc, conf = predictions((2011, 2012), 3)
    placeholder = np.zeros((1, 5))
    boxes, labels = targets(official["gt"], placeholder, official["loss3_gt2"])
    sums = MultiBoxLoss().sums(loc, conf, priors, boxes, labels)
    assert float(sums.positives) == official["loss3_npos"].sum()
    entries = sums.normalised(sums.positives)
    found = [float(entries[name]) for name in ("loc", "conf")]
    np.testing.assert_allclose(found, official["loss3"], rtol=1e-5)
    entries["loss"].backward()
    assert not loc.grad.numpy()[1].any() and not conf.grad.numpy()[1].any()
    # Sums over the images one by one are the batch's.
    singles = [
        MultiBoxLoss().sums(loc[i, None], conf[i, None], priors, boxes[i, None], labels[i, None])
        for i in range(3)
    ]
    for name in ("loc", "conf", "positives"):
        total = sum(float(getattr(single, name)) for single in singles)
        assert total == pytest.approx(float(getattr(sums, name)), rel=1e-5)
    assert [float(single.positives) for single in singles] == official["loss3_npos"].tolist()


def test_a_batch_without_any_box():
    loc, conf = small(batch=2)
    entries = MultiBoxLoss()(loc, conf, paddle.to_tensor(SMALL), *targets([], []))
    assert [float(x) for x in entries.values()] == [0, 0, 0]
    entries["loss"].backward()
    for x in (loc, conf):
        np.testing.assert_array_equal(x.grad.numpy(), 0)
    entries = MultiBoxLoss(official_quirks=True)(
        loc, conf, paddle.to_tensor(SMALL), *targets([], [])
    )
    assert all(np.isnan(float(x)) for x in entries.values())


def test_a_box_without_width_has_the_same_gradient_either_way():
    grads, losses = [], []
    for quirks in (False, True):
        loc, conf = small()
        boxes = targets([(0.1, 0.1, 0.1, 0.9, 1)])
        entries = MultiBoxLoss(official_quirks=quirks)(loc, conf, paddle.to_tensor(SMALL), *boxes)
        entries["loss"].backward()
        losses.append(float(entries["loss"]))
        grads.append(loc.grad.numpy())
    assert np.isfinite(losses[0]) and losses[1] == np.inf
    np.testing.assert_array_equal(*grads)


def by_hand(loc, conf, owner, labels, ratio):
    """The loss of one image from the definition; `owner` are the boxes of the priors."""
    logs = conf - conf.max(axis=1, keepdims=True)
    entropy = np.log(np.exp(logs).sum(axis=1)) - logs[np.arange(len(conf)), labels]
    positive = labels > 0
    ranked = np.argsort(-np.where(positive, 0, entropy), kind="stable")
    negatives = ranked[: min(int(ratio * positive.sum()), len(conf) - 1)]
    counted = positive.copy()
    counted[negatives] = True
    difference = np.abs(loc - owner)[positive]
    smooth = np.where(difference < 1, difference**2 / 2, difference - 0.5)
    return smooth.sum(), entropy[counted].sum()


@pytest.mark.parametrize("ratio", [0, 1, 1.5, 3])
def test_mining_by_hand(ratio):
    loc, conf = small()
    box = SMALL[1, [0, 1, 0, 1]] + SMALL[1, [2, 3, 2, 3]] * [-0.5, -0.5, 0.5, 0.5]
    sums = MultiBoxLoss(neg_ratio=ratio).sums(
        loc, conf, paddle.to_tensor(SMALL), *targets([(*box, 2)])
    )
    labels = np.array([0, 2, 0, 0])
    wanted = by_hand(loc.numpy()[0], conf.numpy()[0], np.zeros((4, 4)), labels, ratio)
    np.testing.assert_allclose([float(sums.loc), float(sums.conf)], wanted, rtol=1e-5)


def test_half_precision_is_computed_in_single():
    loc, conf = small()
    boxes = targets([(0, 0, 0.25, 1, 1)])
    plain = MultiBoxLoss()(loc, conf, paddle.to_tensor(SMALL), *boxes)["loss"]
    half = [x.astype("float16") for x in (loc, conf)]
    found = MultiBoxLoss()(*half, paddle.to_tensor(SMALL), *boxes)["loss"]
    assert found.dtype == paddle.float32
    assert float(found) == pytest.approx(float(plain), rel=5e-3)


def test_enormous_scores_stay_finite():
    loc, conf = small()
    huge = paddle.to_tensor(conf.numpy() * 1e30, stop_gradient=False)
    boxes = targets([(0, 0, 0.25, 1, 1)])
    entries = MultiBoxLoss()(loc, huge, paddle.to_tensor(SMALL), *boxes)
    entries["loss"].backward()
    assert np.isfinite(float(entries["loss"])) and np.isfinite(huge.grad.numpy()).all()


def test_from_a_recipe():
    params = {"neg_ratio": 2, "overlap": 0.4, "official_quirks": True}
    loss = schema.build(LOSSES.get("MultiBoxLoss"), params, "Loss.Train[0].MultiBoxLoss")
    assert (loss.neg_ratio, loss.overlap, loss.official_quirks) == (2.0, 0.4, True)
    for params, message in (
        ({"neg_ratio": -1}, "neg_ratio: expected a number >= 0, got -1"),
        ({"overlap": 0}, r"overlap: expected a number in \(0, 1\], got 0"),
        ({"neg_overlap": 0.5}, "unknown key 'neg_overlap'; did you mean 'overlap'"),
    ):
        with pytest.raises(ConfigError, match=message):
            schema.build(LOSSES.get("MultiBoxLoss"), params, "Loss.Train[0].MultiBoxLoss")
