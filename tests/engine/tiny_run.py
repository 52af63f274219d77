"""A network of two convolutions and sixty small images, through the project's own parts."""

from __future__ import annotations

import functools
import json

import numpy as np
import paddle
import pytest
from paddle import nn

from ppcls.data.datasets import ClassificationDataset
from ppcls.data.loader import Loader, LoaderConfig
from ppcls.data.sampler import EvalSampler, GlobalBatchSampler
from ppcls.engine.checkpoint import Checkpointer
from ppcls.engine.config import GlobalConfig
from ppcls.engine.ema import ExponentialMovingAverage
from ppcls.engine.evaluator import Evaluator
from ppcls.engine.freezing import Freezing
from ppcls.engine.logbook import Logbook
from ppcls.engine.precision import Precision
from ppcls.engine.task import ClassificationTask
from ppcls.engine.trainer import Trainer
from ppcls.loss import build_loss
from ppcls.metric import build_metric
from ppcls.optimizer import build_optimizer, build_schedule
from ppcls.utils import distributed

CLASSES = 4
MOMENTUM = {"name": "Momentum", "momentum": 0.9, "use_nesterov": True, "weight_decay": 2**-12}
ADAMW = {"name": "AdamW", "weight_decay": 2**-6}
COSINE = {"name": "Cosine", "learning_rate": 2**-4}
OPS = [
    {"NormalizeImage": {"scale": "1.0/255.0", "mean": [0.5] * 3, "std": [0.5] * 3, "order": "hwc"}},
    {"ToCHWImage": None},
]


class TinyImages(ClassificationDataset):
    """8x8 images whose hue tells their class. Images in `broken` cannot be read."""

    def __init__(self, count=60, *, broken=(), ops=OPS, **options):
        super().__init__(ops, config_path="DataLoader.Train.dataset", **options)
        rng = np.random.default_rng(5)
        self.labels = rng.integers(0, CLASSES, count)
        self.class_num = CLASSES
        self.broken = set(broken)
        self.pixels = rng.integers(0, 160, (count, 8, 8, 3), dtype=np.uint8)
        for image, label in zip(self.pixels, self.labels, strict=True):
            image[..., : label % 3 + 1] += np.uint8(30 * label)

    def read(self, index):
        if index in self.broken:
            raise ValueError("damaged")
        return self.pixels[index]

    def describe(self, index):
        return f"image {index}"


class TinyNet(nn.Layer):
    """Two convolutions. `frozen` makes batch norm use its statistics in training too."""

    def __init__(self, *, dropout=0.0, frozen=False):
        super().__init__()
        self.conv1 = nn.Conv2D(3, 6, 3, padding=1, bias_attr=False)
        self.norm1 = nn.BatchNorm2D(6, use_global_stats=frozen or None)
        self.conv2 = nn.Conv2D(6, 8, 3, stride=2, bias_attr=False)
        self.norm2 = nn.BatchNorm2D(8, use_global_stats=frozen or None)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x):
        x = x.astype(self.norm1.weight.dtype)
        x = nn.functional.relu6(self.norm1(self.conv1(x)))
        x = nn.functional.relu6(self.norm2(self.conv2(x)))
        return self.fc(self.dropout(x.mean(axis=[2, 3])))


def tiny_net(seed=0, *, dtype="float32", **options) -> TinyNet:
    paddle.seed(seed)
    paddle.set_default_dtype(dtype)
    try:
        return TinyNet(**options)
    finally:
        paddle.set_default_dtype("float32")


def eval_loader(dataset, batch_size=16, rank=0, world_size=1) -> Loader:
    sampler = EvalSampler(len(dataset), batch_size, rank, world_size)
    return Loader(dataset, sampler, LoaderConfig(num_workers=0))


def evaluator(dataset, precision=None, **options) -> Evaluator:
    return Evaluator(
        eval_loader(dataset, **options),
        build_loss([{"CELoss": {}}], "Loss.Eval"),
        build_metric([{"TopkAcc": {"topk": [1, 2]}}], "Metric.Eval", CLASSES),
        precision or Precision(None, "cpu"),
    )


def trainer(
    folder,
    model,
    *,
    dataset=None,
    batch_size=16,
    optimizer=MOMENTUM,
    lr=COSINE,
    amp=None,
    device="cpu",
    drop_last=False,
    network=None,
    resume=None,
    task=None,
    sharing=None,
    ema=None,
    frozen_layers=(),
    until=None,
    **settings,
) -> Trainer:
    """A trainer as `engine.build` makes one. `network` is `model` in another guise, to run.

    `task` makes another one than classification, from the precision. `ema` is an EMAConfig.
    `frozen_layers` are names of layers, frozen before epoch number `until`.
    """
    dataset = dataset or TinyImages()
    settings = {"epochs": 2, "print_batch_step": 1, "image_shape": [3, 8, 8], **settings}
    config = GlobalConfig(**settings)
    sampler = GlobalBatchSampler(
        len(dataset),
        batch_size,
        seed=config.seed,
        drop_last=drop_last,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
    steps = -(-len(sampler) // config.update_freq)
    schedule = build_schedule(lr, "Optimizer.lr", epochs=config.epochs, steps_per_epoch=steps)
    built = build_optimizer({**optimizer, "lr": lr}, "Optimizer", schedule=schedule, model=model)
    precision = Precision(amp, device)
    precision.prepare(model, built)
    freezing = Freezing([getattr(model, name) for name in frozen_layers], until, built)
    checkpointer = Checkpointer(
        folder,
        model,
        built,
        {"Arch": {"name": "Tiny"}},
        keep_last=config.keep_last,
        ema=None if ema is None else ExponentialMovingAverage(ema, model),
    )
    checkpointer.register("scaler", precision)
    progress, own = checkpointer.load(resume) if resume else (None, None)
    folder.mkdir(parents=True, exist_ok=True)
    is_own = checkpointer.take_over()
    if task is None:
        loss = build_loss([{"CELoss": {}}], "Loss.Train")
        metric = build_metric([{"TopkAcc": {"topk": [1, 2]}}], "Metric.Train", CLASSES)
        task = functools.partial(ClassificationTask, loss, metric, image_shape=config.image_shape)
    return Trainer(
        config,
        model=network or model,
        loader=Loader(dataset, sampler, LoaderConfig(num_workers=0)),
        task=task(precision=precision),
        optimizer=built,
        schedule=schedule,
        precision=precision,
        checkpointer=checkpointer,
        logbook=Logbook(folder, keep_bytes=progress.metrics_bytes if is_own else 0),
        evaluator=evaluator(dataset, precision) if config.eval_during_train else None,
        progress=progress,
        own=own,
        sharing=sharing,
        freezing=freezing,
    )


def records(folder, mode=None) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if mode in (None, r["mode"])]


def arrays(model) -> dict[str, np.ndarray]:
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


class Killed(BaseException):
    """A process that ends without a word."""


def fit_and_die(run: Trainer, step: int) -> None:
    """Train until so many steps are done, and die in the next."""
    original = run.train_step

    def die(*args):
        if run.progress.global_step == step:
            raise Killed
        return original(*args)

    run.train_step = die
    with pytest.raises(Killed):
        run.fit()
