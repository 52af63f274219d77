"""A folder of own images, `Global.data_dir`: what a recipe needs to know of it.

The folder holds `train` and `val` (or `valid`, `validation`), each with a folder per class, or just
a folder per class; a share of each class is then held out (`Global.val_fraction`, see
`folder.held_out`).

    recipe with Global.data_dir --with_own_images--> recipe that names folders, classes and parts

The result holds all of it (data sets, `Arch.class_num`, a teacher's too, and
`Infer.PostProcess.class_names`) and no `data_dir`, so that a run's `config.yaml` is complete where
the images are not at hand.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppcls.data.datasets.folder import class_folders, held_out, images_by_class, shown
from ppcls.data.loader import DataLoaderConfig
from ppcls.engine.config import LoaderSections, Recipe
from ppcls.utils.errors import ConfigError, DataError

logger = logging.getLogger("ppcls")

_KEY = "Global.data_dir"
_FOLDERS = "ImageFolderDataset"
_VAL = ("val", "valid", "validation")
# What stays of a `dataset` section; the rest says where its images and labels are.
_KEPT = ("transform_ops", "batch_transform_ops", "on_error")


@dataclass(frozen=True)
class OwnImages:
    """Where the images are. `val` is None when some of those in `train` are held out.

    images: paths of those in `train`, by class. val_count: images in `val`.
    """

    train: Path
    val: Path | None
    images: dict[str, list[str]]
    val_count: int = 0

    @property
    def class_names(self) -> list[str]:
        return list(self.images)


def with_own_images(recipe: Recipe) -> Recipe:
    """Return `recipe` with what `Global.data_dir` says filled in; any recipe of a classifier will
    do, and keeps its transforms.

    Raises ConfigError when a recipe needs the folder and names none, or a detector's names one;
    DataError for a folder that cannot be used.
    """
    if recipe.Global.data_dir is None:
        _check_images_are_named(recipe)
        return recipe
    if recipe.Global.task != "classification":
        raise ConfigError(f"{_KEY}: expected none with Global.task: {recipe.Global.task}")
    found = find_images(recipe.Global.data_dir)
    known = recipe.Infer.PostProcess.class_names
    if known is not None and known != found.class_names:
        raise ConfigError(
            f"{_KEY}: expected the classes of Infer.PostProcess.class_names, {shown(known)}, "
            f"found {shown(found.class_names)}"
        )
    _log(found, recipe)
    sections, teaching = recipe.DataLoader, recipe.distillation
    class_num = len(found.class_names)
    post = dataclasses.replace(
        recipe.Infer.PostProcess,
        class_id_map_file=None,
        class_names=found.class_names,
        topk=min(recipe.Infer.PostProcess.topk, class_num),
    )
    return dataclasses.replace(
        recipe,
        Global=dataclasses.replace(recipe.Global, data_dir=None),
        Arch={**recipe.Arch, "class_num": class_num},
        distillation=None if teaching is None else teaching.with_classes(class_num),
        DataLoader=LoaderSections(
            Train=_with_dataset(sections.Train, found, recipe, "train"),
            Eval=_with_dataset(sections.Eval, found, recipe, "val"),
        ),
        Infer=dataclasses.replace(recipe.Infer, PostProcess=post),
    )


def _check_images_are_named(recipe: Recipe) -> None:
    section = recipe.DataLoader.Train
    dataset = {} if section is None else section.dataset
    if dataset.get("name") == _FOLDERS and "image_root" not in dataset:
        raise ConfigError(
            f"{_KEY}: expected the folder of your images, found none; type -o {_KEY}=DIR, or take "
            f"the config.yaml of a finished run ({recipe.source})"
        )


def find_images(folder: str) -> OwnImages:
    """Find out how a folder is laid out, and check that each class has images.

    `train` and `val` are such halves if they hold folders, else classes. Raises DataError.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"{_KEY}: expected a folder, got {folder!r}")
    val = next((root / name for name in _VAL if (root / name).is_dir()), None)
    has_train = _holds_folders(root / "train")
    if val is not None and not has_train and _holds_folders(val):
        raise DataError(
            f"{root}: expected a folder 'train' with classes beside {val.name!r}, found none"
        )
    train = root / "train" if has_train else root
    images = images_by_class(train)
    names = list(images)
    if len(names) < 2:
        raise DataError(
            f"{train}: expected at least 2 classes, a folder each, found {shown(names)}"
        )
    for name in names:
        _check_text(train, name)
    if val is None or not has_train:
        return OwnImages(train, None, images)
    counts = {name: len(paths) for name, paths in images_by_class(val, names).items()}
    lacking = [name for name, count in counts.items() if not count]
    if lacking:
        logger.warning("%s: no images of the classes %s", val, shown(lacking))
    return OwnImages(train, val, images, sum(counts.values()))


def _holds_folders(folder: Path) -> bool:
    return folder.is_dir() and bool(class_folders(folder))


def _check_text(folder: Path, name: str) -> None:
    """A class's name is written into YAML files, as UTF-8."""
    if any(0xD800 <= ord(char) < 0xE000 for char in name):
        raise DataError(f"{folder}: expected folder names in UTF-8, got {os.fsencode(name)!r}")


def _with_dataset(
    section: DataLoaderConfig | None, found: OwnImages, recipe: Recipe, part: str
) -> DataLoaderConfig | None:
    """A `DataLoader` section whose data set is that half of the images."""
    if section is None:
        return None
    dataset = {key: section.dataset[key] for key in _KEPT if key in section.dataset}
    own: dict[str, Any] = {"name": _FOLDERS, "class_names": found.class_names}
    if found.val is None:
        own |= {"image_root": str(found.train), "part": part}
        own |= {key: getattr(recipe.Global, key) for key in ("val_fraction", "val_seed")}
    else:
        own["image_root"] = str(found.train if part == "train" else found.val)
    return dataclasses.replace(section, dataset=own | dataset)


def _log(found: OwnImages, recipe: Recipe) -> None:
    """Say what was found, and how it is split."""
    total = sum(map(len, found.images.values()))
    if found.val is None:
        fraction, seed = recipe.Global.val_fraction, recipe.Global.val_seed
        held = sum(len(held_out(n, paths, fraction, seed)) for n, paths in found.images.items())
        split = f"{total - held} to train with and {held} held out"
    else:
        split = f"{total} to train with and {found.val_count} in {found.val}"
    logger.info(
        "%s: %d classes (%s), images: %s",
        found.train,
        len(found.images),
        shown(found.class_names),
        split,
    )
