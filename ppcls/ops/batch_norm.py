"""Batch norm with the activation after it, on a CPU: one operator written in C.

Paddle computes the two on one thread and goes ten times over the tensor in a training step; here it
is five times, on all threads. What `conv2d` says holds here too: how a layer computes changes, not
what, and only for float32 on a CPU in dynamic mode; everything else takes Paddle's own operators.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from types import MethodType

import paddle
from paddle import nn
from paddle.autograd import PyLayer
from paddle.nn import functional as F

from ppcls.arch.backbone.hardnet_block import ConvBNAct
from ppcls.ops import conv2d, dynamic, native
from ppcls.ops.native import BatchNormCall, Native

VARIABLE = "PPCLS_BATCH_NORM"
Range = tuple[float, float]
_CLIPPED_TO: dict[Callable, Range] = {F.relu: (0.0, math.inf), F.relu6: (0.0, 6.0)}
_UNCLIPPED: Range = (-math.inf, math.inf)
_AS_THEY_ARE = -1.0  # a momentum: the running statistics are used and stay


def accelerate_batch_norms(network: nn.Layer) -> conv2d.Accelerated:
    """Let the `nn.BatchNorm2D` layers of `network` compute in C where they can.

    With `PPCLS_BATCH_NORM=paddle` in the environment, or where the C was not compiled, they go on
    with Paddle's own; `describe` says which it is. Others than channels-first do so as well.
    """
    layers = network.sublayers(include_self=True)
    norms = [layer for layer in layers if type(layer) is nn.BatchNorm2D]
    if find_native() is None:
        return conv2d.Accelerated(0, len(norms))
    fast = [norm for norm in norms if _is_plain(norm)]
    for norm in fast:
        norm.forward = MethodType(_forward, norm)
    for unit in layers:
        if type(unit) is ConvBNAct and is_accelerated(unit.norm):
            unit.forward = MethodType(_forward_unit, unit)
    return conv2d.Accelerated(len(fast), len(norms))


def is_accelerated(layer: nn.Layer) -> bool:
    """Whether the `forward` of this layer is the one put there to compute in C."""
    return getattr(vars(layer).get("forward"), "__func__", None) is _forward


def describe() -> str:
    """Say in a few words what computes the batch norms that were accelerated."""
    return "Paddle's own" if find_native() is None else "compiled with this package"


@functools.cache
def find_native() -> Native | None:
    """The compiled operator; None without it, or when the user wants Paddle's own."""
    return None if dynamic.wants_paddle(VARIABLE) else native.load()


def _is_plain(norm: nn.BatchNorm2D) -> bool:
    has_parameters = norm.weight is not None and norm.bias is not None
    return has_parameters and norm._use_global_stats is None and norm._data_format == "NCHW"


def _forward(self: nn.BatchNorm2D, x: paddle.Tensor) -> paddle.Tensor:
    """The layer's `forward`: in C where it can, else that of its class."""
    if not _can_run(self, x):
        return type(self).forward(self, x)
    return _normalize(self, x, _UNCLIPPED)


def _forward_unit(self: ConvBNAct, x: paddle.Tensor) -> paddle.Tensor:
    """The unit's `forward`: batch norm and activation in one where they can be.

    Either may be another since: a norm converted to `nn.SyncBatchNorm`, an activation replaced.
    """
    norm = self.norm
    x = self.conv(x)
    clipped_to = _CLIPPED_TO.get(self.activate)
    has_hooks = norm._forward_pre_hooks or norm._forward_post_hooks
    if clipped_to is None or has_hooks or not (is_accelerated(norm) and _can_run(norm, x)):
        return self.activate(norm(x))
    return _normalize(norm, x, clipped_to)


def _can_run(norm: nn.BatchNorm2D, x: paddle.Tensor) -> bool:
    if not _is_plain(norm):  # another setting since
        return False
    of_channels = [norm.weight, norm.bias, norm._mean, norm._variance]
    if not dynamic.can_run([x, *of_channels]):
        return False
    images, channels, height, width = x.shape
    if any(tensor.shape != [channels] for tensor in of_channels):  # a mistake that Paddle explains
        return False
    if norm.training:
        return images * height * width > 1  # Paddle returns a single value as it is
    # In evaluation mode a PyLayer would break the usual paddle.grad(loss, [images]).
    return not dynamic.wants_gradient([x, norm.weight, norm.bias])


def _normalize(norm: nn.BatchNorm2D, x: paddle.Tensor, clipped_to: Range) -> paddle.Tensor:
    inputs = (x, norm.weight, norm.bias)
    if dynamic.wants_gradient(inputs):
        return _BatchNorm.apply(norm, clipped_to, *inputs)
    result, *_ = _run(norm, clipped_to, [tensor.contiguous() for tensor in inputs])
    return result


def _run(
    norm: nn.BatchNorm2D, clipped_to: Range, inputs: list[paddle.Tensor]
) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
    """The result, and [C] each the mean and the inverse deviation it was computed with."""
    x, scale, offset = inputs
    channels = x.shape[1]
    result, mean, inverse = (dynamic.empty(s) for s in (x.shape, [channels], [channels]))
    call = _call(x, clipped_to)
    call.epsilon = norm._epsilon
    call.momentum = norm._momentum if norm.training else _AS_THEY_ARE
    _point(
        call,
        source=x,
        scale=scale,
        offset=offset,
        running_mean=norm._mean,
        running_variance=norm._variance,
        mean=mean,
        inverse_deviation=inverse,
        target=result,
    )
    _native().forward(call)
    return result, mean, inverse


def _call(x: paddle.Tensor, clipped_to: Range) -> BatchNormCall:
    images, channels, height, width = x.shape
    return BatchNormCall(images, channels, height * width, *clipped_to)


def _point(call: BatchNormCall, **tensors: paddle.Tensor | None) -> None:
    for name, tensor in tensors.items():
        setattr(call, name, None if tensor is None else tensor.data_ptr())


def _native() -> Native:
    found = find_native()
    assert found is not None
    return found


class _BatchNorm(PyLayer):
    """Batch norm of a batch, clipped, with its gradients."""

    @staticmethod
    def forward(
        ctx, norm: nn.BatchNorm2D, clipped_to: Range, *inputs: paddle.Tensor
    ) -> paddle.Tensor:
        dense = [tensor.contiguous() for tensor in inputs]
        result, *statistics = _run(norm, clipped_to, dense)
        saved = [*dense, *statistics]
        ctx.clipped_to = clipped_to
        ctx.guard = dynamic.Guard(inputs, VARIABLE, "this project's batch norm")
        ctx.save_for_backward(*saved)
        return result

    @staticmethod
    def backward(ctx, gradient: paddle.Tensor) -> tuple[paddle.Tensor | None, ...]:
        saved = ctx.saved_tensor()
        ctx.guard.check()
        x, scale, offset, mean, inverse = saved
        wanted = ctx.guard.wanted
        # Those of the parameters are steps on the way to that of x: they are always computed.
        results = [dynamic.empty(x.shape) if wanted[0] else None]
        results += [dynamic.empty(tensor.shape) for tensor in (scale, offset)]
        call = _call(x, ctx.clipped_to)
        gradient = gradient.contiguous()
        _point(
            call,
            source=x,
            scale=scale,
            offset=offset,
            mean=mean,
            inverse_deviation=inverse,
            gradient=gradient,
            source_gradient=results[0],
            scale_gradient=results[1],
            offset_gradient=results[2],
        )
        _native().backward(call)
        return tuple(
            result if is_wanted else None for result, is_wanted in zip(results, wanted, strict=True)
        )
