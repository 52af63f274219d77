"""Folding batch norms computes the same, and folds only what the graph proves."""

from __future__ import annotations

import contextlib
import logging

import numpy as np
import paddle
import pytest
from paddle import nn
from paddle.static import InputSpec
from tiny_nets import randomize, spec, tiny_hardnet

from ppcls.arch import create_model
from ppcls.arch.backbone.hardnet import HarDNet
from ppcls.deploy.fuse import fuse

NORMS = (nn.BatchNorm2D, nn.BatchNorm)


@contextlib.contextmanager
def float64():
    paddle.set_default_dtype("float64")
    try:
        yield
    finally:
        paddle.set_default_dtype("float32")


def in_float64(build):
    with float64():
        paddle.seed(0)
        return randomize(build().to(dtype="float64"))


def count(network, kind=NORMS):
    return sum(isinstance(layer, kind) for layer in network.sublayers())


def compare(network, size=16, channels=3):
    """Fuse, and return the copy and the largest relative difference of outputs, in float64."""
    rng = np.random.default_rng(2)
    x = paddle.to_tensor(rng.normal(size=(2, channels, size, size)))
    with float64(), paddle.no_grad():
        fused = fuse(network, [InputSpec([None, channels, size, size], "float64", "image")])
        wanted, found = network(x), fused(x)
    pairs = zip(*([w] if isinstance(w, paddle.Tensor) else w for w in (wanted, found)), strict=True)
    worst = max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)
    return fused, worst


@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("data_format", ["NCHW", "NHWC"])
def test_a_hardnet_without_batch_norm_computes_the_same(depthwise, data_format):
    network = in_float64(lambda: HarDNet(spec(depthwise), 4, data_format=data_format))
    fused, difference = compare(network)
    assert difference < 1e-13
    assert count(network) > 6 and count(fused) == 0
    assert count(network, nn.Dropout) == 2 and count(fused, nn.Dropout) == 0


def test_the_original_does_not_change():
    network = tiny_hardnet()
    network.train()
    before = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    fused = fuse(network, [InputSpec([None, 3, 16, 16], "float32", "image")])
    after = network.state_dict()
    assert list(after) == list(before) and network.training and not fused.training
    assert all(layer.training for layer in network.sublayers())
    for name, value in before.items():
        np.testing.assert_array_equal(after[name].numpy(), value)
    assert all(tensor.dtype == paddle.float32 for tensor in fused.state_dict().values())


class Branches(nn.Layer):
    """Pairs that can be folded, and others that must stay."""

    def __init__(self):
        super().__init__()

        def conv(bias=None):
            return nn.Conv2D(3, 3, 3, padding=1, bias_attr=bias)

        self.with_bias, self.norm1 = conv(), nn.BatchNorm2D(3)
        self.read_twice, self.norm2 = conv(False), nn.BatchNorm2D(3)
        self.shared, self.norm3, self.norm4 = conv(False), nn.BatchNorm2D(3), nn.BatchNorm2D(3)
        self.acting, self.norm5 = conv(False), nn.BatchNorm(3, act="relu")
        self.batch, self.norm6 = conv(False), nn.BatchNorm2D(3, use_global_stats=False)
        self.plain, self.norm7 = conv(False), nn.BatchNorm(3)
        self.returned, self.norm8 = conv(False), nn.BatchNorm2D(3)
        self.dropout = nn.Dropout(0.5)
        self.old_dropout = nn.Dropout(0.5, mode="downscale_in_infer")

    def forward(self, x):
        x = self.dropout(self.norm1(self.with_bias(x)))
        y = self.read_twice(x)
        x = self.norm2(y) + y
        x = self.norm3(self.shared(x)) + self.norm4(self.shared(x))
        x = self.norm5(self.acting(x))
        x = self.norm6(self.batch(x))
        x = self.old_dropout(self.norm7(self.plain(x)))
        y = self.returned(x)
        return self.norm8(y), y


def test_only_proven_pairs_are_folded(caplog):
    network = in_float64(Branches)
    with caplog.at_level(logging.INFO, "ppcls"):
        fused, difference = compare(network)
    assert difference < 1e-13
    gone = [name for name, layer in fused.named_sublayers() if isinstance(layer, nn.Identity)]
    assert sorted(gone) == ["dropout", "norm1", "norm7"]
    assert "folded 2 of 6 batch norms" in caplog.text  # the two others are more than batch norms


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SSD_HarDNet68", "SSD_HarDNet85"])
def test_a_detector(name):
    network = in_float64(lambda: create_model(name, size=300, class_num=3))
    fused, difference = compare(network, 300)
    assert difference < 1e-12 and count(fused) == 0


@pytest.mark.slow
@pytest.mark.zoo
@pytest.mark.parametrize("name, left", [("ResNet50", 0), ("MobileNetV2", 0), ("DenseNet121", 121)])
def test_networks_of_the_zoo(name, left):
    pytest.importorskip("paddleclas")
    network = in_float64(lambda: create_model(name))
    fused, difference = compare(network, 64)
    assert difference < 1e-10 and count(fused) == left
