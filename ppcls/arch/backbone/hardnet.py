"""HarDNet, the Harmonic DenseNet, as a `paddle.nn.Layer`.

Paper: P. Chao et al., "HarDNet: A Low Memory Traffic Network", ICCV 2019 (arXiv 1909.00948).
Official implementation: PingoLH/Pytorch-HarDNet (MIT), file `hardnet.py`. The arithmetic of links
and widths is in `hardnet_plan.py`, the block in `hardnet_block.py`.

State-dict keys are a file format: they are the official ones with Paddle's suffixes
(`base.4.conv.weight`, `base.4.norm._mean`), the same as in PaddleClas, so that released files load.
That is why the network is one flat list called `base`; `stem`, `stages` and `head` name its parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import paddle
from paddle import nn

from ppcls.arch.backbone.hardnet_block import (
    CHANNEL_AXIS,
    HarDBlock,
    channels_last,
    make_unit,
    recomputed,
)
from ppcls.arch.backbone.hardnet_plan import (
    VARIANTS,
    BlockUnit,
    FeatureInfo,
    HarDNetSpec,
    feature_pyramid,
    plan_block,
    plan_units,
    smallest_input,
)
from ppcls.arch.registry import ARCHITECTURES
from ppcls.arch.weights import load_pretrained

__all__ = [
    "HarDBlock",
    "HarDNet",
    "HarDNet39_ds",
    "HarDNet68",
    "HarDNet68_ds",
    "HarDNet85",
    "plan_block",
]


class HarDNet(nn.Layer):
    """A HarDNet classifier or feature extractor.

    Args:
        spec: the numbers of the network, a row of `hardnet_plan.VARIANTS` or your own.
        class_num: classes; 0 builds no classifier and returns pooled features.
        in_channels: channels of the input image.
        dropout: drop rate before the classifier; None takes the spec's.
        data_format: layout the network computes in. With "NHWC" the input may still be
            [N, C, H, W], as PaddleClas feeds every network, or [N, H, W, C].
        recompute: trade time for memory in training: stem and blocks keep only their input.
        features_only: return the feature maps of `out_indices` instead of classifying.
        out_indices: which of the strides 4, 8, 16, 32, by position 0 to 3; None takes all.

    `feature_info` lists module, num_chs and reduction of each map (timm's words); `feat_channels`
    and `feat_strides` hold the same as plain lists (PaddleSeg's). `num_features` is the width of
    the last map.

    Raises ValueError, with the argument's name, for a value out of range.
    """

    def __init__(
        self,
        spec: HarDNetSpec,
        class_num: int = 1000,
        *,
        in_channels: int = 3,
        dropout: float | None = None,
        data_format: Literal["NCHW", "NHWC"] = "NCHW",
        recompute: bool = False,
        features_only: bool = False,
        out_indices: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        units = plan_units(spec, in_channels)
        self.dropout = spec.dropout if dropout is None else dropout
        _check_arguments(class_num, in_channels, self.dropout, data_format)
        self.data_format = data_format
        self.in_channels = in_channels
        self.features_only = features_only
        self.recompute = recompute
        self.num_features = units[-1].out_channels
        self.smallest_input = smallest_input(units)
        self._pyramid = _select(feature_pyramid(units), out_indices)
        self._stem_length = next(i for i, u in enumerate(units) if isinstance(u, BlockUnit))
        self._body_length = len(units)
        self.base = nn.LayerList([make_unit(unit, data_format, recompute) for unit in units])
        if not features_only:
            self.base.append(self._make_head(class_num))

    @property
    def stem(self) -> list[nn.Layer]:
        """The two stem convolutions and their downsampling."""
        return list(self.base)[: self._stem_length]

    @property
    def stages(self) -> list[nn.Layer]:
        """Blocks, transitions and downsampling, in order."""
        return list(self.base)[self._stem_length : self._body_length]

    @property
    def head(self) -> nn.Layer:
        """Pooling, flatten, dropout and classifier. A feature extractor has none: IndexError."""
        return list(self.base)[self._body_length]

    @property
    def feature_info(self) -> list[dict[str, int | str]]:
        return [
            {"module": f"base.{f.unit}", "num_chs": f.channels, "reduction": f.stride}
            for f in self._pyramid
        ]

    @property
    def feat_channels(self) -> list[int]:
        return [feature.channels for feature in self._pyramid]

    @property
    def feat_strides(self) -> list[int]:
        return [feature.stride for feature in self._pyramid]

    def reset_classifier(self, class_num: int) -> None:
        """Put a new head for `class_num` classes in place (0: pooled features)."""
        if self.features_only:
            raise ValueError("class_num: a network built with features_only has no classifier")
        _check_arguments(class_num, self.in_channels, self.dropout, self.data_format)
        head = self._make_head(class_num)
        self.base[self._body_length] = head
        if not self.training:
            head.eval()

    def _make_head(self, class_num: int) -> nn.Sequential:
        pool = nn.AdaptiveAvgPool2D(1, data_format=self.data_format)
        if class_num == 0:
            return nn.Sequential(pool, nn.Flatten())
        return nn.Sequential(
            pool, nn.Flatten(), nn.Dropout(self.dropout), _linear(self.num_features, class_num)
        )

    def forward_features(self, x: paddle.Tensor) -> paddle.Tensor:
        """Map images [N, C, H, W] to the last map [N, num_features, H/32, W/32], rounded up or
        down as each unit does. With NHWC the map is [N, H/32, W/32, num_features].

        Raises ValueError for an image with other channels or one that is too small.
        """
        x = self._run_stem(self._prepare(x))
        for layer in self.stages:
            x = layer(x)
        return x

    def _run_stem(self, x: paddle.Tensor) -> paddle.Tensor:
        """The largest maps of all: with `recompute` they are not kept either."""

        def run(x: paddle.Tensor) -> paddle.Tensor:
            for layer in self.stem:
                x = layer(x)
            return x

        if self.recompute and self.training and paddle.in_dynamic_mode():
            return recomputed(self.stem, run, x)
        return run(x)

    def forward_head(self, x: paddle.Tensor) -> paddle.Tensor:
        """Map the last map to logits [N, class_num], or pooled features [N, num_features]."""
        return self.base[self._body_length](x)

    def forward_intermediates(self, x: paddle.Tensor) -> list[paddle.Tensor]:
        """Map images [N, C, H, W] to the maps `feature_info` lists, in the layout computed in."""
        wanted = [feature.unit for feature in self._pyramid]
        x = self._run_stem(self._prepare(x))
        maps = []  # none is of the stem, whose next unit is a block of the same stride
        layers = self.base[self._stem_length : wanted[-1] + 1]
        for index, layer in enumerate(layers, self._stem_length):
            x = layer(x)
            if index in wanted:
                maps.append(x)
        return maps

    def forward(self, x: paddle.Tensor) -> paddle.Tensor | list[paddle.Tensor]:
        """Map images [N, C, H, W], normalised, to logits [N, class_num] (raw, before softmax)."""
        if self.features_only:
            return self.forward_intermediates(x)
        return self.forward_head(self.forward_features(x))

    def _prepare(self, x: paddle.Tensor) -> paddle.Tensor:
        """Check the input, and bring it to the layout computed in."""
        shape = x.shape
        if len(shape) != 4:
            raise ValueError(f"x: expected 4 dimensions (a batch of images), got {list(shape)}")
        # In a static graph an unknown size is a tensor: only what is known is compared.
        is_last = self.data_format == "NHWC" and not _is(shape[1], self.in_channels)
        if paddle.in_dynamic_mode():
            self._check_input(shape, is_last)
        if self.data_format == "NHWC" and not is_last:
            return channels_last(x)
        return x

    def _check_input(self, shape: list[int], is_last: bool) -> None:
        channels = shape[-1] if is_last else shape[1]
        if channels != self.in_channels:
            raise ValueError(f"x: expected {self.in_channels} channels, got shape {list(shape)}")
        if min(shape[1:3] if is_last else shape[2:4]) < self.smallest_input:
            raise ValueError(
                f"x: expected images of at least {self.smallest_input} pixels a side, "
                f"got shape {list(shape)}"
            )


def _is(size: object, number: int) -> bool:
    return isinstance(size, int) and size == number


def _check_arguments(class_num: int, in_channels: int, dropout: float, data_format: str) -> None:
    if class_num < 0:
        raise ValueError(f"class_num: expected 0 or more, got {class_num}")
    if in_channels < 1:
        raise ValueError(f"in_channels: expected 1 or more, got {in_channels}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout: expected a number in [0, 1), got {dropout}")
    if data_format not in CHANNEL_AXIS:
        raise ValueError(f"data_format: expected 'NCHW' or 'NHWC', got {data_format!r}")


def _select(pyramid: list[FeatureInfo], indices: Sequence[int] | None) -> list[FeatureInfo]:
    if indices is None:
        return pyramid
    known = range(len(pyramid))
    if not indices or [i for i in known if i in indices] != list(indices):
        raise ValueError(
            f"out_indices: expected ascending positions from 0 to {len(pyramid) - 1}, "
            f"got {list(indices)}"
        )
    return [pyramid[index] for index in indices]


def _linear(in_features: int, out_features: int) -> nn.Linear:
    bound = 1 / math.sqrt(in_features)
    return nn.Linear(
        in_features,
        out_features,
        weight_attr=paddle.ParamAttr(initializer=nn.initializer.Uniform(-bound, bound)),
        bias_attr=paddle.ParamAttr(initializer=nn.initializer.Constant(0.0)),
    )


def _entry_point(name: str) -> Callable[..., HarDNet]:
    """Make and register the builder of one variant; all four take the same arguments."""
    spec = VARIANTS[name]

    def builder(
        class_num: int = 1000,
        pretrained: bool | str = False,
        *,
        in_channels: int = 3,
        dropout: float | None = None,
        data_format: Literal["NCHW", "NHWC"] = "NCHW",
        recompute: bool = False,
        features_only: bool = False,
        out_indices: tuple[int, ...] | None = None,
    ) -> HarDNet:
        model = HarDNet(
            spec,
            class_num,
            in_channels=in_channels,
            dropout=dropout,
            data_format=data_format,
            recompute=recompute,
            features_only=features_only,
            out_indices=out_indices,
        )
        if pretrained:
            load_pretrained(model, name, pretrained)
        return model

    builder.__name__ = builder.__qualname__ = name
    builder.__doc__ = f"""{name} (paper table 2; official `hardnet.py`).

    `pretrained` takes False, True (the published ImageNet weights), or a path, an address or a
    published name of weights (`ppcls.arch.weights.find_weights`). With another `class_num` than
    theirs the classifier starts anew. The other arguments are those of `HarDNet`, which it returns.
    """
    return ARCHITECTURES.register(name)(builder)


HarDNet39_ds = _entry_point("HarDNet39_ds")
HarDNet68_ds = _entry_point("HarDNet68_ds")
HarDNet68 = _entry_point("HarDNet68")
HarDNet85 = _entry_point("HarDNet85")
