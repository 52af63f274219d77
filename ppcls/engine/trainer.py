"""The training loop: the order of events, on built objects."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from dataclasses import dataclass
from typing import Any, NoReturn

import paddle
from paddle import nn
from paddle.optimizer import Optimizer

from ppcls.data.loader import Batch, Loader
from ppcls.engine import parallel
from ppcls.engine.checkpoint import Checkpointer, Progress
from ppcls.engine.config import GlobalConfig
from ppcls.engine.evaluator import EvalResult, Evaluator, logits_of
from ppcls.engine.logbook import Logbook, format_values
from ppcls.engine.precision import Precision
from ppcls.loss import CombinedLoss
from ppcls.metric import MetricGroup
from ppcls.optimizer import Schedule
from ppcls.utils import distributed, seeding
from ppcls.utils.errors import JobError

logger = logging.getLogger("ppcls")

_DROPOUT_STREAM = 2  # keeps dropout's seeds apart from the data pipeline's


def group_of(step: int, size: int, steps: int) -> range:
    """Return the steps whose gradients make one update: `size` of them, fewer at the end."""
    first = step - step % size
    return range(first, min(first + size, steps))


@dataclass
class _Sums:
    """Results summed over samples, on the device until somebody looks."""

    values: dict[str, Any]
    samples: int = 0

    def add(self, values: dict[str, Any], samples: int) -> None:
        for name, value in values.items():
            self.values[name] = self.values[name] + value if name in self.values else value
        self.samples += samples

    def means(self) -> dict[str, float]:
        """Means over the samples of all ranks."""
        sums = {name: float(value) for name, value in self.values.items()}
        total = parallel.sum_over_ranks({**sums, "samples": self.samples})
        count = total.pop("samples")
        return {name: value / max(count, 1) for name, value in total.items()}


class Trainer:
    """Trains `model` on the batches of `loader`.

    An update averages the gradient over exactly the samples it saw: those of all ranks, of
    `update_freq` steps, and of last batches and groups that are smaller. So the result does not
    depend on how a global batch is cut up, batch-norm statistics and rounding apart.
    """

    def __init__(
        self,
        config: GlobalConfig,
        *,
        model: nn.Layer,
        loader: Loader,
        loss: CombinedLoss,
        metric: MetricGroup,
        optimizer: Optimizer,
        schedule: Schedule,
        precision: Precision,
        checkpointer: Checkpointer,
        logbook: Logbook,
        evaluator: Evaluator | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.config = config
        self.model = model
        self.loader = loader
        self.loss = loss
        self.metric = metric
        self.optimizer = optimizer
        self.schedule = schedule
        self.precision = precision
        self.checkpointer = checkpointer
        self.logbook = logbook
        self.evaluator = evaluator
        self.progress = progress or Progress()
        self.network = parallel.wrap(model)
        self.steps_per_epoch = len(loader.sampler)
        self._unchecked: tuple[str, paddle.Tensor] | None = None
        self._seen = 0  # samples since the last update

    def fit(self) -> Progress:
        """Train up to `epochs` or `max_steps`, saving and evaluating on the way.

        Raises JobError when a loss is not finite; the last good checkpoint is then the newest.
        """
        while self.progress.epoch < self.config.epochs and not self._is_over():
            self._train_epoch(self.progress.epoch)
            parallel.average_statistics(self.model)
            self._check_weights()
            self.progress.epoch += 1
            self._after_epoch()
        return self.progress

    def summary(self, progress: Progress) -> dict[str, Any]:
        """What `tools/train.py` reports at the end, and its log line."""
        folder = self.checkpointer.folder
        best = progress.best_metric
        if best is not None:
            name = self._deciding_metric() if self.evaluator else "metric"
            logger.info("best %s: %.5f (epoch %d)", name, best, progress.best_epoch)
        logger.info("the result is in %s", folder)
        self.logbook.close()
        return {
            "folder": str(folder),
            "epochs": progress.epoch,
            "global_step": progress.global_step,
            "best_metric": best,
            "best_epoch": progress.best_epoch,
        }

    def _is_over(self) -> bool:
        limit = self.config.max_steps
        return limit is not None and self.progress.global_step >= limit

    def _train_epoch(self, epoch: int) -> None:
        self.network.train()
        self.loader.sampler.set_epoch(epoch)
        steps = self.steps_per_epoch
        if self.config.max_steps is not None:
            steps = min(steps, self.config.max_steps - self.progress.global_step)
        totals = _Sums({})
        clock = _Clock()
        batches = iter(self.loader)
        for step in range(steps):
            batch = next(batches)
            clock.data_is_here()
            group = group_of(step, self.config.update_freq, steps)
            lr = self.optimizer.get_lr()
            sums = self.train_step(batch, group, epoch, step)
            totals.add(sums.values, sums.samples)
            self.progress.global_step += 1
            clock.step_is_done(self.loader.sampler.global_size(step))
            if step % self.config.print_batch_step == 0 or step == steps - 1:
                self._log_step(epoch, step, lr, sums, clock)
        batches.close()
        self._check_finite()
        self._log_epoch(epoch, totals)

    def train_step(self, batch: Batch, group: range, epoch: int, step: int) -> _Sums:
        """Forward and backward on one batch; update when it is the last of its group."""
        rank, world_size = distributed.rank(), distributed.world_size()
        sampler = self.loader.sampler
        samples = sum(sampler.global_size(member) for member in group)
        # Ranks are averaged, so each one's mean counts by its share of the update's samples.
        weight = len(batch.indices) * world_size / samples
        paddle.seed(seeding.derive(self.config.seed, epoch, step, rank, _DROPOUT_STREAM))
        is_last = step == group[-1]
        with self._synchronised(is_last):
            sums, loss = self._forward(batch)
            self.precision.backward(loss * weight)
        self._check_finite()
        self._unchecked = (f"epoch {epoch + 1}, step {step}", loss)
        self._seen += sums.samples
        if is_last:
            self._update(samples)
        return sums

    def _update(self, planned: int) -> None:
        """Update the weights from the gradients of a group of steps with `planned` samples."""
        seen, self._seen = self._seen, 0
        if self.loader.dataset.on_error == "skip":
            seen = round(parallel.sum_over_ranks({"samples": seen})["samples"])
            self._scale_gradients(planned / seen if seen else 0.0)
        self.precision.step(self.optimizer)
        self.optimizer.clear_grad()
        self.schedule.scheduler().step()

    @paddle.no_grad()
    def _scale_gradients(self, factor: float) -> None:
        """Images left out are known only now: make the gradient a mean over the others."""
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

    def _forward(self, batch: Batch) -> tuple[_Sums, paddle.Tensor]:
        count = len(batch.indices)
        if count == 0:
            return self._forward_nothing()
        with self.precision.autocast():
            logits = logits_of(self.network, batch.images)
        parts = self.loss(logits, batch.labels)
        with paddle.no_grad():
            sums = {name: value.detach() * count for name, value in parts.items()}
            sums |= self.metric.sums(logits.detach(), batch.labels)
        return _Sums(sums, count), parts["loss"]

    def _forward_nothing(self) -> tuple[_Sums, paddle.Tensor]:
        """Take part in the ranks' gradient average without a sample, leaving batch norm alone."""
        self.network.eval()
        with self.precision.autocast():
            self.network(paddle.zeros([1, *self.config.image_shape]))  # readies the average
        self.network.train()
        # Not from the logits: compiled for evaluation, a network has no backward pass.
        weights = [p for p in self.model.parameters() if not p.stop_gradient]
        loss = paddle.add_n([p.astype("float32").sum() for p in weights]) * 0.0
        names = [*self.loss.names, "loss", *self.metric.names]
        return _Sums({name: paddle.zeros([]) for name in names}), loss

    def _check_finite(self) -> None:
        """Look at the previous step's loss: by now the device has it, and nothing waits."""
        if self._unchecked is None:
            return
        where, loss = self._unchecked
        self._unchecked = None
        if not math.isfinite(float(loss)):
            self._stop(where, f"a finite loss, got {float(loss)}")

    def _check_weights(self) -> None:
        """An epoch's last update has no loss after it that would tell."""
        finite = [paddle.isfinite(t).all() for t in self.model.state_dict().values()]
        if not bool(paddle.stack(finite).all()):
            self._stop(
                f"epoch {self.progress.epoch + 1}, after its last step",
                "finite weights, found others",
            )

    def _stop(self, where: str, complaint: str) -> NoReturn:
        newest = self.checkpointer.newest()
        kept = f"the last good checkpoint is {newest}" if newest else "none was saved yet"
        raise JobError(f"{where}: expected {complaint}; {kept}")

    def _log_step(self, epoch: int, step: int, lr: float, sums: _Sums, clock: _Clock) -> None:
        self._check_finite()
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

    def _log_epoch(self, epoch: int, totals: _Sums) -> None:
        means = self._in_order(totals.means())
        skipped = round(parallel.sum_over_ranks({"skipped": self.loader.skipped})["skipped"])
        text = format_values(means) + (f", skipped: {skipped}" if skipped else "")
        logger.info("[Train][Epoch %d/%d][Avg]%s", epoch + 1, self.config.epochs, text)

    def _in_order(self, means: dict[str, float]) -> dict[str, float]:
        """Metrics first, then the losses, as PaddleClas prints them."""
        names = [*self.metric.names, *self.loss.names, "loss"]
        return {name: means[name] for name in names if name in means}

    def _after_epoch(self) -> None:
        epoch = self.progress.epoch
        is_end = epoch == self.config.epochs or self._is_over()
        is_best = False
        if self.evaluator is not None and self._evaluates(epoch, is_end):
            is_best = self._keep_score(self.evaluate(epoch))
        if distributed.rank() > 0:
            return
        tags = ["best_model"] if is_best else []
        if epoch % self.config.save_interval == 0:
            tags.append(f"epoch_{epoch}")
        for tag in [*tags, "latest"]:
            self.checkpointer.save(tag, self.progress)
        if is_best:
            logger.info("best model so far: %s", self.checkpointer.folder / "best_model.pdparams")

    def _evaluates(self, epoch: int, is_end: bool) -> bool:
        if not self.config.eval_during_train or epoch < self.config.start_eval_epoch:
            return False
        return epoch % self.config.eval_interval == 0 or is_end

    def evaluate(self, epoch: int) -> EvalResult:
        """Evaluate the model as it is now, and write the result down."""
        assert self.evaluator is not None
        result = self.evaluator.evaluate(self.model)
        values = {**result.losses, **result.metrics}
        logger.info("[Eval][Epoch %d][Avg]%s", epoch, format_values(values))
        if result.skipped:
            logger.warning("[Eval][Epoch %d]skipped images: %d", epoch, result.skipped)
        place = {"epoch": epoch, "global_step": self.progress.global_step}
        counts = {"samples": result.samples, "skipped": result.skipped}
        self.logbook.record("eval", {**place, **values, **counts})
        return result

    def _deciding_metric(self) -> str:
        """Top-1 chooses the best model; without it, the first metric of the recipe."""
        assert self.evaluator is not None
        names = self.evaluator.metric.names
        return "top1" if "top1" in names else names[0]

    def _keep_score(self, result: EvalResult) -> bool:
        if not result.metrics:
            return False
        value = result.metrics[self._deciding_metric()]
        if self.progress.best_metric is not None and value <= self.progress.best_metric:
            return False
        self.progress.best_metric = value
        self.progress.best_epoch = self.progress.epoch
        return True


class _Clock:
    """Seconds per step and samples per second since the last look."""

    def __init__(self) -> None:
        self._start = self._mark = time.perf_counter()
        self._reader = 0.0
        self._steps = self._samples = 0

    def data_is_here(self) -> None:
        self._reader += time.perf_counter() - self._mark

    def step_is_done(self, samples: int) -> None:
        self._mark = time.perf_counter()
        self._steps += 1
        self._samples += samples

    def read(self) -> dict[str, float]:
        """Return batch_cost and reader_cost in s, ips in samples/s of all ranks, and start anew."""
        seconds = max(self._mark - self._start, 1e-9)
        steps = max(self._steps, 1)
        values = {
            "batch_cost": seconds / steps,
            "reader_cost": self._reader / steps,
            "ips": self._samples / seconds,
        }
        self._start = self._mark = time.perf_counter()
        self._reader, self._steps, self._samples = 0.0, 0, 0
        return values
