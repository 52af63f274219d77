"""Callbacks for `paddle.Model.fit`, PaddlePaddle's high-level API.

`fit` counts the epochs of one call. These callbacks count those of the whole run, whose place is a
Progress, so that a run that was stopped ends where it would have ended.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from typing import Any

import paddle
from paddle.io import Dataset, DistributedBatchSampler

from ppcls.data.datasets import ClassificationDataset
from ppcls.data.sampler import SampleKey
from ppcls.engine import parallel
from ppcls.engine.checkpoint import Checkpointer, Progress
from ppcls.engine.logbook import format_values
from ppcls.utils import distributed, seeding
from ppcls.utils.errors import JobError

logger = logging.getLogger("ppcls")

_ORDER_STREAM, _DROPOUT_STREAM = 4, 5
MONITOR = "acc_top1"  # as paddle.metric.Accuracy(topk=(1, 5)) calls it


class Pairs(Dataset):
    """A data set of this project as `paddle.Model` wants it: (image, label) of the set `epoch`."""

    def __init__(self, dataset: ClassificationDataset) -> None:
        super().__init__()
        self.dataset = dataset
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple:
        image, label, _ = self.dataset.load(SampleKey(self.epoch, index))
        return image, label


class ByEpoch(paddle.callbacks.Callback):
    """Makes order, augmentation and dropout of an epoch depend on (seed, epoch, rank) alone.

    At its end every process gets the mean of their batch-norm statistics: what is then evaluated
    is what is saved.
    """

    def __init__(
        self, progress: Progress, data: Pairs, sampler: DistributedBatchSampler, seed: int
    ) -> None:
        super().__init__()
        self.progress, self.data, self.sampler, self.seed = progress, data, sampler, seed

    def on_epoch_begin(self, epoch: int, logs: Mapping | None = None) -> None:
        epoch = self.progress.epoch
        self.data.epoch = epoch
        self.sampler.set_epoch(seeding.derive(self.seed, epoch, _ORDER_STREAM))
        rank = distributed.rank()
        paddle.seed(seeding.derive(self.seed, epoch, rank, _DROPOUT_STREAM))

    def on_epoch_end(self, epoch: int, logs: Mapping | None = None) -> None:
        parallel.average_statistics(parallel.statistics_of(self.model.network))


class Log(paddle.callbacks.Callback):
    """Writes PaddleClas-shaped lines. Raises JobError for a loss that is not finite."""

    def __init__(self, progress: Progress, epochs: int, every: int = 50) -> None:
        super().__init__()
        self.progress, self.epochs, self.every = progress, epochs, every

    def on_epoch_begin(self, epoch: int, logs: Mapping | None = None) -> None:
        self.mark, self.images, self.steps = time.perf_counter(), 0, 0

    def on_train_batch_end(self, step: int, logs: Mapping | None = None) -> None:
        place, count = self.progress, self.params["steps"]
        loss = logs["loss"][0]
        if not math.isfinite(loss):
            raise JobError(
                f"epoch {place.epoch + 1}, step {step}: expected a finite loss, got {loss}"
            )
        self.images += logs["batch_size"]
        self.steps += 1
        if step % self.every and step != count - 1:
            return
        seconds = max(time.perf_counter() - self.mark, 1e-9)
        left = count - step - 1 + (self.epochs - place.epoch - 1) * count
        logger.info(
            "[Train][Epoch %d/%d][Iter: %d/%d]lr: %.8f, %s, ips: %.2f samples/s, eta: %.0f s",
            *(place.epoch + 1, self.epochs, step, count, self.model._optimizer.get_lr()),
            format_values({"top1": logs[MONITOR], "loss": loss}),
            *(self.images / seconds, left * seconds / self.steps),
        )
        self.mark, self.images, self.steps = time.perf_counter(), 0, 0


class Save(paddle.callbacks.Callback):
    """Counts the epoch after its evaluation, and saves `latest` and `best_model`.

    It takes the place of Paddle's ModelCheckpoint, which overwrites its files in place and whose
    reader, `paddle.Model.load`, runs what a file says. The last evaluation's go into `scores`.
    """

    def __init__(
        self, progress: Progress, checkpointer: Checkpointer, scores: dict[str, float]
    ) -> None:
        super().__init__()
        self.progress, self.checkpointer, self.scores = progress, checkpointer, scores

    def on_train_batch_end(self, step: int, logs: Mapping | None = None) -> None:
        self.progress.global_step += 1

    def on_eval_end(self, logs: Mapping | None = None) -> None:
        place = self.progress
        place.epoch += 1
        top1 = float(logs[MONITOR])
        is_best = place.best_metric is None or top1 > place.best_metric
        if is_best:
            place.best_metric, place.best_epoch = top1, place.epoch
        self.scores |= {name: float(logs[name]) for name in (MONITOR, "acc_top5")}
        values = {"top1": top1, "top5": self.scores["acc_top5"]}
        logger.info("[Eval][Epoch %d][Avg]%s", place.epoch, format_values(values))
        self.checkpointer.save(["latest", *["best_model"] * is_best], place)


class EarlyStopping(paddle.callbacks.EarlyStopping):
    """Paddle's own, that goes on waiting where a stopped run left it. Comes before Save."""

    def __init__(self, progress: Progress, patience: int) -> None:
        super().__init__(MONITOR, mode="max", patience=patience, verbose=0, save_best_model=False)
        self.progress = progress

    def on_train_begin(self, logs: Mapping | None = None) -> None:
        super().on_train_begin(logs)
        if self.progress.best_metric is not None:
            self.best_value = self.progress.best_metric
            self.wait_epoch = self.progress.epoch - self.progress.best_epoch


class VisualDL(paddle.callbacks.VisualDL):
    """Paddle's own, with the steps and epochs of the whole run."""

    def __init__(self, progress: Progress, folder: str) -> None:
        super().__init__(folder)
        self.progress = progress

    def on_train_begin(self, logs: Mapping | None = None) -> None:
        super().on_train_begin(logs)
        self.train_step = self.progress.global_step

    def on_epoch_begin(self, epoch: int | None = None, logs: Mapping | None = None) -> None:
        super().on_epoch_begin(self.progress.epoch, logs)


class ModelScaler:
    """The loss scaler inside a paddle.Model, as Checkpointer asks for it."""

    def __init__(self, model: paddle.Model) -> None:
        self.model = model

    def state_dict(self) -> dict[str, Any]:
        scaler = getattr(self.model, "_scaler", None)
        return {} if scaler is None else scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            self.model._scaler = paddle.amp.GradScaler()
            self.model._scaler.load_state_dict(state)
