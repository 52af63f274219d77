"""Optimizers by PaddleClas's `Optimizer` section, on the parameters that train.

Weight decay is of two kinds. SGD, Momentum, Adam and most others add its gradient to the loss
gradient, after clipping (coupled); AdamW and Lamb decay the weights themselves. By default it holds
for all parameters, norms and biases too, as in the HarDNet author's recipe.

Parameters left out of the decay carry a regularizer of 0 instead of forming a parameter group of
their own: Paddle clips each group by itself, so groups would change the global norm.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import paddle
from paddle import nn
from paddle.optimizer import Optimizer
from paddle.regularizer import L1Decay, L2Decay

from ppcls.optimizer.schedule import Schedule
from ppcls.utils import schema
from ppcls.utils.errors import ConfigError
from ppcls.utils.registry import Registry

OPTIMIZERS: Registry = Registry("optimizer")

_NAMES = (
    *("SGD", "Momentum", "RMSProp", "Adagrad", "Adadelta", "Adam", "Adamax", "AdamW", "Lamb"),
    *("NAdam", "RAdam"),  # since Paddle 3.0
)
for _name in _NAMES:
    if hasattr(paddle.optimizer, _name):
        OPTIMIZERS.register(_name)(getattr(paddle.optimizer, _name))

# Arguments this module fills in, which a config may not name.
_OWN = {"learning_rate", "parameters", "grad_clip", "name", "weight_decay", "lamb_weight_decay"}
_OWN |= {"apply_decay_param_fun", "exclude_from_weight_decay_fn", "lr_ratio"}

_MULTI_TENSOR = ("Momentum", "Adam")  # which Paddle can update all at once

_DECOUPLED = ("AdamW", "Lamb")

_FRACTIONS = ("momentum", "rho", "beta1", "beta2")  # in [0, 1)


class _NoDecay(L2Decay):
    """Marks a parameter left out; another optimizer for the same model knows it by its type."""

    def __init__(self) -> None:
        super().__init__(0.0)


@dataclass(frozen=True, kw_only=True)
class Regularizer:
    """Coupled decay: L2 adds coeff * weight to the gradient, L1 adds coeff * sign(weight)."""

    name: Literal["L2", "L1"]
    coeff: float

    def __post_init__(self) -> None:
        if self.coeff < 0:
            raise ValueError(f"coeff: expected a number >= 0, got {self.coeff!r}")


@dataclass(frozen=True, kw_only=True)
class Common:
    """What all optimizers share; at most one kind of decay and one kind of clipping.

    clip_norm scales each gradient alone to at most this L2 norm, as PaddleClas does under that
    name; clip_norm_global scales all of them together.
    """

    regularizer: Regularizer | None = None
    weight_decay: float | None = None  # L2 coefficient; AdamW and Lamb: decay of the weights
    no_weight_decay_name: str | None = None  # parts of parameter names, separated by spaces
    one_dim_param_no_weight_decay: bool = False  # leave out norms and biases
    clip_norm_global: float | None = None
    clip_norm: float | None = None
    clip_value: float | None = None  # gradients are limited to [-clip_value, clip_value]

    def __post_init__(self) -> None:
        if self.regularizer is not None and self.weight_decay is not None:
            raise ValueError("weight_decay: expected either weight_decay or regularizer, got both")
        if self.weight_decay is not None and self.weight_decay < 0:
            raise ValueError(f"weight_decay: expected a number >= 0, got {self.weight_decay!r}")
        clips = {
            key: value
            for key, value in dataclasses.asdict(self).items()
            if key.startswith("clip_") and value is not None
        }
        for key, value in clips.items():
            if value <= 0:
                raise ValueError(f"{key}: expected a number > 0, got {value!r}")
        if len(clips) > 1:
            raise ValueError(f"{list(clips)[1]}: expected one kind of clipping, got {clips}")

    def grad_clip(self) -> Any:
        """Return Paddle's gradient clipper, or None."""
        if self.clip_norm_global is not None:
            return nn.ClipGradByGlobalNorm(self.clip_norm_global)
        if self.clip_norm is not None:
            return nn.ClipGradByNorm(self.clip_norm)
        return None if self.clip_value is None else nn.ClipGradByValue(self.clip_value)

    def excludes(self, name: str, parameter: paddle.Tensor) -> bool:
        """Whether the parameter called `name` in the model is left out of the decay."""
        parts = (self.no_weight_decay_name or "").split()
        one_dim = self.one_dim_param_no_weight_decay and len(parameter.shape) == 1
        return one_dim or any(part in name for part in parts)


def build_optimizer(section: Any, where: str, *, schedule: Schedule, model: nn.Layer) -> Optimizer:
    """Build the optimizer of a section like `{name: Momentum, momentum: 0.9, regularizer: ...}`.

    Its key `lr` is left to build_schedule. The optimizer follows `schedule.scheduler()` and takes
    the parameters of `model` whose stop_gradient is False. float16 and bfloat16 parameters are
    updated through a float32 copy where the optimizer can (`multi_precision`, on by default).
    `use_multi_tensor` updates all float32, float16 or bfloat16 tensors in one call (Momentum and
    Adam), with the same result. Raises ConfigError naming the key.
    """
    if not isinstance(section, Mapping) or "name" not in section:
        raise ConfigError(f"{where}: expected a mapping with a 'name', got {section!r}")
    name = section["name"]
    factory = OPTIMIZERS.get(name, f"{where}.name")
    if section.get("use_multi_tensor") and name not in _MULTI_TENSOR:
        raise ConfigError(
            f"{where}.use_multi_tensor: expected {' or '.join(_MULTI_TENSOR)}, of which Paddle "
            f"can update all tensors at once, got {name}"
        )
    common, arguments = _parse(factory, section, where)

    trainable = {n: p for n, p in model.named_parameters() if not p.stop_gradient}
    if not trainable:
        raise ConfigError(f"{where}: expected a model with parameters that train, got none")
    excluded = [p for n, p in trainable.items() if common.excludes(n, p)]
    if name in _DECOUPLED:
        arguments |= _decoupled(name, common, {p.name for p in excluded}, where)
        excluded = []
    else:
        arguments |= _coupled(common)
    for parameter in trainable.values():
        if isinstance(parameter.regularizer, _NoDecay):
            parameter.regularizer = None
    optimizer = factory(
        learning_rate=schedule.scheduler(),
        parameters=list(trainable.values()),
        grad_clip=common.grad_clip(),
        **arguments,
    )
    # Paddle reads these at the first update; set any earlier, it logs that they are set.
    for parameter in excluded:
        parameter.regularizer = _NoDecay()
    return optimizer


def _parse(factory: Any, section: Mapping, where: str) -> tuple[Common, dict[str, Any]]:
    """Split a section in what all optimizers share and what this one takes by its signature."""
    shared = {field.name for field in dataclasses.fields(Common)}
    signature = inspect.signature(factory).parameters.values()
    kinds = {p.name: type(p.default) for p in signature if p.name not in _OWN}
    schema.check_keys(section, {*kinds, *shared, "lr", "name"}, where)
    common = schema.parse_dataclass(Common, {k: section[k] for k in section if k in shared}, where)
    own = {k: v for k, v in section.items() if k in kinds}
    values = {key: schema.coerce(value, kinds[key], f"{where}.{key}") for key, value in own.items()}
    for key, value in values.items():
        if key in _FRACTIONS and not 0 <= value < 1:
            raise ConfigError(f"{where}.{key}: expected a number in [0, 1), got {value!r}")
        if key == "epsilon" and not value > 0:
            raise ConfigError(f"{where}.{key}: expected a number > 0, got {value!r}")
    if "multi_precision" in kinds:
        values.setdefault("multi_precision", True)
    return common, values


def _coupled(common: Common) -> dict[str, Any]:
    decay: Any = None
    if common.weight_decay is not None:
        decay = L2Decay(common.weight_decay)
    if common.regularizer is not None:
        kind = {"L1": L1Decay, "L2": L2Decay}[common.regularizer.name]
        decay = kind(common.regularizer.coeff)
    return {"weight_decay": decay}


def _decoupled(name: str, common: Common, excluded: set[str], where: str) -> dict[str, Any]:
    """AdamW and Lamb; without a weight_decay they take Paddle's default, 0.01."""
    if common.regularizer is not None:
        raise ConfigError(
            f"{where}.regularizer: expected 'weight_decay' instead, "
            f"since {name} decays the weights themselves, got {common.regularizer}"
        )
    # excluded: Paddle's own names of the parameters, such as conv2d_0.w_0.
    arguments: dict[str, Any]
    if name == "Lamb":
        arguments = {"exclude_from_weight_decay_fn": lambda parameter: parameter.name in excluded}
    else:
        arguments = {"apply_decay_param_fun": lambda own_name: own_name not in excluded}
    if common.weight_decay is not None:
        arguments["lamb_weight_decay" if name == "Lamb" else "weight_decay"] = common.weight_decay
    return arguments
