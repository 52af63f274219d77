"""Test size, crop ratio and mirrored images."""

import numpy as np
import paddle
import pytest
from test_classify import Precision, _scores
from tiny_run import CLASSES, TinyImages, evaluator, tiny_net

from ppcls.data.transforms import build_transforms
from ppcls.engine.build import Session, _evaluator_of_training
from ppcls.engine.config import Recipe
from ppcls.engine.evaluator import averaged_logits, logits_of
from ppcls.engine.resume import MAY_CHANGE
from ppcls.engine.testing import at_test_size, resized_entries
from ppcls.utils.errors import ConfigError

CROP = [
    {"DecodeImage": {"backend": "pil"}},
    {"ResizeImage": {"resize_short": 256, "style": "torchvision"}},
    {"CropImage": {"size": 224, "style": "torchvision"}},
    {"NormalizeImage": {"order": ""}},
    "ToCHWImage",
]
SQUARE = [{"DecodeImage": None}, {"ResizeImage": {"size": 32}}, {"NormalizeImage": None}]


def recipe(entries=CROP, infer=None, **settings) -> Recipe:
    section = {"dataset": {"name": "x", "transform_ops": entries}, "sampler": {"batch_size": 1}}
    mapping = {
        "Global": settings,
        "Arch": {"name": "x", "class_num": CLASSES},
        "DataLoader": {"Eval": section},
        "Infer": {"transforms": infer} if infer else {},
    }
    return Recipe.parse(mapping, "a.yaml")


@pytest.mark.parametrize(
    ("size", "ratio", "short"),
    [(224, None, 256), (256, None, 293), (288, None, 329), (256, 1.0, 256), (320, 0.95, 337)],
)
def test_the_shorter_side_follows_the_crop_ratio(size, ratio, short):
    """As timm has it, but rounded: 256 / 0.875 = 292.57, 320 / 0.95 = 336.84."""
    entries = resized_entries(CROP, "W", size, ratio)
    assert entries[1]["ResizeImage"] == {"resize_short": short, "style": "torchvision"}
    assert entries[2]["CropImage"] == {"size": size, "style": "torchvision"}
    assert [next(iter(e)) for e in entries[::2]] == ["DecodeImage", "CropImage", "ToCHWImage"]
    assert CROP[1]["ResizeImage"]["resize_short"] == 256  # the recipe's own is left alone
    pixels = np.zeros((300, 400, 3), np.uint8)
    rng = np.random.default_rng(0)
    assert build_transforms(entries[1:3], "W")(pixels, rng).shape == (size, size, 3)
    assert resized_entries(entries, "W", size, ratio) == entries


def test_evaluation_inference_and_export_change_together():
    tested = at_test_size(recipe(infer=SQUARE, test_size=64, image_shape=[3, 224, 224]))
    assert tested.Global.image_shape == [3, 64, 64]
    ops = tested.DataLoader.Eval.dataset["transform_ops"]
    assert (ops[1]["ResizeImage"]["resize_short"], ops[2]["CropImage"]["size"]) == (73, 64)
    assert tested.Infer.transforms[1] == {"ResizeImage": {"size": 64}}
    plain = recipe()
    assert at_test_size(plain) is plain
    assert "Global.test_*" in MAY_CHANGE


@pytest.mark.parametrize(
    ("entries", "ratio", "message"),
    [
        (None, None, "W: expected a list of transforms, got None"),
        ([*CROP[:1], {"RandCropImage": {"size": 8}}], None, "W: expected ResizeImage.*RandCrop"),
        (CROP[::-1], None, "W: expected ResizeImage, or .*, found CropImage, ResizeImage"),
        (CROP[:1], None, "found neither"),
        (CROP[:2], None, r"W\[1\].ResizeImage: expected CropImage after it"),
        (
            SQUARE,
            0.9,
            "Global.test_crop_ratio: expected none or 1, as W have no Crop",
        ),
        (
            [*CROP[:2], {"CropImage": {"size": [224, 192]}}],
            None,
            r"W\[2\].CropImage.size: expected one side for Global.test_size, got \[224, 192\]",
        ),
        ([*CROP[:2], {"CropImage": {"size": "x"}}], None, r"CropImage.size: expected an integer"),
    ],
)
def test_lists_that_cannot_be_rewritten(entries, ratio, message):
    with pytest.raises(ConfigError, match=message):
        resized_entries(entries, "W", 64, ratio)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"test_size": 31}, "test_size: expected a number >= 32, got 31"),
        (
            {"test_size": 64, "test_crop_ratio": 1.5},
            r"test_crop_ratio: expected a number in",
        ),
        ({"test_crop_ratio": 0.9}, "test_crop_ratio: expected test_size beside it, found none"),
        ({"test_size": 64, "task": "detection"}, "test_size: expected none with task: detection"),
        ({"test_flip": True, "task": "detection"}, "test_flip: expected none with task: detection"),
    ],
)
def test_settings_that_are_none(settings, message):
    with pytest.raises(ConfigError, match=f"^Global.{message}"):
        recipe(**settings)


def test_a_compiled_network_trains_at_one_size():
    session = Session(recipe(test_size=64, to_static=True), "cpu")
    with pytest.raises(ConfigError, match="Global.test_size: expected none in training with Glo"):
        _evaluator_of_training(session, Precision(None, "cpu"))


# Mirrored images


def mirrored_mean(model, images):
    model.eval()
    parts = [images, images[..., ::-1].copy()]
    return np.mean([model(paddle.to_tensor(part)).numpy() for part in parts], axis=0)


def test_logits_are_averaged_over_image_and_mirror_image():
    model, images = tiny_net(), np.random.default_rng(0).random((5, 3, 8, 8), np.float32)
    expected = mirrored_mean(model, images)
    found = averaged_logits(model, paddle.to_tensor(images), flip=True).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    plain = logits_of(model, paddle.to_tensor(images)).numpy()
    assert not np.allclose(plain, expected, atol=1e-4)
    unflipped = averaged_logits(model, paddle.to_tensor(images), flip=False).numpy()
    np.testing.assert_array_equal(unflipped, plain)
    scores = _scores(model, list(images), Precision(None, "cpu"), flip=True)
    powers = np.exp(expected.astype(np.float64))
    np.testing.assert_allclose(scores, powers / powers.sum(axis=1, keepdims=True), atol=1e-6)


@pytest.mark.parametrize("world_size", [1, 3])
def test_evaluation_with_mirror_images(world_size):
    dataset, model = TinyImages(30), tiny_net()
    images = np.stack([dataset[i].image for i in range(30)])
    right = mirrored_mean(model, images).argmax(axis=1) == dataset.labels
    runs = [
        evaluator(dataset, batch_size=4, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for run in runs:
        run.flip = True
    assert sum(run.evaluate(model).correct["top1"] for run in runs) == right.sum()
