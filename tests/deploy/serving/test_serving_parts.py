"""Files of very many parts, which decoders take minutes for, and those honest people send."""

import importlib
import io
import struct
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from serving_fakes import picture

from ppcls.deploy.serving.errors import RequestError
from ppcls.deploy.serving.images import check_header
from ppcls.deploy.serving.parts import MOST_PARTS, MOST_SCANS, too_many_parts

SCRIPTS = str(Path(__file__).resolve().parents[3] / "scripts")
sys.path.append(SCRIPTS)
progressive_jpeg = importlib.import_module("_hostile_requests").progressive_jpeg
sys.path.remove(SCRIPTS)

JPEG, PNG = picture(form="JPEG"), picture(form="PNG")
MANY = 12_000


def noise(**options):
    pixels = np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "options",
    [
        {"format": "JPEG", "progressive": True, "quality": 95},
        {"format": "JPEG", "exif": b"Exif\0\0" + b"\xff\xda" * 30_000},
        {"format": "JPEG", "icc_profile": b"\xff\xd8" * 100_000, "comment": b"\xff" * 60_000},
        {"format": "PNG"},
    ],
)
def test_ordinary_files(options):
    data = noise(**options)
    assert too_many_parts(data) is None
    check_header(data, "cat", 10**6)


def test_restarts_and_what_follows_the_picture_are_no_parts():
    restarts = noise(format="JPEG", restart_marker_blocks=1)
    assert restarts.count(b"\xff\xd0") > 100
    assert too_many_parts(restarts + b"\xff\xda\0\2" * MANY) is None


@pytest.mark.parametrize(
    ("data", "most"),
    [
        (JPEG[:2] + b"\xff\xe1\0\2" * MANY + JPEG[2:], f"{MOST_PARTS} segments"),
        (JPEG[:2] + b"\xff" * MANY + JPEG[2:], f"{MOST_PARTS} segments"),
        (PNG[:33] + b"\0\0\0\0zzZz\0\0\0\0" * MANY + PNG[33:], f"{MOST_PARTS} chunks"),
        (b"P3\n9 9\n255\n" + b"1 #\n" * MANY, f"{MOST_PARTS} comments"),
        (progressive_jpeg(64, MOST_SCANS + 1), f"{MOST_SCANS} scans"),
    ],
)
def test_very_many_parts(data, most):
    started = time.process_time()
    with pytest.raises(RequestError) as caught:
        check_header(data, "cat", 10**6)
    assert time.process_time() - started < 1
    assert caught.value.status == 413
    assert str(caught.value) == f"cat: expected a file of at most {most}, found more"


def test_scans_are_counted_as_a_decoder_meets_them():
    """A length that would lead past the scans, after a marker that has none, hides nothing."""
    data = progressive_jpeg(64, MOST_SCANS)
    assert too_many_parts(data) is None
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (64, 64) and image.load()
    scans = progressive_jpeg(64, MOST_SCANS + 1)
    start = scans.index(b"\xff\xda")
    for bare in (b"\xff\x01", b"\xff\xd3", b"\xff\0"):
        assert too_many_parts(scans[:start] + bare + struct.pack(">H", 9999) + scans[start:])


@pytest.mark.parametrize("size", [*range(2, 14), 40])
def test_files_that_end_early(size):
    for data in (JPEG, PNG, progressive_jpeg(8, 3), b"P3\n9 9\n"):
        assert too_many_parts(data[:size]) is None
