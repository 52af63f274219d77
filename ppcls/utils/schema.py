"""Typed reading of configuration values: by declared type, never by guess.

`coerce` turns a YAML value into an annotated type, `parse_dataclass` a mapping into a dataclass,
and `build` calls a factory with parameters checked against its signature. All three raise
ConfigError with the dotted path of the value, what was expected, and what was found.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, TypeVar, Union

from ppcls.utils.errors import ConfigError, did_you_mean
from ppcls.utils.registry import Registry

if typing.TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")
D = TypeVar("D", bound="DataclassInstance")

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_FRACTION = re.compile(rf"\s*({_NUMBER})\s*(?:/\s*({_NUMBER})\s*)?")


def parse_number(text: str) -> float | None:
    """Read `1e-3`, `.5` or a quotient such as `1.0/255.0`; None when `text` is something else."""
    match = _FRACTION.fullmatch(text)
    if match is None:
        return None
    numerator, denominator = float(match[1]), float(match[2] or 1)
    return numerator / denominator if denominator else None


def describe(annotation: Any) -> str:
    """Words for a type, as an error prints it."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is type(None):
        return "null"
    if origin is Literal:
        return ("one of " if len(args) > 1 else "") + ", ".join(repr(arg) for arg in args)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(arg) for arg in args)
    if origin in (list, tuple, dict) or annotation in (list, tuple, dict):
        inner = [arg for arg in args if arg not in (Ellipsis, Any)]
        base = "a mapping" if (origin or annotation) is dict else "a list"
        if origin is tuple and Ellipsis not in args:
            return f"a list of {len(args)} ({', '.join(describe(arg) for arg in args)})"
        is_plain = not inner or (base == "a mapping" and Any in args)
        return base if is_plain else f"{base} of {describe(inner[-1])}"
    words = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
    return words.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _mismatch(value: Any, annotation: Any, where: str) -> ConfigError:
    return ConfigError(f"{where}: expected {describe(annotation)}, got {value!r}")


def coerce(value: Any, annotation: Any, where: str) -> Any:
    """Return `value` as `annotation` says, or raise ConfigError naming `where`.

    Numbers may be text as YAML leaves them (`1e-3`) or quotients (`1.0/255.0`). Booleans are never
    numbers, and text is never split into lists.
    """
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any or annotation is inspect.Parameter.empty:
        return value
    if origin in (Union, types.UnionType):
        return _coerce_union(value, args, annotation, where)
    if origin is Literal:
        if any(value == arg and type(value) is type(arg) for arg in args):
            return value
        raise _mismatch(value, annotation, where)
    if annotation is type(None):
        if value is None:
            return None
        raise _mismatch(value, annotation, where)
    if origin in (list, tuple) or annotation in (list, tuple):
        return _coerce_sequence(value, annotation, where)
    if origin in (dict, Mapping) or annotation in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise _mismatch(value, annotation, where)
        inner = args[1] if args else Any
        return {key: coerce(item, inner, f"{where}.{key}") for key, item in value.items()}
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return parse_dataclass(annotation, value, where)
    return _coerce_scalar(value, annotation, where)


def _coerce_union(value: Any, options: tuple, annotation: Any, where: str) -> Any:
    if value is None and type(None) in options:
        return None
    # The exact type wins over a conversion: `int | float` keeps 3 an int, `str | float` keeps text.
    for option in options:
        if isinstance(option, type) and type(value) is option:
            return value
    errors = []
    for option in options:
        if option is type(None):
            continue
        try:
            return coerce(value, option, where)
        except ConfigError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    raise _mismatch(value, annotation, where)


def _coerce_sequence(value: Any, annotation: Any, where: str) -> list | tuple:
    if not isinstance(value, (list, tuple)):
        raise _mismatch(value, annotation, where)
    origin, args = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
    if origin is tuple and args and Ellipsis not in args:
        if len(value) != len(args):
            raise _mismatch(value, annotation, where)
        kinds = args
    else:
        kinds = (args[0] if args else Any,) * len(value)
    return origin(
        coerce(item, kind, f"{where}[{i}]")
        for i, (item, kind) in enumerate(zip(value, kinds, strict=True))
    )


def _coerce_scalar(value: Any, annotation: Any, where: str) -> Any:
    if annotation in (int, float):
        number = parse_number(value) if isinstance(value, str) else value
        if isinstance(number, (int, float)) and not isinstance(number, bool):
            # The bound comes first: Python cannot make a float of every integer.
            if abs(number) <= sys.float_info.max and (annotation is float or number == int(number)):
                return annotation(number)
    elif isinstance(annotation, type) and isinstance(value, annotation):
        return value
    raise _mismatch(value, annotation, where)


@functools.cache
def _hints(owner: Any) -> dict[str, Any]:
    return typing.get_type_hints(owner)


def at_least(low: int, **values: int | None) -> None:
    """Raise ValueError, as a constructor should, for a value below `low`; None is let through."""
    for name, value in values.items():
        if value is not None and value < low:
            raise ValueError(f"{name}: expected a number >= {low}, got {value!r}")


def check_keys(found: Collection[str], known: Collection[str], where: str) -> None:
    """Raise ConfigError for the first key of `found` that is not in `known`."""
    for key in found:
        if key not in known:
            hint = did_you_mean(str(key), known) or f"; known: {', '.join(sorted(known))}"
            raise ConfigError(f"{where}: unknown key {key!r}{hint}")


def parse_dataclass(cls: type[D], mapping: Any, where: str) -> D:
    """Build dataclass `cls` from a mapping; absent keys take the field's default.

    A ValueError of `__post_init__` becomes a ConfigError that names `where`.
    """
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{where}: expected a mapping, got {mapping!r}")
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    check_keys(mapping, fields, where)
    hints = _hints(cls)
    values = {key: coerce(value, hints[key], f"{where}.{key}") for key, value in mapping.items()}
    missing = [
        name
        for name, field in fields.items()
        if name not in values
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{where}: missing key {missing[0]!r}")
    try:
        return cls(**values)
    except ValueError as error:
        raise ConfigError(f"{where}.{error}") from error


def build(factory: Callable[..., T], params: Mapping | None, where: str, **extra: Any) -> T:
    """Call `factory` with `params` from a config, checked and coerced against its annotations.

    `extra` are arguments the program supplies; a config may not name them, and those the factory
    does not take are left out. A factory that takes `**kwargs` accepts any key. A ValueError of the
    factory becomes a ConfigError: let its text start with the parameter's name.
    """
    params = {} if params is None else params
    if not isinstance(params, Mapping):
        raise ConfigError(f"{where}: expected a mapping of parameters, got {params!r}")
    signature = inspect.signature(factory)
    target = factory.__init__ if inspect.isclass(factory) else factory
    hints = _hints(target)
    kinds = inspect.Parameter
    named = {
        name: parameter
        for name, parameter in signature.parameters.items()
        if parameter.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)
    }
    is_open = any(p.kind is kinds.VAR_KEYWORD for p in signature.parameters.values())
    if not is_open:
        check_keys(params, [name for name in named if name not in extra], where)
    values = {
        key: coerce(value, hints.get(key, Any) if key in named else Any, f"{where}.{key}")
        for key, value in params.items()
    }
    values |= {key: value for key, value in extra.items() if key in named}
    for name, parameter in named.items():
        if parameter.default is kinds.empty and name not in values:
            raise ConfigError(f"{where}: missing key {name!r}")
    try:
        return factory(**values)
    except ValueError as error:
        # Our own factories begin with the parameter's name; those of others may say anything.
        joint = "." if str(error).partition(":")[0] in named else ": "
        raise ConfigError(f"{where}{joint}{error}") from error
    except TypeError as error:
        if not is_open:
            raise
        raise ConfigError(f"{where}: {error}") from error  # most likely a key nobody takes


def split_entry(entry: Any, where: str) -> tuple[str, dict]:
    """Read a list entry of PaddleClas's YAML: `Name`, `{Name: null}` or `{Name: {key: value}}`."""
    if isinstance(entry, str):
        return entry, {}
    if isinstance(entry, Mapping) and len(entry) == 1:
        name, params = next(iter(entry.items()))
        return str(name), {} if params is None else params
    raise ConfigError(f"{where}: expected 'Name' or 'Name: {{parameters}}', got {entry!r}")


def build_entry(registry: Registry, entry: Any, where: str, **extra: Any) -> Any:
    """Build one `Name: {parameters}` list entry from `registry` (see `build` for `extra`)."""
    name, params = split_entry(entry, where)
    return build(registry.get(name, where), params, f"{where}.{name}", **extra)


def build_named(registry: Registry, section: Any, where: str, **extra: Any) -> Any:
    """Build a section `{name: Name, key: value...}` from `registry` (see `build` for `extra`)."""
    if not isinstance(section, Mapping) or "name" not in section:
        raise ConfigError(f"{where}: expected a mapping with a 'name', got {section!r}")
    params = {key: value for key, value in section.items() if key != "name"}
    return build(registry.get(section["name"], f"{where}.name"), params, where, **extra)
