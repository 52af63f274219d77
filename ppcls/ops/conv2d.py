"""The 2-D convolution of a `paddle.nn.Conv2D` on a CPU: oneDNN's in training and evaluation.

`accelerate` changes how a layer computes, not what: same parameters, same state-dict keys, the same
class (Paddle's own tools look layers up by their exact class), results equal to float32 rounding.
It concerns float32 tensors on a CPU in dynamic mode, in training and where no gradient is wanted.
Everything else takes Paddle's own operator: float64, automatic mixed precision, a GPU, gradients in
evaluation mode, and every static graph, so that an exported program holds nothing but operators of
Paddle's.

It is for code that goes backward once through a graph, as this project's tools do; they alone ask
for it. A second backward through the same graph ends the process inside Paddle, whatever the
PyLayer; `paddle.grad` for some inputs only and second derivatives are an error; a gradient hook on
the result of a layer is called, but Paddle ignores what it returns. A network of `ppcls.arch`
computes with Paddle's own convolutions until `accelerate_convolutions` is called.
"""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from types import MethodType
from typing import NamedTuple

import paddle
from paddle import nn
from paddle.autograd import PyLayer

from ppcls.ops import dynamic
from ppcls.ops.onednn import Library, OneDNNError
from ppcls.ops.onednn_conv import Convolution, Geometry

logger = logging.getLogger("ppcls")

VARIABLE = "PPCLS_CONV"
Pair = tuple[int, int]
_CACHED = 512  # convolutions of different geometry, of up to half a megabyte each


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
    if dynamic.wants_paddle(VARIABLE):
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
    if not dynamic.can_run(inputs):
        return type(self).forward(self, x)
    has_gradient = dynamic.wants_gradient(inputs)
    if has_gradient and not self.training:  # a PyLayer breaks the usual paddle.grad(loss, [images])
        return type(self).forward(self, x)
    geometry = _geometry(self, tuple(x.shape))
    convolution = None if geometry is None else _convolution(geometry)
    if convolution is None:
        return type(self).forward(self, x)
    if has_gradient:
        return _Conv2D.apply(convolution, *inputs)
    return _run(convolution, [tensor.contiguous() for tensor in inputs])


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
    result = dynamic.empty(convolution.geometry.target_shape)
    convolution.forward(*(t.data_ptr() for t in (*inputs, result)))
    return result


class _Conv2D(PyLayer):
    """A convolution with its gradients."""

    @staticmethod
    def forward(ctx, convolution: Convolution, *inputs: paddle.Tensor) -> paddle.Tensor:
        ctx.convolution = convolution
        dense = [tensor.contiguous() for tensor in inputs]
        ctx.guard = dynamic.Guard(inputs, VARIABLE, "oneDNN's convolution")
        ctx.save_for_backward(*dense)
        return _run(convolution, dense)

    @staticmethod
    def backward(ctx, gradient: paddle.Tensor) -> tuple[paddle.Tensor | None, ...]:
        inputs = ctx.saved_tensor()
        ctx.guard.check()
        gradients = [
            dynamic.empty(tensor.shape) if is_wanted else None
            for tensor, is_wanted in zip(inputs, ctx.guard.wanted, strict=True)
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
            dynamic.empty(tensor.shape) if result is None else result
            for tensor, result in zip(inputs[1:], of_parameters, strict=True)
        ]
        convolution.backward_weight(x, target, *(tensor.data_ptr() for tensor in filled))
    if of_x is not None:
        convolution.backward_source(weight, target, of_x.data_ptr())
