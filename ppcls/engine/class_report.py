"""What `tools/eval.py` says beyond its means: each class, and which are taken for which."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppcls.engine.config import Recipe
from ppcls.engine.confusion_picture import MOST_CLASSES, draw_confusion
from ppcls.engine.draw import save_picture
from ppcls.engine.evaluator import Predictions
from ppcls.engine.names import all_names, class_names
from ppcls.metric.confusion import (
    Names,
    as_csv,
    class_rows,
    confusion_matrix,
    confusions,
    describe_rows,
    mean_class_accuracy,
)
from ppcls.utils import distributed
from ppcls.utils.errors import UserError
from ppcls.utils.fileio import atomic_write_text

logger = logging.getLogger("ppcls")

_MOST_LINES = 100  # classes in the log; more, and only the least accurate are


@dataclass(frozen=True)
class ClassReport:
    """What is wanted of an evaluation's predictions.

    per_class: a table. picture: a PNG file of the confusion matrix, and a CSV file beside it.
    names: of the classes; None for those of the data set, if it has any.
    """

    class_num: int
    per_class: bool = False
    picture: Path | None = None
    names: Names = None

    @classmethod
    def plan(cls, recipe: Recipe, *, per_class: bool, picture: Path | None) -> ClassReport | None:
        """Return what is wanted of a recipe's evaluation, or None for nothing.

        Raises UserError for what cannot be done, before anything is computed.
        """
        if not per_class and picture is None:
            return None
        option = "--per-class" if per_class else "--confusion"
        if recipe.Global.task == "detection":
            raise UserError(f"{option}: expected none with Global.task: detection")
        if picture is not None:
            check_picture(picture, recipe.class_num)
        names = class_names(recipe.Infer.PostProcess, recipe.class_num)
        return cls(recipe.class_num, per_class, picture, names)

    def write(self, found: Predictions) -> dict[str, Any]:
        """Log and write what is wanted; returns it for JSON.

        Only rank 0 writes files. `confusion` lists [class, predicted, images] of all pairs there
        are, the mistakes first.
        """
        names = self.names
        if names is None and found.class_names is not None:
            names = all_names(found.class_names, self.class_num)
        labels, predicted = found.labels, found.predicted
        rows = class_rows(labels, predicted, self.class_num, names)
        report: dict[str, Any] = {"mean_class_accuracy": mean_class_accuracy(rows)}
        if self.per_class:
            for line in describe_rows(rows, _MOST_LINES):
                logger.info("%s", line)
            if len(rows) > _MOST_LINES:
                logger.info("the %d least accurate of %d classes", _MOST_LINES, len(rows))
            report["per_class"] = rows
        logger.info("mean accuracy of the classes: %.5f", report["mean_class_accuracy"])
        if self.picture is not None:
            matrix = confusion_matrix(labels, predicted, self.class_num)
            right = [[n, n, int(matrix[n, n])] for n in range(len(matrix)) if matrix[n, n]]
            report["confusion"] = [*map(list, confusions(matrix)), *right]
            if distributed.rank() == 0:
                table = self.picture.with_suffix(".csv")
                atomic_write_text(table, as_csv(matrix))
                save_picture(draw_confusion(matrix, names), self.picture)
                logger.info("confusion matrix: %s, %s", self.picture, table)
        return report


def check_picture(path: Path, class_num: int) -> None:
    """Raise UserError when a picture of so many classes cannot be drawn, or not be written."""
    where = f"--confusion {path}"
    if path.suffix.lower() != ".png":
        raise UserError(f"{where}: expected a name that ends in .png")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise UserError(f"{where}: expected a folder that exists")
    if path.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{where}: expected a file that can be written")
    if class_num > MOST_CLASSES:
        raise UserError(f"{where}: expected at most {MOST_CLASSES} classes, found {class_num}")
