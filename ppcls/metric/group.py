"""The metrics a `Metric.Train` or `Metric.Eval` section asks for, as sums over samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from ppcls.utils import schema
from ppcls.utils.errors import ConfigError
from ppcls.utils.registry import Registry

if TYPE_CHECKING:
    from paddle import Tensor

METRICS: Registry = Registry("metric")


class Metric(Protocol):
    """What a registered metric offers; its constructor may take the model's `class_num`."""

    names: list[str]

    def sums(self, logits: Tensor, label: Tensor) -> dict[str, Tensor]:
        """Return per name the sum over the batch of a number each sample has."""


class MetricGroup:
    """Several metrics on the same logits and labels.

    names: all result names, in the order of the config. The first one chooses the best model.
    """

    def __init__(self, metrics: list[Metric]) -> None:
        self.metrics = metrics
        self.names = [name for metric in metrics for name in metric.names]

    def sums(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return per name a scalar on the device: add over batches, divide once by the samples.

        logits: [N, C]. labels: [N] or [N, 1] integer, or [N, C] floating.
        """
        result: dict[str, Tensor] = {}
        for metric in self.metrics:
            result |= metric.sums(logits, labels)
        return result


def build_metric(entries: Any, where: str, class_num: int) -> MetricGroup:
    """Build PaddleClas's list of metrics, `[{TopkAcc: {topk: [1, 5]}}]`; null is an empty group.

    Raises ConfigError naming the entry, such as
    "Metric.Eval[0].TopkAcc.topk: expected every k <= 3 (Arch.class_num), got 5".
    """
    if entries is None:
        entries = []
    if not isinstance(entries, (list, tuple)):
        raise ConfigError(f"{where}: expected a list of metrics, got {entries!r}")
    metrics: list[Metric] = []
    taken: set[str] = set()
    for i, entry in enumerate(entries):
        metric = schema.build_entry(METRICS, entry, f"{where}[{i}]", class_num=class_num)
        for name in metric.names:
            if name in taken:
                raise ConfigError(f"{where}[{i}]: expected each metric once, got {name!r} again")
        taken.update(metric.names)
        metrics.append(metric)
    return MetricGroup(metrics)
