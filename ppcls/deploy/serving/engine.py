"""What the service asks of whatever computes: `ppcls.deploy.Predictor`, or a stand-in."""

from __future__ import annotations

from typing import Any, Protocol

from ppcls.deploy.package import Manifest


class Engine(Protocol):
    """A network with its transforms. Every method may be called from several threads at once."""

    manifest: Manifest

    def metadata(self) -> dict[str, Any]:
        """What /metadata says of the network: values JSON can hold."""
        ...

    def prepare(self, data: bytes) -> Any:
        """Decode and transform an image file. Raises DataError when it cannot be used."""
        ...

    def run(self, batch: list[Any]) -> list[dict[str, Any]]:
        """Compute what `prepare` gave, one result per image, in order."""
        ...
