"""Testing at another size than a recipe's lists of transforms say.

Touvron et al., "Fixing the train-test resolution discrepancy" (FixRes, arXiv 1906.06423): objects
look larger in random crops of training than at the same size in testing, so a larger test size
often scores better. `crop ratio` is timm's `crop_pct`: the side of the crop over the shorter side
of the resized image.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

from ppcls.engine.config import Recipe
from ppcls.utils import schema
from ppcls.utils.errors import ConfigError

logger = logging.getLogger("ppcls")

_OF_ANY_SIZE = ("DecodeImage", "NormalizeImage", "ToCHWImage")


def at_test_size(recipe: Recipe) -> Recipe:
    """Return a recipe that evaluates, infers and exports at `Global.test_size`, if it has one.

    Raises ConfigError for transforms that cannot be rewritten.
    """
    size, ratio = recipe.Global.test_size, recipe.Global.test_crop_ratio
    if size is None:
        return recipe
    channels = recipe.Global.image_shape[0]
    changed = {"Global": dataclasses.replace(recipe.Global, image_shape=[channels, size, size])}
    section = recipe.DataLoader.Eval
    if section is not None and "transform_ops" in section.dataset:
        where = "DataLoader.Eval.dataset.transform_ops"
        entries = resized_entries(section.dataset["transform_ops"], where, size, ratio)
        section = dataclasses.replace(
            section, dataset={**section.dataset, "transform_ops": entries}
        )
        changed["DataLoader"] = dataclasses.replace(recipe.DataLoader, Eval=section)
    if recipe.Infer.transforms is not None:
        entries = resized_entries(recipe.Infer.transforms, "Infer.transforms", size, ratio)
        changed["Infer"] = dataclasses.replace(recipe.Infer, transforms=entries)
    return dataclasses.replace(recipe, **changed)


def resized_entries(entries: Any, where: str, size: int, crop_ratio: float | None) -> list:
    """Return a YAML list of transforms whose result is a square of side `size`.

    The list has ResizeImage and CropImage, or ResizeImage to a fixed `size`. The resized image is
    round(size / crop_ratio), by default with the ratio the list has now.
    Raises ConfigError for any other list.
    """
    if not isinstance(entries, list):
        raise ConfigError(f"{where}: expected a list of transforms, got {entries!r}")
    found = [schema.split_entry(entry, f"{where}[{i}]") for i, entry in enumerate(entries)]
    names = [name for name, _ in found]
    sizing = [name for name in names if name not in _OF_ANY_SIZE]
    if sizing not in (["ResizeImage"], ["ResizeImage", "CropImage"]):
        raise ConfigError(
            f"{where}: expected ResizeImage, or ResizeImage and CropImage, for Global.test_size, "
            f"found {', '.join(sizing) or 'neither'}"
        )
    place = names.index("ResizeImage")
    at = f"{where}[{place}].ResizeImage"
    resize = dict(found[place][1])
    key = "resize_short" if (resize.get("resize_short") or 0) > 0 else "size"
    if len(sizing) == 1:
        if key == "resize_short":
            raise ConfigError(f"{at}: expected CropImage after it for Global.test_size, found none")
        if crop_ratio not in (None, 1):
            raise ConfigError(
                f"Global.test_crop_ratio: expected none or 1, as {where} have no CropImage, "
                f"got {crop_ratio:g}"
            )
        target = size
    else:
        crop_place = names.index("CropImage")
        crop = _side(found[crop_place][1], "size", f"{where}[{crop_place}].CropImage")
        found[crop_place] = ("CropImage", {**found[crop_place][1], "size": size})
        whole = _side(resize, key, at)
        target = round(size * whole / crop if crop_ratio is None else size / crop_ratio)
    found[place] = ("ResizeImage", {**resize, key: target})
    logger.info("%s: images are resized to %d and have %dx%d", where, target, size, size)
    return [{name: params or None} for name, params in found]


def _side(params: dict, key: str, where: str) -> int:
    """Read the side of a square, in pixels."""
    value = schema.coerce(params.get(key), int | list[int], f"{where}.{key}")
    sides = {value} if isinstance(value, int) else set(value)
    if len(sides) != 1 or min(sides) < 1:
        raise ConfigError(f"{where}.{key}: expected one side for Global.test_size, got {value}")
    return sides.pop()
