"""Functions of Paddle 3 that it no longer traces into Paddle 2's format, made to do so again.

Paddle 3.3 turned `paddle.sum`, `paddle.exp` and others, which its own `paddle.static.nn.cond` calls
too, into functions for dygraph and PIR alone; the operators themselves are still there, and both
versions of Paddle run them. Here are those that detectors use.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import paddle
from paddle.base.framework import Variable
from paddle.framework import LayerHelper


@contextlib.contextmanager
def traceable() -> Iterator[None]:
    """Inside the block the functions take variables of Paddle 2's static graphs again."""
    with contextlib.ExitStack() as stack:
        for name, replacement in _REPLACEMENTS.items():
            for owner in (paddle, Variable):
                chosen = _choose(getattr(owner, name), replacement)
                stack.enter_context(mock.patch.object(owner, name, chosen))
        yield


def _choose(original: Callable, replacement: Callable) -> Callable:
    """Return `original` for what is no variable of a static graph, else `replacement`."""

    @paddle.jit.not_to_static
    @functools.wraps(original)
    def function(x: Any, *args: Any, **kwargs: Any) -> Any:
        return (replacement if isinstance(x, Variable) else original)(x, *args, **kwargs)

    return function


def _append(kind: str, inputs: dict[str, Variable], dtype: Any, **attributes: Any) -> Variable:
    helper = LayerHelper(kind)
    output = helper.create_variable_for_type_inference(dtype)
    helper.append_op(type=kind, inputs=inputs, outputs={"Out": output}, attrs=attributes)
    return output


def _exp(x: Variable, name: str | None = None) -> Variable:
    return _append("exp", {"X": x}, x.dtype)


def _sqrt(x: Variable, name: str | None = None) -> Variable:
    return _append("sqrt", {"X": x}, x.dtype)


def _logical_not(x: Variable, out: None = None, name: str | None = None) -> Variable:
    return _append("logical_not", {"X": x}, "bool")


def _logical_and(x: Variable, y: Variable, out: None = None, name: str | None = None) -> Variable:
    return _append("logical_and", {"X": x, "Y": y}, "bool")


Axis = int | Sequence[int] | None


def _sum(
    x: Variable, axis: Axis = None, dtype: Any = None, keepdim: bool = False, name: Any = None
) -> Variable:
    if dtype is None and x.dtype in (paddle.bool, paddle.int32):
        dtype = "int64"
    x = x if dtype is None else x.astype(dtype)
    return _append("reduce_sum", {"X": x}, x.dtype, **_reduction(axis, keepdim))


def _any(x: Variable, axis: Axis = None, keepdim: bool = False, name: Any = None) -> Variable:
    return _append("reduce_any", {"X": x.astype("bool")}, "bool", **_reduction(axis, keepdim))


def _reduction(axis: Axis, keepdim: bool) -> dict[str, Any]:
    axes = [axis] if isinstance(axis, int) else list(axis or [])
    return {"dim": axes or [0], "reduce_all": not axes, "keep_dim": keepdim}


_REPLACEMENTS: dict[str, Callable] = {
    "exp": _exp,
    "sqrt": _sqrt,
    "logical_not": _logical_not,
    "logical_and": _logical_and,
    "sum": _sum,
    "any": _any,
}
