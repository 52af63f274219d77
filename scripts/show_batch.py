#!/usr/bin/env python3
"""Write a picture of what the network sees: one batch of a recipe, labels beneath.

Images are those of the loader, after all transforms and mixing, with the normalisation undone; a
mixed image has the shares of its labels, an image for a detector its boxes. Epochs and steps count
as a run's log does, and a run of one process sees these very images there.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

# Also from a clone that is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ppcls.utils import runtime  # noqa: E402
from ppcls.utils.cli import make_parser, run  # noqa: E402
from ppcls.utils.errors import UserError  # noqa: E402

EXAMPLES = """python scripts/show_batch.py -c configs/HarDNet/HarDNet39_ds_digits.yaml --out b.png
  python scripts/show_batch.py -c configs/HarDNet/SSD300_HarDNet68_digits.yaml --epoch 2 --step 7
  python scripts/show_batch.py -c configs/HarDNet/HarDNet68.yaml --split Eval --images 12 \\
      -o DataLoader.Eval.sampler.batch_size=12"""


def show(args: argparse.Namespace) -> dict[str, Any]:
    lowest = {"epoch": 1, "step": 0, "images": 1, "columns": 1}
    for name, low in lowest.items():
        value = getattr(args, name)
        if value is not None and value < low:
            raise UserError(f"--{name}: expected {low} or more, got {value}")
    runtime.import_paddle()
    from ppcls.engine.config import load_recipe
    from ppcls.engine.draw import save_picture
    from ppcls.engine.own_images import with_own_images
    from ppcls.engine.show import load_batch, make_sheet, make_tiles, names_of
    from ppcls.engine.testing import at_test_size

    recipe, _ = load_recipe(args.config, args.override)
    recipe = at_test_size(with_own_images(recipe))
    dataset, batch = load_batch(recipe, args.split, args.epoch, args.step)
    tiles = make_tiles(batch, dataset, names_of(dataset, recipe), args.images)
    sheet = make_sheet(tiles, args.columns)
    save_picture(sheet, args.out)
    shown = [dataset.describe(int(index)) for index in batch.indices[: args.images]]
    print(f"{args.out}: {len(shown)} of {len(batch.indices)} images, {sheet.width}x{sheet.height}")
    captions = [tile.caption for tile in tiles]
    images = [{"image": name, "label": lines} for name, lines in zip(shown, captions, strict=True)]
    return {"picture": str(args.out), "split": args.split, "images": images}


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, EXAMPLES)
    parser.add_argument("--split", choices=("Train", "Eval"), default="Train", help="(Train)")
    parser.add_argument("--epoch", type=int, default=1, help="from 1 on (1)")
    parser.add_argument("--step", type=int, default=0, help="of the epoch, from 0 on (0)")
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        default=Path("batch.png"),
        help="PNG or JPEG (batch.png)",
    )
    parser.add_argument("--images", type=int, default=32, help="of the batch at most (32)")
    parser.add_argument("--columns", type=int, help="of the sheet (as many as fit)")
    return run(parser, show, argv)


if __name__ == "__main__":
    sys.exit(main())
