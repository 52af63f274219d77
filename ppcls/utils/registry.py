"""One small registry per kind of component: transforms, losses, metrics, architectures..."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from ppcls.utils.errors import ConfigError, did_you_mean

T = TypeVar("T", bound=Callable)


def fold_name(name: str) -> str:
    """Return what all spellings of a name share: `hardnet_39_ds`, `HarDNet39ds`..."""
    return name.lower().replace("_", "").replace("-", "")


class Registry(Generic[T]):
    """Names to factories. A lookup never leaves the registry.

    `kind` is the word errors use: `Registry("Arch")` says "unknown Arch 'HarDNet86'".
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str | None = None) -> Callable[[T], T]:
        """Decorator. Registers under `name`, or under the function's or class's own name.

        Raises ValueError when the name is taken, naming both modules.
        """

        def decorate(factory: T) -> T:
            key = name or factory.__name__
            if key in self._entries:
                raise ValueError(
                    f"{self.kind} {key!r} is registered twice: by "
                    f"{self._entries[key].__module__} and {factory.__module__}"
                )
            self._entries[key] = factory
            return factory

        return decorate

    def get(self, name: str, where: str = "") -> T:
        """Return the factory called `name`, or raise ConfigError with the closest names."""
        if not isinstance(name, str) or name not in self._entries:
            prefix = f"{where}: " if where else ""
            hint = did_you_mean(str(name), self._entries) or ";"
            raise ConfigError(
                f"{prefix}unknown {self.kind} {name!r}{hint} known: {', '.join(self.names())}"
            )
        return self._entries[name]

    def names(self) -> list[str]:
        return sorted(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())
