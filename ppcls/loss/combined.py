"""The weighted sum of losses a `Loss.Train` or `Loss.Eval` section asks for."""

from __future__ import annotations

from typing import Any

import paddle
from paddle import Tensor, nn

from ppcls.utils import schema
from ppcls.utils.errors import ConfigError
from ppcls.utils.registry import Registry

# Name to `nn.Layer` class. `forward(logits, label)` returns a scalar, and the attribute `reduction`
# says whether that is the "mean" or the "sum" over the samples. The labels of mixed images, [N, C]
# floating, go to a loss with the attribute `takes_soft_labels = True` only. A loss with
# `needs_teacher = True` gets a teacher's logits in place of labels.
LOSSES: Registry = Registry("loss")


class CombinedLoss(nn.Layer):
    """Several losses on the same logits and labels, and their weighted sum.

    losses: (name, layer, weight), names distinct. As with several losses in PaddleClas, each entry
    of the result carries its weight, so that the entries add up to "loss"; unlike there, the weight
    of a single loss counts too.
    """

    def __init__(self, losses: list[tuple[str, nn.Layer, float]]) -> None:
        super().__init__()
        self.names = [name for name, _, _ in losses]
        self.weights = [weight for _, _, weight in losses]
        self.losses = nn.LayerList([layer for _, layer, _ in losses])

    def without_soft_labels(self) -> list[str]:
        """Names of the losses that take whole-number labels only."""
        return [
            name
            for name, layer in zip(self.names, self.losses, strict=True)
            if not getattr(layer, "takes_soft_labels", False)
        ]

    def with_teacher(self) -> list[str]:
        """Names of the losses that compare with a teacher."""
        return [
            name
            for name, layer in zip(self.names, self.losses, strict=True)
            if _needs_teacher(layer)
        ]

    def forward(
        self, logits: Tensor, label: Tensor, taught: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return one weighted scalar per loss, in the order of the config, then their sum "loss".

        logits: [N, C]. label: whatever the losses take, for CELoss [N] or [N, 1] integer or [N, C].
        taught: [N, C], a teacher's logits, for the losses `with_teacher`.
        """
        return _with_total(
            {
                name: layer(logits, taught if _needs_teacher(layer) else label) * weight
                for name, layer, weight in zip(self.names, self.losses, self.weights, strict=True)
            }
        )

    def sums(self, logits: Tensor, label: Tensor) -> dict[str, Tensor]:
        """Return the same entries summed over the N samples, to be added up and divided once.

        A mean is multiplied by N, which returns the sum to within one rounding (1e-7 relative).
        """
        count = logits.shape[0]
        entries = self.forward(logits, label)
        return _with_total(
            {
                name: entries[name] * count if layer.reduction == "mean" else entries[name]
                for name, layer in zip(self.names, self.losses, strict=True)
            }
        )


def _needs_teacher(layer: nn.Layer) -> bool:
    return getattr(layer, "needs_teacher", False)


def _with_total(entries: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**entries, "loss": paddle.add_n(list(entries.values()))}


def build_loss(entries: Any, where: str) -> CombinedLoss:
    """Build PaddleClas's list of losses, `[{CELoss: {weight: 1.0, epsilon: 0.1}}]`.

    `weight` belongs to every loss and is 1 when absent. Raises ConfigError naming the entry, such
    as "Loss.Train[0].CELoss.epsilon: expected a number in [0, 1), got 3".
    """
    if not isinstance(entries, (list, tuple)) or not entries:
        raise ConfigError(f"{where}: expected a list of losses, got {entries!r}")
    losses: list[tuple[str, nn.Layer, float]] = []
    for i, entry in enumerate(entries):
        name, layer, weight = _build_one(entry, f"{where}[{i}]")
        if name in [known for known, _, _ in losses]:
            raise ConfigError(f"{where}[{i}]: expected each loss once, got {name!r} again")
        losses.append((name, layer, weight))
    return CombinedLoss(losses)


def _build_one(entry: Any, where: str) -> tuple[str, nn.Layer, float]:
    name, params = schema.split_entry(entry, where)
    factory = LOSSES.get(name, where)
    if not isinstance(params, dict):
        raise ConfigError(f"{where}.{name}: expected a mapping of parameters, got {params!r}")
    weight = schema.coerce(params.get("weight", 1.0), float, f"{where}.{name}.weight")
    if weight < 0:
        raise ConfigError(f"{where}.{name}.weight: expected a number >= 0, got {weight!r}")
    own = {key: value for key, value in params.items() if key != "weight"}
    layer = schema.build(factory, own, f"{where}.{name}")
    if not isinstance(getattr(layer, "reduction", None), str):
        raise ConfigError(
            f"{where}: expected a loss of logits and labels, got {name}, a detector's "
            "(Global.task: detection)"
        )
    return name, layer, weight
