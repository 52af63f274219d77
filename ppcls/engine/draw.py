"""Pictures of detections: boxes with class names and scores, and sheets of several pictures."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ppcls.metric.detection import Detections
from ppcls.utils.errors import UserError
from ppcls.utils.fileio import atomic_write

Color = tuple[int, int, int]

_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
_GOLDEN = 0.6180339887498949  # its multiples, modulo 1, never come close to each other
_INK: Color = (40, 40, 40)
_BITMAP_HEIGHT = 11  # pixels of the font every Pillow has


def class_color(label: int) -> Color:
    """Return a class's RGB colour: always the same, and neighbours far apart."""
    hue = label * _GOLDEN % 1.0
    value = (1.0, 0.8, 0.9)[label % 3]
    saturation = (0.85, 0.95, 0.6)[label % 3]
    red, green, blue = (round(255 * x) for x in colorsys.hsv_to_rgb(hue, saturation, value))
    return red, green, blue


def draw_detections(
    image: np.ndarray | Image.Image,
    detections: Detections,
    names: Sequence[str],
    threshold: float = 0.5,
) -> Image.Image:
    """Return a copy of an image with its detections on it, the best one on top.

    image: HWC uint8 RGB, or a picture. detections: boxes in its pixels; what reaches over the edge
    is cut. names: of the labels, the background first; a label beyond them shows its number.
    threshold: only scores of at least this are shown.
    """
    shown = np.flatnonzero(detections.scores >= threshold)
    shown = shown[np.argsort(detections.scores[shown], kind="stable")]
    labels = [int(detections.labels[i]) for i in shown]
    texts = [
        f"{names[label] if label < len(names) else label} {detections.scores[i]:.2f}"
        for i, label in zip(shown, labels, strict=True)
    ]
    return draw_boxes(image, detections.boxes[shown], labels, texts)


def draw_boxes(
    image: np.ndarray | Image.Image, boxes: np.ndarray, labels: Sequence[int], texts: Sequence[str]
) -> Image.Image:
    """Return a copy of an image with boxes on it, the last one on top, and a text at each.

    boxes: [m, 4] in its pixels; what reaches over the edge is cut. labels: they choose the colours.
    """
    picture = _as_picture(image).copy()
    canvas = ImageDraw.Draw(picture)
    line = max(2, round(max(picture.size) / 320))
    text_height = max(12, round(max(picture.size) / 40))
    corners = [_inside(box, picture.size) for box in boxes]
    for box, label in zip(corners, labels, strict=True):
        canvas.rectangle(box, outline=class_color(label), width=line)
    for box, label, text in zip(corners, labels, texts, strict=True):
        tag = _fitted(text_tag(text, text_height, class_color(label)), picture.size)
        picture.paste(tag, _tag_place(box, tag.size, picture.size))
    return picture


def contact_sheet(
    images: Sequence[np.ndarray | Image.Image],
    columns: int,
    cell: tuple[int, int] = (320, 240),
    gap: int = 8,
    background: Color = (255, 255, 255),
    captions: Sequence[Sequence[str]] = (),
    text_height: int = 14,
) -> Image.Image:
    """Return a grid of pictures, row by row, each as large as its cell allows, and centred.

    cell: width and height in pixels. gap: pixels around every cell. captions: for each picture the
    lines beneath its cell, `text_height` pixels high and cut where they are too long.

    Raises ValueError for no image.
    """
    if not images or columns < 1:
        raise ValueError(f"expected an image and a column, got {len(images)} and {columns}")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    masks = [[_short_mask(line, text_height, cell[0]) for line in lines] for lines in captions]
    text_space = max((sum(mask.height for mask in lines) for lines in masks), default=0)
    step = cell[0] + gap, cell[1] + gap + text_space
    sheet = Image.new("RGB", (gap + columns * step[0], gap + rows * step[1]), background)
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        corner = gap + column * step[0], gap + row * step[1]
        picture = _in_cell(_as_picture(image), cell)
        left = corner[0] + (cell[0] - picture.width) // 2
        sheet.paste(picture, (left, corner[1] + (cell[1] - picture.height) // 2))
        top = corner[1] + cell[1]
        for mask in masks[number] if masks else ():
            sheet.paste(_INK, (corner[0] + (cell[0] - mask.width) // 2, top), mask)
            top += mask.height
    return sheet


def _in_cell(picture: Image.Image, cell: tuple[int, int]) -> Image.Image:
    """Return a picture as large as its cell allows."""
    scale = min(cell[0] / picture.width, cell[1] / picture.height)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Image.Resampling.LANCZOS)


def _short_mask(text: str, height: int, width: int) -> Image.Image:
    """`text_mask`, with the end of the text left out when it is wider than `width`."""
    mask, kept = text_mask(text, height), len(text)
    while mask.width > width and kept > 1:
        kept = max(1, min(kept - 1, kept * width // mask.width))
        mask = text_mask(text[:kept] + "..", height)
    return mask


def picture_paths(paths: list[Path], folder: Path, where: str) -> dict[Path, Path]:
    """Return where each picture goes: under its own name, numbered when two have the same one.

    Makes `folder`. Raises UserError, which begins with `where`, when that cannot be done, or a
    picture would be written over one of the images `paths`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{where}: {folder} cannot be made: {error.strerror}") from error
    targets: dict[Path, Path] = {}
    taken: set[str] = set()
    for path in paths:
        suffix = path.suffix.lower() if path.suffix.lower() in (".png", ".jpg", ".jpeg") else ".png"
        name, number = path.stem + suffix, 1
        while name in taken:
            number += 1
            name = f"{path.stem}_{number}{suffix}"
        taken.add(name)
        targets[path] = folder / name
    originals = {image.resolve() for image in paths}
    over = next((target for target in targets.values() if target.resolve() in originals), None)
    if over is not None:
        raise UserError(
            f"{where}: expected a folder whose pictures are none of the images, but {over} would "
            "be written over"
        )
    return targets


def save_picture(picture: Image.Image, path: str | Path) -> None:
    """Write a picture as PNG or JPEG, by the name's suffix; a half-written file is never left.

    Raises UserError for another suffix, and where nothing can be written.
    """
    kind = _FORMATS.get(Path(path).suffix.lower())
    if kind is None:
        raise UserError(f"{path}: expected a name that ends in {', '.join(_FORMATS)}")
    options = {"quality": 92, "subsampling": 0} if kind == "JPEG" else {}
    atomic_write(path, lambda file: picture.save(file, format=kind, **options))


def text_tag(text: str, height: int, color: Color) -> Image.Image:
    """Return text on a ground of `color`, in black or white, whichever is easier to read.

    height: pixels of the font. Letters the font lacks appear as it shows them.
    """
    luminance = np.dot(color, (0.299, 0.587, 0.114))
    ink = (0, 0, 0) if luminance > 140 else (255, 255, 255)
    mask = text_mask(text, height)
    pad = max(1, height // 6)
    tag = Image.new("RGB", (mask.width + 2 * pad, mask.height + 2 * pad), color)
    tag.paste(ink, (pad, pad), mask)
    return tag


def text_mask(text: str, height: int) -> Image.Image:
    """Return the letters as an "L" picture, 255 where there is ink."""
    try:
        font = ImageFont.load_default(size=height)
    except (TypeError, ImportError, OSError):  # Pillow < 10.1, or one without FreeType
        return _bitmap_mask(text, height)
    left, _, right, _ = font.getbbox(text)
    ascent, descent = font.getmetrics()
    mask = Image.new("L", (max(1, right - min(left, 0)), ascent + descent))
    ImageDraw.Draw(mask).text((-min(left, 0), 0), text, font=font, fill=255)
    return mask


def _bitmap_mask(text: str, height: int) -> Image.Image:
    """`text_mask` in the one size every Pillow has, enlarged by a whole number."""
    font = ImageFont.load_default()
    text = text.encode("latin-1", "replace").decode("latin-1")  # it has no other letters
    _, _, right, bottom = font.getbbox(text)
    mask = Image.new("L", (max(1, right), max(1, bottom)))
    ImageDraw.Draw(mask).text((0, 0), text, font=font, fill=255)
    factor = max(1, round(height / _BITMAP_HEIGHT))
    return mask.resize((mask.width * factor, mask.height * factor), Image.Resampling.NEAREST)


def _fitted(tag: Image.Image, limit: tuple[int, int]) -> Image.Image:
    """Return a tag made smaller if it is larger than the picture."""
    scale = min(1.0, limit[0] / tag.width, limit[1] / tag.height)
    if scale == 1.0:
        return tag
    return tag.resize((max(1, int(tag.width * scale)), max(1, int(tag.height * scale))))


def _tag_place(box: list[int], tag: tuple[int, int], picture: tuple[int, int]) -> tuple[int, int]:
    """Return where a tag goes: above its box, else just inside its top, never over an edge."""
    left, top, *_ = box
    above = top - tag[1] + 1
    return min(left, picture[0] - tag[0]), min(above if above >= 0 else top, picture[1] - tag[1])


def _inside(box: np.ndarray, size: tuple[int, int]) -> list[int]:
    """Return a box in whole pixels, cut at the picture's edges."""
    limits = np.array([size[0] - 1, size[1] - 1] * 2)
    corners = np.clip(np.nan_to_num(box.astype(np.float64)), 0, limits).round().astype(int)
    corners[2:] = np.maximum(corners[:2], corners[2:])
    return corners.tolist()


def _as_picture(image: np.ndarray | Image.Image) -> Image.Image:
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    return picture.convert("RGB")
