"""Annotations in COCO's format, read as the official code reads them.

Lin et al., "Microsoft COCO: Common Objects in Context" (2014), https://cocodataset.org/#format-data.
Conventions: https://github.com/PingoLH/PytorchSSD-HarDNet (MIT). Reading needs no pycocotools; the
evaluation does.
"""

from __future__ import annotations

import os

import numpy as np

from ppcls.data.datasets.base import DATASETS, OnError
from ppcls.data.datasets.boxes import OUTLINE_WITHOUT_AREA, BoxTable
from ppcls.data.datasets.coco_json import Annotation, Box, CocoFile, read_coco
from ppcls.data.datasets.detection import (
    DetectionDataset,
    check_class_num,
    check_files,
    join_folder,
)
from ppcls.utils.errors import DataError


@DATASETS.register()
class COCODataset(DetectionDataset):
    """Images below `image_dir` with the boxes of an `instances_*.json`.

    Labels 1, 2, 3... follow the category ids in increasing order. Images are in the file's order.
    Everything wrong in the file is found here, and named by file and id.

    Args:
        image_dir: folder that the file's `file_name`s are below.
        anno_path: the annotation file.
        dataset_dir: folder that both are below.
        class_num: categories of the file plus 1, for the background.
        load_crowd: whether crowd boxes are targets too, as officially (PaddleDetection: false).
        official_quirks: corners x + w - 1, y + h - 1 as the official code has them, which results
            written as w = x2 - x1 + 1 undo; false takes x + w, y + h.
        skip_empty: leave out images without a target.

    Raises:
        DataError: a file that is missing, malformed or contradicts itself, or a missing image.
    """

    def __init__(
        self,
        image_dir: str,
        anno_path: str,
        transform_ops: list,
        dataset_dir: str | None = None,
        load_crowd: bool = True,
        skip_empty: bool = False,
        official_quirks: bool = True,
        on_error: OnError = "raise",
        seed: int = 0,
        class_num: int | None = None,
        config_path: str = "",
    ) -> None:
        super().__init__(
            transform_ops,
            skip_empty=skip_empty,
            ignored=() if load_crowd else ("crowd",),
            on_error=on_error,
            seed=seed,
            config_path=config_path,
        )
        self.image_dir = join_folder(dataset_dir, image_dir)
        self.anno_path = join_folder(dataset_dir, anno_path)
        self.official_quirks = official_quirks
        if not os.path.isdir(self.image_dir):
            raise DataError(f"{self.where('image_dir')}: expected a folder, got {self.image_dir!r}")
        content = read_coco(self.anno_path)
        self.class_num = check_class_num(len(content.categories), class_num, self.anno_path)
        ids = sorted(content.categories)
        self.class_names = ["background", *(content.categories[key] for key in ids)]
        self.category_ids = np.array([-1, *ids], dtype=np.int64)
        paths = [os.path.join(self.image_dir, image.file_name) for image in content.images.values()]
        check_files(paths, f"an image of {self.anno_path}")
        labels = {key: label for label, key in enumerate(ids, 1)}
        self.keep_images(self._collect(content, labels), paths, list(content.images))

    def _collect(self, content: CocoFile, labels: dict[int, int]) -> BoxTable:
        by_image: dict[int, list[Annotation]] = {key: [] for key in content.images}
        for annotation in content.annotations:
            by_image[annotation.image_id].append(annotation)
        table = BoxTable(self.anno_path)
        corners = official_corners if self.official_quirks else plain_corners
        for key, image in content.images.items():
            table.add_image(image.height, image.width)
            for annotation in by_image[key]:
                name = f"annotation {annotation.id}"
                x, y, w, h = annotation.bbox
                if not annotation.has_area and min(w, h) > 0:
                    table.drop(name, OUTLINE_WITHOUT_AREA)
                    continue
                table.add(
                    corners(annotation.bbox, image.height, image.width),
                    labels[annotation.category_id],
                    name,
                    crowd=annotation.is_crowd,
                    is_cut=min(x, y) < 0 or x + w > image.width or y + h > image.height,
                )
        return table


def official_corners(bbox: Box, height: int, width: int) -> Box:
    """Corners x1, y1, and those of the last pixels a box covers; a left edge below 0 moves it."""
    x, y, w, h = bbox
    x1, y1 = max(0.0, x), max(0.0, y)
    return x1, y1, min(width - 1.0, x1 + max(0.0, w - 1)), min(height - 1.0, y1 + max(0.0, h - 1))


def plain_corners(bbox: Box, height: int, width: int) -> Box:
    x, y, w, h = bbox
    return x, y, x + w, y + h
