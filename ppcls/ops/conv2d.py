"""The 2-D convolution of a `paddle.nn.Conv2D` on a CPU: oneDNN's in training and evaluation.

`accelerate` changes how a layer computes, not what: same parameters, same state-dict keys, the same
class (Paddle's own tools look layers up by their exact class), results equal to float32 rounding.
It concerns float32 tensors on a CPU in dynamic mode, in training and where no gradient is wanted.
Everything else takes Paddle's own operator: float64, automatic mixed precision, a GPU, gradients in
evaluation mode, and every static graph, so that an exported program holds nothing but operators of
Paddle's.

It is for code that goes backward once through a graph, as this project's tools do; they alone ask
for it. A second backward through the same graph ends the process inside Paddle, whatever the
PyLayer; `paddle.grad` for some inputs only and second derivatives are an error. A network of
`ppcls.arch` computes with Paddle's own convolutions until `accelerate_convolutions` is called.
"""

from __future__ import annotations

import functools
import logging
import os
from pathlib import Path
from types import MethodType
from typing import NamedTuple

import paddle
from paddle import _C_ops, nn
from paddle.autograd import PyLayer

from ppcls.ops.onednn import Library, OneDNNError
from ppcls.ops.onednn_conv import Convolution, Geometry
from ppcls.utils.errors import UserError

logger = logging.getLogger("ppcls")

VARIABLE = "PPCLS_CONV"
CHOICES = ("auto", "paddle")
Pair = tuple[int, int]
_CACHED = 512  # convolutions of different geometry, of up to half a megabyte each
_CPU = paddle.CPUPlace()


class Accelerated(NamedTuple):
    """How many convolutions of a network oneDNN computes."""

    count: int
    total: int


def accelerate_convolutions(network: nn.Layer) -> Accelerated:
    """Let the `nn.Conv2D` layers of `network` compute with oneDNN where they can."""
    layers = [layer for layer in network.sublayers(include_self=True) if type(layer) is nn.Conv2D]
    count = sum(is_accelerated(accelerate(layer)) for layer in layers)
    return Accelerated(count, len(layers))


def accelerate(layer: nn.Conv2D) -> nn.Conv2D:
    """Let `layer` compute with oneDNN where it can, and return it.

    With `PPCLS_CONV=paddle` in the environment, or where Paddle's package holds no oneDNN, it goes
    on with Paddle's own convolution; `describe` says which it is.
    """
    if find_onednn() is not None and _window(layer) is not None:
        layer.forward = MethodType(_forward, layer)
    return layer


def is_accelerated(layer: nn.Layer) -> bool:
    """Whether the `forward` of this layer is the one `accelerate` put there."""
    return getattr(vars(layer).get("forward"), "__func__", None) is _forward


def describe() -> str:
    """Say in a few words what computes the convolutions of float32 that were accelerated."""
    found = find_onednn()
    return "Paddle's own" if found is None else f"oneDNN {found.version}"


@functools.cache
def find_onednn() -> Library | None:
    """The oneDNN in Paddle's package; None without one, or when the user wants Paddle's own."""
    wanted = os.environ.get(VARIABLE, "auto")
    if wanted not in CHOICES:
        raise UserError(f"{VARIABLE}: expected one of {', '.join(CHOICES)}, got {wanted!r}")
    if wanted == "paddle":
        return None
    for path in sorted((Path(paddle.__file__).parent / "libs").glob("libdnnl.so*")):
        try:
            return Library(path)
        except (OSError, AttributeError, OneDNNError) as error:
            logger.info("%s: not used: %s", path.name, error)
    return None


def _window(layer: nn.Conv2D) -> tuple[Pair, Pair, Pair] | None:
    """Stride, padding and dilation; None for a padding that differs between two sides."""
    padding = layer._padding
    pads = [padding] * 2 if isinstance(padding, int) else padding
    is_plain = isinstance(pads, list | tuple) and all(isinstance(pad, int) for pad in pads)
    if not is_plain or len(pads) != 2 or layer._padding_mode != "zeros":
        return None
    return tuple(layer._stride), tuple(pads), tuple(layer._dilation)


def _forward(self: nn.Conv2D, x: paddle.Tensor) -> paddle.Tensor:
    """The layer's `forward`: oneDNN where it can, else that of its class."""
    inputs = [x, self.weight] if self.bias is None else [x, self.weight, self.bias]
    if not (paddle.in_dynamic_mode() and _can_run(inputs)):
        return type(self).forward(self, x)
    has_gradient = paddle.is_grad_enabled() and not all(t.stop_gradient for t in inputs)
    if has_gradient and not self.training:  # a PyLayer breaks the usual paddle.grad(loss, [images])
        return type(self).forward(self, x)
    geometry = _geometry(self, tuple(x.shape))
    convolution = None if geometry is None else _convolution(geometry)
    if convolution is None:
        return type(self).forward(self, x)
    if has_gradient:
        return _Conv2D.apply(convolution, *inputs)
    return _run(convolution, [tensor.contiguous() for tensor in inputs])


def _can_run(inputs: list[paddle.Tensor]) -> bool:
    """Whether oneDNN's float32 convolution is what the caller asked for."""
    if paddle.base.framework._dygraph_tracer()._amp_level != paddle.base.core.AmpLevel.O0:
        return False
    x, weight = inputs[:2]
    is_batch = len(x.shape) == 4 and 0 not in x.shape
    return is_batch and all(
        tensor.dtype == paddle.float32 and tensor.place.is_cpu_place() for tensor in inputs
    )


def _geometry(layer: nn.Conv2D, shape: tuple[int, ...]) -> Geometry | None:
    """What the layer computes for an input of `shape`; None for what oneDNN is not asked."""
    window = _window(layer)
    if window is None:
        return None
    channels_last = layer._data_format == "NHWC"
    if channels_last:
        shape = (shape[0], shape[3], shape[1], shape[2])
    stride, padding, dilation = window
    return Geometry(
        source=shape,
        weight=tuple(layer.weight.shape),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=layer._groups,
        has_bias=layer.bias is not None,
        channels_last=channels_last,
    )


@functools.lru_cache(_CACHED)
def _convolution(geometry: Geometry) -> Convolution | None:
    """None for what oneDNN does not have, which may be a mistake that Paddle explains."""
    found = find_onednn()
    assert found is not None
    try:
        return Convolution(found, geometry)
    except OneDNNError as error:
        logger.debug("%s: not by oneDNN: %s", geometry, error)
        return None


def _run(convolution: Convolution, inputs: list[paddle.Tensor]) -> paddle.Tensor:
    result = _empty(convolution.geometry.target_shape)
    convolution.forward(*(t.data_ptr() for t in (*inputs, result)))
    return result


def _empty(shape: list[int]) -> paddle.Tensor:
    """Memory for a float32 result on the CPU, whatever Paddle's defaults are."""
    return _C_ops.empty(shape, paddle.float32, _CPU)


class _Conv2D(PyLayer):
    """A convolution with its gradients."""

    @staticmethod
    def forward(ctx, convolution: Convolution, *inputs: paddle.Tensor) -> paddle.Tensor:
        ctx.convolution = convolution
        ctx.originals = [(tensor, tensor.inplace_version) for tensor in inputs]
        ctx.wanted = [not tensor.stop_gradient for tensor in inputs]
        inputs = [tensor.contiguous() for tensor in inputs]
        ctx.save_for_backward(*inputs)
        return _run(convolution, inputs)

    @staticmethod
    def backward(ctx, gradient: paddle.Tensor) -> tuple[paddle.Tensor | None, ...]:
        if paddle.is_grad_enabled():  # create_graph: oneDNN's gradients have none of their own
            raise RuntimeError(
                f"second derivatives in training: expected {VARIABLE}=paddle in the environment, "
                f"found oneDNN's convolution"
            )
        if any(tensor.inplace_version != version for tensor, version in ctx.originals):
            raise RuntimeError(
                "convolution: expected its input and parameters as they were in the forward pass, "
                "found them changed in place"
            )
        inputs = ctx.saved_tensor()
        gradients = [
            _empty(tensor.shape) if is_wanted else None
            for tensor, is_wanted in zip(inputs, ctx.wanted, strict=True)
        ]
        _run_backward(ctx.convolution, inputs, gradient.contiguous(), gradients)
        return tuple(gradients)


def _run_backward(
    convolution: Convolution,
    inputs: tuple[paddle.Tensor, ...],
    gradient: paddle.Tensor,
    results: list[paddle.Tensor | None],
) -> None:
    """Fill `results`, the gradients of `inputs`, where they are wanted."""
    x, weight = (tensor.data_ptr() for tensor in inputs[:2])
    target = gradient.data_ptr()
    of_x, *of_parameters = results
    if any(result is not None for result in of_parameters):
        # oneDNN computes both or none: the one nobody wants goes into memory that is dropped.
        filled = [
            _empty(tensor.shape) if result is None else result
            for tensor, result in zip(inputs[1:], of_parameters, strict=True)
        ]
        convolution.backward_weight(x, target, *(tensor.data_ptr() for tensor in filled))
    if of_x is not None:
        convolution.backward_source(weight, target, of_x.data_ptr())
