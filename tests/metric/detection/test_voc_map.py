"""VOC's mAP against numbers computed by hand and against plain loops."""

import math

import numpy as np
import pytest
from made_up_detections import Images, found, objects, random_detections, random_images

from ppcls.metric.detection import VOCMetric, build_detection_metrics, voc_map, write_voc_results
from ppcls.metric.detection.voc_map import average_precision, box_iou
from ppcls.utils.errors import ConfigError, DataError

A, B = (0, 0, 9, 9), (20, 20, 29, 29)


def ap_of_cats(detections, images, **options):
    return voc_map(detections, images, **options).per_class["cat"]


def test_both_metrics_by_hand():
    """Three objects. By score: right, the same object again (wrong), right, nothing there (wrong).

    Precision 1, 1/2, 2/3, 1/2 at recall 1/3, 1/3, 2/3, 2/3. 11 points: precision 1 at recalls 0 to
    0.3 (4 of them), 2/3 at 0.4 to 0.6 (3), 0 above: (4 + 3 * 2/3) / 11 = 6/11.
    Area: 1/3 * 1 + 1/3 * 2/3 = 5/9.
    """
    images = Images([objects((1, *A), (1, *B)), objects((1, *A))])
    detections = {
        0: found((1, 0.8, *A), (1, 0.9, *A)),
        1: found((1, 0.6, *B), (1, 0.7, *A)),
    }
    assert ap_of_cats(detections, images, metric="11point") == pytest.approx(6 / 11, abs=1e-15)
    assert ap_of_cats(detections, images, metric="area") == pytest.approx(5 / 9, abs=1e-15)


@pytest.mark.parametrize("flag", ["difficult", "crowd"])
def test_difficult_objects_are_neither_asked_for_nor_held_against(flag):
    """One object counts. Found last, after two detections of the difficult one: precision 1."""
    images = Images([objects((1, *A), (1, *B), **{flag: [1]})])
    detections = {0: found((1, 0.9, *B), (1, 0.8, *B), (1, 0.7, *A))}
    assert ap_of_cats(detections, images, metric="area") == 1.0
    plain = Images([objects((1, *A), (1, *B))])
    # Right, wrong, right of two: 1/2 * 1 + 1/2 * 2/3.
    assert ap_of_cats(detections, plain, metric="area") == pytest.approx(5 / 6)


def test_equal_scores_keep_their_order():
    images = Images([objects((1, *A)), objects()])
    right, wrong = (1, 0.5, *A), (1, 0.5, *B)
    assert ap_of_cats({0: found(right, wrong), 1: found()}, images) == 1.0
    assert ap_of_cats({0: found(wrong, right), 1: found()}, images) == 0.5
    # Of different images, the first image comes first, in whatever order they were put in.
    assert ap_of_cats({1: found(wrong), 0: found(right)}, images) == 1.0


def test_an_iou_of_one_half_is_not_enough():
    images = Images([objects((1, 0, 0, 9, 9))])
    half, more = (1, 0.5, 0, 0, 9, 4), (1, 0.5, 0, 0, 9, 5)
    assert ap_of_cats({0: found(half)}, images) == 0.0
    assert ap_of_cats({0: found(more)}, images) == 1.0


def test_a_hit_belongs_to_the_object_of_the_largest_overlap():
    """Taken already, so the second detection is wrong, though it meets the other object too."""
    images = Images([objects((1, 0, 0, 9, 9), (1, 0, 0, 9, 6))])
    detections = {0: found((1, 0.9, 0, 0, 9, 9), (1, 0.8, 0, 0, 9, 8))}
    assert ap_of_cats(detections, images, metric="area") == 0.5


def test_objects_of_other_classes_do_not_count():
    """The dog is where the cat was found, and overlaps more."""
    images = Images([objects((1, 0, 0, 9, 8), (2, 0, 0, 9, 9))])
    detections = {0: found((1, 0.9, 0, 0, 9, 9))}
    result = voc_map(detections, images)
    assert result.per_class == {"cat": 1.0, "dog": 0.0}
    assert ap_of_cats(detections, Images([objects((2, *A), (1, *B))])) == 0.0


def test_pixels_are_counted_or_measured():
    """4 of 6 pixels; as measured lengths, 1 of 2."""
    detections, truth = {0: found((1, 0.5, 0, 0, 1, 1))}, [objects((1, 0, 0, 1, 2))]
    assert ap_of_cats(detections, Images(truth), plus_one=True) == 1.0
    assert ap_of_cats(detections, Images(truth), plus_one=False) == 0.0
    # The metric follows the data set, unless told.
    assert VOCMetric().evaluate(detections, Images(truth))["mAP"] == 1.0
    edges = Images(truth, official_quirks=False)
    assert VOCMetric().evaluate(detections, edges)["mAP"] == 0.0
    assert VOCMetric(plus_one=True).evaluate(detections, edges)["mAP"] == 1.0


def test_classes():
    """One is not in the images, one is never found."""
    names = ["background", "cat", "dog", "cow"]
    images = Images([objects((1, *A), (2, *B))], names)
    result = voc_map({0: found((1, 0.9, *A), (3, 0.9, *B))}, images)
    assert result.per_class["cat"] == 1.0 and result.per_class["dog"] == 0.0
    assert math.isnan(result.per_class["cow"]) and result.mean == 0.5
    table = result.table().splitlines()
    assert table == ["cat 100.0", "dog   0.0", "cow no objects", "mAP  50.0"]


def test_nothing():
    images = Images([objects((1, *A)), objects()])
    assert voc_map({0: found(), 1: found()}, images).mean == 0.0
    assert math.isnan(voc_map({1: found((1, 0.5, *A))}, images).mean)
    assert math.isnan(voc_map({}, images).mean)


def test_only_the_images_with_an_entry_are_judged():
    images = Images([objects((1, *A)), objects((1, *A))])
    assert ap_of_cats({1: found((1, 0.5, *A))}, images) == 1.0
    assert ap_of_cats({0: found(), 1: found((1, 0.5, *A))}, images, metric="area") == 0.5


def test_recall_is_compared_in_whole_numbers_unless_told():
    """3 of 10: recalls 0, 0.1, 0.2 and 0.3 are reached. 3 * 0.1 is 0.30000000000000004."""
    right = np.ones(3, bool)
    assert average_precision(right, 10, "11point") == pytest.approx(4 / 11)
    assert average_precision(right, 10, "11point", float_recall=True) == pytest.approx(3 / 11)


def test_rounding_of_the_official_files():
    """0.9001 and 0.9004 are both 0.900 there, and the wrong one stands first."""
    images = Images([objects((1, *A))])
    detections = {0: found((1, 0.9001, *B), (1, 0.9004, *A))}
    assert ap_of_cats(detections, images) == 1.0
    assert ap_of_cats(detections, images, official_quirks=True) == 0.5
    # 5.02 rows of 10: 0.502 of the object, which 1 decimal makes 0.5.
    detections = {0: found((1, 0.9, 0, 0, 9, 4.02))}
    assert ap_of_cats(detections, images) == 1.0
    assert ap_of_cats(detections, images, official_quirks=True) == 0.0


def test_iou():
    boxes = np.array([[0, 0, 3, 3], [2, 2, 5, 5], [8, 8, 8, 8]], np.float32)
    # Counted: 16 pixels each, 4 in common, 28 together. Measured: 9, 1 and 17; a point has none.
    np.testing.assert_allclose(box_iou(boxes[:1], boxes, True)[0], [1, 4 / 28, 0])
    np.testing.assert_allclose(box_iou(boxes[:1], boxes, False)[0], [1, 1 / 17, 0])
    assert (
        box_iou(boxes[2:], boxes[2:], False)[0, 0] == 0
        and box_iou(boxes[:0], boxes, True).size == 0
    )


def plain_ap(detections, images, label, metric):
    """The rules again, one detection and one object at a time."""
    rows = [
        (float(score), index, box.astype(float))
        for index, one in sorted(detections.items())
        for kind, score, box in zip(*one, strict=True)
        if kind == label
    ]
    taken, right, wrong, curve = set(), 0, 0, []
    truth = [images.ground_truth(i) for i in sorted(detections)]
    positives = sum(int(((t.labels == label) & ~t.difficult).sum()) for t in truth)
    for _, index, box in sorted(rows, key=lambda row: -row[0]):
        t = images.ground_truth(index)
        best, chosen = 0.0, None
        for k in np.flatnonzero(t.labels == label):
            other = t.boxes[k].astype(float)
            width = max(0.0, min(box[2], other[2]) - max(box[0], other[0]) + 1)
            height = max(0.0, min(box[3], other[3]) - max(box[1], other[1]) + 1)
            areas = [(b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in (box, other)]
            iou = width * height / (sum(areas) - width * height)
            if iou > best:
                best, chosen = iou, (index, k)
        if best > 0.5 and t.difficult[chosen[1]]:
            continue
        if best > 0.5 and chosen not in taken:
            taken.add(chosen)
            right += 1
        else:
            wrong += 1
        curve.append((right, right / (right + wrong)))
    if metric == "11point":
        points = [[p for r, p in curve if r * 10 >= k * positives] for k in range(11)]
        return sum(max(p, default=0.0) for p in points) / 11
    steps = [max((p for r, p in curve if r >= k), default=0.0) for k in range(1, positives + 1)]
    return sum(steps) / positives


@pytest.mark.parametrize("metric", ["11point", "area"])
def test_plain_loops_find_the_same(metric):
    images = random_images(60, 4, seed=1)
    detections = random_detections(images, seed=2)
    result = voc_map(detections, images, metric=metric)
    expected = [plain_ap(detections, images, label, metric) for label in range(1, 5)]
    np.testing.assert_allclose(list(result.per_class.values()), expected, rtol=0, atol=1e-12)
    assert result.mean == pytest.approx(np.mean(expected)) and 0.1 < result.mean < 0.9


def test_outer_edges_and_pixel_numbers_agree():
    """The same boxes, with x2 = last pixel and with x2 = last pixel + 1."""
    images = random_images(40, 3, seed=3)
    detections = random_detections(images, seed=4)
    wider = np.array([0, 0, 1, 1], np.float32)
    edges = Images(
        [t._replace(boxes=t.boxes + wider) for t in images.truth], images.class_names, [], False
    )
    moved = {i: d._replace(boxes=d.boxes + wider) for i, d in detections.items()}
    for quirks in (False, True):
        metric = VOCMetric(official_quirks=quirks)
        assert metric.evaluate(moved, edges) == metric.evaluate(detections, images)


@pytest.mark.parametrize(("quirks", "last"), [(True, "11.2 12.2"), (False, "10.2 11.2")])
def test_result_files(tmp_path, quirks, last):
    images = Images([objects((1, *A)), objects()], image_ids=["a1", "b2"], official_quirks=quirks)
    detections = {
        1: found((1, 0.25, *B)),
        0: found((2, 0.5, *A), (1, 0.98765, 0, -1, 10.24, 11.16)),
    }
    write_voc_results(tmp_path, detections, images)
    second = "30.0 30.0" if quirks else "29.0 29.0"
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "comp4_det_test_cat.txt": f"a1 0.988 1.0 0.0 {last}\nb2 0.250 21.0 21.0 {second}\n",
        "comp4_det_test_dog.txt": f"a1 0.500 1.0 1.0 {'10.0 10.0' if quirks else '9.0 9.0'}\n",
    }


def test_a_class_name_that_is_no_file_name(tmp_path):
    images = Images([objects((1, *A))], ["background", "cat", "up/down"])
    with pytest.raises(DataError, match="class 'up/down': expected a name"):
        write_voc_results(tmp_path, {0: found()}, images)
    assert not list(tmp_path.iterdir())


def test_from_a_config(caplog):
    (metric,) = build_detection_metrics([{"VOCMetric": {"metric": "area"}}], "Metric.Eval")
    images = Images([objects((1, *A), (1, *B))])
    result = metric.evaluate({0: found((1, 0.5, *A))}, images)
    assert list(result) == ["mAP", "mAP/cat", "mAP/dog"] and metric.names == ["mAP"]
    assert result["mAP"] == result["mAP/cat"] == 0.5
    assert "VOC (area), 1 images:\ncat  50.0\ndog no objects\nmAP  50.0" in caplog.text
    assert build_detection_metrics(None, "Metric.Eval") == []


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            [{"VOCMetric": {"metric": "2007"}}],
            r"M\[0\]\.VOCMetric\.metric: expected one of '11point'",
        ),
        (
            [{"VOCMetric": {"iou": 1}}],
            r"M\[0\]\.VOCMetric\.iou: expected a number in 0\.\.1, got 1",
        ),
        ([{"VOCMetrics": {}}], r"M\[0\]: unknown detection metric 'VOCMetrics'; did you mean 'VOC"),
        (["VOCMetric", "VOCMetric"], r"M\[1\]: expected each metric once, got 'mAP' again"),
        ({"VOCMetric": {}}, "M: expected a list of metrics"),
    ],
)
def test_config_errors(entries, message):
    with pytest.raises(ConfigError, match=message):
        build_detection_metrics(entries, "M")
