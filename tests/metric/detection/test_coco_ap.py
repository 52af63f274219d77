"""COCO's numbers against ones computed by hand, and against pycocotools on the files themselves."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from made_up_detections import (
    CocoFileImages,
    Images,
    annotation,
    found,
    objects,
    random_detections,
    random_images,
    write_annotations,
)

from ppcls.metric.detection import (
    COCOMetric,
    VOCMetric,
    build_detection_metrics,
    coco_ap,
    coco_results,
    write_coco_results,
)
from ppcls.utils.errors import ConfigError, DataError, UserError

pytest.importorskip("pycocotools")

IDS = [-1, 7, 9]  # labels 1 and 2
ONE = pytest.approx(1.0)  # pycocotools divides by the number of detections and a tiny bit more
# [10, 10, 20, 20] and [50, 50, 50, 50] as corners of their first and last pixels.
SMALL, MEDIUM = (10, 10, 29, 29), (50, 50, 99, 99)


@pytest.fixture
def two_cats(tmp_path):
    """A small and a medium one in image 1, none in image 2."""
    rows = [annotation(1, 7, [10, 10, 20, 20]), annotation(1, 7, [50, 50, 50, 50])]
    return write_annotations(tmp_path / "anno.json", rows, (1, 2))


def test_twelve_numbers_by_hand(two_cats):
    """The small one is found exactly, the other not: recall 1/2 at precision 1.

    Of the 101 recalls 0, 0.01 ... 1, those to 0.5 are reached: AP = 51/101 at every IoU. Among
    small objects all is found, among medium ones nothing; there are no large ones, and no dogs.
    """
    detections = {1: found((1, 0.9, *SMALL)), 2: found()}
    result = coco_ap(two_cats, IDS, detections)
    half = pytest.approx(51 / 101)
    nan = pytest.approx(float("nan"), nan_ok=True)
    expected = {"AP": half, "AP50": half, "AP75": half, "APs": ONE, "APm": 0.0, "APl": nan}
    expected |= {"AR1": 0.5, "AR10": 0.5, "AR100": 0.5, "ARs": 1.0, "ARm": 0.0, "ARl": nan}
    assert result.stats == expected
    assert result.per_class == {"cat": half, "dog": nan}
    head, row = result.table().splitlines()
    assert head.split() == list(expected)
    assert row.split() == "50.5 50.5 50.5 100.0 0.0 - 50.0 50.0 50.0 100.0 0.0 -".split()
    lines = result.summary.splitlines()
    assert len(lines) == 12 and lines[0].endswith("maxDets=100 ] = 0.505")


def test_width_is_counted_or_measured(two_cats):
    """Without the 1, the box is 19 x 19 of 20 x 20: IoU 0.9025 fails at 0.95 alone."""
    detections = {1: found((1, 0.9, *SMALL), (1, 0.8, *MEDIUM))}
    assert coco_ap(two_cats, IDS, detections).stats["AP"] == pytest.approx(1.0)
    # The medium one, 49 x 49 of 50 x 50, is at 0.9604: at IoU 0.95 it is right after one that is
    # wrong, so precision is 1/2 at recalls to 0.5: (9 + 51/101 * 1/2) / 10.
    result = coco_ap(two_cats, IDS, detections, plus_one=False)
    assert result.stats["AP"] == pytest.approx((9 + 51 / 101 / 2) / 10)


def test_crowds_are_neither_asked_for_nor_held_against(tmp_path):
    """Three detections inside a crowd score above the only right one."""
    inside = [(1, 0.9, x, 100, x + 30, 140) for x in (100, 140, 180)]
    detections = {1: found(*inside, (1, 0.5, *SMALL))}
    for crowd, expected in ((1, 1.0), (0, 0.25 * 51 / 101)):
        rows = [
            annotation(1, 7, [10, 10, 20, 20]),
            annotation(1, 7, [90, 90, 200, 100], iscrowd=crowd),
        ]
        path = write_annotations(tmp_path / "anno.json", rows, (1,))
        assert coco_ap(path, IDS, detections).stats["AP"] == pytest.approx(expected)


def test_areas_are_the_annotation_s(tmp_path):
    """The outline of a thin object may cover little of a large box."""
    rows = [annotation(1, 7, [50, 50, 50, 50], area=100.0)]
    path = write_annotations(tmp_path / "anno.json", rows, (1,))
    stats = coco_ap(path, IDS, {1: found((1, 0.9, *MEDIUM))}).stats
    assert stats["APs"] == ONE and math.isnan(stats["APm"])


def test_annotations_numbered_from_0(tmp_path):
    """pycocotools alone takes the object numbered 0 as never found."""
    rows = [annotation(1, 7, [10, 10, 20, 20], id=0)]
    path = write_annotations(tmp_path / "anno.json", rows, (1,))
    assert coco_ap(path, IDS, {1: found((1, 0.9, *SMALL))}).stats["AP"] == ONE


def test_without_crowd_flag_and_area(tmp_path):
    rows = [{"image_id": 1, "category_id": 7, "bbox": [10, 10, 20, 20]}]
    path = write_annotations(tmp_path / "anno.json", rows, (1,))
    stats = coco_ap(path, IDS, {1: found((1, 0.9, *SMALL))}).stats
    assert stats["AP"] == ONE and stats["APs"] == ONE


def test_only_the_images_asked_for_are_judged(two_cats, tmp_path):
    rows = [annotation(i, 7, [10, 10, 20, 20]) for i in (1, 2, 3)]
    path = write_annotations(tmp_path / "three.json", rows, (1, 2, 3))
    one = found((1, 0.9, *SMALL))
    assert coco_ap(path, IDS, {2: one}).stats["AP"] == ONE
    assert coco_ap(path, IDS, {2: one, 3: found()}).stats["AR100"] == 0.5
    images = CocoFileImages([None] * 2, image_ids=[3, 2], anno_path=path)
    assert COCOMetric().evaluate({1: one, 0: found()}, images)["AR100"] == 0.5


def test_only_the_categories_of_the_data_set_are_judged(tmp_path):
    rows = [annotation(1, 7, [10, 10, 20, 20]), annotation(1, 9, [50, 50, 50, 50])]
    path = write_annotations(tmp_path / "anno.json", rows, (1,))
    result = coco_ap(path, [-1, 7], {1: found((1, 0.9, *SMALL))})
    assert result.stats["AP"] == ONE and list(result.per_class) == ["cat"]
    # Labels need not follow the category numbers.
    swapped = {1: found((2, 0.9, *SMALL), (1, 0.9, *MEDIUM))}
    assert coco_ap(path, [-1, 9, 7], swapped).stats["AP"] == ONE


def test_nothing_found_is_zero_and_nothing_to_find_is_nan(two_cats, capsys):
    stats = coco_ap(two_cats, IDS, {1: found(), 2: found()}).stats
    assert stats["AP"] == stats["AR100"] == 0.0 and math.isnan(stats["APl"])
    assert all(math.isnan(v) for v in coco_ap(two_cats, IDS, {2: found()}).stats.values())
    assert all(math.isnan(v) for v in coco_ap(two_cats, IDS, {}).stats.values())
    assert capsys.readouterr().out == ""


@pytest.fixture(scope="module")
def random_set(tmp_path_factory):
    """(data set, detections) of 40 images and 3 categories, one object in five a crowd."""
    path = tmp_path_factory.mktemp("coco") / "anno.json"
    categories, ids = ((3, "c0"), (20, "c1"), (90, "c2")), [100 + 3 * i for i in range(40)]
    images = random_images(
        40, 3, seed=5, kind=CocoFileImages, image_ids=ids, category_ids=np.array([-1, 3, 20, 90])
    )
    rows = [
        annotation(
            ids[i],
            categories[label - 1][0],
            [float(x1), float(y1), float(x2 - x1 + 1), float(y2 - y1 + 1)],
            iscrowd=int(is_difficult),
        )
        for i, truth in enumerate(images.truth)
        for (x1, y1, x2, y2), label, is_difficult, _ in zip(*truth, strict=True)
    ]
    images.anno_path = write_annotations(path, rows, ids, categories)
    detections = random_detections(images, seed=6)
    moved = {i: d._replace(boxes=d.boxes + np.float32(0.123)) for i, d in detections.items()}
    return images, moved


def pycocotools_stats(anno_path, result_path, image_ids):
    """The twelve numbers as pycocotools' own example computes them."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO(anno_path)
    judge = COCOeval(truth, truth.loadRes(str(result_path)), "bbox")
    judge.params.imgIds = image_ids
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    return [None if value == -1 else value for value in judge.stats]


@pytest.mark.parametrize("count", [40, 11], ids=["all", "subset"])
def test_pycocotools_finds_the_same_in_our_files(random_set, tmp_path, count):
    images, detections = random_set
    detections = {i: detections[i] for i in range(count)}
    result = COCOMetric().evaluate(detections, images)
    by_id = {images.image_ids[i]: detections[i] for i in detections}
    rows = coco_results(by_id, images.category_ids)
    write_coco_results(tmp_path / "results.json", rows)
    assert json.loads((tmp_path / "results.json").read_text()) == rows
    theirs = pycocotools_stats(images.anno_path, tmp_path / "results.json", list(by_id))
    ours = [None if math.isnan(result[name]) else result[name] for name in COCOMetric.names]
    assert ours == theirs and 0.05 < ours[0] < 0.95


def test_a_perfect_detector_gets_one(random_set):
    """The data set's own corners, written and judged, are the annotated boxes."""
    images, _ = random_set
    perfect = {
        i: found(*((label, 1, *box) for box, label in zip(t.boxes, t.labels, strict=True)))
        for i, t in enumerate(images.truth)
    }
    assert COCOMetric().evaluate(perfect, images)["AP"] == pytest.approx(1.0)
    wrong = COCOMetric(plus_one=False).evaluate(perfect, images)["AP"]
    assert wrong < 0.95
    images.official_quirks = False
    try:
        assert COCOMetric().evaluate(perfect, images)["AP"] == wrong
    finally:
        images.official_quirks = True


def test_the_annotation_file_s_own_object(two_cats, capsys):
    from pycocotools.coco import COCO

    coco = COCO(two_cats)
    detections = {1: found((1, 0.9, *SMALL))}
    assert coco_ap(coco, IDS, detections).stats["AR1"] == 0.5
    assert len(coco.anns) == 2, "the caller's object was changed"


def test_result_format():
    rows = coco_results({np.int64(5): found((2, 0.5, 1.5, 2, 11, 22.25))}, np.array(IDS))
    assert rows == [
        {"image_id": 5, "category_id": 9, "bbox": [1.5, 2.0, 10.5, 21.25], "score": 0.5}
    ]
    assert json.loads(json.dumps(rows)) == rows
    (row,) = coco_results({"a": found((1, 0.5, 0, 0, 10, 20))}, IDS, plus_one=False)
    assert row["bbox"] == [0, 0, 10, 20] and coco_results({5: found()}, IDS) == []


def test_from_a_config(two_cats, caplog, capsys):
    (metric,) = build_detection_metrics([{"COCOMetric": {}}], "Metric.Eval")
    images = CocoFileImages([None], image_ids=[1], anno_path=two_cats)
    result = metric.evaluate({0: found((1, 0.9, *SMALL))}, images)
    assert list(result) == [*metric.names, "AP/cat", "AP/dog"] and metric.names[0] == "AP"
    assert "COCO, 1 images:\n   AP  AP50" in caplog.text
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_an_annotation_file_with_a_byte_order_mark(two_cats, encoding):
    """The data set takes such a file; the evaluation must too."""
    path = Path(two_cats)
    wanted = coco_ap(path, IDS, {1: found((1, 0.9, *SMALL))}).stats
    path.write_text(path.read_text(encoding="utf-8"), encoding=encoding)
    stats = coco_ap(path, IDS, {1: found((1, 0.9, *SMALL))}).stats
    assert stats == pytest.approx(wanted, nan_ok=True)


def test_both_metrics_keep_their_numbers_per_class(two_cats):
    images = CocoFileImages([objects((1, *SMALL))], image_ids=[1], anno_path=two_cats)
    detections = {0: found((1, 0.9, *SMALL))}
    results = [m.evaluate(detections, images) for m in (COCOMetric(), VOCMetric())]
    assert not set(results[0]) & set(results[1])


def test_a_data_set_without_annotation_file():
    with pytest.raises(
        ConfigError, match="COCOMetric: expected a data set with a COCO .*, got a Im"
    ):
        COCOMetric().check(Images([None]))


def test_without_pycocotools(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "pycocotools"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    message = (
        r"^COCOMetric: expected the package 'pycocotools', found none; "
        r"install it with: pip install 'hardnet-paddle\[det\]'$"
    )
    with pytest.raises(UserError, match=message):
        build_detection_metrics(["COCOMetric"], "Metric.Eval")
    with pytest.raises(UserError, match=message):
        coco_ap("anno.json", IDS, {})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such annotation file"),
        ("[", "expected COCO annotations in JSON"),
        ("[]", "expected COCO annotations, found no list of images"),
        ('{"images": [], "annotations": [1]}', "expected COCO annotations, found no list of ann"),
        (
            '{"images": [{"id": 1}], "annotations": [], "categories": [{"id": 7}]}',
            "expected the category 9, found none",
        ),
        (
            '{"images": [{"id": 2}], "annotations": [], "categories": [{"id": 7}, {"id": 9}]}',
            "expected the image 1, found none",
        ),
        (
            '{"images": [{"id": 1}], "categories": [{"id": 7}, {"id": 9}], "annotations": '
            '[{"id": 4, "image_id": 1, "category_id": 7, "bbox": [1, 2, 3]}]}',
            r"annotation 4: expected a bbox \[x, y, width, height\].*got \[1, 2, 3\]",
        ),
    ],
)
def test_files_that_cannot_be_used(tmp_path, content, message):
    path = tmp_path / "anno.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=f"anno.json: {message}"):
        coco_ap(path, IDS, {1: found()})
