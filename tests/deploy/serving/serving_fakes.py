"""An engine without a network, whose answers tell which image they belong to."""

from __future__ import annotations

import io
import threading
import time
from typing import Any

import numpy as np
from PIL import Image

from ppcls.data.transforms import DecodeImage
from ppcls.deploy.package import InputSpec, Manifest
from ppcls.utils.errors import DataError

NAMES = ["black", "dark", "grey", "light", "white"]
OPS = [{"DecodeImage": {"backend": "cv2"}}, {"ResizeImage": {"resize_short": 256}}]


def manifest(task: str = "classification", batch: int | None = None) -> Manifest:
    is_detector = task == "detection"
    return Manifest(
        task=task,
        arch="SSDFake" if is_detector else "FakeNet",
        class_num=3 if is_detector else 5,
        input=InputSpec(shape=[batch, 3, 32, 32]),
        output="detections" if is_detector else "probabilities",
        transform_ops=OPS,
        class_names=["background", "cat", "dog"] if is_detector else NAMES,
        threshold=0.3,
    )


class FakeEngine:
    """Says how bright an image is; the class is the nearest of five shades of grey.

    Args:
        per_batch, per_image: seconds a batch takes.
        broken: brightness (0 to 255) of images the network fails on, with a DataError or a bug.
    """

    def __init__(
        self,
        task: str = "classification",
        *,
        per_batch: float = 0.0,
        per_image: float = 0.0,
        batch: int | None = None,
        broken: dict[int, Exception] | None = None,
    ) -> None:
        self.manifest = manifest(task, batch)
        self.batches: list[list[int]] = []  # brightness of each image of each batch
        self.gate = threading.Event()  # `run` waits for it
        self.gate.set()
        self._seconds = (per_batch, per_image)
        self._broken = broken or {}

    def metadata(self) -> dict[str, Any]:
        return {"runtime": "nothing at all", "class_names": self.manifest.class_names}

    streams = 1

    def warm_up(self, *batch_sizes: int) -> None:
        for size in batch_sizes:
            self.run([self.prepare(picture(), "warm up")] * size)

    def prepare(self, data: bytes, name: str) -> tuple[int, tuple[int, int]]:
        try:
            array = DecodeImage()(data, np.random.default_rng(0))
        except ValueError as error:
            raise DataError(f"{name}: {error}") from error
        return round(float(array.mean())), (array.shape[1], array.shape[0])

    def run(self, batch: list[tuple[int, tuple[int, int]]]) -> list[dict[str, Any]]:
        self.batches.append([brightness for brightness, _ in batch])
        self.gate.wait(20)
        for brightness, _ in batch:
            if brightness in self._broken:
                raise self._broken[brightness]
        time.sleep(self._seconds[0] + self._seconds[1] * len(batch))
        answer = self._boxes if self.manifest.task == "detection" else self._classes
        return [answer(*item) for item in batch]

    def _classes(self, brightness: int, size: tuple[int, int]) -> dict[str, Any]:
        scores = np.exp(-(((np.arange(5) * 63.75 - brightness) / 40) ** 2))
        scores /= scores.sum()
        order = np.argsort(-scores)
        return {
            "class_ids": order.tolist(),
            "scores": scores[order].tolist(),
            "label_names": [NAMES[i] for i in order],
        }

    def _boxes(self, brightness: int, size: tuple[int, int]) -> dict[str, Any]:
        width, height = size
        return {
            "labels": [1, 2, 1],
            "label_names": ["cat", "dog", "cat"],
            "scores": [0.93, 0.61, 0.12],
            "boxes": [
                [0.08 * width, 0.2 * height, 0.5 * width, 0.9 * height],
                [0.55 * width, -0.05 * height, 0.95 * width, 0.6 * height],
                [0.0, 0.0, 0.2 * width, 0.2 * height],
            ],
        }


def picture(brightness: int = 128, size: tuple[int, int] = (40, 30), form: str = "PNG") -> bytes:
    """An image file of one shade of grey."""
    file = io.BytesIO()
    Image.new("RGB", size, (brightness,) * 3).save(file, form)
    return file.getvalue()
