#!/usr/bin/env python3
"""Export weights to the forms that run fastest, each checked against the network on real images.

The folder Global.save_inference_dir then holds inference.yml and the files of each form: "paddle"
for Paddle Inference and PaddleClas's own command, "onnx", "openvino", "openvino-int8".

A detector is exported with its post-processing. Int8 is calibrated with images of DataLoader.Train
and held to its score on DataLoader.Eval; layers that cost too much stay in float."""

from __future__ import annotations

import argparse
import logging
import math
import sys
import time
from pathlib import Path
from typing import Any

import _bootstrap  # noqa: F401

from ppcls.utils import runtime
from ppcls.utils.cli import add_test_options, make_parser, run, test_overrides
from ppcls.utils.errors import UserError

EXAMPLE = """python tools/export_model.py -c configs/HarDNet/HarDNet68.yaml \\
      --checkpoint hardnet68.pdparams --format paddle,onnx,openvino \\
      -o Global.save_inference_dir=./inference/HarDNet68"""

logger = logging.getLogger("ppcls")


def parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, EXAMPLE)
    parser.add_argument(
        "--checkpoint", metavar="FILE", help="the weights; the same as Global.pretrained_model"
    )
    parser.add_argument(
        "--format",
        default="paddle",
        metavar="FORMS",
        help="forms to write, comma-separated: paddle, onnx, openvino (openvino-bf16 is the same), "
        "openvino-int8 (default: %(default)s)",
    )
    parser.add_argument(
        "--bake-normalization",
        action="store_true",
        help="take uint8 images [N, H, W, 3] and normalise them in the network",
    )
    parser.add_argument(
        "--softmax", action="store_true", help="give probabilities instead of logits"
    )
    parser.add_argument(
        "--dynamic-size",
        action="store_true",
        help="take any height and width, not image_shape's (not in openvino-int8)",
    )
    parser.add_argument(
        "--batch", type=int, metavar="N", help="take N images at once (default: any number)"
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        metavar="X",
        help="largest difference from the network: of a classifier relative to the largest output "
        "or 1 (default: 1e-4), of a detector in pixels (default: 1e-3)",
    )
    parser.add_argument(
        "--max-drop",
        type=float,
        default=0.003,
        metavar="X",
        help="int8: how far the score may fall, as a fraction (default: %(default)s)",
    )
    parser.add_argument(
        "--calibration-images", type=int, default=300, metavar="N", help="int8: (%(default)s)"
    )
    add_test_options(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    return parser


def check_arguments(args: argparse.Namespace) -> None:
    if args.batch is not None and args.batch < 1:
        raise UserError(f"--batch: expected 1 or more, got {args.batch}")
    if args.calibration_images < 1:
        raise UserError(f"--calibration-images: expected 1 or more, got {args.calibration_images}")
    if not 0 <= args.max_drop < 1:
        raise UserError(f"--max-drop: expected a fraction from 0, got {args.max_drop}")
    if args.tolerance is not None and not 0 < args.tolerance < math.inf:
        raise UserError(f"--tolerance: expected a number above 0, got {args.tolerance}")
    if args.dynamic_size and "openvino-int8" in map(str.strip, args.format.split(",")):
        raise UserError(
            "--dynamic-size: expected none with --format openvino-int8, "
            "which needs a fixed height and width"
        )


def int8_writers(args: argparse.Namespace, session: Any, report: dict[str, Any]) -> dict[str, Any]:
    """The forms that can be written, int8 among them; `report` is filled in when it is."""
    from ppcls.deploy.export import WRITERS, Writer
    from ppcls.deploy.quantize import FORM, QuantizeConfig, quantize_form
    from ppcls.engine import calibrate

    def write(folder: Path, plan: Any) -> None:
        images = calibrate.calibration_inputs(
            session.recipe, plan.manifest, args.calibration_images
        )
        evaluate, name = calibrate.build_evaluate(session, plan.manifest)
        config = QuantizeConfig(subset_size=args.calibration_images)
        found = quantize_form(
            folder, plan.manifest, images, evaluate, max_drop=args.max_drop, config=config
        )
        report.update(found, score=name)

    packages = ("paddle2onnx", "onnx", "openvino", "nncf")
    int8 = Writer(write=write, needs="openvino", is_exact=False, packages=packages)
    return {**WRITERS, FORM: int8}


def export(args: argparse.Namespace) -> dict[str, Any]:
    check_arguments(args)
    runtime_note = runtime.import_paddle()
    from ppcls.deploy import export as exporter
    from ppcls.deploy import quantize
    from ppcls.engine import build, calibrate, exporting, exporting_detector

    start = time.perf_counter()
    overrides = exporting.with_checkpoint(args.override, args.checkpoint) + test_overrides(args)
    session = build.open_session(args.config, overrides, runtime_note)
    quantized: dict[str, Any] = {}
    writers = int8_writers(args, session, quantized)
    forms = exporter.parse_formats(args.format, writers)
    folder = Path(session.recipe.Global.save_inference_dir)
    exporter.check_target(folder, args.overwrite)
    is_detector = session.recipe.Global.task == "detection"
    make_plan = exporting_detector.detector_plan if is_detector else exporting.classifier_plan
    tolerance = exporting_detector.TOLERANCE if is_detector else exporter.TOLERANCE
    plan = make_plan(session, exporting.options_of(args))
    if quantize.FORM in forms:  # no images: said now, not when the other forms are written
        calibrate.calibration_inputs(session.recipe, plan.manifest)
    manifest = exporter.export(
        plan,
        folder,
        forms,
        overwrite=args.overwrite,
        tolerance=args.tolerance or tolerance,
        writers=writers,
    )
    result = report(folder, manifest, time.perf_counter() - start)
    return result | ({"int8": quantized} if quantized else {})


def report(folder: Path, manifest: Any, seconds: float) -> dict[str, Any]:
    from ppcls.deploy.stock import stock_command

    sizes = {
        form: sum((folder / name).stat().st_size for name in files)
        for form, files in manifest.forms.items()
    }
    listed = ", ".join(f"{form} ({size / 1e6:.1f} MB)" for form, size in sizes.items())
    logger.info("written: %s in %.0f s: %s", folder, seconds, listed)
    command = stock_command(folder, manifest)
    if command is not None:
        note = "" if manifest.output == "probabilities" else " (scores are logits)"
        logger.info("PaddleClas's own command runs it too%s: %s", note, command)
    return {
        "folder": str(folder),
        "arch": manifest.arch,
        "forms": manifest.forms,
        "bytes": sizes,
        "differences": manifest.differences,
        "seconds": seconds,
        "paddleclas_command": command,
    }


def main(argv: list[str] | None = None) -> int:
    return run(parser(), export, argv)


if __name__ == "__main__":
    sys.exit(main())
