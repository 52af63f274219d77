"""Random colours for detection. Boxes pass unchanged; see `boxes` for what a transform is."""

from __future__ import annotations

from typing import Any, Literal

import cv2
import numpy as np

from ppcls.data.transforms.base import as_array
from ppcls.data.transforms.boxes import BOX_TRANSFORMS, Boxed


class Amount:
    """PaddleDetection's [low, high, probability] of one kind of change."""

    def __init__(self, value: list[float] | None, default: tuple, name: str) -> None:
        numbers = list(default) if value is None else value
        if len(numbers) != 3 or numbers[0] > numbers[1] or not 0 <= numbers[2] <= 1:
            raise ValueError(f"{name}: expected [low, high, probability], got {value!r}")
        self.low, self.high, self.probability = numbers

    def draw(self, rng: np.random.Generator) -> float | None:
        """An amount, or None for no change."""
        return rng.uniform(self.low, self.high) if rng.random() < self.probability else None

    def draw_integer(self, rng: np.random.Generator) -> int | None:
        """A whole amount, both ends included, or None for no change."""
        if rng.random() >= self.probability:
            return None
        return int(rng.integers(int(self.low), int(self.high) + 1))


@BOX_TRANSFORMS.register()
class RandomDistort:
    """Change brightness, contrast, hue and saturation, in this order, each by chance.

    HWC uint8 in and out. After each change values are clamped to 0..255 and cut to whole numbers.
    Hue is OpenCV's, 0..179.

    Args:
        brightness: [low, high, probability] of what is added to every value (PaddleDetection
            multiplies instead; the official code adds).
        contrast: likewise, of the factor of every value.
        hue: likewise, of what is added to the hue, a whole number in steps of 2 degrees.
        saturation: likewise, of the factor of the saturation.
        order: the channels' order.
    """

    def __init__(
        self,
        hue: list[float] | None = None,
        saturation: list[float] | None = None,
        contrast: list[float] | None = None,
        brightness: list[float] | None = None,
        order: Literal["bgr", "rgb"] = "bgr",
    ) -> None:
        self.brightness = Amount(brightness, (-32, 32, 0.5), "brightness")
        self.contrast = Amount(contrast, (0.5, 1.5, 0.5), "contrast")
        self.hue = Amount(hue, (-18, 18, 0.5), "hue")
        self.saturation = Amount(saturation, (0.5, 1.5, 0.5), "saturation")
        for name in ("contrast", "saturation"):
            if getattr(self, name).low < 0:
                raise ValueError(f"{name}: expected a factor >= 0, got {getattr(self, name).low}")
        self.to_hsv, self.from_hsv = (
            (cv2.COLOR_BGR2HSV, cv2.COLOR_HSV2BGR)
            if order == "bgr"
            else (cv2.COLOR_RGB2HSV, cv2.COLOR_HSV2RGB)
        )

    def __call__(
        self, image: Any, boxes: np.ndarray, labels: np.ndarray, rng: np.random.Generator
    ) -> Boxed:
        array = as_array(image)
        brightness, contrast = self.brightness.draw(rng), self.contrast.draw(rng)
        if brightness is not None:
            array = change_linearly(array, 1.0, brightness)
        if contrast is not None:
            array = change_linearly(array, contrast, 0.0)
        if self.hue.probability or self.saturation.probability:
            array = self._change_colour(array, rng)
        return Boxed(array, boxes, labels)

    def _change_colour(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        # Converted even when nothing is drawn, as officially; it moves values by a few levels.
        hsv = cv2.cvtColor(np.ascontiguousarray(image), self.to_hsv)
        hue, saturation = self.hue.draw_integer(rng), self.saturation.draw(rng)
        if hue is not None:
            hsv[:, :, 0] = (hsv[:, :, 0].astype(np.int16) + hue) % 180
        if saturation is not None:
            hsv[:, :, 1] = change_linearly(hsv[:, :, 1], saturation, 0.0)
        return cv2.cvtColor(hsv, self.from_hsv)


def change_linearly(values: np.ndarray, factor: float, addend: float) -> np.ndarray:
    """`values * factor + addend` of uint8, clamped to 0..255 and cut to whole numbers."""
    changed = values.astype(np.float32) * np.float32(factor) + np.float32(addend)
    return np.clip(changed, 0.0, 255.0).astype(np.uint8)
