"""Progressive resizing: small images first, larger ones later, as a function of the epoch alone.

Tan and Le, "EfficientNetV2" (arXiv 2104.00298), section 4.2; steps along a line as in FFCV. Only
the size changes here: not the strength of augmentation, nor dropout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ppcls.data.transforms import Compose, CropImage, RandCropImage, ResizeImage
from ppcls.utils.errors import ConfigError
from ppcls.utils.schema import at_least

SMALLEST = 32  # pixels: a HarDNet divides a side by 32


@dataclass(frozen=True, kw_only=True)
class ProgressiveConfig:
    """The section `progressive` of `DataLoader.Train`: sides of square images, in pixels.

    Epochs count from 0: up to `begin_epoch` images have `start`, from `end_epoch` on `end`, and
    between the two a line, rounded to whole steps.
    """

    start: int
    end: int
    end_epoch: int
    begin_epoch: int = 0
    step: int = 32

    def __post_init__(self) -> None:
        at_least(SMALLEST, start=self.start)
        at_least(0, begin_epoch=self.begin_epoch)
        at_least(1, step=self.step)
        if self.end < self.start:
            raise ValueError(f"end: expected a size >= {self.start} (start), got {self.end}")
        if (self.end - self.start) % self.step:
            raise ValueError(
                f"step: expected a divisor of {self.end - self.start} (end - start), "
                f"got {self.step}"
            )
        if self.end_epoch <= self.begin_epoch:
            raise ValueError(
                f"end_epoch: expected an epoch > {self.begin_epoch} (begin_epoch), "
                f"got {self.end_epoch}"
            )

    def size(self, epoch: int) -> int:
        """Side of the training images of an epoch, counted from 0."""
        done = (epoch - self.begin_epoch) / (self.end_epoch - self.begin_epoch)
        steps = (self.end - self.start) // self.step
        return self.start + self.step * math.floor(steps * min(max(done, 0.0), 1.0) + 0.5)


def check_transforms(transforms: Compose, where: str) -> None:
    """Raise ConfigError unless one RandCropImage decides the size of the images."""
    sizing = [op for op in transforms.transforms if isinstance(op, _SIZING)]
    crops = [op for op in sizing if isinstance(op, RandCropImage)]
    if len(crops) != 1 or sizing[-1] is not crops[0]:
        found = ", ".join(type(op).__name__ for op in sizing) or "none"
        raise ConfigError(
            f"{where}: expected one RandCropImage, with nothing that resizes after it, for "
            f"progressive sizes, found {found}"
        )


_SIZING = (CropImage, RandCropImage, ResizeImage)


def resized(transforms: Compose, size: int) -> Compose:
    """Return the transforms with a RandCropImage that gives squares of this side."""
    return Compose(
        [
            op.with_size(size) if isinstance(op, RandCropImage) else op
            for op in transforms.transforms
        ]
    )
