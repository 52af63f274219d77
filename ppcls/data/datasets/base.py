"""What every data set does: read a sample, transform it, and say which one failed."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np

from ppcls.data.sampler import SampleKey, sample_rng
from ppcls.data.transforms import ToCHWImage, build_transforms
from ppcls.utils.errors import DataError
from ppcls.utils.registry import Registry

DATASETS: Registry = Registry("dataset")

OnError = Literal["raise", "skip"]


class Sample(NamedTuple):
    """`image` [C, H, W] float32, its `label`, and its place in the data set."""

    image: np.ndarray
    label: np.int64
    index: int


class ClassificationDataset:
    """Images with one label each. A subclass sets `labels` and `class_num`, and reads an image.

    `dataset[key]` takes a SampleKey, or an index for epoch 0, and gives a Sample. The generator of
    its transforms depends on (seed, epoch, index) alone, see `ppcls.data.sampler`.

    Attributes:
        labels: [len] int64.
        class_num: labels are 0..class_num-1.
        class_names: one per class, or None when the data set has none.

    Args:
        transform_ops: YAML list of transforms.
        on_error: a sample that cannot be used is a DataError ("raise"), or None, which the loader
            counts and leaves out of the batch ("skip"). It is never replaced by another image.
        seed: whole number >= 0.
        config_path: dotted path of the configuration section, for errors.
    """

    labels: np.ndarray
    class_num: int
    class_names: list[str] | None = None

    def __init__(
        self,
        transform_ops: list,
        *,
        on_error: OnError = "raise",
        seed: int = 0,
        config_path: str = "",
    ) -> None:
        self.config_path = config_path
        self.transforms = build_transforms(transform_ops, self.where("transform_ops"))
        self._is_chw = any(isinstance(op, ToCHWImage) for op in self.transforms.transforms)
        self.on_error = on_error
        self.seed = seed

    def where(self, name: str) -> str:
        """Path of one of this data set's settings, as errors print it."""
        return f"{self.config_path}.{name}" if self.config_path else name

    def read(self, index: int) -> bytes | np.ndarray:
        """Return what the first transform gets: file bytes, or an HWC uint8 RGB array."""
        raise NotImplementedError

    def describe(self, index: int) -> str:
        """Where a sample comes from: a path, or an archive, member and row."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: SampleKey | int) -> Sample | None:
        try:
            return self.load(key)
        except DataError:
            if self.on_error == "skip":
                return None
            raise

    def load(self, key: SampleKey | int) -> Sample:
        """Return a sample whatever `on_error` says: DataError names it and the reason."""
        epoch, index = key if isinstance(key, SampleKey) else (0, operator.index(key))
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of a data set of {len(self)}")
        rng = sample_rng(self.seed, epoch, index)
        with naming(lambda: self.describe(index)):
            image = self._as_chw(self.transforms(self.read(index), rng))
        return Sample(image, self.labels[index], index)

    def _as_chw(self, image: Any) -> np.ndarray:
        image = np.asarray(image)
        if image.ndim != 3:
            raise ValueError(f"expected an image of 3 dimensions, got shape {list(image.shape)}")
        if not self._is_chw:
            image = image.transpose(2, 0, 1)
        if image.shape[0] not in (3, 4):
            raise ValueError(
                f"expected 3 channels after the transforms, got {image.shape[0]} "
                f"(shape {list(image.shape)})"
            )
        return np.ascontiguousarray(image, dtype=np.float32)


@contextlib.contextmanager
def naming(describe: Callable[[], str]) -> Iterator[None]:
    """Turn what reading, decoding or transforming an image raises into a DataError naming it."""
    try:
        yield
    except (OSError, ValueError, MemoryError, cv2.error) as error:
        raise DataError(f"{describe()}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """One line for an exception; the file's name is said elsewhere."""
    if isinstance(error, OSError) and error.strerror:
        return f"cannot read the file: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def check_class_num(found: int, class_num: int | None, where: str) -> int:
    """Return the number of classes, at least the `found` ones; DataError when there are more."""
    if class_num is not None and found > class_num:
        raise DataError(f"{where}: expected at most {class_num} classes (class_num), found {found}")
    return found if class_num is None else class_num
