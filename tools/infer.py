#!/usr/bin/env python3
"""Classify images, or detect objects in them: an image, those of a list, or those of a folder.

With a recipe (-c) its network runs in Paddle; with --model DIR what tools/export_model.py wrote,
by the fastest runtime that is installed.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _bootstrap  # noqa: F401

from ppcls.utils import cli, runtime
from ppcls.utils import logger as log
from ppcls.utils.errors import UserError

if TYPE_CHECKING:
    from ppcls.deploy import Predictor

EXAMPLE = """python tools/infer.py -c configs/HarDNet/HarDNet68.yaml \\
      -o Global.pretrained_model=hardnet68.pdparams -o Infer.infer_imgs=cat.jpg
  python tools/infer.py --model inference/HarDNet68 cat.jpg photographs/"""

logger = logging.getLogger("ppcls")


def parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__, EXAMPLE, config_required=False)
    cli.add_test_options(parser)
    cli.add_flip_option(parser)
    model = parser.add_argument_group("an exported network")
    model.add_argument("--model", metavar="DIR", type=Path, help="the export folder")
    model.add_argument(
        "images", nargs="*", metavar="IMAGE", type=Path, help="an image, a .txt list or a folder"
    )
    model.add_argument(
        "--runtime",
        metavar="FORM",
        help="openvino, onnx, paddle or openvino-int8 (default: the first of them there is, and "
        "not int8)",
    )
    model.add_argument("--threads", metavar="N", type=int, help="default: as many as cores")
    model.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    model.add_argument("--batch-size", metavar="N", type=int, help="images at once (default: 1)")
    model.add_argument(
        "--output-dir",
        metavar="DIR",
        type=Path,
        default=Path("output/infer"),
        help="where a detector's pictures go (default: %(default)s)",
    )
    return parser


def infer(args: argparse.Namespace) -> dict[str, Any]:
    if (args.config is None) == (args.model is None):
        raise UserError("expected either -c YAML or --model DIR (see tools/infer.py -h)")
    return {"images": run_recipe(args) if args.model is None else run_export(args)}


def run_recipe(args: argparse.Namespace) -> list[dict[str, Any]]:
    if args.images:
        raise UserError(
            f"{args.images[0]}: expected the images as -o Infer.infer_imgs=PATH with -c"
        )
    runtime_note = runtime.import_paddle()
    from ppcls.engine import build
    from ppcls.engine.classify import classify
    from ppcls.engine.detect import detect

    overrides = args.override + cli.test_overrides(args)
    session = build.open_session(args.config, overrides, runtime_note)
    is_detection = session.recipe.Global.task == "detection"
    return detect(session) if is_detection else classify(session)


def run_export(args: argparse.Namespace) -> list[dict[str, Any]]:
    if args.override:
        raise UserError("-o changes a recipe: expected none with --model")
    if args.test_size is not None or args.crop_ratio is not None:
        raise UserError("--test-size: expected none with --model; export with it instead")
    if not args.images:
        raise UserError("expected an image, a list or a folder after --model DIR, found none")
    from ppcls.data.images import list_images
    from ppcls.deploy import Predictor

    log.setup()
    paths = [image for path in args.images for image in list_images(path)]
    predictor = Predictor(
        args.model,
        runtime=args.runtime,
        threads=args.threads,
        precision=args.precision,
        batch_size=args.batch_size,
        flip=args.flip,
    )
    pictures = {}
    if predictor.manifest.task == "detection":
        from ppcls.engine.draw import picture_paths

        pictures = picture_paths(paths, args.output_dir, "--output-dir")
    results = []
    for start in range(0, len(paths), predictor.batch_size):
        batch = paths[start : start + predictor.batch_size]
        results += infer_batch(predictor, batch, pictures)
    return results


def infer_batch(
    predictor: Predictor, paths: list[Path], pictures: dict[Path, Path]
) -> list[dict[str, Any]]:
    """Run one batch, write a detector's `pictures`, and log a line per image."""
    from ppcls.metric.results import describe_classes, describe_objects

    threshold = predictor.manifest.threshold
    images = [predictor.prepare(path, keep_pixels=path in pictures) for path in paths]
    results = predictor.run(images)
    for path, image, result in zip(paths, images, results, strict=True):
        if path in pictures:
            draw(predictor, image.pixels, result, pictures[path])
            result["picture"] = str(pictures[path])
            logger.info("%s -> %s", describe_objects(result, threshold), pictures[path])
        else:
            logger.info("%s", describe_classes(result))
    return results


def draw(predictor: Predictor, pixels: Any, result: dict[str, Any], target: Path) -> None:
    from ppcls.engine.draw import draw_detections, save_picture
    from ppcls.metric.results import as_detections

    found = as_detections(result)
    shown = draw_detections(pixels, found, predictor.class_names, predictor.manifest.threshold)
    save_picture(shown, target)


def main(argv=None) -> int:
    return cli.run(parser(), infer, argv)


if __name__ == "__main__":
    raise SystemExit(main())
