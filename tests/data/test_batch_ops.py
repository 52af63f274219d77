"""Mixup, CutMix and their switch: draws, pixels and labels.

Sources: arXiv 1710.09412 (mixup), arXiv 1905.04899 with `clovaai/CutMix-PyTorch` (CutMix), and
PaddleClas's `batch_ops/batch_operators.py` for names and defaults.
"""

import numpy as np
import pytest

from ppcls.data.batch_ops import CutmixOperator, Mix, MixupOperator, OpSampler, build_batch_op
from ppcls.utils.errors import ConfigError


def draws(op, count=4000, height=32, width=48):
    rng = np.random.default_rng(2)
    return [op.draw(rng, height, width) for _ in range(count)]


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_mixup_share_is_beta(alpha):
    mixes = draws(MixupOperator(alpha))
    shares = np.array([mix.share for mix in mixes])
    assert all(mix.box is None for mix in mixes)
    assert shares.mean() == pytest.approx(0.5, abs=0.03)
    assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)  # of Beta(a, a)
    assert MixupOperator().alpha == 1.0


def test_mixup_blends_pixels_as_labels():
    rng = np.random.default_rng(0)
    image, partner = rng.standard_normal((2, 3, 5, 7)).astype(np.float32)
    for mix in draws(MixupOperator(0.4), 50):
        mixed = mix.images(image, partner)
        exact = mix.share * image.astype(float) + (1 - mix.share) * partner.astype(float)
        assert mixed.dtype == np.float32 and np.abs(mixed - exact).max() < 1e-6
        label = mix.labels(1, 4, 6)
        assert label[1] == mix.share and label[4] == 1 - mix.share  # float32 holds both


def count_pixels(mix, height, width):
    """Share of pixels that stay, counted one by one."""
    own, other = np.zeros((3, height, width), np.float32), np.ones((3, height, width), np.float32)
    mixed = mix.images(own, other)
    assert set(np.unique(mixed)) <= {0, 1} and not own.any()
    assert (mixed == mixed[:1]).all()
    return (mixed[0] == 0).mean()


@pytest.mark.parametrize("size", [(32, 32), (64, 16), (1, 1), (1, 128), (2, 4)])
def test_cutmix_label_is_the_share_of_pixels(size):
    """Exactly, where float32 can hold the share: sizes that are powers of two."""
    for mix in draws(CutmixOperator(1.0), 300, *size):
        share = count_pixels(mix, *size)
        assert mix.share == share
        label = mix.labels(0, 2, 3)
        assert label.tolist() == [share, 0, 1 - share] and label.sum(dtype=np.float64) == 1


def test_cutmix_label_at_the_usual_size():
    """3 / 224**2 is no float32: the share is the nearest one that leaves a sum of exactly 1."""
    for mix in draws(CutmixOperator(1.0), 60, 224, 224):
        assert abs(mix.share - count_pixels(mix, 224, 224)) <= 2.0**-25
        assert mix.labels(3, 7, 10).sum(dtype=np.float64) == 1


def test_cutmix_boxes_are_the_papers():
    """Sides sqrt(1 - lambda) of the image's, the middle uniform, cut off at the borders."""
    mixes = draws(CutmixOperator(1.0), 6000, 400, 400)
    boxes = np.array([mix.box for mix in mixes])
    heights, widths = boxes[:, 1] - boxes[:, 0], boxes[:, 3] - boxes[:, 2]
    inside = (boxes[:, [0, 2]] > 0).all(1) & (boxes[:, [1, 3]] < 400).all(1)
    assert (heights[inside] == widths[inside]).all()  # the image's proportions
    # 1 - lambda is uniform for alpha 1. Of a side s around a uniform middle the borders leave
    # s - s^2 / 4 on average.
    side = np.sqrt(np.linspace(0, 1, 100001))
    assert 1 - np.mean([mix.share for mix in mixes]) == pytest.approx(
        ((side - side**2 / 4) ** 2).mean(), abs=0.015
    )
    middles = (boxes[inside, 0] + boxes[inside, 1]) / 2
    assert 150 < middles.mean() < 250
    assert CutmixOperator().alpha == 0.2


def test_own_partner_or_equal_labels_keep_all_of_the_label():
    mix = Mix(0.25)
    assert mix.labels(2, 2, 4).tolist() == [0, 0, 1, 0]
    image = np.random.default_rng(0).standard_normal((3, 4, 4)).astype(np.float32)
    assert np.allclose(mix.images(image, image), image, atol=1e-6)


def test_the_sampler_chooses_by_probability():
    config = {"MixupOperator": {"alpha": 0.8, "prob": 0.3}, "CutmixOperator": {"prob": "1/2"}}
    op = build_batch_op([{"OpSampler": config}], "D")
    mixes = draws(op)
    kinds = ["none" if m is None else "mixup" if m.box is None else "cutmix" for m in mixes]
    for kind, prob in (("none", 0.2), ("mixup", 0.3), ("cutmix", 0.5)):
        assert kinds.count(kind) / len(kinds) == pytest.approx(prob, abs=0.04)
    both = OpSampler(MixupOperator={"prob": 0.7}, CutmixOperator={"prob": 0.3})
    assert None not in draws(both)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ("MixupOperator", "D: expected a list of one operator, got 'MixupOperator'"),
        ([{"MixupOperator": {"alpha": 0}}], r"D\[0\].MixupOperator.alpha: expected a number > 0"),
        ([{"MixupOperator": {"beta": 1}}], r"D\[0\].MixupOperator: unknown key 'beta'"),
        ([{"CutmixOperator": {"alpha": "x"}}], r"CutmixOperator.alpha: expected a number, got 'x'"),
        ([{"CutmixOperater": None}], "did you mean 'CutmixOperator'"),
        ([{"FmixOperator": {"alpha": 1}}], "unknown batch transform 'FmixOperator'.*OpSampler"),
        (["MixupOperator", "CutmixOperator"], "expected one operator .*MixupOperator, CutmixOp"),
        ([{"OpSampler": None}], r"D\[0\].OpSampler: expected operators with a 'prob' each"),
        ([{"OpSampler": {"MixupOperator": {"alpha": 1}}}], "OpSampler.MixupOperator: missing key"),
        ([{"OpSampler": {"MixupOperator": None}}], "OpSampler.MixupOperator: missing key 'prob'"),
        (
            [{"OpSampler": {"MixupOperator": {"prob": 1.2}}}],
            r"D\[0\].OpSampler.MixupOperator.prob: expected a number from 0 to 1, got 1.2",
        ),
        (
            [{"OpSampler": {"MixupOperator": {"prob": 0.6}, "CutmixOperator": {"prob": 0.6}}}],
            "OpSampler: expected probs of 1 or less in all, got 1.2",
        ),
        (
            [{"OpSampler": {"MixupOperator": {"prob": 0.5, "alpha": -1}}}],
            r"D\[0\].OpSampler.MixupOperator.alpha: expected a number > 0, got -1",
        ),
        ([{"OpSampler": {"OpSampler": {"prob": 0.5}}}], "got another OpSampler"),
        ([{"OpSampler": {"MixupOp": {"prob": 0.5}}}], "did you mean 'MixupOperator'"),
    ],
)
def test_wrong_operators_are_named(entries, message):
    with pytest.raises(ConfigError, match=message):
        build_batch_op(entries, "D")


@pytest.mark.parametrize("entries", [None, []])
def test_no_operator(entries):
    assert build_batch_op(entries, "D") is None
