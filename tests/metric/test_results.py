"""What predictions say, and that saying it needs no Paddle."""

import subprocess
import sys

import numpy as np
import pytest

from ppcls.metric import results
from ppcls.metric.detection import Detections, no_detections
from ppcls.utils.errors import JobError


def test_best_classes_first_and_equal_ones_in_their_own_order():
    scores = np.array([0.1, 0.3, 0.3, 0.2, 0.1], np.float32)
    result = results.top_classes("a.png", scores, 3, ["a", "b", "c", "d", "e"])
    assert result == {
        "file_name": "a.png",
        "class_ids": [1, 2, 3],
        "scores": [float(scores[i]) for i in (1, 2, 3)],
        "label_names": ["b", "c", "d"],
    }
    assert results.describe_classes(result) == "a.png: 1 b 0.3000, 2 c 0.3000, 3 d 0.2000"
    unnamed = results.top_classes(None, scores, 9, None)
    assert len(unnamed["class_ids"]) == 5 and "label_names" not in unnamed
    assert results.describe_classes(unnamed).startswith("None: 1 0.3000, ")


def test_softmax_of_large_numbers():
    found = results.softmax(np.array([[1000.0, 1000.0], [-1000.0, 0.0]], np.float32))
    np.testing.assert_array_equal(found, [[0.5, 0.5], [0.0, 1.0]])
    assert found.dtype == np.float32


def test_objects_best_first():
    boxes = np.arange(8, dtype=np.float32).reshape(2, 4)
    found = Detections(np.array([2, 1]), np.array([0.25, 0.75], np.float32), boxes)
    result = results.found_objects("a.png", found, ["background", "cat", "dog"])
    assert result == {
        "file_name": "a.png",
        "labels": [1, 2],
        "label_names": ["cat", "dog"],
        "scores": [0.75, 0.25],
        "boxes": [[4.0, 5.0, 6.0, 7.0], [0.0, 1.0, 2.0, 3.0]],
    }
    assert results.describe_objects(result, 0.5) == "a.png: cat 0.750 [4, 5, 6, 7]"
    nothing = results.found_objects("b.png", no_detections(), ["background"])
    assert results.describe_objects(nothing, 0.5) == "b.png: nothing"


def test_numbers_that_are_none_are_no_result():
    results.check_finite(np.zeros(2))
    for number in (np.nan, np.inf):
        with pytest.raises(JobError, match="not finite"):
            results.check_finite(np.array([0.0, number]))


def test_results_and_images_need_no_paddle():
    code = (
        "import sys, ppcls.metric.results, ppcls.data.images, ppcls.engine.draw\n"
        "assert 'paddle' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
