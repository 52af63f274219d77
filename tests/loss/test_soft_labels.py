"""Losses of mixed labels against NumPy."""

import numpy as np
import paddle
import pytest

from ppcls.engine.build import check_mixing
from ppcls.engine.config import Recipe
from ppcls.loss import LOSSES, BCELoss, CELoss, MixCELoss, build_loss
from ppcls.utils.errors import ConfigError

LOGITS = np.random.default_rng(0).standard_normal((6, 5))
FIRST, SECOND = np.array([0, 4, 2, 2, 1, 3]), np.array([1, 4, 0, 3, 2, 2])
SHARE = np.array([0.9, 0.5, 0.1, 0.7, 0.25, 1.0])
SOFT = SHARE[:, None] * np.eye(5)[FIRST] + (1 - SHARE)[:, None] * np.eye(5)[SECOND]


def tensor(array, dtype=None):
    return paddle.to_tensor(array, dtype=dtype)


@pytest.mark.parametrize("epsilon", [None, 0.1])
def test_mixceloss_is_the_mix_of_both_cross_entropies(epsilon):
    """As release/2.1 of PaddleClas writes it: share * CE(first) + (1 - share) * CE(second)."""
    loss = CELoss(epsilon=epsilon, reduction="sum")
    expected = sum(
        share * float(loss(tensor(row[None]), tensor([a])))
        + (1 - share) * float(loss(tensor(row[None]), tensor([b])))
        for row, a, b, share in zip(LOGITS, FIRST, SECOND, SHARE, strict=True)
    )
    found = MixCELoss(epsilon=epsilon, reduction="sum")(tensor(LOGITS), tensor(SOFT))
    assert float(found) == pytest.approx(expected, rel=1e-7)
    assert build_loss([{"MixCELoss": {"epsilon": 0.1}}], "Loss.Train").names == ["MixCELoss"]


def binary(target):
    probability = 1 / (1 + np.exp(-LOGITS))
    return -(target * np.log(probability) + (1 - target) * np.log(1 - probability))


@pytest.mark.parametrize(
    ("options", "target"),
    [
        ({"target_threshold": None}, SOFT),
        ({}, SOFT > 0.2),
        ({"target_threshold": 0.5}, SOFT > 0.5),
        ({"target_threshold": None, "epsilon": 0.1}, 0.9 * SOFT + 0.02),
        ({"target_threshold": 0.015, "epsilon": 0.1}, np.ones((6, 5))),
        ({"target_threshold": 0.2, "epsilon": 0.1}, 0.9 * SOFT + 0.02 > 0.2),
    ],
)
def test_bceloss_is_binary_cross_entropy(options, target):
    loss = BCELoss(**options)(tensor(LOGITS), tensor(SOFT))
    assert loss.shape == []
    assert float(loss) == pytest.approx(binary(target).mean(), rel=1e-7)
    total = BCELoss(reduction="sum", **options)(tensor(LOGITS), tensor(SOFT))
    assert float(total) == pytest.approx(binary(target).sum(), rel=1e-7)


def test_a_threshold_counts_both_images_in_full():
    """The A2 recipe: a share of exactly 0.2 is not above 0.2."""
    label = np.array([[0.75, 0.25, 0, 0, 0], [0.8, 0.2, 0, 0, 0]])
    logits = tensor(LOGITS[:2])
    found = float(BCELoss(target_threshold=0.2, reduction="sum")(logits, tensor(label)))
    hard = np.array([[1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    probability = 1 / (1 + np.exp(-LOGITS[:2]))
    expected = -np.log(np.where(hard == 1, probability, 1 - probability)).sum()
    assert found == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("shape", [(6,), (6, 1)])
def test_bceloss_takes_class_numbers(shape):
    loss = BCELoss()(tensor(LOGITS), tensor(FIRST.reshape(shape)))
    assert float(loss) == pytest.approx(binary(np.eye(5)[FIRST]).mean(), rel=1e-7)


@pytest.mark.filterwarnings("ignore:amp_guard can only be enabled")  # on a CPU
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_bceloss_computes_in_float32_under_amp(dtype):
    logits = tensor(LOGITS, "float32").astype(dtype)
    exact = BCELoss()(logits.astype("float64"), tensor(SOFT))
    with paddle.amp.auto_cast(level="O2", dtype="bfloat16"):
        loss = BCELoss()(logits, tensor(SOFT, "float32"))
    assert loss.dtype == paddle.float32 and float(loss) == pytest.approx(float(exact), rel=1e-6)


def test_bceloss_stays_finite_at_large_logits():
    logits = tensor(np.array([[1e4, -1e4, 0.0]], np.float32))
    logits.stop_gradient = False
    loss = BCELoss()(logits, tensor([1]))
    loss.backward()
    assert np.isfinite(float(loss)) and np.isfinite(logits.grad.numpy()).all()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"BCELoss": {"epsilon": 1}}, r"L\[0\].BCELoss.epsilon: expected a number in \[0, 1\)"),
        ({"BCELoss": {"target_threshold": 1.5}}, r"target_threshold: expected .* got 1.5"),
        ({"BCELoss": {"target_threshold": -0.1}}, "target_threshold: expected"),
        ({"BCELoss": {"reduction": "none"}}, "BCELoss.reduction: expected"),
        ({"BCELos": None}, "did you mean 'BCELoss'"),
        ({"MixCELoss": {"epsilon": 2}}, r"MixCELoss.epsilon: expected a number in \[0, 1\)"),
    ],
)
def test_wrong_settings_of_soft_losses_are_named(entry, message):
    with pytest.raises(ConfigError, match=message):
        build_loss([entry], "L")


# Mixing with a loss that cannot


class HardLoss(paddle.nn.Layer):
    reduction = "mean"

    def __init__(self):
        super().__init__()

    def forward(self, logits, label):
        return paddle.nn.functional.cross_entropy(logits, label)


def recipe(batch_transform_ops):
    dataset = {"name": "ImageNetDataset", "batch_transform_ops": batch_transform_ops}
    loader = {"dataset": dataset, "sampler": {"batch_size": 4}}
    return Recipe.parse(
        {"Arch": {"name": "HarDNet39_ds"}, "DataLoader": {"Train": loader}}, "recipe.yaml"
    )


def test_mixing_wants_losses_of_soft_labels(monkeypatch):
    monkeypatch.setitem(LOSSES._entries, "HardLoss", HardLoss)
    loss = build_loss([{"CELoss": None}, {"HardLoss": None}], "Loss.Train")
    check_mixing(recipe(None), loss)
    mixing = recipe([{"MixupOperator": None}])
    with pytest.raises(
        ConfigError,
        match="Loss.Train: expected losses that take the soft labels of DataLoader.Train.dataset."
        "batch_transform_ops, got HardLoss",
    ):
        check_mixing(mixing, loss)
    check_mixing(mixing, build_loss([{"CELoss": None}, {"BCELoss": None}], "Loss.Train"))
