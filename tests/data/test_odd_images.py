"""Every transform on images of every kind: the right answer, or a sentence with the file's path."""

import inspect
import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from ppcls.data.batch_ops import build_batch_op
from ppcls.data.datasets import ImageNetDataset
from ppcls.data.transforms import BOX_TRANSFORMS, TRANSFORMS, build_box_transforms, build_transforms
from ppcls.utils.errors import ConfigError, DataError

BACKENDS = ("cv2", "pil")
# What each transform is tried with; one without a row here fails the tests.
EVERY = {
    "AutoAugment": {},
    "ColorJitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
    "CropImage": {"size": 4, "style": "torchvision"},
    "DecodeImage": {},
    "NormalizeImage": {"order": ""},
    "RandAugment": {},
    "RandCropImage": {"size": 5},
    "RandFlipImage": {"flip_code": -1},
    "RandomErasing": {"EPSILON": 1.0},
    "ResizeImage": {"resize_short": 6},
    "TimmAutoAugment": {},
    "ToCHWImage": {},
    "TrivialAugment": {},
}


def png(array):
    return cv2.imencode(".png", array[..., ::-1] if array.ndim == 3 else array)[1].tobytes()


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def kinds():
    """Name -> (file, the pixels it shows, [H, W, 3] uint8)."""
    rng = np.random.default_rng(0)

    def noise(*shape, high=256, dtype=np.uint8):
        return rng.integers(0, high, shape, dtype=dtype)

    def thrice(grey):
        return np.repeat(grey[:, :, None], 3, axis=2)

    colour, grey = noise(9, 7, 3), noise(9, 7)
    wide, wide_grey = (noise(9, 7, *n, high=65536, dtype=np.uint16) for n in ((3,), ()))
    black = noise(9, 7, high=2).astype(bool)
    alpha = Image.fromarray(np.dstack([colour, noise(9, 7)]))
    yield "one pixel", png(colour[:1, :1]), colour[:1, :1]
    yield "one row", png(colour.reshape(1, -1, 3)), colour.reshape(1, -1, 3)
    yield "one column", png(colour.reshape(-1, 1, 3)), colour.reshape(-1, 1, 3)
    yield "grey", png(grey), thrice(grey)
    yield "grey and alpha", saved(Image.fromarray(np.dstack([grey, grey])), "PNG"), thrice(grey)
    yield "black and white", saved(Image.fromarray(black), "PNG"), thrice(black * np.uint8(255))
    yield "RGBA", saved(alpha, "PNG"), colour
    yield "16-bit grey", png(wide_grey), thrice((wide_grey >> 8).astype(np.uint8))
    yield "16-bit colour", png(wide), (wide >> 8).astype(np.uint8)
    yield (
        "TIFF of 16 bits",
        saved(Image.fromarray(wide_grey), "TIFF"),
        thrice((wide_grey >> 8).astype(np.uint8)),
    )


KINDS = {name: (data, pixels) for name, data, pixels in kinds()}


def dataset(root, data, *ops, name="odd.img", backend="pil"):
    (root / name).write_bytes(data)
    (root / "list.txt").write_text(f"{name} 0\n")
    ops = [{"DecodeImage": {"backend": backend}}, *ops]
    return ImageNetDataset(str(root), str(root / "list.txt"), ops)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", sorted(TRANSFORMS))
def test_a_kind_of_file_does_not_matter(tmp_path, name, backend):
    """What a transform gives is what it gives for the pixels the file shows."""
    params = EVERY[name] | (
        {"backend": backend} if name in ("ResizeImage", "RandCropImage") else {}
    )
    op = {name: params or None}
    for kind, (data, pixels) in KINDS.items():
        found = dataset(tmp_path, data, op, backend=backend)[0].image
        expected = np.asarray(build_transforms([op], "ops")(pixels, sample_generator()))
        expected = expected if name == "ToCHWImage" else expected.transpose(2, 0, 1)
        np.testing.assert_array_equal(found, expected.astype(np.float32), f"{kind}, {name}")


def sample_generator():
    """That of the first sample of a data set of seed 0 in epoch 0."""
    return np.random.default_rng([0, 0, 0, 1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_cmyk(tmp_path, backend):
    """Libraries convert it a little differently."""
    colour = np.kron(KINDS["RGBA"][1], np.ones((8, 8, 1), np.uint8))
    data = saved(Image.fromarray(colour).convert("CMYK"), "JPEG", quality=95, subsampling=0)
    found = dataset(tmp_path, data, backend=backend)[0].image.transpose(1, 2, 0)
    assert np.abs(found - colour).mean() < 6
    found = dataset(tmp_path, data, {"CropImage": {"size": 8}}, backend=backend)[0].image
    assert found.shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.full((4, 4), 1 << 20, np.int32), "expected 8-bit or 16-bit pixels, got 32-bit values"),
        (np.zeros((4, 4), np.float32), "expected 8-bit or 16-bit pixels, got floating-point val"),
    ],
)
def test_pixels_of_other_kinds_are_refused_with_the_path(tmp_path, image, message):
    data = saved(Image.fromarray(image), "TIFF")
    with pytest.raises(DataError, match=f"^{tmp_path}/odd.img: cannot decode the image: {message}"):
        dataset(tmp_path, data)[0]


def test_an_image_too_small_is_named(tmp_path):
    ops = {"CropImage": {"size": 4}}
    with pytest.raises(DataError, match=f"^{tmp_path}/odd.img: expected an image of at least 4x4 "):
        dataset(tmp_path, KINDS["one pixel"][0], ops)[0]


# Large ones


QUARTERS = np.array([[[200, 30, 40], [20, 180, 60]], [[50, 60, 220], [240, 220, 10]]], np.uint8)


@pytest.fixture(scope="module")
def large():
    """A file of 8000x6000 pixels, of one colour in each quarter."""
    numbers = np.arange(4, dtype=np.uint8).reshape(2, 2).repeat(3000, axis=0).repeat(4000, axis=1)
    picture = Image.fromarray(numbers, "P")
    picture.putpalette(QUARTERS.tobytes())
    return saved(picture, "PNG", compress_level=1, bits=2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_image_of_48_million_pixels(tmp_path, large, backend):
    own = {"backend": backend, "style": "torchvision"}
    resize = {"ResizeImage": {"resize_short": 256, **own}}
    data = dataset(tmp_path, large, resize, {"CropImage": {"size": 224}}, backend=backend)
    found = data[0].image
    assert found.shape == (3, 224, 224)
    for row, column in np.ndindex(2, 2):
        block = found[:, row * 112 + 4 : row * 112 + 108, column * 112 + 4 : column * 112 + 108]
        assert np.abs(block - QUARTERS[row, column][:, None, None]).max() <= 3


@pytest.mark.parametrize(
    ("backend", "size", "message"),
    [
        ("pil", (12000, 8000), r"expected at most 89478485 pixels, got \(12000, 8000\)"),
        ("pil", (60000, 60000), "exceeds limit of 178956970 pixels"),
        ("cv2", (60000, 60000), "expected a size within OpenCV's limits"),
    ],
)
def test_more_pixels_than_the_limit_are_refused_with_the_path(tmp_path, backend, size, message):
    """A small file may ask for any amount of memory."""
    with pytest.raises(DataError, match=f"^{tmp_path}/odd.img: cannot decode the image.*{message}"):
        dataset(tmp_path, claiming(*size), backend=backend)[0]


def claiming(width, height):
    """A small PNG file whose header claims a size."""

    def chunk(name, content):
        body = name + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


# Probabilities


def probabilities(registry):
    """(transform, parameter) of all that are probabilities by their names."""
    return [
        (name, parameter)
        for name in sorted(registry)
        for parameter in inspect.signature(registry.get(name, "test")).parameters
        if parameter in ("p", "prob", "EPSILON")
    ]


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
@pytest.mark.parametrize(("name", "parameter"), probabilities(TRANSFORMS))
def test_a_probability_is_one(name, parameter, value):
    with pytest.raises(ConfigError, match=rf"^ops\[0\].{name}.{parameter}: expected a number"):
        build_transforms([{name: {parameter: value}}], "ops")


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
@pytest.mark.parametrize(("name", "parameter"), probabilities(BOX_TRANSFORMS))
def test_a_probability_is_one_with_boxes(name, parameter, value):
    with pytest.raises(ConfigError, match=rf"^ops\[0\].{name}.{parameter}: expected a number"):
        build_box_transforms([{name: {parameter: value}}], "ops")


@pytest.mark.parametrize("name", ["MixupOperator", "CutmixOperator"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_a_probability_is_one_in_mixing(name, value):
    entry = {"OpSampler": {name: {"prob": value}}}
    with pytest.raises(ConfigError, match=rf"^D\[0\].OpSampler.{name}.prob: expected a number"):
        build_batch_op([entry], "D")
