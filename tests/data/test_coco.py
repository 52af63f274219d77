"""COCODataset: conventions, samples, and every bad file with its sentence."""

import io
import json
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
from detection_folders import (
    COCO_IMAGES,
    EVAL_OPS,
    TRAIN_OPS,
    coco_content,
    picture,
    write_coco,
    write_picture,
)
from PIL import Image

from ppcls.data.datasets import DATASETS, COCODataset
from ppcls.data.sampler import SampleKey
from ppcls.utils.errors import ConfigError, DataError
from ppcls.utils.schema import build_named


def make(root, ops=EVAL_OPS, **options):
    return COCODataset(transform_ops=ops, **(write_coco(root) | options))


def rewrite(root, change):
    """Change the content of a written annotation file, by a function or to some text."""
    arguments = write_coco(root)
    content = coco_content()
    text = change if isinstance(change, (str, bytes)) else json.dumps(change(content) or content)
    path = root / "annotations" / "instances_train.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return arguments


def test_labels_follow_the_category_ids(tmp_path):
    dataset = make(tmp_path, class_num=4)
    assert dataset.class_names == ["background", "cat", "dog", "bird"]
    assert dataset.category_ids.tolist() == [-1, 2, 7, 90] and dataset.class_num == 4
    assert dataset.image_ids == [5, 3, 9, 4] and len(dataset) == 4
    assert dataset.sizes.tolist() == [[30, 40], [40, 30], [24, 24], [20, 50]]
    truth = dataset.ground_truth(0)
    assert truth.labels.tolist() == [1, 3] and truth.labels.dtype == np.int64
    assert truth.crowd.tolist() == [False, True] and not truth.difficult.any()
    # x, y, x + w - 1, y + h - 1
    assert truth.boxes.tolist() == [[4, 3, 23, 17], [10, 10, 20, 15]]
    assert len(dataset.ground_truth(2).boxes) == 0
    assert dataset.describe(1).endswith("000000000003.jpg")


def test_a_sample_holds_the_image_and_relative_boxes(tmp_path):
    sample = make(tmp_path)[0]
    bgr = picture(40, 30, seed=5)[:, :, ::-1]
    resized = cv2.resize(bgr, (32, 32), interpolation=cv2.INTER_LINEAR).astype(np.float32)
    assert np.array_equal(sample.image, (resized - [104, 117, 123]).transpose(2, 0, 1))
    assert sample.image.dtype == np.float32 and sample.boxes.dtype == np.float32
    expected = np.array([[4, 3, 23, 17], [10, 10, 20, 15]]) / [40, 30, 40, 30]
    np.testing.assert_allclose(sample.boxes, expected, atol=1e-6)
    assert sample.labels.tolist() == [1, 3] and sample.labels.dtype == np.int64
    assert (sample.index, sample.size) == (0, (30, 40))


def test_plain_boxes_crowds_and_empty_images_are_options(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "ppcls"):
        dataset = make(tmp_path, official_quirks=False, load_crowd=False, skip_empty=True)
    assert "left out 1 images without a box" in caplog.text
    assert dataset.image_ids == [5, 3, 4] and len(dataset) == 3
    assert [dataset[i].index for i in range(3)] == [0, 1, 2]
    assert dataset[2].size == (20, 50) and len(dataset[2].boxes) == 3
    np.testing.assert_allclose(dataset[1].boxes, [[0, 0, 1, 1]])
    # The evaluation still sees the crowd box that training leaves out.
    assert len(dataset[0].boxes) == 1 and len(dataset.ground_truth(0).boxes) == 2


def test_an_empty_image_is_a_sample_without_boxes(tmp_path):
    for ops in (EVAL_OPS, TRAIN_OPS):
        sample = make(tmp_path, ops)[2]
        assert sample.boxes.shape == (0, 4) and sample.labels.shape == (0,)
        assert sample.image.shape == (3, 32, 32)


def test_boxes_beyond_the_image_are_cut_and_counted(tmp_path, caplog):
    images = {
        1: (
            (20, 10),
            [
                (2, [-3, -2, 10, 6], 0),
                (2, [15, 5, 50, 50], 0),
                (7, [25, 3, 4, 4], 0),
                (7, [3, 3, 0, 4], 0),
                (7, [3, 3, -5, 4], 0),
                (2, [2, 2, 5, 5], 0),
            ],
        )
    }
    with caplog.at_level(logging.INFO, "ppcls"):
        plain = COCODataset(
            transform_ops=EVAL_OPS, official_quirks=False, **write_coco(tmp_path, images)
        )
    assert plain.ground_truth(0).boxes.tolist() == [[0, 0, 7, 4], [15, 5, 20, 10], [2, 2, 7, 7]]
    log = caplog.text
    assert "2 of 6 boxes reach beyond their image and were cut to it (first: annotation 100)" in log
    assert "1 of 6 boxes are outside their image and were left out (first: annotation 102)" in log
    assert "2 of 6 boxes have no area and were left out (first: annotation 103)" in log
    # Officially a left edge below 0 moves the box, and the last pixel is the limit.
    caplog.clear()
    with caplog.at_level(logging.INFO, "ppcls"):
        official = COCODataset(transform_ops=EVAL_OPS, **write_coco(tmp_path, images))
    assert official.ground_truth(0).boxes.tolist() == [[0, 0, 9, 5], [15, 5, 19, 9], [2, 2, 6, 6]]
    assert "1 of 6 boxes are outside" in caplog.text and "2 of 6 boxes have no" in caplog.text


def test_an_outline_without_area_gives_no_box(tmp_path, caplog):
    arguments = rewrite(tmp_path, lambda content: content["annotations"][2].update(area=0))
    dataset = COCODataset(transform_ops=EVAL_OPS, **arguments)
    assert len(dataset.ground_truth(1).boxes) == 0
    assert "1 of 6 boxes have an outline without area and were left out" in caplog.text


def test_only_crowds_and_no_crowds_wanted_leave_nothing_to_train_on(tmp_path):
    arguments = write_coco(tmp_path, {1: ((20, 20), [(2, [1, 1, 5, 5], 1)])})
    assert len(COCODataset(transform_ops=EVAL_OPS, **arguments)) == 1
    with pytest.raises(DataError, match="expected boxes to train on, found none that is not crowd"):
        COCODataset(transform_ops=EVAL_OPS, load_crowd=False, **arguments)


def test_augmentation_depends_on_seed_epoch_and_index(tmp_path):
    one, again, two = (make(tmp_path, TRAIN_OPS, seed=seed) for seed in (1, 1, 2))
    first, same = one[SampleKey(0, 3)], again[3]
    for item, other in zip(first, same, strict=True):
        assert np.array_equal(item, other)
    for other in (one[SampleKey(1, 3)], two[SampleKey(0, 3)]):
        assert not np.array_equal(first.image, other.image)


def test_boxes_stay_inside_and_are_never_all_lost(tmp_path):
    dataset = make(tmp_path, TRAIN_OPS)
    for epoch in range(60):
        for index in (0, 1, 3):
            sample = dataset[SampleKey(epoch, index)]
            assert len(sample.boxes) == len(sample.labels) >= 1
            assert (sample.boxes >= 0).all() and (sample.boxes <= 1).all()
            assert ((sample.boxes[:, 2:] - sample.boxes[:, :2]) > 0.01).all()


def test_an_image_of_another_size_than_annotated_is_named(tmp_path):
    dataset = make(tmp_path)
    write_picture(tmp_path / "train" / "000000000005.jpg", 30, 40)
    with pytest.raises(DataError, match=r"005.jpg: expected an image of 40x30 .* got 30x40"):
        dataset[0]
    with pytest.raises(DataError, match="is it turned by its EXIF data.*backend: pil leaves"):
        dataset[0]
    skipping = make(tmp_path, on_error="skip")
    write_picture(tmp_path / "train" / "000000000005.jpg", 30, 40)
    assert skipping[0] is None and skipping[1] is not None


def test_an_image_turned_by_exif_is_turned_like_its_boxes_or_left_as_they_are(tmp_path):
    """Orientation 6: stored 40 wide and 30 high, shown 30 wide and 40 high."""
    dataset = make(tmp_path)
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(40, 30)).save(buffer, "PNG", exif=exif)
    path = tmp_path / "train" / "{:012d}.jpg"
    for key in (5, 3):  # annotated as stored, and as shown
        Path(str(path).format(key)).write_bytes(buffer.getvalue())
    assert dataset[1].size == (40, 30)
    with pytest.raises(DataError, match="turned by its EXIF"):
        dataset[0]
    stored = make(tmp_path, [{"DecodeImage": {"to_rgb": False, "backend": "pil"}}, *EVAL_OPS[1:]])
    Path(str(path).format(5)).write_bytes(buffer.getvalue())
    assert stored[0].size == (30, 40)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    arguments = write_coco(tmp_path)

    def refuse(folder):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.listdir", refuse)
    with pytest.raises(DataError, match=r"train: expected a folder to list, but Permission denied"):
        COCODataset(transform_ops=EVAL_OPS, **arguments)


def put(kind, place, **values):
    return lambda content: content[kind][place].update(values)


def drop(kind, place, key):
    def change(content):
        del content[kind][place][key]

    return change


def twice(kind, **values):
    return lambda content: content[kind].append(content[kind][0] | values)


BAD_FILES = [
    (b"", "the file is empty"),
    (b"\xff\xfe{}", "expected annotations in JSON"),
    ('{"images": [', "expected annotations in JSON"),
    ("[" * 100_000, "nesting too deep"),
    ('{"images": ' + "9" * 5000 + "}", "expected annotations in JSON|expected a list 'images'"),
    ("[]", "expected a JSON object, found a list"),
    ("{}", "expected a list 'images', found nothing"),
    (lambda c: c.update(images={}), "expected a list 'images', found an object"),
    (lambda c: c.update(images=[]), "expected images, found none"),
    (lambda c: c.update(annotations=[]), "expected annotations, found none"),
    (lambda c: c.update(categories=[]), "expected categories, found none"),
    (lambda c: c["images"].append("a.jpg"), r"images\[4\]: expected an object, got text"),
    (put("images", 1, id="3"), r"images\[1\]: expected a whole number as id, got '3'"),
    (put("images", 1, id=True), r"images\[1\]: expected a whole number as id, got True"),
    (put("images", 1, id=5), "image 5: expected each id once, found it again"),
    (put("images", 1, width=0), "image 3: expected a width from 1 to 100000, got 0"),
    (put("images", 1, height=1e300), "image 3: expected a whole number as height, got 1000"),
    (drop("images", 1, "height"), "image 3: expected a whole number as height, got nothing"),
    (put("images", 1, file_name=7), "image 3: expected text as file_name, got 7"),
    (put("images", 1, file_name="/etc/passwd"), "image 3: expected a file_name below the image"),
    (put("images", 1, file_name="a/../../b.jpg"), "image 3: expected a file_name below the image"),
    (put("images", 1, file_name="a\0.jpg"), r"image 3: expected text as file_name, got 'a.x00"),
    (put("categories", 1, name="\ud800"), r"category 2: expected text as name, got '.ud800'"),
    (put("images", 1, file_name="none.jpg"), "none.jpg: expected an image of .*found no such file"),
    (put("categories", 1, name="dog"), "category 2: expected each name once, got 'dog' again"),
    (put("categories", 1, id=7), "category 7: expected each id once, found it again"),
    (put("annotations", 1, id=100), "annotation 100: expected each id once"),
    (twice("annotations", id=1.5), r"annotations\[6\]: expected a whole number as id, got 1.5"),
    (put("annotations", 1, image_id=77), "annotation 101: expected an image_id of the file, got"),
    (put("annotations", 1, category_id=3), "annotation 101: expected a category_id of the file"),
    (put("annotations", 1, category_id=[1]), "annotation 101: expected a whole number as categ"),
    (put("annotations", 1, bbox=[1, 2, 3]), r"annotation 101: expected bbox \[x, y, width, hei"),
    (put("annotations", 1, bbox=[1, 2, 3, "4"]), "annotation 101: expected a bbox of 4 finite"),
    (put("annotations", 1, bbox=[1, 2, 3, float("nan")]), "annotation 101: .*4 finite numbers"),
    (put("annotations", 1, bbox=[1, float("-inf"), 3, 4]), "annotation 101: .*4 finite numbers"),
    (put("annotations", 1, bbox=[1, 2, 10**400, 4]), "annotation 101: .*4 finite numbers"),
    (drop("annotations", 1, "bbox"), "annotation 101: expected bbox .* got nothing"),
    (put("annotations", 1, iscrowd=2), "annotation 101: expected iscrowd 0 or 1, got 2"),
    (put("annotations", 1, area="big"), "annotation 101: expected a finite number as area"),
]


@pytest.mark.parametrize(("change", "message"), BAD_FILES, ids=range(len(BAD_FILES)))
def test_a_bad_file_is_one_sentence(tmp_path, change, message):
    arguments = rewrite(tmp_path, change)
    with pytest.raises(DataError, match=message) as caught:
        COCODataset(transform_ops=EVAL_OPS, **arguments)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 400 and text.startswith(str(tmp_path))


def test_only_empty_boxes_are_no_training_set(tmp_path):
    images = {1: ((20, 10), [(2, [30, 30, 5, 5], 0)])}
    with pytest.raises(DataError, match="train.json: expected images with boxes, found none"):
        COCODataset(transform_ops=EVAL_OPS, **write_coco(tmp_path, images))
    images = {1: ((20, 10), [(2, [3, 3, 5, 5], 1)])}
    with pytest.raises(DataError, match="expected images with boxes, found none"):
        COCODataset(
            transform_ops=EVAL_OPS,
            load_crowd=False,
            skip_empty=True,
            **write_coco(tmp_path, images),
        )


def test_missing_images_are_counted(tmp_path):
    arguments = write_coco(tmp_path)
    for key in (3, 4):
        (tmp_path / "train" / f"{key:012d}.jpg").unlink()
    with pytest.raises(DataError, match=r"003.jpg: .* found no such file and 1 more are missing"):
        COCODataset(transform_ops=EVAL_OPS, **arguments)


def test_settings_are_named(tmp_path):
    section = {"name": "COCODataset", **write_coco(tmp_path), "transform_ops": EVAL_OPS}

    def build(class_num=4, **changes):
        return build_named(
            DATASETS, section | changes, "D.dataset", class_num=class_num, config_path="D.dataset"
        )

    assert len(build()) == len(COCO_IMAGES)
    with pytest.raises(DataError, match=r"expected 80 categories .* found 3; set class_num to 4"):
        build(class_num=81)
    with pytest.raises(DataError, match="D.dataset.image_dir: expected a folder"):
        build(image_dir="none")
    with pytest.raises(DataError, match="none.json: no such file"):
        build(anno_path="none.json")
    with pytest.raises(ConfigError, match=r"D.dataset.transform_ops: expected DecodeImage"):
        build(transform_ops=EVAL_OPS[1:])
    with pytest.raises(ConfigError, match="unknown key 'anno_pth'; did you mean 'anno_path'"):
        build(anno_pth="x")
    absolute = {"image_dir": str(tmp_path / "train"), "dataset_dir": None}
    assert len(build(anno_path=str(tmp_path / section["anno_path"]), **absolute)) == 4
