"""Write PaddleClas's train_list.txt and val_list.txt for an ImageNet-1k folder.

Reads ROOT/train/<wnid>/*.JPEG, and ROOT/val/<wnid>/*.JPEG or, as the official archive unpacks, the
50,000 files of a flat ROOT/val. Labels are the places of the wnids (n01440764...) in sorted order,
as every published network uses them. Lines are `train/n01440764/n01440764_10026.JPEG 0`.

A flat val/ also needs the development kit (ILSVRC2012_devkit_t12). Its ground truth holds ILSVRC
ids, which are not the labels above: the table in meta.mat (read with scipy), or a text file of
`id wnid` lines, translates them.

The lists are written only when the counts are ImageNet's, or with --subset when they agree.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path

# Also from a clone that is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ppcls.utils.cli import make_parser, run  # noqa: E402
from ppcls.utils.errors import UserError  # noqa: E402
from ppcls.utils.fileio import atomic_write_text  # noqa: E402

WNID = re.compile(r"n\d{8}")
VAL_FILE = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG", re.IGNORECASE)
SUFFIXES = (".jpeg", ".jpg", ".png")
CLASSES, TRAIN_IMAGES, VAL_IMAGES = 1000, 1281167, 50000
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"

EXAMPLES = """python scripts/prepare_imagenet.py dataset/ILSVRC2012
  python scripts/prepare_imagenet.py dataset/ILSVRC2012 --devkit ILSVRC2012_devkit_t12
  python scripts/prepare_imagenet.py dataset/ILSVRC2012 \\
      --ground-truth ILSVRC2012_validation_ground_truth.txt --synsets ids.txt
  python scripts/prepare_imagenet.py dataset/imagenet-100 --subset"""

Entries = list[tuple[str, str]]  # (path below ROOT, wnid)


def scan_classes(root: Path, half: str) -> Entries:
    """Images of ROOT/<half>/<wnid>/, sorted."""
    entries: Entries = []
    for folder in sorted(path for path in (root / half).iterdir() if path.is_dir()):
        if not WNID.fullmatch(folder.name):
            raise UserError(f"{folder}: expected a class folder named like n01440764")
        names = sorted(n for n in os.listdir(folder) if n.lower().endswith(SUFFIXES))
        if not names:
            raise UserError(f"{folder}: expected images, found none")
        entries += [(f"{half}/{folder.name}/{name}", folder.name) for name in names]
    return entries


def scan_flat_val(root: Path, ground_truth: Path, wnids: dict[int, str]) -> Entries:
    """Images of a flat ROOT/val, with their classes from the development kit."""
    ids = read_ground_truth(ground_truth)
    names = sorted(path.name for path in (root / "val").iterdir() if path.is_file())
    names = [name for name in names if name.lower().endswith(SUFFIXES)]
    if len(names) != len(ids):
        raise UserError(
            f"{root / 'val'}: expected {len(ids)} images, one per line of {ground_truth}, "
            f"found {len(names)}"
        )
    entries: Entries = []
    for number, (name, key) in enumerate(zip(names, ids, strict=True), 1):
        match = VAL_FILE.fullmatch(name)
        if match is None or int(match[1]) != number:
            raise UserError(
                f"{root / 'val' / name}: expected the name ILSVRC2012_val_{number:08d}.JPEG"
            )
        if key not in wnids:
            raise UserError(
                f"{ground_truth}:{number}: expected an ILSVRC id of the synsets table, got {key}"
            )
        entries.append((f"val/{name}", wnids[key]))
    return entries


def read_lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"{path}: cannot be read: {reason}") from error


def read_ground_truth(path: Path) -> list[int]:
    """ILSVRC ids, one per validation image, in the order of the images' numbers."""
    lines = read_lines(path)
    for number, line in enumerate(lines, 1):
        if not re.fullmatch(r"[0-9]+", line.strip()):
            raise UserError(f"{path}:{number}: expected an ILSVRC id, got {line!r}")
    return [int(line) for line in lines]


def read_synsets(path: Path) -> dict[int, str]:
    """ILSVRC id -> wnid, from meta.mat or from `id wnid` lines."""
    pairs = read_meta_mat(path) if path.suffix.lower() == ".mat" else read_id_lines(path)
    table: dict[int, str] = {}
    for key, wnid in pairs:
        if key in table or wnid in table.values():
            raise UserError(f"{path}: expected each id and wnid once, got {key} {wnid} again")
        table[key] = wnid
    return table


def read_id_lines(path: Path) -> list[tuple[int, str]]:
    pairs = []
    for number, line in enumerate(read_lines(path), 1):
        match = re.fullmatch(r"\s*([0-9]+)\s+(n\d{8})\b.*", line)
        if match:
            pairs.append((int(match[1]), match[2]))
        elif line.strip():
            raise UserError(f"{path}:{number}: expected 'id wnid', got {line!r}")
    return pairs


def read_meta_mat(path: Path) -> list[tuple[int, str]]:
    """The leaves of the development kit's table; its inner nodes are no classes."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise UserError(
            f"{path}: reading it needs scipy (pip install scipy); or give --synsets a text file of "
            "'id wnid' lines"
        ) from error
    try:
        synsets = loadmat(path, squeeze_me=True)["synsets"]
        return [
            (int(row["ILSVRC2012_ID"]), str(row["WNID"]))
            for row in synsets
            if int(row["num_children"]) == 0
        ]
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # loadmat raises many kinds for a file that is not MATLAB's
        raise UserError(f"{path}: expected the development kit's meta.mat ({error})") from error


def check(train: Entries, val: Entries, root: Path, subset: bool) -> list[str]:
    """Return the sorted wnids, or raise UserError for counts that make no sense."""
    wnids = sorted({wnid for _, wnid in train})
    unknown = sorted({wnid for _, wnid in val} - set(wnids))
    if unknown:
        raise UserError(f"{root / 'val'}: class {unknown[0]} has no folder in {root / 'train'}")
    absent = sorted(set(wnids) - {wnid for _, wnid in val})
    if absent:
        raise UserError(f"{root / 'val'}: expected images of class {absent[0]}, found none")
    if not subset:
        counts = (
            ("train", "class folders", len(wnids), CLASSES),
            ("train", "images", len(train), TRAIN_IMAGES),
            ("val", "images", len(val), VAL_IMAGES),
        )
        for half, what, found, expected in counts:
            if found != expected:
                raise UserError(
                    f"{root / half}: expected {expected} {what}, found {found}; for a part of "
                    "ImageNet use --subset"
                )
    return wnids


def write_list(path: Path, entries: Entries, labels: dict[str, int]) -> None:
    atomic_write_text(path, "".join(f"{name} {labels[wnid]}\n" for name, wnid in entries))


def prepare(args: argparse.Namespace) -> dict[str, int | str]:
    """Write both lists, or raise UserError and write none; return what `--json` gets."""
    root: Path = args.root
    for half in ("train", "val"):
        if not (root / half).is_dir():
            raise UserError(f"{root / half}: expected a folder, found none")
    train = scan_classes(root, "train")
    if not train:
        raise UserError(f"{root / 'train'}: expected class folders such as n01440764, found none")
    val = scan_val(args)
    wnids = check(train, val, root, args.subset)
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    out = args.out or root
    if not out.is_dir():
        raise UserError(f"{out}: expected a folder to write to, found none")
    write_list(out / "train_list.txt", train, labels)
    write_list(out / "val_list.txt", val, labels)
    print(
        f"{out}: wrote train_list.txt ({len(train)} images) and val_list.txt ({len(val)} images) "
        f"of {len(wnids)} classes"
    )
    return {"folder": str(out), "classes": len(wnids), "train": len(train), "val": len(val)}


def scan_val(args: argparse.Namespace) -> Entries:
    """Read either layout of ROOT/val."""
    if any(path.is_dir() for path in (args.root / "val").iterdir()):
        return scan_classes(args.root, "val")
    ground_truth, synsets = args.ground_truth, args.synsets
    if args.devkit is not None:
        ground_truth = ground_truth or args.devkit / "data" / GROUND_TRUTH
        synsets = synsets or args.devkit / "data" / "meta.mat"
    if ground_truth is None or synsets is None:
        raise UserError(
            f"{args.root / 'val'}: has no class folders, so --devkit, or --ground-truth and "
            "--synsets, are needed"
        )
    return scan_flat_val(args.root, ground_truth, read_synsets(synsets))


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, EXAMPLES, config=False)
    parser.add_argument("root", metavar="ROOT", type=Path, help="folder with train/ and val/")
    parser.add_argument("--out", type=Path, help="folder for the lists (default: ROOT)")
    parser.add_argument("--devkit", type=Path, help="unpacked ILSVRC2012_devkit_t12")
    parser.add_argument("--ground-truth", type=Path, help=f"{GROUND_TRUTH}, for a flat val/")
    parser.add_argument("--synsets", type=Path, help="meta.mat or a text file of 'id wnid' lines")
    parser.add_argument("--subset", action="store_true", help="allow other counts than ImageNet's")
    return run(parser, prepare, argv)


if __name__ == "__main__":
    sys.exit(main())
