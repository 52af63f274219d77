"""The case `data`: the loader against what PaddleClas and paddle.vision run, image by image.

Each side reads the same JPEG files, made here from scikit-learn's two photographs, and gives
batches for a network. The references normalise each image before they hand it over; ours hands
pixels over and normalises whole batches, on the device. So there are two figures of ours: batches
of pixels as they arrive (what a run on a GPU waits for), and batches normalised on this CPU.

Before anything is timed, the pixels of both sides are compared, with the same draws.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from _benchmark import measure
from ppcls.utils import runtime
from ppcls.utils.errors import JobError, UserError

HELP = "the loader against PaddleClas's and paddle.vision's transforms"
EXAMPLE = "python tools/benchmark.py data --workers 0 2 --json d.json"
NEEDS_CONFIG = False

_REFERENCES = ("paddleclas", "paddle.vision")
_PHASES = ("train", "eval")
_FILES = 64  # different ones; an epoch reads each several times
_SIZE = (500, 375)  # pixels, about the mean of ImageNet
_QUALITY = 89  # makes files of about 47 KB


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(turns=3)
    for name, choices in {"reference": _REFERENCES, "phase": _PHASES}.items():
        parser.add_argument(f"--{name}", nargs="+", choices=choices, default=choices, help="(all)")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="processes (0 2)")
    parser.add_argument("--batch", type=int, default=64, help="images of a batch (64)")
    parser.add_argument("--batches", type=int, default=24, help="of a turn (24)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Images per second of each side: transforms of training and evaluation, each count of workers.

    Raises JobError when the pixels differ.
    """
    for name in ("turns", "batch", "batches"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name}: expected 1 or more, got {getattr(args, name)}")
    if min(args.workers) < 0:
        raise UserError(f"--workers: expected numbers from 0, got {args.workers}")
    runtime.import_paddle()
    from _benchmark import data_references as references

    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        count = args.batch * args.batches
        mean_bytes = write_images(Path(folder), count)
        rows = []
        for reference in args.reference:
            for phase in args.phase:
                pair = Pair(Path(folder), references.REFERENCES[reference], phase, args.batch)
                pair.check_pixels(min(count, _FILES))
                rows += [row for n in args.workers for row in pair.measure(n, args.turns)]
    report = measure.report(rows)
    report["versions"]["simplejpeg"] = _simplejpeg_version()
    report["images"] = {"files": _FILES, "size": list(_SIZE), "mean_bytes": mean_bytes}
    return report


def write_images(folder: Path, count: int) -> float:
    """Write JPEG files and a list that names them `count` times in all; return their mean size."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    rng, photographs, sizes = np.random.default_rng(0), load_sample_images().images, []
    for number in range(_FILES):
        photograph = Image.fromarray(photographs[number % 2])
        share = rng.uniform(0.8, 1.0)
        width, height = (int(side * share) for side in photograph.size)
        left = int(rng.integers(photograph.width - width + 1))
        top = int(rng.integers(photograph.height - height + 1))
        part = photograph.crop((left, top, left + width, top + height))
        file = io.BytesIO()
        part.resize(_SIZE, Image.Resampling.BICUBIC).save(file, "JPEG", quality=_QUALITY)
        (folder / f"{number}.jpg").write_bytes(file.getvalue())
        sizes.append(len(file.getvalue()))
    lines = (f"{number % _FILES}.jpg {number % 1000}\n" for number in range(count))
    (folder / "list.txt").write_text("".join(lines), encoding="utf-8")
    return float(np.mean(sizes))


class Pair:
    """Our loader and a reference over the same files with transforms of the same meaning."""

    def __init__(self, folder: Path, reference: Any, phase: str, batch: int) -> None:
        self.folder, self.reference, self.phase, self.batch = folder, reference, phase, batch

    def ours(self, workers: int, pipeline: str = "fast") -> Any:
        """Our loader, of training or evaluation."""
        from ppcls.data.loader import build_eval_loader, build_train_loader

        config = {
            "dataset": {
                "name": "ImageNetDataset",
                "image_root": str(self.folder),
                "cls_label_path": str(self.folder / "list.txt"),
                "transform_ops": self.reference.entries(self.phase),
            },
            "sampler": {"batch_size": self.batch, "shuffle": self.phase == "train"},
            "loader": {"num_workers": workers, "pipeline": pipeline},
        }
        build = build_train_loader if self.phase == "train" else build_eval_loader
        return build(config, "data")

    def check_pixels(self, count: int) -> None:
        """Compare the first `count` images: the draws are ours in both, pixels and floats."""
        from ppcls.data.pipeline import choose_pipeline

        dataset = self.ours(0).dataset
        fast = choose_pipeline("fast", dataset, "data")
        for index in range(count):
            found = fast.dataset[index].image
            wanted = self.reference.pixels(dataset, index, self.phase)
            if not np.array_equal(found, wanted):
                worst = np.abs(found.astype(int) - wanted.astype(int)).max()
                raise JobError(f"{self}: image {index}: expected the same pixels, off by {worst}")
            floats = fast.normalization.on_host(found[None])[0]
            if not np.array_equal(floats, dataset[index].image):
                raise JobError(f"{self}: image {index}: expected the same floats, found others")
        print(f"{self}: the pixels of {count} images are identical", flush=True)

    def measure(self, workers: int, turns: int) -> list[dict[str, Any]]:
        """Rows: pixels, and normalised images, against the reference."""
        fast = self.ours(workers)
        reference = self.reference.loader(self.folder, self.phase, self.batch, workers)
        raw: list[float] = []

        def both() -> float:
            raw.append(rate(fast.as_loaded))
            return rate(lambda: iter(fast))

        print(f"{self}, {workers} workers", flush=True)
        normalized = measure.take_turns(both, lambda: rate(lambda: iter(reference)), turns)
        pixels = [(one, two) for one, (_, two) in zip(raw[1:], normalized, strict=True)]
        case = f"{self}, {workers} workers"
        sides = {"uint8 batches": pixels, "normalised on this CPU": normalized}
        return [
            measure.row(case, (f"fast, {name}", str(self.reference)), "images/s", pairs)
            for name, pairs in sides.items()
        ]

    def __str__(self) -> str:
        return f"{self.phase}, {self.reference.name}"


def rate(batches: Callable[[], Any]) -> float:
    """Images per second over all batches, from the first request to the last answer."""
    start, images = time.perf_counter(), 0
    for batch in batches():
        images += len(batch[0])
    return images / (time.perf_counter() - start)


def _simplejpeg_version() -> str | None:
    from ppcls.data import jpeg

    return jpeg.version()
