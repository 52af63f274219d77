"""Check a COCO detection folder and write the list of class names.

ROOT holds train2017/, val2017/ and annotations/instances_train2017.json and
annotations/instances_val2017.json, or with --sets and --subset other folders and files named
alike. Both files and every image's header are read, and every problem is named. The counts must be
COCO 2017's unless --subset is given.

Writes ROOT/label_list.txt: the names in the order of labels 1..80 (0 is the background).
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
    count_boxes,
)

from ppcls.data.datasets import COCODataset  # noqa: E402
from ppcls.utils.cli import make_parser, run  # noqa: E402
from ppcls.utils.errors import UserError  # noqa: E402
from ppcls.utils.fileio import atomic_write_text  # noqa: E402

IMAGES = {"train2017": 118287, "val2017": 5000}
CATEGORIES = 80
EXAMPLES = """python scripts/prepare_coco.py dataset/coco
  python scripts/prepare_coco.py dataset/digit_scenes --sets train val --subset"""


def check_set(args: argparse.Namespace, name: str) -> COCODataset:
    """Read one annotation file and look at its images; UserError names what is wrong."""
    check_folder(args.root / name)
    dataset = COCODataset(
        name, f"annotations/instances_{name}.json", DECODE, dataset_dir=str(args.root)
    )
    if not args.subset:
        if name not in IMAGES:
            raise UserError(f"{name}: expected one of {', '.join(IMAGES)}; use --subset")
        check_count(str(args.root / name), len(dataset), IMAGES[name])
        if dataset.class_num != CATEGORIES + 1:
            raise UserError(
                f"{dataset.anno_path}: expected {CATEGORIES} categories, found "
                f"{dataset.class_num - 1}; for another set use --subset"
            )
    check_images(dataset, str(args.root / name))
    return dataset


def prepare(args: argparse.Namespace) -> dict[str, Any]:
    """Check both sets, then write the class names; return what `--json` gets."""
    check_folder(args.root)
    first, *others = (check_set(args, name) for name in args.sets)
    for other in others:
        if (first.class_names, first.category_ids.tolist()) != (
            other.class_names,
            other.category_ids.tolist(),
        ):
            raise UserError(f"{other.anno_path}: expected the categories of {first.anno_path}")
    names = first.class_names[1:]
    labels = args.root / "label_list.txt"
    atomic_write_text(labels, "".join(f"{name}\n" for name in names))
    counts = {
        name: {"images": len(dataset), "boxes": count_boxes(dataset)}
        for name, dataset in zip(args.sets, [first, *others], strict=True)
    }
    for name, count in counts.items():
        print(f"{name}: {count['images']} images, {count['boxes']} boxes")
    print(f"{labels}: wrote {len(names)} names; set Arch.class_num to {len(names) + 1}")
    print(
        f"next: COCODataset with dataset_dir: {args.root}, image_dir: {args.sets[0]}, "
        f"anno_path: annotations/instances_{args.sets[0]}.json"
    )
    return {"folder": str(args.root), "classes": len(names), **counts}


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, EXAMPLES, config=False)
    parser.add_argument("root", metavar="ROOT", type=Path, help="folder of images and annotations")
    parser.add_argument(
        "--sets",
        nargs="+",
        default=list(IMAGES),
        metavar="NAME",
        help="folders of images, each with annotations/instances_NAME.json (train2017 val2017)",
    )
    parser.add_argument("--subset", action="store_true", help="allow other counts than COCO 2017's")
    return run(parser, prepare, argv)


if __name__ == "__main__":
    sys.exit(main())
