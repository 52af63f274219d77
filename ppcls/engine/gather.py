"""Detections of all processes in one place: each image once, whatever the number of processes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import paddle
import paddle.distributed as dist

from ppcls.metric.detection import Detections
from ppcls.utils import distributed


def gather_detections(own: Mapping[int, Detections]) -> dict[int, Detections]:
    """Return the detections of every process on every process, in ascending order of the keys.

    own: this process's detections by index of the data set; may be empty. Values come back bit for
    bit. An image several processes have counts once, as the lowest rank has it.

    All processes must call this; it waits for them.
    """
    parts = [dict(own)]
    if distributed.world_size() > 1:
        parts = [_unpack(*arrays) for arrays in _exchange(*_pack(own))]
    merged: dict[int, Detections] = {}
    for part in reversed(parts):
        merged |= part
    return {index: merged[index] for index in sorted(merged)}


def _pack(own: Mapping[int, Detections]) -> tuple[np.ndarray, np.ndarray]:
    """Return (numbers, values): int64 [images, each index, each count, each label], and float32
    [sum of counts * 5] with score and box of each detection."""
    counts = [len(found.labels) for found in own.values()]
    labels = [found.labels for found in own.values()]
    numbers = np.concatenate([[len(own)], list(own), counts, *labels]).astype(np.int64)
    values = [np.column_stack([f.scores, f.boxes.reshape(-1, 4)]) for f in own.values()]
    return numbers, np.concatenate([np.zeros((0, 5)), *values]).astype(np.float32).ravel()


def _unpack(numbers: np.ndarray, values: np.ndarray) -> dict[int, Detections]:
    images = int(numbers[0])
    indices, counts, labels = np.split(numbers[1:], [images, 2 * images])
    cuts = np.cumsum(counts)[:-1]
    rows = values.reshape(-1, 5)
    parts = zip(indices.tolist(), np.split(labels, cuts), np.split(rows, cuts), strict=False)
    return {i: Detections(kinds, part[:, 0].copy(), part[:, 1:].copy()) for i, kinds, part in parts}


def _exchange(numbers: np.ndarray, values: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the pair of each rank, in order."""
    sizes = _all_gather(np.array([len(numbers), len(values)], np.int64))
    longest = np.max(sizes, axis=0)
    columns = [
        [row[:size] for row, size in zip(_all_gather(_padded(own, length)), own_sizes, strict=True)]
        for own, length, own_sizes in zip(
            (numbers, values), longest, zip(*sizes, strict=True), strict=True
        )
    ]
    return list(zip(*columns, strict=True))


def _padded(array: np.ndarray, length: int) -> np.ndarray:
    """Return `array` with zeros to `length`, or to 1: empty tensors cannot be sent."""
    return np.pad(array, (0, max(int(length), 1) - len(array)))


def _all_gather(array: np.ndarray) -> list[np.ndarray]:
    parts: list[paddle.Tensor] = []
    dist.all_gather(parts, paddle.to_tensor(array))
    return [part.numpy() for part in parts]
