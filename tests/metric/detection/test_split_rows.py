"""From the rows of a batch to the detections of each image."""

import numpy as np
import pytest

from ppcls.metric.detection import no_detections, split_rows
from ppcls.utils.errors import JobError

ROWS = np.array([[3, 0.5, 1, 2, 3, 4], [80, 0.25, 5, 6, 7, 8], [1, 1, -1, 0, 9, 9]], np.float32)


def test_each_image_gets_its_rows():
    result = split_rows(ROWS, np.array([2, 0, 1], np.int32), [7, 3, 5])
    assert list(result) == [7, 3, 5]
    assert result[7].labels.tolist() == [3, 80] and result[7].scores.tolist() == [0.5, 0.25]
    assert result[7].boxes.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert result[5].boxes.tolist() == [[-1, 0, 9, 9]]
    for one in (*result.values(), no_detections()):
        assert [array.dtype for array in one] == [np.int64, np.float32, np.float32]
        assert one.scores.shape == one.labels.shape and one.boxes.shape == (len(one.labels), 4)
    assert len(result[3].labels) == len(no_detections().labels) == 0


def test_the_batch_is_not_kept_alive():
    assert not np.shares_memory(split_rows(ROWS, np.array([3]), [0])[0].boxes, ROWS)


def test_nothing_found():
    assert len(split_rows(np.zeros((0, 6), np.float32), np.array([0, 0]), [1, 2])[2].labels) == 0
    assert split_rows(np.zeros((0, 6), np.float32), np.zeros(0, np.int32), []) == {}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_broken_numbers_end_the_job(value):
    rows = ROWS.copy()
    rows[1, 3] = value
    with pytest.raises(JobError, match="detections are not finite: its weights may be damaged"):
        split_rows(rows, np.array([3]), [0])
