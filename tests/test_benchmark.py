"""The parts of `tools/benchmark.py` that do not take long."""

import benchmark
import numpy as np
import pytest

from ppcls.utils.errors import JobError


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["save"], "-c: expected the recipe to train by, got none"),
        (["postprocess", "--turns", "0"], "--turns: expected 1 or more, got 0"),
    ],
)
def test_mistakes(arguments, line, capsys):
    assert benchmark.main(arguments) == 2
    assert line in capsys.readouterr().err


def test_a_ratio_above_1_is_ours(capsys):
    entry = benchmark.row("case", ("ours", "theirs"), "images/s", [(2.0, 1.0), (3.0, 1.0)])
    assert (entry["ours_value"], entry["reference_value"], entry["ratio"]) == (2.5, 1.0, 2.5)


def test_other_detections_are_no_result():
    rows = np.array([[1, 0.5, 0, 0, 9, 9]], "float32")
    benchmark._check_same("case", rows, rows + np.float32(1e-7))
    for other in (rows[:0], rows + np.float32(1e-2)):
        with pytest.raises(JobError, match="case: expected the loop's"):
            benchmark._check_same("case", rows, other)
