"""Networks by name."""

from __future__ import annotations

import fnmatch
import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any

import paddle
from paddle import nn

from ppcls.arch import zoo
from ppcls.arch.backbone import hardnet  # noqa: F401  registers the classifiers
from ppcls.arch.detection import ssd  # noqa: F401  registers the detectors
from ppcls.arch.registry import ARCHITECTURES, canonical_name, unknown_architecture
from ppcls.utils import distributed, schema
from ppcls.utils.errors import ConfigError

logger = logging.getLogger("ppcls")


def list_models(pattern: str = "*") -> list[str]:
    """Return the names of this project's networks that match a shell pattern, in any case.

    The classifiers are "HarDNet*", the detectors "SSD_*".
    """
    return [n for n in ARCHITECTURES.names() if fnmatch.fnmatch(n.lower(), pattern.lower())]


def find_builder(name: str, where: str = "Arch.name") -> Callable[..., nn.Layer]:
    """Return the builder called `name`: ours in any spelling, else PaddleClas's if installed.

    Raises ConfigError with the closest names when nobody knows it.
    """
    if not isinstance(name, str):
        raise ConfigError(f"{where}: expected the name of an architecture, got {name!r}")
    own = canonical_name(name)
    if own:
        return ARCHITECTURES.get(own)
    known = zoo.builders() if zoo.is_installed() else {}
    if name in known:
        return known[name]
    raise unknown_architecture(name, [*ARCHITECTURES, *known], where)


def _build(name: str, params: Mapping[str, Any], where: str) -> nn.Layer:
    builder = find_builder(name, f"{where}.name")
    model = schema.build(builder, params, where)
    if canonical_name(name) is None:
        _check_zoo_keys(builder, model, params, where)
    return model


def _check_zoo_keys(builder: Callable, model: nn.Layer, params: Mapping, where: str) -> None:
    """Refuse keys nobody reads: the zoo passes `**kwargs` on to layers that ignore them."""
    takers = [builder, *(cls.__init__ for cls in type(model).__mro__ if cls is not object)]
    known = {name for taker in takers for name in inspect.signature(taker).parameters}
    schema.check_keys(params, known - {"self", "args", "kwargs"}, where)


def create_model(name: str, **kwargs: Any) -> nn.Layer:
    """Build the network called `name`, e.g. `create_model("HarDNet68", class_num=10)`."""
    return _build(name, kwargs, "create_model")


def build_model(config: Mapping[str, Any], where: str = "Arch") -> nn.Layer:
    """Build the network of a configuration `{"Arch": {"name": ..., "class_num": ...}, ...}`.

    Keys of `Arch` are the builder's arguments; `use_sync_bn: True` computes batch norm over all
    processes. Raises ConfigError for an unknown name, key or value. `where` is what errors call
    the section.
    """
    section = config.get("Arch")
    if not isinstance(section, Mapping) or "name" not in section:
        raise ConfigError(f"{where}: expected a mapping with a 'name', got {section!r}")
    params = {k: v for k, v in section.items() if k not in ("name", "use_sync_bn")}
    use_sync_bn = schema.coerce(section.get("use_sync_bn", False), bool, f"{where}.use_sync_bn")
    model = _build(section["name"], params, where)
    return _synchronise(model, where) if use_sync_bn else model


def _synchronise(model: nn.Layer, where: str) -> nn.Layer:
    """Convert batch norm to synchronised batch norm; the state-dict keys stay.

    One process on a CPU keeps batch norm, which then is the same, and the log says so. Raises
    ConfigError for several, where it is not.
    """
    if not paddle.device.get_device().startswith("cpu"):
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if distributed.world_size() > 1:
        raise ConfigError(
            f"{where}.use_sync_bn: expected False for several processes on CPUs, where Paddle has "
            "no synchronised batch norm, got True"
        )
    logger.info("%s.use_sync_bn: one process on a CPU, batch norm sees every image already", where)
    return model
