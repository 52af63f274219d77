"""The case `shards`: WebDataset shards against the same images in a folder.

Both sides read JPEG files made from scikit-learn's two photographs. First their bytes alone, in the
random order of a training, from the system's page cache and evicted from it (where there is
`posix_fadvise`; a folder's names stay known, and no server is asked for them), and in the order of
an evaluation; then batches of a training, decoded and cropped. A last row reads each sample with
webdataset's own reader, which takes a stream.

Before anything is timed, the bytes and labels of both sides are compared.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from _benchmark import data, measure
from ppcls.utils import runtime
from ppcls.utils.errors import JobError, UserError

HELP = "WebDataset shards against the same images in a folder"
EXAMPLE = "python tools/benchmark.py shards --workers 0 2 --json s.json"
NEEDS_CONFIG = False

_OPS = [
    {"DecodeImage": {"backend": "pil"}},
    {"RandCropImage": {"size": 224, "backend": "pil", "style": "torchvision"}},
    {"RandFlipImage": None},
    {"NormalizeImage": {"order": ""}},
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(turns=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="processes (0 2)")
    parser.add_argument("--batch", type=int, default=64, help="images of a batch (64)")
    parser.add_argument("--batches", type=int, default=16, help="of a turn (16)")
    parser.add_argument("--folder", type=Path, help="where to write the images (a temporary one)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Images per second of both sides. Raises JobError when the bytes or labels differ."""
    for name in ("turns", "batch", "batches"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name}: expected 1 or more, got {getattr(args, name)}")
    if min(args.workers) < 0:
        raise UserError(f"--workers: expected numbers from 0, got {args.workers}")
    if args.folder is not None and not args.folder.is_dir():
        raise UserError(f"--folder: expected a folder, got {str(args.folder)!r}")
    runtime.import_paddle()
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=args.folder) as folder:
        sides = Sides(Path(folder), args.batch * args.batches, args.batch)
        sides.check()
        rows = [sides.read(*kind, args.turns) for kind in _kinds_of_reading()]
        rows += [sides.load(workers, args.turns) for workers in args.workers]
        rows.append(sides.stream(args.turns))
    return measure.report(rows)


def _kinds_of_reading() -> list[tuple[bool, bool]]:
    """Evicted from the page cache or not, shuffled or in order."""
    from_disk = [(True, True), (True, False)] if hasattr(os, "posix_fadvise") else []
    return [(False, True), *from_disk]


class Sides:
    """The same images as files and as shards of 512."""

    def __init__(self, folder: Path, count: int, batch: int) -> None:
        self.batch = batch
        self.images, self.shards = folder / "images", folder / "shards"
        write_folder(self.images, count)
        write_shards(self.images, self.shards)
        files = {"name": "ImageFolderDataset", "image_root": str(self.images)}
        shards = {"name": "WebDataset", "shard_dir": str(self.shards)}
        self.sections = {"folder": files, "shards": shards}

    def loader(self, side: str, workers: int = 0) -> Any:
        from ppcls.data.loader import build_train_loader

        config = {
            "dataset": {**self.sections[side], "transform_ops": _OPS},
            "sampler": {"batch_size": self.batch, "shuffle": True},
            "loader": {"num_workers": workers},
        }
        return build_train_loader(config, side)

    def check(self) -> None:
        shards, files = (self.loader(side).dataset for side in ("shards", "folder"))
        same = all(shards.read(i) == files.read(i) for i in range(len(files)))
        if not same or not np.array_equal(shards.labels, files.labels):
            raise JobError("expected the same bytes and labels of both sides, found others")
        print(f"the bytes and labels of {len(files)} images are identical", flush=True)

    def read(self, is_evicted: bool, is_shuffled: bool, turns: int) -> dict[str, Any]:
        """A row: bytes alone."""
        loaders = {side: self.loader(side) for side in self.sections}

        def rate(side: str) -> float:
            if is_evicted:
                evict(self.images)
                evict(self.shards)
            dataset, sampler = loaders[side].dataset, loaders[side].sampler
            order = sampler.order(0).tolist() if is_shuffled else range(len(dataset))
            return _calls_per_second(dataset.read, order)

        place = "from disk" if is_evicted else "from the page cache"
        return _row(f"bytes {place}, {'shuffled' if is_shuffled else 'in order'}", rate, turns)

    def load(self, workers: int, turns: int) -> dict[str, Any]:
        """A row: batches of a training."""
        loaders = {side: self.loader(side, workers) for side in self.sections}
        return _row(
            f"training, {workers} workers", lambda side: data.rate(loaders[side].as_loaded), turns
        )

    def stream(self, turns: int) -> dict[str, Any]:
        """A row: webdataset's reader, opened for each sample, against a read by the index."""
        from ppcls.data.datasets.web_samples import stream_samples

        dataset = self.loader("shards").dataset
        archives = []
        for number in range(len(dataset.index.shards)):
            shard = Path(dataset.index.path(number)).read_bytes()
            entries = map(dataset.index.entry, dataset.index.samples(number))
            archives += [shard[e.offset : e.offset + e.length] for e in entries]

        def by_index() -> float:
            return _calls_per_second(dataset.read, range(len(dataset)))

        def by_stream() -> float:
            return _calls_per_second(lambda a: next(stream_samples(io.BytesIO(a))), archives)

        print("a sample", flush=True)
        pairs = measure.take_turns(by_index, by_stream, turns)
        sides = ("from the page cache by the index", "from memory by webdataset's stream")
        return measure.row("a sample", sides, "images/s", pairs)


def _calls_per_second(function: Callable[[Any], Any], items: Sequence) -> float:
    start = time.perf_counter()
    for item in items:
        function(item)
    return len(items) / (time.perf_counter() - start)


def _row(case: str, rate: Callable[[str], float], turns: int) -> dict[str, Any]:
    print(case, flush=True)
    pairs = measure.take_turns(lambda: rate("shards"), lambda: rate("folder"), turns)
    return measure.row(case, ("shards", "folder"), "images/s", pairs)


def write_folder(folder: Path, count: int) -> None:
    """Write `count` JPEG files of ten classes, copies of a few."""
    originals = folder.parent / "originals"
    originals.mkdir()
    data.write_images(originals, 1)
    files = sorted(originals.glob("*.jpg"))
    for number in range(count):
        target = folder / f"class{number % 10}" / f"{number:06d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(files[number % len(files)], target)
    os.sync()  # what is not yet on disk cannot be evicted


def write_shards(images: Path, folder: Path) -> None:
    from ppcls.data.datasets import ImageFolderDataset
    from ppcls.data.datasets.shard_files import Limits, ShardsWriter, read_source
    from ppcls.data.datasets.shard_index import write_index

    folder.mkdir()
    dataset = ImageFolderDataset(str(images), [])
    writer = ShardsWriter(folder, "shard", Limits(512, 1 << 40))
    for index in range(len(dataset)):
        writer.write(read_source(dataset, index, str(images)))
    writer.finish()
    write_index(folder, writer.shards, writer.entries, dataset.class_num)


def evict(folder: Path) -> None:
    """Ask the system to forget the contents of all files below a folder."""
    for path in folder.rglob("*.*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
