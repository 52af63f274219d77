"""The oneDNN convolution computes what Paddle's computes, and steps aside where it cannot."""

import copy
import subprocess
import sys

import numpy as np
import paddle
import pytest
from paddle import nn
from paddle.nn import functional as F

from ppcls.arch import create_model
from ppcls.ops import conv2d

pytestmark = pytest.mark.skipif(
    conv2d.find_onednn() is None,
    reason="Paddle's package holds no oneDNN, or PPCLS_CONV says paddle",
)
# in, out, kernel, stride, padding, dilation, groups
KINDS = {
    "depthwise": (8, 8, 3, 1, 1, 1, 8),
    "depthwise strided": (8, 8, 3, 2, 1, 1, 8),
    "depthwise odd width": (19, 19, 3, 2, 1, 1, 19),
    "stem": (3, 24, 3, 2, 1, 1, 1),
    "dense": (17, 6, 3, 1, 1, 1, 1),
    "pointwise": (17, 6, 1, 1, 0, 1, 1),
    "pointwise strided": (8, 6, 1, 2, 0, 1, 1),
    "dilated": (8, 12, 3, 1, 6, 6, 1),
    "grouped": (8, 12, 3, 1, 1, 1, 2),
}
SIZES = [(1, 1), (1, 4), (2, 2), (3, 5), (7, 7), (16, 13)]


def make(kind, bias=False, data_format="NCHW"):
    channels, out, kernel, stride, padding, dilation, groups = KINDS[kind]
    return nn.Conv2D(
        channels,
        out,
        kernel,
        stride,
        padding,
        dilation,
        groups,
        bias_attr=None if bias else False,
        data_format=data_format,
    )


def run(layer, x, factors=None):
    """The result, and the gradients of input and parameters of a weighted sum of it."""
    x = paddle.to_tensor(x, stop_gradient=False)
    y = layer(x)
    if factors is None:
        factors = np.random.default_rng(1).standard_normal(y.shape)
    (y * paddle.to_tensor(factors).astype(y.dtype)).sum().backward()
    tensors = [y, x.grad, *(parameter.grad for parameter in layer.parameters())]
    results = [tensor.numpy().copy() for tensor in tensors]
    layer.clear_gradients()
    return results


def in_float64(layer, x):
    """The same of Paddle's own operator, in float64."""
    exact = copy.deepcopy(layer).to(dtype="float64")
    return run(exact, x.astype(np.float64))


def noise(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def is_used(layer, x):
    """Whether the layer's result for `x` comes from oneDNN."""
    hits = conv2d._convolution.cache_info()
    layer(x)
    after = conv2d._convolution.cache_info()
    return after.hits + after.misses > hits.hits + hits.misses


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_result_and_gradients_equal_those_in_float64(kind, size):
    for bias, data_format in ((False, "NCHW"), (True, "NCHW"), (True, "NHWC")):
        layer = conv2d.accelerate(make(kind, bias, data_format))
        channels = KINDS[kind][0]
        shape = (2, channels, *size) if data_format == "NCHW" else (2, *size, channels)
        assert is_used(layer, paddle.to_tensor(noise(*shape)))
        for found, wanted in zip(
            run(layer, noise(*shape)), in_float64(layer, noise(*shape)), strict=True
        ):
            scale = max(np.abs(wanted).max(), 1.0)
            np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6 * scale)


@pytest.mark.parametrize("size", [8, 32], ids=["blocked", "as a product"])
def test_pointwise_layouts(size):
    layer = conv2d.accelerate(nn.Conv2D(20, 33, 1, bias_attr=False))
    x = noise(2, 20, size, size)
    for found, wanted in zip(run(layer, x), in_float64(layer, x), strict=True):
        scale = max(np.abs(wanted).max(), 1.0)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6 * scale)


def test_gradient_equals_the_numeric_one():
    layer = conv2d.accelerate(make("depthwise strided"))
    x, step = noise(1, 8, 5, 5), 1e-2
    factors = np.random.default_rng(1).standard_normal((1, 8, 3, 3))

    def value(x, weight):
        twin = copy.deepcopy(layer)
        twin.weight.set_value(weight)
        return float((twin(paddle.to_tensor(x)).numpy() * factors).sum())

    _, of_x, of_weight = run(layer, x, factors)
    weight = layer.weight.numpy()
    for index in [(0, 0, 0, 0), (0, 3, 2, 4), (0, 7, 4, 4)]:
        shift = np.zeros_like(x)
        shift[index] = step  # the convolution is linear: only rounding limits the step
        slope = (value(x + shift, weight) - value(x - shift, weight)) / (2 * step)
        assert of_x[index] == pytest.approx(slope, abs=2e-3)
    for index in [(0, 0, 0, 0), (5, 0, 1, 2)]:
        shift = np.zeros_like(weight)
        shift[index] = step
        slope = (value(x, weight + shift) - value(x, weight - shift)) / (2 * step)
        assert of_weight[index] == pytest.approx(slope, abs=2e-3)


def test_two_runs_are_bit_identical():
    layer = conv2d.accelerate(make("dense"))
    x = noise(4, 17, 16, 13)
    for one, two in zip(run(layer, x), run(layer, x), strict=True):
        assert one.tobytes() == two.tobytes()


def test_views_are_read_as_they_are():
    layer = conv2d.accelerate(make("depthwise"))
    whole = paddle.to_tensor(noise(3, 7, 16, 9))
    for view in (
        whole.transpose([0, 2, 1, 3])[:, 4:12],
        whole[1:, :, 2:10].transpose([0, 2, 1, 3]),
    ):
        copied = paddle.to_tensor(view.numpy())
        assert layer(view).numpy().tobytes() == layer(copied).numpy().tobytes()


def test_only_the_gradients_wanted_are_computed():
    layer = conv2d.accelerate(make("depthwise", bias=True))
    layer.weight.stop_gradient = True
    x = paddle.to_tensor(noise(1, 8, 4, 4))
    layer(x).sum().backward()
    assert x.grad is None and layer.weight.grad is None
    np.testing.assert_allclose(layer.bias.grad.numpy(), 16.0)
    layer.bias.stop_gradient = True
    assert layer(x).stop_gradient


def test_nan_is_not_swallowed():
    for kind in ("depthwise", "dense"):
        layer = conv2d.accelerate(make(kind))
        x = noise(1, KINDS[kind][0], 4, 4)
        x[0, 0, 1, 1] = np.nan
        assert np.isnan(layer(paddle.to_tensor(x)).numpy()).any()


def test_float64_takes_paddles_own():
    layer = conv2d.accelerate(make("depthwise")).to(dtype="float64")
    assert not is_used(layer, paddle.to_tensor(noise(1, 8, 4, 4).astype("float64")))


def test_uneven_padding_takes_paddles_own():
    layer = conv2d.accelerate(nn.Conv2D(4, 4, 3, padding=[1, 0, 1, 0]))
    assert not is_used(layer, paddle.to_tensor(noise(1, 4, 4, 4)))
    layer = conv2d.accelerate(nn.Conv2D(4, 4, 3, padding=1, padding_mode="reflect"))
    assert not is_used(layer, paddle.to_tensor(noise(1, 4, 4, 4)))


def test_gradients_of_some_inputs_in_evaluation_mode():
    layer = conv2d.accelerate(make("depthwise"))
    layer.eval()
    x = paddle.to_tensor(noise(1, 8, 4, 4), stop_gradient=False)
    (slope,) = paddle.grad(layer(x).sum(), [x])
    assert slope.numpy().any() and layer.weight.grad is None


def test_second_derivative_in_training_says_what_helps():
    layer = conv2d.accelerate(make("depthwise"))
    x = paddle.to_tensor(noise(1, 8, 4, 4), stop_gradient=False)
    inputs = [x, layer.weight]
    with pytest.raises(Exception, match="expected PPCLS_CONV=paddle in the environment"):
        paddle.grad((layer(x) ** 2).sum(), inputs, create_graph=True)


@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_the_default_dtype_does_not_matter(dtype):
    layer = conv2d.accelerate(make("depthwise"))
    x = noise(1, 8, 4, 4)
    wanted = run(layer, x)
    before = paddle.get_default_dtype()
    paddle.set_default_dtype(dtype)
    try:
        found = run(layer, x)
    finally:
        paddle.set_default_dtype(before)
    for array, expected in zip(found, wanted, strict=True):
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, expected)


def test_parameters_changed_between_forward_and_backward():
    layer = conv2d.accelerate(make("depthwise"))
    loss = layer(paddle.to_tensor(noise(1, 8, 4, 4))).sum()
    with paddle.no_grad():
        layer.weight.zero_()
    with pytest.raises(Exception, match="found them changed in place"):
        loss.backward()


def test_what_onednn_does_not_have_is_left_to_paddle():
    layer = conv2d.accelerate(make("dense"))
    with pytest.raises(ValueError, match="channel"):
        layer(paddle.to_tensor(noise(1, 5, 4, 4)))


def test_a_window_changed_later():
    layer = conv2d.accelerate(make("depthwise"))
    layer._stride = [2, 2]
    assert layer(paddle.to_tensor(noise(1, 8, 6, 6))).shape == [1, 8, 3, 3]


def test_networks_compute_with_paddles_own_until_asked():
    network = create_model("HarDNet39_ds", class_num=4)
    assert not any(conv2d.is_accelerated(layer) for layer in network.sublayers())


def test_layer_stays_what_it_is():
    layer = conv2d.accelerate(make("depthwise"))
    assert type(layer) is nn.Conv2D
    assert list(layer.state_dict()) == ["weight"]
    twin = copy.deepcopy(layer)
    twin.weight.set_value(paddle.zeros_like(twin.weight))
    x = paddle.to_tensor(noise(1, 8, 4, 4))
    assert is_used(twin, x) and not twin(x).numpy().any() and layer(x).numpy().any()


def test_switch_and_missing_library(monkeypatch):
    code = "from ppcls.ops import conv2d; print(conv2d.describe())"

    def described(**environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        return done.stdout.strip(), done.stderr

    assert described(PPCLS_CONV="auto")[0].startswith("oneDNN 3.")
    assert described(PPCLS_CONV="paddle")[0] == "Paddle's own"
    assert "PPCLS_CONV: expected one of auto, paddle, got 'fast'" in described(PPCLS_CONV="fast")[1]
    conv2d.find_onednn.cache_clear()
    monkeypatch.setenv("PPCLS_CONV", "auto")
    monkeypatch.setattr(paddle, "__file__", "/nowhere/paddle/__init__.py")
    try:
        layer = conv2d.accelerate(make("depthwise"))
        assert conv2d.describe() == "Paddle's own"
        assert "forward" not in vars(layer)
    finally:
        monkeypatch.undo()
        conv2d.find_onednn.cache_clear()


@pytest.fixture(scope="module")
def network():
    paddle.seed(0)
    network = create_model("HarDNet39_ds", class_num=4)
    assert conv2d.accelerate_convolutions(network) == (74, 74)
    return network


def test_exported_program_holds_paddles_operators_alone(network, tmp_path):
    network.eval()
    x = paddle.to_tensor(noise(2, 3, 32, 32))
    wanted = network(x).numpy()
    spec = paddle.static.InputSpec([None, 3, 32, 32], "float32")
    static = paddle.jit.to_static(copy.deepcopy(network), input_spec=[spec])
    paddle.jit.save(static, str(tmp_path / "net"))
    loaded = paddle.jit.load(str(tmp_path / "net"))
    np.testing.assert_allclose(loaded(x).numpy(), wanted, rtol=1e-4, atol=1e-5)
    text = str(loaded.program())
    assert "py_layer" not in text and "depthwise_conv2d" in text


@pytest.mark.slow
def test_network_under_to_static_trains_alike():
    def gradients(model):
        F.cross_entropy(model(x), y).backward()
        return [p.grad.numpy() for p in model.parameters() if p.grad is not None]

    x, y = paddle.to_tensor(noise(2, 3, 64, 64)), paddle.to_tensor([0, 3])
    own = create_model("HarDNet39_ds", class_num=4, dropout=0.0)
    static = paddle.jit.to_static(copy.deepcopy(own))
    for one, two in zip(gradients(own), gradients(static), strict=True):
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-3 * max(np.abs(one).max(), 1))


def test_recompute_gives_the_same_gradients():
    x, y = paddle.to_tensor(noise(2, 3, 64, 64)), paddle.to_tensor([0, 3])
    results = []
    for recompute in (False, True):
        paddle.seed(0)
        model = create_model("HarDNet39_ds", class_num=4, dropout=0.0, recompute=recompute)
        F.cross_entropy(model(x), y).backward()
        results.append([p.grad.numpy() for p in model.parameters() if p.grad is not None])
    for one, two in zip(*results, strict=True):
        assert one.tobytes() == two.tobytes()
