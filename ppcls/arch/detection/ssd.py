"""SSD-HarDNet, a single-shot detector, as a `paddle.nn.Layer`.

Official implementation: PingoLH/PytorchSSD-HarDNet (MIT). Papers: W. Liu et al., "SSD: Single Shot
MultiBox Detector", ECCV 2016; P. Chao et al., "HarDNet", ICCV 2019. The numbers are in
`ssd_plan.py`, the priors in `priors.py`; blocks and units are those of the classifiers.

State-dict keys are a file format: the official ones with Paddle's suffixes (`base.N...`,
`bridge.N...`, `extras.N.weight`, `L2Norm.weight`, `loc.N.weight`, `conf.N.weight`), in the official
order. The priors are no part of it.

Images are BGR, 0 to 255, with the mean (104, 117, 123) subtracted and not scaled: not what the
classifiers take.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import paddle
import paddle.nn.functional as F
from paddle import nn

from ppcls.arch.backbone.hardnet_block import (
    CHANNEL_AXIS,
    ConvBNAct,
    batch_norm,
    channels_last,
    make_unit,
)
from ppcls.arch.backbone.hardnet_plan import ConvUnit, plan_units
from ppcls.arch.detection.priors import PRIORS, PriorStyle, prior_boxes
from ppcls.arch.detection.ssd_plan import (
    DILATION,
    SIZES,
    SSD_VARIANTS,
    ConvPlan,
    SSDSpec,
    bridge_units,
    extra_layers,
    head_layers,
    source_channels,
    source_unit,
)
from ppcls.arch.registry import ARCHITECTURES
from ppcls.arch.weights import load_pretrained

__all__ = ["SSD", "SSD_HarDNet68", "SSD_HarDNet85"]


class SSD(nn.Layer):
    """An SSD detector on a HarDNet trunk.

    Args:
        spec: the numbers of the network, a row of `ssd_plan.SSD_VARIANTS` or your own.
        size: side of the square input, 300 or 512 pixels.
        class_num: classes including the background, which is class 0 (81 for COCO, 21 for VOC).
        priors: which sizes the prior boxes have, "coco" or "voc".
        data_format: layout the network computes in; images are [N, 3, size, size] in both.
        recompute: trade time for memory in training (see `HarDBlock`).

    New layers start as in the official code: extra layers and heads uniform within
    1 / sqrt(fan_in), biases 0, L2Norm 20, the bridge Kaiming normal (fan_out). The official bridge
    of HarDNet68 always comes from a file; without one it starts as HarDNet85's does.

    Raises ValueError, with the argument's name, for a value out of range.
    """

    def __init__(
        self,
        spec: SSDSpec,
        size: int = 512,
        class_num: int = 81,
        priors: PriorStyle = "coco",
        *,
        data_format: Literal["NCHW", "NHWC"] = "NCHW",
        recompute: bool = False,
    ) -> None:
        super().__init__()
        _check_arguments(size, class_num, priors, data_format)
        self.size, self.class_num = size, class_num
        self.data_format = data_format
        self.prior_config = PRIORS[priors, size]
        self.prior_array = prior_boxes(self.prior_config)
        units = plan_units(spec.trunk)
        self._source = source_unit(units)
        self.base = nn.LayerList([make_unit(unit, data_format, recompute) for unit in units])
        if spec.dilated:
            self.base.append(_dilated_bridge(*bridge_units(spec), data_format))
        else:
            self.bridge = _bridge(bridge_units(spec), data_format)
        self.extras = _convs(extra_layers(spec, size), data_format)
        self.L2Norm = L2Norm(source_channels(spec, size)[0], data_format)
        self.loc = _convs(head_layers(spec, self.prior_config, 4), data_format)
        self.conf = _convs(head_layers(spec, self.prior_config, class_num), data_format)
        self._has_bridge = not spec.dilated

    @property
    def priors(self) -> paddle.Tensor:
        """The priors [P, 4] float32 as (cx, cy, w, h), relative, on the current device.

        A new tensor at every call, and no buffer: casting the network to half precision must not
        reach it.
        """
        return paddle.to_tensor(self.prior_array)

    def forward_features(self, x: paddle.Tensor) -> list[paddle.Tensor]:
        """Map images [N, 3, size, size] to the maps the heads read, finest first, in the layout
        computed in.

        Raises ValueError for images of another shape.
        """
        self._check_input(x)
        if self.data_format == "NHWC":
            x = channels_last(x)
        sources = []
        for index, layer in enumerate(self.base):
            x = layer(x)
            if index == self._source:
                sources.append(self.L2Norm(x))
        if self._has_bridge:
            x = self.bridge(x)
        sources.append(x)
        for index, layer in enumerate(self.extras):
            x = F.relu(layer(x))
            if index % 2 == 1:
                sources.append(x)
        return sources

    def forward_head(self, sources: list[paddle.Tensor]) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Map the maps of `forward_features` to loc [N, P, 4] and conf [N, P, class_num]."""
        # Not with `zip`: to_static's own does not know `strict`.
        loc = [self._rows(self.loc[i](x), 4) for i, x in enumerate(sources)]
        conf = [self._rows(self.conf[i](x), self.class_num) for i, x in enumerate(sources)]
        return paddle.concat(loc, axis=1), paddle.concat(conf, axis=1)

    def forward(self, x: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Map images [N, 3, size, size] to raw offsets [N, P, 4] and scores [N, P, class_num].

        The same in training and evaluation: scores are before the softmax, and boxes are made by
        `PostProcess`.
        """
        return self.forward_head(self.forward_features(x))

    def _rows(self, x: paddle.Tensor, values: int) -> paddle.Tensor:
        """Turn a head's map [N, A * values, H, W] into rows [N, H * W * A, values]."""
        last = x if self.data_format == "NHWC" else channels_last(x)
        return last.flatten(1).reshape([0, -1, values])

    def _check_input(self, x: paddle.Tensor) -> None:
        # In a static graph the batch size may be unknown: the other sizes are compared.
        if len(x.shape) != 4 or list(x.shape[1:]) != [3, self.size, self.size]:
            raise ValueError(
                f"x: expected images [N, 3, {self.size}, {self.size}], got shape {list(x.shape)}"
            )


class L2Norm(nn.Layer):
    """Scale each position of a map to length 1 over its channels, times a weight per channel."""

    def __init__(self, channels: int, data_format: str = "NCHW") -> None:
        super().__init__()
        self._axis = CHANNEL_AXIS[data_format]
        start = nn.initializer.Constant(20.0)
        self.weight = self.create_parameter([channels], default_initializer=start)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Map x [N, C, H, W] (channels last with NHWC) to the same shape."""
        with paddle.amp.auto_cast(enable=False):
            wide = x if x.dtype == paddle.float64 else x.astype("float32")
            shape = [-1, 1, 1] if self._axis == 1 else [-1]
            weight = self.weight.astype(wide.dtype).reshape(shape)
            squares = paddle.sum(wide * wide, axis=self._axis, keepdim=True)
            # The epsilon comes after the root, as in the official code, where the gradient of a
            # position whose channels are all 0 is then NaN. The bound, far below it, prevents that.
            norm = paddle.sqrt(paddle.clip(squares, min=1e-30)) + 1e-10
            return (weight * (wide / norm)).astype(x.dtype)


def _convs(layers: list[ConvPlan], data_format: str) -> nn.LayerList:
    return nn.LayerList([_conv(layer, data_format) for layer in layers])


def _conv(layer: ConvPlan, data_format: str) -> nn.Conv2D:
    bound = 1 / math.sqrt(layer.in_channels * layer.kernel**2)
    return nn.Conv2D(
        layer.in_channels,
        layer.out_channels,
        layer.kernel,
        stride=layer.stride,
        padding=layer.padding,
        weight_attr=nn.initializer.Uniform(-bound, bound),
        bias_attr=nn.initializer.Constant(0.0),
        data_format=data_format,
    )


def _kaiming(unit: ConvUnit) -> nn.initializer.Initializer:
    """Kaiming normal, mode fan_out, gain of ReLU."""
    return nn.initializer.Normal(0.0, math.sqrt(2 / (unit.out_channels * unit.kernel**2)))


def _bridge_unit(unit: ConvUnit, data_format: str) -> ConvBNAct:
    layer = ConvBNAct(unit, data_format)
    _kaiming(unit)(layer.conv.weight)
    return layer


def _bridge(units: list[ConvUnit], data_format: str) -> nn.Sequential:
    pool = nn.MaxPool2D(3, 1, 1, data_format=data_format)
    return nn.Sequential(pool, *(_bridge_unit(unit, data_format) for unit in units))


def _dilated_bridge(first: ConvUnit, last: ConvUnit, data_format: str) -> nn.Sequential:
    """HarDNet68's bridge, whose five children are one by one in published files."""
    conv = nn.Conv2D(
        first.in_channels,
        first.out_channels,
        first.kernel,
        padding=DILATION,
        dilation=DILATION,
        weight_attr=_kaiming(first),
        bias_attr=False,
        data_format=data_format,
    )
    norm = batch_norm(first.out_channels, data_format)
    pool = nn.MaxPool2D(3, 1, 1, data_format=data_format)
    return nn.Sequential(pool, conv, norm, nn.ReLU(), _bridge_unit(last, data_format))


def _check_arguments(size: int, class_num: int, priors: str, data_format: str) -> None:
    if size not in SIZES:
        raise ValueError(f"size: expected {' or '.join(map(str, SIZES))}, got {size!r}")
    if class_num < 2:
        raise ValueError(
            f"class_num: expected 2 or more (the background, class 0, counts), got {class_num!r}"
        )
    if (priors, size) not in PRIORS:
        raise ValueError(f"priors: expected 'coco' or 'voc', got {priors!r}")
    if data_format not in CHANNEL_AXIS:
        raise ValueError(f"data_format: expected 'NCHW' or 'NHWC', got {data_format!r}")


def _entry_point(name: str) -> Callable[..., SSD]:
    """Make and register the builder of one variant; both take the same arguments."""
    spec = SSD_VARIANTS[name]

    def builder(
        class_num: int = 81,
        pretrained: bool | str = False,
        *,
        size: int = 512,
        priors: PriorStyle = "coco",
        data_format: Literal["NCHW", "NHWC"] = "NCHW",
        recompute: bool = False,
    ) -> SSD:
        options = {"data_format": data_format, "recompute": recompute}
        model = SSD(spec, size, class_num, priors, **options)
        if pretrained:
            load_pretrained(model, name, pretrained)
        return model

    builder.__name__ = builder.__qualname__ = name
    builder.__doc__ = f"""{name} (official `models/{name}.py`).

    `class_num` counts the background, class 0: 81 for COCO, 21 for VOC. `pretrained` takes False,
    or the path, address or published name of weights: of {spec.classifier}, of the trunk, or of a
    whole detector (`ppcls.arch.detection.weights.load_detector`). The other arguments are those of
    `SSD`, which it returns.
    """
    return ARCHITECTURES.register(name)(builder)


SSD_HarDNet68 = _entry_point("SSD_HarDNet68")
SSD_HarDNet85 = _entry_point("SSD_HarDNet85")
