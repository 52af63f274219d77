"""A confusion matrix as a picture: counts and names for few classes, points for a thousand.

What is right is blue and what is wrong is red, the darker the larger its share of the images of its
class. The square root of the share decides: a mistake in a hundred is still to be seen.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from ppcls.engine.draw import Color, text_mask
from ppcls.metric.confusion import Names, confusions

MOST_CLASSES = 4096
_SIDE = 900  # pixels of the matrix, about
_CELL = (2, 56)  # smallest and largest side of a cell, in pixels; 1 beyond a thousand classes
_WITH_COUNTS, _WITH_NAMES, _WITH_GRID, _LARGE = 24, 14, 12, 6  # cells from which these fit
_TEXT = 16  # pixels of the font, larger in a large picture
_PALEST = (0.15, 0.4)  # strength of a single mistake among many images, in large and small cells
_GAP = 12
_INK, _GREY, _LINE = (30, 30, 30), (110, 110, 110), (225, 225, 225)
_RIGHT, _WRONG = (8, 64, 129), (190, 20, 26)
_MOST_LISTED, _MOST_LETTERS = 20, 24


def draw_confusion(matrix: np.ndarray, names: Names = None) -> Image.Image:
    """Draw counts [C, C], a row per true class, C at most `MOST_CLASSES`.

    Beside it stand the most frequent mistakes. names: of the classes.
    """
    count = len(matrix)
    cell = cell_side(count)
    side = cell * count
    text = max(_TEXT, side // 80)
    small = text * 4 // 5
    labels = _labels(count, cell, names)
    height = small if cell < _WITH_NAMES else min(small, max(cell - 2, 11))
    marks = {number: text_mask(label, height) for number, label in labels}
    margin = max(mask.width for mask in marks.values()) + 2 * _GAP
    left, top = margin + text + _GAP, 2 * (text + _GAP)
    listing = _listing(matrix, names, small)
    title = text_mask(_title(matrix), text)
    width = left + max(side + 2 * _GAP + listing.width, title.width) + _GAP
    total = max(top + side + margin + text + 2 * _GAP, top + listing.height + _GAP)
    picture = Image.new("RGB", (width, total), (255, 255, 255))
    _ink(picture, title, (left, _GAP))
    colors = _colors(matrix, _PALEST[cell < _LARGE])
    picture.paste(Image.fromarray(colors.repeat(cell, 0).repeat(cell, 1)), (left, top))
    _draw_lines(picture, count, cell, left, top)
    if cell >= _WITH_COUNTS:
        _write_counts(picture, matrix, cell, left, top)
    for number, mask in marks.items():
        middle = number * cell + cell // 2
        _ink(picture, mask, (left - _GAP // 2 - mask.width, top + middle - mask.height // 2))
        turned = mask.rotate(90, expand=True)
        _ink(picture, turned, (left + middle - turned.width // 2, top + side + _GAP // 2))
    _ink(picture, text_mask("predicted class", text), (left, top + side + margin))
    axis = text_mask("true class", text).rotate(90, expand=True)
    _ink(picture, axis, (_GAP // 2, top))
    picture.paste(listing, (left + side + 2 * _GAP, top))
    return picture


def cell_side(count: int) -> int:
    """Return the pixels of a cell's side for so many classes."""
    smallest, largest = _CELL
    return min(max(_SIDE // count, smallest if count <= 1000 else 1), largest)


def _labels(count: int, cell: int, names: Names) -> list[tuple[int, str]]:
    """The classes written at the axes: all by name, or numbers at even distances."""
    if cell >= _WITH_NAMES:
        return [(n, str(n) if names is None else _short(names[n])) for n in range(count)]
    step = next(s for s in (5, 10, 20, 50, 100, 200, 500, 1000) if s * cell >= 5 * _TEXT)
    return [(number, str(number)) for number in range(0, count, step)]


def _short(text: str) -> str:
    return text if len(text) <= _MOST_LETTERS else f"{text[: _MOST_LETTERS - 3]}..."


def _title(matrix: np.ndarray) -> str:
    total, right = int(matrix.sum()), int(np.trace(matrix))
    return f"{right} of {total} images right ({right / max(total, 1):.4f}), {len(matrix)} classes"


def _strength(matrix: np.ndarray) -> np.ndarray:
    """[C, C] float64 from 0 to 1: square roots of the shares of each row."""
    return np.sqrt(matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1))


def _colors(matrix: np.ndarray, palest: float) -> np.ndarray:
    """[C, C, 3] uint8. palest: the least strength of a count that is not 0."""
    full = np.broadcast_to(np.array(_WRONG, np.float64), (*matrix.shape, 3)).copy()
    full[np.diag_indices(len(matrix))] = _RIGHT
    strength = np.where(matrix > 0, np.maximum(_strength(matrix), palest), 0.0)[..., None]
    return np.rint(255 + (full - 255) * strength).astype(np.uint8)


def _draw_lines(picture: Image.Image, count: int, cell: int, left: int, top: int) -> None:
    canvas, side = ImageDraw.Draw(picture), cell * count
    if cell >= _WITH_GRID:
        for place in range(cell, side, cell):
            canvas.line((left + place, top, left + place, top + side - 1), fill=_LINE)
            canvas.line((left, top + place, left + side - 1, top + place), fill=_LINE)
    canvas.rectangle((left - 1, top - 1, left + side, top + side), outline=_GREY)


def _write_counts(picture: Image.Image, matrix: np.ndarray, cell: int, left: int, top: int) -> None:
    strength = _strength(matrix)
    for row, column in zip(*np.nonzero(matrix), strict=True):
        mask = text_mask(str(matrix[row, column]), min(_TEXT, cell // 2))
        if mask.width > cell - 2:
            mask = mask.resize((cell - 2, max(1, mask.height * (cell - 2) // mask.width)))
        color = (255, 255, 255) if strength[row, column] > 0.6 else _INK
        place = left + column * cell, top + row * cell
        middle = (
            int(place[0]) + (cell - mask.width) // 2,
            int(place[1]) + (cell - mask.height) // 2,
        )
        _ink(picture, mask, middle, color)


def _listing(matrix: np.ndarray, names: Names, height: int) -> Image.Image:
    """The most frequent mistakes, one a line."""

    def name(number: int) -> str:
        return str(number) if names is None else _short(names[number])

    found = confusions(matrix)[:_MOST_LISTED]
    rows = matrix.sum(axis=1)
    lines = [f"{count} of {rows[a]}: {name(a)} as {name(b)}" for a, b, count in found]
    lines = ["most frequent mistakes" if lines else "no mistakes", *lines]
    masks = [text_mask(line, height) for line in lines]
    step = masks[0].height + _GAP // 2
    sheet = Image.new("RGB", (max(m.width for m in masks), step * len(masks)), (255, 255, 255))
    for number, mask in enumerate(masks):
        _ink(sheet, mask, (0, number * step), _INK if number else _GREY)
    return sheet


def _ink(
    picture: Image.Image, mask: Image.Image, place: tuple[int, int], color: Color = _INK
) -> None:
    picture.paste(color, (*place, place[0] + mask.width, place[1] + mask.height), mask)
