"""Metrics: from the `Metric` section of a config to sums that are divided once, at the end;
and what a prediction says (`results`).

Nothing here imports Paddle before it computes.
"""

from ppcls.metric.group import METRICS, MetricGroup, build_metric
from ppcls.metric.topk import DistillationTopkAcc, TopkAcc

__all__ = ["METRICS", "DistillationTopkAcc", "MetricGroup", "TopkAcc", "build_metric"]
