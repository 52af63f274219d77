"""What every data set does: read a sample, transform it, and say which one failed."""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import operator
import os
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np

from ppcls.data.progressive import ProgressiveConfig, resized
from ppcls.data.sampler import SampleKey, sample_rng
from ppcls.data.transforms import Compose, ToCHWImage, build_transforms
from ppcls.utils.errors import DataError
from ppcls.utils.registry import Registry

DATASETS: Registry = Registry("dataset")

OnError = Literal["raise", "skip"]


class Sample(NamedTuple):
    """`image`, its `label`, and its place in the data set.

    image: [C, H, W] float32, or [H, W, 3] uint8 where pixels were asked for.
    """

    image: np.ndarray
    label: np.int64
    index: int


class ImageDataset:
    """Images, each with something to learn about it. A kind of data set makes samples of them.

    `dataset[key]` takes a SampleKey, or an index for epoch 0, and gives a sample. The generator of
    its transforms depends on the seed and the key alone, see `ppcls.data.sampler`.

    Attributes:
        class_num: labels are 0..class_num-1.
        class_names: one per class, or None when the data set has none.

    Args:
        on_error: a sample that cannot be used is a DataError ("raise"), or None, which the loader
            counts and leaves out of the batch ("skip"). It is never replaced by another image.
        seed: whole number >= 0.
        config_path: dotted path of the configuration section, for errors.
    """

    class_num: int
    class_names: list[str] | None = None

    def __init__(
        self, *, on_error: OnError = "raise", seed: int = 0, config_path: str = ""
    ) -> None:
        self.on_error = on_error
        self.seed = seed
        self.config_path = config_path

    def where(self, name: str) -> str:
        """Path of one of this data set's settings, as errors print it."""
        return f"{self.config_path}.{name}" if self.config_path else name

    def __len__(self) -> int:
        raise NotImplementedError

    def read(self, index: int) -> bytes | np.ndarray:
        """Return what the first transform gets: file bytes, or an HWC uint8 RGB array."""
        raise NotImplementedError

    def describe(self, index: int) -> str:
        """Where a sample comes from: a path, or an archive, member and row."""
        raise NotImplementedError

    def sample_name(self, index: int) -> str:
        """A sample's name without its folder, the same wherever the data set lies."""
        return os.path.basename(self.describe(index))

    def digest(self) -> str:
        """SHA-256 of the samples' names, in order, without their folders."""
        found = hashlib.sha256()
        for index in range(len(self)):
            found.update(self.sample_name(index).encode("utf-8", "surrogateescape"))
            found.update(b"\0")
        return found.hexdigest()

    def make_sample(self, key: SampleKey, rng: np.random.Generator) -> NamedTuple:
        """Read and transform; what goes wrong with the image is an OSError or a ValueError."""
        raise NotImplementedError

    def __getitem__(self, key: SampleKey | int) -> NamedTuple | None:
        try:
            return self.load(key)
        except DataError:
            if self.on_error == "skip":
                return None
            raise

    def load(self, key: SampleKey | int) -> NamedTuple:
        """Return a sample whatever `on_error` says: DataError names it and the reason."""
        key = key if isinstance(key, SampleKey) else SampleKey(0, operator.index(key))
        if not 0 <= key.index < len(self):
            raise IndexError(f"sample {key.index} of a data set of {len(self)}")
        with naming(lambda: self.describe(key.index)):
            return self.make_sample(key, sample_rng(self.seed, *key))


class ClassificationDataset(ImageDataset):
    """Images with one label each. A subclass sets `labels` and `class_num`, and reads an image.

    Attributes:
        labels: [len] int64.
        progressive: sizes of the images by epoch; None leaves them to `transforms`.

    Args:
        transform_ops: YAML list of transforms.
    """

    labels: np.ndarray
    progressive: ProgressiveConfig | None = None

    def __init__(
        self,
        transform_ops: list,
        *,
        on_error: OnError = "raise",
        seed: int = 0,
        config_path: str = "",
    ) -> None:
        super().__init__(on_error=on_error, seed=seed, config_path=config_path)
        self.transforms = build_transforms(transform_ops, self.where("transform_ops"))
        is_chw = any(isinstance(op, ToCHWImage) for op in self.transforms.transforms)
        self._arrange: Callable[[Any], np.ndarray] = functools.partial(as_chw, is_chw=is_chw)

    def __len__(self) -> int:
        return len(self.labels)

    def digest(self) -> str:
        """SHA-256 of the samples' names, without their folders, and of their labels."""
        names = super().digest().encode()
        return hashlib.sha256(names + np.asarray(self.labels, "<i8").tobytes()).hexdigest()

    def make_sample(self, key: SampleKey, rng: np.random.Generator) -> Sample:
        transforms = self.transforms
        if self.progressive is not None:
            transforms = resized(transforms, self.progressive.size(key.epoch))
        image = self._arrange(transforms(self.read(key.index), rng))
        return Sample(image, self.labels[key.index], key.index)

    def giving_pixels(self, transforms: Compose) -> ClassificationDataset:
        """Return a view of this data set whose images are the HWC pixels `transforms` give."""
        view = copy.copy(self)
        view.transforms, view._arrange = transforms, as_pixels
        return view


def read_file(path: str) -> bytes:
    """Return the bytes of a file, at half the cost of `pathlib`. Raises OSError."""
    with open(path, "rb") as file:
        return file.read()


def as_chw(image: Any, is_chw: bool) -> np.ndarray:
    """Return the transforms' result, HWC unless `is_chw`, as CHW float32."""
    return np.ascontiguousarray(in_layout(image, is_chw, to_chw=True), dtype=np.float32)


def as_pixels(image: Any) -> np.ndarray:
    """Return the transforms' result as HWC uint8."""
    pixels = in_layout(image, False, to_chw=False)
    if pixels.dtype != np.uint8:
        raise ValueError(f"expected uint8 pixels before NormalizeImage, got {pixels.dtype}")
    return pixels


def in_layout(image: Any, is_chw: bool, *, to_chw: bool) -> np.ndarray:
    """Return the transforms' result, HWC unless `is_chw`, as a view that is CHW or HWC."""
    image = np.asarray(image)
    if image.ndim != 3:
        raise ValueError(f"expected an image of 3 dimensions, got shape {list(image.shape)}")
    channels = image.shape[0 if is_chw else 2]
    if channels not in (3, 4):
        raise ValueError(
            f"expected 3 channels after the transforms, got {channels} (shape {list(image.shape)})"
        )
    if is_chw == to_chw:
        return image
    return image.transpose((2, 0, 1) if to_chw else (1, 2, 0))


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
