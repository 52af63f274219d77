"""The arithmetic of HarDNet: links, widths and the list of units, without importing Paddle.

Source: P. Chao et al., "HarDNet: A Low Memory Traffic Network", ICCV 2019 (arXiv 1909.00948),
section 3.1, and PingoLH/Pytorch-HarDNet (MIT) for the exact rounding and order of links.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Activation = Literal["relu", "relu6"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One HarDBlock, its 1x1 transition and what follows."""

    growth: int  # k in the paper
    layers: int  # a power of two: the last layer then reaches the block's input
    out_channels: int  # after the 1x1 transition
    downsample: bool  # halve the map after the transition
    dropout: float = 0.0  # between the block and its transition
    ceil_mode: bool = False  # round the halved map up; of pooling, not of strided convolution


@dataclass(frozen=True, kw_only=True)
class HarDNetSpec:
    """The numbers that make one network of the family."""

    stem: tuple[int, int]  # channels of the two stem convolutions
    depthwise: bool  # 1x1 + depthwise 3x3 layers, strided depthwise for pooling ("ds")
    multiplier: float  # m in the paper
    dropout: float  # before the classifier
    stages: tuple[Stage, ...]
    activation: Activation = "relu6"


def _stages(*rows: tuple[int, int, int, bool], last_dropout: float = 0.0) -> tuple[Stage, ...]:
    stages = [
        Stage(growth=growth, layers=layers, out_channels=out, downsample=downsample)
        for growth, layers, out, downsample in rows
    ]
    last = stages.pop()
    return *stages, Stage(**(vars(last) | {"dropout": last_dropout}))


_STAGES_68 = _stages(  # growth, layers, out_channels, downsample
    (14, 8, 128, True),
    (16, 16, 256, False),
    (20, 16, 320, True),
    (40, 16, 640, True),
    (160, 4, 1024, False),
)

VARIANTS: dict[str, HarDNetSpec] = {
    "HarDNet39_ds": HarDNetSpec(
        stem=(24, 48),
        depthwise=True,
        multiplier=1.6,
        dropout=0.05,
        stages=_stages(
            (16, 4, 96, True),
            (20, 16, 320, True),
            (64, 8, 640, True),
            (160, 4, 1024, False),
        ),
    ),
    "HarDNet68_ds": HarDNetSpec(
        stem=(32, 64), depthwise=True, multiplier=1.7, dropout=0.05, stages=_STAGES_68
    ),
    "HarDNet68": HarDNetSpec(
        stem=(32, 64), depthwise=False, multiplier=1.7, dropout=0.1, stages=_STAGES_68
    ),
    "HarDNet85": HarDNetSpec(
        stem=(48, 96),
        depthwise=False,
        multiplier=1.7,
        dropout=0.2,
        stages=_stages(
            (24, 8, 192, True),
            (24, 16, 256, False),
            (28, 16, 320, True),
            (36, 16, 480, False),
            (48, 16, 720, True),
            (256, 4, 1280, False),
            last_dropout=0.1,
        ),
    ),
}


@dataclass(frozen=True)
class LayerPlan:
    """One layer of a block. `links` are layer numbers, nearest first; 0 is the block's input."""

    links: tuple[int, ...]
    in_channels: int
    out_channels: int


@dataclass(frozen=True)
class BlockPlan:
    """A HarDBlock: its layers, and the numbers of the layers concatenated as its output."""

    layers: tuple[LayerPlan, ...]
    outputs: tuple[int, ...]
    out_channels: int


def layer_links(number: int) -> tuple[int, ...]:
    """Return the layers that layer `number` >= 1 reads: number - 2**p where 2**p divides it."""
    powers = [1 << p for p in range(number.bit_length()) if number % (1 << p) == 0]
    return tuple(number - power for power in powers)


def layer_width(growth: int, multiplier: float, links: int) -> int:
    """Return the output channels of a layer with so many links: k * m**(links - 1), made even.

    The product is taken one factor after the other and rounded half up to an even number, as the
    official code does; the order of operations decides some widths.
    """
    width = float(growth)
    for _ in range(links - 1):
        width *= multiplier
    return 2 * (int(width + 1) // 2)


def plan_block(in_channels: int, growth: int, multiplier: float, layers: int) -> BlockPlan:
    """Plan a HarDBlock (paper section 3.1).

    Its output is every odd layer and the last one, in ascending order; the block's input is not
    part of it.
    """
    widths = [in_channels]
    planned = []
    for number in range(1, layers + 1):
        links = layer_links(number)
        widths.append(layer_width(growth, multiplier, len(links)))
        inputs = sum(widths[link] for link in links)
        planned.append(LayerPlan(links, inputs, widths[number]))
    outputs = tuple(n for n in range(1, layers + 1) if n % 2 == 1 or n == layers)
    return BlockPlan(tuple(planned), outputs, sum(widths[n] for n in outputs))


@dataclass(frozen=True)
class ConvUnit:
    """Convolution without bias, batch norm, activation."""

    in_channels: int
    out_channels: int
    kernel: int
    stride: int = 1
    activation: Activation = "relu6"


@dataclass(frozen=True)
class DepthwiseUnit:
    """Depthwise 3x3 convolution without bias, batch norm, no activation."""

    channels: int
    stride: int = 1

    @property
    def out_channels(self) -> int:
        return self.channels


@dataclass(frozen=True)
class PoolUnit:
    """Max pooling, stride 2."""

    out_channels: int
    kernel: int
    padding: int
    stride: int = 2
    ceil_mode: bool = False


@dataclass(frozen=True)
class BlockUnit:
    """A HarDBlock; `depthwise` layers are pairs of a 1x1 convolution and a depthwise 3x3."""

    plan: BlockPlan
    depthwise: bool
    stride: int = 1
    activation: Activation = "relu6"

    @property
    def out_channels(self) -> int:
        return self.plan.out_channels


@dataclass(frozen=True)
class DropoutUnit:
    out_channels: int
    p: float
    stride: int = 1


Unit = ConvUnit | DepthwiseUnit | PoolUnit | BlockUnit | DropoutUnit


def plan_units(spec: HarDNetSpec, in_channels: int = 3) -> list[Unit]:
    """Return the units `base.0`, `base.1`, ... of the official network, without its head."""
    return list(_stem_units(spec, in_channels)) + list(_stage_units(spec))


def _downsampling(
    spec: HarDNetSpec, channels: int, kernel: int, padding: int, ceil_mode: bool = False
) -> Unit:
    if spec.depthwise:
        return DepthwiseUnit(channels, stride=2)
    return PoolUnit(channels, kernel, padding, ceil_mode=ceil_mode)


def _stem_units(spec: HarDNetSpec, in_channels: int) -> Iterator[Unit]:
    first, second = spec.stem
    kernel = 1 if spec.depthwise else 3
    yield ConvUnit(in_channels, first, kernel=3, stride=2, activation=spec.activation)
    yield ConvUnit(first, second, kernel=kernel, activation=spec.activation)
    yield _downsampling(spec, second, kernel=3, padding=1)


def _stage_units(spec: HarDNetSpec) -> Iterator[Unit]:
    channels = spec.stem[-1]
    for stage in spec.stages:
        block = plan_block(channels, stage.growth, spec.multiplier, stage.layers)
        yield BlockUnit(block, spec.depthwise, activation=spec.activation)
        if stage.dropout:
            yield DropoutUnit(block.out_channels, stage.dropout)
        channels = stage.out_channels
        yield ConvUnit(block.out_channels, channels, kernel=1, activation=spec.activation)
        if stage.downsample:
            yield _downsampling(spec, channels, 2, padding=0, ceil_mode=stage.ceil_mode)


@dataclass(frozen=True)
class FeatureInfo:
    """One map a dense task can use: the last one of its stride."""

    unit: int  # index in `base`
    channels: int
    stride: int


def feature_pyramid(units: list[Unit]) -> list[FeatureInfo]:
    """Return the last unit of each stride from 4 on (4, 8, 16, 32 for the four networks)."""
    features, stride = [], 1
    for index, unit in enumerate(units):
        if unit.stride > 1:
            if stride >= 4:
                features.append(FeatureInfo(index - 1, units[index - 1].out_channels, stride))
            stride *= unit.stride
    features.append(FeatureInfo(len(units) - 1, units[-1].out_channels, stride))
    return features


def output_size(units: list[Unit], size: int) -> int:
    """Return the side of the last map for an input side of `size` pixels; 0 if none is left."""
    for unit in units:
        if isinstance(unit, PoolUnit):
            room = size + 2 * unit.padding - unit.kernel
            size = (max(0, room) + unit.ceil_mode) // 2 + (room >= 0)
        else:
            size = -(-size // unit.stride)
    return size


def smallest_input(units: list[Unit]) -> int:
    """Return the smallest input side, in pixels, that leaves a last map of at least 1x1."""
    return next(size for size in range(1, 1 << 16) if output_size(units, size) >= 1)


def expected_shapes(spec: HarDNetSpec, class_num: int) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of every tensor of a `.pdparams` file, in the network's order.

    Linear weights are [in, out], Paddle's layout. With `class_num` 0 there is no classifier.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    units = plan_units(spec)
    for index, unit in enumerate(units):
        shapes |= unit_shapes(f"base.{index}", unit)
    if class_num:
        head = f"base.{len(units)}.3"
        shapes[f"{head}.weight"] = (units[-1].out_channels, class_num)
        shapes[f"{head}.bias"] = (class_num,)
    return shapes


def unit_shapes(prefix: str, unit: Unit) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of the tensors of one unit called `prefix`."""
    if isinstance(unit, ConvUnit):
        kernel = (unit.out_channels, unit.in_channels, unit.kernel, unit.kernel)
        return {f"{prefix}.conv.weight": kernel} | norm_shapes(f"{prefix}.norm", unit.out_channels)
    if isinstance(unit, DepthwiseUnit):
        kernel = (unit.channels, 1, 3, 3)
        return {f"{prefix}.dwconv.weight": kernel} | norm_shapes(f"{prefix}.norm", unit.channels)
    shapes: dict[str, tuple[int, ...]] = {}
    if isinstance(unit, BlockUnit):
        for index, layer in enumerate(unit.plan.layers):
            for name, part in block_layer_units(unit, layer):
                dotted = f".{name}" if name else ""
                shapes |= unit_shapes(f"{prefix}.layers.{index}{dotted}", part)
    return shapes


def block_layer_units(block: BlockUnit, layer: LayerPlan) -> list[tuple[str, Unit]]:
    """Return the units of one layer of a block with their names below `layers.N`."""
    kernel = 1 if block.depthwise else 3
    conv = ConvUnit(layer.in_channels, layer.out_channels, kernel, activation=block.activation)
    if not block.depthwise:
        return [("", conv)]
    return [("layer1", conv), ("layer2", DepthwiseUnit(layer.out_channels))]


def norm_shapes(prefix: str, channels: int) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of the tensors of a batch norm called `prefix`."""
    names = ("weight", "bias", "_mean", "_variance")
    return {f"{prefix}.{name}": (channels,) for name in names}
