from __future__ import annotations

from dataclasses import replace

import numpy as np
import paddle
import pytest
from _benchmark import postprocess_loops as loops
from paddle.static import InputSpec

from ppcls.arch.detection.boxes import decode
from ppcls.arch.detection.postprocess import (
    COCO,
    VOC,
    PostProcess,
    PostProcessConfig,
    suppress,
)
from ppcls.arch.detection.priors import COCO_300, prior_boxes

SIZE = (640, 427)


@pytest.fixture(scope="module")
def official(request):
    return dict(np.load(request.path.parents[2] / "assets" / "ssd_hardnet68_512.npz"))


def tensors(*arrays):
    return [paddle.to_tensor(array) for array in arrays]


def made_up(seed, batch=1, priors=60, classes=9, background=0.0):
    """Overlapping boxes with scores that are sums to one."""
    rng = np.random.default_rng(seed)
    first, side = (
        rng.uniform(0, 0.8, (batch, priors, 2)),
        rng.uniform(0.05, 0.4, (batch, priors, 2)),
    )
    boxes = np.concatenate([first, first + side], axis=-1).astype("float32")
    scores = np.exp(2 * rng.standard_normal((batch, priors, classes)))
    scores[..., 0] *= np.exp(background)
    return boxes, (scores / scores.sum(axis=-1, keepdims=True)).astype("float32")


def each_alone(boxes, scores, sizes, config):
    images = zip(boxes, scores, sizes, strict=True)
    return [loops.select(*image, config) for image in images]


def compare(found, wanted, atol=1e-3):
    assert found.shape == wanted.shape and found.dtype == np.float32
    np.testing.assert_array_equal(found[:, 0], wanted[:, 0])
    np.testing.assert_allclose(found[:, 1], wanted[:, 1], rtol=0, atol=1e-6)
    np.testing.assert_allclose(found[:, 2:], wanted[:, 2:], rtol=0, atol=atol)


# Against the official routine


@pytest.mark.parametrize("case", "AB")
def test_detections_are_the_official_ones(official, case):
    score, iou, per_class, per_image, background = official["pp_params"].tolist()
    assert (
        PostProcessConfig(
            score=score,
            iou=iou,
            per_class=int(per_class),
            per_image=int(per_image),
            background=background,
        )
        == COCO
    )
    given = tensors(
        official[f"pp{case}_boxes"][None],
        official[f"pp{case}_scores"][None],
        official["pp_image_wh"][None],
    )
    rows, counts = PostProcess(9).select(*given)
    assert counts.dtype == paddle.int32 and counts.tolist() == [len(rows)]
    compare(rows.numpy(), official[f"pp{case}_det"])
    wanted = loops.select(given[0].numpy()[0], given[1].numpy()[0], SIZE, COCO)
    compare(wanted, official[f"pp{case}_det"])


@pytest.mark.parametrize(("legacy", "key"), [(False, "nms_keep"), (True, "nms_keep_legacy_plus1")])
def test_suppression_is_the_official_one(official, legacy, key):
    boxes, scores = official["nms_boxes"], official["nms_scores"]
    both = np.stack([np.zeros_like(scores), scores])[None]
    rows, counts = suppress(*tensors(boxes[None], both), 0.0, 0.45, legacy)
    keep = official[key]
    assert counts.tolist() == [len(keep)]
    np.testing.assert_array_equal(rows.numpy()[:, 2:], boxes[keep])
    np.testing.assert_array_equal(rows.numpy()[:, 1], scores[keep])
    assert loops.nms(boxes, scores, 0.45, int(legacy)) == keep.tolist()


# Against the slow loop


@pytest.mark.parametrize(
    "config",
    [
        COCO,
        VOC,
        replace(COCO, per_class=3),
        replace(COCO, per_class=2, per_image=5),
        replace(COCO, per_image=1),
        replace(COCO, legacy_pixels=True, background=1.1),
        replace(COCO, score=0.3, background=0.2),
        replace(COCO, first_try=0),
        replace(COCO, per_class=3, first_try=1),  # too few: all are taken
    ],
)
def test_a_batch_is_each_image_by_itself(config):
    boxes, scores = made_up(0, batch=4, background=1.0)
    scores[2] = 0  # an image without detections
    sizes = np.array([[640, 427], [100, 300], [64, 64], [1000, 20]])
    rows, counts = PostProcess(9, config).select(*tensors(boxes, scores, sizes))
    wanted = each_alone(boxes, scores, sizes, config)
    assert counts.tolist() == [len(part) for part in wanted] and counts.tolist()[2] == 0
    compare(rows.numpy(), np.concatenate(wanted))


def test_scores_equal_to_the_last_one_stay():
    boxes = np.stack([np.arange(6) / 10, np.zeros(6), np.arange(6) / 10 + 0.05, np.ones(6)], -1)
    scores = np.array([[0.1, 0.5, 0.4]] * 4 + [[0.1, 0.8, 0.1], [0.1, 0.3, 0.6]])
    given = tensors(boxes[None].astype("f4"), scores[None].astype("f4"), np.array([[100, 100]]))
    rows, counts = PostProcess(3, replace(COCO, per_image=3)).select(*given)
    # 0.8 and 0.6 are above the third score, which four boxes have.
    assert counts.tolist() == [6]
    assert rows.numpy()[:, 0].tolist() == [1] * 5 + [2]


def test_nothing_found():
    boxes, scores = made_up(0, batch=2)
    scores[...] = 0
    scores[..., 0] = 1
    rows, counts = PostProcess(9).select(*tensors(boxes, scores, np.array([SIZE] * 2)))
    assert list(rows.shape) == [0, 6] and counts.tolist() == [0, 0]


def test_thresholds_are_strict():
    boxes = np.array([[[0, 0, 0.1, 0.1], [0.5, 0.5, 0.6, 0.6]]], "float32")
    scores = np.array([[[0.1, 0.5, 0.25], [0.9, 0.0, 0.5]]], "float32")
    config = replace(COCO, score=0.25, background=float(np.float32(0.9)))
    rows, _ = PostProcess(3, config).select(*tensors(boxes, scores, np.array([[10, 10]])))
    # Neither a score equal to the threshold nor a background equal to its own is enough.
    np.testing.assert_allclose(rows.numpy(), [[1, 0.5, 0, 0, 1, 1]], rtol=1e-6)


# The whole, and its graph


def raw(batch, classes=9, seed=0):
    rng = np.random.default_rng(seed)
    loc = rng.standard_normal((batch, COCO_300.count, 4)).astype("float32")
    conf = 3 * rng.standard_normal((batch, COCO_300.count, classes)).astype("float32")
    conf[..., 0] += 8
    return tensors(loc, conf, prior_boxes(COCO_300), np.array([SIZE] * batch))


def test_from_raw_predictions():
    loc, conf, priors, sizes = raw(2)
    rows, counts = PostProcess(9)(loc, conf, priors, sizes)
    boxes = decode(loc, priors).numpy()
    scores = paddle.nn.functional.softmax(conf, axis=-1).numpy()
    wanted = each_alone(boxes, scores, sizes.numpy(), COCO)
    assert counts.tolist() == [len(part) for part in wanted]
    compare(rows.numpy(), np.concatenate(wanted))


@pytest.mark.parametrize("kind", loops.KINDS)
def test_predictions_of_each_kind(kind):
    given = loops.predictions(kind, size=300, class_num=7)
    found = PostProcess(7)(*given)[0].numpy()
    assert (len(found) > 0) == (kind != "empty")
    for loop in loops.LOOPS.values():
        compare(loop(*given, COCO), found)


def test_in_a_static_graph_of_any_batch(tmp_path):
    layer = PostProcess(9)
    priors = COCO_300.count
    spec = [
        InputSpec([None, priors, 4], "float32", "loc"),
        InputSpec([None, priors, 9], "float32", "conf"),
        InputSpec([priors, 4], "float32", "priors"),
        InputSpec([None, 2], "int64", "image_sizes"),
    ]
    static = paddle.jit.to_static(PostProcess(9), input_spec=spec, full_graph=True)
    paddle.jit.save(static, str(tmp_path / "post"))
    loaded = paddle.jit.load(str(tmp_path / "post"))
    for batch in (1, 3):
        given = raw(batch, seed=batch)
        wanted = [part.numpy() for part in layer(*given)]
        assert wanted[1].sum() > 0
        for run in (static, loaded):
            for found, expected in zip(run(*given), wanted, strict=True):
                np.testing.assert_array_equal(found.numpy(), expected)
    given[1][..., 0] += 100.0
    rows, counts = loaded(*given)
    assert list(rows.shape) == [0, 6] and counts.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("name", "value"), [("per_class", 0), ("per_image", 0), ("score", -1), ("iou", -0.1)]
)
def test_numbers_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"{name}: expected "):
        PostProcessConfig(**{name: value})
