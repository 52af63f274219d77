"""Which layers and operators multiply, and how many MACs one call of them is."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import paddle
from paddle import nn
from paddle.vision.ops import DeformConv2D

from ppcls.analysis.cost import Kind, LayerCost
from ppcls.ops.conv2d import is_accelerated

Form = Literal["conv", "transposed", "matmul"]

LAYERS: dict[type, Form] = {
    nn.Conv1D: "conv",
    nn.Conv2D: "conv",
    nn.Conv3D: "conv",
    DeformConv2D: "conv",
    nn.Conv1DTranspose: "transposed",
    nn.Conv2DTranspose: "transposed",
    nn.Conv3DTranspose: "transposed",
    nn.Linear: "matmul",
}


@dataclass(frozen=True)
class Operator:
    """How to read a call: its two factors are the tensors at these positions."""

    form: Form
    left: int = 0
    right: int = 1


# Names of `paddle._C_ops`, through which Paddle's functions reach their kernels.
OPERATORS: dict[str, Operator] = {
    "conv2d": Operator("conv"),
    "conv3d": Operator("conv"),
    "depthwise_conv2d": Operator("conv"),
    "depthwise_conv2d_bias": Operator("conv"),
    "depthwise_conv3d_bias": Operator("conv"),
    "deformable_conv": Operator("conv", right=2),  # the second is the offset
    "conv2d_transpose": Operator("transposed"),
    "conv2d_transpose_bias": Operator("transposed"),
    "depthwise_conv2d_transpose": Operator("transposed"),
    "conv3d_transpose": Operator("transposed"),
    "linear": Operator("matmul"),
    "linear_v2": Operator("matmul"),
    "matmul": Operator("matmul"),
    "bmm": Operator("matmul"),
    "mv": Operator("matmul"),
    "addmm": Operator("matmul", 1, 2),
    "addmm_": Operator("matmul", 1, 2),
    "baddbmm": Operator("matmul", 1, 2),
    "baddbmm_": Operator("matmul", 1, 2),
}

# Kernels that multiply, ours or not: those that run uncounted are reported. `run_program` is a
# network compiled by to_static, whose insides no hook sees.
_MULTIPLIES = re.compile(
    r"conv|matmul|gemm|linear|attention|attn|rnn|lstm|gru|bmm|addmm|einsum|^mv$|^dot$|run_program"
)
_DOES_NOT = re.compile(r"_grad|_interp|quantize_linear|conv_shift")


def multiplies(kernel: str) -> bool:
    """Whether an operator of this name does MACs worth counting."""
    return bool(_MULTIPLIES.search(kernel)) and not _DOES_NOT.search(kernel)


def layer_form(layer: nn.Layer) -> Form | None:
    """Return what a call of this layer is, or None: also where its `forward` was replaced."""
    if "forward" in vars(layer) and not is_accelerated(layer):
        return None
    forms = [form for base, form in LAYERS.items() if type(layer).forward is base.forward]
    return forms[0] if forms else None


def macs(form: Form, left: Sequence[int], right: Sequence[int], output: Sequence[int]) -> int:
    """MACs of one call, from the shapes of its factors and its result.

    A convolution does its whole kernel at every output position (right: [c_out, c_in / groups,
    k...]), a transposed one at every input position (right: [c_in, c_out / groups, k...]).
    Positions in the padding count, as usual.
    """
    if form == "conv":
        return math.prod(output) // right[0] * math.prod(right)
    if form == "transposed":
        return math.prod(left) // right[0] * math.prod(right)
    if min(len(left), len(right)) == 1:
        return math.prod(output) * (left if len(left) == 1 else right)[0]
    inner = left[-2] * left[-1] // output[-2]  # whichever of the two is not in the output
    return math.prod(output) * inner


def layer_cost(
    name: str, call: int, layer: nn.Layer, form: Form, x: paddle.Tensor, output: paddle.Tensor
) -> LayerCost:
    """The row of a layer that was called with x and gave `output`."""
    weight, bias = layer.weight, layer.bias
    dims = len(weight.shape) - 2
    return LayerCost(
        name=name,
        call=call,
        op=type(layer).__name__,
        kind="linear" if form == "matmul" else "conv",
        is_layer=True,
        kernel=tuple(weight.shape[2:]),
        stride=() if form == "matmul" else _per_axis(layer._stride, dims),
        groups=1 if form == "matmul" else int(layer._groups),
        input_shape=tuple(x.shape),
        output_shape=tuple(output.shape),
        macs=macs(form, x.shape, weight.shape, output.shape),
        cio=_size(x) + _size(output),
        outputs=_size(output),
        weights=_size(weight) + (0 if bias is None else _size(bias)),
        itemsize=x.element_size(),
    )


def operator_cost(name: str, call: int, op: str, arguments: list, result: Any) -> LayerCost:
    """The row of an operator called as a function, from all its arguments, in order."""
    operator = OPERATORS[op]
    tensors = [value for value in arguments if isinstance(value, paddle.Tensor)]
    x, y = tensors[operator.left], tensors[operator.right]
    kind: Kind = "conv"
    if operator.form == "matmul":
        kind = "linear" if y.persistable else "matmul"
    inputs = _size(x) + (_size(y) if kind == "matmul" else 0)
    stride = [value for value in arguments[2:] if isinstance(value, (list, tuple))]
    return LayerCost(
        name=name,
        call=call,
        op=op,
        kind=kind,
        is_layer=False,
        kernel=tuple(y.shape[2:]) if kind == "conv" else (),
        stride=tuple(stride[0]) if kind == "conv" and stride else (),
        groups=_groups(operator.form, x, y, result, arguments),
        input_shape=tuple(x.shape),
        output_shape=tuple(result.shape),
        macs=macs(operator.form, x.shape, y.shape, result.shape),
        cio=inputs + _size(result),
        outputs=_size(result),
        weights=0 if kind == "matmul" else _size(y),
        itemsize=x.element_size(),
    )


def _groups(form: Form, x: paddle.Tensor, y: paddle.Tensor, result: Any, arguments: list) -> int:
    if form == "matmul":
        return 1
    axis = -1 if any(value in ("NHWC", "NDHWC") for value in arguments if _is_text(value)) else 1
    return (x if form == "conv" else result).shape[axis] // y.shape[1]


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _per_axis(value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    return (value,) * dims if isinstance(value, int) else tuple(value)


def _size(tensor: paddle.Tensor) -> int:
    return math.prod(tensor.shape)
