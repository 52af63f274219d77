"""From a `DataLoader.Train` or `DataLoader.Eval` section to batches.

Workers get sample keys and return whole batches, of pixels where `pipeline` says so; these are
normalised here, after their way to the device. On a GPU Paddle makes that way through pinned memory
and while the previous batch is computed with. A sample that fails is returned as a value, not
raised: Paddle turns a worker's exception into a traceback, and without workers into a hang.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import signal
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import cv2
import numpy as np
from paddle.io import DataLoader

from ppcls.data.batch import Batch, Batching, DetectionBatch, batching_of
from ppcls.data.batch_ops import BatchOp, build_batch_op
from ppcls.data.datasets import (
    DATASETS,
    ClassificationDataset,
    DetectionDataset,
    DetectionSample,
    ImageDataset,
    Sample,
)
from ppcls.data.deadline import Deadline, Stalled
from ppcls.data.mixing import MixedBatching, MixingSampler, MixPlan, pair_up
from ppcls.data.pipeline import PipelineName, choose_pipeline
from ppcls.data.progressive import ProgressiveConfig, check_transforms
from ppcls.data.sampler import EvalSampler, GlobalBatchSampler, SampleKey
from ppcls.data.train_samplers import BALANCED, REPEATED, SamplerConfig, build_train_sampler
from ppcls.utils.errors import ConfigError, DataError, JobError
from ppcls.utils.schema import at_least, build_named, parse_dataclass

_logger = logging.getLogger("ppcls")

_BATCH_OPS = "batch_transform_ops"  # PaddleClas's key in the `dataset` section
_WORKER_DIED = "a worker process died, often for lack of memory or of space in /dev/shm"
MAX_WAIT = 24 * 3600.0  # seconds


@dataclass(frozen=True)
class LoaderConfig:
    """How samples are computed; none of it changes them."""

    num_workers: int = 4  # processes; 0 computes in a thread of the main process
    use_shared_memory: bool = True  # workers hand batches over through /dev/shm
    prefetch_factor: int = 2  # batches prepared ahead per worker
    timeout: int = 0  # seconds between looks at the workers' health; 0 leaves Paddle's own
    read_timeout: float = 120.0  # seconds for reading and transforming one sample; 0: no limit
    pipeline: PipelineName = (
        "auto"  # fast where it gives the same pixels, plain, or fast or nothing
    )

    def __post_init__(self) -> None:
        at_least(0, num_workers=self.num_workers, timeout=self.timeout)
        if not 0 <= self.read_timeout <= MAX_WAIT:
            raise ValueError(
                f"read_timeout: expected seconds from 0 to {MAX_WAIT:.0f}, got {self.read_timeout}"
            )
        at_least(1, prefetch_factor=self.prefetch_factor)


@dataclass(frozen=True)
class DataLoaderConfig:
    """A `DataLoader.Train` or `DataLoader.Eval` section."""

    dataset: dict
    sampler: SamplerConfig
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    progressive: ProgressiveConfig | None = None  # training: sizes by epoch


def build_dataset(
    section: Mapping, where: str, *, seed: int = 0, class_num: int | None = None
) -> ImageDataset:
    """Build a `dataset` section (`name` and its parameters); `class_num` bounds the labels.

    In detection it counts the background, and must be right. `batch_transform_ops` is left to the
    loader.
    """
    if isinstance(section, Mapping):
        section = {key: item for key, item in section.items() if key != _BATCH_OPS}
    return build_named(DATASETS, section, where, seed=seed, class_num=class_num, config_path=where)


def build_train_loader(
    config: Mapping | DataLoaderConfig,
    where: str,
    *,
    seed: int = 0,
    class_num: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    global_batch_size: int | None = None,
) -> Loader:
    """Build the loader of a training section; call `loader.sampler.set_epoch` before an epoch.

    global_batch_size: samples per step over all processes, if not `batch_size` on each.
    """
    config = _parse(config, where)
    op_where = f"{where}.dataset.{_BATCH_OPS}"
    op = build_batch_op(config.dataset.get(_BATCH_OPS), op_where)
    dataset = build_dataset(config.dataset, f"{where}.dataset", seed=seed, class_num=class_num)
    if op is not None and isinstance(dataset, DetectionDataset):
        raise ConfigError(f"{op_where}: expected none for images with boxes, got a list")
    if config.progressive is not None:
        _set_sizes(dataset, config.progressive, where)
    sampler = build_train_sampler(
        config.sampler,
        dataset,
        f"{where}.sampler",
        is_mixed=op is not None,
        seed=seed,
        rank=rank,
        world_size=world_size,
        global_batch_size=global_batch_size,
    )
    if len(sampler) == 0:
        raise ConfigError(
            f"{where}.sampler.batch_size: expected at most {sampler.num_samples // world_size} "
            f"({sampler.num_samples} samples on {world_size} process(es), drop_last on), "
            f"got {config.sampler.batch_size}"
        )
    return Loader(dataset, sampler, config.loader, op, where)


def build_eval_loader(
    config: Mapping | DataLoaderConfig,
    where: str,
    *,
    seed: int = 0,
    class_num: int | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Loader:
    """Build the loader of an evaluation section: each sample once over all processes, in order."""
    config = _parse(config, where)
    if config.sampler.name in REPEATED + BALANCED:
        raise ConfigError(
            f"{where}.sampler.name: expected DistributedBatchSampler in evaluation, where every "
            f"image counts once, got {config.sampler.name}"
        )
    if config.progressive is not None:
        raise ConfigError(f"{where}.progressive: expected none in evaluation, got sizes")
    for name in ("drop_last", "shuffle"):
        if getattr(config.sampler, name):
            raise ConfigError(
                f"{where}.sampler.{name}: expected false in evaluation, where every image counts "
                "once, got True"
            )
    if config.dataset.get(_BATCH_OPS):
        raise ConfigError(f"{where}.dataset.{_BATCH_OPS}: expected none in evaluation, got a list")
    dataset = build_dataset(config.dataset, f"{where}.dataset", seed=seed, class_num=class_num)
    sampler = EvalSampler(len(dataset), config.sampler.batch_size, rank, world_size)
    return Loader(dataset, sampler, config.loader, where=where)


def _set_sizes(dataset: ImageDataset, sizes: ProgressiveConfig, where: str) -> None:
    if not isinstance(dataset, ClassificationDataset):
        raise ConfigError(f"{where}.progressive: expected none for images with boxes, got sizes")
    check_transforms(dataset.transforms, f"{where}.dataset.transform_ops")
    dataset.progressive = sizes


def _parse(config: Mapping | DataLoaderConfig, where: str) -> DataLoaderConfig:
    if isinstance(config, DataLoaderConfig):
        return config
    return parse_dataclass(DataLoaderConfig, config, where)


class Loader:
    """Batches of `dataset` in the order of `sampler`; their kind is the data set's.

    With `op` images are mixed in pairs and labels soft. Only a GlobalBatchSampler has pairs.

    Attributes:
        skipped: samples left out so far in this iteration. Each is named once in the log.
        normalization: what is applied to batches of pixels, or None when samples are normalised.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        sampler: GlobalBatchSampler | EvalSampler,
        config: LoaderConfig,
        op: BatchOp | None = None,
        where: str = "DataLoader",
    ) -> None:
        self.dataset = dataset
        self.sampler = sampler
        self.skipped = 0
        self._where = where
        self._said_size: int | None = None
        self._named: set[int] = set()
        self._batching = batching_of(dataset)
        batches: Any = sampler
        if op is not None:
            self._batching = MixedBatching(op, dataset.class_num, dataset.seed)
            batches = MixingSampler(sampler)
        pipeline = choose_pipeline(config.pipeline, dataset, where, is_mixed=op is not None)
        self.normalization = pipeline.normalization
        self._loader = DataLoader(
            _Outcomes(pipeline.dataset, config.read_timeout),
            batch_sampler=_Whole(batches),
            collate_fn=functools.partial(collate, batching=self._batching),
            num_workers=config.num_workers,
            use_shared_memory=config.use_shared_memory,
            prefetch_factor=config.prefetch_factor,
            timeout=config.timeout,
            worker_init_fn=_start_worker,
        )

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch | DetectionBatch]:
        """Yield batches, normalised.

        Raises:
            DataError: a sample that cannot be used, or images of different sizes in one batch.
            JobError: a worker process that died, or a sample that was not there in time.
        """
        for batch in self.as_loaded():
            if self.normalization is not None and len(batch.indices):
                batch = batch._replace(images=self.normalization.normalize(batch.images))
            yield batch

    def as_loaded(self) -> Iterator[Batch | DetectionBatch]:
        """Yield batches as they arrive: with a `normalization`, images are [n, H, W, 3] uint8."""
        self.skipped = 0
        planned = self.sampler.remaining
        if planned == 0:
            return
        self._say_size()
        # Workers are forked: garbage they found would be finalised by them, and a dead iterator's
        # finaliser waits for threads a fork does not have.
        gc.collect()
        batches = iter(self._loader)
        for number in range(planned):
            try:
                fields = next(batches)
            except (StopIteration, SystemError, RuntimeError, OSError) as error:
                raise JobError(
                    f"data loading stopped after {number} of {planned} batches: {_WORKER_DIED}"
                ) from error
            yield self._to_batch(fields)
        next(batches, None)  # lets Paddle end its workers

    def _say_size(self) -> None:
        """Log the images' size, if the epoch decides it and it is another than before."""
        sizes = getattr(self.dataset, "progressive", None)
        if sizes is None or not isinstance(self.sampler, GlobalBatchSampler):
            return
        epoch = self.sampler.epoch
        size = sizes.size(epoch)
        if size != self._said_size:
            _logger.info("%s: epoch %d has images of %dx%d", self._where, epoch + 1, size, size)
        self._said_size = size

    def _to_batch(self, fields: dict[str, Any]) -> Batch | DetectionBatch:
        if fields["bug"]:
            raise RuntimeError(f"a transform, data set or batch failed:\n{fields['bug']}")
        if fields["stall"]:
            raise JobError(fields["stall"])
        if fields["error"]:
            raise DataError(fields["error"])
        for index, message in zip(fields["skipped"], fields["messages"], strict=True):
            self.skipped += 1
            if index not in self._named:
                self._named.add(index)
                _logger.warning("skipped %s", message)
        indices = np.array(fields["indices"], dtype=np.int64)
        if not len(indices):
            return self._batching.empty()
        return self._batching.batch(fields["samples"], indices)


class _Failure(NamedTuple):
    """A sample that gave no image, and why."""

    index: int
    message: str
    is_skipped: bool = False
    is_bug: bool = False
    is_stall: bool = False


# What a key gives, and the sample's name.
Outcome = tuple[Sample | DetectionSample | _Failure, str]


class _Whole:
    """Batches of keys as Paddle's loader takes them: each one index of `_Outcomes`."""

    def __init__(self, batches: Any) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[list[SampleKey | MixPlan]]]:
        return ([keys] for keys in self.batches)


class _Outcomes:
    """The data set as workers see it, a batch at once: what its keys give, a plan itself."""

    def __init__(self, dataset: ImageDataset, read_timeout: float) -> None:
        self.dataset = dataset
        self._deadline = Deadline(read_timeout) if read_timeout else None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, keys: list[SampleKey | MixPlan]) -> list[Outcome | MixPlan]:
        if self._deadline is None:
            return [self._outcome(key) for key in keys]
        try:
            return self._deadline.map(self._outcome, keys)
        except Stalled as error:
            index = keys[error.done].index
            message = f"{self.dataset.describe(index)}: {error}: a disk or server stalls"
            return [(_Failure(index, message, is_stall=True), "")]  # the run ends: no batch

    def _outcome(self, key: SampleKey | MixPlan) -> Outcome | MixPlan:
        if isinstance(key, MixPlan):
            return key
        try:
            return self.dataset.load(key), self.dataset.describe(key.index)
        except DataError as error:
            skipped = self.dataset.on_error == "skip"
            return _Failure(key.index, str(error), is_skipped=skipped), ""
        except Exception:  # a bug in a transform: carried to the main process and raised there
            return _Failure(key.index, traceback.format_exc(), is_bug=True), ""


@contextlib.contextmanager
def worker_deaths() -> Iterator[None]:
    """Turn what Paddle raises when a worker dies into a JobError.

    It raises in a signal handler, so anywhere in the main thread: the block is all that works on
    batches.
    """
    try:
        yield
    except SystemError as error:
        if "DataLoader process" not in str(error):
            raise
        raise JobError(f"data loading stopped: {_WORKER_DIED}") from error


def collate(loaded: list[list[Outcome | MixPlan]], batching: Batching) -> dict[str, Any]:
    """Stack the samples of the one batch loaded; failures travel beside them as text.

    Arrays in the result become tensors on the way to the main process. Paddle hands over no empty
    ones, so a batch without images carries a placeholder.
    """
    [outcomes] = loaded
    try:
        plan = outcomes[-1] if outcomes and isinstance(outcomes[-1], MixPlan) else None
        samples = [outcome for outcome in outcomes if not isinstance(outcome, MixPlan)]
        return _collate(samples, plan, batching)
    except Exception:  # too little memory for the batch, say; raised here, Paddle would hang
        failure = _Failure(-1, traceback.format_exc(), is_bug=True)
        return _collate([(failure, "")], None, batching)


def _collate(outcomes: list[Outcome], plan: MixPlan | None, batching: Batching) -> dict[str, Any]:
    samples = [(item, name) for item, name in outcomes if not isinstance(item, _Failure)]
    failures = [item for item, _ in outcomes if isinstance(item, _Failure)]
    stall = next((f.message for f in failures if f.is_stall), "")
    errors = (f.message for f in failures if not (f.is_skipped or f.is_bug or f.is_stall))
    error = next(errors, "") or _size_error(samples)
    usable: list = [] if error else [item for item, _ in samples]
    own = outcomes
    if plan is not None:
        own = outcomes[: len(plan.partners)]  # a partner from elsewhere is counted there
        loaded = [None if isinstance(item, _Failure) else item for item, _ in outcomes]
        usable = [] if error else pair_up(loaded, plan)
    skipped = [item for item, _ in own if isinstance(item, _Failure) and item.is_skipped]
    return {
        "samples": batching.stack(usable) if usable else np.zeros(1, np.float32),
        "indices": [int(s.index) for s in usable],
        "skipped": [item.index for item in skipped],
        "messages": [item.message for item in skipped],
        "error": error,
        "stall": stall,
        "bug": next((item.message for item in failures if item.is_bug), ""),
    }


def _size_error(samples: list[tuple[Sample | DetectionSample, str]]) -> str:
    """Say which two images of a batch differ in size, or "" when none do."""
    for sample, name in samples[1:]:
        first, first_name = samples[0]
        if sample.image.shape != first.image.shape:
            wanted, found = (_size_text(s.image) for s in (first, sample))
            return (
                f"{name}: expected an image of {wanted} like {first_name} of the same batch, "
                f"got {found}; add a crop or a fixed size to transform_ops"
            )
    return ""


def _size_text(image: np.ndarray) -> str:
    """Write the shape of an image, of pixels or normalised, as channels x height x width."""
    shape = (image.shape[2], *image.shape[:2]) if image.dtype == np.uint8 else image.shape
    return "x".join(map(str, shape))


def _start_worker(worker_id: int) -> None:
    # Ctrl-C goes to the whole group of processes: the main one decides, and still needs batches.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # One thread per worker: OpenCV would start one per core in each of them.
    cv2.setNumThreads(0)
