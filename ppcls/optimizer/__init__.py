"""Optimizers and learning-rate schedules: the `Optimizer` section of a config."""

from ppcls.optimizer.curves import SCHEDULES
from ppcls.optimizer.optimizer import OPTIMIZERS, build_optimizer
from ppcls.optimizer.schedule import Schedule, build_schedule

__all__ = ["OPTIMIZERS", "SCHEDULES", "Schedule", "build_optimizer", "build_schedule"]
