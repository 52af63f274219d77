"""Resizing, cropping and flipping. Sizes are pixels; a list size is [width, height].

`style` chooses whose arithmetic is followed to the pixel: "paddleclas" (the default) rounds and
draws as PaddleClas does, "torchvision" as torchvision's Resize, CenterCrop and RandomResizedCrop.
Published PyTorch accuracies need style torchvision with backend pil, whose bilinear filter is
antialiased.
"""

from __future__ import annotations

import copy
import math
from typing import Any, Literal

import cv2
import numpy as np
from PIL import Image

from ppcls.data.transforms.base import TRANSFORMS, Backend, as_array, as_pil, width_height

_CV2_FILTERS = {
    "nearest": cv2.INTER_NEAREST,
    "bilinear": cv2.INTER_LINEAR,
    "area": cv2.INTER_AREA,
    "bicubic": cv2.INTER_CUBIC,
    "lanczos": cv2.INTER_LANCZOS4,
}
_PIL_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "lanczos": Image.Resampling.LANCZOS,
    "hamming": Image.Resampling.HAMMING,
}
_RANDOM_FILTERS = ("bilinear", "bicubic")
_DRAW_TRIES = 10  # torchvision's RandomResizedCrop

Style = Literal["paddleclas", "torchvision"]


class Resizer:
    """Resize to (width, height) with a chosen library and filter.

    `interpolation` is a filter name, "random" (one of `random_filters`, drawn per image), the
    library's own number for a filter, or None (or -1, as release/2.0 writes it) for bilinear.
    """

    def __init__(
        self,
        interpolation: str | int | None,
        backend: Backend,
        random_filters: tuple[str, ...] = _RANDOM_FILTERS,
    ) -> None:
        backend = backend.lower()
        known = _PIL_FILTERS if backend == "pil" else _CV2_FILTERS
        if interpolation is None or interpolation == -1:
            interpolation = "bilinear"
        if isinstance(interpolation, str):
            name = interpolation.lower()
            if name not in known and name != "random":
                raise ValueError(
                    f"interpolation: expected one of {', '.join(sorted(known))}, random "
                    f"(backend {backend}), got {interpolation!r}"
                )
            names = random_filters if name == "random" else (name,)
            self.filters = [int(known[name]) for name in names]
        elif interpolation in {int(value) for value in known.values()}:
            self.filters = [interpolation]
        else:
            raise ValueError(
                f"interpolation: expected a filter number of {backend}, got {interpolation!r}"
            )
        self.backend = backend

    def __call__(self, image: Any, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        which = int(rng.integers(len(self.filters))) if len(self.filters) > 1 else 0
        if self.backend == "pil":
            return np.asarray(as_pil(image).resize(size, Image.Resampling(self.filters[which])))
        return cv2.resize(_dense_rows(as_array(image)), size, interpolation=self.filters[which])


def _dense_rows(array: np.ndarray) -> np.ndarray:
    """Return an HWC array as OpenCV takes it: a part of a larger one as it is, others copied."""
    row, pixel, value = array.strides
    is_dense = (pixel, value) == (array.shape[2] * array.itemsize, array.itemsize) and row > 0
    return array if is_dense else np.ascontiguousarray(array)


@TRANSFORMS.register()
class ResizeImage:
    """Resize so that the shorter side is `resize_short`, or to `size` whatever the proportions.

    Args:
        size: used when `resize_short` is absent.
        resize_short: pixels of the shorter side. The longer side keeps the proportions: rounded
            (style paddleclas) or cut (style torchvision) to a whole pixel.
        return_numpy: false gives a PIL image with backend pil; the next transform takes either.

    Raises ValueError for an image that would have more than `PIL.Image.MAX_IMAGE_PIXELS`.
    """

    def __init__(
        self,
        size: int | list[int] | None = None,
        resize_short: int | None = None,
        interpolation: str | int | None = None,
        backend: Backend = "cv2",
        return_numpy: bool = True,
        style: Style = "paddleclas",
    ) -> None:
        self.short = resize_short if resize_short is not None and resize_short > 0 else None
        if self.short is None and size is None:
            raise ValueError("resize_short: expected this or 'size', got neither")
        self.size = width_height(size) if size is not None else None
        self.resize = Resizer(interpolation, backend)
        self.as_pil = self.resize.backend == "pil" and not return_numpy
        self.style = style

    def __call__(self, image: Any, rng: np.random.Generator) -> np.ndarray | Image.Image:
        height, width = as_array(image).shape[:2]
        target = self.target(width, height)
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and target[0] * target[1] > limit:
            side = (
                "resized" if self.short is None else f"the shorter side is scaled to {self.short}"
            )
            raise ValueError(
                f"expected at most {limit} pixels once {side}, "
                f"got {target[0]}x{target[1]} of an image of {width}x{height}"
            )
        resized = self.resize(image, target, rng)
        return as_pil(resized) if self.as_pil else resized

    def target(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of the result for an image of this width and height."""
        if self.short is None:
            return self.size
        if self.style == "paddleclas":
            scale = float(self.short) / min(width, height)
            return round(width * scale), round(height * scale)
        if width <= height:
            return self.short, int(self.short * height / width)
        return int(self.short * width / height), self.short


@TRANSFORMS.register()
class CropImage:
    """Cut the middle out.

    An odd margin is split with the smaller half first (style paddleclas) or rounded half to even
    (style torchvision). An image smaller than `size` is a ValueError (style paddleclas) or first
    padded with black (style torchvision).
    """

    def __init__(self, size: int | list[int], style: Style = "paddleclas") -> None:
        self.size = width_height(size)
        self.style = style

    def __call__(self, image: Any, rng: np.random.Generator) -> np.ndarray:
        array = as_array(image)
        width, height = self.size
        if array.shape[0] < height or array.shape[1] < width:
            if self.style == "paddleclas":
                raise ValueError(
                    f"expected an image of at least {width}x{height} to crop, "
                    f"got {array.shape[1]}x{array.shape[0]}"
                )
            array = self._pad(array)
        spare_y, spare_x = array.shape[0] - height, array.shape[1] - width
        if self.style == "paddleclas":
            top, left = spare_y // 2, spare_x // 2
        else:
            top, left = round(spare_y / 2.0), round(spare_x / 2.0)
        return array[top : top + height, left : left + width]

    def _pad(self, array: np.ndarray) -> np.ndarray:
        missing_y = max(self.size[1] - array.shape[0], 0)
        missing_x = max(self.size[0] - array.shape[1], 0)
        margins = (
            (missing_y // 2, (missing_y + 1) // 2),
            (missing_x // 2, (missing_x + 1) // 2),
            (0, 0),
        )
        return np.pad(array, margins)


@TRANSFORMS.register()
class RandCropImage:
    """Cut a random region of random area and proportions and resize it to `size`.

    Args:
        scale: smallest and largest area of the region, as shares of the image's area.
        ratio: smallest and largest width / height of the region.
        style: "paddleclas" draws the ratio uniformly and shrinks an area that does not fit;
            "torchvision" draws its logarithm uniformly, tries ten times for a region that fits,
            and falls back to the largest allowed one in the middle.
    """

    def __init__(
        self,
        size: int | list[int],
        scale: list[float] | None = None,
        ratio: list[float] | None = None,
        interpolation: str | int | None = None,
        backend: Backend = "cv2",
        style: Style = "paddleclas",
    ) -> None:
        self.size = width_height(size)
        self.scale = _positive_range(scale, (0.08, 1.0), "scale")
        self.ratio = _positive_range(ratio, (3.0 / 4.0, 4.0 / 3.0), "ratio")
        self.resize = Resizer(interpolation, backend)
        self.draw = draw_paddleclas if style == "paddleclas" else draw_torchvision

    def __call__(self, image: Any, rng: np.random.Generator) -> np.ndarray:
        array = as_array(image)
        height, width = array.shape[:2]
        left, top, w, h = self.draw(width, height, self.scale, self.ratio, rng)
        return self.resize(array[top : top + h, left : left + w], self.size, rng)

    def with_size(self, size: int) -> RandCropImage:
        """Return the same transform, giving squares of this side."""
        other = copy.copy(self)
        other.size = width_height(size)
        return other


def _positive_range(
    value: list[float] | None, default: tuple[float, float], name: str
) -> tuple[float, float]:
    if value is None:
        return default
    if len(value) != 2 or not 0 < value[0] <= value[1]:
        raise ValueError(f"{name}: expected [low, high] with 0 < low <= high, got {value!r}")
    return value[0], value[1]


def draw_paddleclas(
    width: int,
    height: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[int, int, int, int]:
    """Draw (left, top, width, height) of a region as PaddleClas's RandCropImage does."""
    root = math.sqrt(rng.uniform(*ratio))
    bound = min((width / height) / root**2, (height / width) * root**2)
    low, high = min(scale[0], bound), min(scale[1], bound)
    side = math.sqrt(width * height * rng.uniform(low, high))
    # At least one pixel (PaddleClas fails on tiny images), at most all (sqrt may round up).
    w = min(max(int(side * root), 1), width)
    h = min(max(int(side / root), 1), height)
    left = int(rng.integers(0, width - w + 1))
    top = int(rng.integers(0, height - h + 1))
    return left, top, w, h


def draw_torchvision(
    width: int,
    height: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[int, int, int, int]:
    """Draw (left, top, width, height) of a region as torchvision's RandomResizedCrop does."""
    log_ratio = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(_DRAW_TRIES):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(*log_ratio))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(rng.integers(0, height - h + 1))
            left = int(rng.integers(0, width - w + 1))
            return left, top, w, h
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (width - w) // 2, (height - h) // 2, w, h


@TRANSFORMS.register()
class RandFlipImage:
    """Flip with probability `prob`: `flip_code` 1 left-right, 0 upside down, -1 both."""

    def __init__(self, flip_code: int = 1, prob: float = 0.5) -> None:
        if flip_code not in (-1, 0, 1):
            raise ValueError(f"flip_code: expected -1, 0 or 1, got {flip_code!r}")
        if not 0.0 <= prob <= 1.0:
            raise ValueError(f"prob: expected a number from 0 to 1, got {prob!r}")
        self.prob = prob
        self.flip_code = flip_code
        self.flips_rows = flip_code != 1
        self.flips_columns = flip_code != 0

    def __call__(self, image: Any, rng: np.random.Generator) -> np.ndarray:
        array = as_array(image)
        if rng.random() >= self.prob:
            return array
        if array.dtype == np.uint8 and array.shape[2] == 3:  # a reversed view is slow to read
            return cv2.flip(array, self.flip_code)
        if self.flips_rows:
            array = array[::-1]
        return array[:, ::-1] if self.flips_columns else array
