"""Training a part of a network while the rest stays as it is, for some epochs or all of them.

A frozen part has no gradients, its batch norms keep their running statistics and normalise with
them, and its dropout is off: it computes what it computes in an evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paddle import nn
from paddle.optimizer import Optimizer

from ppcls.engine.config import Recipe
from ppcls.engine.optimizer_state import take_state
from ppcls.engine.parts import parts_of
from ppcls.utils.errors import ConfigError, did_you_mean


class Freezing:
    """Keeps `layers` frozen before epoch number `until`, counted from 0, or always (None).

    They are frozen at once. `optimizer` has the parameters of all layers.
    """

    def __init__(self, layers: Sequence[nn.Layer], until: int | None, optimizer: Optimizer) -> None:
        self.layers = list(layers)
        self.until = until
        self.optimizer = optimizer
        # Paddle's batch norm has its statistics among the parameters: they never train.
        found = (p for layer in self.layers for p in layer.parameters())
        self._parameters: list[Any] = [p for p in found if not p.stop_gradient]
        self._is_frozen = bool(self.layers)
        self._stop_gradients(True)

    def release(self, epoch: int) -> bool:
        """Let the layers train if it is time in `epoch`; return whether this has changed them."""
        if not self._is_frozen or self.until is None or epoch < self.until:
            return False
        take_state(self.optimizer)
        self._is_frozen = False
        self._stop_gradients(False)
        return True

    def _stop_gradients(self, value: bool) -> None:
        for parameter in self._parameters:
            parameter.stop_gradient = value

    def keep_mode(self) -> None:
        """Undo for the frozen layers what `train()` did to the network."""
        if self._is_frozen:
            for layer in self.layers:
                layer.eval()


def build_freezing(recipe: Recipe, model: nn.Layer, optimizer: Optimizer) -> Freezing:
    """Freeze what `Global.freeze` names, until `Global.unfreeze_epoch`.

    Raises ConfigError for an unknown part, or when nothing is left that trains.
    """
    names = recipe.Global.freeze or []
    parts = parts_of(model)
    where = "Global.freeze"
    if names and not parts:
        raise ConfigError(
            f"{where}: expected a HarDNet, whose parts are known, got {recipe.Arch['name']}"
        )
    if names and recipe.Optimizer.get("use_multi_tensor"):
        raise ConfigError(
            f"{where}: expected none with Optimizer.use_multi_tensor, which updates all "
            f"tensors, got {', '.join(names)}"
        )
    chosen: dict[str, None] = {}
    for name in names:
        chosen |= dict.fromkeys(_members(name, list(parts), where))
    if names and len(chosen) == len(parts):
        raise ConfigError(f"{where}: expected a part that trains, got {', '.join(names)}: all")
    layers = [layer for name in chosen for layer in parts[name]]
    return Freezing(layers, recipe.Global.unfreeze_epoch, optimizer)


def _members(name: str, parts: Sequence[str], where: str) -> list[str]:
    """The parts a user means by a part's name or by `backbone`, all but the head."""
    if name == "backbone":
        return [part for part in parts if part != "head"]
    if name not in parts:
        known = ["backbone", *parts]
        hint = did_you_mean(name, known)
        raise ConfigError(f"{where}: unknown part {name!r}{hint}; known: {', '.join(known)}")
    return [name]
