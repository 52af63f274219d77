"""Classify images, or detect objects in them, with an export folder and any of its runtimes."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ppcls.data.images import Image, Preparation, PreparedImage
from ppcls.deploy.package import MANIFEST, Manifest, read_manifest
from ppcls.deploy.runtimes import Runtime, choose_form, open_runtime
from ppcls.metric.detection.types import split_rows
from ppcls.metric.results import (
    Result,
    check_finite,
    found_objects,
    numbered_names,
    softmax,
    top_classes,
)
from ppcls.utils.errors import DataError, JobError, UserError

if TYPE_CHECKING:
    from paddle import nn

logger = logging.getLogger("ppcls")

_TINY = np.finfo(np.float32).tiny
_BATCH_SIZE = {"latency": 1, "throughput": 16}


class Predictor:
    """An exported network: images in, results as `tools/infer.py` prints them out.

    `predict` does it all. A server takes it in two steps: `prepare` for each image, then `run` for
    a batch of them. All three may be called from several threads; how many calls of `run` at a time
    are worth it is `streams`.

    Attributes:
        manifest: what the folder says of the network.
        class_names: by class number; None when a classifier has none.
        precision, batch_size: as below.

    Args:
        path: what `tools/export_model.py` wrote.
        runtime: the form to run, such as "openvino" or "openvino-int8". None takes the fastest one
            of float32 whose package is installed, and says in the log which.
        threads: None for PPCLS_NUM_THREADS, or else as many as there are cores.
        precision: "float32", or "bfloat16" for less time and other low digits.
        hint: what counts, "latency" of one batch or "throughput" of many.
        batch_size: images `predict` computes at once. None: as many as the network is made for, or
            1 for latency and 16 for throughput.
        flip: average a classifier's logits of an image and its mirror image, at twice the time.

    Raises UserError for a folder that is no whole export, a runtime that is not installed, and an
    option it does not have.
    """

    def __init__(
        self,
        path: str | Path,
        runtime: str | None = None,
        threads: int | None = None,
        precision: str = "float32",
        hint: str = "latency",
        batch_size: int | None = None,
        flip: bool = False,
    ) -> None:
        folder = Path(path)
        manifest = read_manifest(folder)
        form = choose_form(folder, manifest, precision) if runtime is None else runtime
        loaded = open_runtime(
            folder, manifest, form, threads=threads, precision=precision, hint=hint
        )
        where = f"{folder / MANIFEST}: PreProcess.transform_ops"
        size = _batch_size(batch_size, manifest, hint)
        self._set_up(manifest, loaded, precision, size, where, flip)
        logger.info("%s: %s", folder, self.describe())

    @classmethod
    def from_network(
        cls,
        network: nn.Layer,
        manifest: Manifest,
        *,
        batch_size: int | None = None,
        flip: bool = False,
    ) -> Predictor:
        """Make a predictor of a network in memory, which runs in dygraph.

        network: maps what the manifest says goes in to what it says comes out: a classifier images
        to its `output`. An `SSD` gets its post-processing here.
        """
        from ppcls.deploy.runtimes.dygraph import DygraphRuntime

        predictor = cls.__new__(cls)
        size = _batch_size(batch_size, manifest, "latency")
        loaded = DygraphRuntime(network, manifest)
        predictor._set_up(manifest, loaded, "float32", size, "transform_ops", flip)
        return predictor

    def _set_up(
        self,
        manifest: Manifest,
        loaded: Runtime,
        precision: str,
        batch_size: int,
        where: str,
        flip: bool,
    ) -> None:
        if flip and manifest.task == "detection":
            raise UserError("flip: expected a classifier, got a detector")
        self.manifest = manifest
        self.precision = precision
        self.batch_size = batch_size
        self.flip = flip
        self._runtime = loaded
        self.class_names = manifest.class_names
        if self.class_names is None and manifest.task == "detection":
            self.class_names = numbered_names(manifest.class_num)
        spec = manifest.input
        self._prepare = Preparation(
            manifest.transform_ops,
            where,
            task=manifest.task,
            layout=spec.layout,
            dtype=spec.dtype,
        )

    @property
    def runtime(self) -> str:
        """The form that runs, such as "openvino"."""
        return self._runtime.name

    @property
    def streams(self) -> int:
        """How many calls of `run` at a time keep the machine busy."""
        return self._runtime.streams

    def describe(self) -> str:
        """Return one line: network, runtime, its version, precision and threads."""
        loaded = self._runtime
        versions = " ".join(f"{name} {version}" for name, version in loaded.versions.items())
        threads = "1 thread" if loaded.threads == 1 else f"{loaded.threads} threads"
        return (
            f"{self.manifest.arch} runs as {loaded.name} ({versions}), {self.precision}, {threads}"
        )

    def metadata(self) -> dict[str, Any]:
        """Return what a client may want to know, as values JSON can hold."""
        manifest, loaded = self.manifest, self._runtime
        return {
            "arch": manifest.arch,
            "task": manifest.task,
            "class_num": manifest.class_num,
            "class_names": self.class_names,
            "input": dataclasses.asdict(manifest.input),
            "runtime": loaded.name,
            "precision": self.precision,
            "threads": loaded.threads,
            "streams": loaded.streams,
            "batch_size": self.batch_size,
            "versions": {"export": dict(manifest.versions), "runtime": dict(loaded.versions)},
        }

    def predict(self, images: Image | Sequence[Image]) -> list[Result]:
        """Return a result per image, in order.

        images: one or several of: a path, the bytes of an image file, HWC uint8 RGB pixels as an
        array. `file_name` is None where there is no file.

        A classifier's results are those of `ppcls.metric.results.top_classes`, a detector's those
        of `found_objects`.

        Raises DataError, which names the image, for one that cannot be used; JobError for an output
        that is not finite or a runtime that fails.
        """
        batches = list(_chunks(_as_list(images), self.batch_size))
        if min(self.streams, len(batches)) < 2:
            return [result for batch in batches for result in self._predict_batch(batch)]
        with ThreadPoolExecutor(self.streams) as pool:
            return [result for part in pool.map(self._predict_batch, batches) for result in part]

    def _predict_batch(self, images: Sequence[Image]) -> list[Result]:
        return self.run([self.prepare(image) for image in images])

    def prepare(
        self, image: Image, name: str | None = None, *, keep_pixels: bool = False
    ) -> PreparedImage:
        """Decode and transform one image, see `predict`. `name` replaces its path in results.

        keep_pixels: keep the decoded image too, as HWC uint8 RGB. Raises DataError, which names the
        image, for one that cannot be used or that ends in another size than the network takes.
        """
        prepared = self._prepare(image, name, keep_pixels=keep_pixels)
        expected, found = self.manifest.input.shape[1:], list(prepared.tensor.shape)
        if any(size not in (None, there) for size, there in zip(expected, found, strict=True)):
            sizes = "x".join("any" if size is None else str(size) for size in expected)
            raise DataError(
                f"{prepared.name or 'the image'}: expected {sizes} after the transforms, "
                f"as the network takes, got {'x'.join(map(str, found))}"
            )
        return prepared

    def run(self, images: Sequence[PreparedImage]) -> list[Result]:
        """Compute one batch of what `prepare` gave; a result per image, in order.

        Images of several sizes are computed in turn, and so are more images than a network of fixed
        batch size takes. Raises JobError for an output that is not finite or a runtime that fails.
        """
        results: list[Result] = [{} for _ in images]
        for positions in self._parts(images):
            part = [images[position] for position in positions]
            for position, result in zip(positions, self._compute(part), strict=True):
                results[position] = result
        return results

    def warm_up(self, *batch_sizes: int) -> None:
        """Compute a grey picture in batches of each size, or of `batch_size`, on every stream.

        The first images of a size take longer: runtimes choose their kernels then.
        """
        image = self.prepare(np.full((256, 256, 3), 127, np.uint8))
        with ThreadPoolExecutor(self.streams) as pool:
            for size in batch_sizes or (self.batch_size,):
                list(pool.map(self.run, [[image] * size] * self.streams))

    def _parts(self, images: Sequence[PreparedImage]) -> Iterator[list[int]]:
        """Positions of images that can be computed together: of one size, and not too many."""
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for position, image in enumerate(images):
            by_shape.setdefault(image.tensor.shape, []).append(position)
        for positions in by_shape.values():
            yield from _chunks(positions, self.manifest.input.shape[0] or len(positions))

    def _compute(self, images: list[PreparedImage]) -> list[Result]:
        missing = (self.manifest.input.shape[0] or len(images)) - len(images)
        batch = images + images[-1:] * missing
        inputs = [np.stack([image.tensor for image in batch])]
        if self.manifest.task == "detection":
            inputs.append(np.array([image.size for image in batch], np.float32))
        try:
            outputs = self._runtime.run(inputs)
            if self.flip:
                axis = 3 if self.manifest.input.layout == "NCHW" else 2
                mirrored = np.ascontiguousarray(np.flip(inputs[0], axis))
                outputs = [np.stack([outputs[0], self._runtime.run([mirrored])[0]])]
        except Exception as error:  # each runtime has kinds of its own
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            shape = list(inputs[0].shape)
            raise JobError(
                f"{self.runtime}: images {shape} cannot be computed: {reason}"
            ) from error
        results = self._objects if self.manifest.task == "detection" else self._classes
        return results(outputs, batch)[: len(images)]

    def _classes(self, outputs: list[np.ndarray], images: list[PreparedImage]) -> list[Result]:
        scores = outputs[0]  # with a first dimension of two more when images are mirrored
        expected = (len(images), self.manifest.class_num)
        if scores.shape[-2:] != expected:
            raise JobError(f"{self.runtime}: expected {expected} scores, got {scores.shape}")
        check_finite(scores)
        is_logits = self.manifest.output == "logits"
        if not is_logits and (scores.min() < -1e-3 or scores.max() > 1 + 1e-3):
            raise JobError(f"{self.runtime}: expected probabilities, got {scores.max()} among them")
        if self.flip:
            # Logarithms of probabilities are logits, but for a number that softmax does not mind.
            logits = scores if is_logits else np.log(np.maximum(scores, _TINY))
            scores, is_logits = logits.mean(axis=0), True
        if is_logits:
            scores = softmax(scores)
        return [
            top_classes(image.name, row, self.manifest.topk, self.class_names)
            for image, row in zip(images, scores, strict=True)
        ]

    def _objects(self, outputs: list[np.ndarray], images: list[PreparedImage]) -> list[Result]:
        rows, counts = outputs
        found = split_rows(rows, counts, range(len(images)))
        return [
            found_objects(image.name, found[position], self.class_names)
            for position, image in enumerate(images)
        ]


def _batch_size(wanted: int | None, manifest: Manifest, hint: str) -> int:
    if wanted is None:
        return manifest.input.shape[0] or _BATCH_SIZE[hint]
    if type(wanted) is not int or wanted < 1:
        raise UserError(f"batch_size: expected a whole number from 1, got {wanted!r}")
    return wanted


def _as_list(images: Image | Sequence[Image]) -> Sequence[Image]:
    is_one = isinstance(images, (str, Path, bytes, bytearray, memoryview))
    if is_one or (isinstance(images, np.ndarray) and images.ndim != 4):
        return [images]
    return list(images)


def _chunks(items: Sequence, size: int) -> Iterator[Any]:
    return (items[start : start + size] for start in range(0, len(items), size))
