"""The scripts that check and make detection data sets."""

import json
import os

import numpy as np
import pytest
from detection_folders import EVAL_OPS, VOC_IMAGES, write_coco, write_picture, write_voc
from PIL import Image
from test_prepare_scripts import script, tree

from ppcls.data.datasets import COCODataset, VOCDataset

# prepare_digit_scenes


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    pytest.importorskip("sklearn")
    out = tmp_path_factory.mktemp("scenes") / "new" / "set"
    assert make_scenes(out) == 0
    return out


def make_scenes(out, *more):
    options = ["--train", "24", "--val", "6", "--seed", "3", *more]
    return script("prepare_digit_scenes").main([str(out), *options])


def test_scenes_are_a_coco_data_set(scenes):
    assert os.listdir(scenes.parent) == ["set"]
    names = (scenes / "label_list.txt").read_text().split()
    for half, count in (("train", 24), ("val", 6)):
        dataset = COCODataset(
            half,
            f"annotations/instances_{half}.json",
            EVAL_OPS,
            dataset_dir=str(scenes),
            class_num=11,
            official_quirks=False,
        )
        assert len(dataset) == count and dataset.class_names == ["background", *names]
        assert dataset.category_ids[1:].tolist() == list(range(1, 11))
        boxes = np.concatenate([dataset.ground_truth(i).boxes for i in range(count)])
        assert (boxes >= 0).all() and (boxes <= 300).all()
        heights = boxes[:, 3] - boxes[:, 1]
        assert 30 <= heights.min() < 60 and 100 < heights.max() <= 160
        assert {len(dataset.ground_truth(i).boxes) for i in range(count)} <= set(range(1, 13))
    assert dataset[0].image.shape == (3, 32, 32)


def test_scene_boxes_are_tight_and_hardly_overlap():
    module = script("prepare_digit_scenes")
    source = module.load_sources()["val"]
    rng = np.random.default_rng(0)
    for digit in source.digits[:20]:
        ink = module.draw_stroke(digit, int(rng.integers(40, 140)), rng) >= 0.5
        assert ink[0].any() and ink[-1].any() and ink[:, 0].any() and ink[:, -1].any()
    options = module.Options(train=1, val=12, size=300, digits=6, seed=0)
    for scene in module.draw_half("val", source, options):
        assert len(scene.boxes) == len(scene.labels) and scene.picture.size == (300, 300)
        for i, box in enumerate(scene.boxes):
            assert not module.overlaps(box, scene.boxes[:i])


def test_scene_halves_share_neither_digits_nor_photographs():
    module = script("prepare_digit_scenes")
    sources = module.load_sources()
    digits = [{digit.tobytes() for digit in source.digits} for source in sources.values()]
    assert len(digits[0]) > 1400 and not digits[0] & digits[1]
    for train, val in zip(sources["train"].photos, sources["val"].photos, strict=True):
        assert train.shape[1] + val.shape[1] == 640 and val.shape[1] >= round(0.6 * val.shape[0])
        assert not np.shares_memory(train, val)


def test_scenes_are_the_same_again_and_left_alone(scenes, tmp_path, capsys):
    again = tmp_path / "again"
    assert make_scenes(again) == 0
    before = tree(scenes)
    assert {k: v[0] for k, v in tree(again).items()} == {k: v[0] for k, v in before.items()}
    capsys.readouterr()
    assert make_scenes(scenes) == 0
    assert "nothing to do" in capsys.readouterr().out and tree(scenes) == before
    assert make_scenes(scenes, "--seed", "4") == 2
    assert "found something else" in capsys.readouterr().err and tree(scenes) == before
    next((again / "val").iterdir()).unlink()
    assert make_scenes(again) == 2


@pytest.mark.parametrize("option", ["--train", "--val", "--size", "--digits"])
def test_scene_options_are_checked(tmp_path, capsys, option):
    assert make_scenes(tmp_path / "x", option, "0") == 2
    assert f"{option}: expected a number >= " in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


# prepare_coco


def coco(root, *options):
    return script("prepare_coco").main([str(root), "--sets", "train", "val", *options])


def refused(capsys, message):
    error = capsys.readouterr().err
    last = error.splitlines()[-1]
    assert last.startswith("error: ") and message in last, error
    return error


def test_coco(tmp_path, capsys):
    for name in ("train", "val"):
        write_coco(tmp_path, name=name)
    result = tmp_path / "result.json"
    assert coco(tmp_path, "--subset", "--json", str(result)) == 0
    assert (tmp_path / "label_list.txt").read_text() == "cat\ndog\nbird\n"
    out = capsys.readouterr().out
    assert "class_num to 4" in out and "next: COCODataset with dataset_dir" in out
    counts = json.loads(result.read_text())
    assert counts["val"] == {"images": 4, "boxes": 6} and counts["classes"] == 3


def test_coco_names_every_problem(tmp_path, capsys):
    assert coco(tmp_path / "none") == 2
    refused(capsys, "none: expected a folder, found none")
    for name in ("train", "val"):
        write_coco(tmp_path, name=name)
    assert coco(tmp_path) == 2
    refused(capsys, "expected one of train2017, val2017; use --subset")
    write_picture(tmp_path / "val" / "000000000005.jpg", 7, 8)
    (tmp_path / "val" / "000000000009.jpg").write_bytes(b"no image")
    turned = Image.Exif()
    turned[0x0112] = 6  # shown turned by a quarter
    Image.new("RGB", (30, 40)).save(tmp_path / "val" / "000000000003.jpg", exif=turned)
    assert coco(tmp_path, "--subset") == 2
    error = refused(capsys, "val: found 3 problem(s); the first is")
    assert "005.jpg: expected an image of 40x30 as its annotation says, found 7x8" in error
    assert "003.jpg: expected an image of 30x40 as its annotation says, found 40x30" in error
    assert "009.jpg: expected an image, found no known format" in error
    write_coco(tmp_path, name="val")
    path = tmp_path / "annotations" / "instances_val.json"
    path.write_text(path.read_text().replace('"dog"', '"hound"'))
    assert coco(tmp_path, "--subset") == 2
    refused(capsys, "instances_val.json: expected the categories of")
    assert not (tmp_path / "label_list.txt").exists()


# prepare_voc


def voc(root, *options):
    return script("prepare_voc").main([str(root), *options])


def test_voc(tmp_path, capsys):
    arguments = write_voc(tmp_path)
    assert voc(tmp_path, "--subset") == 0
    out = capsys.readouterr().out
    assert "train: 3 images, 4 boxes" in out and "test: 1 images, 1 boxes" in out
    assert "class_num to 21" in out and "splits: ['2007 trainval', '2012 trainval']" in out
    dataset = VOCDataset(transform_ops=EVAL_OPS, label_list="label_list.txt", **arguments)
    assert dataset.class_num == 21 and dataset.class_names[20] == "tvmonitor"


def test_voc_with_classes_of_ones_own(tmp_path, capsys):
    lists = {("2007", part): {part: ((20, 20), [("mug", [3, 5, 14, 9], 0)])} for part in "ab"}
    write_voc(tmp_path / "mine", lists)
    own = (tmp_path / "mine", "--train", "2007 a", "--test", "2007 b", "--subset")
    assert voc(*own) == 2
    refused(capsys, "object 1: expected one of the 20 classes, got 'mug'")
    (tmp_path / "names.txt").write_text("cup\nmug\n")
    assert voc(*own, "--label-list", str(tmp_path / "names.txt")) == 0
    assert "class_num to 3" in capsys.readouterr().out
    assert (tmp_path / "mine" / "label_list.txt").read_text() == "cup\nmug\n"


def test_voc_names_every_problem(tmp_path, capsys):
    assert voc(tmp_path) == 2
    refused(capsys, "VOC2007/Annotations: expected a folder, found none")
    write_voc(tmp_path)
    assert voc(tmp_path) == 2
    refused(capsys, "VOC2007 trainval: expected 5011 images, found 2; for a part of the set use")
    assert voc(tmp_path, "--train", "2007", "--subset") == 2
    refused(capsys, "expected 'year list'")
    folder = tmp_path / "VOC2007"
    (folder / "JPEGImages" / "000005.jpg").unlink()
    (folder / "Annotations" / "000012.xml").write_text("<annotation>")
    assert voc(tmp_path, "--subset") == 2
    error = refused(capsys, "VOC2007 trainval: found 2 problem(s)")
    assert "000005.jpg: expected the file of 000005, found none" in error
    assert "000012.xml: expected XML" in error
    write_voc(tmp_path, VOC_IMAGES)
    write_picture(folder / "JPEGImages" / "000001.jpg", 9, 9)
    assert voc(tmp_path, "--subset") == 2
    refused(capsys, "000001.jpg: expected an image of 25x25 as its annotation says, found 9x9")
    assert not (tmp_path / "label_list.txt").exists()
