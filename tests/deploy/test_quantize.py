"""int8: what it keeps, what it reports, what is refused."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from ppcls.deploy import openvino_packages, quantize, sensitivity
from ppcls.deploy.compiled import Compiled, CompiledModel
from ppcls.deploy.package import InputSpec, Manifest
from ppcls.deploy.quantize import QuantizeConfig
from ppcls.utils.errors import DataError, JobError, UserError

if not all(map(importlib.util.find_spec, ("openvino", "nncf"))):
    pytest.skip("openvino or nncf is not installed", allow_module_level=True)

import int8_nets  # noqa: E402

ROOT = Path(__file__).parents[2]
CALIBRATION = int8_nets.images(48)
HELD_OUT = np.concatenate(int8_nets.images(64, seed=9))
FAST = QuantizeConfig(ranking_images=2, ranges=("minmax",))


def reference(model):
    return quantize.CompiledModel(model)(HELD_OUT)[0]


def closeness(expected):
    """Score a network by its worst difference from `expected`: 0 at best."""

    def evaluate(infer):
        return -float(np.abs(infer(HELD_OUT)[0] - expected).max())

    return evaluate


def run(model, *, max_drop=10.0, config=FAST, calibration=CALIBRATION):
    evaluate = closeness(reference(model))
    return quantize.quantize(model, calibration, evaluate, max_drop=max_drop, config=config)


@pytest.fixture(scope="module")
def result():
    return run(int8_nets.classifier())


def test_int8_computes_nearly_what_float_does(result):
    expected = reference(int8_nets.classifier())
    assert result.float_score == 0
    assert -result.int8_score < 0.06 * np.abs(expected).max()
    assert result.sqnr_db > 30
    assert result.reverted_layers == []
    assert result.layers == 6  # four convolutions, one depthwise, one linear


def test_every_layer_computes_in_int8_and_nothing_returns_to_float_in_between(result):
    runtime = Compiled(result.model, {}).for_batch(1).get_runtime_model()
    wide = {"Convolution", "Concatenation", "Pooling"}
    found = [op.get_rt_info() for op in runtime.get_ordered_ops()]
    body = [info for info in found if info["layerType"].astype(str) in wide]
    assert len(body) >= 6
    assert {info["outputPrecisions"].astype(str) for info in body} <= {"u8", "i8"}


def test_an_image_alone_gives_what_it_gives_among_others():
    compiled = CompiledModel(run(int8_nets.narrow(), max_drop=1e3).model)
    batch = np.concatenate(int8_nets.images(4, seed=5))
    together = compiled(batch)[0]
    alone = np.concatenate([compiled(batch[i : i + 1])[0] for i in range(4)])
    np.testing.assert_allclose(alone, together, atol=1e-5)


def test_branches_of_a_concatenation_share_a_scale(result):
    join = next(op for op in result.model.get_ops() if op.get_type_name() == "Concat")
    scales = []
    for port in join.inputs():
        quantizer = port.get_source_output().get_node()
        assert quantizer.get_type_name() == "FakeQuantize"
        scales.append([float(quantizer.input_value(i).get_node().get_data()) for i in (1, 2)])
    assert scales[0] == scales[1]


def test_the_layer_that_costs_most_is_found_and_is_all_that_goes_back_to_float():
    model = int8_nets.classifier(outlier=50.0)
    free = run(model, max_drop=1e3)
    errors = [entry.sqnr_db for entry in free.sensitive_layers]
    assert errors == sorted(errors) and len(errors) == 6
    assert free.sensitive_layers[0][:4] == ("conv2", "Convolution", 2, [8, 8, 3, 3])
    assert errors[0] < errors[1] - 6

    held = run(model, max_drop=-free.int8_score / 2)
    assert held.int8_score >= free.int8_score / 2
    assert held.reverted_layers == ["conv2"]
    names = {op.get_friendly_name() for op in sensitivity.quantized_layers(free.model)}
    left = {op.get_friendly_name() for op in sensitivity.quantized_layers(held.model)}
    assert names - left == {"conv2"}
    assert [attempt.reverted for attempt in held.attempts] == [0, 1]


def test_a_drop_that_cannot_be_held_is_an_error():
    few = QuantizeConfig(ranking_images=1, ranges=("minmax",), max_reverted=0.2)
    with pytest.raises(JobError, match=r"expected a score of -0\.00000 or more, found -"):
        run(int8_nets.classifier(), max_drop=0.0, config=few)


def test_the_other_ranges_are_tried_before_a_layer_is_given_up():
    config = QuantizeConfig(ranking_images=1, max_reverted=0.0)
    model = int8_nets.classifier()
    scores = []

    def evaluate(infer):
        scores.append([1.0, 0.5, 0.9][len(scores)])
        return scores[-1]

    result = quantize.quantize(model, CALIBRATION, evaluate, max_drop=0.2, config=config)
    assert [(a.ranges, a.reverted) for a in result.attempts] == [("minmax", 0), ("nncf", 0)]
    assert result.int8_score == 0.9


def test_a_fixed_batch_is_filled_up_and_cut():
    model, free = int8_nets.classifier(batch=5), int8_nets.classifier()
    found = quantize.CompiledModel(model)(HELD_OUT)[0]
    assert found.shape == (64, int8_nets.CLASSES)
    np.testing.assert_allclose(found, reference(free), atol=1e-5)
    result = run(model)
    assert result.sqnr_db > 30


def test_a_detectors_post_processing_stays_in_float():
    model = int8_nets.detector()
    sizes = np.full((1, 2), 100.0, np.float32)
    calibration = [(image, sizes) for image in CALIBRATION]
    names = sensitivity.post_processing(model)
    inputs = HELD_OUT, np.repeat(sizes, len(HELD_OUT), axis=0)

    def evaluate(infer):
        rows, counts = infer(*inputs)
        assert counts.sum() == len(rows) and len(counts) == len(HELD_OUT)
        return float(rows[:, 1].mean())

    result = quantize.quantize(model, calibration, evaluate, max_drop=0.05, config=FAST)
    assert {op.get_friendly_name() for op in sensitivity.quantized_layers(result.model)} == {
        "conv1",
        "conv2",
        "loc",
        "conf",
    }
    assert result.sqnr_db > 20
    behind = [op for op in result.model.get_ops() if op.get_friendly_name() in names]
    sources = [port.get_source_output().get_node() for op in behind for port in op.inputs()]
    assert not any(node.get_type_name() == "FakeQuantize" for node in sources)


def test_the_length_of_a_vector_stays_in_float(monkeypatch):
    model = int8_nets.normalized()
    names = ["square", "sum", "root", "length", "unit", "scaled"]
    assert sensitivity.normalizations(model) == names
    assert sensitivity.normalizations(int8_nets.classifier()) == []
    levels = np.geomspace(0.02, 1, len(CALIBRATION), dtype=np.float32)
    calibration = [level * image for level, image in zip(levels, CALIBRATION, strict=True)]

    result = run(model, max_drop=1e3, calibration=calibration)
    assert {op.get_friendly_name() for op in sensitivity.quantized_layers(result.model)} == {
        "conv",
        "head",
    }
    inside = [op for op in result.model.get_ops() if op.get_friendly_name() in names]
    sources = [port.get_source_output().get_node() for op in inside for port in op.inputs()]
    assert len(inside) == len(names)
    assert not any(node.get_type_name() == "FakeQuantize" for node in sources)

    monkeypatch.setattr(sensitivity, "normalizations", lambda model: [])
    assert result.sqnr_db > run(model, max_drop=1e3, calibration=calibration).sqnr_db + 10


def test_the_form_is_a_small_plain_ir_the_same_every_time(tmp_path):
    openvino = openvino_packages.import_openvino("a test")
    model = int8_nets.classifier(width=48)
    manifest = Manifest(
        task="classification",
        arch="tiny",
        class_num=int8_nets.CLASSES,
        input=InputSpec(shape=[None, 3, 16, 16]),
        output="logits",
        transform_ops=[],
    )
    config = QuantizeConfig(ranking_images=0, subset_size=4)
    written = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        openvino.save_model(model, folder / "inference.xml", compress_to_fp16=False)
        evaluate = closeness(reference(model))
        report = quantize.quantize_form(
            folder, manifest, CALIBRATION, evaluate, max_drop=9, config=config
        )
        assert json.loads(json.dumps(report))["calibration_images"] == 4
        assert {p.name for p in folder.iterdir()} == {
            "inference.xml",
            "inference.bin",
            "inference_int8.xml",
            "inference_int8.bin",
        }
        binary = folder / "inference_int8.bin"
        assert binary.stat().st_size < 0.3 * (folder / "inference.bin").stat().st_size
        written.append(binary.read_bytes())
    assert written[0] == written[1]
    code = """
        import sys
        sys.modules["openvino_telemetry"] = None
        import numpy, openvino
        found = openvino.Core().compile_model(sys.argv[1], "CPU")(numpy.ones((1, 3, 16, 16), "f4"))
        assert "nncf" not in sys.modules and numpy.isfinite(found[0]).all()
    """
    command = [sys.executable, "-c", textwrap.dedent(code), tmp_path / "a" / "inference_int8.xml"]
    subprocess.run(command, check=True, timeout=120)


def test_no_images_no_form_no_number(tmp_path):
    model = int8_nets.classifier()
    with pytest.raises(DataError, match="expected at least one image to calibrate with, found no"):
        run(model, calibration=[])
    with pytest.raises(UserError, match="max_drop: expected a number from 0, got -1"):
        run(model, max_drop=-1)
    with pytest.raises(JobError, match="the evaluation in float to give a number, got nan"):
        quantize.quantize(model, CALIBRATION, lambda infer: float("nan"), max_drop=1.0)
    with pytest.raises(UserError, match="expected the form 'openvino' to quantise, found no such"):
        quantize.quantize_form(tmp_path, None, CALIBRATION, lambda infer: 1.0, max_drop=1.0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("axis", [2, 3])
def test_a_model_of_open_height_or_width_is_refused(axis):
    model = int8_nets.narrow()
    shape = [-1, 3, 16, 16]
    shape[axis] = -1
    model.reshape(shape)
    with pytest.raises(UserError, match="^int8: expected a model of fixed height and width, got"):
        quantize.quantize(model, CALIBRATION, lambda infer: 1.0, max_drop=1.0)


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.delitem(sys.modules, "nncf", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'hardnet-paddle\[deploy\]'"):
        openvino_packages.import_nncf("--format openvino-int8")


def test_nothing_is_reported_to_anyone(tmp_path):
    """Neither a connection nor an identifier in the home folder, which both packages make."""
    code = """
        import socket, sys
        def refuse(*args, **options):
            print("CONNECTS")
            raise OSError
        socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
        import int8_nets
        from ppcls.deploy import quantize
        config = quantize.QuantizeConfig(ranking_images=0)
        quantize.quantize(int8_nets.classifier(), int8_nets.images(2), lambda infer: 1.0,
                          max_drop=0.0, config=config)
    """
    code = "from ppcls.deploy.telemetry import disable_telemetry as off\noff()\n" + (
        textwrap.dedent(code)
    )
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    keep = {key: value for key, value in os.environ.items() if key not in ("CI", "NNCF_CI")}
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=keep | {"PYTHONPATH": path, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == ""
    assert not (tmp_path / "intel").exists()
