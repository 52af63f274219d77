"""Loading weights into networks: strict, and told what did not fit."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import paddle
from paddle import nn

from ppcls.utils.errors import UserError
from ppcls.utils.pdparams import load_paddle_state_dict

logger = logging.getLogger("ppcls")


def weights_file(path: str | Path) -> Path:
    """Return the weight file a user means by `path`: with or without `.pdparams`.

    Raises UserError when there is no such file.
    """
    given = Path(path)
    for candidate in (given, given.with_name(given.name + ".pdparams")):
        if candidate.is_file():
            return candidate
    raise UserError(f"{path}: no such weight file (nor {given.name}.pdparams beside it)")


def load_state(
    model: nn.Layer, state: Mapping[str, np.ndarray], source: str, *, new_head: bool = False
) -> list[str]:
    """Copy `state` into `model` and return the names that were left as they are.

    Every tensor must fit by name and shape. With `new_head` the classifier of another class count
    is left out; nothing else is. Floating tensors take the model's dtype.

    Raises UserError listing what is missing, unexpected or of another shape; the model is then
    untouched.
    """
    target = model.state_dict()
    kept = _other_head(target, state) if new_head else []
    missing = [name for name in target if name not in state and name not in kept]
    unexpected = [name for name in state if name not in target]
    wrong = [
        f"{name} {list(np.shape(state[name]))} for {list(target[name].shape)}"
        for name in target
        if name in state and name not in kept and list(np.shape(state[name])) != target[name].shape
    ]
    problems = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("wrong shape", wrong),
        )
        if names
    ]
    if problems:
        raise UserError(f"{source}: does not fit {type(model).__name__}: {'; '.join(problems)}")
    for name, tensor in target.items():
        if name not in kept:
            tensor.set_value(np.asarray(state[name]).astype(_numpy_dtype(tensor)))
    return kept


def _numpy_dtype(tensor: paddle.Tensor) -> np.dtype:
    name = str(tensor.dtype).rsplit(".", 1)[-1]
    return np.dtype("float32" if name == "bfloat16" else name)


def _other_head(target: Mapping[str, paddle.Tensor], state: Mapping[str, np.ndarray]) -> list[str]:
    """Name the classifier's tensors if they differ from the file's in the class count alone."""
    names = list(target)[-2:]
    return [
        name
        for name in names
        if name in state
        and list(np.shape(state[name]))[:-1] == target[name].shape[:-1]
        and list(np.shape(state[name])) != target[name].shape
    ]


def load_pretrained(model: nn.Layer, name: str, pretrained: bool | str) -> None:
    """Load published weights (True) or a weight file (a path) into `model`."""
    path = weights_file(pretrained)
    load_state(model, load_paddle_state_dict(path), str(path))
    logger.info("weights: %s", path)
