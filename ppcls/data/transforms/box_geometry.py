"""Cropping, expanding, mirroring and resizing with boxes; see `boxes` for what a transform is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ppcls.data.transforms.base import as_array
from ppcls.data.transforms.boxes import BOX_TRANSFORMS, Boxed
from ppcls.data.transforms.geometry import Resizer

_RANDOM_FILTERS = ("bilinear", "bicubic", "area", "nearest", "lanczos")


def overlap_with(region: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """IoU of one region [4] with boxes [m, 4], corners: [m]."""
    corner, opposite = np.maximum(region[:2], boxes[:, :2]), np.minimum(region[2:], boxes[:, 2:])
    common = np.clip(opposite - corner, 0.0, None).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return common / ((region[2:] - region[:2]).prod() + areas - common)


def draw_ratio(scale: float, limits: tuple[float, float], rng: np.random.Generator) -> float:
    """Square root of a random quotient of width and height within `limits`.

    `scale` times it, and `scale` divided by it, stay on the side of 1 that `scale` is on: a crop
    does not become larger than the image, nor a canvas smaller.
    """
    bound = min(scale, 1.0 / scale) ** 2
    return math.sqrt(rng.uniform(max(limits[0], bound), min(limits[1], 1.0 / bound)))


def read_range(value: list[float] | None, default: tuple[float, float], name: str) -> tuple:
    low, high = default if value is None or len(value) != 2 else value
    if (value is not None and len(value) != 2) or not 0 < low <= high:
        raise ValueError(f"{name}: expected two numbers, 0 < low <= high, got {value!r}")
    return low, high


def read_probability(value: float, name: str = "prob") -> float:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name}: expected a number from 0 to 1, got {value!r}")
    return value


@BOX_TRANSFORMS.register()
class RandomCrop:
    """Cut a random region that overlaps every box enough; boxes centred outside it are dropped.

    A threshold, or "no crop", is drawn with equal chances. Then up to `num_attempts` regions are
    drawn until the IoU of the region with every box reaches the threshold and at least one box has
    its centre strictly inside; after as many failures the threshold is drawn anew. Boxes that stay
    are cut to the region. An image without boxes passes unchanged.

    Args:
        thresholds: least IoU of region and box; 0 is no constraint.
        scaling: range of the region's size, as a share of the image's.
        aspect_ratio: range of (width / height of the region) / (width / height of the image).
        allow_no_crop: whether "no crop" is one of the draws.
    """

    def __init__(
        self,
        aspect_ratio: list[float] | None = None,
        thresholds: list[float] | None = None,
        scaling: list[float] | None = None,
        num_attempts: int = 50,
        allow_no_crop: bool = True,
    ) -> None:
        thresholds = [0.0, 0.1, 0.3, 0.5, 0.7, 0.9] if thresholds is None else thresholds
        if not thresholds or not all(0 <= threshold < 1 for threshold in thresholds):
            raise ValueError(f"thresholds: expected numbers from 0 to below 1, got {thresholds!r}")
        if num_attempts < 1:
            raise ValueError(f"num_attempts: expected a number >= 1, got {num_attempts!r}")
        self.aspect_ratio = read_range(aspect_ratio, (0.5, 2.0), "aspect_ratio")
        if not self.aspect_ratio[0] <= 1 <= self.aspect_ratio[1]:
            raise ValueError(f"aspect_ratio: expected a range around 1, got {aspect_ratio!r}")
        self.scaling = read_range(scaling, (0.3, 1.0), "scaling")
        if self.scaling[1] > 1:
            raise ValueError(f"scaling: expected numbers up to 1, got {scaling!r}")
        self.modes = ([None] if allow_no_crop else []) + thresholds
        self.num_attempts = num_attempts

    def __call__(
        self, image: Any, boxes: np.ndarray, labels: np.ndarray, rng: np.random.Generator
    ) -> Boxed:
        image = as_array(image)
        if not len(boxes):
            return Boxed(image, boxes, labels)
        for _ in range(_MOST_DRAWS):
            mode = self.modes[rng.integers(len(self.modes))]
            if mode is None:
                return Boxed(image, boxes, labels)
            for _ in range(self.num_attempts):
                region = self.draw_region(*image.shape[:2], rng)
                if overlap_with(region, boxes).min() >= mode:
                    inside = centres_inside(region, boxes)
                    if inside.any():
                        return cut(image, boxes[inside], labels[inside], region)
        return Boxed(image, boxes, labels)

    def draw_region(self, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
        """A region within the image: [4] corners, whole pixels."""
        scale = rng.uniform(*self.scaling)
        ratio = draw_ratio(scale, self.aspect_ratio, rng)
        w = max(1, min(width, int(scale * ratio * width)))
        h = max(1, min(height, int(scale / ratio * height)))
        left, top = rng.integers(max(width - w, 1)), rng.integers(max(height - h, 1))
        return np.array([left, top, left + w, top + h])


# Rounds of thresholds before an image stays whole. The official code has no such limit, and with
# "no crop" among the draws none is needed: it is reached once in 1e67 images.
_MOST_DRAWS = 1000


def centres_inside(region: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Which boxes [m, 4] have their centre strictly inside `region` [4]: [m] bool."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    return ((region[:2] < centres) & (centres < region[2:])).all(axis=1)


def cut(image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, region: np.ndarray) -> Boxed:
    """The part of the image at `region` [4], and the boxes within it."""
    left, top, right, bottom = region.tolist()
    low, high = np.tile(region[:2], 2), np.tile(region[2:], 2)
    boxes = (np.clip(boxes, low, high) - low).astype(np.float32)
    return Boxed(image[top:bottom, left:right], boxes, labels)


@BOX_TRANSFORMS.register()
class RandomExpand:
    """Put the image at a random place of a larger canvas.

    Args:
        ratio: most the canvas is larger, in width and height together as `ratio` squared.
        prob: probability of changing the image at all.
        fill_value: colour of the canvas in the image's channel order; the official mean in BGR.
        aspect_ratio: range of (width / height of the canvas) / (width / height of the image).
    """

    def __init__(
        self,
        ratio: float = 4.0,
        prob: float = 0.6,
        fill_value: list[float] | None = None,
        aspect_ratio: list[float] | None = None,
    ) -> None:
        fill_value = [104, 117, 123] if fill_value is None else fill_value
        if ratio < 1:
            raise ValueError(f"ratio: expected a number >= 1, got {ratio!r}")
        if len(fill_value) != 3 or not all(0 <= value <= 255 for value in fill_value):
            raise ValueError(f"fill_value: expected 3 numbers from 0 to 255, got {fill_value!r}")
        self.aspect_ratio = read_range(aspect_ratio, (0.5, 2.0), "aspect_ratio")
        if not self.aspect_ratio[0] <= 1 <= self.aspect_ratio[1]:
            raise ValueError(f"aspect_ratio: expected a range around 1, got {aspect_ratio!r}")
        self.ratio = ratio
        self.prob = read_probability(prob)
        self.fill_value = np.array(fill_value).astype(np.uint8)

    def __call__(
        self, image: Any, boxes: np.ndarray, labels: np.ndarray, rng: np.random.Generator
    ) -> Boxed:
        image = as_array(image)
        if rng.random() >= self.prob:
            return Boxed(image, boxes, labels)
        height, width = image.shape[:2]
        scale = rng.uniform(1.0, self.ratio)
        ratio = draw_ratio(scale, self.aspect_ratio, rng)
        w, h = max(width, int(scale * ratio * width)), max(height, int(scale / ratio * height))
        left, top = int(rng.integers(w - width + 1)), int(rng.integers(h - height + 1))
        canvas = np.empty((h, w, image.shape[2]), dtype=image.dtype)
        canvas[:] = self.fill_value
        canvas[top : top + height, left : left + width] = image
        shift = np.array([left, top, left, top], dtype=np.float32)
        return Boxed(canvas, boxes + shift, labels)


@BOX_TRANSFORMS.register()
class RandomFlip:
    """Mirror left-right with probability `prob`: x1' = width - x2, x2' = width - x1."""

    def __init__(self, prob: float = 0.5) -> None:
        self.prob = read_probability(prob)

    def __call__(
        self, image: Any, boxes: np.ndarray, labels: np.ndarray, rng: np.random.Generator
    ) -> Boxed:
        image = as_array(image)
        if rng.random() >= self.prob:
            return Boxed(image, boxes, labels)
        mirrored = boxes.copy()
        mirrored[:, [0, 2]] = image.shape[1] - boxes[:, [2, 0]]
        return Boxed(image[:, ::-1], mirrored, labels)


@BOX_TRANSFORMS.register()
class Resize:
    """Resize to `target_size`, whatever the proportions, with OpenCV.

    Args:
        target_size: pixels, one number or [height, width] as PaddleDetection has it.
        interp: a filter name, OpenCV's number for it, or "random": bilinear, bicubic, area,
            nearest or lanczos, drawn per image.
    """

    def __init__(self, target_size: int | list[int], interp: str | int = "bilinear") -> None:
        sides = [target_size] * 2 if isinstance(target_size, int) else list(target_size)
        if len(sides) != 2 or min(sides) < 1:
            raise ValueError(
                f"target_size: expected a number >= 1 or [height, width], got {target_size!r}"
            )
        self.height, self.width = sides
        try:
            self.resize = Resizer(interp, "cv2", _RANDOM_FILTERS)
        except ValueError as error:
            raise ValueError(str(error).replace("interpolation:", "interp:", 1)) from error

    def __call__(
        self, image: Any, boxes: np.ndarray, labels: np.ndarray, rng: np.random.Generator
    ) -> Boxed:
        height, width = as_array(image).shape[:2]
        factors = np.array([self.width / width, self.height / height] * 2, dtype=np.float32)
        return Boxed(self.resize(image, (self.width, self.height), rng), boxes * factors, labels)
