"""Losses between a student and its teacher, against NumPy in float64 and PyTorch."""

import numpy as np
import paddle
import pytest

from ppcls.loss import LOSSES, CELoss, build_loss
from ppcls.utils.errors import ConfigError

RNG = np.random.default_rng(0)
LOGITS, TAUGHT = 3 * RNG.standard_normal((2, 6, 5))
LABEL = np.array([0, 4, 2, 2, 1, 3])
PAIRS = {"model_name_pairs": [["Student", "Teacher"]]}
NAMES = ("DistillationKLDivLoss", "DistillationCELoss", "DistillationDMLLoss")


def softmax(logits, temperature=1.0):
    grown = np.exp(logits / temperature - (logits / temperature).max(1, keepdims=True))
    return grown / grown.sum(1, keepdims=True)


def kl(p, q):
    return (p * np.log(p / q)).sum(1).mean()


def value(name, logits=LOGITS, taught=TAUGHT, **options):
    layer = LOSSES.get(name, "L")(**PAIRS, **options)
    return layer(paddle.to_tensor(logits), paddle.to_tensor(taught))


@pytest.mark.parametrize("temperature", [0.5, 1, 4.0, 20])
def test_kldiv_is_hintons(temperature):
    expected = kl(softmax(TAUGHT, temperature), softmax(LOGITS, temperature)) * temperature**2
    found = value("DistillationKLDivLoss", temperature=temperature)
    assert found.shape == [] and found.dtype == paddle.float64
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_celoss_and_dmlloss():
    own, other = softmax(LOGITS), softmax(TAUGHT)
    expected = -(other * np.log(own)).sum(1).mean()
    assert float(value("DistillationCELoss")) == pytest.approx(expected, rel=1e-12)
    both = (kl(own, other) + kl(other, own)) / 2
    assert float(value("DistillationDMLLoss")) == pytest.approx(both, rel=1e-12)


def test_dmlloss_is_the_jsdivloss_of_release_2_0():
    """There: the mean over N * C entries of C * p * log((p + 1e-10) / (q + 1e-10)), both ways."""
    own, other = softmax(LOGITS), softmax(TAUGHT)
    entries = [5 * p * np.log((p + 1e-10) / (q + 1e-10)) for p, q in ((own, other), (other, own))]
    expected = ((entries[0] + entries[1]) / 2).mean()
    assert float(value("DistillationDMLLoss")) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_low_precisions_give_float32(name, dtype):
    logits, taught = (paddle.to_tensor(x).astype(dtype) for x in (LOGITS, TAUGHT))
    with paddle.amp.auto_cast(level="O2", dtype="bfloat16"):
        found = LOSSES.get(name, "L")(**PAIRS)(logits, taught)
    assert found.dtype == paddle.float32
    exact = [x.astype("float64").numpy() for x in (logits, taught)]
    assert float(found) == pytest.approx(float(value(name, *exact)), rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_confident_networks_give_finite_losses_and_gradients(name):
    logits = paddle.to_tensor(np.array([[500.0, -500, 0]], "float32"), stop_gradient=False)
    taught = paddle.to_tensor(np.array([[-500.0, 500, 0]], "float32"))
    LOSSES.get(name, "L")(**PAIRS)(logits, taught).backward()
    assert np.isfinite(logits.grad.numpy()).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_the_student_s_alone(name):
    student, teacher = (paddle.to_tensor(x, stop_gradient=False) for x in (LOGITS, TAUGHT))
    LOSSES.get(name, "L")(**PAIRS)(student, teacher).backward()
    assert teacher.grad is None
    found, step = student.grad.numpy(), 1e-5
    for place in np.ndindex(2, 5):
        shifted = [LOGITS.copy(), LOGITS.copy()]
        shifted[0][place] -= step
        shifted[1][place] += step
        low, high = (float(value(name, logits)) for logits in shifted)
        assert found[place] == pytest.approx((high - low) / (2 * step), rel=1e-5, abs=1e-8)


def test_a_student_like_its_teacher_has_nothing_to_learn():
    for name in ("DistillationKLDivLoss", "DistillationDMLLoss"):
        assert float(value(name, TAUGHT)) == pytest.approx(0, abs=1e-12)


def test_gtceloss_is_celoss_with_hard_and_soft_labels():
    soft = RNG.dirichlet(np.ones(5), 6)
    layer = LOSSES.get("DistillationGTCELoss", "L")(model_names=["Student"], epsilon=0.1)
    for label in (LABEL, soft):
        given = paddle.to_tensor(LOGITS), paddle.to_tensor(label)
        assert float(layer(*given)) == float(CELoss(epsilon=0.1)(*given))


def test_a_sum_of_losses_gives_each_what_it_needs():
    soft = paddle.to_tensor(RNG.dirichlet(np.ones(5), 6))
    loss = build_loss(
        [
            {"DistillationGTCELoss": {"weight": 0.25, "model_names": ["Student"]}},
            {"DistillationKLDivLoss": {"weight": 0.75, "temperature": 2, "key": "logits", **PAIRS}},
        ],
        "Loss.Train",
    )
    assert loss.with_teacher() == ["DistillationKLDivLoss"]
    assert loss.without_soft_labels() == []
    parts = loss(paddle.to_tensor(LOGITS), soft, paddle.to_tensor(TAUGHT))
    truth = float(CELoss()(paddle.to_tensor(LOGITS), soft))
    taught = float(value("DistillationKLDivLoss", temperature=2))
    assert float(parts["DistillationGTCELoss"]) == pytest.approx(0.25 * truth)
    assert float(parts["DistillationKLDivLoss"]) == pytest.approx(0.75 * taught)
    assert float(parts["loss"]) == pytest.approx(0.25 * truth + 0.75 * taught)


KL = "DistillationKLDivLoss"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({KL: {**PAIRS, "temperature": 0}}, "temperature: expected a number > 0, got 0"),
        ({KL: {**PAIRS, "temperature": -4}}, "temperature: expected a number > 0, got -4"),
        ({KL: {**PAIRS, "temperature": "hot"}}, "temperature: expected a number, got 'hot'"),
        ({KL: {**PAIRS, "weight": -0.1}}, "weight: expected a number >= 0, got -0.1"),
        ({KL: {**PAIRS, "weight": float("nan")}}, "weight: expected a number, got nan"),
        ({KL: {**PAIRS, "key": "features"}}, "key: expected 'logits', got 'features'"),
        ({KL: {**PAIRS, "alpha": 2}}, "unknown key 'alpha'"),
        ({KL: {}}, "missing key 'model_name_pairs'"),
        (
            {KL: {"model_name_pairs": ["Student", "Teacher"]}},
            r"model_name_pairs\[0\]: expected a l",
        ),
        ({"DistillationDMLLoss": {**PAIRS, "act": "sigmoid"}}, "act: expected 'softmax'"),
        ({"DistillationGTCELoss": {}}, "missing key 'model_names'"),
        ({"DistillationKLDiv": PAIRS}, "did you mean 'DistillationKLDivLoss'"),
    ],
)
def test_mistakes(entry, message):
    with pytest.raises(ConfigError, match=r"^Loss\.Train\[0\].*" + message):
        build_loss([entry], "Loss.Train")


@pytest.mark.parity
@pytest.mark.parametrize("temperature", [1, 4])
def test_values_and_gradients_are_pytorch_s(temperature):
    torch = pytest.importorskip("torch")
    own = torch.tensor(LOGITS, requires_grad=True)
    soft = [torch.log_softmax(x / temperature, 1) for x in (own, torch.tensor(TAUGHT))]
    options = {"reduction": "batchmean", "log_target": True}
    expected = torch.nn.functional.kl_div(*soft, **options) * temperature**2
    expected.backward()
    logits = paddle.to_tensor(LOGITS, stop_gradient=False)
    layer = LOSSES.get("DistillationKLDivLoss", "L")(**PAIRS, temperature=temperature)
    found = layer(logits, paddle.to_tensor(TAUGHT))
    found.backward()
    assert float(found) == pytest.approx(expected.item(), rel=1e-12)
    np.testing.assert_allclose(logits.grad.numpy(), own.grad.numpy(), rtol=1e-12, atol=1e-15)
