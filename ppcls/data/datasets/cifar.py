"""CIFAR-10 and CIFAR-100 from their official "python version" archives.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009),
https://www.cs.toronto.edu/~kriz/cifar.html. The archives hold pickles; they are read in memory by a
reader that builds plain data only, and nothing is unpacked to disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ppcls.data.datasets.base import DATASETS, ClassificationDataset, OnError, check_class_num
from ppcls.data.datasets.tar_reader import read_members
from ppcls.utils.errors import DataError, UserError
from ppcls.utils.safe_pickle import restricted_load

_PIXELS = 3 * 32 * 32

Mode = Literal["train", "test"]


@dataclass(frozen=True)
class Layout:
    """Names inside an archive."""

    title: str
    folder: str
    members: dict[str, tuple[str, ...]]
    meta: str
    label_key: str
    names_key: str
    classes: int


CIFAR10 = Layout(
    title="CIFAR-10",
    folder="cifar-10-batches-py",
    members={"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
    meta="batches.meta",
    label_key="labels",
    names_key="label_names",
    classes=10,
)
CIFAR100 = Layout(
    title="CIFAR-100",
    folder="cifar-100-python",
    members={"train": ("train",), "test": ("test",)},
    meta="meta",
    label_key="fine_labels",
    names_key="fine_label_names",
    classes=100,
)


class CifarDataset(ClassificationDataset):
    """A CIFAR archive in memory: images [n, 32, 32, 3] uint8 RGB.

    Args:
        data_file: the `.tar.gz` archive, or the plain `.tar`.
        mode: which half.
        class_num: at least the set's own number of classes.

    Raises:
        DataError: an archive that is missing, cut short, too large, of the other set, or not as
            documented.
    """

    layout: Layout

    def __init__(
        self,
        data_file: str,
        transform_ops: list,
        mode: Mode = "train",
        on_error: OnError = "raise",
        seed: int = 0,
        class_num: int | None = None,
        config_path: str = "",
    ) -> None:
        super().__init__(transform_ops, on_error=on_error, seed=seed, config_path=config_path)
        layout = self.layout
        self.data_file = data_file
        self.class_num = check_class_num(layout.classes, class_num, data_file)
        names = layout.members[mode]
        contents = _read_members(data_file, layout, (*names, layout.meta))
        parts = [
            _read_batch(contents.pop(name), layout, f"{data_file}: {layout.folder}/{name}")
            for name in names
        ]
        self.class_names = _read_names(
            contents[layout.meta], layout, f"{data_file}: {layout.folder}/{layout.meta}"
        )
        self.images = np.concatenate([images for images, _ in parts])
        self.labels = np.concatenate([labels for _, labels in parts])
        self._origin = [
            (name, row)
            for name, (_, labels) in zip(names, parts, strict=True)
            for row in range(len(labels))
        ]

    def read(self, index: int) -> np.ndarray:
        return self.images[index].copy()

    def describe(self, index: int) -> str:
        member, row = self._origin[index]
        return f"{self.data_file}: {self.layout.folder}/{member} #{row}"


@DATASETS.register()
class Cifar10(CifarDataset):
    """CIFAR-10: 50,000 training and 10,000 test images of 10 classes."""

    layout = CIFAR10


@DATASETS.register()
class Cifar100(CifarDataset):
    """CIFAR-100 with its 100 fine classes: 50,000 training and 10,000 test images."""

    layout = CIFAR100


def _read_members(path: str, layout: Layout, names: tuple[str, ...]) -> dict[str, bytearray]:
    """Return the contents of the wanted members by name, reading the archive once."""
    wanted = {f"{layout.folder}/{name}": name for name in names}
    where = f"{path}: cannot read the {layout.title} archive"
    contents, found = read_members(path, wanted, where)
    missing = [member for member in wanted if member not in contents]
    if missing:
        raise DataError(
            f"{path}: expected the {layout.title} archive with {missing[0]}, "
            f"found {', '.join(found[:3]) or 'nothing'}"
        )
    return {wanted[member]: content for member, content in contents.items()}


def _read_mapping(data: bytearray, keys: tuple[str, ...], where: str) -> dict[str, Any]:
    try:
        # The archives were written by Python 2: its text, and the arrays' bytes, are Latin-1.
        mapping = restricted_load(data, where=where, encoding="latin1")
    except UserError as error:
        raise DataError(str(error)) from error
    if not isinstance(mapping, dict):
        raise DataError(f"{where}: expected a mapping, found {type(mapping).__name__}")
    for key in keys:
        if key not in mapping:
            known = ", ".join(sorted(str(name) for name in mapping))
            raise DataError(f"{where}: expected the key {key!r}, found {known}")
    return mapping


def _read_batch(data: bytearray, layout: Layout, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images [n, 32, 32, 3] uint8 and labels [n] int64."""
    mapping = _read_mapping(data, ("data", layout.label_key), where)
    rows, labels = mapping["data"], mapping[layout.label_key]
    if (
        not isinstance(rows, np.ndarray)
        or rows.dtype != np.uint8
        or rows.ndim != 2
        or rows.shape[0] < 1
        or rows.shape[1] != _PIXELS
    ):
        found = f"{rows.dtype} {list(rows.shape)}" if isinstance(rows, np.ndarray) else type(rows)
        raise DataError(f"{where}: expected 'data' of uint8 [n, {_PIXELS}], found {found}")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise DataError(f"{where}: expected {layout.label_key!r} to be a list of whole numbers")
    if len(labels) != len(rows):
        raise DataError(f"{where}: expected {len(rows)} labels, found {len(labels)}")
    if not 0 <= min(labels) <= max(labels) < layout.classes:
        raise DataError(
            f"{where}: expected labels from 0 to {layout.classes - 1}, "
            f"found {min(labels)} to {max(labels)}"
        )
    images = rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), np.array(labels, dtype=np.int64)


def _read_names(data: bytearray, layout: Layout, where: str) -> list[str]:
    names = _read_mapping(data, (layout.names_key,), where)[layout.names_key]
    if not isinstance(names, list) or len(names) != layout.classes:
        raise DataError(f"{where}: expected {layout.classes} names in {layout.names_key!r}")
    return [str(name) for name in names]
