"""Checkpoints: the one module that knows their file names.

    OUTPUT/ARCH/{latest,best_model,epoch_N}.{pdparams,pdopt,pdstates}

`.pdparams` holds the raw weights, `.pdopt` the optimizer's state in Paddle's own format, and
`.pdstates` the rest: progress, loss scaler, the resolved recipe. Each file is written under a
temporary name and renamed, `.pdstates` last, so that a set without it is not complete.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn
from paddle.optimizer import Optimizer

from ppcls.arch.weights import check_state, load_state
from ppcls.engine.precision import Precision
from ppcls.utils import schema
from ppcls.utils.errors import UserError
from ppcls.utils.pdparams import load_paddle_file, load_paddle_state_dict, save_pdparams
from ppcls.utils.safe_pickle_types import shorten

SCHEMA = 1
SUFFIXES = (".pdparams", ".pdopt", ".pdstates")


@dataclass
class Progress:
    """Where a run stands."""

    epoch: int = 0  # epochs finished
    global_step: int = 0  # steps done
    best_metric: float | None = None
    best_epoch: int = 0

    def __post_init__(self) -> None:
        schema.at_least(
            0, epoch=self.epoch, global_step=self.global_step, best_epoch=self.best_epoch
        )


class Checkpointer:
    """Saves and loads the state of one run.

    Args:
        folder: the run's folder, OUTPUT/ARCH.
        recipe: the resolved recipe, kept in every checkpoint.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Layer,
        optimizer: Optimizer,
        precision: Precision,
        recipe: Mapping[str, Any],
    ) -> None:
        self.folder = folder
        self.model = model
        self.optimizer = optimizer
        self.precision = precision
        self.recipe = recipe
        self._has_saved = False  # what an earlier run left in the folder is not this run's

    def save(self, tag: str, progress: Progress) -> Path:
        """Write the set called `tag` (`latest`, `best_model`, `epoch_3`); return its stem."""
        stem = self.folder / tag
        states = {
            "schema": SCHEMA,
            "epoch": progress.epoch,
            "progress": dataclasses.asdict(progress),
            "optimizer": type(self.optimizer).__name__,
            "scaler": _to_arrays(self.precision.state_dict()),
            "parameter_names": _parameter_names(self.model),
            "recipe": self.recipe,
        }
        save_pdparams(_file(stem, ".pdparams"), state_arrays(self.model))
        save_pdparams(_file(stem, ".pdopt"), _to_arrays(self.optimizer.state_dict()))
        save_pdparams(_file(stem, ".pdstates"), states)
        self._has_saved = True
        return stem

    def newest(self) -> Path | None:
        """Return the stem of the newest set of this run, or None before the first."""
        stem = self.folder / "latest"
        return stem if self._has_saved and _file(stem, ".pdstates").is_file() else None

    def load(self, path: str | Path) -> Progress:
        """Restore everything `save` wrote; `path` has no suffix, or that of one of the files.

        Raises UserError when a file is missing or does not belong to this network.
        """
        stem = _stem(path)
        for suffix in SUFFIXES:
            if not _file(stem, suffix).is_file():
                raise UserError(
                    f"Global.checkpoints: expected the files {stem.name}"
                    f"{{{','.join(SUFFIXES)}}} in {stem.parent}, found no {stem.name}{suffix}"
                )
        states = load_paddle_file(_file(stem, ".pdstates"))
        self._check(states, f"{stem}.pdstates")
        weights = load_paddle_state_dict(_file(stem, ".pdparams"))
        check_state(self.model, weights, f"{stem}.pdparams")
        optimizer = load_paddle_file(_file(stem, ".pdopt"))
        optimizer = self._optimizer_state(optimizer, states["parameter_names"], f"{stem}.pdopt")
        load_state(self.model, weights, f"{stem}.pdparams")
        self.optimizer.set_state_dict(optimizer)
        self.precision.load_state_dict(states["scaler"])
        self._has_saved = self._has_saved or stem.parent.resolve() == self.folder.resolve()
        return Progress(**states["progress"])

    def _check(self, states: Any, where: str) -> None:
        if not isinstance(states, dict) or states.get("schema") != SCHEMA:
            found = states.get("schema") if isinstance(states, dict) else type(states).__name__
            raise UserError(f"{where}: expected schema {SCHEMA}, found {found!r}")
        kinds = {"progress": dict, "scaler": dict, "parameter_names": dict, "optimizer": str}
        for key, kind in kinds.items():
            if not isinstance(states.get(key), kind):
                raise UserError(f"{where}: expected {key!r} to be a {kind.__name__}, it is not")
        schema.parse_dataclass(Progress, states["progress"], f"{where}: progress")
        names = set(_parameter_names(self.model))
        if set(states["parameter_names"]) != names:
            raise UserError(f"{where}: expected the parameters of this network, found others")
        own = type(self.optimizer).__name__
        if states["optimizer"] != own:
            raise UserError(
                f"{where}: expected the state of the optimizer {own} (Optimizer.name), "
                f"found that of {states['optimizer']}"
            )

    def _optimizer_state(
        self, state: Any, saved_names: Mapping[str, str], where: str
    ) -> dict[str, Any]:
        """Check an optimizer's state and return it under this process's parameter names.

        Paddle names it after its own counters (`conv2d_7.w_0_velocity_0`), which depend on what
        else the process built: the way is through the names in the network.
        """
        if not isinstance(state, dict):
            raise UserError(f"{where}: expected the state of an optimizer, found no mapping")
        parameters = dict(self.model.named_parameters())
        by_saved = {saved: parameters[name] for name, saved in saved_names.items()}
        renamed: dict[str, Any] = {"LR_Scheduler": _scheduler_state(state, where)}
        trained = [p for p in self.optimizer._parameter_list if not p.stop_gradient]
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


def _scheduler_state(state: dict, where: str) -> dict[str, Any]:
    found = state.get("LR_Scheduler")
    updates = found.get("last_epoch") if isinstance(found, dict) else None
    if type(updates) is not int or updates < 0:
        raise UserError(f"{where}: expected LR_Scheduler.last_epoch, a number >= 0")
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


def state_arrays(model: nn.Layer) -> dict[str, np.ndarray]:
    """The state dict as float32 (or its own wider type) arrays on the host."""
    return _to_arrays(model.state_dict())


def _to_arrays(node: Any) -> Any:
    if isinstance(node, paddle.Tensor):
        is_bfloat16 = "bfloat16" in str(node.dtype)
        return (node.astype("float32") if is_bfloat16 else node).numpy()
    if isinstance(node, Mapping):
        return {key: _to_arrays(value) for key, value in node.items()}
    return node


def _parameter_names(model: nn.Layer) -> dict[str, str]:
    return {name: parameter.name for name, parameter in model.named_parameters()}


def _file(stem: Path, suffix: str) -> Path:
    return stem.with_name(stem.name + suffix)


def _stem(path: str | Path) -> Path:
    path = Path(path)
    return path.with_suffix("") if path.suffix in SUFFIXES else path
