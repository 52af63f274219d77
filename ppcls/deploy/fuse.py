"""Batch norm folded into the convolution before it: fewer operations, the same function.

In evaluation batch norm is `y = (x - mean) * scale / sqrt(variance + epsilon) + bias`, an affine
function per channel, and so is what a convolution does after its sums.
"""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import paddle
from paddle import nn
from paddle.static import InputSpec

from ppcls.deploy.programs import Operation, trace

logger = logging.getLogger("ppcls")

_CONVOLUTIONS = ("conv2d", "depthwise_conv2d")
_NORMS = ("batch_norm", "batch_norm_")
_ADDITIONS = ("add", "elementwise_add")
_RESHAPES = ("reshape", "reshape2")
_DROPOUTS = (nn.Dropout, nn.Dropout2D, nn.Dropout3D, nn.AlphaDropout)


class Pair(NamedTuple):
    """A convolution whose result a batch norm reads, and nothing else does; parameters' names."""

    filter: str
    bias: str | None
    norm: list[str]


class _Owner(NamedTuple):
    parent: nn.Layer
    name: str
    layer: nn.Layer


def fuse(network: nn.Layer, inputs: Sequence[InputSpec]) -> nn.Layer:
    """Return a copy of `network` in evaluation, without the batch norms and dropouts it can do
    without. `network` itself does not change.

    A batch norm is folded where the traced graph proves that it alone reads the result of one
    `nn.Conv2D`; others stay. The new weights are computed in float64 and stored in their own type.
    """
    fused = copy.deepcopy(network)
    fused.eval()
    for owner in list(_owners(fused)):
        if isinstance(owner.layer, _DROPOUTS) and _is_identity(owner.layer):
            _replace(owner, nn.Identity())
    owners = list(_owners(fused))
    convolutions = {o.layer.weight.name: o for o in owners if _can_take(o.layer)}
    norms = {o.layer._mean.name: o for o in owners if _can_go(o.layer)}
    count = 0
    for pair in find_pairs(*trace(fused, inputs)):
        convolution = convolutions.get(pair.filter)
        norm = next((norms[name] for name in pair.norm if name in norms), None)
        if convolution and norm and _matches(convolution.layer, norm.layer, pair):
            _fold(convolution.layer, norm.layer)
            _replace(norm, nn.Identity())
            count += 1
    logger.info("folded %d of %d batch norms into convolutions", count, len(norms))
    return fused


def find_pairs(operations: Sequence[Operation], results: Sequence[str]) -> list[Pair]:
    """Find every batch norm that alone reads what a convolution, used once, gives."""
    makers = {name: op for op in operations for name in op.outputs}
    uses = Counter(name for op in operations for name in op.values)
    uses.update(results)
    reads = Counter(name for op in operations for name in op.parameters)
    pairs = []
    for op in operations:
        if op.kind in _NORMS and len(op.values) == 1:
            pair = _pair(op, makers, uses)
            names = [pair.filter, *pair.norm] if pair else []
            if pair and all(reads[name] == 1 for name in names):
                pairs.append(pair)
    return pairs


def _pair(norm: Operation, makers: dict[str, Operation], uses: Counter) -> Pair | None:
    (value,) = norm.values
    made = makers.get(value)
    if made is None or uses[value] != 1:
        return None
    bias = None
    if made.kind in _ADDITIONS and len(made.values) == 2:
        value, shaped = made.values
        reshape = makers.get(shaped)
        if reshape is None or reshape.kind not in _RESHAPES or len(reshape.parameters) != 1:
            return None
        (bias,) = reshape.parameters
        made = makers.get(value)
        if made is None or uses[value] != 1:
            return None
    if made.kind not in _CONVOLUTIONS or len(made.parameters) != 1:
        return None
    return Pair(made.parameters[0], bias, norm.parameters)


def _owners(network: nn.Layer) -> Iterator[_Owner]:
    for parent in network.sublayers(include_self=True):
        for name, layer in parent.named_children():
            yield _Owner(parent, name, layer)


def _is_identity(dropout: nn.Layer) -> bool:
    """Whether dropout does nothing in evaluation; an old kind of it multiplies there instead."""
    return getattr(dropout, "mode", "upscale_in_train") == "upscale_in_train"


def _can_take(layer: nn.Layer) -> bool:
    """Whether a layer is a convolution that adds whatever bias it is given."""
    return isinstance(layer, nn.Conv2D) and type(layer).forward is nn.Conv2D.forward


def _can_go(layer: nn.Layer) -> bool:
    """Whether a layer is a batch norm by stored statistics, and nothing but that."""
    if isinstance(layer, nn.BatchNorm2D):
        return layer._use_global_stats is not False
    return isinstance(layer, nn.BatchNorm) and not layer._act and not layer._trainable_statistics


def _matches(convolution: nn.Conv2D, norm: nn.Layer, pair: Pair) -> bool:
    layout = norm._data_layout if isinstance(norm, nn.BatchNorm) else norm._data_format
    bias = convolution.bias.name if convolution.bias is not None else None
    return layout == convolution._data_format and bias == pair.bias


def _fold(convolution: nn.Conv2D, norm: nn.Layer) -> None:
    weight = _float64(convolution.weight)
    mean, variance = _float64(norm._mean), _float64(norm._variance)
    epsilon = float(np.float32(norm._epsilon))  # Paddle's operation takes it in float32
    factor = 1 / np.sqrt(variance + epsilon)
    if norm.weight is not None:
        factor = _float64(norm.weight) * factor
    start = _float64(convolution.bias) if convolution.bias is not None else 0.0
    bias = (start - mean) * factor
    if norm.bias is not None:
        bias = bias + _float64(norm.bias)
    dtype = convolution.weight.numpy().dtype
    if convolution.bias is None:
        name = str(convolution.weight.dtype).rpartition(".")[2]
        convolution.bias = convolution.create_parameter([len(bias)], dtype=name, is_bias=True)
    convolution.weight.set_value((weight * factor.reshape(-1, 1, 1, 1)).astype(dtype))
    convolution.bias.set_value(bias.astype(dtype))


def _float64(tensor: paddle.Tensor) -> np.ndarray:
    return tensor.numpy().astype(np.float64)


def _replace(owner: _Owner, layer: nn.Layer) -> None:
    layer.eval()
    owner.parent.add_sublayer(owner.name, layer)
