"""Metrics: from the `Metric` section of a config to sums that are divided once, at the end."""

from ppcls.metric.group import METRICS, MetricGroup, build_metric
from ppcls.metric.topk import TopkAcc

__all__ = ["METRICS", "MetricGroup", "TopkAcc", "build_metric"]
