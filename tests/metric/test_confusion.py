"""Counts per class and of confusions, against scikit-learn's."""

import csv
import io

import numpy as np
import pytest

from ppcls.metric.confusion import (
    as_csv,
    class_rows,
    confusion_matrix,
    confusions,
    describe_rows,
    mean_class_accuracy,
)


@pytest.fixture(scope="module", params=[(4, 200), (30, 50), (3, 1)])
def found(request):
    classes, samples = request.param
    rng = np.random.default_rng(samples)
    labels, predicted = rng.integers(0, classes, (2, samples))
    return classes, labels, np.where(rng.random(samples) < 0.5, labels, predicted)


def test_the_matrix_is_scikit_learn_s(found):
    sklearn = pytest.importorskip("sklearn.metrics")
    classes, labels, predicted = found
    matrix = confusion_matrix(labels, predicted, classes)
    expected = sklearn.confusion_matrix(labels, predicted, labels=range(classes))
    assert matrix.dtype == np.int64 and np.array_equal(matrix, expected)
    rows = class_rows(labels, predicted, classes)
    precision, recall, _, support = sklearn.precision_recall_fscore_support(
        labels, predicted, labels=range(classes), zero_division=0
    )
    assert [row["samples"] for row in rows] == support.tolist()
    assert [row["accuracy"] or 0 for row in rows] == pytest.approx(recall)
    assert [row["precision"] or 0 for row in rows] == pytest.approx(precision)
    assert [row["correct"] for row in rows] == np.diag(expected).tolist()
    assert mean_class_accuracy(rows) == pytest.approx(recall[support > 0].mean())


def test_the_mistakes_come_by_their_number(found):
    classes, labels, predicted = found
    listed = confusions(confusion_matrix(labels, predicted, classes))
    assert sum(count for *_, count in listed) == (labels != predicted).sum()
    assert [count for *_, count in listed] == sorted((c for *_, c in listed), reverse=True)
    for true, taken, count in listed:
        assert true != taken and count == ((labels == true) & (predicted == taken)).sum() > 0


def test_a_class_without_images_has_no_accuracy():
    rows = class_rows(np.array([0, 0, 2]), np.array([0, 2, 2]), 3, ["a", "b", "c"])
    assert rows[1] == {
        **{"class": 1, "name": "b", "samples": 0, "correct": 0, "accuracy": None},
        **{"predicted": 0, "precision": None},
    }
    assert mean_class_accuracy(rows) == 0.75
    head, *lines = describe_rows(rows, 5)
    assert head.split() == ["class", "name", "samples", "correct", "accuracy", "precision"]
    assert [line.split()[:2] for line in lines] == [["0", "a"], ["1", "b"], ["2", "c"]]
    assert [line.split()[0] for line in describe_rows(rows, 1)[1:]] == ["0"]  # the worst


def test_csv(found):
    classes, labels, predicted = found
    matrix = confusion_matrix(labels, predicted, classes)
    head, *rows = list(csv.reader(io.StringIO(as_csv(matrix))))
    assert head == ["class", *map(str, range(classes))]
    assert np.array_equal(np.array(rows, int)[:, 1:], matrix)
