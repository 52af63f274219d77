"""Image files named by a list file."""

from __future__ import annotations

import os

import numpy as np

from ppcls.data.datasets.base import (
    DATASETS,
    ClassificationDataset,
    OnError,
    check_class_num,
    read_file,
)
from ppcls.data.datasets.lists import PathTable, read_list
from ppcls.utils.errors import DataError


@DATASETS.register()
class ImageNetDataset(ClassificationDataset):
    """Images under `image_root` as `cls_label_path` lists them, one `path label` per line.

    The list is checked when the data set is made; the images are opened only when they are needed.

    Args:
        delimiter: what separates path and label, see `read_list`.
        relabel: number the labels found 0, 1, 2... in increasing order.
        class_num: labels must be below it; without it, one more than the largest label.

    Raises:
        DataError: no such folder, or a list file that cannot be used (with file and line).
    """

    def __init__(
        self,
        image_root: str,
        cls_label_path: str,
        transform_ops: list,
        delimiter: str | None = None,
        relabel: bool = False,
        on_error: OnError = "raise",
        seed: int = 0,
        class_num: int | None = None,
        config_path: str = "",
    ) -> None:
        super().__init__(transform_ops, on_error=on_error, seed=seed, config_path=config_path)
        if delimiter == "":
            raise ValueError("delimiter: expected text or null, got ''")
        if not os.path.isdir(image_root):
            raise DataError(f"{self.where('image_root')}: expected a folder, got {image_root!r}")
        paths, labels = read_list(cls_label_path, delimiter, class_num, any_label=relabel)
        if relabel:
            labels = np.unique(labels, return_inverse=True)[1].reshape(-1).astype(np.int64)
        self.image_root = image_root
        self.labels = labels
        self.class_num = check_class_num(int(labels.max()) + 1, class_num, str(cls_label_path))
        self._paths = PathTable(paths)

    def read(self, index: int) -> bytes:
        return read_file(self.describe(index))

    def describe(self, index: int) -> str:
        return os.path.join(self.image_root, self._paths[index])
