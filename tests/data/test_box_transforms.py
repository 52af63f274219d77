"""Every box transform against hand-computed values, and its chances over many draws."""

import cv2
import numpy as np
import pytest
from detection_folders import picture

from ppcls.data.transforms import BOX_TRANSFORMS, build_box_transforms, build_transforms
from ppcls.data.transforms.box_color import change_linearly
from ppcls.data.transforms.box_geometry import RandomCrop, draw_ratio, overlap_with
from ppcls.utils.errors import ConfigError

NONE = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
BOXES = np.array([[10, 5, 30, 25], [0, 0, 80, 60], [50, 30, 70, 58]], np.float32)
LABELS = np.array([3, 1, 2])
IMAGE = picture(80, 60)


def fresh():
    return np.random.default_rng(0)


def build(name, **params):
    return build_box_transforms([{name: params or None}], "ops")


def draws(transform, count, image=IMAGE, boxes=BOXES, labels=LABELS):
    for seed in range(count):
        yield transform(image, boxes, labels, np.random.default_rng(seed))


def assert_sound(result):
    height, width = result.image.shape[:2]
    assert result.boxes.dtype == np.float32 and result.labels.dtype == np.int64
    assert result.boxes.shape == (len(result.labels), 4)
    assert (result.boxes >= 0).all()
    assert (result.boxes <= np.array([width, height] * 2) + 1e-3).all()
    assert (result.boxes[:, :2] < result.boxes[:, 2:]).all()


def share(outcomes):
    """Of booleans, with the margin of 4 standard deviations that a chance test may use."""
    outcomes = list(outcomes)
    return np.mean(outcomes), 4 * 0.5 / np.sqrt(len(outcomes))


# RandomFlip


def test_mirrored_boxes():
    image, boxes, labels = build("RandomFlip", prob=1.0)(IMAGE, BOXES, LABELS, np.random)
    assert np.array_equal(image, IMAGE[:, ::-1]) and np.array_equal(labels, LABELS)
    assert boxes.tolist() == [[50, 5, 70, 25], [0, 0, 80, 60], [10, 30, 30, 58]]
    mean, margin = share(out.boxes[0, 0] == 50 for out in draws(build("RandomFlip"), 400))
    assert abs(mean - 0.5) < margin


# RandomExpand


def test_expanded_boxes_move_with_the_image():
    scales = []
    for image, boxes, labels in draws(build("RandomExpand", prob=1.0), 200):
        left, top = boxes[1, :2].astype(int)
        height, width = image.shape[:2]
        assert 80 <= width <= 320 * 2**0.5 and 60 <= height <= 240 * 2**0.5
        assert np.array_equal(image[top : top + 60, left : left + 80], IMAGE)
        assert np.array_equal(boxes, BOXES + np.array([left, top, left, top]))
        assert np.array_equal(labels, LABELS)
        outside = np.ones((height, width), bool)
        outside[top : top + 60, left : left + 80] = False
        assert (image[outside] == [104, 117, 123]).all()
        scales.append(np.sqrt((width / 80) * (height / 60)))
    assert min(scales) < 1.1 and max(scales) > 3.9 and abs(np.mean(scales) - 2.5) < 0.2


def test_expanding_has_probability_three_fifths():
    results = draws(build("RandomExpand"), 400, image=np.zeros((6, 8, 3), np.uint8))
    mean, margin = share(result.image.shape != (6, 8, 3) for result in results)
    # A scale of less than 9/8 may leave 8 pixels 8.
    assert abs(mean - 0.6) < margin + 0.03


# RandomCrop


def test_iou_with_a_region():
    boxes = np.array([[0, 0, 10, 10], [5, 5, 15, 15], [20, 20, 30, 30], [2, 2, 4, 4]], float)
    region = np.array([0, 0, 10, 10])
    assert overlap_with(region, boxes) == pytest.approx([1, 25 / 175, 0, 4 / 100])


def test_proportions_of_regions():
    rng = np.random.default_rng(0)
    for scale in np.linspace(0.3, 1.0, 50):
        ratio = draw_ratio(scale, (0.5, 2.0), rng)
        assert max(0.5, scale**2) <= ratio**2 + 1e-9 and ratio**2 <= min(2, 1 / scale**2) + 1e-9
        assert scale * ratio <= 1 + 1e-9 and scale / ratio <= 1 + 1e-9
    assert draw_ratio(1.0, (0.5, 2.0), rng) == 1.0


def test_cropped_boxes_are_those_of_the_pixels():
    """Paint each box in a colour of its own, and look where the colour is after the crop."""
    boxes = np.array([[10, 5, 30, 25], [40, 10, 75, 35], [5, 40, 60, 58]], np.float32)
    image = np.zeros((60, 80, 3), np.uint8)
    for value, (x1, y1, x2, y2) in zip((50, 100, 150), boxes.astype(int), strict=True):
        image[y1:y2, x1:x2] = value
    kept = []
    for result in draws(build("RandomCrop"), 200, image=image, boxes=boxes):
        assert_sound(result)
        kept.append(len(result.boxes))
        for box, label in zip(result.boxes, result.labels, strict=True):
            value = (50, 100, 150)[LABELS.tolist().index(label)]
            rows, columns = np.nonzero(result.image[:, :, 0] == value)
            found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert found == box.tolist()
    assert min(kept) >= 1 and max(kept) == 3 and len(set(kept)) > 1


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.5])
def test_regions_overlap_every_box_and_hold_a_centre(threshold):
    crop = RandomCrop(thresholds=[threshold], allow_no_crop=False)
    regions = []
    draw = crop.draw_region
    crop.draw_region = lambda *args: regions.append(draw(*args)) or regions[-1]
    boxes = np.array([[10, 5, 70, 55], [20, 10, 78, 60]], np.float32)
    for result in draws(crop, 60, boxes=boxes, labels=LABELS[:2]):
        left, top, right, bottom = region = regions[-1]
        assert np.array_equal(result.image, IMAGE[top:bottom, left:right])
        assert overlap_with(region, boxes).min() >= threshold
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        inside = ((centres > region[:2]) & (centres < region[2:])).all(axis=1)
        assert inside.any() and np.array_equal(result.labels, LABELS[:2][inside])
        sides = np.array([right - left, bottom - top]) / [80, 60]
        assert 0.2 < sides.min() and sides.max() <= 1
        assert 0.28 < np.sqrt(sides.prod()) and 0.5 * 0.9 < sides[0] / sides[1] < 2.0 * 1.1


def test_the_whole_image_is_one_draw_of_seven():
    # One box that fills the image reaches low thresholds in every try, so modes count as drawn.
    crop = build("RandomCrop", thresholds=[0.0] * 6)
    boxes = np.array([[0, 0, 80, 60]], np.float32)
    results = draws(crop, 700, boxes=boxes, labels=LABELS[:1])
    # A tried region has its own right edge, so it never is the whole image.
    mean, margin = share(result.image is IMAGE for result in results)
    assert abs(mean - 1 / 7) < margin


def test_a_crop_without_boxes_or_hope_leaves_the_image(monkeypatch):
    monkeypatch.setattr("ppcls.data.transforms.box_geometry._MOST_DRAWS", 3)
    apart = np.array([[0, 0, 4, 4], [76, 56, 80, 60]], np.float32)  # no region overlaps both by 0.9
    crop = build("RandomCrop", thresholds=[0.9], allow_no_crop=False)
    result = crop(IMAGE, apart, LABELS[:2], fresh())
    assert result.image is IMAGE and np.array_equal(result.boxes, apart)
    assert crop(IMAGE, *NONE, fresh()).image is IMAGE
    tiny = build("RandomCrop")(IMAGE[:1, :1], BOXES[:1] * 0 + [0, 0, 1, 1], LABELS[:1], fresh())
    assert tiny.image.shape == (1, 1, 3)


# RandomDistort


def test_one_change_at_a_time():
    off = {name: [1, 1, 0] for name in ("brightness", "contrast", "hue", "saturation")}

    def apply(image=IMAGE, **on):
        return build("RandomDistort", **(off | on))(image, BOXES, LABELS, fresh()).image

    assert np.array_equal(apply(), IMAGE)
    bright = apply(brightness=[-31.5, -31.5, 1])
    assert np.array_equal(bright, np.clip(IMAGE - 31.5, 0, 255).astype(np.uint8))
    high = apply(contrast=[1.3, 1.3, 1])
    exact = IMAGE.astype(np.float32) * np.float32(1.3)
    assert np.array_equal(high, np.clip(exact, 0, 255).astype(np.uint8))
    hsv = cv2.cvtColor(IMAGE, cv2.COLOR_BGR2HSV)
    turned = np.dstack([(hsv[:, :, 0].astype(int) + 170) % 180, hsv[:, :, 1], hsv[:, :, 2]])
    expected = cv2.cvtColor(turned.astype(np.uint8), cv2.COLOR_HSV2BGR)
    assert np.array_equal(apply(hue=[-10, -10, 1]), expected)
    pale = np.dstack(
        [hsv[:, :, 0], (hsv[:, :, 1] * np.float32(0.5)).astype(np.uint8), hsv[:, :, 2]]
    )
    assert np.array_equal(apply(saturation=[0.5, 0.5, 1]), cv2.cvtColor(pale, cv2.COLOR_HSV2BGR))
    rgb = build("RandomDistort", order="rgb", **(off | {"saturation": [0.5, 0.5, 1]}))(
        np.ascontiguousarray(IMAGE[:, :, ::-1]), BOXES, LABELS, fresh()
    )
    assert np.array_equal(rgb.image[:, :, ::-1], apply(saturation=[0.5, 0.5, 1]))


def test_values_are_clamped_and_cut():
    values = np.array([0, 10, 200, 255], np.uint8)
    assert change_linearly(values, 1.0, 20.7).tolist() == [20, 30, 220, 255]
    assert change_linearly(values, 1.0, -20.7).tolist() == [0, 0, 179, 234]
    assert change_linearly(values, 1.5, 0.0).tolist() == [0, 15, 255, 255]


def test_ranges_and_chances_of_colours():
    grey = np.full((1, 1, 3), 100, np.uint8)  # neither hue nor saturation moves it
    only = {"contrast": [1, 1, 0]}
    values = [int(out.image[0, 0, 0]) for out in draws(build("RandomDistort", **only), 600, grey)]
    mean, margin = share(value == 100 for value in values)
    assert abs(mean - 0.5) < margin and min(values) in (68, 69) and max(values) in (130, 131)
    only = {"brightness": [0, 0, 0]}
    values = [int(out.image[0, 0, 0]) for out in draws(build("RandomDistort", **only), 600, grey)]
    assert 50 <= min(values) <= 52 and 147 <= max(values) <= 149
    before = IMAGE.copy()
    for out in draws(build("RandomDistort"), 20):
        assert out.boxes is BOXES and out.image.dtype == np.uint8
    assert np.array_equal(IMAGE, before)


def test_hues_include_both_ends():
    red = np.array([[[0, 0, 255]]], np.uint8)
    only = {name: [1, 1, 0] for name in ("brightness", "contrast", "saturation")}
    transform = build("RandomDistort", hue=[-2, 2, 1], **only)
    hues = {
        int(cv2.cvtColor(out.image, cv2.COLOR_BGR2HSV)[0, 0, 0])
        for out in draws(transform, 60, red)
    }
    assert hues == {178, 179, 0, 1, 2}


# Resize


def test_resized_boxes_keep_their_place():
    image, boxes, _ = build("Resize", target_size=[30, 160])(IMAGE, BOXES, LABELS, fresh())
    assert np.array_equal(image, cv2.resize(IMAGE, (160, 30), interpolation=cv2.INTER_LINEAR))
    assert boxes[0].tolist() == [20, 2.5, 60, 12.5]


def test_random_interpolation_draws_five_filters():
    filters = (cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_AREA, cv2.INTER_NEAREST)
    known = [cv2.resize(IMAGE, (37, 37), interpolation=f) for f in (*filters, cv2.INTER_LANCZOS4)]
    counts = [0] * 5
    for result in draws(build("Resize", target_size=37, interp="random"), 500):
        counts[[np.array_equal(result.image, image) for image in known].index(True)] += 1
    assert min(counts) > 60 and sum(counts) == 500


# Augment


def test_small_boxes_are_dropped_and_never_all():
    boxes = np.array([[0, 0, 40, 30], [5, 5, 5.5, 30]], np.float32)
    augment = build("Augment", transform_ops=[{"RandomFlip": {"prob": 1.0}}])
    image, kept, labels = augment(IMAGE, boxes, LABELS[:2], fresh())
    assert kept.tolist() == [[40, 0, 80, 30]] and labels.tolist() == [3]
    assert np.array_equal(image, IMAGE[:, ::-1])
    # The second alone is too narrow: the image goes on as it was, and so does its box.
    image, kept, labels = augment(IMAGE, boxes[1:], LABELS[1:2], fresh())
    assert image is IMAGE and np.array_equal(kept, boxes[1:]) and labels.tolist() == [1]
    assert augment(IMAGE, *NONE, fresh()).image is IMAGE
    limit = build("Augment", transform_ops=[], min_side=0.5)
    exact = np.array([[0, 0, 40, 60], [0, 0, 41, 60]], np.float32)
    assert len(limit(IMAGE, exact, LABELS[:2], fresh()).boxes) == 1


# Building


def test_pixel_transforms_are_the_same_ones():
    ops = [{"NormalizeImage": {"order": "hwc"}}, "Permute"]
    boxed = build_box_transforms(ops, "ops")
    image, boxes, labels = boxed(IMAGE, BOXES, LABELS, fresh())
    plain = build_transforms([ops[0], "ToCHWImage"], "ops")(IMAGE, fresh())
    assert np.array_equal(image, plain) and boxes is BOXES and labels is LABELS
    assert boxed.gives_chw and not build_box_transforms(ops[:1], "ops").gives_chw


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"RandCropImage": {"size": 3}}, r"ops\[0\]: RandCropImage would move the image and not"),
        ({"RandomCrops": None}, r"ops\[0\]: unknown box transform 'RandomCrops'; did you mean"),
        ({"RandomFlip": {"prob": 2}}, r"ops\[0\].RandomFlip.prob: expected a number from 0 to 1"),
        ({"RandomFlip": {"config_path": "x"}}, "unknown key 'config_path'"),
        ({"RandomCrop": {"scaling": [1, 2]}}, r"RandomCrop.scaling: expected numbers up to 1"),
        ({"RandomCrop": {"scaling": [0.3]}}, r"RandomCrop.scaling: expected two numbers"),
        ({"RandomCrop": {"thresholds": []}}, r"RandomCrop.thresholds: expected numbers"),
        ({"RandomCrop": {"thresholds": [1.5]}}, r"RandomCrop.thresholds: expected numbers"),
        ({"RandomCrop": {"num_attempts": 0}}, r"RandomCrop.num_attempts: expected a number >= 1"),
        ({"RandomCrop": {"aspect_ratio": [2, 3]}}, r"RandomCrop.aspect_ratio: .* around 1"),
        ({"RandomExpand": {"ratio": 0.5}}, r"RandomExpand.ratio: expected a number >= 1"),
        ({"RandomExpand": {"fill_value": [1, 2]}}, r"RandomExpand.fill_value: expected 3"),
        ({"RandomDistort": {"hue": [3, 1, 0.5]}}, r"RandomDistort.hue: expected \[low, high"),
        ({"RandomDistort": {"contrast": [-1, 1, 1]}}, r"RandomDistort.contrast: .* factor >= 0"),
        ({"Resize": {"target_size": 0}}, r"Resize.target_size: expected a number >= 1"),
        ({"Resize": {"target_size": 9, "interp": "x"}}, r"Resize.interp: expected one of"),
        ({"Augment": {"transform_ops": [{"Resiz": None}]}}, r"Augment.transform_ops\[0\]: unknown"),
        (
            {"Augment": {"transform_ops": ["Permute"]}},
            r"transform_ops: expected no Permute",
        ),
        ({"Augment": {"transform_ops": [], "min_side": 1}}, r"Augment.min_side: expected a number"),
    ],
)
def test_wrong_settings_are_named(entry, message):
    with pytest.raises(ConfigError, match=message):
        build_box_transforms([entry], "ops")


def test_names_are_paddledetections():
    assert set(BOX_TRANSFORMS) == {
        *("Augment", "Permute", "RandomCrop", "RandomDistort", "RandomExpand", "RandomFlip"),
        "Resize",
    }
