"""What an evaluation says of each class, and which classes it takes for which. With NumPy alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Names = Mapping[int, str] | Sequence[str] | None


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, class_num: int) -> np.ndarray:
    """Count images by class and prediction: [class_num, class_num] int64, a row per true class.

    labels, predicted: [samples] integer, 0 to class_num - 1.
    """
    pairs = np.asarray(labels, np.int64) * class_num + np.asarray(predicted, np.int64)
    counts = np.bincount(pairs, minlength=class_num * class_num)
    return counts.reshape(class_num, class_num).astype(np.int64)


def class_rows(
    labels: np.ndarray, predicted: np.ndarray, class_num: int, names: Names = None
) -> list[dict[str, Any]]:
    """Return per class its number and name, how many images have it (samples), how many of them
    are right (correct, accuracy) and how many are taken for it (predicted, precision).

    A share of no images is None; without `names` there is no name.
    """
    samples = np.bincount(labels, minlength=class_num)
    found = np.bincount(predicted, minlength=class_num)
    correct = np.bincount(labels[labels == predicted], minlength=class_num)
    return [
        {
            "class": number,
            **({} if names is None else {"name": names[number]}),
            "samples": int(samples[number]),
            "correct": int(correct[number]),
            "accuracy": _share(correct[number], samples[number]),
            "predicted": int(found[number]),
            "precision": _share(correct[number], found[number]),
        }
        for number in range(class_num)
    ]


def _share(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None


def mean_class_accuracy(rows: Sequence[Mapping[str, Any]]) -> float:
    """Mean of the accuracies of the classes that have images ("balanced accuracy")."""
    found = [row["accuracy"] for row in rows if row["accuracy"] is not None]
    return float(np.mean(found))


def confusions(matrix: np.ndarray) -> list[tuple[int, int, int]]:
    """Return every mistake as (class, taken for, count), the most frequent first."""
    true, taken = np.nonzero(matrix * (1 - np.eye(len(matrix), dtype=matrix.dtype)))
    counts = matrix[true, taken]
    order = np.argsort(-counts, kind="stable")
    rows = zip(true[order], taken[order], counts[order], strict=True)
    return [(int(a), int(b), int(count)) for a, b, count in rows]


def describe_rows(rows: Sequence[Mapping[str, Any]], most: int) -> list[str]:
    """Return a table as lines of text: all classes, or the `most` least accurate ones."""
    shown = list(rows)
    if len(shown) > most:
        seen = [row for row in rows if row["samples"]]
        shown = sorted(seen, key=lambda row: (row["accuracy"], row["class"]))[:most]
    width = max([len(str(row.get("name", ""))) for row in shown] + [4])
    head = f"{'class':>5}  {'name':<{width}}  samples  correct  accuracy  precision"
    lines = [
        f"{row['class']:>5}  {row.get('name', ''):<{width}}  {row['samples']:>7}  "
        f"{row['correct']:>7}  {_text(row['accuracy']):>8}  {_text(row['precision']):>9}"
        for row in shown
    ]
    return [head, *lines]


def _text(share: float | None) -> str:
    return "-" if share is None else f"{share:.4f}"


def as_csv(matrix: np.ndarray) -> str:
    """Return a matrix as CSV: a header of predicted classes, then a row per true class."""
    numbers = range(len(matrix))
    lines = [",".join(["class", *map(str, numbers)])]
    lines += [",".join(map(str, [number, *matrix[number].tolist()])) for number in numbers]
    return "\n".join(lines) + "\n"
