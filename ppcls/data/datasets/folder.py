"""A folder per class."""

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
from ppcls.data.datasets.lists import PathTable
from ppcls.utils.errors import DataError

IMAGE_SUFFIXES = tuple(".jpg .jpeg .png .bmp .webp .gif .ppm .pgm .tif .tiff".split())


@DATASETS.register()
class ImageFolderDataset(ClassificationDataset):
    """`image_root/<class name>/**/<image>`; classes are numbered in the order of their names.

    Files are taken by suffix (see IMAGE_SUFFIXES); names starting with a dot are left out.

    Raises:
        DataError: no such folder, no class folders, a class without images, or more classes than
            `class_num`.
    """

    def __init__(
        self,
        image_root: str,
        transform_ops: list,
        on_error: OnError = "raise",
        seed: int = 0,
        class_num: int | None = None,
        config_path: str = "",
    ) -> None:
        super().__init__(transform_ops, on_error=on_error, seed=seed, config_path=config_path)
        if not os.path.isdir(image_root):
            raise DataError(f"{self.where('image_root')}: expected a folder, got {image_root!r}")
        self.class_names = sorted(
            entry.name
            for entry in os.scandir(image_root)
            if entry.is_dir() and not entry.name.startswith(".")
        )
        if not self.class_names:
            raise DataError(f"{image_root}: expected one folder per class, found none")
        self.class_num = check_class_num(len(self.class_names), class_num, image_root)
        found = [_image_paths(os.path.join(image_root, name)) for name in self.class_names]
        self.labels = np.repeat(np.arange(len(found), dtype=np.int64), [len(f) for f in found])
        self._paths = PathTable(path for paths in found for path in paths)

    def read(self, index: int) -> bytes:
        return read_file(self.describe(index))

    def describe(self, index: int) -> str:
        return self._paths[index]


def _image_paths(folder: str) -> list[str]:
    """Paths of the images anywhere below `folder`, sorted."""
    paths = [
        os.path.join(parent, name)
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
    ]
    if not paths:
        raise DataError(f"{folder}: expected images ({', '.join(IMAGE_SUFFIXES)}), found none")
    return sorted(paths)
