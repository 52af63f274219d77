"""Mixed precision: what a CPU refuses or leaves out, and that nothing is added without it."""

import contextlib
import logging

import numpy as np
import paddle
import pytest
from paddle import nn

from ppcls.engine.config import AMPConfig
from ppcls.engine.precision import Precision
from ppcls.utils.errors import UserError


@pytest.mark.parametrize("level", ["O1", "O2"])
def test_a_cpu_has_no_float16(level):
    with pytest.raises(UserError, match=r"AMP\.dtype: expected .*CPU.*AMP\.use_amp=False"):
        Precision(AMPConfig(level=level, dtype="float16"), "cpu")


@pytest.mark.parametrize("level", ["O1", "O2"])
def test_a_cpu_says_that_it_leaves_out_bfloat16(level, caplog):
    caplog.set_level(logging.WARNING, "ppcls")
    precision = Precision(AMPConfig(level=level, dtype="bfloat16"), "cpu")
    assert "this run computes in float32" in caplog.text
    assert_nothing_is_added(precision)


@pytest.mark.parametrize(
    "config", [None, AMPConfig(use_amp=False), AMPConfig(level="O0")], ids=["none", "off", "O0"]
)
@pytest.mark.parametrize("device", ["cpu", "gpu:0"])
def test_without_mixed_precision_nothing_is_added(config, device, caplog):
    assert_nothing_is_added(Precision(config, device))
    assert caplog.text == ""


def assert_nothing_is_added(precision):
    assert isinstance(precision.autocast(), contextlib.nullcontext)
    assert precision.scaler is None
    assert precision.state_dict() == {}
    layer = nn.Linear(2, 1)
    optimizer = paddle.optimizer.SGD(0.5, parameters=layer.parameters())
    precision.prepare(layer, optimizer)
    before = layer.weight.numpy().copy()
    precision.backward(layer(paddle.ones([1, 2])).sum())
    precision.step(optimizer)
    np.testing.assert_allclose(layer.weight.numpy(), before - 0.5, rtol=1e-6)


@pytest.mark.parametrize(("dtype", "scales"), [("float16", True), ("bfloat16", False)])
def test_only_float16_scales_the_loss(dtype, scales):
    precision = Precision(AMPConfig(dtype=dtype, scale_loss=1024.0), "gpu:0")
    assert (precision.scaler is not None) == scales
    assert precision.state_dict().get("scale", 1024.0) == 1024.0
    precision.load_state_dict({})
    again = Precision(AMPConfig(dtype=dtype, scale_loss=2.0), "gpu:0")
    again.load_state_dict(precision.state_dict())
    assert again.state_dict() == precision.state_dict()


@pytest.mark.gpu
@pytest.mark.parametrize("level", ["O1", "O2"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_gpu_computes_in_the_low_precision(level, dtype):
    layer = nn.Linear(2, 2)
    optimizer = paddle.optimizer.Momentum(0.5, parameters=layer.parameters(), multi_precision=True)
    precision = Precision(AMPConfig(level=level, dtype=dtype), "gpu:0")
    precision.prepare(layer, optimizer)
    with precision.autocast():
        assert dtype in str(layer(paddle.ones([1, 2])).dtype)
    assert (dtype in str(layer.weight.dtype)) == (level == "O2")
    assert {str(t.dtype) for t in layer.state_dict().values()} == {"paddle.float32"}
    assert (precision.scaler is not None) == (dtype == "float16")
