"""Small networks with statistics as after training, and plans to export them."""

from __future__ import annotations

import numpy as np
import paddle
from paddle import nn
from paddle.static import InputSpec

from ppcls.arch.backbone.hardnet import HarDNet
from ppcls.arch.backbone.hardnet_plan import HarDNetSpec, Stage
from ppcls.deploy.export import Plan
from ppcls.deploy.fuse import fuse
from ppcls.deploy.graph import Classifier
from ppcls.deploy.package import InputSpec as ManifestInput
from ppcls.deploy.package import Manifest
from ppcls.deploy.verify import Check

CLASSES = 4


def spec(depthwise: bool) -> HarDNetSpec:
    return HarDNetSpec(
        stem=(4, 6),
        depthwise=depthwise,
        multiplier=1.6,
        dropout=0.1,
        stages=(Stage(growth=2, layers=4, out_channels=8, downsample=True, dropout=0.2),),
    )


def randomize(network: nn.Layer, seed: int = 0) -> nn.Layer:
    """Give every batch norm statistics and factors that matter."""
    rng = np.random.default_rng(seed)
    for layer in network.sublayers():
        if isinstance(layer, (nn.BatchNorm2D, nn.BatchNorm)):
            for tensor, low in ((layer._mean, -0.5), (layer._variance, 0.5), (layer.weight, 0.5)):
                values = rng.uniform(low, low + 1, tensor.shape)
                tensor.set_value(values.astype(tensor.numpy().dtype))
    network.eval()
    return network


def tiny_hardnet(depthwise: bool = True, **options) -> HarDNet:
    paddle.seed(1)
    return randomize(HarDNet(spec(depthwise), CLASSES, **options))


def images(count: int, size: int = 16, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3, size, size)).astype("float32")


def tiny_plan(network: nn.Layer | None = None, **changes) -> Plan:
    """A plan for 16x16 images, any number at once."""
    network = network or tiny_hardnet()
    spec = [InputSpec([None, 3, 16, 16], "float32", "image")]
    checks = []
    for count in (1, 3):
        batch = images(count)
        with paddle.no_grad():
            checks.append(Check([batch], [network(paddle.to_tensor(batch)).numpy()]))
    manifest = Manifest(
        task="classification",
        arch="tiny",
        class_num=CLASSES,
        input=ManifestInput(shape=[None, 3, 16, 16]),
        output="logits",
        transform_ops=[{"ToCHWImage": None}],
        class_names=list("abcd"),
    )
    values = {"layer": Classifier(fuse(network, spec)), "inputs": spec}
    values |= {"manifest": manifest, "checks": checks}
    return Plan(**(values | changes))
