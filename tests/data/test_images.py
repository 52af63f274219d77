"""Images to infer: which ones, and what a network gets of them."""

import numpy as np
import pytest
from detection_folders import EVAL_OPS, picture
from PIL import Image

from ppcls.data.images import Preparation, list_images
from ppcls.utils.errors import ConfigError, DataError

DECODE = {"DecodeImage": {"backend": "pil"}}
NORMALIZE = {"NormalizeImage": {"scale": "1.0/255.0", "mean": [0.5] * 3, "std": [0.5] * 3}}
CLASSIFY = [DECODE, "ToCHWImage", NORMALIZE]


@pytest.fixture
def file(tmp_path):
    """A picture of 6 x 4 pixels, stored without loss."""
    path = tmp_path / "a.png"
    Image.fromarray(picture(6, 4)).save(path)
    return path


def test_images_of_a_folder_and_of_a_list(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.png", "sub/a.JPG", ".hidden.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name, format="PNG")
    (tmp_path / "list.txt").write_text("b.png\n\nsub/a.JPG\n", encoding="utf-8-sig")
    found = [tmp_path / "b.png", tmp_path / "sub/a.JPG"]
    assert list_images(tmp_path) == found
    assert list_images(tmp_path / "list.txt") == found
    with pytest.raises(DataError, match="none.png: no such image"):
        list_images(tmp_path / "none.png")


@pytest.mark.parametrize("last", [[], ["ToCHWImage"], [{"ToCHWImage": None}], [{"ToCHWImage": {}}]])
def test_images_end_channels_first_however_it_is_written(file, last):
    tensor = Preparation([DECODE, *last], "Infer.transforms")(file).tensor
    assert tensor.dtype == np.float32
    np.testing.assert_array_equal(tensor, picture(6, 4).transpose(2, 0, 1))


@pytest.mark.parametrize("last", [[], ["ToCHWImage"]])
def test_or_as_bytes_channels_last(file, last):
    prepare = Preparation([DECODE, *last], "Deploy", layout="NHWC", dtype="uint8")
    tensor = prepare(file).tensor
    assert tensor.dtype == np.uint8 and tensor.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(tensor, picture(6, 4))


@pytest.mark.parametrize("task, ops", [("classification", CLASSIFY), ("detection", EVAL_OPS)])
def test_a_path_its_bytes_and_its_pixels_are_the_same(file, task, ops):
    """The pixels are RGB, also where the transforms want BGR."""
    prepare = Preparation(ops, "Infer.transforms", task=task)
    by_path = prepare(str(file), keep_pixels=True)
    assert by_path.name == str(file) and by_path.size == (6, 4)
    np.testing.assert_array_equal(by_path.pixels, picture(6, 4))
    for image in (file.read_bytes(), memoryview(file.read_bytes()), picture(6, 4)):
        found = prepare(image)
        assert found.name is None and found.pixels is None and found.size == (6, 4)
        np.testing.assert_array_equal(found.tensor, by_path.tensor)


def test_an_image_that_cannot_be_used_is_named(tmp_path):
    path = tmp_path / "broken.png"
    path.write_bytes(b"no picture")
    prepare = Preparation(CLASSIFY, "Infer.transforms")
    with pytest.raises(DataError, match=r"broken\.png: cannot decode the image"):
        prepare(path)
    with pytest.raises(DataError, match="cat: cannot decode the image"):
        prepare(b"no picture", "cat")
    with pytest.raises(DataError, match="the image: cannot decode the image"):
        prepare(b"")
    with pytest.raises(DataError, match="none: cannot read the file: No such file"):
        prepare("none")


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 6), np.uint8),
        np.zeros((4, 6, 4), np.uint8),
        np.zeros((4, 6, 3), np.float32),
        np.zeros((0, 6, 3), np.uint8),
    ],
)
def test_pixels_that_are_no_rgb_image(pixels):
    with pytest.raises(DataError, match="the image: expected HWC uint8 pixels"):
        Preparation(CLASSIFY, "Infer.transforms")(pixels)


def test_normalised_pixels_are_no_bytes(file):
    prepare = Preparation(CLASSIFY, "Deploy.transforms", layout="NHWC", dtype="uint8")
    with pytest.raises(DataError, match="expected uint8 pixels after the transforms, got float32"):
        prepare(file)


@pytest.mark.parametrize("ops", [[], ["ToCHWImage"], [{"DecodeImage": {"channel_first": True}}]])
@pytest.mark.parametrize("task", ["classification", "detection"])
def test_decoding_comes_first(ops, task):
    with pytest.raises(ConfigError, match="Infer.transforms: expected DecodeImage"):
        Preparation(ops, "Infer.transforms", task=task)
