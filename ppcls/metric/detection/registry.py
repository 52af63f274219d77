"""The detection metrics a `Metric.Eval` section asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from ppcls.metric.detection.types import AnnotatedImages, Detections
from ppcls.utils import schema
from ppcls.utils.errors import ConfigError
from ppcls.utils.registry import Registry

DETECTION_METRICS: Registry = Registry("detection metric")


class DetectionMetric(Protocol):
    """What a registered detection metric offers. Its constructor takes settings alone."""

    names: list[str]  # the numbers worth a log line; the first one chooses the best model

    def check(self, images: AnnotatedImages) -> None:
        """Raise ConfigError when this metric cannot judge such a data set."""

    def evaluate(
        self, detections: Mapping[int, Detections], images: AnnotatedImages
    ) -> dict[str, float]:
        """Judge the images `detections` has an entry for; keys are indices of the data set.

        An image in which nothing was found needs an entry too: without one it is not judged.
        Returns fractions by name: `names`, and after them details such as `AP/person`. A number
        that does not exist, because nothing could be found, is NaN.
        """


def build_detection_metrics(entries: Any, where: str) -> list[DetectionMetric]:
    """Build a list such as `[{COCOMetric: {}}]` or `[VOCMetric]`; null is an empty list.

    Raises ConfigError naming the entry.
    """
    if entries is None:
        entries = []
    if not isinstance(entries, (list, tuple)):
        raise ConfigError(f"{where}: expected a list of metrics, got {entries!r}")
    metrics: list[DetectionMetric] = []
    taken: set[str] = set()
    for i, entry in enumerate(entries):
        metric = schema.build_entry(DETECTION_METRICS, entry, f"{where}[{i}]")
        for name in metric.names:
            if name in taken:
                raise ConfigError(f"{where}[{i}]: expected each metric once, got {name!r} again")
        taken.update(metric.names)
        metrics.append(metric)
    return metrics
