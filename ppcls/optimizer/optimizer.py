"""Optimizers by PaddleClas's `Optimizer` section, on the parameters that train.

Weight decay is of two kinds. SGD, Momentum, Adam and most others add its gradient to the loss
gradient, after clipping (coupled); AdamW and Lamb decay the weights themselves. By default it holds
for all parameters, norms and biases too, as in the HarDNet author's recipe.

Parameters left out of the decay carry a regularizer of 0, and those with a learning rate of their
own carry its factor, instead of forming parameter groups: Paddle clips each group by itself, so
groups would change the global norm.

Paddle's Lamb is the paper's (You et al., "Large Batch Optimization for Deep Learning", 2020) with
phi(z) = z, bias correction, and the decay inside the trust ratio ||w|| / ||update||, which is 1
where either norm is 0. What differs: a parameter left out of the decay, or a decay of 0, has no
trust ratio and is updated as by Adam, as in NVIDIA's LAMB, unless `always_adapt` is true.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Mapping, Sequence
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

_HEAD = "head"  # the last part of a network

_FRACTIONS = ("momentum", "rho", "beta1", "beta2")  # in [0, 1)


class _NoDecay(L2Decay):
    """Marks a parameter left out; another optimizer for the same model knows it by its type."""

    def __init__(self) -> None:
        super().__init__(0.0)


class _Factor(float):
    """Of a learning rate, times the network's `own`; another optimizer for the same model knows it
    by its type."""

    own: float = 1.0


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

    A part of the network (stem, stage1, ..., head) that has n parts behind it trains at
    layer_decay ** n times the learning rate, and the head at head_lr_mult times it.
    """

    regularizer: Regularizer | None = None
    weight_decay: float | None = None  # L2 coefficient; AdamW and Lamb: decay of the weights
    no_weight_decay_name: str | None = None  # parts of parameter names, separated by spaces
    one_dim_param_no_weight_decay: bool = False  # leave out norms and biases
    clip_norm_global: float | None = None
    clip_norm: float | None = None
    clip_value: float | None = None  # gradients are limited to [-clip_value, clip_value]
    layer_decay: float = 1.0
    head_lr_mult: float = 1.0

    def __post_init__(self) -> None:
        if self.regularizer is not None and self.weight_decay is not None:
            raise ValueError("weight_decay: expected either weight_decay or regularizer, got both")
        if self.weight_decay is not None and self.weight_decay < 0:
            raise ValueError(f"weight_decay: expected a number >= 0, got {self.weight_decay!r}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay: expected a number in (0, 1], got {self.layer_decay!r}")
        if not 0 < self.head_lr_mult < math.inf:
            raise ValueError(f"head_lr_mult: expected a number > 0, got {self.head_lr_mult!r}")
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

    def check_names(self, names: Sequence[str], where: str) -> None:
        """Raise ConfigError for a part in `no_weight_decay_name` that no parameter has."""
        for part in (self.no_weight_decay_name or "").split():
            if not any(part in name for name in names):
                raise ConfigError(
                    f"{where}.no_weight_decay_name: expected parts of the names of parameters, "
                    f"such as {names[-1]!r}, but none contains {part!r}"
                )

    def lr_factors(self, parts: Sequence[str]) -> dict[str, float]:
        """What the learning rate is multiplied by in each of `parts`, the head being the last."""
        last = len(parts) - 1
        factors = {part: self.layer_decay ** (last - depth) for depth, part in enumerate(parts)}
        return factors | {_HEAD: self.head_lr_mult}


def build_optimizer(
    section: Any,
    where: str,
    *,
    schedule: Schedule,
    model: nn.Layer,
    parts: Mapping[str, Sequence[str]] | None = None,
) -> Optimizer:
    """Build the optimizer of a section like `{name: Momentum, momentum: 0.9, regularizer: ...}`.

    Its key `lr` is left to build_schedule. The optimizer follows `schedule.scheduler()` and takes
    the parameters of `model` whose stop_gradient is False. float16 and bfloat16 parameters are
    updated through a float32 copy where the optimizer can (`multi_precision`, on by default).
    `use_multi_tensor` updates all float32, float16 or bfloat16 tensors in one call (Momentum and
    Adam), with the same result. Raises ConfigError naming the key.

    parts: the names of the parameters in each part of the network, from the input to the head, for
    `layer_decay` and `head_lr_mult`.
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
    common.check_names([n for n, _ in model.named_parameters()], where)
    excluded = [p for n, p in trainable.items() if common.excludes(n, p)]
    if name in _DECOUPLED:
        arguments |= _decoupled(name, common, {p.name for p in excluded}, where)
        excluded = []
    else:
        arguments |= _coupled(common)
    for parameter in trainable.values():
        _forget(parameter)
    optimizer = factory(
        learning_rate=schedule.scheduler(),
        parameters=list(trainable.values()),
        grad_clip=common.grad_clip(),
        **arguments,
    )
    # Paddle reads these at the first update; set any earlier, it logs that they are set.
    for parameter in excluded:
        parameter.regularizer = _NoDecay()
    factors = _parameter_factors(common, parts or {}, where)
    for parameter_name in factors.keys() & trainable.keys():
        _scale_rate(trainable[parameter_name], factors[parameter_name])
    return optimizer


def _parameter_factors(
    common: Common, parts: Mapping[str, Sequence[str]], where: str
) -> dict[str, float]:
    """The factors of the parameters whose learning rate is not the schedule's."""
    keys = [key for key in ("layer_decay", "head_lr_mult") if getattr(common, key) != 1]
    if not keys:
        return {}
    if _HEAD not in parts:
        raise ConfigError(
            f"{where}.{keys[0]}: expected a HarDNet, whose stem, stages and head are known, "
            f"got {getattr(common, keys[0])} for another network"
        )
    factors = common.lr_factors(list(parts))
    return {name: factors[part] for part, names in parts.items() for name in names}


def _scale_rate(parameter: Any, factor: float) -> None:
    own = parameter.optimize_attr["learning_rate"]
    scaled = _Factor(own * factor)
    scaled.own = own
    parameter.optimize_attr["learning_rate"] = scaled


def _forget(parameter: Any) -> None:
    """Undo what an earlier optimizer of this module wrote on a parameter."""
    if isinstance(parameter.regularizer, _NoDecay):
        parameter.regularizer = None
    rate = parameter.optimize_attr["learning_rate"]
    if isinstance(rate, _Factor):
        parameter.optimize_attr["learning_rate"] = rate.own


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
