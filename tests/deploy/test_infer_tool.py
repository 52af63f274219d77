"""`tools/infer.py --model`: what it says and writes, beside what a recipe's network says."""

import json

import infer
import numpy as np
import pytest
import tiny_export
import yaml
from detection_folders import write_picture
from PIL import Image
from tiny_export import DETECTOR, NAMES, SIZE, write_export

from ppcls.arch import create_model
from ppcls.deploy.package import InputSpec, Manifest
from ppcls.utils.pdparams import save_pdparams

FORM = "onnx" if "onnx" in tiny_export.installed_forms() else "paddle"
OPS = tiny_export.CLASSIFIER.transform_ops


@pytest.fixture
def pictures(tmp_path):
    """A folder of three, two of the same name."""
    for number, name in enumerate(("a.png", "b/a.png", "b/c.jpg")):
        write_picture(tmp_path / "pictures" / name, 40 + 8 * number, 40, number)
    return tmp_path / "pictures"


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    halves = tiny_export.BrightHalves()
    return write_export(tmp_path_factory.mktemp("halves"), halves, DETECTOR, (FORM,))


def run(capsys, *argv):
    """The exit code, what was logged, without times, and what was said on the error stream."""
    code = infer.main([str(argument) for argument in argv])
    out, err = capsys.readouterr()
    return code, [line.partition("INFO: ")[2] for line in out.splitlines()], err


def test_the_results_and_lines_of_a_recipe(tmp_path, pictures, capsys):
    network = create_model("HarDNet39_ds", class_num=5)
    save_pdparams(tmp_path / "w.pdparams", {k: v.numpy() for k, v in network.state_dict().items()})
    (tmp_path / "names.txt").write_text("".join(f"{i} {n}\n" for i, n in enumerate(NAMES)))
    post = {"topk": 3, "class_id_map_file": str(tmp_path / "names.txt")}
    recipe = {
        "Global": {"device": "cpu", "pretrained_model": str(tmp_path / "w.pdparams")},
        "Arch": {"name": "HarDNet39_ds", "class_num": 5},
        "Infer": {"infer_imgs": str(pictures), "transforms": OPS, "PostProcess": post},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    manifest = Manifest(
        task="classification",
        arch="HarDNet39_ds",
        class_num=5,
        input=InputSpec(shape=[None, 3, SIZE, SIZE]),
        output="logits",
        transform_ops=OPS,
        class_names=NAMES,
        topk=3,
    )
    folder = write_export(tmp_path / "export", network, manifest, (FORM,))

    by_recipe, by_model = tmp_path / "recipe.json", tmp_path / "model.json"
    code, expected_lines, _ = run(capsys, "-c", tmp_path / "recipe.yaml", "--json", by_recipe)
    assert code == 0
    code, lines, _ = run(
        capsys, "--model", folder, pictures, "--threads", 1, "--batch-size", 2, "--json", by_model
    )
    assert code == 0
    assert lines[0].startswith(f"{folder}: HarDNet39_ds runs as {FORM} (")
    assert lines[1:] == expected_lines[-3:]
    expected = json.loads(by_recipe.read_text())["images"]
    found = json.loads(by_model.read_text())["images"]
    assert len(found) == len(expected) == 3
    for one, other in zip(found, expected, strict=True):
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-5)
        assert {**one, "scores": 0} == {**other, "scores": 0}


def test_a_detector_draws(detector, tmp_path, capsys):
    bright, dark = tmp_path / "bright.png", tmp_path / "dark.png"
    Image.fromarray(np.full((30, 60, 3), 250, np.uint8)).save(bright)
    Image.fromarray(np.zeros((30, 60, 3), np.uint8)).save(dark)
    target, result = tmp_path / "drawn", tmp_path / "r.json"
    argv = ("--model", detector, bright, dark, "--output-dir", target, "--json", result)
    code, lines, _ = run(capsys, *argv)
    assert code == 0
    assert lines[1:] == [
        f"{bright}: left 0.980 [0, 0, 30, 30]; right 0.980 [30, 0, 60, 30] -> {target}/bright.png",
        f"{dark}: nothing -> {target}/dark.png",
    ]
    shown = json.loads(result.read_text())["images"]
    assert [image["picture"] for image in shown] == [f"{target}/bright.png", f"{target}/dark.png"]
    assert shown[0]["label_names"] == ["left", "right"] and shown[1]["boxes"] == []
    with Image.open(target / "bright.png") as drawn:
        assert len(set(drawn.getdata())) > 1  # boxes, on what was of one colour
    with Image.open(target / "dark.png") as drawn:
        assert set(drawn.getdata()) == {(0, 0, 0)}


def test_pictures_of_one_name(detector, pictures, tmp_path, capsys):
    target = tmp_path / "drawn"
    code, _, _ = run(capsys, "--model", detector, pictures, "--output-dir", target)
    assert code == 0
    assert sorted(path.name for path in target.iterdir()) == ["a.png", "a_2.png", "c.jpg"]


@pytest.mark.parametrize(
    "argv, message",
    [
        ((), "expected either -c YAML or --model DIR"),
        (("-c", "x.yaml", "--model", "DIR"), "expected either -c YAML or --model DIR"),
        (("-c", "x.yaml", "cat.jpg"), "cat.jpg: expected the images as -o Infer.infer_imgs=PATH"),
        (("--model", "DIR"), "expected an image, a list or a folder after --model DIR"),
        (("--model", "DIR", "-o", "a=b"), "-o changes a recipe: expected none with --model"),
        (("--model", "DIR", "none.jpg"), "none.jpg: no such image"),
        (("--model", "no such folder", "a.png"), "expected an export folder, found no folder"),
        (("--model", "DIR", "a.png", "--runtime", "tvm"), "runtime: unknown form 'tvm'"),
        (("--model", "DIR", "a.png", "--threads", "0"), "threads: expected a whole number from 1"),
        (("--model", "DIR", "a.png", "--output-dir", "a.png"), "--output-dir: a.png cannot be"),
    ],
)
def test_mistakes_are_one_line(detector, tmp_path, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(tmp_path)
    write_picture(tmp_path / "a.png", 40, 40)
    code, _, error = run(capsys, *(detector if word == "DIR" else word for word in argv))
    assert code == 2
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
