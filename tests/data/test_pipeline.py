"""The fast pipeline against the plain one: the same batches, bit for bit."""

import logging
import time

import numpy as np
import paddle
import pytest
from PIL import Image
from test_loader import assert_same, read

from ppcls.data import jpeg
from ppcls.data.loader import build_eval_loader, build_train_loader
from ppcls.data.normalization import Normalization
from ppcls.data.transforms import (
    TRANSFORMS,
    DecodeImage,
    NormalizeImage,
    RandFlipImage,
    ToCHWImage,
)
from ppcls.utils.errors import ConfigError, DataError, JobError

COUNT = 9
NORMALIZE = {"NormalizeImage": {"scale": "1.0/255.0", "order": ""}}
DECODE = {"DecodeImage": {}}
SQUARE = {"ResizeImage": {"size": 16}}
TORCH = {"backend": "pil", "style": "torchvision"}
LISTS = {
    "PaddleClas": [DECODE, {"RandCropImage": {"size": 16}}, {"RandFlipImage": {}}, NORMALIZE],
    "torchvision": [
        {"DecodeImage": {"backend": "pil"}},
        {"RandCropImage": {"size": [24, 16], **TORCH}},
        {"RandFlipImage": {"flip_code": -1}},
        NORMALIZE,
        {"ToCHWImage": None},
    ],
    "evaluation": [
        {"DecodeImage": {"to_rgb": False}},
        {"ResizeImage": {"resize_short": 20}},
        {"CropImage": {"size": 16}},
        {"NormalizeImage": {"scale": 1.0, "mean": [9, 8, 7], "std": [3, 5, 7], "order": "hwc"}},
    ],
    "evaluation, torchvision": [
        {"DecodeImage": {"backend": "pil"}},
        {"ResizeImage": {"resize_short": 20, "return_numpy": False, **TORCH}},
        {"CropImage": {"size": 16, "style": "torchvision"}},
        NORMALIZE,
    ],
    "augmented": [
        DECODE,
        {"RandCropImage": {"size": 16, "interpolation": "random", "style": "torchvision"}},
        {"AutoAugment": {}},
        {"ColorJitter": {"brightness": 0.4}},
        NORMALIZE,
    ],
}


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    lines = []
    for i in range(COUNT):
        small = rng.integers(0, 256, (5 + i, 12 - i, 3), dtype=np.uint8)
        picture = Image.fromarray(small.repeat(5, axis=0).repeat(5, axis=1))
        name = f"{i}.png" if i == 4 else f"{i}.jpg"
        if i == 5:
            picture = picture.convert("L")
        picture.save(tmp_path / name, **({} if i == 4 else {"progressive": i == 6, "quality": 90}))
        lines.append(f"{name} {i % 3}\n")
    (tmp_path / "list.txt").write_text("".join(lines))
    return tmp_path


def section(root, ops, pipeline="auto", workers=0, shuffle=True, dataset=None, **loader):
    return {
        "dataset": {
            "name": "ImageNetDataset",
            "image_root": str(root),
            "cls_label_path": str(root / "list.txt"),
            "transform_ops": ops,
            **(dataset or {}),
        },
        "sampler": {"batch_size": 4, "shuffle": shuffle},
        "loader": {"num_workers": workers, "pipeline": pipeline, **loader},
    }


def train(root, ops=LISTS["PaddleClas"], pipeline="auto", **options):
    return build_train_loader(section(root, ops, pipeline, **options), "D.Train", seed=3)


needs_simplejpeg = pytest.mark.skipif(jpeg.version() is None, reason="needs simplejpeg")


@needs_simplejpeg
@pytest.mark.parametrize(
    ("name", "workers"), [*((name, 0) for name in LISTS), ("PaddleClas", 2), ("torchvision", 1)]
)
def test_batches_are_those_of_the_plain_pipeline(root, name, workers):
    fast = train(root, LISTS[name], "fast", workers=workers)
    assert_same(read(fast), read(train(root, LISTS[name], "plain")))


@needs_simplejpeg
def test_evaluation_and_resuming_see_the_same(root):
    config = section(root, LISTS["evaluation"], shuffle=False)
    plain = section(root, LISTS["evaluation"], "plain", shuffle=False)
    loaders = [build_eval_loader(c, "D.Eval") for c in (config, plain)]
    found, expected = ([(b.images.numpy(), b.indices) for b in loader] for loader in loaders)
    assert_same(found, expected)
    loader = train(root)
    whole = read(loader, [2])
    loader.sampler.set_start(2)
    assert_same(read(loader, [2]), whole[2:])


@needs_simplejpeg
def test_batches_arrive_as_pixels(root):
    loader = train(root, workers=1)
    for batch, normalized in zip(loader.as_loaded(), read(loader, [0]), strict=True):
        assert batch.images.dtype == paddle.uint8 and batch.images.shape[1:] == [16, 16, 3]
        assert batch.images.shape[0] == len(batch.indices)
        assert normalized[0].dtype == np.float32 and normalized[0].shape[1:] == (3, 16, 16)


@needs_simplejpeg
@pytest.mark.parametrize("workers", [0, 1])
def test_broken_images_fare_as_in_the_plain_pipeline(root, workers):
    data = (root / "3.jpg").read_bytes()
    (root / "3.jpg").write_bytes(data[: len(data) // 2])
    (root / "7.jpg").write_bytes(b"")
    messages = []
    for pipeline in ("plain", "fast"):
        with pytest.raises(DataError) as caught:
            read(train(root, pipeline=pipeline, workers=workers))
        messages.append(str(caught.value))
    assert messages[0] == messages[1] and str(root) in messages[0]
    skip = {"dataset": {"on_error": "skip"}, "workers": workers}
    loaders = [train(root, pipeline=pipeline, **skip) for pipeline in ("fast", "plain")]
    assert_same(*(read(loader, [0]) for loader in loaders))
    assert [loader.skipped for loader in loaders] == [2, 2]


@needs_simplejpeg
def test_sizes_must_agree_as_in_the_plain_pipeline(root):
    messages = []
    for pipeline in ("plain", "fast"):
        with pytest.raises(DataError, match="an image of 3x") as caught:
            read(train(root, [DECODE, NORMALIZE], pipeline))
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


@needs_simplejpeg
def test_a_sample_that_stalls_ends_the_iteration(root, monkeypatch):
    loader = train(root, read_timeout=0.2)
    monkeypatch.setattr(jpeg, "is_well_known", lambda *_, **__: time.sleep(2))
    with pytest.raises(JobError, match="stalls"):
        read(loader)


def in_log(monkeypatch):
    records = []
    monkeypatch.setattr(logging.getLogger("ppcls"), "handle", records.append)
    return lambda: [record.getMessage() for record in records if "pipeline" in record.getMessage()]


@needs_simplejpeg
def test_the_log_says_which_and_why(root, monkeypatch):
    messages = in_log(monkeypatch)
    erasing = [DECODE, SQUARE, NORMALIZE, {"RandomErasing": {}}]
    mixed = {"dataset": {"batch_transform_ops": [{"MixupOperator": {"alpha": 0.2}}]}}
    for ops, options, expected in [
        (LISTS["PaddleClas"], {}, "D.Train: fast pipeline: JPEG by simplejpeg "),
        (LISTS["PaddleClas"], {"pipeline": "plain"}, "D.Train: plain pipeline, as loader.pipeline"),
        (erasing, {}, "D.Train: plain pipeline: expected NormalizeImage of an HWC image"),
        (LISTS["PaddleClas"], mixed, "D.Train: plain pipeline: expected no batch_transform_ops"),
        ([SQUARE, DECODE, NORMALIZE], {}, "D.Train: plain pipeline: DecodeImage at transform_ops"),
    ]:
        train(root, ops, **options)
        assert messages()[-1].startswith(expected)
    assert len(messages()) == 5


@needs_simplejpeg
@pytest.mark.parametrize("base", [DecodeImage, RandFlipImage, NormalizeImage, ToCHWImage])
def test_a_subclass_runs_as_it_is_written(root, base, monkeypatch):
    class Own(base):
        def __call__(self, image, rng):
            return super().__call__(image, rng)[::-1].copy()

    config = section(root, [*LISTS["PaddleClas"], {"ToCHWImage": None}])
    ops = config["dataset"]["transform_ops"]
    config["dataset"]["transform_ops"] = [
        {"Own": op[base.__name__]} if base.__name__ in op else op for op in ops
    ]
    monkeypatch.setitem(TRANSFORMS._entries, "Own", Own)
    messages = in_log(monkeypatch)
    found = read(build_train_loader(config, "D.Train", seed=3), [0])
    assert messages()[-1].startswith("D.Train: plain pipeline: ")
    config["loader"]["pipeline"] = "plain"
    assert_same(found, read(build_train_loader(config, "D.Train", seed=3), [0]))


@needs_simplejpeg
def test_fast_or_nothing(root):
    with pytest.raises(ConfigError, match=r"^D.Train.loader.pipeline: fast is not possible: exp"):
        train(root, [DECODE, SQUARE], "fast")
    with pytest.raises(ConfigError, match="D.Train.loader.pipeline: expected one of"):
        train(root, pipeline="quick")


def test_without_simplejpeg_or_with_another_decoder_it_is_plain(root, monkeypatch):
    expected = read(train(root, pipeline="plain"))
    messages = in_log(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(jpeg, "simplejpeg", None)
        assert_same(read(train(root)), expected)
    assert "found none; pip install simplejpeg" in messages()[-1]
    monkeypatch.setattr(jpeg, "version", lambda: "1")
    monkeypatch.setattr(jpeg, "agrees", lambda backend: False)
    assert_same(read(train(root)), expected)
    assert "the installed cv2 decodes JPEG unlike libjpeg-turbo" in messages()[-1]


def test_normalising_batches():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 7, 3), dtype=np.uint8)
    for options in ({}, {"scale": 0.5, "mean": [1, 2, 3], "std": [-3, 0.1, 7]}):
        transform = NormalizeImage(**options, order="")
        wanted = np.stack([transform(image, None).transpose(2, 0, 1) for image in pixels])
        layer = Normalization.of(transform)
        found = layer.normalize(paddle.to_tensor(pixels))
        assert found.dtype == paddle.float32 and found.stop_gradient
        assert np.array_equal(found.numpy(), wanted)
        as_layer = layer(paddle.to_tensor(pixels)).numpy()
        np.testing.assert_allclose(as_layer, wanted, rtol=1e-6, atol=1e-5)


def test_a_normalised_batch_outlives_its_loader(root):
    batches = list(train(root))
    kept = [batch.images.numpy().copy() for batch in batches]
    list(train(root, workers=1))
    assert all(np.array_equal(b.images.numpy(), k) for b, k in zip(batches, kept, strict=True))
