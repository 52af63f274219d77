#!/usr/bin/env python3
"""Write a data set as WebDataset shards: a few large tar files, and an index of what is in them.

OUT_DIR gets `PREFIX-000000.tar`, `PREFIX-000001.tar`..., `index.json` and `index.tsv`, all or
nothing. A sample is `KEY.jpg` (or another image; the file's own bytes) and `KEY.cls`, its class
number; CIFAR's pixels become PNG files. The same data set and options give the same bytes. In a
recipe:

  dataset: {name: WebDataset, shard_dir: OUT_DIR, transform_ops: [...]}

then trains exactly as the data set the shards were made of, unless --shuffle-seed mixed it.

--index writes only the index, of shards that are already in OUT_DIR. --verify checks shards against
their index: SHA-256, and every sample. Both read all of every shard.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# Also from a clone that is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ppcls.data.datasets import DATASETS, ClassificationDataset  # noqa: E402
from ppcls.data.datasets.shard_files import (  # noqa: E402
    Limits,
    ShardsWriter,
    list_shard,
    read_source,
    sha256_of,
    verify_shard,
)
from ppcls.data.datasets.shard_index import (  # noqa: E402
    INDEX_NAME,
    Shard,
    ShardIndex,
    Table,
    file_name,
    read_index,
    write_index,
)
from ppcls.data.datasets.web_samples import require_webdataset  # noqa: E402
from ppcls.utils.cli import make_parser, run  # noqa: E402
from ppcls.utils.errors import DataError, UserError  # noqa: E402
from ppcls.utils.fileio import atomic_folder  # noqa: E402
from ppcls.utils.schema import build_named  # noqa: E402

EXAMPLES = """python scripts/make_shards.py shards/train --image-folder dataset/my/train
  python scripts/make_shards.py shards/train --list dataset/ILSVRC2012/train_list.txt \\
      --root dataset/ILSVRC2012 --prefix train --max-mb 1000
  python scripts/make_shards.py shards/cifar --cifar100 dataset/cifar-100-python.tar.gz --mode test
  python scripts/make_shards.py shards/train --verify"""

_REPORT_SECONDS = 5.0


class Progress:
    """Says every few seconds how far a long work is, how fast, and when it will be done."""

    def __init__(self, total: int, unit: str) -> None:
        self.total, self.unit, self.done = total, unit, 0
        self._start = self._last = time.monotonic()

    def step(self, count: int = 1) -> None:
        self.done += count
        now = time.monotonic()
        if now - self._last >= _REPORT_SECONDS:
            self._last = now
            rate = self.done / (now - self._start)
            left = (self.total - self.done) / rate
            print(
                f"{self.done:,} of {self.total:,} {self.unit}, {rate:,.0f} {self.unit}/s, "
                f"eta: {left:.0f}s",
                flush=True,
            )


def open_source(args: argparse.Namespace) -> tuple[ClassificationDataset, str | None]:
    """The data set to write, and the folder its files' names are below."""
    for option, folder in (("--image-folder", args.image_folder), ("--root", args.root)):
        if folder and not Path(folder).is_dir():
            raise UserError(f"{option}: expected a folder, got {folder!r}")
    if args.image_folder:
        root = args.image_folder
        section = {"name": "ImageFolderDataset", "image_root": root}
    elif args.list:
        root = args.root
        section = {"name": "ImageNetDataset", "image_root": root, "cls_label_path": args.list}
    else:
        name, file = ("Cifar10", args.cifar10) if args.cifar10 else ("Cifar100", args.cifar100)
        root, section = None, {"name": name, "data_file": file, "mode": args.mode}
    dataset = build_named(DATASETS, {**section, "transform_ops": []}, "source")
    return dataset, root


def write(args: argparse.Namespace) -> dict[str, Any]:
    """Write shards and index, whole or not at all."""
    dataset, root = open_source(args)
    order = np.arange(len(dataset))
    if args.shuffle_seed is not None:
        order = np.random.default_rng(args.shuffle_seed).permutation(len(dataset))
    limits = Limits(args.max_samples, args.max_mb * 10**6)
    progress = Progress(len(order), "images")

    def fill(draft: Path) -> None:
        writer = ShardsWriter(draft, args.prefix, limits, with_names=args.with_names)
        for index in order.tolist():
            writer.write(read_source(dataset, index, root))
            progress.step()
        writer.finish()
        names = dataset.class_names
        write_index(draft, writer.shards, writer.entries, dataset.class_num, names)

    atomic_folder(args.out_dir, fill)
    return summary(args.out_dir, "wrote")


def index_shards(args: argparse.Namespace) -> dict[str, Any]:
    """Write the index of the shards that are in OUT_DIR."""
    folder: Path = args.out_dir
    paths = sorted(folder.glob("*.tar"))
    if not paths:
        raise DataError(f"{folder}: expected shards (*.tar), found none")
    if (folder / INDEX_NAME).exists():
        raise UserError(f"{folder / INDEX_NAME}: expected no index yet, found one; remove it first")
    progress = Progress(sum(path.stat().st_size for path in paths) // 10**6, "MB")
    shards, entries = [], []
    for path in paths:
        found = list(list_shard(str(path)))
        size = path.stat().st_size
        url = file_name(path.name, str(folder))
        shards.append(Shard(url, len(found), size, sha256_of(str(path))))
        entries += found
        progress.step(size // 10**6)
    class_num = 1 + max((entry.label for entry in entries), default=0)
    ShardIndex(folder, shards, class_num, None, Table.of(entries)).check()
    write_index(folder, shards, entries, class_num)
    return summary(folder, "indexed")


def verify(args: argparse.Namespace) -> dict[str, Any]:
    """Check every shard; name all that are damaged."""
    index = read_index(args.out_dir / INDEX_NAME)
    progress = Progress(sum(shard.filesize for shard in index.shards) // 10**6, "MB")
    damaged = []
    for number, shard in enumerate(index.shards):
        try:
            verify_shard(index, number)
        except DataError as error:
            damaged.append(str(error))
            print(error, file=sys.stderr)
        progress.step(shard.filesize // 10**6)
    if damaged:
        raise DataError(
            f"{args.out_dir}: expected {len(index.shards)} whole shards, found {len(damaged)} "
            f"damaged; the first: {damaged[0]}"
        )
    return summary(args.out_dir, "verified")


def summary(folder: Path, verb: str) -> dict[str, Any]:
    index = read_index(folder / INDEX_NAME)
    size = sum(shard.filesize for shard in index.shards)
    print(
        f"{folder}: {verb} {len(index.shards)} shards of {size / 1e6:,.1f} MB with {len(index):,} "
        f"images of {index.class_num} classes"
    )
    counts = {"shards": len(index.shards), "samples": len(index), "bytes": size}
    return {"folder": str(folder), **counts, "class_num": index.class_num}


def choose(args: argparse.Namespace) -> Callable[[argparse.Namespace], dict[str, Any]]:
    """What the options ask for. Raises UserError for options that do not go together."""
    if bool(args.list) != bool(args.root):
        raise UserError("--list and --root: expected both, a list and the folder of its paths")
    for name in ("max_samples", "max_mb"):
        if getattr(args, name) < 1:
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option}: expected 1 or more, got {getattr(args, name)}")
    if args.shuffle_seed is not None and args.shuffle_seed < 0:
        raise UserError(f"--shuffle-seed: expected a number from 0, got {args.shuffle_seed}")
    file_name(args.prefix, "--prefix")
    return verify if args.verify else index_shards if args.index else write


def command(args: argparse.Namespace) -> dict[str, Any]:
    chosen = choose(args)
    require_webdataset(str(args.out_dir))
    return chosen(args)


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, EXAMPLES, config=False)
    parser.add_argument("out_dir", metavar="OUT_DIR", type=Path, help="folder of the shards")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--image-folder", metavar="DIR", help="a folder per class")
    what.add_argument("--list", metavar="FILE", help="lines of `path label`, below --root")
    what.add_argument("--cifar10", metavar="FILE", help="its archive")
    what.add_argument("--cifar100", metavar="FILE", help="its archive")
    what.add_argument("--index", action="store_true", help="write the index of shards")
    what.add_argument("--verify", action="store_true", help="check shards against their index")
    parser.add_argument("--root", metavar="DIR", help="folder of the paths in --list")
    parser.add_argument(
        "--mode", choices=("train", "test"), default="train", help="half of CIFAR (train)"
    )
    parser.add_argument("--prefix", default="shard", help="of the shards' names (shard)")
    parser.add_argument("--max-samples", type=int, default=10000, help="of a shard (10000)")
    parser.add_argument("--max-mb", type=int, default=1000, help="10^6 bytes of a shard (1000)")
    parser.add_argument(
        "--shuffle-seed", type=int, metavar="N", help="mix the samples first; absent: keep order"
    )
    parser.add_argument(
        "--with-names", action="store_true", help="also KEY.json with the file's name"
    )
    return run(parser, command, argv)


if __name__ == "__main__":
    sys.exit(main())
