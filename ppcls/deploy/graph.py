"""The layer that is exported: normalisation if wanted, the network, softmax if wanted."""

from __future__ import annotations

from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import nn

from ppcls.data.normalization import Normalization, split_tail
from ppcls.data.transforms import ToCHWImage, build_transforms
from ppcls.utils.errors import ConfigError


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
    try:
        kept, last = split_tail(build_transforms(entries, where).transforms)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}, so that it can be baked in") from error
    return entries[: len(kept)], Normalization.of(last)


def with_chw(entries: list, where: str) -> list:
    """Return `entries` ending in ToCHWImage, which data sets do by themselves."""
    is_chw = any(isinstance(op, ToCHWImage) for op in build_transforms(entries, where).transforms)
    last: list[Any] = [] if is_chw else [{"ToCHWImage": None}]
    return [*entries, *last]
