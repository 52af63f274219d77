"""VOCDataset: conventions, samples, and every bad file with its sentence."""

import numpy as np
import pytest
from detection_folders import EVAL_OPS, TRAIN_OPS, VOC_IMAGES, voc_xml, write_voc

from ppcls.data.datasets import DATASETS, VOCDataset
from ppcls.utils.errors import ConfigError, DataError
from ppcls.utils.schema import build_named


def make(root, ops=EVAL_OPS, **options):
    return VOCDataset(transform_ops=ops, **(write_voc(root) | options))


def test_official_conventions(tmp_path):
    dataset = make(tmp_path, class_num=21)
    assert dataset.image_ids == ["000005", "000012", "2008_000002"]
    assert dataset.class_num == 21 and len(dataset.class_names) == 21
    assert dataset.class_names[:2] + dataset.class_names[-1:] == [
        "background",
        "aeroplane",
        "tvmonitor",
    ]
    assert dataset.sizes.tolist() == [[30, 40], [40, 30], [32, 32]]
    truth = dataset.ground_truth(0)
    assert truth.boxes.tolist() == [[0, 0, 19, 29], [4, 5, 14, 15]]
    assert truth.labels.tolist() == [12, 8]
    assert truth.difficult.tolist() == [False, True] and not truth.crowd.any()
    assert dataset.ground_truth(1).labels.tolist() == [20]
    sample = dataset[1]
    np.testing.assert_allclose(sample.boxes * [30, 40, 30, 40], [[9, 9, 29, 39]], rtol=1e-5)
    assert sample.size == (40, 30) and len(dataset[0].labels) == 2


def test_plain_boxes_and_difficult_objects_are_options(tmp_path):
    dataset = make(tmp_path, official_quirks=False, load_difficult=False)
    assert dataset.ground_truth(0).boxes.tolist() == [[0, 0, 20, 30], [4, 5, 15, 16]]
    assert dataset[0].labels.tolist() == [12]
    assert dataset.ground_truth(0).labels.tolist() == [12, 8]


def test_boxes_beyond_the_image_are_cut_and_counted(tmp_path, caplog):
    images = {("2007", "test"): {"1": ((20, 20), [("dog", [0, 5, 40, 9], 0)] * 2)}}
    images["2007", "test"]["1"][1].append(("cat", [9, 9, 9, 9], 0))
    arguments = write_voc(tmp_path, images) | {"splits": ["2007 test"]}
    with caplog.at_level("INFO", "ppcls"):
        dataset = VOCDataset(transform_ops=EVAL_OPS, **arguments)
    assert dataset.ground_truth(0).boxes.tolist() == [[0, 4, 20, 8]] * 2
    assert "2 of 3 boxes reach beyond" in caplog.text
    assert "1 of 3 boxes have no area" in caplog.text and "1.xml: object 3" in caplog.text


def test_names_of_ones_own(tmp_path):
    lists = {("2007", "test"): {"a b-1": ((20, 20), [("mug", [3, 5, 14, 9], 0)])}}
    arguments = write_voc(tmp_path, lists) | {"splits": ["2007 test"]}
    (tmp_path / "labels.txt").write_text("cup\nmug\n")
    dataset = VOCDataset(transform_ops=TRAIN_OPS, label_list="labels.txt", **arguments)
    assert dataset.class_names == ["background", "cup", "mug"]
    assert dataset[0].labels.tolist() == [2]


BOMB = '<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;&x;">]><annotation>&y;</annotation>'
FILE = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>'
SIDES = "<size><width>40</width><height>30</height></size>"


def xml(name="dog", box=(1, 1, 5, 5), difficult=0):
    return voc_xml((40, 30), [(name, box, difficult)])


BAD_XML = [
    (b"", "the file is empty"),
    (b"<annotation>", r"expected XML \(no element found"),
    (b"\x00\x01", "expected XML"),
    (BOMB, r"expected plain XML, found a document type \(DTD\)"),
    (FILE, r"expected plain XML, found a document type \(DTD\)"),
    ("<annotation>&x;</annotation>", r"expected XML \(undefined entity"),
    ('<?xml version="1.0" encoding="nonsense"?><annotation/>', "expected XML"),
    (b"<annotation>" + b" " * 4_000_001, "expected at most 4,000,000 bytes"),
    ("<html/>", "expected an <annotation>, found <html>"),
    ("<annotation/>", "expected size/height from 1 to 100000, found ''"),
    (SIDES.join(["<annotation>", "</annotation>"]).replace("40", "-4"), "expected size/width"),
    (xml(name="wolf"), "object 1: expected one of the 20 classes, got 'wolf'"),
    (xml(name="hourse"), "object 1: expected one of the 20 classes, .* did you mean 'horse'"),
    (xml(difficult="x"), "object 1: expected difficult 0 or 1, got 'x'"),
    (xml(box=(1, 2, 3, "nan")), "object 1: expected a finite number as bndbox/ymax, got 'nan'"),
    (xml(box=(1, 2, 3, "1e999")), "object 1: expected a finite number as bndbox/ymax"),
    (xml(box=(1, "", 3, 4)), "object 1: expected a finite number as bndbox/ymin, got ''"),
]


@pytest.mark.parametrize(("text", "message"), BAD_XML, ids=range(len(BAD_XML)))
def test_a_bad_annotation_is_one_sentence(tmp_path, text, message):
    arguments = write_voc(tmp_path)
    path = tmp_path / "VOC2007" / "Annotations" / "000012.xml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message) as caught:
        VOCDataset(transform_ops=EVAL_OPS, **arguments)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n \n", "trainval.txt: expected names of images, one a line, found none"),
        ("000005\n000005\n", "trainval.txt:2: expected each image once, got '000005' again"),
        ("../../etc/passwd\n", "trainval.txt:1: expected the name of an image, got '../"),
        ("a/b\n", "trainval.txt:1: expected the name of an image, got 'a/b'"),
        ("000007\n", "000007.jpg: expected an image, found no such file"),
        (b"\xff\n", "trainval.txt: expected UTF-8 text"),
    ],
)
def test_a_bad_list_is_one_sentence(tmp_path, text, message):
    arguments = write_voc(tmp_path)
    path = tmp_path / "VOC2007" / "ImageSets" / "Main" / "trainval.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message):
        VOCDataset(transform_ops=EVAL_OPS, **arguments)


def test_settings_are_named(tmp_path):
    section = {"name": "VOCDataset", **write_voc(tmp_path), "transform_ops": EVAL_OPS}

    def build(class_num=21, **changes):
        return build_named(
            DATASETS, section | changes, "D.dataset", class_num=class_num, config_path="D.dataset"
        )

    assert len(build()) == 3
    with pytest.raises(DataError, match=r"VOC: expected 19 categories .* found 20"):
        build(class_num=20)
    with pytest.raises(DataError, match="D.dataset.dataset_dir: expected a folder"):
        build(dataset_dir=str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="D.dataset.splits: expected 'year list' .* got '2007'"):
        build(splits=["2007"])
    with pytest.raises(ConfigError, match="D.dataset.splits: expected at least one"):
        build(splits=[])
    with pytest.raises(DataError, match="found '000005' in 'trainval' and 'trainval'"):
        build(splits=["2007 trainval"] * 2)
    with pytest.raises(DataError, match=r"VOC2012.*test.txt: no such file"):
        build(splits=["2012 test"])
    (tmp_path / "VOC2007" / "Annotations" / "000005.xml").unlink()
    with pytest.raises(DataError, match="000005.xml: no such file"):
        build()
    assert len(VOC_IMAGES) == 3
