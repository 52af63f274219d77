"""What an operator outside Paddle asks before it runs on Paddle's tensors."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence

import paddle
from paddle import _C_ops

from ppcls.utils.errors import UserError

CHOICES = ("auto", "paddle")
_CPU = paddle.CPUPlace()


def wants_paddle(variable: str) -> bool:
    """Whether the user asks for Paddle's own operator. Raises UserError for an unknown word."""
    wanted = os.environ.get(variable, "auto")
    if wanted not in CHOICES:
        raise UserError(f"{variable}: expected one of {', '.join(CHOICES)}, got {wanted!r}")
    return wanted == "paddle"


def can_run(inputs: Sequence[paddle.Tensor | None]) -> bool:
    """Whether this is plain float32 on a CPU in dynamic mode; the first input is [N, C, H, W]."""
    if not paddle.in_dynamic_mode():
        return False
    if paddle.base.framework._dygraph_tracer()._amp_level != paddle.base.core.AmpLevel.O0:
        return False
    x = inputs[0]
    is_batch = x is not None and len(x.shape) == 4 and 0 not in x.shape
    return is_batch and all(
        tensor is not None and tensor.dtype == paddle.float32 and tensor.place.is_cpu_place()
        for tensor in inputs
    )


def wants_gradient(inputs: Sequence[paddle.Tensor]) -> bool:
    return paddle.is_grad_enabled() and not all(tensor.stop_gradient for tensor in inputs)


def empty(shape: Sequence[int]) -> paddle.Tensor:
    """Memory for a float32 result on the CPU, whatever Paddle's defaults are."""
    return _C_ops.empty(list(shape), paddle.float32, _CPU)


class Guard:
    """What a backward pass checks before it trusts the tensors of its forward pass.

    It refers to them weakly: a strong reference would keep the memory that a recomputed block
    wants free, and its second forward pass makes tensors anew.

    Args:
        inputs: of the forward pass.
        variable: of the environment, that chooses Paddle's own operator.
        what: the operator, for messages.
    """

    def __init__(self, inputs: Sequence[paddle.Tensor], variable: str, what: str) -> None:
        self.wanted = [not tensor.stop_gradient for tensor in inputs]
        self._versions = [(weakref.ref(tensor), tensor.inplace_version) for tensor in inputs]
        self._variable, self._what = variable, what

    def check(self) -> None:
        """Raise RuntimeError for a backward pass that cannot be right."""
        if paddle.is_grad_enabled():  # create_graph: these gradients have none of their own
            raise RuntimeError(
                f"second derivatives in training: expected {self._variable}=paddle in the "
                f"environment, found {self._what}"
            )
        present = [(reference(), version) for reference, version in self._versions]
        if any(tensor is not None and tensor.inplace_version != old for tensor, old in present):
            raise RuntimeError(
                f"{self._what}: expected its input and parameters as they were in the forward "
                "pass, found them changed in place"
            )
