"""Post-processing in ONNX's operators against `PostProcess`, in both runtimes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import paddle
import pytest
from _benchmark import postprocess_loops as loops

from ppcls.arch.detection.postprocess import COCO, VOC, PostProcess
from ppcls.deploy.detector import worst_difference
from ppcls.deploy.detector_onnx import PREFIX, append_postprocess
from ppcls.deploy.openvino_packages import openvino_core
from ppcls.utils.errors import JobError

onnx = pytest.importorskip("onnx")

CLASSES, PRIORS = 5, 11620


def network(classes=CLASSES):
    """A network in ONNX that gives what it takes: loc and conf."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    sides = {"loc": ["N", PRIORS, 4], "conf": ["N", PRIORS, classes]}
    values = {name: helper.make_tensor_value_info(name, kind, sides[name]) for name in sides}
    outputs = [helper.make_tensor_value_info(f"{n}_out", kind, sides[n]) for n in sides]
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in sides]
    graph = helper.make_graph(nodes, "network", list(values.values()), outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run_onnx(path, inputs):
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    return session.run(None, dict(zip(names, inputs, strict=True)))


def run_openvino(path, inputs):
    pytest.importorskip("openvino")
    hints = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino_core().compile_model(str(path), "CPU", hints)
    return [np.array(value) for value in compiled(inputs).values()]


RUNTIMES = {"onnx": run_onnx, "openvino": run_openvino}


def batch(*kinds):
    """Raw predictions of one image of each kind, the priors, and sizes that differ."""
    made = [loops.predictions(kind, 300, CLASSES, seed) for seed, kind in enumerate(kinds)]
    loc, conf = (np.concatenate([part[i].numpy() for part in made]) for i in (0, 1))
    sizes = np.array([[640, 427], [100, 300], [64, 64]], "float32")[: len(kinds)]
    return loc, conf, made[0][2].numpy(), sizes


def both(tmp_path, runtime, given, config):
    """Return (rows, counts) as PostProcess and as the runtime give them."""
    loc, conf, priors, sizes = given
    path = tmp_path / "detector.onnx"
    onnx.save(append_postprocess(network(), priors, CLASSES, config), str(path))
    wanted = PostProcess(CLASSES, config)(*map(paddle.to_tensor, given))
    found = RUNTIMES[runtime](path, [loc, conf, sizes])
    assert found[0].dtype == np.float32 and found[1].dtype == np.int32
    return [part.numpy() for part in wanted], found


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    "config",
    [
        COCO,
        replace(VOC, per_class=3),
        replace(COCO, per_image=7),
        replace(COCO, legacy_pixels=True, background=1.1, score=0.3),
        replace(COCO, score=0, background=0.5),
    ],
)
def test_a_batch_of_images(tmp_path, runtime, config):
    wanted, found = both(tmp_path, runtime, batch("typical", "empty", "dense"), config)
    assert found[1].tolist() == wanted[1].tolist() and wanted[1][2] > 0
    assert worst_difference(wanted, found) < 1e-3
    np.testing.assert_array_equal(found[0][:, 0], wanted[0][:, 0])


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_nothing_found(tmp_path, runtime):
    wanted, found = both(tmp_path, runtime, batch("empty"), replace(COCO, score=0.9))
    assert found[0].shape == (0, 6) and found[1].tolist() == wanted[1].tolist() == [0]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_scores_equal_to_the_last_one_stay(tmp_path, runtime):
    loc, conf, priors, sizes = batch("empty")
    loc[:] = 0
    apart = np.arange(0, 8664, 6 * 120)  # priors of the first map that do not touch
    conf[0, apart] = 0
    conf[0, apart, 1 + np.arange(len(apart)) % 4] = 5
    conf[0, apart[:2], 1:3] += 1
    given = loc, conf, priors, sizes
    wanted, found = both(tmp_path, runtime, given, replace(COCO, per_image=4))
    assert wanted[1].tolist() == found[1].tolist() and len(wanted[0]) > 4
    assert worst_difference(wanted, found) < 1e-3


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_scores_equal_to_the_threshold_go(tmp_path, runtime):
    loc, conf, priors, sizes = batch("empty")
    conf[0, 0] = 0  # five equal shares
    share = float(np.float32(0.2))
    for score, count in ((share, 0), (0.19, 4)):
        given = loc, conf, priors, sizes
        wanted, found = both(tmp_path, runtime, given, replace(COCO, score=score))
        assert wanted[1].tolist() == found[1].tolist() == [count]


def test_names_tell_what_was_added():
    model = append_postprocess(network(), batch("empty")[2], CLASSES, COCO)
    added = [node for node in model.graph.node if node.name.startswith(PREFIX)]
    assert len(added) == len(model.graph.node) - 2
    outputs = [(out.name, out.type.tensor_type.elem_type) for out in model.graph.output]
    assert outputs == [("detections", 1), ("counts", 6)]


def test_another_network():
    with pytest.raises(JobError, match="two outputs whose last sizes are 4 and 6, found 2 with"):
        append_postprocess(network(), batch("empty")[2], 6, COCO)
