"""Prior boxes of SSD-HarDNet, in NumPy.

Source: PingoLH/PytorchSSD-HarDNet (MIT), `data/config.py` and `layers/functions/prior_box.py`;
W. Liu et al., "SSD: Single Shot MultiBox Detector", ECCV 2016, section 2.2.

Two things differ from the SSD paper and are kept: the first map has 6 boxes per cell, not 4, and
what is clipped to [0, 1] are centres, widths and heights, not corners, so that priors at the border
stick out of the image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

PriorStyle = Literal["coco", "voc"]


@dataclass(frozen=True, kw_only=True)
class PriorMap:
    """The priors of one feature map. Sizes in pixels of the network's input."""

    cells: int  # per side
    step: int  # pixels between the centres of two cells
    min_size: float  # side of the first square
    max_size: float  # the second square's side is the geometric mean of both
    ratios: tuple[int, ...]  # each gives a wide and a tall box

    @property
    def boxes_per_cell(self) -> int:
        return 2 + 2 * len(self.ratios)


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """The priors of one detector."""

    size: int  # side of the network's input, pixels
    maps: tuple[PriorMap, ...]

    @property
    def count(self) -> int:
        return sum(level.cells**2 * level.boxes_per_cell for level in self.maps)


def _config(
    size: int, cells: tuple[int, ...], steps: tuple[int, ...], sizes: tuple[float, ...]
) -> PriorConfig:
    """`sizes` has one more entry than there are maps: a map's max_size is the next one's min_size.

    The last two maps have the ratio 2 alone, all others 2 and 3.
    """
    last = len(cells) - 2
    return PriorConfig(
        size=size,
        maps=tuple(
            PriorMap(
                cells=cells[i],
                step=steps[i],
                min_size=sizes[i],
                max_size=sizes[i + 1],
                ratios=(2, 3) if i < last else (2,),
            )
            for i in range(len(cells))
        ),
    )


_GRID_300 = (300, (38, 19, 10, 5, 3, 1), (8, 16, 32, 64, 100, 300))
_GRID_512 = (512, (64, 32, 16, 8, 4, 2, 1), (8, 16, 32, 64, 128, 256, 512))

VOC_300 = _config(*_GRID_300, (30, 60, 111, 162, 213, 264, 315))
VOC_512 = _config(*_GRID_512, (35.84, 76.8, 153.6, 230.4, 307.2, 384.0, 460.8, 537.6))
COCO_300 = _config(*_GRID_300, (21, 45, 99, 153, 207, 261, 315))
COCO_512 = _config(*_GRID_512, (20.48, 51.2, 133.12, 215.04, 296.96, 378.88, 460.8, 542.72))

PRIORS: dict[tuple[PriorStyle, int], PriorConfig] = {
    ("voc", 300): VOC_300,
    ("voc", 512): VOC_512,
    ("coco", 300): COCO_300,
    ("coco", 512): COCO_512,
}


def prior_boxes(config: PriorConfig) -> np.ndarray:
    """Return the priors [P, 4] float32 as (cx, cy, w, h), relative to the image, in [0, 1].

    Map by map; in a map row by row; in a cell: the small square, the large square, then per ratio
    the wide and the tall box. Computed in double precision.
    """
    boxes = np.concatenate([_map_boxes(level, config.size) for level in config.maps])
    return np.clip(boxes, 0, 1).astype(np.float32)


def _map_boxes(level: PriorMap, size: int) -> np.ndarray:
    """The priors of one map, [cells * cells * boxes_per_cell, 4] float64, not clipped."""
    shapes = np.array(_shapes(level, size))
    centres = (np.arange(level.cells) + 0.5) * level.step / size
    boxes = np.empty((level.cells, level.cells, len(shapes), 4))
    boxes[..., 0] = centres[None, :, None]
    boxes[..., 1] = centres[:, None, None]
    boxes[..., 2:] = shapes
    return boxes.reshape(-1, 4)


def _shapes(level: PriorMap, size: int) -> list[tuple[float, float]]:
    """Width and height of each box of a cell, relative."""
    small = level.min_size / size
    large = math.sqrt(small * (level.max_size / size))
    shapes = [(small, small), (large, large)]
    for ratio in level.ratios:
        root = math.sqrt(ratio)
        shapes += [(small * root, small / root), (small / root, small * root)]
    return shapes
