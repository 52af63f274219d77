"""The registry of architectures and the spellings it understands."""

from __future__ import annotations

from ppcls.utils.errors import ConfigError, did_you_mean
from ppcls.utils.registry import Registry, fold_name

ARCHITECTURES: Registry = Registry("Arch")


def canonical_name(name: str) -> str | None:
    """Return the registered name for any spelling of it (`hardnet_39_ds`), or None."""
    by_folded = {fold_name(known): known for known in ARCHITECTURES}
    return by_folded.get(fold_name(str(name)))


def unknown_architecture(name: str, known: list[str], where: str) -> ConfigError:
    """The error for a name nobody knows; `known` are all names that could have been meant."""
    hint = did_you_mean(name, known) or ";"
    return ConfigError(
        f"{where}: unknown Arch {name!r}{hint} known: {', '.join(ARCHITECTURES.names())}"
        + (
            ""
            if len(known) > len(ARCHITECTURES.names())
            else " (PaddleClas's zoo needs the extra 'zoo', which is not installed)"
        )
    )
