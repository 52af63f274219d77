"""Reading and checking the lists and annotation files of PASCAL VOC. They may be anything.

The XML reader refuses document types: without one there are no entities to expand, and nothing
outside the file is ever read.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from typing import NamedTuple
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from ppcls.data.datasets.boxes import MAX_IMAGE_SIDE
from ppcls.utils.errors import DataError, UserError, did_you_mean
from ppcls.utils.fileio import map_file

Box = tuple[float, float, float, float]

_MAX_BYTES = 4_000_000  # of one annotation file; VOC's largest has 20,000
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_IMAGE_ID = re.compile(r"[\w][\w.\- ]*")


class VocObject(NamedTuple):
    """`box` is the corners (xmin, ymin, xmax, ymax) as written: pixels counted from 1."""

    name: str
    box: Box
    is_difficult: bool


class VocImage(NamedTuple):
    height: int
    width: int
    objects: list[VocObject]


def read_image_ids(path: str | os.PathLike) -> list[str]:
    """Names of the images in a list file, one a line."""
    text = _read(path)
    ids = []
    seen: set[str] = set()
    for number, line in enumerate(text.splitlines(), 1):
        name = line.strip()
        if not name:
            continue
        if _IMAGE_ID.fullmatch(name) is None or ".." in name:
            raise DataError(f"{path}:{number}: expected the name of an image, got {name[:60]!r}")
        if name in seen:
            raise DataError(f"{path}:{number}: expected each image once, got {name!r} again")
        seen.add(name)
        ids.append(name)
    if not ids:
        raise DataError(f"{path}: expected names of images, one a line, found none")
    return ids


def read_names(path: str | os.PathLike) -> list[str]:
    """Class names of a label list, one a line, without the background."""
    names = [line.strip() for line in _read(path).splitlines() if line.strip()]
    if not names:
        raise DataError(f"{path}: expected names of classes, one a line, found none")
    again = [name for name, count in Counter(names).items() if count > 1]
    if again:
        raise DataError(f"{path}: expected each class once, found {again[0][:60]!r} again")
    return names


def read_annotation(path: str | os.PathLike, known: set[str]) -> VocImage:
    """Read one image's annotation file; `known` are the class names it may use."""
    root = parse_xml(_read_bytes(path), path)
    if root.tag != "annotation":
        raise DataError(f"{path}: expected an <annotation>, found <{root.tag[:60]}>")
    sides = [_side(root, name, path) for name in ("height", "width")]
    objects = [
        _object(node, f"{path}: object {number}", known)
        for number, node in enumerate(root.findall("object"), 1)
    ]
    return VocImage(sides[0], sides[1], objects)


def parse_xml(data: bytes, path: str | os.PathLike) -> Element:
    """Parse XML without a document type to its root element."""

    def refuse(*_: object) -> None:
        raise DataError(f"{path}: expected plain XML, found a document type (DTD)")

    builder = TreeBuilder()
    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(data, True)
        return builder.close()
    except (expat.ExpatError, ValueError, LookupError) as error:  # the last two: odd encodings
        raise DataError(f"{path}: expected XML ({error})") from error


def _read_bytes(path: str | os.PathLike) -> bytes:
    try:
        return bytes(map_file(path, _MAX_BYTES))
    except UserError as error:
        raise DataError(str(error)) from error


def _read(path: str | os.PathLike) -> str:
    try:
        return _read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8 text ({error})") from error


def _side(root: Element, name: str, path: str | os.PathLike) -> int:
    text = _text(root, f"size/{name}")
    if re.fullmatch(r"[0-9]{1,6}", text) is None or not 1 <= int(text) <= MAX_IMAGE_SIDE:
        raise DataError(
            f"{path}: expected size/{name} from 1 to {MAX_IMAGE_SIDE}, found {text[:60]!r}"
        )
    return int(text)


def _object(node: Element, where: str, known: set[str]) -> VocObject:
    name = _text(node, "name")
    if name not in known:
        hint = did_you_mean(name[:60], known)
        raise DataError(
            f"{where}: expected one of the {len(known)} classes, got {name[:60]!r}{hint}"
        )
    difficult = _text(node, "difficult") or "0"
    if difficult not in ("0", "1"):
        raise DataError(f"{where}: expected difficult 0 or 1, got {difficult[:60]!r}")
    corners = [_number(node, f"bndbox/{corner}", where) for corner in _CORNERS]
    return VocObject(name, tuple(corners), difficult == "1")


def _number(node: Element, name: str, where: str) -> float:
    text = _text(node, name)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) < 1e9:
        raise DataError(f"{where}: expected a finite number as {name}, got {text[:60]!r}")
    return value


def _text(node: Element, path: str) -> str:
    return (node.findtext(path) or "").strip()
