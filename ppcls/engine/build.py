"""From a typed recipe to built objects, in the order in which a user's mistakes are cheapest."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn

from ppcls.arch import build_model
from ppcls.arch.registry import canonical_name
from ppcls.arch.weights import PublishedWeights, load_pretrained
from ppcls.data.datasets import DetectionDataset, ImageFolderDataset
from ppcls.data.datasets.folder import check_headers
from ppcls.data.loader import Loader, build_eval_loader, build_train_loader
from ppcls.data.sampler import SampleKey
from ppcls.engine import parallel, resume
from ppcls.engine.checkpoint import Checkpointer, Progress
from ppcls.engine.config import Recipe, load_recipe
from ppcls.engine.detection import (
    DetectionEvaluator,
    DetectionResult,
    DetectionTask,
    build_multibox,
    check_detector,
)
from ppcls.engine.distillation import DistillationTask, build_teacher, check_models
from ppcls.engine.ema import ExponentialMovingAverage
from ppcls.engine.evaluator import EvalResult, Evaluator
from ppcls.engine.freezing import build_freezing
from ppcls.engine.logbook import Logbook, check_visualdl, format_values
from ppcls.engine.names import with_names_of
from ppcls.engine.own_images import with_own_images
from ppcls.engine.parts import parameters_by_part
from ppcls.engine.precision import Precision
from ppcls.engine.task import ClassificationTask, Task
from ppcls.engine.testing import at_test_size
from ppcls.engine.trainer import Trainer
from ppcls.loss import CombinedLoss, build_loss
from ppcls.metric import build_metric
from ppcls.metric.detection import build_detection_metrics
from ppcls.ops.accelerate import accelerate
from ppcls.optimizer import build_optimizer, build_schedule
from ppcls.utils import distributed, fileio, runtime, schema, seeding
from ppcls.utils import logger as log
from ppcls.utils.errors import ConfigError, DataError, JobError, NotDownloaded, UserError
from ppcls.utils.fileio import atomic_write_text

logger = logging.getLogger("ppcls")

_INITIAL_WEIGHTS_STREAM = 3  # keeps the seed of initial weights apart from the data pipeline's
_QUICKLY_CHECKED = 50_000  # files whose first bytes are read before a training: seconds


@dataclass(frozen=True)
class Session:
    """A recipe, and the device it runs on."""

    recipe: Recipe
    device: str

    @property
    def folder(self) -> Path:
        """Where a run writes: OUTPUT_DIR/ARCH."""
        name = str(self.recipe.arch_name)
        return Path(self.recipe.Global.output_dir) / (canonical_name(name) or name)


def open_session(
    path: str, overrides: Sequence[str], runtime_note: str, *, training: bool = False
) -> Session:
    """Read a recipe, choose the device, join the other processes, and say all of it in the log.

    Except in training, where only the evaluation has it, `Global.test_size` takes effect.
    """
    log.setup(distributed.rank())
    recipe, translation = load_recipe(path, overrides, distributed.world_size())
    if translation:
        logger.info("%s is of the release/2.0 schema; translated:", path)
    for line in translation:
        logger.info("  %s", line)
    recipe = with_own_images(recipe)
    if not isinstance(recipe.Arch.get("name"), str):
        raise ConfigError(f"Arch.name: expected an architecture, got {recipe.Arch.get('name')!r}")
    device = parallel.select_device(recipe.Global.device)
    parallel.start()
    logger.info(
        "paddle %s on %s, process %d of %d, %s",
        paddle.__version__,
        device,
        distributed.rank(),
        distributed.world_size(),
        runtime_note,
    )
    return Session(recipe if training else at_test_size(recipe), device)


def build_network(session: Session, *, new_head: bool = False) -> nn.Layer:
    """Build the network and load `Global.pretrained_model`, or else `Arch.pretrained`, into it.

    With `new_head` weights of another class count are welcome: the classifier starts anew.
    """
    recipe = session.recipe
    paddle.seed(seeding.derive(recipe.Global.seed, _INITIAL_WEIGHTS_STREAM))
    arch = canonical_name(recipe.Arch["name"])
    section = dict(recipe.Arch)
    # Our networks' own argument would take any class count, which an evaluation must not.
    pretrained = section.pop("pretrained", False) if arch else False
    where = recipe.arch_where
    pretrained = schema.coerce(pretrained, bool | str | None, f"{where}.pretrained")
    model = build_model({"Arch": section}, where)
    chosen = recipe.Global.pretrained_model or pretrained
    if chosen:
        try:
            load_pretrained(model, arch, chosen, new_head=new_head)
        except NotDownloaded as error:
            raise UserError(f"{error}; or type -o Global.pretrained_model=PATH") from error
    return model


def make_fast(session: Session, model: nn.Layer) -> nn.Layer:
    """Compile the network when `Global.to_static` says so, else choose a CPU's operators."""
    config = session.recipe.Global
    if not config.to_static:
        if session.device == "cpu":
            for line in accelerate(model):
                logger.info("%s", line)
            runtime.settle_memory(thrifty=bool(session.recipe.Arch.get("recompute")))
        return model
    spec = [paddle.static.InputSpec([None, *config.image_shape], "float32")]
    return paddle.jit.to_static(model, input_spec=spec, full_graph=True)


def build_task(session: Session, precision: Precision) -> Task:
    """Build what a training step computes, with `Loss.Train`, `Metric.Train` and a teacher."""
    recipe = session.recipe
    shape = recipe.Global.image_shape
    if recipe.Global.task == "detection":
        loss, weight = build_multibox(recipe.Loss.Train, "Loss.Train")
        if recipe.Metric.Train:
            raise ConfigError("Metric.Train: expected none for a detector, got a list")
        return DetectionTask(loss, weight, precision, shape)
    metric = build_metric(recipe.Metric.Train, "Metric.Train", recipe.class_num)
    loss = build_loss(recipe.Loss.Train, "Loss.Train")
    check_mixing(recipe, loss)
    check_models(recipe.distillation, loss, metric, "Train")
    if recipe.distillation is None:
        return ClassificationTask(loss, metric, precision, shape)
    teacher = build_teacher(recipe.distillation, precision)
    teacher = dataclasses.replace(teacher, network=make_fast(session, teacher.network))
    return DistillationTask(loss, metric, precision, shape, teacher)


def check_mixing(recipe: Recipe, loss: CombinedLoss) -> None:
    """Raise ConfigError when images are mixed and a loss does not take their labels."""
    train = recipe.DataLoader.Train
    refusing = loss.without_soft_labels()
    if train is not None and train.dataset.get("batch_transform_ops") and refusing:
        raise ConfigError(
            "Loss.Train: expected losses that take the soft labels of "
            f"DataLoader.Train.dataset.batch_transform_ops, got {', '.join(refusing)}"
        )


def build_evaluator(
    session: Session, precision: Precision, *, keep_predictions: bool = False
) -> Evaluator | DetectionEvaluator:
    """Build evaluation on `DataLoader.Eval` with `Loss.Eval` and `Metric.Eval`.

    keep_predictions: a classifier's result has them, see `Evaluator`.
    """
    recipe = session.recipe
    if recipe.Global.task == "detection":
        return _detection_evaluator(recipe, precision)
    loader = _loader(build_eval_loader, recipe, "Eval")
    loss = build_loss(recipe.Loss.Eval or [{"CELoss": {}}], "Loss.Eval")
    metric = build_metric(recipe.Metric.Eval, "Metric.Eval", recipe.class_num)
    check_models(recipe.distillation, loss, metric, "Eval")
    return Evaluator(
        loader,
        loss,
        metric,
        precision,
        recipe.Global.print_batch_step,
        flip=recipe.Global.test_flip,
        keep_predictions=keep_predictions,
    )


def _detection_evaluator(recipe: Recipe, precision: Precision) -> DetectionEvaluator:
    metrics = build_detection_metrics(recipe.Metric.Eval, "Metric.Eval")
    if not metrics:
        raise ConfigError("Metric.Eval: expected COCOMetric or VOCMetric, found none")
    loader = _loader(build_eval_loader, recipe, "Eval")
    _check_dataset(loader, recipe, "Eval")
    folder = Path(recipe.Global.results_dir) if recipe.Global.results_dir else None
    if folder is not None:
        check_writable(folder, "Global.results_dir")
    step = recipe.Global.print_batch_step
    return DetectionEvaluator(loader, metrics, recipe.Infer.Detection, precision, step, folder)


def _check_dataset(loader: Loader, recipe: Recipe, phase: str) -> None:
    """Raise ConfigError when a data set is of another kind than `Global.task`."""
    is_detection = isinstance(loader.dataset, DetectionDataset)
    if is_detection != (recipe.Global.task == "detection"):
        kind = "boxes" if is_detection else "one label per image"
        raise ConfigError(
            f"DataLoader.{phase}.dataset: expected a data set for Global.task: "
            f"{recipe.Global.task}, got one with {kind}"
        )


def _check_same_classes(train: Loader, evaluation: Loader) -> None:
    """Raise DataError when a label means different classes in two sets whose classes have names."""
    wanted, found = train.dataset.class_names, evaluation.dataset.class_names
    if wanted is None or found is None:
        return
    pairs = itertools.zip_longest(wanted, found)
    other = next((i for i, (name, own) in enumerate(pairs) if name != own), None)
    if other is not None:
        own, name = (names[other] if other < len(names) else None for names in (found, wanted))
        raise DataError(
            "DataLoader.Eval.dataset: expected the classes of DataLoader.Train in the same order, "
            f"found label {other} to be {own!r} instead of {name!r}"
        )


def check_first_bytes(loader: Loader) -> None:
    """Raise DataError naming files of a folder data set that are no images, if that is quick."""
    dataset = loader.dataset
    is_quick = isinstance(dataset, ImageFolderDataset) and len(dataset) <= _QUICKLY_CHECKED
    if is_quick and dataset.on_error == "raise":
        check_headers(dataset, "DataLoader.Train.dataset")


def build_trainer(session: Session) -> Trainer:
    """Build everything a training run needs, and its folder last.

    The state comes from the run's own folder (`Global.auto_resume`), else `Global.checkpoints`,
    else only weights from `Global.pretrained_model`, else from the initialisation.
    """
    recipe = session.recipe
    check_writable(session.folder)
    lock_folder(session.folder)
    resumed = resume.find_checkpoint(recipe, session.folder)
    if resumed is not None:
        session = dataclasses.replace(session, recipe=resume.without_pretrained(recipe))
    if recipe.Global.use_visualdl:
        check_visualdl()
    precision = Precision(recipe.AMP, session.device)
    task = build_task(session, precision)
    taught_by = task.teacher.digest if isinstance(task, DistillationTask) else None
    if resumed is not None and taught_by is not None:
        resume.check_same_teacher(resumed, taught_by)
    evaluator = _evaluator_of_training(session, precision)
    global_batch = resume.global_batch_size(recipe, resumed) if recipe.DataLoader.Train else None
    loader = _loader(build_train_loader, recipe, "Train", global_batch_size=global_batch)
    _check_dataset(loader, recipe, "Train")
    if evaluator is not None:
        _check_same_classes(loader, evaluator.loader)
    check_first_bytes(loader)
    recipe = with_names_of(recipe, loader.dataset)
    facts = resume.data_facts(loader)  # reads every sample's name: once
    if taught_by is not None:
        facts["teacher"] = taught_by
    if resumed is not None:
        resume.check_same_data(resumed, facts)
    model = build_network(session, new_head=True)
    _rehearse(model, loader, recipe, task)
    if "lr" not in recipe.Optimizer:
        raise ConfigError("Optimizer.lr: expected a learning-rate schedule, found none")
    schedule = build_schedule(
        recipe.Optimizer["lr"],
        "Optimizer.lr",
        epochs=recipe.Global.epochs,
        steps_per_epoch=-(-len(loader.sampler) // recipe.Global.update_freq),
    )
    optimizer = build_optimizer(
        recipe.Optimizer,
        "Optimizer",
        schedule=schedule,
        model=model,
        parts=parameters_by_part(model),
    )
    precision.prepare(model, optimizer)
    freezing = build_freezing(recipe, model, optimizer)
    checkpointer = Checkpointer(
        session.folder,
        model,
        optimizer,
        recipe.to_mapping(),
        data=facts,
        keep_last=recipe.Global.keep_last,
        ema=None if recipe.EMA is None else ExponentialMovingAverage(recipe.EMA, model),
    )
    checkpointer.register("scaler", precision)
    progress, own = checkpointer.load(resumed) if resumed else (Progress(), None)
    logbook = _open_folder(session, recipe, checkpointer, progress if resumed else None)
    return Trainer(
        recipe.Global,
        model=make_fast(session, model),
        loader=loader,
        task=task,
        optimizer=optimizer,
        schedule=schedule,
        precision=precision,
        checkpointer=checkpointer,
        logbook=logbook,
        evaluator=evaluator,
        progress=progress,
        own=own,
        sharing=recipe.Distributed,
        freezing=freezing,
    )


def _evaluator_of_training(
    session: Session, precision: Precision
) -> Evaluator | DetectionEvaluator | None:
    config = session.recipe.Global
    if not config.eval_during_train:
        return None
    if config.test_size is not None and config.to_static:
        raise ConfigError(
            "Global.test_size: expected none in training with Global.to_static, whose network "
            f"takes one size, got {config.test_size}"
        )
    tested = dataclasses.replace(session, recipe=at_test_size(session.recipe))
    return build_evaluator(tested, precision)


def _rehearse(model: nn.Layer, loader: Loader, recipe: Recipe, task: Task) -> None:
    """Find out before a folder is opened whether the network takes what the loader gives.

    Raises DataError for a first image that cannot be used, UserError for one the network refuses
    or an output of another class count.
    """
    sampler = loader.sampler
    has_sync_bn = any(isinstance(part, nn.SyncBatchNorm) for part in model.sublayers())
    if has_sync_bn and sampler.global_size(len(sampler) - 1) < sampler.world_size:
        raise ConfigError(
            "DataLoader.Train.sampler.drop_last: expected True, because the last batch has fewer "
            "images than processes, and each takes part in Arch.use_sync_bn; got False"
        )
    # Progressive sizes: the first epoch has the smallest images, the last one the largest.
    images = [_first_image(loader, epoch) for epoch in sorted({0, recipe.Global.epochs - 1})]
    sizes = {image.shape: image for image in images}
    model.eval()
    with paddle.no_grad():
        for image in sizes.values():
            task.rehearse(model, paddle.to_tensor(image[None]), recipe.class_num)
    model.train()


def _first_image(loader: Loader, epoch: int) -> np.ndarray:
    """Return the first usable image of the data set, as an epoch has it."""
    keys = (SampleKey(epoch, index) for index in range(len(loader.dataset)))
    found = (loader.dataset[key] for key in keys)
    sample = next((sample for sample in found if sample is not None), None)
    if sample is None:
        raise DataError("DataLoader.Train: expected at least one usable image, found none")
    return sample.image


def check_writable(folder: Path, setting: str = "Global.output_dir") -> None:
    """Raise UserError naming `setting` when `folder` cannot be made or written; it is not made."""
    existing = next((p for p in (folder, *folder.absolute().parents) if p.exists()), folder)
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(
            f"{setting}: expected a folder that can be written, but {existing} "
            f"{'cannot be' if existing.is_dir() else 'is not a folder'}"
        )


def _open_folder(
    session: Session, recipe: Recipe, checkpointer: Checkpointer, resumed: Progress | None
) -> Logbook:
    """Make the run's folder and open its log; `resumed` is where a run goes on."""
    folder = session.folder
    keep_bytes = 0
    if distributed.rank() > 0:
        log.add_file(folder / "train.log")
    else:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock_folder(folder)
            log.add_file(folder / "train.log")
        except OSError as error:
            raise UserError(
                f"Global.output_dir: expected a folder that can be written, "
                f"but {folder}: {error.strerror}"
            ) from error
        logger.info("the run's folder: %s", folder)
        if checkpointer.take_over() and resumed is not None:
            keep_bytes = resumed.metrics_bytes
        atomic_write_text(folder / "config.yaml", recipe.to_yaml())
        _log_start(recipe, checkpointer, resumed)
    use_visualdl = recipe.Global.use_visualdl
    logbook = Logbook(folder, keep_bytes=keep_bytes, use_visualdl=use_visualdl)
    checkpointer.before_write = logbook.sync
    return logbook


def lock_folder(folder: Path) -> None:
    """Let one job at a time write a run's folder, if it is there. Only rank 0 locks.

    Raises JobError when another process has it: two would remove each other's checkpoints.
    """
    if distributed.rank() > 0 or not folder.is_dir():
        return
    if not fileio.lock_file(folder / ".lock"):
        raise JobError(
            f"{folder}: expected a folder nobody writes to, but another process trains in it"
        )


def _log_start(recipe: Recipe, checkpointer: Checkpointer, resumed: Progress | None) -> None:
    if resumed is None:
        return
    logger.info(
        "going on after epoch %d, step %d of %s",
        resumed.epoch,
        resumed.step,
        checkpointer.newest(),
    )
    if resumed.epoch >= recipe.Global.epochs and not resumed.evaluation_due:
        logger.warning("nothing is left to do: Global.epochs is %d", recipe.Global.epochs)


def _loader(
    build_loader: Callable[..., Loader], recipe: Recipe, phase: str, **options: Any
) -> Loader:
    """Build this rank's loader of `DataLoader.PHASE`."""
    config, where = getattr(recipe.DataLoader, phase), f"DataLoader.{phase}"
    if config is None:
        raise ConfigError(f"{where}: expected a section with dataset and sampler, found none")
    return build_loader(
        config,
        where,
        seed=recipe.Global.seed,
        class_num=recipe.class_num,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        **options,
    )


def evaluate(session: Session, *, keep_predictions: bool = False) -> EvalResult | DetectionResult:
    """Evaluate `Global.pretrained_model` on `DataLoader.Eval`, and log the result.

    keep_predictions: a classifier's result has them, see `Evaluator`.
    Raises UserError when no weights are named: an untrained network has nothing to measure.
    """
    recipe = session.recipe
    require_weights(session)
    precision = Precision(recipe.AMP, session.device)
    evaluator = build_evaluator(session, precision, keep_predictions=keep_predictions)
    model = build_network(session)
    if recipe.Global.task == "detection":
        check_detector(model)
    precision.prepare(model)
    result = evaluator.evaluate(make_fast(session, model))
    values = format_values({**result.losses, **result.metrics})
    logger.info("[Eval][Epoch 0][Avg]%s", values)
    logger.info("%d images in %.1f s", result.samples, result.seconds)
    if result.skipped:
        logger.warning("skipped images: %d", result.skipped)
    return result


def require_weights(session: Session) -> None:
    """Raise UserError unless the recipe names weights to use.

    `Arch.pretrained: True` means published weights, which know ImageNet's classes only: a recipe of
    other classes begins its training with them.
    """
    recipe = session.recipe
    pretrained = recipe.Arch.get("pretrained")
    is_own = canonical_name(recipe.Arch["name"]) is not None
    is_start = is_own and pretrained is True and recipe.class_num != PublishedWeights.class_num
    if not recipe.Global.pretrained_model and (not pretrained or is_start):
        raise UserError(
            "Global.pretrained_model: expected weights to use, found none; "
            "type -o Global.pretrained_model=PATH"
        )
