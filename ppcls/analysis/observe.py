"""Watch a network run: hooks on its layers, wrappers round the operators it calls.

The wrappers sit in Paddle itself while the watched pass runs, so nothing else may run Paddle in
the process meanwhile.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import paddle
from paddle import _C_ops, nn

# Paddle 3 offers these kernels as they are, not through a function that looks them up in `_C_ops`.
_DIRECT = ("matmul", "bmm")
_NAMESPACES = (paddle, paddle.tensor, paddle.tensor.linalg, paddle.linalg, paddle.Tensor)


class Observer(Protocol):
    """What `observing` tells."""

    def enter(self, name: str, layer: nn.Layer, inputs: tuple) -> None:
        """A layer is about to run; `inputs` are its positional arguments."""

    def leave(self, name: str, layer: nn.Layer, inputs: tuple, outputs: Any) -> None:
        """It has run."""

    def call(self, operator: str, function: Callable, args: tuple, kwargs: Mapping) -> Any:
        """Run `function(*args, **kwargs)` and return its result."""


@contextlib.contextmanager
def observing(
    layers: Mapping[str, nn.Layer], operators: Iterable[str], observer: Observer
) -> Iterator[None]:
    """Tell `observer` of the calls of these layers and operators; undo everything at the end."""
    with contextlib.ExitStack() as undo:
        for name, layer in layers.items():
            _hook(layer, name, observer, undo)
        for holder, attribute, operator in _sites(operators):
            _wrap(holder, attribute, operator, observer, undo)
        yield


def all_layers(model: nn.Layer) -> dict[str, nn.Layer]:
    """Path -> layer, the network itself by its class's name; a shared layer is there once."""
    layers = dict(model.named_sublayers())
    return {type(model).__name__: model, **layers}


def all_operators() -> list[str]:
    return [name for name in dir(_C_ops) if not name.startswith("_") and name[0].islower()]


@contextlib.contextmanager
def evaluation(model: nn.Layer) -> Iterator[None]:
    """Evaluation mode without gradients; every layer's own mode is put back."""
    parts = [model, *model.sublayers()]
    modes = [part.training for part in parts]
    model.eval()
    try:
        with paddle.no_grad():
            yield
    finally:
        for part, mode in zip(parts, modes, strict=True):
            part.training = mode


def _hook(layer: nn.Layer, name: str, observer: Observer, undo: contextlib.ExitStack) -> None:
    def enter(layer: nn.Layer, inputs: tuple) -> None:
        observer.enter(name, layer, inputs)

    def leave(layer: nn.Layer, inputs: tuple, outputs: Any) -> None:
        observer.leave(name, layer, inputs, outputs)

    undo.callback(layer.register_forward_pre_hook(enter).remove)
    undo.callback(layer.register_forward_post_hook(leave).remove)


def _sites(operators: Iterable[str]) -> list[tuple[Any, str, str]]:
    """Where each operator is looked up: (holder, attribute, operator)."""
    wanted = set(operators)
    sites = [(_C_ops, name, name) for name in sorted(wanted) if hasattr(_C_ops, name)]
    for name in wanted.intersection(_DIRECT):
        sites += [(holder, name, name) for holder in _NAMESPACES if name in vars(holder)]
    if "matmul" in wanted:
        sites.append((paddle.Tensor, "__matmul__", "matmul"))
    return sites


def _wrap(
    holder: Any, attribute: str, operator: str, observer: Observer, undo: contextlib.ExitStack
) -> None:
    function = getattr(holder, attribute)

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return observer.call(operator, function, args, kwargs)

    undo.callback(setattr, holder, attribute, function)
    setattr(holder, attribute, wrapper)
