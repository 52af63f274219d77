"""The numbers of SSD-HarDNet: trunk, bridge, extra layers and heads, without importing Paddle.

Source: PingoLH/PytorchSSD-HarDNet (MIT), files `models/SSD_HarDNet68.py` and `SSD_HarDNet85.py`.

The trunk is the classification HarDNet up to stride 16, with two differences: the activation is
ReLU instead of ReLU6, and the pooling to stride 8 rounds up (75 -> 38 at an input of 300).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ppcls.arch.backbone.hardnet_plan import (
    VARIANTS,
    ConvUnit,
    HarDNetSpec,
    Unit,
    norm_shapes,
    plan_units,
    unit_shapes,
)
from ppcls.arch.detection.priors import PRIORS, PriorConfig

SIZES = (300, 512)
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class SSDSpec:
    """The numbers that make one detector of the family, whatever its input size."""

    classifier: str  # the classification network whose weights fit the trunk
    trunk: HarDNetSpec  # without a last downsampling: its map feeds the bridge
    bridge: tuple[int, ...]  # output channels of the bridge's two convolutions
    # The first bridge convolution is a plain dilated one inside `base` (HarDNet68), or a unit of
    # a module `bridge` (HarDNet85).
    dilated: bool


def _trunk(classifier: str, stages: int) -> HarDNetSpec:
    """The first stages of a classifier as a detector's trunk."""
    spec = VARIANTS[classifier]
    first, *middle, last = spec.stages[:stages]
    kept = (replace(first, ceil_mode=True), *middle, replace(last, downsample=False))
    return replace(spec, stages=kept, activation="relu")


SSD_VARIANTS: dict[str, SSDSpec] = {
    "SSD_HarDNet68": SSDSpec(
        classifier="HarDNet68", trunk=_trunk("HarDNet68", 4), bridge=(640, 640), dilated=True
    ),
    "SSD_HarDNet85": SSDSpec(
        classifier="HarDNet85", trunk=_trunk("HarDNet85", 5), bridge=(960, 720), dilated=False
    ),
}

DILATION = 4  # of the dilated bridge


@dataclass(frozen=True)
class ConvPlan:
    """A plain convolution with bias."""

    in_channels: int
    out_channels: int
    kernel: int
    stride: int = 1
    padding: int = 0

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.out_channels, self.in_channels, self.kernel, self.kernel


def source_unit(units: list[Unit]) -> int:
    """Return the index of the trunk unit whose map is source 0: the last one of stride 8."""
    stride, strides = 1, []
    for unit in units:
        stride *= unit.stride
        strides.append(stride)
    return max(index for index, stride in enumerate(strides) if stride == 8)


def bridge_units(spec: SSDSpec) -> list[ConvUnit]:
    """Return the bridge's convolutions with batch norm, from the trunk's last map to source 1.

    The dilated bridge is the exception: its first one is dilated, and named differently.
    """
    channels = spec.trunk.stages[-1].out_channels
    middle, out = spec.bridge
    return [
        ConvUnit(channels, middle, kernel=3, activation="relu"),
        ConvUnit(middle, out, kernel=1, activation="relu"),
    ]


def extra_layers(spec: SSDSpec, size: int) -> list[ConvPlan]:
    """Return the layers `extras.0`, `extras.1`, ...: pairs of a 1x1 and a downsampling one."""
    layers = []
    channels = spec.bridge[-1]
    for narrow, wide, kernel, stride, padding in _EXTRAS[size]:
        layers += [
            ConvPlan(channels, narrow, kernel=1),
            ConvPlan(narrow, wide, kernel, stride, padding),
        ]
        channels = wide
    return layers


# Channels of the 1x1; then channels, kernel, stride, padding of the layer that follows.
_EXTRAS = {
    300: (
        (256, 512, 3, 2, 1),
        (128, 256, 3, 2, 1),
        (128, 256, 3, 1, 0),
        (128, 256, 3, 1, 0),
    ),
    512: (
        (256, 512, 3, 2, 1),
        (128, 256, 3, 2, 1),
        (128, 256, 3, 2, 1),
        (128, 256, 3, 2, 1),
        (128, 256, 4, 1, 1),
    ),
}


def source_channels(spec: SSDSpec, size: int) -> list[int]:
    """Return the channels of the maps the heads read."""
    units = plan_units(spec.trunk)
    extras = [layer.out_channels for layer in extra_layers(spec, size)[1::2]]
    return [units[source_unit(units)].out_channels, spec.bridge[-1], *extras]


def head_layers(spec: SSDSpec, priors: PriorConfig, values: int) -> list[ConvPlan]:
    """Return one 3x3 convolution per source, to `values` numbers for each prior of a cell."""
    channels = source_channels(spec, priors.size)
    return [
        ConvPlan(width, level.boxes_per_cell * values, kernel=3, padding=1)
        for width, level in zip(channels, priors.maps, strict=True)
    ]


def trunk_shapes(spec: SSDSpec) -> Shapes:
    """Return name -> shape of every tensor of `base`, the dilated bridge included."""
    shapes: Shapes = {}
    units = plan_units(spec.trunk)
    for index, unit in enumerate(units):
        shapes |= unit_shapes(f"base.{index}", unit)
    if spec.dilated:
        bridge, (first, last) = f"base.{len(units)}", bridge_units(spec)
        shapes[f"{bridge}.1.weight"] = (first.out_channels, first.in_channels, 3, 3)
        shapes |= norm_shapes(f"{bridge}.2", first.out_channels)
        shapes |= unit_shapes(f"{bridge}.4", last)
    return shapes


def detector_shapes(spec: SSDSpec, size: int, class_num: int) -> Shapes:
    """Return name -> shape of every tensor of a `.pdparams` file, in the network's order.

    `class_num` counts the background. The style of the priors does not matter.
    """
    shapes = trunk_shapes(spec)
    if not spec.dilated:
        for index, unit in enumerate(bridge_units(spec), start=1):
            shapes |= unit_shapes(f"bridge.{index}", unit)
    shapes |= _conv_shapes("extras", extra_layers(spec, size))
    shapes["L2Norm.weight"] = (source_channels(spec, size)[0],)
    priors = PRIORS["coco", size]
    shapes |= _conv_shapes("loc", head_layers(spec, priors, 4))
    return shapes | _conv_shapes("conf", head_layers(spec, priors, class_num))


def _conv_shapes(prefix: str, layers: list[ConvPlan]) -> Shapes:
    shapes: Shapes = {}
    for index, layer in enumerate(layers):
        shapes[f"{prefix}.{index}.weight"] = layer.shape
        shapes[f"{prefix}.{index}.bias"] = (layer.out_channels,)
    return shapes
