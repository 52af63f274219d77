"""Batches: what the loader makes of a list of samples, one class per kind of data set.

`stack` runs in a worker and gives NumPy arrays, which become tensors on the way to the main process
(Paddle hands over no empty ones), and Python numbers, which stay what they are. `batch` and `empty`
run there.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
import paddle

from ppcls.data.datasets import DetectionDataset, DetectionSample, ImageDataset, Sample


class Batch(NamedTuple):
    """`n` samples; `n` is below the sampler's plan when samples were skipped, and may be 0.

    images: [n, C, H, W] float32; H and W are 0 when n is.
    labels: [n] int64; [n, class_num] float32 when images are mixed, see `mixing`.
    indices: [n] int64 places in the data set, on the host.
    """

    images: paddle.Tensor
    labels: paddle.Tensor
    indices: np.ndarray


class DetectionBatch(NamedTuple):
    """`n` images with up to `M` boxes each; `n` may be 0 as in Batch, `M` is at least 1.

    images: [n, C, H, W] float32; H and W are 0 when n is.
    boxes: [n, M, 4] float32, corners relative to the image, 0..1; zeros where an image has fewer.
    labels: [n, M] int64, 1..class_num-1; 0 where an image has fewer.
    indices: [n] int64 places in the data set, on the host.
    sizes: [n, 2] int64, (height, width) of the stored images, on the host.
    """

    images: paddle.Tensor
    boxes: paddle.Tensor
    labels: paddle.Tensor
    indices: np.ndarray
    sizes: np.ndarray


class Batching(Protocol):
    """One kind of batch."""

    def stack(self, samples: list) -> dict[str, Any]:
        """Join at least one sample of the same size."""

    def batch(self, fields: dict[str, Any], indices: np.ndarray) -> Batch | DetectionBatch:
        """Make a batch of what `stack` gave."""

    def empty(self) -> Batch | DetectionBatch:
        """A batch of no samples."""


class LabelBatching:
    """Images with one label each."""

    def stack(self, samples: list[Sample]) -> dict[str, Any]:
        return {
            "images": np.stack([sample.image for sample in samples]),
            "labels": np.array([sample.label for sample in samples], dtype=np.int64),
        }

    def batch(self, fields: dict[str, Any], indices: np.ndarray) -> Batch:
        return Batch(fields["images"], fields["labels"], indices)

    def empty(self) -> Batch:
        labels = np.zeros(0, np.int64)
        return Batch(_no_images(), paddle.to_tensor(labels), np.zeros(0, np.int64))


class BoxBatching:
    """Images with any number of boxes."""

    def stack(self, samples: list[DetectionSample]) -> dict[str, Any]:
        most = max(1, *(len(sample.boxes) for sample in samples))
        boxes = np.zeros((len(samples), most, 4), np.float32)
        labels = np.zeros((len(samples), most), np.int64)
        for row, sample in enumerate(samples):
            boxes[row, : len(sample.boxes)] = sample.boxes
            labels[row, : len(sample.labels)] = sample.labels
        return {
            "images": np.stack([sample.image for sample in samples]),
            "boxes": boxes,
            "labels": labels,
            "sizes": [[int(side) for side in sample.size] for sample in samples],
        }

    def batch(self, fields: dict[str, Any], indices: np.ndarray) -> DetectionBatch:
        sizes = np.array(fields["sizes"], dtype=np.int64)
        return DetectionBatch(fields["images"], fields["boxes"], fields["labels"], indices, sizes)

    def empty(self) -> DetectionBatch:
        boxes = paddle.to_tensor(np.zeros((0, 1, 4), np.float32))
        labels = paddle.to_tensor(np.zeros((0, 1), np.int64))
        indices, sizes = np.zeros(0, np.int64), np.zeros((0, 2), np.int64)
        return DetectionBatch(_no_images(), boxes, labels, indices, sizes)


def batching_of(dataset: ImageDataset) -> Batching:
    """The kind of batch that the samples of `dataset` make."""
    return BoxBatching() if isinstance(dataset, DetectionDataset) else LabelBatching()


def _no_images() -> paddle.Tensor:
    return paddle.to_tensor(np.zeros((0, 3, 0, 0), np.float32))
