"""Normalisation of whole batches of pixels: after loading, and at the start of an exported network.

`NormalizeImage` does the same to one image. What is split off a list of transforms here leaves
pixels behind, a quarter of the bytes to hand over.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import paddle
from paddle import nn
from paddle.utils import dlpack

from ppcls.data.transforms import NormalizeImage, ToCHWImage, Transform

_ALIGNMENT = 64  # bytes


class Normalization(nn.Layer):
    """Images [N, H, W, 3] uint8 to the network's input [N, 3, H, W] float32.

    As a layer: `(x * scale - mean) / std` as one multiplication and one addition, which may differ
    from NormalizeImage in the last bit. It cannot be folded into the first convolution: that one
    pads with zeros after normalisation, which are no zeros before it.

    On the host (`on_host`): by tables of NormalizeImage's own results, so bit for bit the same.
    """

    def __init__(self, scale: float, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        wide = [np.asarray(values, np.float64).reshape(1, 3, 1, 1) for values in (mean, std)]
        factor, offset = scale / wide[1], -wide[0] / wide[1]
        self.register_buffer("factor", paddle.to_tensor(factor.astype(np.float32)))
        self.register_buffer("offset", paddle.to_tensor(offset.astype(np.float32)))
        transform = NormalizeImage(scale, list(mean), list(std), order="hwc")
        every = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 256, 3)
        values = transform(every, np.random.default_rng(0))
        self._tables = [np.ascontiguousarray(values[:, :, channel]) for channel in range(3)]

    @classmethod
    def of(cls, transform: NormalizeImage) -> Normalization:
        """The same for batches. `transform` gives 3 channels in float32, see `split_tail`."""
        return cls(float(transform.scale), transform.mean.ravel(), transform.std.ravel())

    def forward(self, image: paddle.Tensor) -> paddle.Tensor:
        # Cast first: Paddle 2.6 does not transpose uint8.
        x = paddle.transpose(image.astype("float32"), [0, 3, 1, 2])
        return x * self.factor + self.offset

    @paddle.no_grad()
    def normalize(self, images: paddle.Tensor) -> paddle.Tensor:
        """Normalise a batch where it is: on a CPU by tables, the fastest way, else as a layer."""
        if not images.place.is_cpu_place():
            return self(images)
        # Without copies, which would take longer than the work itself.
        result = self.on_host(np.from_dlpack(_Lent(images)))
        return dlpack.from_dlpack(result.__dlpack__())

    def on_host(self, images: np.ndarray) -> np.ndarray:
        """Normalise a batch in NumPy."""
        count, height, width, channels = images.shape
        result = _aligned_empty((count, channels, height, width))
        for image, planes in zip(images, result, strict=True):
            for plane, table, target in zip(cv2.split(image), self._tables, planes, strict=True):
                cv2.LUT(plane, table, dst=target)
        return result


class _Lent:
    """A tensor on the host as NumPy takes it, also those of Paddle 2.6."""

    def __init__(self, tensor: paddle.Tensor) -> None:
        self._tensor = tensor

    def __dlpack__(self, **_: Any) -> Any:
        return dlpack.to_dlpack(self._tensor)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0  # the host


def _aligned_empty(shape: tuple[int, ...]) -> np.ndarray:
    """Return a float32 array that starts where Paddle's own tensors do, at 64 bytes."""
    spare = _ALIGNMENT // 4
    memory = np.empty(math.prod(shape) + spare, np.float32)
    first = -(memory.ctypes.data // 4) % spare
    return memory[first : first + math.prod(shape)].reshape(shape)


def split_tail(transforms: Sequence[Transform]) -> tuple[list[Transform], NormalizeImage]:
    """Split a list into what gives HWC pixels, and the normalisation after it.

    Raises ValueError unless NormalizeImage itself is the last transform, but for ToCHWImage.
    """
    kept = list(transforms)
    while kept and type(kept[-1]) is ToCHWImage:
        kept.pop()
    last = kept.pop() if kept else None
    others = sum(isinstance(op, NormalizeImage) for op in kept)
    # The exact type: a subclass may normalise in another way.
    if type(last) is not NormalizeImage or others or last.channel_axis != 2:
        raise ValueError(
            "expected NormalizeImage of an HWC image (order: '') as the last transform, found none"
        )
    if last.channel_num != 3 or last.dtype != np.float32:
        raise ValueError(
            "expected NormalizeImage with 3 channels in float32, "
            f"got channel_num {last.channel_num}, output_fp16 {last.dtype == np.float16}"
        )
    return kept, last
