"""Files that the fast decoder takes give the plain decoder's pixels; all others go to that one."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from ppcls.data import jpeg
from ppcls.data.transforms import DecodeImage

pytest.importorskip("simplejpeg")

ROUNDS = 100
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8).repeat(9, axis=0).repeat(11, axis=1)


def encode(mode="RGB", suffix="JPEG", pixels=PIXELS, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, suffix, **options)
    return file.getvalue()


def exif(orientation, order="<", kind=3, count=1, entries=1) -> bytes:
    """An EXIF block that gives `orientation` in each of its entries."""
    start = b"II*\0" if order == "<" else b"MM\0*"
    value = struct.pack(f"{order}HHIHH", 0x0112, kind, count, orientation, 0)
    body = struct.pack(f"{order}IH", 8, entries) + value * entries + bytes(4)
    return b"Exif\0\0" + start + body


def with_segment(data: bytes, marker: int, body: bytes) -> bytes:
    return data[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body + data[2:]


BASE = encode(quality=90)
TAKEN = {
    **{f"sampling {number}": encode(subsampling=number) for number in (0, 1, 2)},
    "grey": encode("L"),
    "restart markers": encode(restart_marker_blocks=2),
    "low quality": encode(quality=5),
    "a profile": encode(icc_profile=bytes(70000)),
    "upright": with_segment(BASE, 0xE1, exif(1)),
    "upright, big-endian": with_segment(BASE, 0xE1, exif(1, ">")),
    "another APP1": with_segment(BASE, 0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>"),
    "a comment": with_segment(BASE, 0xFE, b"\xff\xda no scan"),
    "one pixel": encode(pixels=PIXELS[:1, :1]),
    "narrow": encode(pixels=PIXELS[:, :3]),
    "extra bytes": BASE + b"extra",
}
TURNED = {
    **{f"orientation {number}": with_segment(BASE, 0xE1, exif(number)) for number in range(2, 9)},
    "turned, big-endian": with_segment(BASE, 0xE1, exif(6, ">")),
    "orientation as a long": with_segment(BASE, 0xE1, exif(6, kind=4)),
    "two orientations": with_segment(BASE, 0xE1, exif(6, entries=2)),
    "two blocks": with_segment(with_segment(BASE, 0xE1, exif(6)), 0xE1, exif(1)),
    "cut EXIF": with_segment(BASE, 0xE1, exif(6)[:12]),
    **{
        f"turned by {name!r}, {order}": with_segment(BASE, 0xE1, name + exif(6, order)[6:])
        for name in (b"Exif\0\xff", b"EXIF\0\0", b"XXXXXX")
        for order in "<>"
    },
    "no EXIF": with_segment(BASE, 0xE1, b"Exif\0\0"),
}
LEFT = {
    "progressive": encode(progressive=True),
    "CMYK": encode("CMYK"),
    "4:4:0": BASE.replace(b"\x03\x01\x22\x00\x02\x11", b"\x03\x01\x12\x00\x02\x11"),
    "PNG": encode(suffix="PNG"),
    "palette PNG": encode("P", "PNG"),
    "16-bit PNG": encode(suffix="PNG", pixels=(PIXELS[..., 0].astype(np.uint16) * 257)),
    "WebP": encode(suffix="WEBP"),
}
DAMAGED = {
    "empty": b"",
    "no image": b"no image",
    "two bytes": BASE[:2],
    "headers only": BASE[: BASE.index(b"\xff\xda")],
    "half": BASE[: len(BASE) // 2],
    "no end": BASE[:-2],
    "no tables": BASE.replace(b"\xff\xc4", b"\xff\xe5"),
    "wrong data": BASE[:-200] + b"\xff\xd0" + bytes(150) + BASE[-49:],
    "no size": BASE.replace(struct.pack(">HH", 54, 99), bytes(4)),
}
FILES = {**TAKEN, **TURNED, **LEFT, **DAMAGED}


def outcome(decode, data):
    try:
        return decode(data, None)
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("backend", ["cv2", "pil"])
@pytest.mark.parametrize("name", FILES)
def test_pixels_and_errors_are_those_of_the_plain_decoder(name, backend):
    for to_rgb in (True, False):
        plain = DecodeImage(to_rgb=to_rgb, backend=backend)
        wanted, found = outcome(plain, FILES[name]), outcome(jpeg.DecodeJpeg(plain), FILES[name])
        if isinstance(wanted, str):
            assert found == wanted
        else:
            assert found.dtype == np.uint8 and np.array_equal(found, wanted)


@pytest.mark.parametrize("turns", [True, False])
def test_which_files_are_taken(turns):
    def taken(files):
        return [name for name, data in files.items() if jpeg.is_well_known(data, turns=turns)]

    assert taken(TAKEN) == list(TAKEN)
    assert taken(TURNED) == ([] if turns else list(TURNED))
    assert taken(LEFT) == []


@pytest.mark.parametrize("backend", ["cv2", "pil"])
def test_cut_files_fare_as_in_the_plain_decoder(backend):
    plain = DecodeImage(backend=backend)
    fast = jpeg.DecodeJpeg(plain)
    for length in range(0, len(BASE), 61):
        wanted, found = outcome(plain, BASE[:length]), outcome(fast, BASE[:length])
        assert type(found) is type(wanted) and np.array_equal(found, wanted)


@pytest.mark.parametrize("backend", ["cv2", "pil"])
def test_changed_files_are_taken_or_refused_as_by_the_plain_decoder(backend):
    plain = DecodeImage(backend=backend)
    fast = jpeg.DecodeJpeg(plain)
    for _ in range(ROUNDS):
        data = bytearray(BASE)
        for position in RNG.integers(2, len(data), RNG.integers(1, 4)):
            data[position] = RNG.integers(256)
        wanted, found = outcome(plain, bytes(data)), outcome(fast, bytes(data))
        # Pixels of damaged data that no decoder notices differ between versions of OpenCV, too.
        assert type(found) is type(wanted) and np.shape(found) == np.shape(wanted)


def test_the_fast_decoder_decodes(monkeypatch):
    plain = DecodeImage()
    fast = jpeg.DecodeJpeg(plain)
    monkeypatch.setattr(DecodeImage, "__call__", None)
    for data in TAKEN.values():
        assert fast(data, None).shape[2] == 3


def test_size_limits_are_those_of_pillow(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 54 * 99 - 1)
    with pytest.raises(ValueError, match="expected at most 5345 pixels"):
        jpeg.DecodeJpeg(DecodeImage(backend="pil"))(BASE, None)


def test_both_libraries_are_compared():
    assert jpeg.agrees("cv2") and jpeg.agrees("pil")
