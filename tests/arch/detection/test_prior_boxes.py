from __future__ import annotations

import numpy as np
import pytest

from ppcls.arch.detection.priors import COCO_512, PRIORS, PriorConfig, PriorMap, prior_boxes

COUNTS = {300: 11620, 512: 32756}
FIRST = {
    300: (0, 8664, 10830, 11430, 11580, 11616),
    512: (0, 24576, 30720, 32256, 32640, 32736, 32752),
}
# Sums over all priors, of centres and of sides, by the official code.
SUMS = {
    ("voc", 300): (5906.4, 1843.6255),
    ("voc", 512): (16378.0, 3807.1501),
    ("coco", 300): (5906.4, 1405.4019),
    ("coco", 512): (16378.0, 2570.3110),
}


@pytest.mark.parametrize("key", PRIORS)
def test_counts_and_sums_are_the_official_ones(key):
    boxes = prior_boxes(PRIORS[key])
    assert boxes.shape == (COUNTS[key[1]], 4) and boxes.dtype == np.float32
    assert PRIORS[key].count == len(boxes)
    centres, sides = SUMS[key]
    sums = boxes.sum(axis=0, dtype="float64")
    np.testing.assert_allclose(sums[:2], centres, rtol=0, atol=2e-3)
    np.testing.assert_allclose(sums[2:], sides, rtol=0, atol=2e-3)
    assert boxes.min() >= 0 and boxes.max() <= 1


def test_rows_are_the_official_ones(assets):
    official = np.load(assets / "ssd_hardnet68_512.npz")
    boxes = prior_boxes(COCO_512)
    assert len(boxes) == official["prior_count"]
    found = boxes[official["prior_idx"]]
    np.testing.assert_allclose(found, official["prior_val"], rtol=0, atol=1e-6)
    sums = boxes.sum(axis=0, dtype="float64")
    np.testing.assert_allclose(sums, official["prior_colsum"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("key", PRIORS)
def test_maps_begin_where_the_official_ones_do(key):
    boxes = prior_boxes(PRIORS[key])
    for level, first in zip(PRIORS[key].maps, FIRST[key[1]], strict=True):
        square = level.min_size / key[1]
        centre = min(1.0, level.step / key[1] / 2)
        np.testing.assert_allclose(boxes[first], [centre, centre, square, square], rtol=1e-6)


def test_order_within_a_cell_and_between_cells():
    level = PriorMap(cells=2, step=50, min_size=10, max_size=40, ratios=(2, 3))
    boxes = prior_boxes(PriorConfig(size=100, maps=(level,)))
    assert level.boxes_per_cell == 6
    r2, r3 = np.sqrt(2) / 10, np.sqrt(3) / 10
    shapes = [(0.1, 0.1), (0.2, 0.2), (r2, r2 / 2), (r2 / 2, r2), (r3, r3 / 3), (r3 / 3, r3)]
    np.testing.assert_allclose(boxes[:6, 2:], shapes, rtol=1e-6)
    # Columns first, then rows.
    np.testing.assert_allclose(
        boxes[::6, :2], [(0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)], rtol=1e-6
    )


def test_centres_and_sides_are_clipped_but_not_corners():
    boxes = prior_boxes(PRIORS["voc", 300])
    assert boxes[:, 0].max() == 1  # the 38th cell of 8 pixels is at the edge of 300
    assert boxes[-2, 2] == 1  # 264 pixels times the root of 2 is more than 300
    assert (boxes[0, 0] - boxes[0, 2] / 2) < 0
