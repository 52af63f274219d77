#!/usr/bin/env python3
"""Say what networks cost: parameters, MACs, memory traffic (CIO, MoC), layer by layer.

Each network runs once on the CPU, at batch 1, and what it does is counted; any network of this
project or of PaddleClas's zoo can be named. Pictures set it against what this machine can do.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _bootstrap  # noqa: F401
from _benchmark.measure import machine as machine_facts
from _benchmark.measure import versions

from ppcls.utils import runtime
from ppcls.utils.cli import make_parser, run
from ppcls.utils.errors import UserError
from ppcls.utils.fileio import atomic_write, atomic_write_text

if TYPE_CHECKING:
    from paddle import nn

    from ppcls.analysis.machine import Machine
    from ppcls.analysis.pictures import Row

EXAMPLE = "python tools/analyze.py --arch HarDNet68 --arch ResNet50 --html costs.html"
REFERENCES = ("ResNet50", "DenseNet121", "MobileNetV2")  # of the zoo, the paper's comparisons
DEFAULT_SIZE, LARGEST_SIZE = 224, 4096


def parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, EXAMPLE, config=False)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--arch", action="append", metavar="NAME", help="a network, e.g. HarDNet68; may be repeated"
    )
    which.add_argument(
        "--all",
        action="store_true",
        help=f"this project's networks and, of PaddleClas's zoo, {', '.join(REFERENCES)}",
    )
    parser.add_argument(
        "--input-size",
        type=int,
        metavar="N",
        help=f"side of the input (default: {DEFAULT_SIZE}, of a detector 512; a detector takes "
        "300 or 512, and with --all keeps its own where N is neither)",
    )
    parser.add_argument(
        "--class-num", type=int, metavar="N", help="classes (default: each network's own)"
    )
    parser.add_argument("--layers", action="store_true", help="print every layer too")
    parser.add_argument(
        "--plot", metavar="FILE", type=Path, help="draw the networks: .png, .svg or .pdf"
    )
    parser.add_argument("--html", metavar="FILE", type=Path, help="write tables and pictures")
    parser.add_argument(
        "--measure",
        action="store_true",
        help="also time every layer in Paddle's dygraph, by a clock around it (no hardware "
        "counters), beside max(FLOP / compute ceiling, bytes / bandwidth ceiling)",
    )
    parser.add_argument(
        "--repeats", type=int, default=10, help="timed passes (default: %(default)s)"
    )
    return parser


def check_arguments(args: argparse.Namespace) -> None:
    limits = [("--input-size", args.input_size, LARGEST_SIZE)]
    limits += [("--class-num", args.class_num, 1_000_000), ("--repeats", args.repeats, 10_000)]
    for option, value, largest in limits:
        if value is not None and not 1 <= value <= largest:
            raise UserError(f"{option}: expected 1 to {largest}, got {value}")
    files = [path for path in (args.json, args.plot, args.html) if path]
    for path in files:
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise UserError(f"{path}: expected a file name in a folder that exists")
    if len({path.resolve() for path in files}) < len(files):
        raise UserError("--json, --plot and --html: expected different files")


def check_pictures(args: argparse.Namespace) -> None:
    from ppcls.analysis.pictures import FORMATS, check_matplotlib

    if args.plot and args.plot.suffix.lower().lstrip(".") not in FORMATS:
        raise UserError(f"--plot {args.plot}: expected a file ending in .{', .'.join(FORMATS)}")
    for option, path in (("--plot", args.plot), ("--html", args.html)):
        if path:
            check_matplotlib(option)


def chosen_names(args: argparse.Namespace) -> list[str]:
    """The networks asked for, each once, in this project's spelling."""
    from ppcls.arch import list_models, zoo
    from ppcls.arch.build import find_builder
    from ppcls.arch.registry import canonical_name

    if args.all:
        if zoo.is_installed():
            return [*list_models(), *REFERENCES]
        print(f"left out: {', '.join(REFERENCES)}: the extra 'zoo' (paddleclas) is not installed")
        return list_models()
    for name in args.arch:
        find_builder(name, "--arch")  # an unknown one is found before minutes of work
    return list(dict.fromkeys(canonical_name(name) or name for name in args.arch))


def build(name: str, args: argparse.Namespace) -> tuple[nn.Layer, int]:
    """Build a network, and say at which side of input it is to run."""
    import paddle

    from ppcls.arch import create_model
    from ppcls.arch.detection.ssd_plan import SIZES, SSD_VARIANTS

    size = args.input_size or DEFAULT_SIZE
    options = {} if args.class_num is None else {"class_num": args.class_num}
    if name in SSD_VARIANTS:
        own = max(SIZES)
        size = args.input_size or own
        if size not in SIZES and args.all:
            size = own
        options["size"] = size
    # Some of the zoo's networks name their parameters, which otherwise works once in a process.
    with paddle.utils.unique_name.guard():
        return create_model(name, **options), size


def analyze_network(name: str, args: argparse.Namespace) -> Row:
    from ppcls.analysis import analyze
    from ppcls.analysis.pictures import Row
    from ppcls.analysis.timing import measure_layers

    model, size = build(name, args)
    cost = analyze(model, (1, getattr(model, "in_channels", 3), size, size), name)
    print(f"counted: {name} at {size}, {len(cost.layers)} layers", file=sys.stderr)
    timing = measure_layers(model, cost, args.repeats) if args.measure else None
    return Row(cost, timing)


def measured(args: argparse.Namespace, names: Sequence[str]) -> tuple[list[Row], Machine | None]:
    """Analyse the networks; where ceilings are wanted, measure them before and after."""
    from ppcls.analysis.machine import measure_machine

    wants_machine = bool(args.plot or args.html or args.measure)
    before = measure_machine() if wants_machine else None
    rows = [analyze_network(name, args) for name in names]
    return rows, before and before.best(measure_machine())


def print_report(rows: Sequence[Row], machine: Machine | None, with_layers: bool) -> None:
    from ppcls.analysis.report import NOTES, layers_table, markdown, networks_table
    from ppcls.analysis.timing import too_fast

    print(markdown(networks_table(rows, machine)), *NOTES, sep="\n\n")
    if machine:
        print(f"\nCeilings of this machine: {machine}; balance {machine.balance:.3g} MACs/element.")
    for row in rows:
        if with_layers:
            print(f"\n{row.cost.name}\n\n{markdown(layers_table(row, machine))}")
        for warning in row.cost.uncounted:
            print(f"warning: {row.cost.name}: {warning}", file=sys.stderr)
        above = too_fast(row.cost, row.timing, machine) if machine and row.timing else 0
        if above:
            print(
                f"warning: {row.cost.name}: {above} layers were faster than the compute ceiling: "
                "the machine was busy while that was measured, measure again",
                file=sys.stderr,
            )


def command(args: argparse.Namespace) -> dict[str, Any]:
    check_arguments(args)
    runtime.import_paddle()
    import paddle

    from ppcls.analysis import pictures, report

    check_pictures(args)
    paddle.set_device("cpu")
    rows, machine = measured(args, chosen_names(args))
    print_report(rows, machine, args.layers)
    if args.plot:
        picture = pictures.draw(rows, machine, args.plot.suffix.lower().lstrip("."))
        atomic_write(args.plot, lambda file: file.write(picture))
    if args.html:
        atomic_write_text(args.html, report.html_page(rows, machine))
    for path in filter(None, (args.plot, args.html)):
        print(f"written: {path}")
    facts = machine_facts() | ({"ceilings": machine.to_dict()} if machine else {})
    networks = {row.cost.name: report.network_dict(row, machine) for row in rows}
    return {"machine": facts, "versions": versions(), "networks": networks}


def main(argv: list[str] | None = None) -> int:
    return run(parser(), command, argv)


if __name__ == "__main__":
    sys.exit(main())
