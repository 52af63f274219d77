from __future__ import annotations

import numpy as np
import paddle
import pytest

from ppcls.arch.detection import matching
from ppcls.arch.detection.boxes import decode, encode, pairwise_iou, to_corners
from ppcls.arch.detection.matching import match
from ppcls.arch.detection.priors import COCO_512, prior_boxes


@pytest.fixture(scope="module")
def official():
    path = __file__.rsplit("/arch/", 1)[0] + "/assets/ssd_hardnet68_512.npz"
    return dict(np.load(path))


@pytest.fixture(scope="module")
def priors():
    return paddle.to_tensor(prior_boxes(COCO_512))


def tensor(values, dtype="float32"):
    return paddle.to_tensor(np.asarray(values, dtype))


def ground_truth(*rows):
    """Pad lists of rows (x1, y1, x2, y2, label) to one batch."""
    table = np.zeros((len(rows), max(map(len, rows), default=0), 5), "float32")
    for image, boxes in zip(table, rows, strict=True):
        image[: len(boxes)] = np.reshape(boxes, (-1, 5))
    return tensor(table[..., :4]), tensor(table[..., 4], "int64")


# Coding


@pytest.mark.parametrize("kind", ["net", "rnd"])
def test_decoding_is_the_official_one(official, priors, kind):
    chosen = priors[tensor(official["dec_idx"], "int64")]
    found = decode(tensor(official[f"dec_{kind}_loc"]), chosen).numpy()
    wanted = official[f"dec_{kind}_box"]
    assert (np.abs(found - wanted) / np.maximum(1, np.abs(wanted))).max() < 1e-6


def test_encoding_undoes_decoding(priors):
    some = priors[::997]
    offsets = paddle.to_tensor(
        np.random.default_rng(0).standard_normal((3, len(some), 4)), "float32"
    )
    again = encode(decode(offsets, some), some)
    np.testing.assert_allclose(again.numpy(), offsets.numpy(), rtol=0, atol=2e-4)


def test_a_box_without_width():
    prior, box = tensor([[0.5, 0.5, 0.2, 0.2]]), tensor([[0.5, 0.4, 0.5, 0.6]])
    assert encode(box, prior).numpy().tolist()[0][2] == -np.inf
    bounded = encode(box, prior, smallest=1e-6).numpy()[0]
    assert bounded[2] == pytest.approx(np.log(1e-6) / 0.2, rel=1e-5)


def test_overlap():
    boxes = tensor([[0, 0, 2, 2], [0, 0, 0, 0], [5, 5, 6, 6]])
    others = tensor([[1, 1, 3, 3], [0, 0, 2, 2], [2, 0, 4, 2], [7, 7, 7, 7]])
    expected = [[1 / 7, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(pairwise_iou(boxes, others).numpy(), expected, rtol=1e-6)
    assert pairwise_iou(paddle.stack([boxes, boxes]), others).shape == [2, 3, 4]


# Matching


def test_matching_is_the_official_one(official, priors):
    boxes, labels = ground_truth(official["gt"])
    found = match(boxes, labels, priors)
    where = np.flatnonzero(found.labels.numpy()[0])
    np.testing.assert_array_equal(where, official["pos_idx"])
    np.testing.assert_array_equal(found.labels.numpy()[0, where], official["pos_conf"])
    targets = encode(found.boxes, priors).numpy()[0, where]
    np.testing.assert_allclose(targets, official["pos_loc"], rtol=0, atol=1e-5)


def test_a_batch_gives_each_image_its_own_matches(official, priors, monkeypatch):
    images = (official["gt"], [], official["loss3_gt2"], [(0, 0, 0, 0, 0)])
    boxes, labels = ground_truth(*images)
    together = match(boxes, labels, priors)
    monkeypatch.setattr(matching, "_GROUP", 1)  # image by image
    grouped = match(boxes, labels, priors)
    for number, image in enumerate(images):
        alone = match(*ground_truth(image), priors)
        wanted = alone.labels.numpy()[0]
        where = wanted > 0
        for found in (together, grouped):
            np.testing.assert_array_equal(found.labels.numpy()[number], wanted)
            np.testing.assert_array_equal(
                found.boxes.numpy()[number][where], alone.boxes.numpy()[0][where]
            )
    positives = (together.labels.numpy() > 0).sum(axis=1)
    assert positives.tolist() == [29, 0, 14, 0]


def test_padding_between_boxes_changes_nothing(official, priors):
    rows = official["gt"]
    spread = np.zeros((9, 5), "float32")
    spread[[0, 2, 3, 6, 7]] = rows
    plain, spaced = (match(*ground_truth(image), priors) for image in (rows, spread))
    np.testing.assert_array_equal(plain.labels.numpy(), spaced.labels.numpy())
    where = plain.labels.numpy() > 0
    np.testing.assert_array_equal(plain.boxes.numpy()[where], spaced.boxes.numpy()[where])


GRID = [[x + 0.5, 0.5, 1, 1] for x in range(4)]  # four unit squares side by side


def test_no_box_is_left_without_prior():
    """A box of little overlap still gets its best prior, even one another box overlaps more."""
    boxes, labels = ground_truth([(0, 0, 1, 1, 1), (0.1, 0.2, 0.3, 0.4, 2)])
    assert match(boxes, labels, tensor(GRID)).labels.numpy().tolist() == [[2, 0, 0, 0]]


def test_of_boxes_with_the_same_best_prior_the_later_wins():
    first, second = (0, 0, 1, 1, 1), (0, 0, 1, 0.9, 2)
    for rows, label in (((first, second), 2), ((second, first), 1)):
        found = match(*ground_truth(rows), tensor(GRID))
        assert found.labels.numpy().tolist() == [[label, 0, 0, 0]]
        np.testing.assert_allclose(found.boxes.numpy()[0, 0], rows[1][:4], rtol=1e-6)


def test_of_equal_overlaps_the_first_counts():
    # Both boxes cover half of the second prior; each has its own prior elsewhere.
    boxes, labels = ground_truth([(0, 0, 1.5, 1, 1), (1.5, 0, 3, 1, 2)])
    priors = tensor([[0.75, 0.5, 1.5, 1], [1.5, 0.5, 1, 1], [2.25, 0.5, 1.5, 1]])
    found = match(boxes, labels, priors, overlap=0.2)
    assert found.labels.numpy().tolist() == [[1, 1, 2]]
    # A box that overlaps two priors alike has the first.
    found = match(*ground_truth([(0.5, 0, 1.5, 1, 3)]), tensor(GRID))
    assert found.labels.numpy().tolist() == [[3, 0, 0, 0]]


def test_the_threshold_itself_is_positive():
    half = [(0, 0, 1, 0.5, 1), (0, 0, 1, 1, 2)]  # the first overlaps prior 0 by exactly one half
    boxes, labels = ground_truth([(0, 0, 2, 1, 1)])
    assert match(boxes, labels, tensor(GRID)).labels.numpy().tolist() == [[1, 1, 0, 0]]
    assert match(boxes, labels, tensor(GRID), overlap=0.51).labels.numpy().sum() == 1
    assert match(*ground_truth(half), tensor(GRID)).labels.numpy().tolist() == [[2, 0, 0, 0]]


def test_no_rows_at_all(priors):
    found = match(paddle.zeros([2, 0, 4]), paddle.zeros([2, 0], "int64"), priors)
    assert found.labels.shape == [2, 32756] and found.boxes.shape == [2, 32756, 4]
    assert int(found.labels.sum()) == 0


def test_corners():
    np.testing.assert_allclose(
        to_corners(tensor([[0.5, 0.4, 0.2, 0.4]])).numpy(), [[0.4, 0.2, 0.6, 0.6]], rtol=1e-6
    )
