#!/usr/bin/env python3
"""Evaluate weights on the images of DataLoader.Eval: each image counts once."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import _bootstrap  # noqa: F401

from ppcls.utils import cli, runtime

EXAMPLE = """python tools/eval.py -c configs/HarDNet/HarDNet68.yaml \\
      -o Global.pretrained_model=hardnet68.pdparams \\
      -o DataLoader.Eval.dataset.image_root=./dataset/ILSVRC2012/
  python tools/eval.py -c configs/HarDNet/HarDNet68.yaml -o Global.pretrained_model=hardnet68.pth \\
      --test-size 256 --flip --per-class --confusion confusion.png"""


def parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__, EXAMPLE)
    cli.add_test_options(parser)
    cli.add_flip_option(parser)
    parser.add_argument(
        "--per-class", action="store_true", help="accuracy, precision and images of each class"
    )
    parser.add_argument(
        "--confusion",
        metavar="FILE.png",
        type=Path,
        help="draw which class is taken for which; the counts go to FILE.csv",
    )
    return parser


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    runtime_note = runtime.import_paddle()
    from ppcls.engine import build, parallel
    from ppcls.engine.class_report import ClassReport

    overrides = args.override + cli.test_overrides(args)
    session = build.open_session(args.config, overrides, runtime_note)
    report = ClassReport.plan(session.recipe, per_class=args.per_class, picture=args.confusion)
    result = build.evaluate(session, keep_predictions=report is not None)
    written = {} if report is None else report.write(result.predictions)
    parallel.stop()
    return {**result.to_json(), **written}


def main(argv=None) -> int:
    return cli.run(parser(), evaluate, argv)


if __name__ == "__main__":
    raise SystemExit(main())
