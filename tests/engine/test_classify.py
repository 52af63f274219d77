"""Scores of `tools/infer.py`; the tool itself is run in `end_to_end`."""

import numpy as np
import paddle
import pytest
from paddle import nn

from ppcls.engine.classify import _scores
from ppcls.engine.precision import Precision
from ppcls.utils.errors import JobError


def test_scores_that_are_not_finite_are_no_result():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    images = [np.ones([3, 2, 2], np.float32)]
    assert _scores(model, images, Precision(None, "cpu")).sum() == pytest.approx(1.0)
    model[1].weight.set_value(paddle.full([12, 3], float("nan")))
    with pytest.raises(JobError, match="not finite"):
        _scores(model, images, Precision(None, "cpu"))
