"""An optimizer's state under the parameter names of another process.

Paddle names it after its own counters (`conv2d_7.w_0_velocity_0`), which depend on what else the
process built: the way is through the names in the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import paddle
from paddle import nn
from paddle.optimizer import Optimizer

from ppcls.utils.errors import UserError
from ppcls.utils.safe_pickle_types import shorten


def parameter_names(model: nn.Layer) -> dict[str, str]:
    """Paddle's own name of each parameter, by its name in the network."""
    return {name: parameter.name for name, parameter in model.named_parameters()}


def fit_optimizer_state(
    state: Any,
    saved_names: Mapping[str, str],
    model: nn.Layer,
    optimizer: Optimizer,
    where: str,
) -> dict[str, Any]:
    """Check a saved state and return it for `optimizer.set_state_dict`.

    saved_names: `parameter_names` of the process that saved. Raises UserError, naming `where`, for
    a state that does not belong to this network.
    """
    if not isinstance(state, dict):
        raise UserError(f"{where}: expected the state of an optimizer, found no mapping")
    parameters = dict(model.named_parameters())
    by_saved = {saved: parameters[name] for name, saved in saved_names.items()}
    renamed: dict[str, Any] = {"LR_Scheduler": _scheduler_state(state, where)}
    trained = [p for p in optimizer._parameter_list if not p.stop_gradient]
    kinds: dict[str, set[str]] = {p.name: set() for p in trained}
    for key, value in state.items():
        if key == "LR_Scheduler":
            continue
        if key == "master_weights":
            renamed[key] = _master_weights(value, by_saved, where)
            continue
        parameter, kind = _owner(key, by_saved, where)
        _check_array(value, parameter, f"{where}: {key}")
        renamed[parameter.name + kind] = paddle.to_tensor(value)
        # `_velocity_0`: the number counts the optimizers of the process that saved it.
        kinds.setdefault(parameter.name, set()).add(kind.rstrip("0123456789"))
    if len({frozenset(kind) for kind in kinds.values()}) > 1:
        raise UserError(f"{where}: expected the same state for every parameter, some lack it")
    return renamed


def take_state(optimizer: Optimizer) -> None:
    """Make `optimizer` take a state it was given for the parameters that train now.

    Paddle does so at the first update, and then demands a state for all that train there: for
    parameters that join before it, there is none yet.
    """
    if optimizer._accumulators_holder:
        trained = [p for p in optimizer._parameter_list if not p.stop_gradient]
        block = paddle.static.default_main_program().global_block()
        optimizer._create_accumulators(block, trained)


def _scheduler_state(state: dict, where: str) -> dict[str, Any]:
    found = state.get("LR_Scheduler")
    updates = found.get("last_epoch") if isinstance(found, dict) else None
    if type(updates) is not int or updates < 0:
        raise UserError(f"{where}: expected LR_Scheduler.last_epoch, a number >= 0")
    if type(found.get("last_lr")) not in (int, float):
        raise UserError(f"{where}: expected LR_Scheduler.last_lr, a number")
    return found


def _owner(key: str, by_saved: Mapping[str, Any], where: str) -> tuple[Any, str]:
    """Split `conv2d_7.w_0_velocity_0` into the parameter conv2d_7.w_0 and `_velocity_0`."""
    name = str(key)
    while name and name not in by_saved:
        name = name.rpartition("_")[0]
    if not name:
        raise UserError(f"{where}: expected state of this network, found {shorten(str(key))}")
    return by_saved[name], str(key)[len(name) :]


def _master_weights(value: Any, by_saved: Mapping[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected master_weights to be a mapping, it is not")
    masters = {}
    for key, array in value.items():
        parameter, rest = _owner(key, by_saved, where)
        _check_array(array, parameter, f"{where}: master_weights.{key}")
        masters[parameter.name + rest] = paddle.to_tensor(array)
    return masters


def _check_array(value: Any, parameter: Any, where: str) -> None:
    """Optimizer state is an array like its parameter, or one number, such as a power of beta."""
    is_number = isinstance(value, np.ndarray) and value.dtype.kind in "fiu"
    if not is_number or (value.size != 1 and list(value.shape) != list(parameter.shape)):
        found = list(value.shape) if isinstance(value, np.ndarray) else type(value).__name__
        raise UserError(f"{where}: expected numbers of shape {list(parameter.shape)}, got {found}")
