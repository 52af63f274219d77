"""Reading a recipe: YAML, `_BASE_` files and `-o` overrides, into one plain mapping.

Nothing here knows which keys exist; `ppcls.engine.config` gives them types. The older schema of
PaddleClas release/2.0 is translated on the way (`ppcls.utils.legacy_config`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ppcls.utils import legacy_config, schema
from ppcls.utils.errors import ConfigError, did_you_mean

BASE_KEY = "_BASE_"
# What PyYAML lets out of its constructors for `!!int x`, `!!bool x`, 2001-99-99 and the like.
_BAD_VALUE = (ValueError, LookupError, AttributeError, TypeError)
_MOST_NODES = 1_000_000  # values in a file; ImageNet-21k has 22,000 names


class _Loader(yaml.SafeLoader):
    """YAML 1.1 without code, and with an error for a key written twice."""


def _mapping_without_duplicates(loader: _Loader, node: yaml.MappingNode) -> dict:
    seen = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":  # `<<: *base`, whose keys may be overridden
            continue
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, (str, int)):
            raise yaml.constructor.ConstructorError(
                None, None, f"expected text as a key, got {key!r}", key_node.start_mark
            )
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key!r} is written twice", key_node.start_mark
            )
        seen.add(key)
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_without_duplicates)


def _parse_yaml(text: str, where: str) -> Any:
    try:
        parsed = yaml.load(text, _Loader)  # a SafeLoader
    except RecursionError as error:
        raise ConfigError(f"{where}: expected YAML, but it is nested too deeply") from error
    except (yaml.YAMLError, *_BAD_VALUE) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{where}{line}: expected YAML, but {problem}") from error
    _check_extent(parsed, where)
    return parsed


def _check_extent(parsed: Any, where: str) -> None:
    """Refuse aliases of aliases, a few lines of which unfold to billions of values."""
    nodes, count = [parsed], 0
    while nodes:
        node = nodes.pop()
        count += 1
        if count > _MOST_NODES:
            raise ConfigError(f"{where}: expected at most {_MOST_NODES:,} values, found more")
        if isinstance(node, (list, tuple, set)):
            nodes += node
        elif isinstance(node, dict):
            nodes += node.values()


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read one recipe with all its `_BASE_` files merged under it.

    `_BASE_` is a path or a list of paths relative to the file that names it; later ones win. A
    section merges key by key, except that a section with another `name` replaces the base's; lists
    replace lists. Raises ConfigError for a missing or malformed file or a circle of bases.
    """
    return _read(Path(path), ())


def read_mapping(path: Path) -> dict[str, Any]:
    """Read one YAML file that holds sections, as it stands.

    Raises ConfigError for a missing or malformed file, and for one that unfolds to very much.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such config file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: expected a readable text file, got {error}") from error
    mapping = _parse_yaml(text, str(path))
    if not isinstance(mapping, dict):
        raise ConfigError(f"{path}: expected sections such as Global and Arch, got {mapping!r}")
    return mapping


def _read(path: Path, readers: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in readers:
        raise ConfigError(f"{path}: expected {BASE_KEY} files without a circle, found one")
    mapping = read_mapping(path)
    bases = mapping.pop(BASE_KEY, None) or []
    bases = [bases] if isinstance(bases, str) else bases
    merged: dict[str, Any] = {}
    for base in schema.coerce(bases, list[str], f"{path}: {BASE_KEY}"):
        merged = merge(merged, _read(path.parent / base, (*readers, path.resolve())))
    return merge(merged, mapping)


def merge(base: Any, over: Any) -> Any:
    """Return `over` laid on `base`; see `read_yaml` for the rules. Neither is changed."""
    if not (isinstance(base, Mapping) and isinstance(over, Mapping)):
        return copy.deepcopy(over)
    if "name" in base and "name" in over and base["name"] != over["name"]:
        return copy.deepcopy(dict(over))
    merged = copy.deepcopy(dict(base))
    for key, value in over.items():
        merged[key] = merge(merged[key], value) if key in merged else copy.deepcopy(value)
    return merged


def parse_override(text: str) -> tuple[list[str], Any]:
    """Split `A.b.0.c=value` into its path and its value, a YAML scalar or list."""
    key, equals, value = text.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise ConfigError(f"-o {text}: expected KEY=VALUE, such as Global.epochs=1")
    parsed = _parse_yaml(value, f"-o {text}") if value.strip() else None
    if isinstance(parsed, Mapping):
        raise ConfigError(f"-o {text}: expected a scalar or a list as the value, got a mapping")
    return path, parsed


def apply_override(mapping: dict[str, Any], text: str) -> None:
    """Set one value of `mapping` in place. Raises ConfigError for a path that leads nowhere.

    A key that is not there yet is created: whether it may exist is for the types to say.
    """
    path, value = parse_override(text)
    node: Any = mapping
    for depth, key in enumerate(path):
        where = f"-o {text}: {'.'.join(path[:depth]) or 'the recipe'}"
        is_last = depth == len(path) - 1
        if isinstance(node, list):
            index = _index(node, key, where)
            node[index] = value if is_last else _child(node[index])
            node = node[index]
        elif isinstance(node, dict):
            key = _spelling(node, key)
            node[key] = value if is_last else _child(node.get(key))
            node = node[key]
        else:
            raise ConfigError(f"{where}: expected a section, found {node!r}")


def _child(node: Any) -> Any:
    return {} if node is None else node


def _spelling(node: dict, key: str) -> Any:
    """YAML may have read a key as a number."""
    return int(key) if key not in node and key.isdecimal() and int(key) in node else key


def _index(node: list, key: str, where: str) -> int:
    if key.isdecimal() and int(key) < len(node):
        return int(key)
    names = [next(iter(item)) if isinstance(item, dict) and item else item for item in node]
    known = ", ".join(f"{i} ({name})" for i, name in enumerate(names))
    raise ConfigError(f"{where}: expected one of {known}, got {key!r}")


def load(
    path: str | Path, overrides: Sequence[str] = (), world_size: int = 1
) -> tuple[dict[str, Any], list[str]]:
    """Read a recipe, apply overrides, translate it if it is of the release/2.0 schema.

    Overrides of a release/2.0 recipe may use its own keys (`TRAIN.batch_size=64`) or today's.
    Returns the mapping in today's schema and the lines that tell the translation.
    """
    mapping = read_yaml(path)
    lines: list[str] = []
    if legacy_config.is_legacy(mapping):
        own = [text for text in overrides if legacy_config.is_legacy_key(text.split("=")[0])]
        for text in own:
            apply_override(mapping, text)
        mapping, lines = legacy_config.translate(mapping, str(path), world_size)
        overrides = [text for text in overrides if text not in own]
    for text in overrides:
        _check_section(mapping, text)
        apply_override(mapping, text)
    return mapping, lines


def _check_section(mapping: Mapping, text: str) -> None:
    """A first key in another case, or of the other schema, deserves the better answer early."""
    section = parse_override(text)[0][0]
    if section not in mapping and section not in legacy_config.SECTIONS:
        hint = did_you_mean(section, [*mapping, *legacy_config.SECTIONS])
        known = ", ".join(legacy_config.SECTIONS)
        raise ConfigError(f"-o {text}: unknown section {section!r}{hint or ';'} known: {known}")
