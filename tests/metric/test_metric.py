"""Top-k counts against NumPy, ties, and what a config may not say."""

import numpy as np
import paddle
import pytest

from ppcls.metric import TopkAcc, build_metric
from ppcls.utils.errors import ConfigError


def counts(metric, logits, label):
    result = metric.sums(paddle.to_tensor(logits), paddle.to_tensor(label))
    assert all(value.dtype == paddle.int64 and value.shape == [] for value in result.values())
    return {key: int(value) for key, value in result.items()}


def reference(logits, label, k):
    order = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    return int((order == label[:, None]).sum())


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)], ids=["N", "N1"])
@pytest.mark.parametrize("values", [None, 3], ids=["distinct", "ties"])
def test_counts_equal_a_stable_sort(values, shape):
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((64, 10)) if values is None else rng.integers(0, values, (64, 10))
    logits, label = logits.astype("float32"), rng.integers(0, 10, 64)
    found = counts(TopkAcc((1, 3, 10)), logits, label.reshape(shape))
    assert found == {f"top{k}": reference(logits, label, k) for k in (1, 3, 10)}


def test_equal_logits_are_no_success():
    label = np.arange(10)
    assert counts(TopkAcc([1, 5]), np.zeros((10, 10), "float32"), label) == {"top1": 1, "top5": 5}


def test_nan_is_never_right():
    logits = np.full((4, 3), np.nan, "float32")
    assert counts(TopkAcc([1, 3]), logits, np.array([0, 1, 2, 0])) == {"top1": 0, "top3": 0}


def test_soft_labels_count_their_largest_class():
    logits = np.array([[3, 2, 1], [1, 2, 3]], "float32")
    soft = np.array([[0.6, 0.4, 0], [0.1, 0.5, 0.4]], "float32")
    assert counts(TopkAcc([1, 2]), logits, soft) == {"top1": 1, "top2": 2}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_dtypes(dtype):
    logits = paddle.to_tensor([[1.0, 2.0], [2.0, 1.0]]).astype(dtype)
    assert int(TopkAcc(1).sums(logits, paddle.to_tensor([1, 1]))["top1"]) == 1


def test_group_adds_over_batches():
    group = build_metric([{"TopkAcc": {"topk": [1, 2]}}, {"TopkAcc": {"topk": 3}}], "M", 4)
    assert group.names == ["top1", "top2", "top3"]
    rng = np.random.default_rng(1)
    logits, label = rng.standard_normal((9, 4)).astype("float32"), rng.integers(0, 4, 9)
    whole = counts(group, logits, label)
    parts = [counts(group, logits[s], label[s]) for s in (slice(7), slice(7, 9))]
    assert whole == {name: parts[0][name] + parts[1][name] for name in group.names}


def test_defaults():
    assert build_metric(["TopkAcc"], "M", 10).names == ["top1", "top5"]
    assert build_metric([{"TopkAcc": None}], "M", 5).names == ["top1", "top5"]
    empty = build_metric(None, "Metric.Train", 10)
    assert empty.names == [] and empty.sums(paddle.ones([1, 2]), paddle.to_tensor([0])) == {}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            [{"TopkAcc": {"topk": [1, 5]}}],
            r"^M\[0\]\.TopkAcc\.topk: expected every k <= 3 \(Arch\.class_num\), got 5$",
        ),
        (
            [{"TopkAcc": {"topk": [1, 0]}}],
            r"M\[0\]\.TopkAcc\.topk: expected different integers >= 1",
        ),
        (
            [{"TopkAcc": {"topk": [1, 1]}}],
            r"M\[0\]\.TopkAcc\.topk: expected different integers >= 1",
        ),
        ([{"TopkAcc": {"topk": []}}], r"M\[0\]\.TopkAcc\.topk: expected different integers >= 1"),
        ([{"TopkAcc": {"topk": "1,2"}}], r"M\[0\]\.TopkAcc\.topk: expected an integer or a list"),
        ([{"TopkAcc": {"class_num": 5}}], r"M\[0\]\.TopkAcc: unknown key 'class_num'"),
        ([{"TopAcc": {}}], r"M\[0\]: unknown metric 'TopAcc'; did you mean 'TopkAcc'\?"),
        ([{"TopkAcc": {"topk": 1}}] * 2, r"M\[1\]: expected each metric once, got 'top1' again"),
        ({"TopkAcc": {}}, r"M: expected a list of metrics"),
    ],
)
def test_config_errors(entries, message):
    with pytest.raises(ConfigError, match=message):
        build_metric(entries, "M", 3)
