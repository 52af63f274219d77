"""Names and scores of `tools/infer.py`; the tool itself is run in `end_to_end`."""

import numpy as np
import paddle
import pytest
from paddle import nn

from ppcls.engine.classify import _packaged, _scores, read_class_names
from ppcls.engine.precision import Precision
from ppcls.utils.errors import DataError, JobError


def test_label_files_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("0 zero\n1 one, two\n", encoding="utf-8-sig")
    assert read_class_names(path) == {0: "zero", 1: "one, two"}


@pytest.mark.parametrize("line", ["zero", "0", "² two", "-1 minus"])
def test_a_malformed_label_is_named_with_its_line(tmp_path, line):
    path = tmp_path / "names.txt"
    path.write_text(f"0 zero\n{line}\n")
    with pytest.raises(DataError, match=r"names\.txt:2: expected 'id name'"):
        read_class_names(path)


def test_the_names_of_imagenet_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = read_class_names(_packaged("ppcls/utils/imagenet1k_label_list.txt"))
    assert len(names) == 1000 and names[0].startswith("tench")


def test_scores_that_are_not_finite_are_no_result():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    images = [np.ones([3, 2, 2], np.float32)]
    assert _scores(model, images, Precision(None, "cpu")).sum() == pytest.approx(1.0)
    model[1].weight.set_value(paddle.full([12, 3], float("nan")))
    with pytest.raises(JobError, match="not finite"):
        _scores(model, images, Precision(None, "cpu"))
