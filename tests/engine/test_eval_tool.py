"""`tools/eval.py` with its options, in this process."""

import importlib
import json

import numpy as np
import paddle
import pytest
import yaml
from detection_folders import write_picture

from ppcls.arch import create_model
from ppcls.utils.pdparams import save_pdparams

COUNT, CLASSES = 6, 5
OPS = [
    {"DecodeImage": {"backend": "pil"}},
    {"ResizeImage": {"resize_short": 40, "backend": "pil"}},
    {"CropImage": {"size": 32}},
    {"NormalizeImage": {"order": ""}},
]
tool = importlib.import_module("eval")  # the word is taken


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with weights, six pictures and `recipe.yaml`."""
    root = tmp_path_factory.mktemp("eval")
    paddle.seed(0)
    network = create_model("HarDNet39_ds", class_num=CLASSES)
    save_pdparams(root / "w.pdparams", {k: v.numpy() for k, v in network.state_dict().items()})
    for number in range(COUNT):
        write_picture(root / f"{number}.png", 48, 40 + number, number)
    (root / "list.txt").write_text("".join(f"{n}.png {n % CLASSES}\n" for n in range(COUNT)))
    (root / "names.txt").write_text("".join(f"{n} name{n}\n" for n in range(CLASSES)))
    dataset = {
        "name": "ImageNetDataset",
        "image_root": str(root),
        "cls_label_path": str(root / "list.txt"),
        "transform_ops": OPS,
    }
    section = {"dataset": dataset, "sampler": {"batch_size": 4}, "loader": {"num_workers": 0}}
    recipe = {
        "Global": {"device": "cpu", "pretrained_model": str(root / "w.pdparams")},
        "Arch": {"name": "HarDNet39_ds", "class_num": CLASSES},
        "DataLoader": {"Eval": section},
        "Metric": {"Eval": [{"TopkAcc": {"topk": [1]}}]},
        "Infer": {"PostProcess": {"class_id_map_file": str(root / "names.txt")}},
    }
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return root


def run(folder, *argv):
    arguments = ("-c", folder / "recipe.yaml", "--json", folder / "eval.json", *argv)
    return tool.main([str(argument) for argument in arguments])


def test_everything_at_once(folder, capsys):
    picture = folder / "confusion.png"
    options = ("--test-size", 64, "--crop-ratio", 0.8, "--flip", "--per-class")
    assert run(folder, *options, "--confusion", picture) == 0
    result = json.loads((folder / "eval.json").read_text())
    rows = result["per_class"]
    assert [row["name"] for row in rows] == [f"name{n}" for n in range(CLASSES)]
    assert [row["samples"] for row in rows] == [2, 1, 1, 1, 1]
    assert sum(row["correct"] for row in rows) == result["correct"]["top1"]
    assert sum(count for *_, count in result["confusion"]) == result["samples"] == COUNT
    table = np.loadtxt(folder / "confusion.csv", delimiter=",", skiprows=1, dtype=int)
    assert np.trace(table[:, 1:]) == result["correct"]["top1"]
    assert picture.stat().st_size > 1000
    out = capsys.readouterr().out
    assert "images are resized to 80 and have 64x64" in out
    assert "class  name" in out and f"confusion matrix: {picture}" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--confusion", "x.jpg"), "--confusion x.jpg: expected a name that ends in .png"),
        (("--test-size", "16"), "Global.test_size: expected a number >= 32, got 16"),
        (("--test-size", "big"), "Global.test_size: expected an integer, got 'big'"),
        (("--crop-ratio", "0.9"), "Global.test_crop_ratio: expected test_size beside it"),
    ],
)
def test_a_mistake_is_one_line(folder, options, message, capsys):
    assert run(folder, *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
