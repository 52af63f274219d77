"""Drawn boxes, texts that stay inside, and files."""

import numpy as np
import PIL.Image
import pytest
from PIL import ImageFont

from ppcls.engine.draw import (
    class_color,
    contact_sheet,
    draw_detections,
    save_picture,
    text_tag,
)
from ppcls.metric.detection import Detections, no_detections
from ppcls.utils.errors import UserError

NAMES = ["background", "cat", "a class with quite a long name"]
GREY = np.full((120, 160, 3), 127, np.uint8)


def found(*rows):
    """Rows of (label, score, x1, y1, x2, y2)."""
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(table[:, 0].astype(np.int64), table[:, 1], table[:, 2:])


@pytest.fixture(params=["scaled", "old_pillow", "no_freetype"])
def font(request, monkeypatch):
    """The fonts of Pillow 10.1 and later, of those before, and of one without FreeType."""
    if request.param == "scaled":
        return
    bitmap = ImageFont.load_default_imagefont()

    def without_size():
        return bitmap

    def without_freetype(size=None):
        if size is not None:
            raise ImportError("The _imagingft C module is not installed")
        return bitmap

    fake = without_size if request.param == "old_pillow" else without_freetype
    monkeypatch.setattr(ImageFont, "load_default", fake)


def test_a_box_is_drawn_where_it_is(font):
    picture = np.asarray(draw_detections(GREY, found((1, 0.9, 20, 60, 90, 100)), NAMES))
    color = np.array(class_color(1))
    for x, y in ((20, 60), (90, 60), (20, 100), (90, 100), (55, 100), (90, 80)):
        assert (picture[y, x] == color).all(), (x, y)
    assert (picture[65:95, 25:85] == 127).all() and (picture[102:] == 127).all()
    text = picture[40:60, 20:90].reshape(-1, 3)
    assert (text == color).all(axis=1).any() and (GREY == 127).all()


def test_only_scores_above_the_threshold_are_drawn():
    boxes = found((1, 0.5, 10, 60, 60, 100), (2, 0.25, 80, 60, 140, 100))

    def boxes_drawn(threshold):
        picture = np.asarray(draw_detections(GREY, boxes, NAMES, threshold))
        return [bool((picture[80, x] != 127).any()) for x in (10, 80)]

    assert boxes_drawn(0.25) == [True, True] and boxes_drawn(0.5) == [True, False]
    assert boxes_drawn(0.51) == [False, False]


def test_the_best_one_is_on_top():
    same = (30, 60, 90, 100)
    for rows in ([(1, 0.9, *same), (2, 0.6, *same)], [(2, 0.6, *same), (1, 0.9, *same)]):
        picture = np.asarray(draw_detections(GREY, found(*rows), NAMES))
        assert tuple(picture[100, 60]) == class_color(1)


@pytest.mark.parametrize("size", [(160, 120), (24, 200), (200, 9), (1, 1)])
@pytest.mark.parametrize(
    "box", [(-50, -50, 5, 5), (150, 110, 400, 300), (-9, 3, 1e9, 4), (5, 5, 5, 5)]
)
def test_everything_stays_inside(font, size, box):
    """Whole texts: no tag is cut, however small the picture."""
    pasted = []
    image = np.full((size[1], size[0], 3), 127, np.uint8)
    original = PIL.Image.Image.paste

    def paste(self, tag, place, *rest):
        if self.size == size and isinstance(tag, PIL.Image.Image):
            pasted.append((*place, place[0] + tag.width, place[1] + tag.height))
        return original(self, tag, place, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PIL.Image.Image, "paste", paste)
        picture = draw_detections(image, found((2, 0.99, *box)), NAMES)
    assert picture.size == size
    (place,) = pasted
    assert 0 <= place[0] < place[2] <= size[0] and 0 <= place[1] < place[3] <= size[1]


def test_names_of_any_letters_and_labels_without_a_name(font):
    for names in (["background", "猫"], ["background"], ["background", ""]):
        draw_detections(GREY, found((1, 0.9, 20, 60, 90, 100)), names)


def test_text_is_readable(font):
    """As tall as asked for, with ink far from its ground; longer text is wider."""
    for color in ((0, 0, 0), (255, 255, 255), (255, 230, 0), (0, 0, 255)):
        tag = np.asarray(text_tag("cat 0.90", 22, color).convert("L")).astype(int)
        assert 20 <= tag.shape[0] <= 44 and np.ptp(tag) > 100
    assert text_tag("catcat", 22, (0, 0, 0)).width > text_tag("cat", 22, (0, 0, 0)).width


def test_colours_are_fixed_and_distinct():
    colors = [class_color(label) for label in range(1, 81)]
    assert colors[:2] == [class_color(1), class_color(2)] and len(set(colors)) == 80
    steps = np.abs(np.diff(np.array(colors), axis=0)).sum(axis=1)
    assert steps.min() > 150, "neighbours look alike"


def test_kinds_of_images():
    grey = PIL.Image.new("L", (160, 120), 127)
    for image in (GREY, grey, grey.convert("RGBA"), np.asarray(grey)):
        picture = draw_detections(image, no_detections(), NAMES)
        assert picture.mode == "RGB" and (np.asarray(picture) == 127).all()


def test_contact_sheet():
    """Cells of 40 x 30 with 4 between: 3 pictures in 2 columns; the tall one is centred."""
    wide, tall = GREY, np.zeros((60, 20, 3), np.uint8)
    sheet = contact_sheet([wide, tall, wide], 2, cell=(40, 30), gap=4)
    assert sheet.size == (4 + 2 * 44, 4 + 2 * 34)
    pixels = np.asarray(sheet)
    assert (pixels[4:34, 4:44] == 127).all() and (pixels[38:68, 4:44] == 127).all()
    assert (pixels[4:34, 63:73] == 0).all()  # 10 x 30, in the middle of columns 48 to 87
    assert (pixels[4:34, 48:63] == 255).all() and (pixels[38:, 48:] == 255).all()
    assert contact_sheet([wide], 5, cell=(40, 30), gap=0).size == (40, 30)
    with pytest.raises(ValueError, match="expected an image and a column, got 0 and 2"):
        contact_sheet([], 2)


@pytest.mark.parametrize(
    ("name", "kind"), [("a.png", "PNG"), ("a.jpg", "JPEG"), ("A.JPEG", "JPEG")]
)
def test_files(tmp_path, name, kind):
    picture = draw_detections(GREY, found((1, 0.9, 20, 60, 90, 100)), NAMES)
    save_picture(picture, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with PIL.Image.open(tmp_path / name) as stored:
        assert stored.format == kind and stored.size == picture.size
        if kind == "PNG":
            assert (np.asarray(stored) == np.asarray(picture)).all()


def test_files_that_cannot_be_written(tmp_path):
    picture = PIL.Image.new("RGB", (4, 4))
    with pytest.raises(
        UserError, match=r"a\.gif: expected a name that ends in \.png, \.jpg, \.jpeg"
    ):
        save_picture(picture, tmp_path / "a.gif")
    with pytest.raises(UserError, match="none/a.png: cannot be written"):
        save_picture(picture, tmp_path / "none" / "a.png")
    assert not list(tmp_path.iterdir())
