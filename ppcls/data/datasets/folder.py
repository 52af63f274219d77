"""A folder per class."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

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

Part = Literal["all", "train", "val"]


@DATASETS.register()
class ImageFolderDataset(ClassificationDataset):
    """`image_root/<class name>/**/<image>`; classes are numbered in the order of their names.

    Files are taken by suffix (see IMAGE_SUFFIXES); names starting with a dot are left out.

    Args:
        class_names: the classes in the order of their numbers; one without a folder has no images.
        part: `val` takes the images held out of each class, `train` the others (see `held_out`).
        val_fraction: how much of each class is held out, in (0, 1).
        val_seed: which images these are.

    Raises:
        DataError: no such folder, no class folders, one that `class_names` lacks, a class without
            images (with `class_names`: none at all) or with a single one to hold out of, or more
            classes than `class_num`.
    """

    def __init__(
        self,
        image_root: str,
        transform_ops: list,
        on_error: OnError = "raise",
        seed: int = 0,
        class_num: int | None = None,
        config_path: str = "",
        class_names: list[str] | None = None,
        part: Part = "all",
        val_fraction: float = 0.2,
        val_seed: int = 0,
    ) -> None:
        super().__init__(transform_ops, on_error=on_error, seed=seed, config_path=config_path)
        if not 0 < val_fraction < 1:
            raise ValueError(f"val_fraction: expected a number in (0, 1), got {val_fraction!r}")
        if not os.path.isdir(image_root):
            raise DataError(f"{self.where('image_root')}: expected a folder, got {image_root!r}")
        self.class_names = class_folders(image_root) if class_names is None else list(class_names)
        self.class_num = check_class_num(len(self.class_names), class_num, image_root)
        found = images_by_class(image_root, class_names)
        if part != "all":
            held = {n: held_out(n, paths, val_fraction, val_seed) for n, paths in found.items()}
            wanted = part == "val"
            found = {n: [p for p in found[n] if (p in held[n]) == wanted] for n in found}
        counts = [len(paths) for paths in found.values()]
        self.labels = np.repeat(np.arange(len(found), dtype=np.int64), counts)
        self._paths = PathTable(
            os.path.join(image_root, name, path) for name, paths in found.items() for path in paths
        )

    def read(self, index: int) -> bytes:
        return read_file(self.describe(index))

    def describe(self, index: int) -> str:
        return self._paths[index]


def class_folders(root: str | os.PathLike) -> list[str]:
    """Names of the folders right below `root`, sorted; those starting with a dot are left out."""
    return sorted(
        entry.name
        for entry in os.scandir(root)
        if entry.is_dir() and not entry.name.startswith(".")
    )


def images_by_class(
    root: str | os.PathLike, class_names: Sequence[str] | None = None
) -> dict[str, list[str]]:
    """Paths of each class's images relative to the class's folder, sorted.

    Raises DataError as ImageFolderDataset says.
    """
    folders = class_folders(root)
    if not folders:
        raise DataError(f"{root}: expected one folder per class, found none")
    if class_names is None:
        found = {name: _image_paths(os.path.join(root, name)) for name in folders}
        empty = next((name for name, paths in found.items() if not paths), None)
    else:
        unknown = sorted({*folders} - {*class_names})
        if unknown:
            raise DataError(
                f"{root}: expected folders of the classes {shown(class_names)}, "
                f"found {shown(unknown)} besides"
            )
        found = {
            name: _image_paths(os.path.join(root, name)) if name in folders else []
            for name in class_names
        }
        empty = None if any(found.values()) else ""
    if empty is not None:
        where = os.path.join(root, empty) if empty else root
        raise DataError(f"{where}: expected images ({', '.join(IMAGE_SUFFIXES)}), found none")
    return found


def shown(names: Sequence[str], most: int = 5) -> str:
    """The first of `names`, as an error or a log line lists them."""
    listed = ", ".join(repr(name) for name in names[:most])
    return f"{listed}... ({len(names)})" if len(names) > most else listed


def held_out(name: str, paths: Sequence[str], fraction: float, seed: int) -> set[str]:
    """Choose which images of the class `name` are kept for evaluation: `fraction` of them, rounded,
    but at least one and not all.

    They are those whose SHA-256 of seed, class and path is the smallest: neither the order of
    reading nor another image in the class changes where an image belongs (but for those at the
    edge). Raises DataError for a class of a single image.
    """
    if not paths:
        return set()
    if len(paths) < 2:
        raise DataError(
            f"class {name!r}: expected at least 2 images to hold some out for evaluation, found 1"
        )

    def draw(path: str) -> bytes:
        key = f"{seed}/{name}/{path.replace(os.sep, '/')}"
        return hashlib.sha256(os.fsencode(key)).digest()

    count = min(max(round(fraction * len(paths)), 1), len(paths) - 1)
    return set(sorted(paths, key=draw)[:count])


def check_headers(dataset: ClassificationDataset, root: str) -> None:
    """Raise DataError naming files of `dataset` that do not begin as an image of any format does.

    About 0.1 ms a file: damage further on is found when the image is used.
    """
    bad = [path for path in map(dataset.describe, range(len(dataset))) if not _is_image(path)]
    if bad:
        raise DataError(
            f"{root}: expected images, found {len(bad)} of {len(dataset)} files that cannot be "
            f"opened as such ({shown(bad)}); remove them, or type "
            "-o DataLoader.Train.dataset.on_error=skip"
        )


def _is_image(path: str) -> bool:
    try:
        with Image.open(path):
            return True
    except (UnidentifiedImageError, OSError):
        return False
    except Exception:  # Pillow recognised it, and may raise nearly anything: for the decoder to say
        return True


def _image_paths(folder: str) -> list[str]:
    """Paths of the images anywhere below `folder`, relative to it, sorted."""
    start = len(os.path.join(folder, ""))
    paths = [
        os.path.join(parent, name)[start:]
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
    ]
    return sorted(paths)
