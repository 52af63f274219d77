"""An export folder: its forms, what is refused, and that nothing is lost or left behind."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
from collections import namedtuple
from pathlib import Path

import numpy as np
import paddle
import pytest
from tiny_nets import CLASSES, images, tiny_hardnet, tiny_plan

from ppcls.deploy import conversion, programs
from ppcls.deploy.export import WRITERS, Writer, export, parse_formats
from ppcls.deploy.package import FORMS, check_files, read_manifest
from ppcls.deploy.verify import Difference, compare_outputs
from ppcls.deploy.verify import programs as load_programs
from ppcls.utils.errors import JobError, UserError

needs_paddle3 = pytest.mark.skipif(not programs.has_pir(), reason="paddle2onnx needs Paddle 3")


@pytest.fixture(scope="module")
def plan():
    return tiny_plan()


@pytest.fixture(scope="module")
def exported(plan, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "tiny"
    export(plan, folder)
    return folder


def test_the_folder(exported):
    manifest = read_manifest(exported)
    check_files(exported, manifest, "paddle")
    files = manifest.forms["paddle"]
    assert set(os.listdir(exported)) == {"inference.yml", "label_list.txt", *files}
    assert ("inference.json" in files) == programs.has_pir()
    assert os.listdir(exported.parent) == ["tiny"]
    assert manifest.arch == "tiny" and manifest.input.shape == [None, 3, 16, 16]
    assert 0 < manifest.differences["paddle"] < 1e-5
    assert manifest.versions["paddlepaddle"] == paddle.__version__
    assert (exported / "label_list.txt").read_text() == "0 a\n1 b\n2 c\n3 d\n"


def test_every_program_takes_any_batch(exported):
    network = tiny_hardnet()
    found = list(load_programs(exported, "paddle"))
    assert len(found) == 1 + programs.has_pir()
    for count in (1, 5):
        batch = images(count, seed=9)
        wanted = network(paddle.to_tensor(batch)).numpy()
        for run in found:
            (logits,) = run([batch])
            assert logits.shape == (count, CLASSES)
            np.testing.assert_allclose(logits, wanted, atol=1e-5)


def test_the_files_do_not_name_places_on_this_machine(exported):
    here = str(Path(__file__).parents[2]).encode()
    for path in exported.iterdir():
        assert here not in path.read_bytes() and b"site-packages" not in path.read_bytes(), path


def test_convolutions_have_the_bias_that_paddle_inference_fuses(exported):
    program = paddle.base.core.ProgramDesc((exported / "inference.pdmodel").read_bytes())
    block = program.block(0)
    ops = [block.op(index) for index in range(block.op_size())]
    written_by = {name: op.type() for op in ops for name in op.output_arg_names()}
    kinds = {"conv2d", "depthwise_conv2d"}
    biases = [
        op
        for op in ops
        if op.type() == "elementwise_add" and written_by.get(op.input("X")[0]) in kinds
    ]
    assert len(biases) == sum(op.type() in kinds for op in ops) > 0
    for op in biases:
        assert op.attr("axis") == 1 and op.input("Y")[0] not in written_by


def test_a_missing_file_and_an_altered_one(exported, tmp_path):
    folder = Path(shutil.copytree(exported, tmp_path / "copy"))
    manifest = read_manifest(folder)
    weights = folder / "inference.pdiparams"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="expected the exported file with SHA-256"):
        check_files(folder, manifest, "paddle")
    listed = {key: value for key, value in manifest.forms["paddle"].items() if "params" not in key}
    broken = dataclasses.replace(manifest, forms={"paddle": listed})
    with pytest.raises(UserError, match="expected a SHA-256 of 'inference.pdiparams'"):
        check_files(folder, broken, "paddle")


@needs_paddle3
def test_onnx_and_openvino(plan, tmp_path):
    for package in ("paddle2onnx", "onnxruntime", "openvino"):
        pytest.importorskip(package)
    folder = tmp_path / "forms"
    manifest = export(plan, folder, parse_formats("openvino,onnx"))
    names = {name for form in ("onnx", "openvino") for name in FORMS[form]}
    assert set(os.listdir(folder)) == {"inference.yml", "label_list.txt"} | names
    assert list(manifest.forms) == ["onnx", "openvino"]
    assert max(manifest.differences.values()) < 1e-5
    text = (folder / "inference.xml").read_text()
    assert 'precision="FP32"' in text and "FP16" not in text and "BatchNorm" not in text
    onnx = pytest.importorskip("onnx")
    assert onnx.load(folder / "inference.onnx").opset_import[0].version >= 13


@needs_paddle3
def test_paddle2onnx_runs_no_other_process(exported, tmp_path, monkeypatch):
    pytest.importorskip("paddle2onnx")

    def refuse(*args, **kwargs):
        raise AssertionError(f"started {args}")

    for name in ("run", "Popen", "call", "check_call", "check_output"):
        monkeypatch.setattr(subprocess, name, refuse)
    monkeypatch.setattr(os, "system", refuse)
    monkeypatch.setitem(__import__("sys").modules, "polygraphy", None)
    monkeypatch.delenv("POLYGRAPHY_AUTOINSTALL_DEPS", raising=False)
    conversion._write_onnx(exported / "inference", tmp_path / "a.onnx")
    assert (tmp_path / "a.onnx").stat().st_size > 1000
    assert "POLYGRAPHY_AUTOINSTALL_DEPS" not in os.environ


def test_a_network_that_differs_is_not_exported(plan, tmp_path):
    wrong = [check._replace(expected=[check.expected[0] + 1e-2]) for check in plan.checks]
    with pytest.raises(
        JobError, match=r"paddle: differs from the network by 0\.01.*at most 0\.0001"
    ):
        export(dataclasses.replace(plan, checks=wrong), tmp_path / "folder")
    assert os.listdir(tmp_path) == []
    manifest = export(dataclasses.replace(plan, checks=wrong), tmp_path / "folder", tolerance=0.1)
    assert manifest.differences["paddle"] == pytest.approx(1e-2, rel=1e-3)


def failing(folder, plan):
    (folder / "half").touch()
    raise JobError("no")


def test_an_earlier_export_is_replaced_when_asked_and_kept_on_failure(exported, plan, tmp_path):
    folder = Path(shutil.copytree(exported, tmp_path / "folder"))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match="type --overwrite"):
        export(plan, folder)
    with pytest.raises(JobError, match="^no$"):
        export(plan, folder, overwrite=True, writers={"paddle": Writer(write=failing)})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert os.listdir(tmp_path) == ["folder"]
    changed = dataclasses.replace(plan, manifest=dataclasses.replace(plan.manifest, arch="new"))
    export(changed, folder, overwrite=True)
    assert read_manifest(folder).arch == "new" and os.listdir(tmp_path) == ["folder"]


def test_a_folder_with_something_else_in_it_is_not_replaced(plan, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="found 'notes.txt' in it"):
        export(plan, tmp_path, overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(UserError, match="found a file"):
        export(plan, tmp_path / "notes.txt", overwrite=True)


def test_a_full_disk(plan, tmp_path, monkeypatch):
    Usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(100, 90, 10))
    with pytest.raises(UserError, match="MB of free disk for 1 forms, found 0 MB"):
        export(plan, tmp_path / "folder")
    frees = iter([1 << 30, 0])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(100, 90, next(frees)))
    with pytest.raises(UserError, match="the disk is full"):
        export(plan, tmp_path / "folder", writers={"paddle": Writer(write=failing)})
    assert os.listdir(tmp_path) == []


def test_formats(monkeypatch):
    assert parse_formats("paddle") == ["paddle"]
    with pytest.raises(UserError, match="unknown format 'padle'; did you mean 'paddle'"):
        parse_formats("padle")
    with pytest.raises(UserError, match="unknown format 'x'; known: paddle, onnx, openvino"):
        parse_formats("paddle,x")
    with pytest.raises(UserError, match="expected at least one"):
        parse_formats(",")
    monkeypatch.setattr(conversion, "check_packages", lambda names, what: None)
    monkeypatch.setattr(programs, "has_pir", lambda: True)
    assert parse_formats("openvino-bf16,onnx,openvino") == ["onnx", "openvino"]
    monkeypatch.undo()
    monkeypatch.setattr(programs, "has_pir", lambda: True)
    monkeypatch.setattr(conversion.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"'paddle2onnx', found none; .*hardnet-paddle\[deploy\]"):
        parse_formats("openvino")
    monkeypatch.setattr(programs, "has_pir", lambda: False)
    with pytest.raises(UserError, match="--format onnx: expected Paddle 3"):
        parse_formats("onnx,paddle")


def test_a_form_of_ones_own_is_reported_but_not_held_to_the_tolerance(plan, tmp_path):
    """How quantised forms are added: a writer that knows more than the plan."""
    written = []

    def write(folder, plan):
        written.append(sorted(path.name for path in folder.iterdir()))
        for name in FORMS["openvino-int8"]:
            (folder / name).write_bytes(b"int8")

    own = {**WRITERS, "openvino-int8": Writer(write=write, needs="paddle", is_exact=False)}
    assert parse_formats("openvino-int8", own) == ["openvino-int8"]
    poor = dataclasses.replace(plan, compare=lambda wanted, found: Difference(0.5, 1.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ppcls.deploy.verify._load_openvino", lambda path: lambda inputs: [])
        manifest = export(poor, tmp_path / "x", ["openvino-int8"], writers=own)
    assert manifest.differences == {"openvino-int8": 0.5}
    assert written and "inference.pdiparams" in written[0]
    assert set(manifest.forms["openvino-int8"]) < set(os.listdir(tmp_path / "x"))


def test_comparing():
    one, two = np.ones((1, 2), np.float32), np.full((1, 2), 10, np.float32)
    assert compare_outputs([one, two], [one, two + 1]) == Difference(1.0, 10.0)
    assert compare_outputs([one], [one + np.nan]).relative == np.inf
    assert compare_outputs([one], [np.ones((2, 2))]).relative == np.inf
    assert compare_outputs([np.zeros((0, 6))], [np.zeros((0, 6))]).relative == 0
