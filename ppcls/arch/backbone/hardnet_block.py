"""The parts HarDNets are made of: convolution units and the Harmonic Dense Block.

Paper: P. Chao et al., "HarDNet: A Low Memory Traffic Network", ICCV 2019 (arXiv 1909.00948),
section 3.1. Official implementation: PingoLH/Pytorch-HarDNet (MIT), file `hardnet.py`. Attribute
names (`conv`, `norm`, `dwconv`, `layers`, `layer1`, `layer2`) are the keys of published files.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator

import paddle
from paddle import nn
from paddle.nn import functional as F

from ppcls.arch.backbone.hardnet_plan import (
    Activation,
    BlockUnit,
    ConvUnit,
    DepthwiseUnit,
    DropoutUnit,
    LayerPlan,
    PoolUnit,
    Unit,
    block_layer_units,
)

Run = Callable[[paddle.Tensor], paddle.Tensor]
_NORMS = (nn.BatchNorm2D, nn.SyncBatchNorm)
CHANNEL_AXIS = {"NCHW": 1, "NHWC": -1}
_ACTIVATIONS: dict[Activation, Callable[[paddle.Tensor], paddle.Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
}


class ConvBNAct(nn.Layer):
    """Convolution without bias, batch norm, activation (ReLU6 in the classifiers)."""

    def __init__(self, unit: ConvUnit, data_format: str = "NCHW") -> None:
        super().__init__()
        self.conv = nn.Conv2D(
            unit.in_channels,
            unit.out_channels,
            unit.kernel,
            stride=unit.stride,
            padding=unit.kernel // 2,
            weight_attr=nn.initializer.XavierNormal(),
            bias_attr=False,
            data_format=data_format,
        )
        self.norm = batch_norm(unit.out_channels, data_format)
        self.activate = _ACTIVATIONS[unit.activation]

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.activate(self.norm(self.conv(x)))


class DepthwiseConvBN(nn.Layer):
    """Depthwise 3x3 convolution without bias, batch norm, no activation."""

    def __init__(self, unit: DepthwiseUnit, data_format: str = "NCHW") -> None:
        super().__init__()
        self.dwconv = nn.Conv2D(
            unit.channels,
            unit.channels,
            kernel_size=3,
            stride=unit.stride,
            padding=1,
            groups=unit.channels,
            # fan_out counts every output channel, as in the official code: depthwise kernels
            # start far smaller than their own 9 inputs would ask for.
            weight_attr=nn.initializer.XavierNormal(fan_in=9, fan_out=9 * unit.channels),
            bias_attr=False,
            data_format=data_format,
        )
        self.norm = batch_norm(unit.channels, data_format)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.norm(self.dwconv(x))


def channels_last(x: paddle.Tensor) -> paddle.Tensor:
    """Transpose [N, C, H, W] to [N, H, W, C]."""
    return paddle.transpose(x, [0, 2, 3, 1])


def batch_norm(channels: int, data_format: str) -> nn.BatchNorm2D:
    """Batch norm as every HarDNet has it (momentum in Paddle's sense: kept of the old value)."""
    return nn.BatchNorm2D(channels, momentum=0.9, epsilon=1e-5, data_format=data_format)


class HarDBlock(nn.Layer):
    """A Harmonic Dense Block (paper section 3.1).

    Layer n reads layers n - 2**p for every 2**p dividing n; the output concatenates the odd layers
    and the last. With `recompute` the block keeps only its input for the backward pass (see
    `recomputed`); in a static graph that has no effect.
    """

    def __init__(self, unit: BlockUnit, data_format: str = "NCHW", recompute: bool = False) -> None:
        super().__init__()
        self.plan = unit.plan
        self.recompute = recompute
        self._axis = CHANNEL_AXIS[data_format]
        self.layers = nn.LayerList(
            [_block_layer(unit, layer, data_format) for layer in unit.plan.layers]
        )

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Map x [N, C, H, W] to [N, plan.out_channels, H, W] (channels last with NHWC)."""
        if self.recompute and self.training and paddle.in_dynamic_mode() and not x.stop_gradient:
            return recomputed([self], self._run, x)
        return self._run(x)

    def _run(self, x: paddle.Tensor) -> paddle.Tensor:
        outputs = [x]
        for index, layer in enumerate(self.layers):
            links = self.plan.layers[index].links
            outputs.append(layer(self._concat([outputs[link] for link in links])))
        return self._concat([outputs[number] for number in self.plan.outputs])

    def _concat(self, tensors: list[paddle.Tensor]) -> paddle.Tensor:
        return tensors[0] if len(tensors) == 1 else paddle.concat(tensors, axis=self._axis)


class DepthwiseSeparable(nn.Layer):
    """A block layer of the "ds" networks: pointwise with activation, then depthwise without."""

    def __init__(self, parts: list[tuple[str, Unit]], data_format: str = "NCHW") -> None:
        super().__init__()
        for name, unit in parts:
            self.add_sublayer(name, make_unit(unit, data_format))

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.layer2(self.layer1(x))


def _block_layer(block: BlockUnit, layer: LayerPlan, data_format: str) -> nn.Layer:
    parts = block_layer_units(block, layer)
    if block.depthwise:
        return DepthwiseSeparable(parts, data_format)
    ((_, unit),) = parts
    return make_unit(unit, data_format)


def recomputed(layers: Iterable[nn.Layer], run: Run, x: paddle.Tensor) -> paddle.Tensor:
    """Compute run(x), a function of `layers`, keeping only x for the backward pass.

    There it runs again: less memory, more time, the same gradients and running statistics.
    """
    from paddle.distributed.fleet.utils import recompute  # slow to import, rarely wanted

    layers = list(layers)
    calls = 0

    def counted(x: paddle.Tensor) -> paddle.Tensor:
        nonlocal calls
        calls += 1
        # Batch norm must see the batch once: a second pass would update its statistics again.
        with _frozen_statistics(layers) if calls > 1 else contextlib.nullcontext():
            return run(x)

    return recompute(counted, x, preserve_rng_state=False, use_reentrant=False)


@contextlib.contextmanager
def _frozen_statistics(layers: Iterable[nn.Layer]) -> Iterator[None]:
    parts = [part for layer in layers for part in layer.sublayers(include_self=True)]
    norms = [part for part in parts if isinstance(part, _NORMS)]
    momenta = [norm._momentum for norm in norms]
    for norm in norms:
        norm._momentum = 1.0  # keep all of the old value
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm._momentum = momentum


def make_unit(unit: Unit, data_format: str, recompute: bool = False) -> nn.Layer:
    """Build the layer a unit of the plan describes."""
    if isinstance(unit, ConvUnit):
        return ConvBNAct(unit, data_format)
    if isinstance(unit, DepthwiseUnit):
        return DepthwiseConvBN(unit, data_format)
    if isinstance(unit, BlockUnit):
        return HarDBlock(unit, data_format, recompute)
    if isinstance(unit, PoolUnit):
        return nn.MaxPool2D(
            unit.kernel,
            unit.stride,
            unit.padding,
            ceil_mode=unit.ceil_mode,
            data_format=data_format,
        )
    assert isinstance(unit, DropoutUnit), unit
    return nn.Dropout(unit.p)
