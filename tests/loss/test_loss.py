"""Cross-entropy against NumPy, the weighted sum, and what a config may not say."""

import numpy as np
import paddle
import pytest

from ppcls.loss import CELoss, build_loss
from ppcls.utils.errors import ConfigError

LOGITS = np.random.default_rng(0).standard_normal((6, 5))
LABEL = np.array([0, 4, 2, 2, 1, 3])
SOFT = np.random.default_rng(1).dirichlet(np.ones(5), 6)


def tensor(array, dtype=None):
    return paddle.to_tensor(array, dtype=dtype)


def reference(target, epsilon=0.0):
    """Cross-entropy of each sample."""
    log_probabilities = LOGITS - np.log(np.exp(LOGITS).sum(1, keepdims=True))
    target = (1 - epsilon) * target + epsilon / target.shape[1]
    return -(target * log_probabilities).sum(1)


@pytest.mark.parametrize("epsilon", [None, 0, 0.125, 0.5])
@pytest.mark.parametrize(
    ("label", "target"),
    [(LABEL, np.eye(5)[LABEL]), (LABEL[:, None], np.eye(5)[LABEL]), (SOFT, SOFT)],
    ids=["N", "N1", "soft"],
)
def test_celoss_is_cross_entropy(label, target, epsilon):
    loss = CELoss(epsilon=epsilon)(tensor(LOGITS), tensor(label))
    assert loss.shape == []
    assert float(loss) == pytest.approx(reference(target, epsilon or 0).mean(), rel=1e-7)


def test_celoss_can_sum():
    loss = CELoss(reduction="sum")(tensor(LOGITS), tensor(LABEL))
    assert float(loss) == pytest.approx(reference(np.eye(5)[LABEL]).sum(), rel=1e-12)


@pytest.mark.filterwarnings("ignore:amp_guard can only be enabled")  # on a CPU
@pytest.mark.parametrize("epsilon", [None, 0.1])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_celoss_computes_in_float32_under_amp(dtype, epsilon):
    logits = tensor(LOGITS, "float32").astype(dtype)
    logits.stop_gradient = False
    exact = CELoss(epsilon=epsilon)(logits.astype("float64"), tensor(LABEL))
    with paddle.amp.auto_cast(level="O2", dtype="bfloat16"):
        loss = CELoss(epsilon=epsilon)(logits, tensor(LABEL))
    assert loss.dtype == paddle.float32
    assert float(loss) == pytest.approx(float(exact), rel=1e-6)


def test_gradient_is_softmax_minus_target():
    logits = tensor(LOGITS)
    logits.stop_gradient = False
    CELoss()(logits, tensor(LABEL)).backward()
    softmax = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
    np.testing.assert_allclose(logits.grad.numpy(), (softmax - np.eye(5)[LABEL]) / 6, atol=1e-12)


@pytest.mark.parametrize("epsilon", [3, 1, -0.1])
def test_epsilon_out_of_range(epsilon):
    with pytest.raises(
        ValueError, match=rf"^epsilon: expected a number in \[0, 1\), got {epsilon}"
    ):
        CELoss(epsilon=epsilon)


def test_one_loss_keeps_its_weight():
    combined = build_loss([{"CELoss": {"weight": 0.5, "epsilon": "1e-1"}}], "Loss.Train")
    result = combined(tensor(LOGITS), tensor(LABEL))
    expected = 0.5 * reference(np.eye(5)[LABEL], 0.1).mean()
    assert list(result) == ["CELoss", "loss"]
    assert float(result["CELoss"]) == pytest.approx(expected, rel=1e-7)
    assert float(result["loss"]) == pytest.approx(expected, rel=1e-7)


@pytest.fixture
def twice_registered(monkeypatch):
    """A second loss for the sum, present during one test."""
    from ppcls.loss import LOSSES

    class SumCELoss(CELoss):
        def __init__(self):
            super().__init__(reduction="sum")

    monkeypatch.setitem(LOSSES._entries, "SumCELoss", SumCELoss)


def test_several_losses_add_up(twice_registered):
    combined = build_loss([{"CELoss": {"weight": 2}}, {"SumCELoss": {"weight": 0.25}}], "Loss.Eval")
    per_sample = reference(np.eye(5)[LABEL])
    result = combined(tensor(LOGITS), tensor(LABEL))
    expected = {"CELoss": 2 * per_sample.mean(), "SumCELoss": per_sample.sum() / 4}
    expected["loss"] = sum(expected.values())
    assert {key: float(value) for key, value in result.items()} == pytest.approx(expected)

    sums = combined.sums(tensor(LOGITS), tensor(LABEL))
    expected = {"CELoss": 2 * per_sample.sum(), "SumCELoss": per_sample.sum() / 4}
    expected["loss"] = sum(expected.values())
    assert {key: float(value) for key, value in sums.items()} == pytest.approx(expected)


def test_sums_over_uneven_batches_equal_the_whole():
    combined = build_loss(["CELoss"], "Loss.Eval")
    whole = combined(tensor(LOGITS), tensor(LABEL))["loss"]
    parts = [combined.sums(tensor(LOGITS[s]), tensor(LABEL[s])) for s in (slice(4), slice(4, 6))]
    total = sum(float(part["loss"]) for part in parts)
    assert total / 6 == pytest.approx(float(whole), rel=1e-12)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            [{"CELoss": {"epsilon": 3}}],
            r"L\[0\]\.CELoss\.epsilon: expected a number in \[0, 1\), got 3",
        ),
        ([{"CELoss": {"epsilom": 0.1}}], r"L\[0\]\.CELoss: unknown key 'epsilom'.*'epsilon'"),
        ([{"CELoss": {"weight": -1}}], r"L\[0\]\.CELoss\.weight: expected a number >= 0, got -1"),
        ([{"CELoss": {"weight": "big"}}], r"L\[0\]\.CELoss\.weight: expected a number, got 'big'"),
        ([{"CELoss": {"reduction": "none"}}], r"L\[0\]\.CELoss\.reduction: expected one of 'mean'"),
        ([{"CELos": {}}], r"L\[0\]: unknown loss 'CELos'; did you mean 'CELoss'\?"),
        (["CELoss", "CELoss"], r"L\[1\]: expected each loss once, got 'CELoss' again"),
        ([{"CELoss": 1}], r"L\[0\]\.CELoss: expected a mapping of parameters, got 1"),
        ([], r"L: expected a list of losses, got \[\]"),
        ({"CELoss": {}}, r"L: expected a list of losses"),
        (None, r"L: expected a list of losses, got None"),
    ],
)
def test_config_errors(entries, message):
    with pytest.raises(ConfigError, match=message):
        build_loss(entries, "L")
