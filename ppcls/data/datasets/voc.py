"""PASCAL VOC's detection sets, read as the official code reads them.

Everingham et al., "The PASCAL Visual Object Classes Challenge" (2010),
http://host.robots.ox.ac.uk/pascal/VOC/. Conventions: https://github.com/PingoLH/PytorchSSD-HarDNet
(MIT).
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

import numpy as np

from ppcls.data.datasets.base import DATASETS, OnError
from ppcls.data.datasets.boxes import BoxTable
from ppcls.data.datasets.detection import (
    DetectionDataset,
    check_class_num,
    check_files,
    join_folder,
)
from ppcls.data.datasets.voc_xml import Box, read_annotation, read_image_ids, read_names
from ppcls.utils.errors import DataError

VOC_CLASSES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike "
    "person pottedplant sheep sofa train tvmonitor"
).split()


class Split(NamedTuple):
    """One `VOC<year>/ImageSets/Main/<name>.txt`."""

    year: str
    name: str


@DATASETS.register()
class VOCDataset(DetectionDataset):
    """Images of `VOC<year>` folders below `dataset_dir`, as one or more of their lists name them.

    Labels are 1..20 in the order of the class names. Every list and annotation file is read here,
    and everything wrong in them is found here, and named by file and object.

    Args:
        dataset_dir: folder with `VOC2007`, `VOC2012`.
        splits: `year list` pairs, e.g. ["2007 trainval", "2012 trainval"].
        label_list: file with other class names, one a line in label order, for data sets of one's
            own in VOC's layout.
        class_num: number of class names plus 1, for the background.
        load_difficult: whether difficult objects are targets too, as officially.
        official_quirks: all four corners less 1, as the official code has them; false takes the
            pixels' outer edges, xmin - 1 and xmax.
        skip_empty: leave out images without a target.

    Raises:
        DataError: a folder, list, annotation or image that is missing, or a malformed file.
    """

    def __init__(
        self,
        dataset_dir: str,
        splits: list[str],
        transform_ops: list,
        label_list: str | None = None,
        load_difficult: bool = True,
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
            ignored=() if load_difficult else ("difficult",),
            on_error=on_error,
            seed=seed,
            config_path=config_path,
        )
        if not os.path.isdir(dataset_dir):
            raise DataError(f"{self.where('dataset_dir')}: expected a folder, got {dataset_dir!r}")
        self.dataset_dir = dataset_dir
        self.official_quirks = official_quirks
        self.splits = parse_splits(splits)
        names = VOC_CLASSES
        if label_list is not None:
            label_list = join_folder(dataset_dir, label_list)
            names = read_names(label_list)
        self.class_num = check_class_num(len(names), class_num, label_list or "VOC")
        self.class_names = ["background", *names]
        self.category_ids = np.array([-1, *range(1, len(names) + 1)], dtype=np.int64)
        images = [(split, name) for split in self.splits for name in self._read_split(split)]
        check_unique(images)
        paths = [self._path(split, "JPEGImages", f"{name}.jpg") for split, name in images]
        check_files(paths, "an image")
        self.keep_images(self._collect(images), paths, [name for _, name in images])

    def _path(self, split: Split, *parts: str) -> str:
        return os.path.join(self.dataset_dir, f"VOC{split.year}", *parts)

    def _read_split(self, split: Split) -> list[str]:
        return read_image_ids(self._path(split, "ImageSets", "Main", f"{split.name}.txt"))

    def _collect(self, images: list[tuple[Split, str]]) -> BoxTable:
        labels = {name: label for label, name in enumerate(self.class_names) if label}
        known = set(labels)
        table = BoxTable(self.dataset_dir)
        corners = official_corners if self.official_quirks else plain_corners
        for split, name in images:
            path = self._path(split, "Annotations", f"{name}.xml")
            annotation = read_annotation(path, known)
            table.add_image(annotation.height, annotation.width)
            for number, item in enumerate(annotation.objects, 1):
                table.add(
                    corners(item.box),
                    labels[item.name],
                    f"{path}: object {number}",
                    difficult=item.is_difficult,
                )
        return table


def parse_splits(splits: list[str]) -> list[Split]:
    """Read `year list` pairs; ValueError for anything else."""
    pairs = []
    for text in splits:
        match = re.fullmatch(r"(?:VOC)?([0-9]{4})[ _]([A-Za-z0-9_\-]+)", text.strip())
        if match is None:
            raise ValueError(f"splits: expected 'year list' such as '2007 trainval', got {text!r}")
        pairs.append(Split(match[1], match[2]))
    if not pairs:
        raise ValueError("splits: expected at least one, such as '2007 trainval', got none")
    return pairs


def check_unique(images: list[tuple[Split, str]]) -> None:
    """Raise DataError for an image that two lists of one year name."""
    first: dict[tuple[str, str], str] = {}
    for split, name in images:
        key = (split.year, name)
        if key in first:
            raise DataError(
                f"VOC{split.year}: expected each image in one list, found {name!r} in "
                f"{first[key]!r} and {split.name!r}"
            )
        first[key] = split.name


def official_corners(box: Box) -> Box:
    """All four less 1."""
    xmin, ymin, xmax, ymax = box
    return xmin - 1, ymin - 1, xmax - 1, ymax - 1


def plain_corners(box: Box) -> Box:
    """The outer edges of the first and last pixel, counted from 0."""
    xmin, ymin, xmax, ymax = box
    return xmin - 1, ymin - 1, xmax, ymax
