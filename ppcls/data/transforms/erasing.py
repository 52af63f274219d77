"""Random erasing.

Sources: Z. Zhong et al., "Random Erasing Data Augmentation", AAAI 2020; PaddleClas's RandomErasing,
whose names, defaults and draws these are.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from ppcls.data.transforms.base import TRANSFORMS, as_array


@TRANSFORMS.register()
class RandomErasing:
    """Overwrite a random rectangle with probability `EPSILON`. HWC in and out, same type.

    Before NormalizeImage the image is uint8 and random values are any from 0 to 255, as in the
    paper; after it they are of a standard normal distribution, as in PaddleClas and timm.

    Args:
        EPSILON: probability.
        sl: smallest area, as a share of the image's.
        sh: largest area, likewise.
        r1: smallest height / width; the largest is 1 / r1.
        mean: values per channel of mode const, in the units the image has here.
        attempt: draws of a rectangle; when none is smaller than the image both ways, nothing is
            erased.
        use_log_aspect: draw the logarithm of height / width uniformly, not the quotient itself.
        mode: const; rand, a random colour; or pixel, a random colour per pixel.
    """

    def __init__(
        self,
        EPSILON: float = 0.5,
        sl: float = 0.02,
        sh: float = 0.4,
        r1: float = 0.3,
        mean: list[float] | tuple[float, ...] = (0.0, 0.0, 0.0),
        attempt: int = 100,
        use_log_aspect: bool = False,
        mode: Literal["const", "rand", "pixel"] = "const",
    ) -> None:
        if not 0 <= EPSILON <= 1:
            raise ValueError(f"EPSILON: expected a number from 0 to 1, got {EPSILON!r}")
        if not 0 < sl <= sh <= 1:
            raise ValueError(f"sl: expected 0 < sl <= sh <= 1, got sl {sl!r} and sh {sh!r}")
        if not 0 < r1 <= 1:
            raise ValueError(f"r1: expected a number above 0 and at most 1, got {r1!r}")
        if len(mean) != 3:
            raise ValueError(f"mean: expected 3 numbers, got {list(mean)!r}")
        if attempt < 1:
            raise ValueError(f"attempt: expected a number >= 1, got {attempt!r}")
        self.prob = EPSILON
        self.area = (sl, sh)
        self.aspect = (math.log(r1), -math.log(r1)) if use_log_aspect else (r1, 1 / r1)
        self.is_log = use_log_aspect
        self.mean = mean
        self.attempts = attempt
        self.mode = mode

    def __call__(self, image: Any, rng: np.random.Generator) -> np.ndarray:
        array = as_array(image)
        if array.shape[2] != 3:
            raise ValueError(
                f"expected an HxWx3 image to erase from, got {list(array.shape)}; put "
                "RandomErasing before ToCHWImage"
            )
        if rng.random() >= self.prob:
            return array
        box = self.draw_box(array.shape[0], array.shape[1], rng)
        if box is None:
            return array
        top, left, height, width = box
        erased = array.copy()
        values = self._values(height, width, array.dtype, rng)
        erased[top : top + height, left : left + width] = values
        return erased

    def draw_box(
        self, height: int, width: int, rng: np.random.Generator
    ) -> tuple[int, int, int, int] | None:
        """Draw (top, left, height, width) for an image of this height and width, if one fits."""
        for _ in range(self.attempts):
            area = rng.uniform(*self.area) * height * width
            aspect = rng.uniform(*self.aspect)
            aspect = math.exp(aspect) if self.is_log else aspect
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if h < height and w < width:
                top = int(rng.integers(0, height - h + 1))
                return top, int(rng.integers(0, width - w + 1)), h, w
        return None

    def _values(
        self, height: int, width: int, dtype: np.dtype, rng: np.random.Generator
    ) -> np.ndarray:
        if self.mode == "const":
            return np.asarray(self.mean).astype(dtype)
        shape = (1, 1, 3) if self.mode == "rand" else (height, width, 3)
        if dtype == np.uint8:
            return rng.integers(0, 256, shape, dtype=np.uint8)
        return rng.standard_normal(shape).astype(dtype)
