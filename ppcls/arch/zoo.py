"""The one module that knows PaddleClas's wheel (`paddleclas`, an optional extra).

The wheel is imported on first use: that takes seconds and sets up a logger of its own.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import logging
import sys
from collections.abc import Callable, Iterator
from types import ModuleType

from ppcls.arch.backbone.hardnet_plan import VARIANTS
from ppcls.arch.registry import ARCHITECTURES
from ppcls.utils.errors import UserError

_BACKBONES = "paddleclas.ppcls.arch.backbone."
_FAMILIES = ("legendary_models.", "model_zoo.", "variant_models.")


def is_installed() -> bool:
    return importlib.util.find_spec("paddleclas") is not None


def _wheel() -> ModuleType:
    """Import and return `paddleclas.ppcls.arch`. Raises UserError when the extra is missing."""
    if not is_installed():
        raise UserError(
            "PaddleClas's zoo: expected the package 'paddleclas', found none; "
            "install it with: pip install 'hardnet-paddle[zoo]' (Python < 3.12)"
        )
    with _own_logging():
        return importlib.import_module("paddleclas.ppcls.arch")


@contextlib.contextmanager
def _own_logging() -> Iterator[None]:
    """Keep the wheel from adding a handler to the logger `ppcls`, whose name it shares."""
    logging.getLogger("faiss").setLevel(logging.WARNING)  # it announces its instruction set
    own = logging.getLogger("ppcls")
    handlers, level, propagate = list(own.handlers), own.level, own.propagate
    try:
        yield
    finally:
        own.handlers[:] = handlers
        own.setLevel(level)
        own.propagate = propagate


@functools.cache
def builders() -> dict[str, Callable]:
    """Return name -> builder of every public architecture of the zoo, our own names left out."""
    wheel = _wheel()
    own = {name.lower() for name in ARCHITECTURES}
    names = set()
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith(tuple(_BACKBONES + family for family in _FAMILIES)):
            names.update(getattr(module, "__all__", ()))
    return {
        name: getattr(wheel, name)
        for name in sorted(names)
        if name.lower() not in own and callable(getattr(wheel, name, None))
    }


def wheel_builder(name: str) -> Callable:
    """Return the wheel's own builder of a network, also of those this project has too.

    Raises UserError without `paddleclas`, or for a name it does not know.
    """
    builder = getattr(_wheel().backbone, name, None)
    if not callable(builder):
        raise UserError(f"PaddleClas's zoo: expected a network, found none called {name!r}")
    return builder


def register() -> None:
    """Put this project's classifiers into PaddleClas, in place of its own of the same name.

    `paddleclas.ppcls.arch.build_model({"Arch": {"name": "HarDNet68"}, "Global": {...}})` then
    returns our class. Calling it again changes nothing. Raises UserError without `paddleclas`.
    """
    wheel = _wheel()
    for name in VARIANTS:
        for module in (wheel, wheel.backbone):
            setattr(module, name, ARCHITECTURES.get(name))
