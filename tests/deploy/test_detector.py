"""A small detector in every float32 form, against the same detector in dygraph."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import paddle
import pytest
from paddle import nn

from ppcls.arch.detection.postprocess import COCO
from ppcls.arch.detection.ssd import SSD
from ppcls.arch.detection.ssd_plan import SSD_VARIANTS
from ppcls.deploy import programs
from ppcls.deploy.detector import Detector, input_specs, worst_difference
from ppcls.deploy.old_ir import traceable

CLASSES = 5
SIZES = np.array([[640, 427], [64, 96]], "float32")


@pytest.fixture(scope="module")
def detector():
    """A detector of few channels, whose heads are scaled so that it finds much."""
    paddle.seed(0)
    spec = SSD_VARIANTS["SSD_HarDNet68"]
    stages = [replace(s, growth=2, layers=2, out_channels=8) for s in spec.trunk.stages]
    trunk = replace(spec.trunk, stem=(4, 8), stages=tuple(stages))
    model = SSD(replace(spec, trunk=trunk, bridge=(8, 8)), 300, CLASSES)
    detector = Detector.from_ssd(model, replace(COCO, per_image=100))
    detector.eval()
    background = np.eye(1, CLASSES, dtype="float32")[0] * 4
    with paddle.no_grad():
        loc, conf = model(paddle.to_tensor(images()))
        for head, other in zip(model.conf, model.loc, strict=True):
            head.weight.set_value(head.weight * (2 / conf.std()))
            head.bias.set_value(paddle.to_tensor(np.tile(background, len(head.bias) // CLASSES)))
            other.weight.set_value(other.weight * (0.5 / loc.std()))
    return detector


def images():
    rng = np.random.default_rng(0)
    return (60 * rng.standard_normal((2, 3, 300, 300))).astype("float32")


@pytest.fixture(scope="module")
def wanted(detector):
    with paddle.no_grad():
        rows, counts = detector(paddle.to_tensor(images()), paddle.to_tensor(SIZES))
    assert counts.tolist() == [100, 100]
    return rows.numpy(), counts.numpy()


def check(run, wanted):
    """Both images at once, and the first one alone."""
    rows, counts = wanted
    assert worst_difference(wanted, run([images(), SIZES])) < 1e-3
    first = rows[: counts[0]], counts[:1]
    assert worst_difference(first, run([images()[:1], SIZES[:1]])) < 1e-3


def load_paddle(prefix, suffix):
    from paddle import inference

    config = inference.Config(f"{prefix}{suffix}", f"{prefix}.pdiparams")
    config.disable_glog_info()
    predictor = inference.create_predictor(config)

    def run(inputs):
        for name, array in zip(predictor.get_input_names(), inputs, strict=True):
            predictor.get_input_handle(name).copy_from_cpu(array)
        predictor.run()
        handles = map(predictor.get_output_handle, predictor.get_output_names())
        return [handle.copy_to_cpu() for handle in handles]

    return run


@pytest.fixture(scope="module")
def saved(detector, tmp_path_factory):
    """The files' names, but for their endings, in the format of this Paddle."""
    prefix = tmp_path_factory.mktemp("saved") / "detector"
    paddle.jit.save(detector, str(prefix), input_spec=input_specs(300))
    return prefix


def test_paddle_inference(saved, wanted):
    suffix = ".json" if saved.with_suffix(".json").exists() else ".pdmodel"
    check(load_paddle(saved, suffix), wanted)


@pytest.mark.skipif(paddle.__version__.startswith("2"), reason="Paddle 2 has the one format")
def test_paddle_2_format(detector, saved, wanted, tmp_path):
    prefix = tmp_path / "detector"
    with traceable(), paddle.pir_utils.DygraphOldIrGuard():
        paddle.jit.save(detector, str(prefix), input_spec=input_specs(300))
    check(load_paddle(prefix, ".pdmodel"), wanted)
    weights = [path.with_suffix(".pdiparams").read_bytes() for path in (prefix, saved)]
    assert weights[0] == weights[1]


class Echo(nn.Layer):
    """A network that gives its image [N, 3, 2, 2] as offsets and scores of three priors."""

    def forward(self, image):
        values = image.reshape([-1, 3, 4])
        return 0 * values, values


def test_a_picture_without_objects(tmp_path):
    priors = np.array([[0.2, 0.2, 0.1, 0.1], [0.5, 0.5, 0.1, 0.1], [0.8, 0.8, 0.1, 0.1]], "float32")
    detector = Detector(Echo(), priors, 4, COCO)
    programs.save(detector, input_specs(2), tmp_path, "detector")
    background = np.tile(np.array([9, 0, 0, 0], "float32"), (2, 3)).reshape(2, 3, 2, 2)
    half = background.copy()
    half[1, 2, 0, 1] = 9
    for suffix in (".json", ".pdmodel") if programs.has_pir() else (".pdmodel",):
        run = load_paddle(tmp_path / "detector", suffix)
        for images, wanted in ((background, [0, 0]), (half, [0, 1]), (background[:1], [0])):
            rows, counts = run([images, SIZES[: len(images)]])
            assert counts.tolist() == wanted and len(rows) == sum(wanted)


def test_onnx_and_openvino(detector, wanted, tmp_path):
    paddle2onnx = pytest.importorskip("paddle2onnx")
    pytest.importorskip("onnx")
    from test_detector_onnx import run_onnx, run_openvino

    from ppcls.deploy.detector_onnx import write_onnx

    def convert(prefix, target):
        files = f"{prefix}.json", f"{prefix}.pdiparams"
        text = paddle2onnx.export(*files, save_file=None, opset_version=17, optimize_tool="none")
        target.write_bytes(text)

    path = tmp_path / "detector.onnx"
    write_onnx(detector, input_specs(300)[0], path, convert)
    check(lambda inputs: run_onnx(path, inputs), wanted)
    check(lambda inputs: run_openvino(path, inputs), wanted)


# How results are compared


def test_differences():
    rows = np.array([[1, 0.5, 0, 0, 9, 9], [1, 0.5, 2, 2, 8, 8], [2, 0.3, 0, 0, 1, 1]], "float32")
    counts = np.array([2, 1], "int32")
    assert worst_difference((rows, counts), (rows[[1, 0, 2]], counts)) == 0
    other = rows.copy()
    other[2] += np.array([0, 0.001, 0.02, 0, 0, 0])
    assert worst_difference((rows, counts), (other, counts)) == pytest.approx(0.1, rel=1e-3)
    other[2, 4] += 0.5
    assert worst_difference((rows, counts), (other, counts)) == pytest.approx(0.5, rel=1e-3)
    other[2, 0] = 1
    for found in ((other, counts), (rows[:2], np.array([2, 0])), (rows, np.array([1, 2]))):
        assert worst_difference((rows, counts), found) == float("inf")
    other[:] = np.nan
    assert worst_difference((rows, counts), (other, counts)) == float("inf")
