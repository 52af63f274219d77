"""Which layers of a network int8 hurts most.

A layer here is a convolution or a matrix product with weights. Error is measured at the outputs of
the last layers, those that no other layer follows: a classifier's logits, the raw predictions of a
detector, before any post-processing.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ppcls.deploy.compiled import CompiledModel
from ppcls.deploy.openvino_packages import import_openvino

logger = logging.getLogger("ppcls")

_LAYERS = ("Convolution", "GroupConvolution", "MatMul")
_MOST_DB = 150.0  # no error at all, in float32
_LOG_SECONDS = 15.0


class Sensitivity(NamedTuple):
    """A layer's part in the error of int8.

    place: in the order of execution, from 1. shape: of the weights.
    sqnr_db: signal to noise of the network's outputs, in dB, when this layer alone is in int8.
    """

    layer: str
    kind: str  # as OpenVINO calls the operation
    place: int
    shape: list[int]
    sqnr_db: float


def weighted_layers(model: Any) -> list[Any]:
    """Return the layers of an `openvino.Model`, in the order of execution."""
    data = _data_nodes(model)
    return [op for op in model.get_ordered_ops() if _is_layer(op, data)]


def quantized_layers(model: Any) -> list[Any]:
    """Return the layers whose weights NNCF quantised, in the order of execution."""
    return [op for op in weighted_layers(model) if _is_quantized(op.input_value(1).get_node())]


def post_processing(model: Any) -> list[str]:
    """Return the names of all operations after the last layers, their biases aside."""
    data = _data_nodes(model)
    own = {op.get_friendly_name() for op in _network_outputs(model)}
    behind: set[str] = set()
    found = []
    for op in model.get_ordered_ops():
        name = op.get_friendly_name()
        if name in data and name not in own and _sources(op) & (own | behind):
            behind.add(name)
            if op.get_type_name() != "Result":
                found.append(name)
    return found


def normalizations(model: Any) -> list[str]:
    """Return the names of all operations that divide a value by what is computed from it.

    A vector by its length, say: the square root of a sum of squares, which spans far more than 256
    steps. Those between the value and the divisor are among them, and a multiplication behind the
    division by weights, whose product int8 would otherwise round twice.
    """
    data, ops = _data_nodes(model), model.get_ordered_ops()
    found: set[str] = set()
    for op in ops:
        if op.get_type_name() != "Divide":
            continue
        value, divisor = (op.input_value(i).get_node().get_friendly_name() for i in range(2))
        between = _between(ops, value, divisor) if value in data else set()
        if between:
            found |= {*between, op.get_friendly_name(), *_scales(op, data)}
    return [name for op in ops if (name := op.get_friendly_name()) in found]


def network_error(model: Any, quantized: Any, items: Sequence[Sequence[np.ndarray]]) -> float:
    """Return the signal to noise, in dB, of a quantised model's outputs over `items`."""
    return _sqnr_db(_outputs_of(probe(model), items), _outputs_of(probe(quantized), items))


def rank_layers(
    model: Any, quantized: Any, items: Sequence[Sequence[np.ndarray]]
) -> list[Sensitivity]:
    """Return all quantised layers, the one that costs most first.

    model: in float. quantized: what NNCF made of it, with its FakeQuantize operations on weights.
    items: inputs of the model, in order, each with the images it takes at once.
    """
    floats, probed = probe(model), probe(quantized)
    expected = _outputs_of(floats, items)
    places = {op.get_friendly_name(): i for i, op in enumerate(weighted_layers(floats), 1)}
    layers = quantized_layers(probed)
    start = last = time.perf_counter()
    found = []
    for number, layer in enumerate(layers, 1):
        name = layer.get_friendly_name()
        error = _sqnr_db(expected, _outputs_of(_only(probed, floats, name), items))
        shape = list(layer.input_value(1).get_shape())
        found.append(Sensitivity(name, layer.get_type_name(), places[name], shape, error))
        now = time.perf_counter()
        if now - last > _LOG_SECONDS:
            last, rate = now, number / (now - start)
            place = (number, len(layers), rate, (len(layers) - number) / rate)
            logger.info("int8: layer %d of %d measured, %.1f layers/s, eta: %ds", *place)
    return sorted(found, key=lambda entry: (entry.sqnr_db, entry.layer))


def probe(model: Any) -> Any:
    """Return a copy of `model` that gives the outputs of its last layers, sorted by name."""
    openvino = import_openvino("openvino")
    copy = model.clone()
    ports = [op.output(0) for op in _network_outputs(copy)]
    return openvino.Model(ports, copy.get_parameters(), "probe")


def _data_nodes(model: Any) -> set[str]:
    """Return the names of the operations that depend on an input of the model."""
    found: set[str] = set()
    for op in model.get_ordered_ops():
        if op.get_type_name() == "Parameter" or _sources(op) & found:
            found.add(op.get_friendly_name())
    return found


def _is_layer(op: Any, data: set[str]) -> bool:
    if op.get_type_name() not in _LAYERS:
        return False
    source, weight = (op.input_value(i).get_node().get_friendly_name() for i in range(2))
    return source in data and weight not in data


def _sources(op: Any) -> set[str]:
    """Return the names of the operations whose results an operation takes."""
    return {port.get_source_output().get_node().get_friendly_name() for port in op.inputs()}


def _between(ops: Sequence[Any], start: str, end: str) -> set[str]:
    """Return the names of all operations on ways from `start` to `end`, `end` among them.

    ops: in the order of execution. Ways through a layer do not count.
    """
    behind, before = {start}, {end}
    for op in ops:
        if op.get_type_name() not in _LAYERS and _sources(op) & behind:
            behind.add(op.get_friendly_name())
    for op in reversed(ops):
        if op.get_friendly_name() in before:
            before |= _sources(op)
    return behind & before - {start}


def _scales(op: Any, data: set[str]) -> Iterator[str]:
    """Yield the names of the multiplications of an operation's result by weights."""
    for port in op.output(0).get_target_inputs():
        node = port.get_node()
        if node.get_type_name() == "Multiply" and not _sources(node) <= data:
            yield node.get_friendly_name()


def _network_outputs(model: Any) -> list[Any]:
    """Return the last layers, or the addition of their bias, sorted by the layer's name."""
    data, leads = _data_nodes(model), set()
    last = []
    for op in reversed(model.get_ordered_ops()):
        name, is_layer = op.get_friendly_name(), _is_layer(op, data)
        if is_layer and name not in leads:
            last.append(op)
        if is_layer or name in leads:
            leads |= _sources(op)
    last.sort(key=lambda op: op.get_friendly_name())
    return [_with_bias(op, data) for op in last]


def _with_bias(layer: Any, data: set[str]) -> Any:
    """Return the addition of a layer's bias, or the layer when it has none."""
    targets = [port.get_node() for port in layer.output(0).get_target_inputs()]
    if len(targets) != 1 or targets[0].get_type_name() != "Add":
        return layer
    terms = [targets[0].input_value(i).get_node().get_friendly_name() for i in range(2)]
    return layer if all(term in data for term in terms) else targets[0]


def _biases(model: Any) -> dict[str, Any]:
    """Return the constant that holds a layer's bias, by the layer's name."""
    data, found = _data_nodes(model), {}
    for layer in weighted_layers(model):
        addition = _with_bias(layer, data)
        if addition is not layer:
            terms = [addition.input_value(i).get_node() for i in range(2)]
            node = next(term for term in terms if term.get_friendly_name() not in data)
            while node.get_type_name() != "Constant":  # a Reshape, say
                node = node.input_value(0).get_node()
            found[layer.get_friendly_name()] = node
    return found


def _is_quantized(weight: Any) -> bool:
    """Whether a weight passes a FakeQuantize, or is stored in 8 bits."""
    if weight.get_type_name() == "Constant":
        return weight.get_element_type().get_type_name() in ("i8", "u8")
    if weight.get_type_name() == "FakeQuantize":
        return True
    return _is_quantized(weight.input_value(0).get_node())


def _quantizers_above(node: Any) -> list[Any]:
    """Return the nearest FakeQuantize operations on each way up from `node` to another layer."""
    if node.get_type_name() == "FakeQuantize":
        return [node]
    if node.get_type_name() in _LAYERS:
        return []
    sources = [port.get_source_output().get_node() for port in node.inputs()]
    return [found for source in sources for found in _quantizers_above(source)]


def _only(quantized: Any, floats: Any, name: str) -> Any:
    """Return a copy of `quantized` in which all layers but one are as in `floats`.

    The layer's inputs are quantised where NNCF did it, before a concatenation, say.
    """
    copy = quantized.clone()
    layer = next(op for op in copy.get_ops() if op.get_friendly_name() == name)
    sources = [layer.input_value(i).get_node() for i in range(2)]
    keep = {found.get_friendly_name() for node in sources for found in _quantizers_above(node)}
    for op in copy.get_ops():
        if op.get_type_name() == "FakeQuantize" and op.get_friendly_name() not in keep:
            _replace(op, op.input_value(0))
    original = _biases(floats)
    for layer_name, bias in _biases(copy).items():  # NNCF corrects them for errors not made here
        if layer_name != name:
            constant = import_openvino("openvino").op.Constant(original[layer_name].get_data())
            _replace(bias, constant.output(0))
    return copy


def _replace(op: Any, output: Any) -> None:
    for target in op.output(0).get_target_inputs():
        target.replace_source_output(output)


def _outputs_of(model: Any, items: Sequence[Sequence[np.ndarray]]) -> list[list[np.ndarray]]:
    compiled = CompiledModel(model)
    return [compiled.infer(item) for item in items]


def _sqnr_db(expected: list[list[np.ndarray]], found: list[list[np.ndarray]]) -> float:
    """Return the signal to noise in dB: a mean over outputs of their noise to signal, inverted."""
    ratios = []
    for wanted, got in zip(zip(*expected, strict=True), zip(*found, strict=True), strict=True):
        pairs = list(zip(wanted, got, strict=True))
        noise = sum(float(np.square(a.astype(np.float64) - b).sum()) for a, b in pairs)
        signal = sum(float(np.square(a.astype(np.float64)).sum()) for a, _ in pairs)
        ratios.append(noise / signal if signal else float(noise > 0))
    mean = sum(ratios) / len(ratios)
    return round(min(_MOST_DB, -10 * math.log10(mean)), 2) if mean > 0 else _MOST_DB
