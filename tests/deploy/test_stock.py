"""The command for PaddleClas's wheel."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from ppcls.deploy.package import InputSpec, Manifest
from ppcls.deploy.stock import stock_command

OPS = [
    {"DecodeImage": {"to_rgb": True, "backend": "pil"}},
    {"ResizeImage": {"resize_short": 36, "backend": "pil", "style": "torchvision"}},
    {"CropImage": {"size": 32, "style": "torchvision"}},
    {"NormalizeImage": {"scale": "1.0/255.0", "mean": [0.5] * 3, "std": [0.5] * 3, "order": ""}},
    {"ToCHWImage": None},
]


def command(form="paddle", ops=OPS, **changes):
    values = {
        "task": "classification",
        "arch": "HarDNet39_ds",
        "class_num": 10,
        "input": InputSpec(shape=[None, 3, 32, 32]),
        "output": "logits",
        "transform_ops": ops,
        "forms": {name: {} for name in form.split(",")},
    }
    return stock_command(Path("a folder"), Manifest(**(values | changes)))


def test_it_repeats_the_transforms():
    words = shlex.split(command(class_names=[str(i) for i in range(10)], topk=3))
    assert words[:3] == ["FLAGS_enable_pir_api=0", "paddleclas", "--inference_model_dir=a folder"]
    assert "--topk=3" in words and "--class_id_map_file=a folder/label_list.txt" in words
    key, _, value = words[-1].partition("=")
    assert words[-2] == "-o" and key == "PreProcess.transform_ops" and "=" not in value
    resize, crop, normalize, chw = json.loads(value)
    assert resize == {"ResizeImage": {"resize_short": 36, "backend": "pil"}}
    assert crop == {"CropImage": {"size": 32}} and chw == {"ToCHWImage": {}}
    assert normalize["NormalizeImage"]["scale"] == pytest.approx(1 / 255)


def test_with_onnx_it_runs_on_every_paddle():
    words = shlex.split(command("paddle,onnx"))
    assert words[0] == "paddleclas" and "Global.use_onnx=True" in words


def test_a_fixed_batch():
    found = command(input=InputSpec(shape=[4, 3, 32, 32]))
    assert "--batch_size=4" in found


def test_what_the_wheel_cannot_run():
    pixels = InputSpec(shape=[None, 32, 32, 3], layout="NHWC", dtype="uint8")
    assert command(input=pixels) is None
    assert command("onnx") is None
    assert command(ops=[{"DecodeImage": {"to_rgb": False}}, *OPS[1:]]) is None
    assert command(ops=[*OPS[:2], {"ColorJitter": {}}, *OPS[2:]]) is None
