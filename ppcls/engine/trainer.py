"""The training loop: the order of events, on built objects."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

import paddle
from paddle import nn
from paddle.optimizer import Optimizer

from ppcls.data.loader import Batch, Loader, worker_deaths
from ppcls.engine import guards, parallel, rank_state
from ppcls.engine.checkpoint import Checkpointer, Progress
from ppcls.engine.checkpoint_store import EMA, add_suffix
from ppcls.engine.clock import Clock
from ppcls.engine.config import DistributedConfig, GlobalConfig
from ppcls.engine.detection import DetectionEvaluator, DetectionResult
from ppcls.engine.evaluator import EvalResult, Evaluator
from ppcls.engine.freezing import Freezing
from ppcls.engine.logbook import Logbook, format_values, peak_memory
from ppcls.engine.precision import Precision
from ppcls.engine.rank_state import RankState
from ppcls.engine.stopping import StopRequest
from ppcls.engine.task import StepResult, Task
from ppcls.optimizer import Schedule
from ppcls.utils import distributed, seeding
from ppcls.utils.errors import JobError, Stopped

logger = logging.getLogger("ppcls")

_DROPOUT_STREAM = 2  # keeps dropout's seeds apart from the data pipeline's


def group_of(step: int, size: int, steps: int) -> range:
    """Return the steps whose gradients make one update: `size` of them, fewer at the end."""
    first = step - step % size
    return range(first, min(first + size, steps))


@dataclass
class _Sums:
    """Results summed over what `divisor` counts, on the device until somebody looks."""

    values: dict[str, Any] = field(default_factory=dict)
    divisor: Any = 0

    def add(self, result: StepResult) -> None:
        for name, value in result.sums.items():
            self.values[name] = self.values[name] + value if name in self.values else value
        self.divisor = self.divisor + result.divisor

    def means(self) -> dict[str, float]:
        """Means over what all ranks counted."""
        sums = {name: float(value) for name, value in self.values.items()}
        total = parallel.sum_over_ranks({**sums, "divisor": int(self.divisor)})
        count = total.pop("divisor")
        return {name: value / max(count, 1) for name, value in total.items()}


@dataclass(frozen=True)
class _Unchecked:
    """What a step gave, to be looked at when the device has it and nobody waits."""

    where: str
    loss: paddle.Tensor
    gradients: paddle.Tensor | None = None  # whether they were finite
    overflow: paddle.Tensor | None = None  # whether the loss scaler left the update out


class Trainer:
    """Trains `model` on the batches of `loader`.

    An update averages the gradient over exactly the samples it saw: those of all ranks, of
    `update_freq` steps, and of last batches and groups that are smaller. So the result does not
    depend on how a global batch is cut up, batch-norm statistics and rounding apart.

    Every random draw of a step depends on (seed, epoch, step, rank) alone, so a run that was
    stopped anywhere ends, started again, with the same weights, bit for bit.
    """

    def __init__(
        self,
        config: GlobalConfig,
        *,
        model: nn.Layer,
        loader: Loader,
        task: Task,
        optimizer: Optimizer,
        schedule: Schedule,
        precision: Precision,
        checkpointer: Checkpointer,
        logbook: Logbook,
        evaluator: Evaluator | DetectionEvaluator | None = None,
        progress: Progress | None = None,
        own: RankState | None = None,
        sharing: DistributedConfig | None = None,
        freezing: Freezing | None = None,
    ) -> None:
        self.config = config
        self.model = model
        self.loader = loader
        self.task = task
        self.optimizer = optimizer
        self.schedule = schedule
        self.precision = precision
        self.checkpointer = checkpointer
        self.ema = checkpointer.ema
        self.logbook = logbook
        self.evaluator = evaluator
        self.progress = progress or Progress()
        self.freezing = freezing or Freezing([], None, optimizer)
        self.freezing.release(self.progress.epoch)
        self.sharing = sharing or DistributedConfig()
        self.network = parallel.wrap(model, self.sharing)
        self._networks = [self.network]  # parameters refer to them, also to one no longer used
        # That took rank 0's weights: what is a rank's own follows.
        self.steps_per_epoch = len(loader.sampler)
        self.stop = StopRequest()
        self._unchecked: _Unchecked | None = None
        self._is_stopping = False
        self._in_a_row = 0  # updates left out
        self._restore(own or RankState())

    def _restore(self, own: RankState) -> None:
        rank_state.restore_network(own, self.model)
        if self.ema is not None:
            self.ema.set_arrays(own.averaged)
        sums = {name: paddle.to_tensor(value) for name, value in own.sums.items()}
        self._totals = _Sums(sums, own.samples)
        self._skipped_before = own.skipped
        self._seen: Any = own.seen  # divisors since the last update
        self._backup = own.backup  # batch norm's statistics before the present update's steps
        if own.generators:
            rank_state.set_generators(own.generators)
        else:
            seeding.seed_host(self.config.seed, distributed.rank())

    def fit(self) -> Progress:
        """Train up to `epochs` or `max_steps`, saving and evaluating on the way.

        Raises JobError when numbers are not finite, ranks disagree, a save failed or data loading
        broke down, and Stopped, with the state saved, after SIGTERM or SIGINT.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.stop.listening())
            stack.enter_context(contextlib.closing(self.checkpointer))
            stack.enter_context(worker_deaths())
            stack.enter_context(parallel.lost_ranks())
            self._fit()
        return self.progress

    def _fit(self) -> None:
        if self.progress.evaluation_due:
            self._after_epoch()
        while self.progress.epoch < self.config.epochs and not self._is_over():
            self.train_epoch(self.progress.epoch)
            self._end_epoch()
            self._after_epoch()

    def summary(self, progress: Progress) -> dict[str, Any]:
        """What `tools/train.py` reports at the end, and its log line."""
        folder = self.checkpointer.folder
        best = progress.best_metric
        if best is not None:
            logger.info("best %s: %.5f (epoch %d)", progress.best_name, best, progress.best_epoch)
        logger.info("the result is in %s", folder)
        self.logbook.close()
        return {
            "folder": str(folder),
            "epochs": progress.epoch,
            "global_step": progress.global_step,
            "best_metric": best,
            "best_epoch": progress.best_epoch,
            "skipped_updates": progress.skipped_updates,
            "saves": self.checkpointer.saves,
            "seconds_blocked_by_saves": self.checkpointer.blocked,
        }

    def _is_over(self) -> bool:
        limit = self.config.max_steps
        return limit is not None and self.progress.global_step >= limit

    def _steps_of_epoch(self) -> int:
        """Steps of the present epoch, which `max_steps` may cut short."""
        if self.config.max_steps is None:
            return self.steps_per_epoch
        before = self.progress.global_step - self.progress.step
        return min(self.steps_per_epoch, self.config.max_steps - before)

    def train_epoch(self, epoch: int) -> None:
        """Train the steps that are left of epoch number `epoch`, counted from 0."""
        if self.freezing.release(epoch):
            self.network = parallel.wrap(self.model, self.sharing)  # averages what trains now
            self._networks.append(self.network)
        self._set_training_mode()
        self.loader.sampler.set_epoch(epoch)
        steps = self._steps_of_epoch()
        clock = Clock()
        for step, batch in self._batches(self.progress.step, steps):
            clock.data_is_here()
            group = group_of(step, self.config.update_freq, steps)
            lr = self.optimizer.get_lr()
            result = self.train_step(batch, group, epoch, step)
            self.progress.step += 1
            self.progress.global_step += 1
            clock.step_is_done(self.loader.sampler.global_size(step))
            if step % self.config.print_batch_step == 0 or step == steps - 1:
                self._log_step(epoch, step, lr, result, clock)
            self._after_step(is_last=step == steps - 1)
        self._check_finite()
        self._log_epoch(epoch)

    def _set_training_mode(self) -> None:
        self.network.train()
        self.freezing.keep_mode()

    def _batches(self, start: int, steps: int) -> Iterator[tuple[int, Batch]]:
        """The steps of an epoch that are left, with their batches."""
        if start >= steps:
            return
        self.loader.sampler.set_start(start)
        with contextlib.closing(iter(self.loader)) as batches:
            for step in range(start, steps):
                yield step, next(batches)

    def _after_step(self, *, is_last: bool) -> None:
        """Between two steps: what may stop the run, and saving inside an epoch."""
        self.checkpointer.check()
        step, config = self.progress.global_step, self.config
        if config.check_ranks_interval and step % config.check_ranks_interval == 0:
            guards.check_ranks_agree(self.model, self._place())
        self._is_stopping = self.stop.agreed(wait=is_last) or self._is_stopping
        if is_last:
            return  # the epoch's own end saves
        if self._is_stopping:
            self._save(["latest"])
            self._stop_now()
        if config.save_interval_steps and step % config.save_interval_steps == 0:
            self._save(["latest"])

    def train_step(self, batch: Batch, group: range, epoch: int, step: int) -> StepResult:
        """Forward and backward on one batch; update when it is the last of its group."""
        rank, world_size = distributed.rank(), distributed.world_size()
        sampler = self.loader.sampler
        samples = sum(sampler.global_size(member) for member in group)
        paddle.seed(seeding.derive(self.config.seed, epoch, step, rank, _DROPOUT_STREAM))
        if self.config.on_nonfinite == "skip" and (step == group[0] or not self._backup):
            self._backup = rank_state.statistics(self.model)
        is_last = step == group[-1]
        with self._synchronised(is_last):
            result = self._forward(batch)
            # Ranks are averaged, so each one's mean counts by its share of the update's samples.
            self.precision.backward(result.loss * (result.weight * world_size / samples))
        self._check_finite()
        where = f"epoch {epoch + 1}, step {step}"
        self._unchecked = _Unchecked(where, result.loss)
        self._seen = self._seen + result.divisor
        if self.config.on_nonfinite == "stop" or math.isfinite(float(result.loss)):
            self._totals.add(result)
        if is_last:
            self._update(samples, where)
        return result

    def _forward(self, batch: Batch) -> StepResult:
        if len(batch.indices):
            return self.task.forward(self.network, batch)
        weights = [p for p in self.model.parameters() if not p.stop_gradient]
        result = self.task.forward_nothing(self.network, weights)
        self._set_training_mode()
        return result

    def _update(self, planned: int, where: str) -> None:
        """Update the weights from the gradients of a group of steps with `planned` samples."""
        seen, self._seen = self._seen, 0
        if not self.task.divides_by_images or self.loader.dataset.on_error == "skip":
            seen = round(parallel.sum_over_ranks({"seen": int(seen)})["seen"])
            self._scale_gradients(self.task.gradient_factor(planned, seen))
        if self._may_update(where):
            self.precision.step(self.optimizer)
            if self._unchecked is not None:
                self._unchecked = dataclasses.replace(
                    self._unchecked, overflow=self.precision.overflow
                )
            if self.ema is not None:
                self.ema.update()
        self.optimizer.clear_grad()
        self.schedule.scheduler().step()

    def _may_update(self, where: str) -> bool:
        """Look at the gradients: now when a bad update is to be left out, else a step later.

        All ranks have the same gradients, so they decide alike. A loss scaler looks by itself.
        """
        if self.precision.scaler is not None:
            return True
        finite = guards.are_finite(guards.gradients(self.model.parameters()))
        if self.config.on_nonfinite == "stop":
            assert self._unchecked is not None
            self._unchecked = dataclasses.replace(self._unchecked, gradients=finite)
            return True
        self._unchecked = None
        if bool(finite):
            return True
        rank_state.set_statistics(self._backup, self.model)
        self._count_skipped(where, "its gradient is not finite")
        return False

    def _count_skipped(self, where: str, reason: str) -> None:
        self.progress.skipped_updates += 1
        count, limit = self.progress.skipped_updates, self.config.max_nonfinite
        logger.warning("%s: the update is left out, %s (%d so far)", where, reason, count)
        self._in_a_row += 1
        # A loss scaler tries too large scales now and then: only many in a row are too many.
        if (count if self.precision.scaler is None else self._in_a_row) > limit:
            self._stop_failed(
                where, f"at most {limit} updates left out (Global.max_nonfinite), found {count}"
            )

    @paddle.no_grad()
    def _scale_gradients(self, factor: float) -> None:
        """What to divide by is known only now: make the gradient a mean over it."""
        if factor == 1.0:
            return
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.grad.scale_(factor)

    def _synchronised(self, is_last: bool) -> contextlib.AbstractContextManager:
        """Average gradients over ranks once per update, with its last step."""
        if is_last or not isinstance(self.network, paddle.DataParallel):
            return contextlib.nullcontext()
        return self.network.no_sync()

    def _check_finite(self) -> None:
        """Look at the previous step: by now the device has its loss, and nothing waits."""
        last, self._unchecked = self._unchecked, None
        if last is None:
            return
        if last.overflow is not None and bool(last.overflow):
            self._count_skipped(last.where, "a scaled gradient overflowed")
        else:
            self._in_a_row = 0
        if self.config.on_nonfinite == "skip":
            return  # the gradient was looked at before its update
        if not math.isfinite(float(last.loss)):
            self._stop_failed(last.where, f"a finite loss, got {float(last.loss)}")
        if last.gradients is not None and not bool(last.gradients):
            self._stop_failed(last.where, "a finite gradient, found another")

    def _check_weights(self, where: str) -> None:
        """The last update before a save has no loss after it that would tell."""
        tensors = self.model.state_dict()
        if self._backup and self._in_group():  # a spoiled step of this update may yet be left out
            for name in self._backup:
                tensors.pop(name, None)
        if not bool(guards.are_finite(tensors.values())):
            self._stop_failed(where, "finite weights, found others")

    def _stop_failed(self, where: str, complaint: str) -> NoReturn:
        newest = self.checkpointer.newest()
        kept = f"the last good checkpoint is {newest}" if newest else "none was saved yet"
        raise JobError(f"{where}: expected {complaint}; {kept}")

    def _place(self) -> str:
        return f"epoch {self.progress.epoch + 1}, after {self.progress.step} steps"

    def _log_step(self, epoch: int, step: int, lr: float, result: StepResult, clock: Clock) -> None:
        self._check_finite()
        sums = _Sums()
        sums.add(result)
        means = sums.means()
        done = self.progress.global_step
        total = self.config.epochs * self.steps_per_epoch
        total = min(total, self.config.max_steps or total)
        values = self._in_order(means) | clock.read()
        eta = (total - done) * values["batch_cost"]
        position = f"[Epoch {epoch + 1}/{self.config.epochs}][Iter: {step}/{self.steps_per_epoch}]"
        self.logbook.train_line(position, self.schedule.name, lr, values, eta)
        place = {"epoch": epoch + 1, "step": step, "global_step": done}
        self.logbook.record("train", {**place, "lr": lr, **values})

    def _log_epoch(self, epoch: int) -> None:
        means = self._in_order(self._totals.means())
        own = self._skipped_before + self.loader.skipped
        skipped = round(parallel.sum_over_ranks({"skipped": own})["skipped"])
        text = format_values(means) + (f", skipped: {skipped}" if skipped else "")
        if self.progress.skipped_updates:
            text += f", skipped updates: {self.progress.skipped_updates}"
        logger.info("[Train][Epoch %d/%d][Avg]%s", epoch + 1, self.config.epochs, text)
        logger.info("%s", peak_memory())

    def _in_order(self, means: dict[str, float]) -> dict[str, float]:
        return {name: means[name] for name in self.task.names if name in means}

    def _end_epoch(self) -> None:
        parallel.average_statistics(parallel.statistics_of(self.model))
        if self.ema is not None:
            parallel.average_statistics(self.ema.statistics())
        self._check_weights(f"epoch {self.progress.epoch + 1}, after its last step")
        self._totals, self._skipped_before, self.loader.skipped = _Sums(), 0, 0
        self.progress.epoch += 1
        self.progress.cut_short = self.progress.step < self.steps_per_epoch
        self.progress.step = 0
        self.progress.evaluation_due = self._evaluates()
        if self.progress.evaluation_due:
            self._save(["latest"])  # an evaluation may take long
            if self._is_stopping:
                self._stop_now()

    def _after_epoch(self) -> None:
        """Evaluate if it is time, and save under the names the epoch has earned."""
        epoch = self.progress.epoch
        tags = ["latest"]
        if epoch % self.config.save_interval == 0:
            tags.append(f"epoch_{epoch}")
        is_due = self.progress.evaluation_due and self.evaluator is not None
        if is_due and self._keep_score(self.evaluate(epoch)):
            tags.append("best_model")
            suffix = EMA if self._is_best_by_average() else ".pdparams"
            best = add_suffix(self.checkpointer.folder / "best_model", suffix)
            logger.info("best model so far: %s", best)
        self.progress.evaluation_due = False
        self._save(tags)
        if self._is_stopping and epoch < self.config.epochs:
            self._stop_now()

    def _evaluates(self) -> bool:
        epoch, config = self.progress.epoch, self.config
        if self.evaluator is None or not config.eval_during_train:
            return False
        if epoch < config.start_eval_epoch:
            return False
        return epoch % config.eval_interval == 0 or epoch == config.epochs or self._is_over()

    def evaluate(self, epoch: int) -> EvalResult | DetectionResult:
        """Evaluate the weights, and their moving average too if there is one.

        Returns the result that chooses the best model.
        """
        result = self._evaluate(epoch, "eval", "")
        if self.ema is None:
            return result
        with self.ema.applied():
            averaged = self._evaluate(epoch, "eval_ema", "[EMA]")
        return averaged if self._is_best_by_average() else result

    def _is_best_by_average(self) -> bool:
        return self.ema is not None and self.ema.config.best_by == "ema"

    def _evaluate(self, epoch: int, mode: str, label: str) -> EvalResult | DetectionResult:
        """Evaluate the model as it is now, and write the result down."""
        assert self.evaluator is not None
        result = self.evaluator.evaluate(self.model, self._check_stop)
        values = {**result.losses, **result.metrics}
        logger.info("[Eval][Epoch %d]%s[Avg]%s", epoch, label, format_values(values))
        if result.skipped:
            logger.warning("[Eval][Epoch %d]skipped images: %d", epoch, result.skipped)
        place = {"epoch": epoch, "global_step": self.progress.global_step}
        counts = {"samples": result.samples, "skipped": result.skipped}
        self.logbook.record(mode, {**place, **values, **counts})
        return result

    def _keep_score(self, result: EvalResult | DetectionResult) -> bool:
        assert self.evaluator is not None
        if not result.metrics:
            return False
        metric, best = self.evaluator.deciding, self.progress.best_metric
        value = result.metrics[metric]
        # Of its own: a score that raw weights had before is no measure.
        name = f"EMA {metric}" if self._is_best_by_average() else metric
        is_known = best is not None and self.progress.best_name == name
        if not math.isfinite(value) or (is_known and value <= best):
            return False
        self.progress.best_name = name
        self.progress.best_metric = value
        self.progress.best_epoch = self.progress.epoch
        return True

    def _save(self, tags: list[str]) -> None:
        """Save everything; the weights are known to be good, or this raises JobError."""
        self._check_finite()
        self._check_weights(self._place())
        if self.config.check_ranks_interval:
            guards.check_ranks_agree(self.model, self._place())
        self.progress.metrics_bytes = self.logbook.position()
        own = RankState(
            sums=rank_state.as_arrays(self._totals.values),
            samples=int(self._totals.divisor),
            skipped=self._skipped_before + self.loader.skipped if self.progress.step else 0,
            seen=int(self._seen),
            gradients=rank_state.pending_gradients(self.model) if self._in_group() else {},
            statistics=rank_state.statistics(self.model),
            averaged={} if self.ema is None else rank_state.as_arrays(self.ema.statistics()),
            backup=self._backup if self._in_group() else {},
            generators=rank_state.generators(),
        )
        self.checkpointer.save(tags, self.progress, own)

    def _in_group(self) -> bool:
        """Whether gradients wait for the rest of their update."""
        return self.progress.step % self.config.update_freq != 0

    def _check_stop(self) -> None:
        """During an evaluation, before which everything was saved, a rank may stop alone."""
        if self.stop.is_heard:
            self._stop_now()

    def _stop_now(self) -> NoReturn:
        self.checkpointer.close()
        raise Stopped(
            f"stopped by {self.stop.reason}, {self._place()}; the state is in "
            f"{self.checkpointer.folder}, go on with -o Global.auto_resume=True"
        )
