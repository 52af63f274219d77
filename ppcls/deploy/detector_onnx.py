"""Post-processing in ONNX's standard operators, added behind a network that is ONNX already.

It gives what `ppcls.arch.detection.postprocess.PostProcess` gives, for a batch of any size. ONNX
Runtime runs the result and OpenVINO converts it; paddle2onnx converts no post-processing of Paddle.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import paddle
from paddle.static import InputSpec

from ppcls.arch.detection.boxes import CENTRE_VARIANCE, SIZE_VARIANCE
from ppcls.arch.detection.postprocess import PostProcessConfig
from ppcls.deploy.detector import Detector
from ppcls.utils.errors import JobError

if TYPE_CHECKING:
    from onnx import ModelProto

PREFIX = "postprocess/"  # all names of what is added begin so


def write_onnx(
    detector: Detector, image: InputSpec, target: Path, convert: Callable[[Path, Path], None]
) -> None:
    """Write `detector` as ONNX to `target`.

    image: the network's input. convert: writes its second argument, an ONNX file, from the Paddle
    files PREFIX.json and PREFIX.pdiparams, the first being PREFIX.
    """
    import onnx

    detector.eval()
    with tempfile.TemporaryDirectory(prefix="detector-") as folder:
        prefix, network = Path(folder) / "network", Path(folder) / "network.onnx"
        paddle.jit.save(detector.network, str(prefix), input_spec=[image])
        convert(prefix, network)
        model = onnx.load(str(network))
    post = detector.post
    model = append_postprocess(model, detector.priors.numpy(), post.class_num, post.config)
    onnx.save(model, str(target))


def append_postprocess(
    model: ModelProto, priors: np.ndarray, class_num: int, config: PostProcessConfig
) -> ModelProto:
    """Return `model`, a network with the outputs loc and conf, with post-processing behind it.

    priors: [P, 4] float32 centres. The new model has one more input, image_sizes [N, 2] float32,
    and the outputs detections [K, 6] float32 and counts [N] int32, as `Detector.forward` says.
    Raises JobError when the outputs are not loc [N, P, 4] and conf [N, P, class_num].
    """
    import onnx
    from onnx import TensorProto, helper

    outputs = list(model.graph.output)
    found = [[d.dim_value for d in out.type.tensor_type.shape.dim][-1:] for out in outputs]
    if found != [[4], [class_num]]:
        raise JobError(
            f"post-processing: expected two outputs whose last sizes are 4 and {class_num}, "
            f"found {len(found)} with {found}"
        )
    model = onnx.ModelProto.FromString(model.SerializeToString())
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    images: Any = batch.dim_value or batch.dim_param or "N"
    graph = _Graph(model)
    loc, conf = (out.name for out in outputs)
    rows, counts = _detections(graph, loc, conf, graph.constant(priors), class_num, config)
    del model.graph.output[:]
    model.graph.input.append(
        helper.make_tensor_value_info("image_sizes", TensorProto.FLOAT, [images, 2])
    )
    graph.output(rows, "detections", TensorProto.FLOAT, ["K", 6])
    graph.output(counts, "counts", TensorProto.INT32, [images])
    onnx.checker.check_model(model)
    return model


class _Graph:
    """Adds nodes to a model. Names of values are strings, as in ONNX; numbers become constants."""

    def __init__(self, model: ModelProto) -> None:
        self._graph = model.graph
        self._opset = next(entry.version for entry in model.opset_import if not entry.domain)
        self._count = 0

    def _name(self, kind: str) -> str:
        self._count += 1
        return f"{PREFIX}{kind}_{self._count}"

    def constant(self, value: Any, dtype: Any = None) -> str:
        from onnx import numpy_helper

        name = self._name("constant")
        array = np.array(value, dtype)
        self._graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def all(self, kind: str, inputs: list, outputs: int, **attributes: Any) -> list[str]:
        """Add a node and return the names of its outputs."""
        from onnx import helper

        inputs = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        name = self._name(kind)
        names = [f"{name}.{i}" for i in range(outputs)]
        self._graph.node.append(helper.make_node(kind, inputs, names, name, **attributes))
        return names

    def add(self, kind: str, *inputs: Any, **attributes: Any) -> str:
        """Add a node and return the name of its only output."""
        return self.all(kind, list(inputs), 1, **attributes)[0]

    def max(self, value: str, axis: int) -> str:
        if self._opset < 18:
            return self.add("ReduceMax", value, axes=[axis], keepdims=0)
        return self.add("ReduceMax", value, _int64(axis), keepdims=0)

    def cut(self, value: str, start: int, end: int, axis: int) -> str:
        return self.add("Slice", value, _int64(start), _int64(end), _int64(axis))

    def split(self, value: str, axis: int, *sizes: int) -> list[str]:
        return self.all("Split", [value, _int64(*sizes)], len(sizes), axis=axis)

    def nonzero(self, value: str) -> str:
        """Return the numbers [K] of the true ones of `value` [P]."""
        return self.add("Reshape", self.add("NonZero", value), _int64(-1))

    def output(self, value: str, name: str, dtype: int, shape: list) -> None:
        from onnx import helper

        node = helper.make_node("Identity", [value], [name], f"{PREFIX}{name}")
        self._graph.node.append(node)
        self._graph.output.append(helper.make_tensor_value_info(name, dtype, shape))


def _int64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def _float(value: float) -> np.float32:
    return np.float32(value)


def _detections(
    graph: _Graph, loc: str, conf: str, priors: str, class_num: int, config: PostProcessConfig
) -> tuple[str, str]:
    index = _hopeful(graph, conf, class_num, config.score)
    loc = graph.add("Gather", loc, index, axis=1)
    conf = graph.add("Gather", conf, index, axis=1)
    boxes = _decode(graph, loc, graph.add("Gather", priors, index, axis=0))
    sizes = graph.add("Concat", "image_sizes", "image_sizes", axis=1)
    boxes = graph.add("Mul", boxes, graph.add("Unsqueeze", sizes, _int64(1)))
    scores = _scores(graph, conf, class_num, config)
    return _limit(graph, boxes, scores, _suppress(graph, boxes, scores, config), config)


def _hopeful(graph: _Graph, conf: str, class_num: int, score: float) -> str:
    """Return the priors [K] that may have a score above `score`, as `postprocess._hopeful`."""
    least = math.log(score) - 1e-3 if score > 0 else -math.inf
    background, others = graph.split(conf, 2, 1, class_num - 1)
    gap = graph.add("Sub", graph.max(others, 2), graph.add("Squeeze", background, _int64(2)))
    is_hopeful = graph.add("Greater", graph.max(gap, 0), _float(least))
    rest = graph.cut(is_hopeful, 1, 2**31 - 1, 0)
    return graph.nonzero(graph.add("Concat", np.array([True]), rest, axis=0))


def _decode(graph: _Graph, loc: str, priors: str) -> str:
    """Return corners [N, K, 4], relative, in the order of operations of `boxes.decode`."""
    (shift, stretch), (centre, side) = graph.split(loc, 2, 2, 2), graph.split(priors, 1, 2, 2)
    moved = graph.add("Mul", graph.add("Mul", shift, _float(CENTRE_VARIANCE)), side)
    centre = graph.add("Add", centre, moved)
    growth = graph.add("Exp", graph.add("Mul", stretch, _float(SIZE_VARIANCE)))
    size = graph.add("Mul", side, growth)
    first = graph.add("Sub", centre, graph.add("Div", size, _float(2)))
    return graph.add("Concat", first, graph.add("Add", first, size), axis=2)


def _scores(graph: _Graph, conf: str, class_num: int, config: PostProcessConfig) -> str:
    """Return scores [N, C - 1, K] without the background, -1 where they are not enough."""
    background, scores = graph.split(graph.add("Softmax", conf, axis=-1), 2, 1, class_num - 1)
    is_enough = graph.add(
        "And",
        graph.add("Less", background, _float(config.background)),
        graph.add("Greater", scores, _float(config.score)),
    )
    scores = graph.add("Where", is_enough, scores, _float(-1))
    return graph.add("Transpose", scores, perm=[0, 2, 1])


def _suppress(graph: _Graph, boxes: str, scores: str, config: PostProcessConfig) -> str:
    """Return what is kept, [M, 3] int64: image, class less 1, box."""
    if config.legacy_pixels:
        # (x2 - x1 + 1) is the width of a box whose last corner is one pixel further.
        boxes = graph.add("Add", boxes, np.array([0, 0, 1, 1], np.float32))
    # Scores were compared already: runtimes do not agree about those equal to the threshold.
    limit, nothing = _int64(config.per_class), np.array([0], np.float32)
    rule = np.array([config.iou], np.float32)
    return graph.add("NonMaxSuppression", boxes, scores, limit, rule, nothing)


def _limit(
    graph: _Graph, boxes: str, scores: str, kept: str, config: PostProcessConfig
) -> tuple[str, str]:
    """Return the rows within the limit per image, and how many each image has."""
    image, label, box = graph.split(kept, 1, 1, 1, 1)
    score = graph.add("GatherND", scores, kept)
    corners = graph.add("GatherND", boxes, graph.add("Concat", image, box, axis=1))
    label = graph.add("Add", graph.add("Cast", label, to=1), _float(1))
    parts = [label, graph.add("Unsqueeze", score, _int64(1)), corners]
    rows = graph.add("Concat", *parts, axis=1)
    image = graph.add("Reshape", image, _int64(-1))
    images = graph.cut(graph.add("Shape", "image_sizes"), 0, 1, 0)
    number = graph.add("Range", np.int64(0), graph.add("Squeeze", images), np.int64(1))
    is_owner = graph.add("Equal", graph.add("Unsqueeze", number, _int64(1)), image)  # [N, M]
    lowest = _lowest_score(graph, graph.add("Where", is_owner, score, _float(-1)), images, config)
    is_kept = graph.add("GreaterOrEqual", score, graph.add("Gather", lowest, image))
    counted = graph.add("Cast", graph.add("And", is_owner, is_kept), to=6)  # int32
    counts = graph.add("ReduceSum", counted, _int64(1), keepdims=0)
    return graph.add("Gather", rows, graph.nonzero(is_kept), axis=0), counts


def _lowest_score(graph: _Graph, table: str, images: str, config: PostProcessConfig) -> str:
    """Return the score [N] of the last row within the limit per image; -1 if all are.

    table: [N, M], the scores of each image's own rows, -1 elsewhere.
    """
    # So many more columns than rows: TopK must find as many as it is asked for.
    shape = graph.add("Concat", images, _int64(config.per_image), axis=0)
    table = graph.add("Concat", table, graph.add("Expand", _float(-1), shape), axis=1)
    best, _ = graph.all("TopK", [table, _int64(config.per_image)], 2, axis=1)
    last = graph.cut(best, config.per_image - 1, config.per_image, 1)
    return graph.add("Squeeze", last, _int64(1))
