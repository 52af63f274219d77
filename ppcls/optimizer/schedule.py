"""Learning-rate schedules, bound to the length of a run.

A schedule counts in units: optimizer updates, or whole epochs when `by_epoch` is true (the value
then holds through an epoch). It begins with a linear warm-up, `warmup_epoch` epochs long, and then
follows its curve, which counts from the end of the warm-up: with `warmup_epoch: 5`, a Piecewise
schedule told to decay at epoch 30 does so at epoch 35, and Cosine and Linear reach their end with
the run. This is PaddleClas's behaviour. What differs: `warmup_epoch` may be a fraction in every
schedule, must be less than the run (PaddleClas shortens it), and is counted in epochs by Linear too
when `by_epoch` is true.

Since each value is computed from the position alone, a resumed run continues exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paddle.optimizer.lr import LRScheduler

from ppcls.optimizer.curves import SCHEDULES, Curve, linear_warmup
from ppcls.utils import schema
from ppcls.utils.errors import ConfigError


class Schedule:
    """A schedule bound to the length of a run.

    name: the word log lines print, `lr(CosineAnnealing)`, with or without warm-up.
    epochs, steps_per_epoch: the run's length; a step is one update of the optimizer.
    """

    def __init__(self, config: Curve, *, epochs: int, steps_per_epoch: int) -> None:
        if epochs < 1 or steps_per_epoch < 1:
            raise ValueError(f"expected a run of steps, got {epochs} epochs of {steps_per_epoch}")
        if config.warmup_epoch > 0 and config.warmup_epoch >= epochs:
            raise ValueError(
                f"warmup_epoch: expected a number < {epochs} (Global.epochs), "
                f"got {config.warmup_epoch:g}"
            )
        self.config = config
        self.name = config.label
        self.epochs = epochs
        self.steps_per_epoch = steps_per_epoch
        self._epoch = 1 if config.by_epoch else steps_per_epoch
        warmup = config.warmup_epoch
        self._warmup = warmup if config.by_epoch else round(warmup * steps_per_epoch)
        self._scheduler: _Follower | None = None

    def at(self, step: int) -> float:
        """Return the learning rate of the update made after `step` updates, step >= 0."""
        config = self.config
        position = step // self.steps_per_epoch if config.by_epoch else step
        if position < self._warmup:
            return linear_warmup(position, self._warmup, config.warmup_start_lr, config.peak)
        length = self.epochs * self._epoch - self._warmup
        return config.curve(position - self._warmup, length, self._epoch) if length else config.peak

    def scheduler(self) -> LRScheduler:
        """Return the scheduler that makes an optimizer follow this schedule, the same every time.

        Call its `step()` after every update, also with `by_epoch`. Its state, kept with the
        optimizer's, is the number of updates done; the rate is computed again on loading.
        """
        if self._scheduler is None:
            self._scheduler = _Follower(self)
        return self._scheduler


class _Follower(LRScheduler):
    """`last_epoch`, Paddle's word, counts updates."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        super().__init__(learning_rate=schedule.at(0))

    def get_lr(self) -> float:
        return self._schedule.at(self.last_epoch)

    def set_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().set_state_dict(state_dict)
        self.last_lr = self.get_lr()

    set_dict = set_state_dict


def build_schedule(section: Any, where: str, *, epochs: int, steps_per_epoch: int) -> Schedule:
    """Build the schedule of a section like `{name: Cosine, learning_rate: 0.05, by_epoch: true}`.

    As in PaddleClas, a section without a name is a constant rate. steps_per_epoch: updates of the
    optimizer in an epoch. Raises ConfigError naming the key.
    """
    if not isinstance(section, Mapping):
        raise ConfigError(f"{where}: expected a mapping, got {section!r}")
    kind = SCHEDULES.get(section.get("name", "Constant"), f"{where}.name")
    params = {key: value for key, value in section.items() if key != "name"}
    config = schema.parse_dataclass(kind, params, where)
    try:
        return Schedule(config, epochs=epochs, steps_per_epoch=steps_per_epoch)
    except ValueError as error:
        raise ConfigError(f"{where}.{error}") from error
