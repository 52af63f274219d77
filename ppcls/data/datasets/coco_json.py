"""Reading and checking an annotation file in COCO's format. The file may be anything.

Every fault is a DataError with the file, the list and place or id in it, what was expected, and
what was found: `instances.json: annotation 7: expected a category_id of the file, got 91`.
"""

from __future__ import annotations

import json
import os
import re
import reprlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from ppcls.data.datasets.boxes import MAX_IMAGE_SIDE
from ppcls.utils.errors import DataError, UserError
from ppcls.utils.fileio import map_file

Box = tuple[float, float, float, float]

_UNUSABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")  # control characters, halves of characters


class Image(NamedTuple):
    file_name: str
    height: int
    width: int


class Annotation(NamedTuple):
    """`bbox` is (x, y, width, height) in pixels, finite, otherwise as the file has it.

    `has_area` is false for an outline without area.
    """

    id: int
    image_id: int
    category_id: int
    bbox: Box
    is_crowd: bool
    has_area: bool


class CocoFile(NamedTuple):
    """Images and category names by id, both in the file's order, and the annotations."""

    images: dict[int, Image]
    categories: dict[int, str]
    annotations: list[Annotation]


def read_coco(path: str | os.PathLike) -> CocoFile:
    """Read the annotation file at `path`; DataError says what is wrong with it."""
    content = _load(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a JSON object, found {_kind(content)}")
    images = {key: _image(item, where) for key, item, where in _items(content, "image", path)}
    categories = _categories(content, path)
    annotations = [
        _annotation(item, key, where, images, categories)
        for key, item, where in _items(content, "annotation", path)
    ]
    return CocoFile(images, categories, annotations)


def _load(path: str | os.PathLike) -> Any:
    try:
        data = bytes(map_file(path))
    except UserError as error:
        raise DataError(str(error)) from error
    try:
        # Outlines are most of the file and are not used here: without them it takes less memory.
        return json.loads(data, object_hook=_without_outline)
    except RecursionError as error:
        raise DataError(f"{path}: expected annotations in JSON, found nesting too deep") from error
    except ValueError as error:  # also bytes that are not UTF-8
        raise DataError(f"{path}: expected annotations in JSON ({error})") from error
    except MemoryError as error:
        raise DataError(f"{path}: too large for this machine's memory") from error


def _without_outline(node: dict) -> dict:
    node.pop("segmentation", None)
    return node


def _items(content: dict, kind: str, path: str | os.PathLike) -> Iterator[tuple[int, dict, str]]:
    """Each entry of a list as (id, entry, its name in errors); the ids differ."""
    name = "categories" if kind == "category" else f"{kind}s"
    entries = content.get(name)
    if not isinstance(entries, list):
        raise DataError(f"{path}: expected a list {name!r}, found {_kind(entries)}")
    if not entries:
        raise DataError(f"{path}: expected {name}, found none")
    seen: set[int] = set()
    for place, entry in enumerate(entries):
        where = f"{path}: {name}[{place}]"
        if not isinstance(entry, dict):
            raise DataError(f"{where}: expected an object, got {_kind(entry)}")
        key = _whole(entry, "id", where)
        if key in seen:
            raise DataError(f"{path}: {kind} {key}: expected each id once, found it again")
        seen.add(key)
        yield key, entry, f"{path}: {kind} {key}"


def _image(entry: dict, where: str) -> Image:
    name = _text(entry, "file_name", where)
    parts = name.replace("\\", "/").split("/")
    if name.startswith("/") or ".." in parts or os.path.isabs(name):
        raise DataError(f"{where}: expected a file_name below the image folder, got {_show(name)}")
    height, width = (_whole(entry, side, where) for side in ("height", "width"))
    for side, value in (("height", height), ("width", width)):
        if not 1 <= value <= MAX_IMAGE_SIDE:
            raise DataError(f"{where}: expected a {side} from 1 to {MAX_IMAGE_SIDE}, got {value}")
    return Image(name, height, width)


def _categories(content: dict, path: str | os.PathLike) -> dict[int, str]:
    names: dict[int, str] = {}
    seen: set[str] = set()
    for key, entry, where in _items(content, "category", path):
        name = _text(entry, "name", where)
        if name in seen:
            raise DataError(f"{where}: expected each name once, got {_show(name)} again")
        seen.add(name)
        names[key] = name
    return names


def _annotation(
    entry: dict, key: int, where: str, images: dict[int, Image], categories: dict[int, str]
) -> Annotation:
    image_id, category_id = _whole(entry, "image_id", where), _whole(entry, "category_id", where)
    if image_id not in images:
        raise DataError(f"{where}: expected an image_id of the file, got {image_id}")
    if category_id not in categories:
        raise DataError(f"{where}: expected a category_id of the file, got {category_id}")
    crowd = entry.get("iscrowd", 0)
    if not isinstance(crowd, (int, bool)) or crowd not in (0, 1):
        raise DataError(f"{where}: expected iscrowd 0 or 1, got {_show(crowd)}")
    area = entry.get("area", 1)
    if not _is_number(area):
        raise DataError(f"{where}: expected a finite number as area, got {_show(area)}")
    return Annotation(key, image_id, category_id, _box(entry, where), bool(crowd), area > 0)


def _box(entry: dict, where: str) -> Box:
    value = entry.get("bbox")
    if not isinstance(value, list) or len(value) != 4:
        raise DataError(f"{where}: expected bbox [x, y, width, height], got {_show(value)}")
    if not all(map(_is_number, value)):
        raise DataError(f"{where}: expected a bbox of 4 finite numbers, got {_show(value)}")
    return tuple(map(float, value))


def _is_number(value: Any) -> bool:
    """Whether `value` is a number of pixels: finite, and of a size that leaves room for sums."""
    return type(value) in (int, float) and abs(value) < 1e12


def _whole(entry: dict, name: str, where: str) -> int:
    value = entry.get(name)
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is int and abs(value) < 2**63:
        return value
    raise DataError(f"{where}: expected a whole number as {name}, got {_show(value)}")


def _text(entry: dict, name: str, where: str) -> str:
    value = entry.get(name)
    if not isinstance(value, str) or not value.strip() or _UNUSABLE.search(value):
        raise DataError(f"{where}: expected text as {name}, got {_show(value)}")
    return value


def _kind(value: Any) -> str:
    words = {dict: "an object", list: "a list", str: "text", type(None): "nothing"}
    return words.get(type(value), _show(value))


def _show(value: Any) -> str:
    """A value of the file as errors print it: short, and on one line."""
    return "nothing" if value is None else reprlib.repr(value)
