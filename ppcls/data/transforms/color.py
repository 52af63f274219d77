"""Pixel values: normalising, layout, colour jitter."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from PIL import Image, ImageEnhance

from ppcls.data.transforms.base import TRANSFORMS, as_array, as_pil

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


@TRANSFORMS.register()
class NormalizeImage:
    """`(image * scale - mean) / std` in float32.

    Args:
        scale: factor of the stored values, 1/255 when absent (`1.0/255.0` may be written).
        mean: per channel, after scaling; ImageNet's when absent.
        std: per channel, after scaling; ImageNet's when absent.
        order: layout of the image this transform gets: "chw", or "hwc" (also "") as DecodeImage
            gives it.
        output_fp16: round to half precision. The dataset still hands out float32.
        channel_num: 4 adds a channel of zeros.
    """

    def __init__(
        self,
        scale: float | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        order: Literal["chw", "hwc", ""] = "chw",
        output_fp16: bool = False,
        channel_num: Literal[3, 4] = 3,
    ) -> None:
        mean = list(_IMAGENET_MEAN) if mean is None else mean
        std = list(_IMAGENET_STD) if std is None else std
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != 3:
                raise ValueError(f"{name}: expected 3 numbers, got {values!r}")
        if 0 in std:
            raise ValueError(f"std: expected numbers other than 0, got {std!r}")
        self.channel_axis = 0 if order == "chw" else 2
        shape = (3, 1, 1) if order == "chw" else (1, 1, 3)
        self.scale = np.float32(1.0 / 255.0 if scale is None else scale)
        self.mean = np.array(mean, dtype=np.float32).reshape(shape)
        self.std = np.array(std, dtype=np.float32).reshape(shape)
        self.dtype = np.float16 if output_fp16 else np.float32
        self.channel_num = channel_num

    def __call__(self, image: Any, rng: np.random.Generator) -> np.ndarray:
        array = as_array(image)
        if array.shape[self.channel_axis] != 3:
            layout = "3xHxW" if self.channel_axis == 0 else "HxWx3"
            raise ValueError(
                f"expected a {layout} image to normalise, got {list(array.shape)}; see 'order'"
            )
        array = (array.astype(np.float32) * self.scale - self.mean) / self.std
        if self.channel_num == 4:
            margins = [(0, 0)] * 3
            margins[self.channel_axis] = (0, 1)
            array = np.pad(array, margins)
        return array.astype(self.dtype, copy=False)


@TRANSFORMS.register()
class ToCHWImage:
    """HWC -> CHW, same type. A dataset does this itself for a list without ToCHWImage."""

    def __call__(self, image: Any, rng: np.random.Generator) -> np.ndarray:
        return as_array(image).transpose(2, 0, 1)


@TRANSFORMS.register()
class ColorJitter:
    """Change brightness, contrast, saturation and hue by random amounts, in a random order.

    Parameters as in `paddle.vision.transforms.ColorJitter`, amounts as its PIL backend applies
    them; HWC uint8 RGB in and out.

    Args:
        brightness: factor drawn from [max(0, 1 - brightness), 1 + brightness].
        contrast: factor drawn likewise.
        saturation: factor drawn likewise.
        hue: shift drawn from [-hue, hue], in turns of the colour circle; at most 0.5.
        p: probability of changing the image at all.
        prob: PaddleClas's name of `p`.
    """

    def __init__(
        self,
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        hue: float = 0.0,
        p: float = 1.0,
        prob: float | None = None,
    ) -> None:
        factors = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
        for name, value in factors.items():
            if value < 0:
                raise ValueError(f"{name}: expected a number >= 0, got {value!r}")
        if not 0 <= hue <= 0.5:
            raise ValueError(f"hue: expected a number from 0 to 0.5, got {hue!r}")
        for name, value in {"p": p, "prob": 1.0 if prob is None else prob}.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name}: expected a number from 0 to 1, got {value!r}")
        if prob is not None and p != 1.0:
            raise ValueError(f"prob: expected either this or 'p', got {prob!r} and {p!r}")
        self.p = p if prob is None else prob
        limits = {name: (max(0.0, 1.0 - v), 1.0 + v) for name, v in factors.items() if v}
        self.limits = limits | ({"hue": (-hue, hue)} if hue else {})

    def __call__(self, image: Any, rng: np.random.Generator) -> np.ndarray:
        if rng.random() >= self.p:
            return as_array(image)
        picture = as_pil(image)
        names = list(self.limits)
        for position in rng.permutation(len(names)):
            amount = rng.uniform(*self.limits[names[position]])
            picture = _ADJUST[names[position]](picture, amount)
        return np.asarray(picture)


def shift_hue(image: Image.Image, turns: float) -> Image.Image:
    """Turn the hue of an RGB image by `turns` of the colour circle, in steps of 1/256."""
    hue, saturation, value = image.convert("HSV").split()
    shifted = (np.asarray(hue).astype(np.int16) + int(turns * 255)) % 256
    hue = Image.fromarray(shifted.astype(np.uint8))
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


_ADJUST = {
    "brightness": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    "contrast": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "saturation": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    "hue": shift_hue,
}
