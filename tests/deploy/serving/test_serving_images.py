"""What a file's header says, before anything is decoded."""

import io
import struct
import tracemalloc
import zlib

import pytest
from PIL import Image
from serving_fakes import picture

from ppcls.deploy.serving.errors import RequestError
from ppcls.deploy.serving.images import check_header, shorter_side


def refusal(data, max_pixels=10_000, short=0):
    with pytest.raises(RequestError) as caught:
        check_header(data, "cat", max_pixels, short)
    text = str(caught.value)
    assert text.startswith("cat: ") and "\n" not in text
    return caught.value.status, text


def png_header(width, height):
    """A PNG file of a few bytes that claims a size."""

    def chunk(kind, data):
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def animation(form, count=3):
    file = io.BytesIO()
    first, *rest = (Image.new("RGB", (20, 20), (0, 90 * n, 0)) for n in range(count))
    first.save(file, form, save_all=True, append_images=rest)
    return file.getvalue()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "WEBP", "GIF", "PPM", "TIFF"])
def test_formats_taken(form):
    check_header(picture(form=form), "cat", 10_000)


@pytest.mark.parametrize(
    "data", [b"hello", b"%!PS-Adobe-3.0\n%%BoundingBox: 0 0 9 9\n", b"\0" * 99]
)
def test_other_files(data):
    status, text = refusal(data)
    assert status == 415 and "expected a JPEG, PNG" in text


def test_a_format_that_is_not_taken():
    assert refusal(picture(form="ICO"))[0] == 415


def test_no_bytes():
    assert refusal(b"") == (400, "cat: expected an image, found no bytes")


@pytest.mark.parametrize("size", [(101, 100), (30_000, 30_000), (2**31 - 1, 2**31 - 1)])
def test_too_many_pixels_are_not_decoded(size):
    tracemalloc.start()
    assert refusal(png_header(*size))[0] == 413
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_a_real_bomb():
    file = io.BytesIO()
    Image.new("1", (9000, 9000)).save(file, "PNG")
    assert len(file.getvalue()) < 20_000
    status, text = refusal(file.getvalue(), max_pixels=50_000_000)
    assert status == 413 and text == "cat: expected at most 50000000 pixels, found 9000 x 9000"


def test_a_strip_that_scaling_would_blow_up():
    strip = picture(size=(9000, 1))
    check_header(strip, "cat", 10_000)
    status, text = refusal(strip, max_pixels=50_000_000, short=256)
    assert status == 413 and "589824000 (9000 x 1)" in text


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animations(form):
    status, text = refusal(animation(form))
    assert status == 400 and "expected one picture" in text


def test_a_damaged_header():
    assert refusal(png_header(10, 10)[:24])[0] in (400, 415)
    assert refusal(b"P6\n10 ten\n255\n")[0] in (400, 415)


def test_shorter_side():
    ops = [{"DecodeImage": None}, {"ResizeImage": {"resize_short": 256}}, {"CropImage": None}]
    assert shorter_side(ops) == 256
    assert shorter_side([{"ResizeImage": {"size": 300}}, "ToCHWImage"]) == 0
