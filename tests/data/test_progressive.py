"""Progressive sizes: of which epoch, on both pipelines, resumed or not."""

import logging

import numpy as np
import pytest
from paddle import nn
from test_loader import assert_same, read, root  # noqa: F401  (root: a fixture)
from test_loader import section as loader_section

from ppcls.data import jpeg
from ppcls.data.loader import build_dataset, build_eval_loader, build_train_loader
from ppcls.data.progressive import ProgressiveConfig
from ppcls.engine.build import _rehearse
from ppcls.engine.config import Recipe
from ppcls.utils.errors import ConfigError
from ppcls.utils.schema import parse_dataclass

SIZES = {"start": 32, "end": 64, "begin_epoch": 1, "end_epoch": 3, "step": 16}
OPS = [{"DecodeImage": {}}, {"RandCropImage": {"size": 24}}, {"RandFlipImage": {}}]
NORMALIZE = {"NormalizeImage": {"order": ""}}


def sizes(epochs, **changes):
    config = ProgressiveConfig(**{**SIZES, **changes})
    return [config.size(epoch) for epoch in range(epochs)]


def section(root, pipeline="auto", ops=OPS, **options):  # noqa: F811
    loader = {"pipeline": pipeline}
    config = loader_section(root, ops=[*ops, NORMALIZE], loader=loader, **options)
    return {**config, "progressive": SIZES}


def test_sizes_follow_a_line_in_whole_steps():
    assert sizes(5) == [32, 32, 48, 64, 64]
    ramp = {"start": 160, "end": 224, "begin_epoch": 0, "end_epoch": 16, "step": 32}
    assert sizes(18, **ramp) == [160] * 4 + [192] * 8 + [224] * 6
    for epoch, size in enumerate(sizes(20, **ramp)):
        line = np.interp(epoch, [0, 16], [160, 224])
        assert abs(size - line) <= 16 and size % 32 == 0
    assert sizes(3, end=32) == [32] * 3


@pytest.mark.parametrize("pipeline", ["plain", "fast"])
def test_the_epoch_decides_the_size_and_nothing_else(root, pipeline, caplog):  # noqa: F811
    if pipeline == "fast" and jpeg.version() is None:
        pytest.skip("needs simplejpeg")
    loader = build_train_loader(section(root, pipeline), "D.Train", seed=3)
    with caplog.at_level(logging.INFO, "ppcls"):
        batches = read(loader, epochs=(0, 1, 2, 3))
    assert [b[0].shape[2:] for b in batches] == [(s, s) for s in (32, 32, 48, 64) for _ in range(3)]
    said = [line for line in caplog.messages if "images of" in line]
    assert said == [
        f"D.Train: epoch {epoch} has images of {size}x{size}"
        for epoch, size in ((1, 32), (3, 48), (4, 64))
    ]
    for size, epochs in ((32, (0, 1)), (48, (2,)), (64, (3,))):  # the usual draws, other sizes
        ops = [OPS[0], {"RandCropImage": {"size": size}}, *OPS[2:], NORMALIZE]
        plain = build_train_loader(loader_section(root, ops=ops), "D.Train", seed=3)
        assert_same([b for b in batches if b[0].shape[2] == size], read(plain, epochs))
    other = build_train_loader(section(root, pipeline, workers=2), "D.Train", seed=3)
    assert_same(read(other, epochs=(2,)), batches[6:9])


def test_other_uses_of_the_data_set_keep_its_own_size(root):  # noqa: F811
    assert build_dataset(section(root)["dataset"], "D")[0].image.shape == (3, 24, 24)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": 16}, "start: expected a number >= 32, got 16"),
        ({"end": 16}, r"end: expected a size >= 32 \(start\), got 16"),
        ({"step": 24}, r"step: expected a divisor of 32 \(end - start\), got 24"),
        ({"step": 0}, "step: expected a number >= 1, got 0"),
        ({"end_epoch": 1}, r"end_epoch: expected an epoch > 1 \(begin_epoch\), got 1"),
        ({"begin_epoch": -1}, "begin_epoch: expected a number >= 0, got -1"),
        ({"stop": 1}, r": unknown key 'stop'; did you mean 'step'\?"),
    ],
)
def test_mistakes_of_the_section(changes, message):
    with pytest.raises(ConfigError, match=rf"^P[.:]? ?{message.removeprefix(': ')}"):
        parse_dataclass(ProgressiveConfig, {**SIZES, **changes}, "P")


@pytest.mark.parametrize(
    "ops",
    [[OPS[0], {"ResizeImage": {"size": 40}}], [*OPS, {"CropImage": {"size": 24}}], OPS + OPS[1:2]],
)
def test_transforms_whose_size_is_not_one_crop_s(root, ops):  # noqa: F811
    with pytest.raises(ConfigError, match="D.Train.dataset.transform_ops: expected one RandCropI"):
        build_train_loader(section(root, ops=ops), "D.Train")


def test_evaluation_has_one_size(root):  # noqa: F811
    with pytest.raises(ConfigError, match="D.Eval.progressive: expected none in evaluation"):
        build_eval_loader(section(root, sampler={"shuffle": False}), "D.Eval")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 2}, r"\.end_epoch: expected at most 2 \(Global.epochs\), got 3"),
        ({"to_static": True}, ": expected none with Global.to_static, whose network takes one s"),
        ({"task": "detection"}, ": expected none with Global.task: detection"),
    ],
)
def test_recipes_that_have_no_such_sizes(settings, message):
    train = {"dataset": {}, "sampler": {"batch_size": 1}, "progressive": SIZES}
    mapping = {"Global": settings, "Arch": {"name": "x"}, "DataLoader": {"Train": train}}
    with pytest.raises(ConfigError, match=f"^DataLoader.Train.progressive{message}"):
        Recipe.parse(mapping, "a.yaml")


def test_the_largest_size_is_tried_before_a_run_begins(root):  # noqa: F811
    class Noting:
        shapes: list = []

        def rehearse(self, model, image, class_num):
            self.shapes.append(tuple(image.shape))

    mapping = {"Global": {"epochs": 4}, "Arch": {"name": "x", "class_num": 4}}
    loader = build_train_loader(section(root), "D.Train")
    _rehearse(nn.Linear(1, 1), loader, Recipe.parse(mapping, "a.yaml"), Noting())
    assert Noting.shapes == [(1, 3, 32, 32), (1, 3, 64, 64)]
