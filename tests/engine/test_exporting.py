"""What an export is checked with, and sizes a network does not take."""

from __future__ import annotations

import logging
import sys

import cv2
import numpy as np
import paddle
import pytest
from paddle import nn

from ppcls.engine import exporting
from ppcls.engine.build import Session
from ppcls.engine.config import Recipe
from ppcls.utils.errors import ConfigError, JobError, UserError

OPS = [{"DecodeImage": {"backend": "pil"}}, {"ResizeImage": {"size": 16}}]
NORMALIZE = {"NormalizeImage": {"order": ""}}


def recipe(infer_imgs=None, transforms=None, **sections) -> Recipe:
    infer = {"infer_imgs": infer_imgs, "transforms": transforms or [*OPS, NORMALIZE]}
    mapping = {
        "Global": {"image_shape": [3, 16, 16]},
        "Arch": {"name": "HarDNet39_ds", "class_num": 4},
        "Infer": {key: value for key, value in infer.items() if value is not None},
    }
    return Recipe.parse(mapping | sections, "a.yaml")


@pytest.fixture
def folder(tmp_path):
    for number in range(7):
        image = np.full((20 + number, 30, 3), 30 * number, np.uint8)
        cv2.imwrite(str(tmp_path / f"{number}.png"), image)
    return tmp_path


def test_images_of_the_recipe_come_first(folder, monkeypatch, caplog):
    found = exporting.real_images(recipe(str(folder)), 3)
    assert [name.rpartition("/")[2] for name, _ in found] == ["0.png", "3.png", "6.png"]
    (folder / "list.txt").write_text("".join(f"{n}.png 0\n" for n in range(4)))
    section = {
        "dataset": {
            "name": "ImageNetDataset",
            "image_root": str(folder),
            "cls_label_path": str(folder / "list.txt"),
            "transform_ops": OPS,
        },
        "sampler": {"batch_size": 2},
    }
    found = exporting.real_images(recipe(str(folder), DataLoader={"Eval": section}), 2)
    assert [name.rpartition("/")[2] for name, _ in found] == ["0.png", "3.png"]
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with caplog.at_level(logging.INFO, "ppcls"):
        found = exporting.real_images(recipe("/nowhere/x.png"), 5)
    assert len(found) == 2 and found[0][1].shape[2] == 3
    assert "Infer.infer_imgs: /nowhere/x.png: no such image" in caplog.text


def inputs(settings, bake=False, **options):
    entries, where = exporting.inference_transforms(settings)
    entries = exporting.with_chw(entries, where)
    kept = exporting.split_normalization(entries, where)[0] if bake else entries
    chosen = exporting.GraphOptions(bake_normalization=bake, **options)
    pairs = exporting._inputs(settings, entries, kept, where, chosen)
    return [(array.shape, given.shape, str(given.dtype)) for array, given in pairs]


def test_batches(folder):
    settings = recipe(str(folder))
    one, four = (1, 3, 16, 16), (4, 3, 16, 16)
    assert inputs(settings) == [(one, one, "float32"), (four, four, "float32")]
    assert inputs(settings, batch=8) == [((8, 3, 16, 16), (8, 3, 16, 16), "float32")]
    assert inputs(settings, bake=True, batch=1) == [(one, (1, 16, 16, 3), "uint8")]
    wide = ((1, 3, 16, 32), (1, 16, 32, 3), "uint8")
    assert inputs(settings, bake=True, dynamic_size=True)[-1] == wide


def test_images_of_other_sizes(folder):
    own = recipe(str(folder), transforms=[OPS[0], NORMALIZE])
    with pytest.raises(UserError, match=r"Infer.transforms give, \[3, 20, 30\], got \[3, 16, 16\]"):
        inputs(own)
    found = inputs(own, dynamic_size=True)
    assert [entry[0][2] for entry in found] == [20, 21, 23, 24, 26, 20]
    with pytest.raises(ConfigError, match="expected NormalizeImage"):
        inputs(recipe(str(folder), transforms=OPS), bake=True)


class Network(nn.Layer):
    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x):
        if x.shape[2] < 16:
            raise ValueError("x: expected images of at least 16 pixels a side")
        return paddle.to_tensor(self.output, "float32").expand([x.shape[0], -1])


def check(output, size=16, softmax=False):
    array = np.zeros((2, 3, size, size), np.float32)
    return exporting._check(Network(output), array, array, recipe(), softmax)


def test_what_the_network_is_held_to():
    (expected,) = check([1.0, 0, 0, 2]).expected
    np.testing.assert_array_equal(expected, [[1, 0, 0, 2]] * 2)
    (expected,) = check([0.0] * 4, softmax=True).expected
    np.testing.assert_allclose(expected, 0.25)
    with pytest.raises(UserError, match="^Global.image_shape: expected a size.*at least 16"):
        check([1.0] * 4, size=8)
    with pytest.raises(UserError, match=r"expected logits of 4 classes .*got shape \[2, 3\]"):
        check([1.0] * 3)
    with pytest.raises(JobError, match="not finite"):
        check([float("nan")] * 4)


@pytest.mark.parametrize(
    "arch", [{"name": "HarDNet39_ds"}, {"name": "SSD_HarDNet68", "size": 300}], ids=["net", "ssd"]
)
def test_an_export_does_not_tell_how_the_network_was_trained(arch, monkeypatch):
    """A recipe that trains channels last with synchronised batch norm gives the same network."""
    monkeypatch.setattr(paddle.device, "get_device", lambda: "gpu:0")  # which converts batch norm
    networks = []
    for options in ({}, {"data_format": "NHWC", "use_sync_bn": True}):
        own = recipe(Arch={**arch, "class_num": 4, **options})
        networks.append(exporting.deployed_network(Session(own, "cpu")))
        assert own.Arch["name"] == arch["name"] and options.items() <= own.Arch.items()
    plain, other = networks
    assert str(plain) == str(other) and plain.data_format == other.data_format == "NCHW"
    for name, tensor in plain.state_dict().items():
        np.testing.assert_array_equal(other.state_dict()[name].numpy(), tensor.numpy(), name)


def test_a_path_with_special_characters():
    assert exporting.with_checkpoint(["a=1"], None) == ["a=1"]
    assert exporting.with_checkpoint([], "a: #b") == ['Global.pretrained_model="a: #b"']
