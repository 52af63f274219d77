"""What the service asks of whatever computes: `ppcls.deploy.Predictor`, or a stand-in."""

from __future__ import annotations

from typing import Any, Protocol

from ppcls.deploy.package import Manifest


class Engine(Protocol):
    """A network with its transforms. Every method may be called from several threads at once."""

    manifest: Manifest

    @property
    def streams(self) -> int:
        """How many calls of `run` at a time keep the machine busy."""
        ...

    def metadata(self) -> dict[str, Any]:
        """What /metadata says of the network: values JSON can hold."""
        ...

    def prepare(self, image: bytes, name: str) -> Any:
        """Decode and transform an image file. Raises DataError, which names it, for one that
        cannot be used."""
        ...

    def run(self, batch: list[Any]) -> list[dict[str, Any]]:
        """Compute what `prepare` gave, one result per image, in order."""
        ...

    def warm_up(self, *batch_sizes: int) -> None:
        """Compute something in batches of each size: the first one of a size takes longer."""
        ...
