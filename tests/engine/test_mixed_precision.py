"""What mixed precision does, as far as a CPU can show it.

Paddle's autocast and loss scaler switch themselves off on a CPU, and its CPU kernels take no
float16. So three things are shown apart: which operators a static graph casts, what the rounding
does to a training (float32 kernels, with every value rounded that autocast would hold in the low
precision), and how the loss scaler, made to believe in a GPU, saves and skips. The tests
marked `gpu` have the whole.
"""

from __future__ import annotations

import types
from collections import defaultdict

import numpy as np
import paddle
import pytest
from paddle import nn
from tiny_run import TinyImages, arrays, records, tiny_net, trainer

from ppcls.arch import create_model
from ppcls.arch.backbone import hardnet_block
from ppcls.engine.config import AMPConfig
from ppcls.engine.precision import Precision
from ppcls.utils.pdparams import load_paddle_file

# Which operators are cast


def operator_types(monkeypatch, config):
    """Types of HarDNet39_ds's operators in a static graph, batch norm left out: a CPU has none."""
    monkeypatch.setattr(hardnet_block, "batch_norm", lambda channels, data_format: nn.Identity())
    precision = Precision(config, "gpu:0")
    found = defaultdict(set)
    paddle.enable_static()
    try:
        program, startup = paddle.static.Program(), paddle.static.Program()
        with paddle.static.program_guard(program, startup), paddle.utils.unique_name.guard():
            model = create_model("HarDNet39_ds", class_num=5)
            image = paddle.static.data("image", [2, 3, 64, 64], "float32")
            with precision.autocast():
                model(image)
        for operator in program.global_block().ops:
            if operator.results() and operator.results()[0].is_dense_tensor_type():
                name = operator.name().removeprefix("pd_op.")
                found[name].add(str(operator.results()[0].dtype).removeprefix("paddle."))
    finally:
        paddle.disable_static()
    return found


# A program of the older form holds no casts before it runs.
@pytest.mark.skipif(paddle.__version__.startswith("2."), reason="needs Paddle 3's programs")
@pytest.mark.parametrize(
    ("settings", "depthwise"),
    [
        ({"level": "O1"}, "float32"),  # in neither list, with a float32 weight
        ({"level": "O1", "custom_white_list": ["depthwise_conv2d"]}, "bfloat16"),
        ({"level": "O2"}, "bfloat16"),
    ],
)
def test_which_operators_are_cast(monkeypatch, settings, depthwise):
    found = operator_types(monkeypatch, AMPConfig(dtype="bfloat16", **settings))
    for name in ("conv2d", "relu6", "pool2d", "matmul"):
        assert found[name] == {"bfloat16"}, name
    assert found["depthwise_conv2d"] == found["concat"] == {depthwise}


@pytest.mark.skipif(paddle.__version__.startswith("2."), reason="needs Paddle 3's programs")
def test_operators_kept_in_float32(monkeypatch):
    config = AMPConfig(level="O2", dtype="bfloat16", custom_black_list=["depthwise_conv2d"])
    found = operator_types(monkeypatch, config)
    assert found["depthwise_conv2d"] == {"float32"} and found["conv2d"] == {"bfloat16"}


def test_an_operator_is_in_one_list():
    with pytest.raises(ValueError, match="custom_white_list: expected none of .*, got relu, tanh"):
        AMPConfig(custom_white_list=["tanh", "relu"], custom_black_list=["relu", "tanh", "exp"])


# What the rounding does


def round_like_autocast(model, dtype):
    """Round what goes in and out of convolutions, norms and the classifier, and their weights.

    Gradients are rounded on their way back in the same places.
    """
    for layer in model.sublayers():
        if isinstance(layer, (nn.Conv2D, nn.Linear, nn.BatchNorm2D)):
            layer.forward = rounded(layer, dtype)
    return model


def rounded(layer, dtype):
    original = layer.forward

    def low(x):
        return x.astype(dtype).astype("float32")

    def forward(x):
        weight = layer.weight
        if not isinstance(layer, nn.BatchNorm2D):  # whose weights stay float32
            layer._parameters["weight"] = low(weight)
        try:
            return low(original(low(x)))
        finally:
            layer._parameters["weight"] = weight

    return forward


def first_updates(precision, *, rounding=None, is_static=False, data_format="NCHW", updates=6):
    """Train HarDNet39_ds on ten images of five classes.

    Returns the losses, the norm of the first gradient (scaled if the loss is), and how many updates
    the loss scaler left out.
    """
    paddle.seed(0)
    model = create_model("HarDNet39_ds", class_num=5, dropout=0.0, data_format=data_format)
    if rounding is not None:
        round_like_autocast(model, rounding)
    weights = [p for p in model.parameters() if not p.stop_gradient]
    optimizer = paddle.optimizer.Momentum(0.05, 0.9, parameters=weights, multi_precision=True)
    precision.prepare(model, optimizer)
    if is_static:
        spec = [paddle.static.InputSpec([None, 3, 64, 64], "float32")]
        model = paddle.jit.to_static(model, input_spec=spec, full_graph=True)
    label = np.arange(10) % 5
    x = np.random.default_rng(0).standard_normal((10, 3, 64, 64)) + 0.3 * label[:, None, None, None]
    losses, norm, skipped = [], None, 0
    while len(losses) < updates:
        with precision.autocast():
            logits = model(paddle.to_tensor(x.astype("float32")))
        loss = nn.functional.cross_entropy(logits.astype("float32"), paddle.to_tensor(label))
        precision.backward(loss)
        if norm is None:
            norm = float(sum((p.grad.astype("float32") ** 2).sum() for p in weights)) ** 0.5
        precision.step(optimizer)
        optimizer.clear_grad()
        if precision.overflow is not None and bool(precision.overflow):
            skipped += 1
            assert skipped < 16, "half of 65536, 16 times, is 1"
        else:
            losses.append(float(loss))
    return losses, norm, skipped


@pytest.fixture(scope="module")
def plain():
    return first_updates(Precision(None, "cpu"))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 1e-3), ("bfloat16", 1e-2)])
def test_rounding_keeps_the_loss_and_the_size_of_the_gradient(plain, dtype, tolerance):
    losses, norm, _ = first_updates(Precision(None, "cpu"), rounding=dtype)
    assert_close(losses, norm, plain, tolerance)


def assert_close(losses, norm, plain, tolerance):
    """Later losses go their own ways, but down."""
    assert losses[0] == pytest.approx(plain[0][0], rel=tolerance)
    assert norm == pytest.approx(plain[1], rel=0.1)
    assert plain[0][-1] < 0.5 * plain[0][0] and losses[-1] < 0.5 * losses[0]


# The loss scaler


@pytest.fixture
def gpu_scaler(monkeypatch):
    """Let Paddle's loss scaler work on a CPU, where its kernels exist but it switches itself off.

    The autocast around a forward pass then still does nothing but name its type.
    """
    from paddle.amp import grad_scaler

    place = types.SimpleNamespace(is_gpu_place=lambda: True)
    tracer = types.SimpleNamespace(_expected_place=place)
    monkeypatch.setattr(grad_scaler, "_dygraph_tracer", lambda: tracer)
    monkeypatch.setattr(grad_scaler.amp_global_state(), "amp_dtype", "float16")


def test_the_scale_falls_until_float16_holds_the_gradients(gpu_scaler, plain):
    config = AMPConfig(dtype="float16")
    precision = Precision(config, "gpu:0")
    losses, _, skipped = first_updates(precision, rounding="float16")
    assert skipped > 0
    assert precision.state_dict()["scale"] == config.scale_loss / 2**skipped
    assert losses[0] == pytest.approx(plain[0][0], rel=1e-3) and losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("is_dynamic", [True, False])
@pytest.mark.parametrize("update_freq", [1, 3])
def test_a_scaled_loss_trains_the_same(tmp_path, gpu_scaler, is_dynamic, update_freq):
    """Bit for bit, since the scale is a power of two; also its state is saved and restored."""
    options = {"epochs": 3, "update_freq": update_freq, "eval_during_train": False}
    plain = tiny_net()
    trainer(tmp_path / "plain", plain, **options).fit()

    amp = AMPConfig(dtype="float16", scale_loss=2.0**10, use_dynamic_loss_scaling=is_dynamic)
    options |= {"amp": amp, "device": "gpu:0"}
    trainer(tmp_path / "scaled", tiny_net(), max_steps=4, **options).fit()
    model = tiny_net(seed=9)
    run = trainer(tmp_path / "scaled", model, resume=tmp_path / "scaled" / "latest", **options)
    updates = -(-4 // update_freq)
    assert run.precision.state_dict()["incr_count"] == (updates if is_dynamic else 0)
    run.fit()
    for name, array in arrays(plain).items():
        np.testing.assert_array_equal(arrays(model)[name], array, name)


def test_an_overflow_is_left_out_and_counted(tmp_path, gpu_scaler, caplog):
    """The scale is halved each time, and goes into the checkpoint as it is then."""
    amp = AMPConfig(dtype="float16", scale_loss=2.0**127)
    model = tiny_net()
    run = trainer(
        tmp_path, model, amp=amp, device="gpu:0", epochs=3, dataset=TinyImages(), max_nonfinite=20
    )
    progress = run.fit()
    assert 0 < progress.skipped_updates < 12
    assert "a scaled gradient overflowed" in caplog.text
    assert all(np.isfinite(record["loss"]) for record in records(tmp_path, "train"))
    saved = load_paddle_file(tmp_path / "latest.pdstates")["components"]["scaler"]
    assert saved["scale"] == 2.0 ** (127 - progress.skipped_updates)


# On a GPU: the whole, against float32 in NCHW, to the same tolerances


@pytest.mark.gpu
@pytest.mark.parametrize("is_static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize("data_format", ["NCHW", "NHWC"])
@pytest.mark.parametrize("level", ["O1", "O2"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 1e-3), ("bfloat16", 1e-2)])
def test_a_gpu_trains_close_to_float32(plain, dtype, tolerance, level, data_format, is_static):
    config = AMPConfig(level=level, dtype=dtype, scale_loss=1.0, use_dynamic_loss_scaling=False)
    losses, norm, _ = first_updates(
        Precision(config, "gpu:0"), data_format=data_format, is_static=is_static
    )
    assert_close(losses, norm, plain, tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("is_static", [False, True], ids=["dynamic", "static"])
def test_a_gpu_trains_channels_last_in_float32(plain, is_static):
    losses, norm, _ = first_updates(
        Precision(None, "gpu:0"), data_format="NHWC", is_static=is_static
    )
    assert_close(losses, norm, plain, 1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("level", ["O1", "O2"])
def test_the_scale_falls_on_a_gpu(plain, level):
    precision = Precision(AMPConfig(level=level, dtype="float16"), "gpu:0")
    losses, _, skipped = first_updates(precision)
    assert precision.state_dict()["scale"] == 65536.0 / 2**skipped
    assert losses[0] == pytest.approx(plain[0][0], rel=1e-3) and losses[-1] < 0.5 * losses[0]
