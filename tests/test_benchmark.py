"""The parts of `tools/benchmark.py` that do not take long."""

import benchmark
import numpy as np
import pytest
from _benchmark import data, measure, networks, postprocess
from _benchmark.data_references import REFERENCES
from _benchmark.infer import Case, Contestant, compare, markdown

from ppcls.utils.errors import JobError


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["postprocess", "--turns", "0"], "--turns: expected 1 or more, got 0"),
        (["data", "--batches", "0"], "--batches: expected 1 or more, got 0"),
        (["data", "--workers", "2", "-1"], "--workers: expected numbers from 0, got [2, -1]"),
        (["shards", "--batch", "0"], "--batch: expected 1 or more, got 0"),
        (["shards", "--folder", "none"], "--folder: expected a folder, got 'none'"),
        (["infer", "--runs", "0"], "--runs: expected 1 or more, got 0"),
        (["infer", "--arch", "HarDNet86"], "--arch: expected one of HarDNet39_ds, "),
        (["infer", "--size", "224", "0"], "--size: expected numbers from 1, got [224, 0]"),
    ],
)
def test_mistakes(arguments, line, capsys):
    assert benchmark.main(arguments) == 2
    assert line in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["save"], "the following arguments are required: -c/--config"),
        (["sav"], "argument case: invalid choice: 'sav'"),
        ([], "the following arguments are required: case"),
    ],
)
def test_what_the_command_line_lacks(arguments, line, capsys):
    with pytest.raises(SystemExit) as end:
        benchmark.main(arguments)
    assert end.value.code == 2
    assert line in capsys.readouterr().err


def contestant(name, is_ours, *medians, precision="float32"):
    turns = [[median] * 3 for median in medians]
    return Contestant(name, is_ours, precision, {}, file_bytes=2_000_000, turns=turns)


def test_ratios_are_those_of_turns_against_each_reference():
    case = Case("HarDNet68", 2, 224)
    sides = [
        contestant("dygraph", True, 50, 50, 50),
        contestant("openvino", True, 10, 20, 10),
        contestant("openvino-int8", True, 5, 5, 5, precision="int8"),
        contestant("wheel", False, 40, 40, 40),
        contestant("ONNX", False, 12, 12, 12),
    ]
    rows = list(compare(case, sides))
    assert [(r["ours"], r["reference"], round(r["ratio"], 6)) for r in rows] == [
        ("openvino", "wheel", 4.0),
        ("openvino", "ONNX", 1.2),
        ("openvino", "ONNX (the fastest reference)", 1.2),
        ("openvino-int8", "openvino (the fastest in float32)", 2.0),
    ]
    table = markdown([side.result(case) for side in sides]).splitlines()
    assert len(table) == 7 and "**openvino-int8**" in table[2] and " 400.0 " in table[2]


def test_a_detector_is_given_the_sizes_of_its_images_too():
    name = "SSD300_HarDNet68"
    assert networks.DETECTORS[name] == ("SSD_HarDNet68", 300)
    image, sizes = networks.inputs(name, 2, 300)
    assert image.shape == (2, 3, 300, 300) and image.dtype == np.float32
    assert sizes.tolist() == [[640, 427]] * 2 and sizes.dtype == np.float32
    np.testing.assert_array_equal(networks.inputs(name, 1, 300)[0], image[:1])
    assert len(networks.inputs("HarDNet68", 1, 32)) == 1


def test_a_ratio_above_1_is_ours(capsys):
    entry = measure.row("case", ("ours", "theirs"), "images/s", [(2.0, 1.0), (3.0, 1.0)])
    assert (entry["ours_value"], entry["reference_value"], entry["ratio"]) == (2.5, 1.0, 2.5)


def test_other_detections_are_no_result():
    rows = np.array([[1, 0.5, 0, 0, 9, 9]], "float32")
    postprocess._check_same("case", rows, rows + np.float32(1e-7))
    for other in (rows[:0], rows + np.float32(1e-2)):
        with pytest.raises(JobError, match="case: expected the loop's"):
            postprocess._check_same("case", rows, other)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    assert 40_000 < data.write_images(folder, 6) < 54_000
    return folder


@pytest.mark.parametrize("phase", ["train", "eval"])
@pytest.mark.parametrize("name", REFERENCES)
def test_both_sides_of_data_loading_see_the_same_pixels(photographs, name, phase, monkeypatch):
    pytest.importorskip("simplejpeg")
    reference = REFERENCES[name]
    pair = data.Pair(photographs, reference, phase, batch=2)
    pair.check_pixels(3)
    images, labels = next(iter(reference.loader(photographs, phase, 2, workers=0)))
    assert images.shape == [2, 3, 224, 224] and images.numpy().std() > 0.5 and len(labels) == 2
    wanted = reference.pixels
    monkeypatch.setattr(reference, "pixels", lambda *args: wanted(*args)[::-1])
    with pytest.raises(JobError, match="image 0: expected the same pixels, off by"):
        pair.check_pixels(3)
