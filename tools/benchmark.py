#!/usr/bin/env python3
"""Measure this project side by side with a reference, in one run.

Both sides take turns, so that a machine whose speed drifts treats them alike. A ratio is the median
over turns; above 1, ours is better.
"""

from __future__ import annotations

import importlib
import sys
from argparse import ArgumentParser
from types import ModuleType

import _bootstrap  # noqa: F401

from ppcls.utils.cli import make_parser, run

# Modules of _benchmark, each with HELP, EXAMPLE, NEEDS_CONFIG, add_arguments and run.
CASES = ("data", "infer", "postprocess", "save", "shards", "train")


def load(case: str) -> ModuleType:
    return importlib.import_module(f"_benchmark.{case}")


def overview() -> ArgumentParser:
    """The parser for a command line without a case: it has only `-h` and errors to give."""
    lines = "".join(f"\n  {case:12} {load(case).HELP}" for case in CASES)
    description = f"{__doc__}\ncases, each with a -h of its own:{lines}"
    parser = make_parser(description, load(CASES[0]).EXAMPLE, config=False)
    parser.add_argument("case", choices=CASES, help="what to measure")
    return parser


def case_parser(case: str) -> ArgumentParser:
    module = load(case)
    parser = make_parser(module.__doc__, module.EXAMPLE, config=module.NEEDS_CONFIG)
    parser.prog = f"{parser.prog} {case}"
    parser.add_argument(
        "--turns", type=int, default=5, help="measured turns (default: %(default)s)"
    )
    module.add_arguments(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] not in CASES:
        overview().parse_args(argv)
    return run(case_parser(argv[0]), load(argv[0]).run, argv[1:])


if __name__ == "__main__":
    sys.exit(main())
