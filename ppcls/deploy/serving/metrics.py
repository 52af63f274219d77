"""What /metrics shows, in Prometheus's text form."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters of one service; each service has a registry of its own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "ppcls_requests",
            "Requests by path and status; 499 is a client that left before its answer.",
            ["path", "status"],
            registry=registry,
        )
        self.seconds = Histogram(
            "ppcls_request_seconds",
            "From a request's headers to its answer.",
            ["path"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.stages = Histogram(
            "ppcls_image_seconds",
            "Of an image: decode (with transforms), queue, compute (of its whole batch).",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.batches = Histogram(
            "ppcls_batch_size", "Images computed at once.", buckets=_BATCHES, registry=registry
        )

    def watch(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Show a value that is read when somebody asks."""
        Gauge(f"ppcls_{name}", text, registry=self._registry).set_function(read)

    def text(self) -> bytes:
        return generate_latest(self._registry)
