"""Names of classes: those of the recipe, or else those of the images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import ppcls
from ppcls.data.datasets import ClassificationDataset, ImageDataset
from ppcls.engine.config import PostProcessConfig, Recipe
from ppcls.utils.errors import ConfigError, DataError


def with_names_of(recipe: Recipe, dataset: ImageDataset) -> Recipe:
    """Return a classifier's recipe with the names of the classes in `dataset`, unless it has names.

    A run's `config.yaml` then knows what its network has learned where the images are not at hand.
    """
    post = recipe.Infer.PostProcess
    known = dataset.class_names
    has_names = post.class_names is not None or post.class_id_map_file is not None
    if known is None or has_names or not isinstance(dataset, ClassificationDataset):
        return recipe
    post = dataclasses.replace(post, class_names=all_names(known, recipe.class_num))
    return dataclasses.replace(recipe, Infer=dataclasses.replace(recipe.Infer, PostProcess=post))


def all_names(known: Sequence[str], class_num: int) -> list[str]:
    """Return a name for each class: those that are known, then numbers."""
    return [*known, *map(str, range(len(known), class_num))]


def class_names(post: PostProcessConfig, class_num: int) -> dict[int, str] | None:
    """Return the name of each class as `Infer.PostProcess` has them, or None.

    Raises ConfigError or DataError unless every class has one.
    """
    if post.class_names is not None:
        if len(post.class_names) != class_num:
            raise ConfigError(
                f"Infer.PostProcess.class_names: expected {class_num} names (Arch.class_num), "
                f"got {len(post.class_names)}"
            )
        return dict(enumerate(post.class_names))
    if post.class_id_map_file is None:
        return None
    names = read_class_names(_packaged(post.class_id_map_file), post.delimiter)
    if sorted(names) != list(range(class_num)):
        raise DataError(
            f"{post.class_id_map_file}: expected names of the classes 0 to {class_num - 1} "
            f"(Arch.class_num), found {len(names)} names; "
            "type -o Infer.PostProcess.class_id_map_file=null to do without"
        )
    return names


def read_class_names(path: str | Path, delimiter: str | None = None) -> dict[int, str]:
    """Read lines of `id name` (PaddleClas's label files). Raises DataError with file and line."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such label file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected a UTF-8 text file: {error}") from error
    names: dict[int, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        head, _, name = line.strip().partition(delimiter) if delimiter else _split(line)
        if not head.strip().isdecimal() or not name.strip():
            raise DataError(f"{path}:{number}: expected 'id name', got {line!r}")
        names[int(head)] = name.strip()
    return names


def _split(line: str) -> tuple[str, str, str]:
    head, *rest = line.split(maxsplit=1)
    return head, " ", rest[0] if rest else ""


def _packaged(path: str) -> Path:
    """A path such as PaddleClas's `ppcls/utils/imagenet1k_label_list.txt` also means the file of
    this package, from any folder."""
    if not Path(path).exists() and path.startswith("ppcls/"):
        return Path(ppcls.__file__).parents[1] / path
    return Path(path)
