"""What may be set about the service."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ppcls.utils import schema


@dataclass(frozen=True, kw_only=True)
class ServingConfig:
    """Limits and times of the service. Raises ValueError for a value out of range."""

    max_batch: int = 8  # images the network computes at once
    max_delay_ms: float = 2.0  # an image waits so long for others to share its batch
    queue: int = 128  # images accepted and not yet answered; more get 503
    max_images: int = 32  # of one request
    max_bytes: int = 16 * 2**20  # of one request's body
    max_pixels: int = 50_000_000  # of one image, by its header, and after scaling its shorter side
    timeout: float = 30.0  # seconds for a body to arrive, and as many for its answer
    decoders: int = 2  # threads that read and transform images
    workers: int | None = None  # threads that run batches; None: as many as the engine likes
    header_timeout: float = 10.0  # seconds for the headers of a request to arrive
    connections: int = 512  # open at once; more get 503
    buffered_bytes: int | None = None  # of all bodies in memory; None: 8 times `max_bytes`

    def __post_init__(self) -> None:
        schema.at_least(
            1,
            max_batch=self.max_batch,
            queue=self.queue,
            max_images=self.max_images,
            max_bytes=self.max_bytes,
            max_pixels=self.max_pixels,
            decoders=self.decoders,
            workers=self.workers,
            connections=self.connections,
        )
        if self.buffered_bytes is not None and self.buffered_bytes < self.max_bytes:
            raise ValueError(
                f"buffered_bytes: expected at least {self.max_bytes} (max_bytes), "
                f"got {self.buffered_bytes}"
            )
        for name in ("timeout", "header_timeout"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"{name}: expected a number of seconds > 0, got {value}")
        if not 0 <= self.max_delay_ms < math.inf:
            raise ValueError(
                f"max_delay_ms: expected a number of ms from 0, got {self.max_delay_ms}"
            )

    @property
    def images_per_request(self) -> int:
        """A request with more images than the queue holds could never be taken."""
        return min(self.max_images, self.queue)

    @property
    def buffer(self) -> int:
        """Bytes of all bodies that may be in memory at once."""
        return self.buffered_bytes or 8 * self.max_bytes
