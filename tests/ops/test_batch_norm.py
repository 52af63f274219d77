"""The compiled batch norm computes what Paddle's and the activation after it compute."""

import copy
import os
import subprocess
import sys

import numpy as np
import paddle
import pytest
from paddle import nn

from ppcls.arch import create_model
from ppcls.arch.backbone.hardnet_block import ConvBNAct
from ppcls.arch.backbone.hardnet_plan import ConvUnit
from ppcls.ops import batch_norm
from ppcls.ops.accelerate import accelerate

pytestmark = pytest.mark.skipif(
    batch_norm.find_native() is None,
    reason="nothing compiled the operator, or PPCLS_BATCH_NORM says paddle",
)
# images, channels, height, width: one pixel, less than a vector, more than one, on all threads
SHAPES = [(6, 3, 1, 1), (2, 5, 3, 3), (3, 4, 7, 9), (2, 40, 32, 31)]


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def make(channels, activation="relu6", kernel=1):
    """A unit whose batch norm has parameters and statistics of its own."""
    unit = ConvBNAct(ConvUnit(3, channels, kernel, 1, activation))
    for seed, tensor in enumerate((unit.norm.weight, unit.norm.bias, unit.norm._mean)):
        tensor.set_value((2 * noise(channels, seed=seed) + 1).astype(np.float32))
    unit.norm._variance.set_value((noise(channels, seed=9) ** 2 + 0.1).astype(np.float32))
    return unit


def run(layer, x, factors):
    """Result, gradients of input and parameters, and running statistics after a step."""
    x = paddle.to_tensor(x, stop_gradient=False)
    y = layer(x)
    (y * paddle.to_tensor(factors)).sum().backward()
    trained = [parameter for parameter in layer.parameters() if not parameter.stop_gradient]
    tensors = [y, x.grad, *(parameter.grad for parameter in trained), *statistics(layer)]
    return [tensor.numpy().copy() for tensor in tensors]


def statistics(layer):
    """The running means and variances, which Paddle counts among the parameters."""
    return [parameter for parameter in layer.parameters() if parameter.stop_gradient]


def exact(layer, x, factors):
    """The same by Paddle's operators, in float64."""
    plain = copy.deepcopy(layer).to(dtype="float64")
    return run(plain, x.astype(np.float64), factors.astype(np.float64))


def assert_close(found, wanted, tolerance=2e-5):
    for array, expected in zip(found, wanted, strict=True):
        scale = max(1.0, np.abs(expected).max())
        np.testing.assert_allclose(array / scale, expected / scale, atol=tolerance, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_batch_norm_alone(shape):
    norm = make(shape[1]).norm
    x, factors = noise(*shape).astype(np.float32) + 3, noise(*shape, seed=1).astype(np.float32)
    wanted = exact(norm, x, factors)
    accelerate(norm)
    assert_close(run(norm, x, factors), wanted)


@pytest.mark.parametrize("activation", ["relu", "relu6"])
@pytest.mark.parametrize("shape", SHAPES[1:])
def test_unit(shape, activation):
    count, channels, *size = shape
    unit = make(channels, activation)
    unit.norm.weight.set_value(unit.norm.weight * 4)  # both ends of the range are reached
    x = noise(count, 3, *size).astype(np.float32)
    factors = noise(*shape, seed=1).astype(np.float32)
    wanted = exact(unit, x, factors)
    accelerate(unit)
    found = run(unit, x, factors)
    assert_close(found, wanted)
    assert (found[0] == 0).any() and (activation == "relu") == (found[0].max() > 6)


def test_evaluation_uses_the_running_statistics():
    unit = make(5)
    unit.eval()
    x = paddle.to_tensor(noise(2, 3, 6, 7).astype(np.float32))
    with paddle.no_grad():
        wanted = unit(x).numpy()
        accelerate(unit)
        before = [buffer.numpy().copy() for buffer in statistics(unit)]
        np.testing.assert_allclose(unit(x).numpy(), wanted, atol=1e-5)
    for buffer, old in zip(statistics(unit), before, strict=True):
        np.testing.assert_array_equal(buffer.numpy(), old)


def test_mean_far_from_zero():
    norm = nn.BatchNorm2D(2)
    x = (noise(4, 2, 8, 8) * 1e-2 + 1000).astype(np.float32)
    factors = noise(4, 2, 8, 8, seed=1).astype(np.float32)
    wanted = exact(norm, x, factors)
    accelerate(norm)
    assert_close(run(norm, x, factors)[:1], wanted[:1], tolerance=1e-3)  # 1000 has 6e-5 of its own


@pytest.mark.parametrize("value", [1e3, 1e6])
def test_constant_channel(value):
    """Rounding makes neither NaN nor a negative variance of it."""
    generator = np.random.default_rng(0)
    norm = nn.BatchNorm2D(1, momentum=0.0)
    accelerate(norm)
    for _ in range(50):
        shape = (generator.integers(1, 8), 1, *generator.integers(2, 30, 2))
        x = np.full(shape, value * (1 + generator.random()), np.float32)
        found = norm(paddle.to_tensor(x)).numpy()
        assert np.isfinite(found).all() and norm._variance.item() >= 0


def test_single_value_as_paddle_does():
    """One image of one pixel: Paddle returns it as it is, and leaves the statistics alone."""
    norm = make(3).norm
    x, factors = noise(1, 3, 1, 1).astype(np.float32), noise(1, 3, 1, 1, seed=1).astype(np.float32)
    wanted = exact(norm, x, factors)
    accelerate(norm)
    assert_close(run(norm, x, factors), wanted)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_visible(bad):
    unit = make(4)
    accelerate(unit)
    x = noise(2, 3, 5, 5).astype(np.float32)
    x[1, 1, 2, 3] = bad
    assert np.isnan(unit(paddle.to_tensor(x)).numpy()).any()
    unit.eval()
    with paddle.no_grad():
        found = unit(paddle.to_tensor(np.full_like(x, np.nan))).numpy()
    assert np.isnan(found).all()


def test_frozen_parameters_get_no_gradient():
    norm = make(4).norm
    norm.weight.stop_gradient = True
    accelerate(norm)
    x = paddle.to_tensor(noise(2, 4, 5, 5).astype(np.float32), stop_gradient=False)
    norm(x).square().sum().backward()
    assert norm.weight.grad is None and norm.bias.grad is not None and x.grad is not None


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2D(4, data_format="NHWC"),
        nn.BatchNorm2D(4, use_global_stats=True),
        nn.BatchNorm2D(4, weight_attr=False),
        nn.SyncBatchNorm(4),
    ],
    ids=["NHWC", "global statistics", "no weight", "synchronised"],
)
def test_others_are_left_to_paddle(norm):
    accelerate(norm)
    assert "forward" not in vars(norm)


def test_statistics_frozen_later():
    unit = make(4)
    accelerate(unit)
    unit.norm._use_global_stats = True
    before = [tensor.numpy().copy() for tensor in statistics(unit)]
    unit(paddle.to_tensor(noise(2, 3, 5, 5).astype(np.float32))).sum().backward()
    for tensor, old in zip(statistics(unit), before, strict=True):
        np.testing.assert_array_equal(tensor.numpy(), old)


def test_norm_converted_later_is_called(monkeypatch):
    unit = make(4)
    accelerate(unit)
    unit = nn.SyncBatchNorm.convert_sync_batchnorm(unit)
    monkeypatch.setattr(nn.SyncBatchNorm, "forward", lambda layer, x: paddle.full_like(x, 3))
    found = unit(paddle.to_tensor(noise(2, 3, 5, 5).astype(np.float32)))
    np.testing.assert_array_equal(found.numpy(), np.full((2, 4, 5, 5), 3, np.float32))


def test_activation_replaced_later():
    unit = make(4)
    accelerate(unit)
    unit.activate = nn.Tanh()
    x = noise(2, 3, 5, 5).astype(np.float32)
    factors = noise(2, 4, 5, 5, seed=1).astype(np.float32)
    wanted = exact(unit, x, factors)
    assert_close(run(unit, x, factors), wanted)


def test_parameter_of_other_size_is_an_error():
    unit = make(4)
    accelerate(unit)
    unit.norm.bias = unit.create_parameter([2])
    with pytest.raises(ValueError, match="bias"):
        unit(paddle.to_tensor(noise(2, 3, 5, 5).astype(np.float32)))


def test_hooks_on_the_norm_are_called():
    unit = make(4)
    accelerate(unit)
    seen = []
    unit.norm.register_forward_post_hook(lambda layer, inputs, result: seen.append(result.shape))
    unit(paddle.to_tensor(noise(2, 3, 5, 5).astype(np.float32)))
    assert seen == [[2, 4, 5, 5]]


def test_input_changed_between_forward_and_backward():
    norm = nn.BatchNorm2D(4)
    accelerate(norm)
    x = paddle.to_tensor(noise(2, 4, 5, 5).astype(np.float32))
    loss = norm(x).sum()
    x.zero_()
    with pytest.raises(Exception, match="found them changed in place"):
        loss.backward()


def test_threads_do_not_change_a_bit():
    code = (
        "import sys, numpy as np, paddle; from paddle import nn;"
        "from ppcls.ops.accelerate import accelerate; norm = nn.BatchNorm2D(40); accelerate(norm);"
        "x = paddle.to_tensor(np.random.default_rng(0).standard_normal((4, 40, 32, 32))"
        ".astype('float32'), stop_gradient=False);"
        "y = norm(x); (y * y * y).sum().backward();"
        "sys.stdout.buffer.write(y.numpy().tobytes() + x.grad.numpy().tobytes())"
    )
    results = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, check=True, env={**os.environ, **env}
        ).stdout
        for env in ({"OMP_NUM_THREADS": "1"}, {"OMP_NUM_THREADS": "2"})
    }
    assert len(results) == 1


def test_switch(monkeypatch):
    batch_norm.find_native.cache_clear()
    monkeypatch.setenv("PPCLS_BATCH_NORM", "paddle")
    try:
        unit = make(4)
        assert accelerate(unit)[1] == "batch norms: Paddle's own (0 of 1 layers)"
        assert "forward" not in vars(unit)
    finally:
        monkeypatch.undo()
        batch_norm.find_native.cache_clear()


@pytest.mark.parametrize("recompute", [False, True])
def test_network_learns_as_with_paddles_operators(recompute):
    paddle.seed(0)
    network = create_model("HarDNet39_ds", class_num=4, dropout=0, recompute=recompute)
    network.train()
    with paddle.no_grad():
        for parameter in network.parameters():
            parameter.scale_(1.01)  # changed in place before, as by an optimizer
    x, factors = noise(4, 3, 64, 64), noise(4, 4, seed=1)
    wanted = exact(network, x, factors)
    paddles = copy.deepcopy(network)
    accelerate(network)
    inputs = [x.astype(np.float32), factors.astype(np.float32)]
    ours, theirs = (distance(run(net, *inputs), wanted) for net in (network, paddles))
    assert ours < 0.1 * distance([0] * len(wanted), wanted) and ours < 2 * theirs


def distance(arrays, others):
    differences = [array - other for array, other in zip(arrays, others, strict=True)]
    return np.sqrt(sum(np.square(difference).sum() for difference in differences))
