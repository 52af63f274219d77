"""What the case `data` compares the loader with: two lists of transforms, as their users run them.

`PaddleClas` follows ppcls/data/preprocess/ops/operators.py of PaddleClas 2.5 and 2.6 (Apache-2.0)
operation by operation; its wheel has no training data code. `PaddleVision` is paddle.vision's own.
Both hand [3, 224, 224] float32 over through paddle.io.DataLoader, with its default collation.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from paddle.io import DataLoader, Dataset
from paddle.vision import transforms
from PIL import Image

from ppcls.data.datasets import ImageNetDataset
from ppcls.data.sampler import sample_rng
from ppcls.data.transforms.geometry import draw_torchvision

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
_SCALE, _RATIO = (0.08, 1.0), (3.0 / 4.0, 4.0 / 3.0)
_NORMALIZE = {"NormalizeImage": {"scale": "1.0/255.0", "mean": MEAN, "std": STD, "order": ""}}
Sample = tuple[np.ndarray, int]


class Draws(Protocol):
    """What the transforms draw from: the module `random`, or ours in its shape."""

    def uniform(self, low: float, high: float) -> float: ...

    def randint(self, low: int, high: int) -> int: ...


class _OurDraws:
    """A generator of ours, so that both sides take the same part of an image."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def randint(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))


class _Files(Dataset):
    """The lines `path label` of a list; `make` turns the bytes of a file into an array."""

    def __init__(self, folder: Path, make: Callable[[bytes], np.ndarray]) -> None:
        lines = (folder / "list.txt").read_text(encoding="utf-8").splitlines()
        pairs = [line.split() for line in lines]
        self.samples = [(str(folder / name), int(label)) for name, label in pairs]
        self.make = make

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        path, label = self.samples[index]
        with open(path, "rb") as file:
            data = file.read()
        return self.make(data), label


class Reference:
    """A list of transforms that others run. `pixels` is what it computes before normalising."""

    name: str

    def entries(self, phase: str) -> list[dict]:
        """Our YAML list of the same meaning."""
        raise NotImplementedError

    def make(self, phase: str) -> Callable[[bytes], np.ndarray]:
        """The transforms of "train" or "eval": file bytes to a [3, 224, 224] float32 array."""
        raise NotImplementedError

    def pixels(self, dataset: ImageNetDataset, index: int, phase: str) -> np.ndarray:
        """[224, 224, 3] uint8 of an image of `dataset`, with the draws that it has in epoch 0."""
        raise NotImplementedError

    def loader(self, folder: Path, phase: str, batch_size: int, workers: int) -> DataLoader:
        return DataLoader(
            _Files(folder, self.make(phase)),
            batch_size=batch_size,
            shuffle=phase == "train",
            num_workers=workers,
        )

    def __str__(self) -> str:
        return self.name


def _flip_draw(rng: np.random.Generator) -> bool:
    return bool(rng.random() < 0.5)


class PaddleClas(Reference):
    """DecodeImage, RandCropImage, RandFlipImage or ResizeImage, CropImage; NormalizeImage."""

    name = "PaddleClas's list"

    def __init__(self) -> None:
        self._scale = np.float32(1.0 / 255.0)
        self._mean, self._std = (np.array(v, np.float32).reshape(1, 1, 3) for v in (MEAN, STD))

    def entries(self, phase: str) -> list[dict]:
        decode = {"DecodeImage": {"to_rgb": True, "channel_first": False}}
        if phase == "train":
            crop = [{"RandCropImage": {"size": 224}}, {"RandFlipImage": {"flip_code": 1}}]
        else:
            crop = [{"ResizeImage": {"resize_short": 256}}, {"CropImage": {"size": 224}}]
        return [decode, *crop, _NORMALIZE]

    def make(self, phase: str) -> Callable[[bytes], np.ndarray]:
        return self._train if phase == "train" else self._eval

    def _train(self, data: bytes) -> np.ndarray:
        image = self._crop(self._decode(data), random)
        if random.randint(0, 1) == 1:
            image = cv2.flip(image, 1)
        return self._normalize(image)

    def _eval(self, data: bytes) -> np.ndarray:
        return self._normalize(self._middle(self._decode(data)))

    @staticmethod
    def _decode(data: bytes) -> np.ndarray:
        return cv2.imdecode(np.frombuffer(data, dtype="uint8"), 1)[:, :, ::-1]

    @staticmethod
    def _crop(image: np.ndarray, draws: Draws) -> np.ndarray:
        aspect = math.sqrt(draws.uniform(*_RATIO))
        height, width = image.shape[:2]
        bound = min((width / height) / aspect**2, (height / width) / (1.0 / aspect) ** 2)
        low, high = min(_SCALE[0], bound), min(_SCALE[1], bound)
        side = math.sqrt(width * height * draws.uniform(low, high))
        w, h = int(side * aspect), int(side * (1.0 / aspect))
        left, top = draws.randint(0, width - w), draws.randint(0, height - h)
        part = image[top : top + h, left : left + w, :]
        return cv2.resize(part, (224, 224), interpolation=cv2.INTER_LINEAR)

    @staticmethod
    def _middle(image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        percent = 256.0 / min(width, height)
        size = int(round(width * percent)), int(round(height * percent))
        image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
        left, top = (size[0] - 224) // 2, (size[1] - 224) // 2
        return image[top : top + 224, left : left + 224, :]

    def _normalize(self, image: np.ndarray) -> np.ndarray:
        image = (image.astype("float32") * self._scale - self._mean) / self._std
        return image.astype("float32").transpose((2, 0, 1))

    def pixels(self, dataset: ImageNetDataset, index: int, phase: str) -> np.ndarray:
        image = self._decode(dataset.read(index))
        if phase == "eval":
            return self._middle(image)
        rng = sample_rng(dataset.seed, 0, index)
        image = self._crop(image, _OurDraws(rng))
        return cv2.flip(image, 1) if _flip_draw(rng) else image


class PaddleVision(Reference):
    """RandomResizedCrop and RandomHorizontalFlip, or Resize and CenterCrop, on PIL images.

    Normalised in NumPy, not by ToTensor, which is slower.
    """

    name = "paddle.vision's list"

    def entries(self, phase: str) -> list[dict]:
        options = {"interpolation": "bilinear", "backend": "pil", "style": "torchvision"}
        decode = {"DecodeImage": {"backend": "pil"}}
        if phase == "train":
            crop = [{"RandCropImage": {"size": 224, **options}}, {"RandFlipImage": {}}]
        else:
            resize = {"ResizeImage": {"resize_short": 256, **options}}
            crop = [resize, {"CropImage": {"size": 224, "style": "torchvision"}}]
        return [decode, *crop, _NORMALIZE]

    def make(self, phase: str) -> Callable[[bytes], np.ndarray]:
        wide = [[255 * value for value in values] for values in (MEAN, STD)]
        last = [transforms.Transpose(), transforms.Normalize(*wide)]
        if phase == "train":
            first = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()]
        else:
            first = [transforms.Resize(256), transforms.CenterCrop(224)]
        apply = transforms.Compose([*first, *last])
        return lambda data: apply(self._decode(data))

    @staticmethod
    def _decode(data: bytes) -> Image.Image:
        return Image.open(io.BytesIO(data)).convert("RGB")

    def pixels(self, dataset: ImageNetDataset, index: int, phase: str) -> np.ndarray:
        image = self._decode(dataset.read(index))
        if phase == "eval":
            return np.asarray(transforms.CenterCrop(224)(transforms.Resize(256)(image)))
        rng = sample_rng(dataset.seed, 0, index)
        left, top, width, height = draw_torchvision(*image.size, _SCALE, _RATIO, rng)
        part = transforms.resize(transforms.crop(image, top, left, height, width), (224, 224))
        return np.asarray(transforms.hflip(part) if _flip_draw(rng) else part)


REFERENCES = {"paddleclas": PaddleClas(), "paddle.vision": PaddleVision()}
