"""tools/export_model.py: from trained weights to a folder that others run."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import running
import yaml

from ppcls.deploy import programs
from ppcls.deploy.package import FORMS, read_manifest


def export(folder, weights, *argv):
    return running.tool(
        folder, "export_model", "-c", running.DIGITS, "--checkpoint", weights, *argv
    )


def test_an_export(workspace, weights):
    run = export(
        workspace, weights, "-o", "Global.save_inference_dir=out/digits", "--json", "r.json"
    )
    running.succeeded(run)
    result = json.loads((workspace / "r.json").read_text())
    folder = workspace / "out" / "digits"
    manifest = read_manifest(folder)
    assert result["forms"] == manifest.forms and list(manifest.forms) == ["paddle"]
    assert result["differences"]["paddle"] < 1e-4 and result["folder"] == "out/digits"
    assert manifest.class_names[:2] == ["zero", "one"] and manifest.topk == 3
    assert "paddle: differs from the network by" in run.out + run.err
    assert result["paddleclas_command"] in run.out + run.err
    assert os.listdir(workspace / "out") == ["digits"]
    content = yaml.safe_load((folder / "inference.yml").read_text())
    assert content["PostProcess"]["Topk"]["label_list"][9] == "nine"
    again = export(workspace, weights, "-o", "Global.save_inference_dir=out/digits")
    assert again.code == 2 and "type --overwrite" in again.err


@pytest.mark.parametrize(
    "argv, text",
    [
        (["--format", "onxx"], "unknown format 'onxx'; did you mean 'onnx'"),
        (["--batch", "0"], "--batch: expected 1 or more"),
        (
            ["--format", "onnx, openvino-int8", "--dynamic-size"],
            "--dynamic-size: expected none with --format openvino-int8",
        ),
        (["--tolerance", "nan"], "--tolerance: expected a number above 0"),
        (["-o", "Arch.class_num=11", "Infer.PostProcess.class_id_map_file=null"], "11"),
        (["-o", "Global.image_shape=[3,64,64]"], "Global.image_shape: expected the shape"),
        (["-o", "Global.task=detection"], "transform_ops[1]: ResizeImage would move the image"),
        (["-o", "Global.save_inference_dir=dataset"], "type --overwrite"),
        (["--overwrite", "-o", "Global.save_inference_dir=dataset"], "nothing but an export"),
    ],
)
def test_mistakes(workspace, weights, argv, text, capsys, monkeypatch):
    monkeypatch.chdir(workspace)
    import export_model

    found = export_model.main(["-c", str(running.DIGITS), "--checkpoint", str(weights), *argv])
    error = capsys.readouterr().err
    assert found == 2 and error.count("\n") == 1 and text in error, error
    assert not (workspace / "inference").exists()


@pytest.mark.skipif(not importlib.util.find_spec("nncf"), reason="needs nncf")
def test_int8_without_images_writes_nothing(workspace, weights, capsys, monkeypatch):
    monkeypatch.chdir(workspace)
    import export_model

    monkeypatch.setattr("ppcls.deploy.export.export", lambda *args, **options: pytest.fail())
    argv = ["--format", "onnx,openvino-int8", "-o", "DataLoader.Train=null"]
    argv = ["-c", str(running.DIGITS), "--checkpoint", str(weights), *argv]
    assert export_model.main(argv) == 2
    assert "DataLoader.Train: expected a section whose images" in capsys.readouterr().err


def test_without_weights(workspace):
    run = running.tool(workspace, "export_model", "-c", running.DIGITS)
    assert run.code == 2 and "Global.pretrained_model: expected weights to use" in run.err


def freeze() -> str:
    return subprocess.run(
        [sys.executable, "-m", "pip", "freeze", "--all"], capture_output=True, check=True, text=True
    ).stdout


@pytest.fixture(scope="module")
def every_form(make_workspace, weights):
    """A workspace with the digits exported in every form to `out`, and what pip said around it."""
    for package in ("paddle2onnx", "onnxruntime", "openvino"):
        pytest.importorskip(package)
    if not programs.has_pir():
        pytest.skip("paddle2onnx needs Paddle 3")
    folder = make_workspace("every")
    before = freeze()
    argv = ("--format", "paddle,onnx,openvino", "-o", "Global.save_inference_dir=out")
    running.succeeded(export(folder, weights, *argv, "--json", "r.json"))
    assert freeze() == before
    return folder


@pytest.mark.slow
def test_every_form(every_form):
    manifest = read_manifest(every_form / "out")
    assert list(manifest.forms) == ["paddle", "onnx", "openvino"]
    assert max(manifest.differences.values()) < 1e-4
    names = {name for form in manifest.forms for name in FORMS[form]}
    assert set(os.listdir(every_form / "out")) == {"inference.yml", "label_list.txt", *names}


@pytest.mark.slow
@pytest.mark.parametrize(
    "argv, shape, dtype",
    [
        (["--bake-normalization", "--softmax", "--dynamic-size"], (2, 40, 48, 3), "uint8"),
        (["--batch", "2"], (2, 3, 32, 32), "float32"),
    ],
)
def test_other_inputs(workspace, weights, argv, shape, dtype):
    from ppcls.deploy.verify import programs as load_programs

    forms = "paddle,onnx,openvino" if programs.has_pir() else "paddle"
    running.succeeded(export(workspace, weights, "--format", forms, *argv))
    folder = workspace / "inference"
    batch = np.random.default_rng(0).integers(0, 256, shape).astype(dtype)
    outputs = [
        run([batch])[0]
        for form in read_manifest(folder).forms
        for run in load_programs(folder, form)
    ]
    assert len(outputs) == (4 if programs.has_pir() else 1)
    for output in outputs:
        assert output.shape == (2, 10)
        np.testing.assert_allclose(output, outputs[0], rtol=1e-4, atol=1e-5)
    if "--softmax" in argv:
        np.testing.assert_allclose(outputs[0].sum(axis=1), 1, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.zoo
@pytest.mark.parametrize("way", ["onnx", "paddle"])
def test_the_command_of_the_wheel_gives_the_same_classes(every_form, weights, way):
    pytest.importorskip("paddleclas")
    images = sorted((every_form / "dataset" / "digits" / "val").rglob("*.png"))[::30]
    (every_form / "some").mkdir(exist_ok=True)
    for number, path in enumerate(images):
        (every_form / "some" / f"{number}.png").write_bytes(path.read_bytes())
    ours = ["-o", f"Global.pretrained_model={weights}", "Infer.infer_imgs=some", "--json", "i.json"]
    running.succeeded(running.tool(every_form, "infer", "-c", running.DIGITS, *ours))
    wanted = json.loads((every_form / "i.json").read_text())["images"]
    command = json.loads((every_form / "r.json").read_text())["paddleclas_command"]
    words = shlex.split(command.replace("IMAGE", "some"))
    variables = {}
    if way == "paddle":
        words = [word for word in words if word != "Global.use_onnx=True"]
        del words[words.index("-o")]
        variables = {"FLAGS_enable_pir_api": "0"}
    words[0] = str(Path(sys.executable).parent / "paddleclas")
    run = running.succeeded(
        running.finish(running.start_shell(every_form, *words, variables=variables))
    )
    found = {}
    for line in (run.out + run.err).splitlines():
        _, is_there, rest = line.partition("class_ids: ")
        if is_there:
            found[line.rpartition("filename: ")[2].strip()] = json.loads(
                rest.partition("]")[0] + "]"
            )
    assert len(found) == len(images) == len(wanted)
    assert found == {row["file_name"]: row["class_ids"] for row in wanted}
