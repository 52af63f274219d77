"""Check PASCAL VOC's detection folders and write the list of class names.

ROOT holds VOC2007 and VOC2012 (what the archives call VOCdevkit), each with Annotations,
ImageSets/Main and JPEGImages. Every list, annotation and image header is read, and every problem is
named. The official training uses 2007 trainval and 2012 trainval, the evaluation 2007 test; a list
is checked against the number of images it should have unless --subset is given.

A data set of one's own in this layout names its classes with --label-list.

Writes ROOT/label_list.txt: the names in the order of labels 1..20 (0 is the background).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

# Also from a clone that is not installed.
sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from _detection_checks import (  # noqa: E402
    DECODE,
    check_count,
    check_folder,
    check_images,
    collect,
    count_boxes,
    refuse,
)

from ppcls.data.datasets.voc import VOC_CLASSES, VOCDataset, parse_splits  # noqa: E402
from ppcls.data.datasets.voc_xml import read_annotation, read_image_ids, read_names  # noqa: E402
from ppcls.utils.cli import make_parser, run  # noqa: E402
from ppcls.utils.errors import DataError, UserError  # noqa: E402
from ppcls.utils.fileio import atomic_write_text  # noqa: E402

TRAIN, TEST = ("2007 trainval", "2012 trainval"), ("2007 test",)
COUNTS = {
    "2007 train": 2501,
    "2007 val": 2510,
    "2007 trainval": 5011,
    "2007 test": 4952,
    "2012 train": 5717,
    "2012 val": 5823,
    "2012 trainval": 11540,
}
EXAMPLES = """python scripts/prepare_voc.py dataset/VOCdevkit
  python scripts/prepare_voc.py dataset/mine --train "2007 train" --test "2007 val" --subset \\
      --label-list dataset/mine/names.txt"""


def check_split(root: Path, split: str, subset: bool, names: list[str]) -> None:
    """Read every annotation file of a list; raise UserError that names what is wrong."""
    if not subset and split not in COUNTS:
        raise UserError(f"{split}: expected one of {', '.join(COUNTS)}; for others use --subset")
    year, name = parse_splits([split])[0]
    folder = root / f"VOC{year}"
    for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
        check_folder(folder / part)
    known = set(names)

    def check(image: str) -> None:
        for part, suffix in (("Annotations", "xml"), ("JPEGImages", "jpg")):
            path = folder / part / f"{image}.{suffix}"
            if not path.is_file():
                raise DataError(f"{path}: expected the file of {image}, found none")
        read_annotation(folder / "Annotations" / f"{image}.xml", known)

    images = read_image_ids(folder / "ImageSets" / "Main" / f"{name}.txt")
    if not subset:
        check_count(f"VOC{split}", len(images), COUNTS[split])
    refuse(collect(f"VOC{split}, annotations", images, check), f"VOC{split}")


def check_half(args: argparse.Namespace, half: str, names: list[str]) -> dict[str, int]:
    """Check the lists of one half; return its counts."""
    splits = getattr(args, half)
    for split in splits:
        check_split(args.root, split, args.subset, names)
    label_list = args.label_list and str(args.label_list.absolute())
    dataset = VOCDataset(str(args.root), splits, DECODE, label_list=label_list)
    check_images(dataset, f"{args.root} {half}")
    return {"images": len(dataset), "boxes": count_boxes(dataset)}


def prepare(args: argparse.Namespace) -> dict[str, Any]:
    """Check both halves, then write the class names; return what `--json` gets."""
    check_folder(args.root)
    names = read_names(args.label_list) if args.label_list else VOC_CLASSES
    try:
        halves = {half: check_half(args, half, names) for half in ("train", "test")}
    except ValueError as error:  # a list that is not 'year list'
        raise UserError(f"--train, --test: {error}") from error
    labels = args.root / "label_list.txt"
    atomic_write_text(labels, "".join(f"{name}\n" for name in names))
    for half, counts in halves.items():
        print(f"{half}: {counts['images']} images, {counts['boxes']} boxes")
    print(f"{labels}: wrote {len(names)} names; set Arch.class_num to {len(names) + 1}")
    print(f"next: VOCDataset with dataset_dir: {args.root} and splits: {list(args.train)}")
    return {"folder": str(args.root), "classes": len(names), **halves}


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, EXAMPLES, config=False)
    parser.add_argument("root", metavar="ROOT", type=Path, help="folder with VOC2007 and VOC2012")
    for name, default in (("train", TRAIN), ("test", TEST)):
        parser.add_argument(
            f"--{name}",
            nargs="+",
            default=list(default),
            metavar="SPLIT",
            help=f"'year list' pairs ({', '.join(default)})",
        )
    parser.add_argument(
        "--label-list", metavar="FILE", type=Path, help="other class names, one a line"
    )
    parser.add_argument("--subset", action="store_true", help="allow other counts than VOC's")
    return run(parser, prepare, argv)


if __name__ == "__main__":
    sys.exit(main())
