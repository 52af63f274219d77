"""The layer that is exported: normalisation if wanted, the network, softmax if wanted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from ppcls.data.transforms import NormalizeImage, ToCHWImage, build_transforms
from ppcls.utils.errors import ConfigError


class Normalization(nn.Layer):
    """Images [N, H, W, 3] uint8 to the network's input [N, 3, H, W] float32.

    `(x * scale - mean) / std` as one multiplication and one addition. It cannot be folded into the
    first convolution: that one pads with zeros after normalisation, which are no zeros before it.
    """

    def __init__(self, scale: float, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        wide = [np.asarray(values, np.float64).reshape(1, 3, 1, 1) for values in (mean, std)]
        factor, offset = scale / wide[1], -wide[0] / wide[1]
        self.register_buffer("factor", paddle.to_tensor(factor.astype(np.float32)))
        self.register_buffer("offset", paddle.to_tensor(offset.astype(np.float32)))

    def forward(self, image: paddle.Tensor) -> paddle.Tensor:
        # Cast first: Paddle 2.6 does not transpose uint8.
        x = paddle.transpose(image.astype("float32"), [0, 3, 1, 2])
        return x * self.factor + self.offset


class Classifier(nn.Layer):
    """A classifier as it is deployed: image to logits or, with `softmax`, probabilities.

    Without `normalization` it takes what `network` takes.
    """

    def __init__(
        self, network: nn.Layer, normalization: Normalization | None = None, softmax: bool = False
    ) -> None:
        super().__init__()
        self.normalization = normalization
        self.network = network
        self.softmax = softmax

    def forward(self, image: paddle.Tensor) -> paddle.Tensor:
        x = image if self.normalization is None else self.normalization(image)
        outputs = self.network(x)
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs  # some zoo networks
        return F.softmax(logits, axis=-1) if self.softmax else logits


def split_normalization(entries: list, where: str) -> tuple[list, Normalization]:
    """Split transforms for `Normalization`: those before it, which give HWC uint8, and itself.

    Raises ConfigError unless normalising is the last transform, but for ToCHWImage.
    """
    kept = list(entries)
    built = build_transforms(kept, where).transforms
    while built and isinstance(built[-1], ToCHWImage):
        built.pop(), kept.pop()
    last = built[-1] if built else None
    others = sum(isinstance(op, NormalizeImage) for op in built[:-1])
    if not isinstance(last, NormalizeImage) or others or last.channel_axis != 2:
        raise ConfigError(
            f"{where}: expected NormalizeImage of an HWC image (order: '') as the last transform, "
            "so that it can be baked in, found none there"
        )
    if last.channel_num != 3 or last.dtype != np.float32:
        raise ConfigError(
            f"{where}: expected NormalizeImage with 3 channels in float32 to bake in, "
            f"got channel_num {last.channel_num}, output_fp16 {last.dtype == np.float16}"
        )
    return kept[:-1], Normalization(float(last.scale), last.mean.ravel(), last.std.ravel())


def with_chw(entries: list, where: str) -> list:
    """Return `entries` ending in ToCHWImage, which data sets do by themselves."""
    is_chw = any(isinstance(op, ToCHWImage) for op in build_transforms(entries, where).transforms)
    last: list[Any] = [] if is_chw else [{"ToCHWImage": None}]
    return [*entries, *last]
