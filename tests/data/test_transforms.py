"""Every transform against a straightforward computation with OpenCV, Pillow or NumPy."""

import io
import math

import cv2
import numpy as np
import pytest
from PIL import Image

from ppcls.data.transforms import TRANSFORMS, build_transforms
from ppcls.utils.errors import ConfigError

SIZES = [
    (300, 400),
    (400, 300),
    (257, 511),
    (511, 257),
    (256, 256),
    (333, 257),
    (257, 333),
]  # width, height


def picture(width, height, seed=0):
    """Smooth random RGB, so that filters differ visibly."""
    small = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def encode(array, kind, **options):
    buffer = io.BytesIO()
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def apply(name, image, rng=None, **params):
    transform = build_transforms([{name: params or None}], "ops")
    return transform(image, rng or np.random.default_rng(0))


class Draws:
    """A generator whose draws are given as fractions of their range."""

    def __init__(self, *fractions):
        self.fractions = list(fractions)

    def uniform(self, low, high):
        return low + (high - low) * self.fractions.pop(0)

    def integers(self, low, high=None):
        low, high = (0, low) if high is None else (low, high)
        return low + int((high - low) * self.fractions.pop(0))

    def random(self):
        return self.fractions.pop(0)


# DecodeImage


@pytest.mark.parametrize("backend", ["cv2", "pil", "PIL"])
def test_decode_gives_rgb_hwc(backend):
    image = picture(31, 17)
    out = apply("DecodeImage", encode(image, "PNG"), backend=backend)
    assert out.dtype == np.uint8 and np.array_equal(out, image)
    bgr = apply("DecodeImage", encode(image, "PNG"), backend=backend, to_rgb=False)
    assert np.array_equal(bgr, image[:, :, ::-1])
    chw = apply("DecodeImage", encode(image, "PNG"), backend=backend, channel_first=True)
    assert np.array_equal(chw, image.transpose(2, 0, 1))


@pytest.mark.parametrize("backend", ["cv2", "pil"])
def test_decode_takes_every_kind_of_file(backend):
    image = picture(20, 12)
    grey = np.asarray(Image.fromarray(image).convert("L"))
    grey_rgb = np.repeat(grey[:, :, None], 3, axis=2)
    wide = grey.astype(np.uint16) * 256 + 77
    alpha = np.dstack([image, np.full(image.shape[:2], 128, np.uint8)])
    palette = Image.fromarray(image).quantize(16)
    cases = [
        (encode(grey, "PNG"), grey_rgb),
        (encode(wide, "PNG"), grey_rgb),
        (encode(alpha, "PNG"), image),
        (encode(palette, "PNG"), np.asarray(palette.convert("RGB"))),
    ]
    for data, expected in cases:
        assert np.array_equal(apply("DecodeImage", data, backend=backend), expected)
    cmyk = encode(Image.fromarray(image).convert("CMYK"), "JPEG", quality=95)
    decoded = apply("DecodeImage", cmyk, backend=backend)
    assert np.abs(decoded.astype(int) - image).mean() < 6


def test_decode_orientation_follows_the_library():
    image = picture(24, 16)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to view
    data = encode(image, "JPEG", exif=exif)
    assert apply("DecodeImage", data, backend="cv2").shape == (24, 16, 3)
    assert apply("DecodeImage", data, backend="pil").shape == (16, 24, 3)


@pytest.mark.parametrize("backend", ["cv2", "pil"])
def test_decode_refuses_damaged_bytes(backend):
    image = picture(64, 48)
    thumbnail = encode(picture(8, 8), "JPEG")  # has an end marker of its own
    damaged = [b"", b"no image", encode(image, "PNG")[:600]]
    for options in ({}, {"progressive": True}, {"comment": thumbnail}):
        data = encode(image, "JPEG", **options)
        damaged.append(data[: len(data) * 2 // 3])
    for data in damaged:
        with pytest.raises(ValueError, match="cannot decode the image"):
            apply("DecodeImage", data, backend=backend)


def test_decode_takes_a_jpeg_with_bytes_behind_its_end():
    data = encode(np.full((16, 16, 3), 90, np.uint8), "JPEG")
    for whole in (data, data + b"trailing bytes"):
        assert apply("DecodeImage", whole).shape == (16, 16, 3)


def test_decode_refuses_a_decompression_bomb(monkeypatch):
    data = encode(np.zeros((40, 40, 3), np.uint8), "PNG")
    for limit in (1599, 700):  # Pillow only warns up to twice its limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ValueError, match="pixels"):
            apply("DecodeImage", data, backend="pil")


def test_decode_lets_decoded_images_pass():
    image = picture(5, 4)
    assert apply("DecodeImage", image) is image
    assert np.array_equal(apply("DecodeImage", Image.fromarray(image)), image)


# ResizeImage, CropImage


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_resize_short_rounds_like_paddleclas(width, height):
    image = picture(width, height)
    scale = 256.0 / min(width, height)
    target = int(round(width * scale)), int(round(height * scale))
    out = apply("ResizeImage", image, resize_short=256)
    assert np.array_equal(out, cv2.resize(image, target, interpolation=cv2.INTER_LINEAR))
    out = apply("ResizeImage", image, resize_short=256, interpolation="bicubic", backend="pil")
    expected = Image.fromarray(image).resize(target, Image.Resampling.BICUBIC)
    assert np.array_equal(out, np.asarray(expected))


def test_resize_size_is_width_then_height():
    image = picture(50, 40)
    assert apply("ResizeImage", image, size=[30, 20]).shape == (20, 30, 3)
    assert apply("ResizeImage", image, size=24).shape == (24, 24, 3)
    nearest = apply("ResizeImage", image, size=[30, 20], interpolation="nearest")
    assert np.array_equal(nearest, cv2.resize(image, (30, 20), interpolation=cv2.INTER_NEAREST))
    as_number = apply("ResizeImage", image, size=[30, 20], interpolation=cv2.INTER_NEAREST)
    assert np.array_equal(as_number, nearest)


def test_resize_random_filter_comes_from_the_generator():
    image = picture(50, 40)
    linear, cubic = (
        apply("ResizeImage", image, Draws(fraction), size=20, interpolation="random")
        for fraction in (0.0, 0.9)
    )
    assert np.array_equal(linear, cv2.resize(image, (20, 20), interpolation=cv2.INTER_LINEAR))
    assert np.array_equal(cubic, cv2.resize(image, (20, 20), interpolation=cv2.INTER_CUBIC))


def test_resize_can_hand_on_a_pil_image():
    ops = [
        {"ResizeImage": {"resize_short": 40, "backend": "pil", "return_numpy": False}},
        {"CropImage": {"size": 32}},
    ]
    image = picture(60, 50)
    rng = np.random.default_rng(0)
    steps = build_transforms(ops, "ops")
    assert isinstance(steps.transforms[0](image, rng), Image.Image)
    expected = np.asarray(Image.fromarray(image).resize((48, 40), Image.Resampling.BILINEAR))
    assert np.array_equal(steps(image, rng), expected[4:36, 8:40])


@pytest.mark.parametrize("backend", ["cv2", "pil"])
def test_an_image_too_long_to_be_scaled(backend):
    image = np.zeros((1, 60_000, 3), np.uint8)
    with pytest.raises(ValueError, match="scaled to 256, got 15360000x256 of an image of 60000x1"):
        apply("ResizeImage", image, resize_short=256, backend=backend)


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_crop_paddleclas(width, height):
    image = picture(width, height)
    left, top = (width - 225) // 2, (height - 224) // 2
    out = apply("CropImage", image, size=[225, 224])
    assert np.array_equal(out, image[top : top + 224, left : left + 225])
    with pytest.raises(ValueError, match="at least 600x600"):
        apply("CropImage", image, size=600)


@pytest.mark.parametrize(("width", "height"), [*SIZES, (224, 224), (100, 700), (641, 97)])
def test_evaluation_equals_torchvision_pixel_for_pixel(width, height):
    image = picture(width, height)
    ops = [
        {"DecodeImage": {"backend": "pil"}},
        {
            "ResizeImage": {
                "resize_short": 256,
                "backend": "pil",
                "interpolation": "bilinear",
                "style": "torchvision",
            }
        },
        {"CropImage": {"size": 224, "style": "torchvision"}},
    ]
    out = build_transforms(ops, "ops")(encode(image, "PNG"), np.random.default_rng(0))
    short, long = sorted((width, height))
    longer = int(256 * long / short)
    target = (256, longer) if width <= height else (longer, 256)
    resized = Image.fromarray(image).resize(target, Image.Resampling.BILINEAR)
    left = int(round((target[0] - 224) / 2.0))
    top = int(round((target[1] - 224) / 2.0))
    expected = np.asarray(resized.crop((left, top, left + 224, top + 224)))
    assert np.array_equal(out, expected)


def test_styles_differ_where_the_roundings_do():
    image = picture(333, 257)
    house = apply("ResizeImage", image, resize_short=256)
    torch = apply("ResizeImage", image, resize_short=256, style="torchvision")
    assert (house.shape, torch.shape) == ((256, 332, 3), (256, 331, 3))
    row = np.arange(27, dtype=np.uint8).reshape(1, 9, 3)
    assert apply("CropImage", row, size=[6, 1])[0, 0, 0] == 3  # 1.5 is cut to 1
    assert apply("CropImage", row, size=[6, 1], style="torchvision")[0, 0, 0] == 6  # and rounded


def test_torchvision_crop_pads_a_small_image():
    image = picture(5, 9) | 1  # no black pixel
    out = apply("CropImage", image, size=[8, 6], style="torchvision")
    expected = np.zeros((6, 8, 3), np.uint8)
    expected[:, 1:6] = image[2:8]  # 3 columns are missing: one goes left, two right
    assert np.array_equal(out, expected)
    turned = apply("CropImage", image.transpose(1, 0, 2), size=[6, 8], style="torchvision")
    assert np.array_equal(turned, expected.transpose(1, 0, 2))


# RandCropImage, RandFlipImage


@pytest.mark.parametrize("fractions", [(0.1, 0.9, 0.3, 0.8), (0.99, 0.0, 0.0, 0.999)])
@pytest.mark.parametrize(("width", "height"), [(300, 200), (101, 433)])
def test_random_crop_paddleclas(width, height, fractions):
    image = picture(width, height)
    out = apply("RandCropImage", image, Draws(*fractions), size=[56, 48])
    ratio = 3 / 4 + (4 / 3 - 3 / 4) * fractions[0]
    w, h = math.sqrt(ratio), 1 / math.sqrt(ratio)
    bound = min((width / height) / w**2, (height / width) / h**2)
    low, high = min(0.08, bound), min(1.0, bound)
    side = math.sqrt(width * height * (low + (high - low) * fractions[1]))
    w, h = int(side * w), int(side * h)
    i, j = int((width - w + 1) * fractions[2]), int((height - h + 1) * fractions[3])
    expected = cv2.resize(image[j : j + h, i : i + w], (56, 48), interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(out, expected)


def test_random_crop_torchvision_tries_again_then_takes_the_middle():
    image = picture(300, 200)
    fits = (0.2, 0.7, 0.4, 0.6)
    params = {"size": 64, "backend": "pil", "style": "torchvision"}
    too_large = (1.0, 0.5)  # all of the area as a square does not fit into 300x200
    out = apply("RandCropImage", image, Draws(*too_large, *fits), **params)
    area = 300 * 200 * (0.08 + 0.92 * 0.2)
    aspect = math.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * 0.7)
    w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    top, left = int((200 - h + 1) * 0.4), int((300 - w + 1) * 0.6)
    cut = Image.fromarray(image[top : top + h, left : left + w])
    assert np.array_equal(out, np.asarray(cut.resize((64, 64), Image.Resampling.BILINEAR)))

    out = apply("RandCropImage", image, Draws(*too_large * 10), **params)
    cut = Image.fromarray(image[:, 16 : 16 + 267])  # 200 * 4 / 3 wide, in the middle
    assert np.array_equal(out, np.asarray(cut.resize((64, 64), Image.Resampling.BILINEAR)))


@pytest.mark.parametrize("style", ["paddleclas", "torchvision"])
def test_random_crop_handles_tiny_images_and_covers_its_range(style):
    rng = np.random.default_rng(1)
    for width, height in [(1, 1), (1, 50), (50, 1), (2, 3)]:
        image = picture(width, height)
        for _ in range(20):
            assert apply("RandCropImage", image, rng, size=8, style=style).shape == (8, 8, 3)
    whole = apply("RandCropImage", picture(40, 40), rng, size=40, scale=[1, 1], ratio=[1, 1])
    assert np.array_equal(whole, picture(40, 40))


def test_flip():
    image = picture(7, 5)
    flips = {1: image[:, ::-1], 0: image[::-1], -1: image[::-1, ::-1]}
    for code, expected in flips.items():
        assert np.array_equal(apply("RandFlipImage", image, flip_code=code, prob=1.0), expected)
        assert np.array_equal(apply("RandFlipImage", image, flip_code=code, prob=0.0), image)
    rng = np.random.default_rng(0)
    flipped = sum(np.array_equal(apply("RandFlipImage", image, rng), flips[1]) for _ in range(400))
    assert 160 < flipped < 240


def test_flipped_views_can_be_resized():
    ops = [{"RandFlipImage": {"prob": 1.0, "flip_code": -1}}, {"ResizeImage": {"size": 8}}]
    image = picture(30, 20)
    out = build_transforms(ops, "ops")(image, np.random.default_rng(0))
    assert np.array_equal(out, cv2.resize(cv2.flip(image, -1), (8, 8)))


# NormalizeImage, ToCHWImage, ColorJitter


@pytest.mark.parametrize("scale", [None, "1.0/255.0", "1./255.", 1 / 255])
def test_normalize(scale):
    image = picture(6, 4)
    mean = np.array([0.485, 0.456, 0.406], np.float32)
    std = np.array([0.229, 0.224, 0.225], np.float32)
    expected = (image.astype(np.float32) * np.float32(1 / 255) - mean) / std
    out = apply("NormalizeImage", image, scale=scale, order="")
    assert out.dtype == np.float32 and np.array_equal(out, expected)
    chw = apply("NormalizeImage", image.transpose(2, 0, 1), scale=scale)
    assert np.array_equal(chw, expected.transpose(2, 0, 1))


def test_normalize_options():
    image = picture(6, 4)
    params = {"mean": [0, 0.5, 1], "std": [1, 2, 4], "scale": 1.0, "order": "hwc"}
    out = apply("NormalizeImage", image, **params)
    assert np.array_equal(out, (image - np.float32([0, 0.5, 1])) / np.float32([1, 2, 4]))
    half = apply("NormalizeImage", image, output_fp16=True, **params)
    assert half.dtype == np.float16 and np.array_equal(half, out.astype(np.float16))
    four = apply("NormalizeImage", image, channel_num=4, **params)
    assert (
        four.shape == (4, 6, 4) and not four[:, :, 3].any() and np.array_equal(four[..., :3], out)
    )
    with pytest.raises(ValueError, match="3xHxW"):
        apply("NormalizeImage", image)


def test_to_chw():
    image = picture(6, 4)
    assert np.array_equal(apply("ToCHWImage", image), image.transpose(2, 0, 1))


def test_color_jitter_changes_what_it_is_asked_to():
    image = picture(12, 10)
    assert np.array_equal(apply("ColorJitter", image), image)
    assert np.array_equal(apply("ColorJitter", image, p=0.0, brightness=0.9), image)
    rng = np.random.default_rng(3)
    factor = np.random.default_rng(3)
    factor.random(), factor.permutation(1)
    amount = factor.uniform(0.6, 1.4)
    out = apply("ColorJitter", image, rng, brightness=0.4)
    assert np.abs(out - np.clip(image * amount, 0, 255)).max() <= 1
    grey = np.full((4, 4, 3), 90, np.uint8)
    assert np.array_equal(apply("ColorJitter", grey, saturation=0.9, hue=0.5), grey)
    a, b, other = (
        apply("ColorJitter", image, np.random.default_rng(seed), hue=0.5, contrast=0.5)
        for seed in (7, 7, 8)
    )
    assert np.array_equal(a, b) and not np.array_equal(a, other)


def test_hue_amounts_are_paddles():
    functional = pytest.importorskip("paddle.vision.transforms.functional")
    from ppcls.data.transforms.color import shift_hue

    image = Image.fromarray(picture(12, 10))
    for turns in (-0.5, -0.2, 0.0, 0.31):
        try:
            expected = functional.adjust_hue(image, turns)
        except TypeError:
            pytest.skip("this Paddle does not know this Pillow")
        assert np.array_equal(np.asarray(shift_hue(image, turns)), np.asarray(expected))


@pytest.mark.zoo
@pytest.mark.parametrize("backend", ["cv2", "pil"])
def test_evaluation_equals_paddleclas(backend):
    house = pytest.importorskip("paddleclas.deploy.python.preprocess")
    resize = {"resize_short": 256, "interpolation": "bicubic", "backend": backend}
    normalize = {"scale": "1.0/255.0", "order": ""}
    ops = [
        {"DecodeImage": {"to_rgb": True, "channel_first": False}},
        {"ResizeImage": resize},
        {"CropImage": {"size": 224}},
        {"NormalizeImage": normalize},
        {"ToCHWImage": None},
    ]
    for width, height in SIZES:
        data = image = encode(picture(width, height), "JPEG")
        for step in house.create_operators(ops):
            image = step(image)
        out = build_transforms(ops, "ops")(data, np.random.default_rng(0))
        assert out.dtype == image.dtype and np.array_equal(out, image)


# Building


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"RandCropImag": {"size": 2}}, "did you mean 'RandCropImage'"),
        ({"CropImage": {"sise": 2}}, r"ops\[0\].CropImage: unknown key 'sise'"),
        ({"CropImage": {"size": 0}}, r"ops\[0\].CropImage.size: expected a number >= 1"),
        ({"CropImage": {"size": [1, 2, 3]}}, r"CropImage.size: expected .*\[1, 2, 3\]"),
        ({"CropImage": None}, "missing key 'size'"),
        ({"ResizeImage": None}, "resize_short: expected this or 'size'"),
        ({"ResizeImage": {"size": 8, "interpolation": "box"}}, "interpolation: .*backend cv2"),
        ({"ResizeImage": {"size": 8, "backend": "gpu"}}, "backend: expected one of 'cv2'"),
        ({"RandCropImage": {"size": 8, "scale": [0.5, 0.1]}}, "scale: expected"),
        ({"RandFlipImage": {"flip_code": 2}}, "flip_code: expected -1, 0 or 1, got 2"),
        ({"RandFlipImage": {"prob": 1.5}}, "prob: expected"),
        ({"NormalizeImage": {"mean": [1, 2]}}, "mean: expected 3 numbers"),
        ({"NormalizeImage": {"std": [1, 0, 1]}}, "std: expected numbers other than 0"),
        ({"NormalizeImage": {"scale": "eval"}}, "scale: expected a number"),
        ({"ColorJitter": {"hue": 0.6}}, "hue: expected"),
        ({"ColorJitter": {"brightness": -1}}, "brightness: expected"),
    ],
)
def test_wrong_parameters_are_named(entry, message):
    with pytest.raises(ConfigError, match=message):
        build_transforms([entry], "ops")


def test_a_list_without_decode_says_so():
    with pytest.raises(ValueError, match="is DecodeImage the first transform"):
        apply("CropImage", b"bytes", size=4)


def test_paddleclas_names_are_there():
    promised = "DecodeImage ResizeImage CropImage RandCropImage RandFlipImage NormalizeImage"
    assert set(f"{promised} ToCHWImage ColorJitter".split()) <= set(TRANSFORMS)
