"""The case `train`: steps of training, on images that are made up.

Each contestant has a process of its own (see `train_worker`) and all take turns. The reference is
the network of PaddleClas's wheel in a process as the wheel starts it, with no setting of this
project's; with PyTorch installed, also a twin in PyTorch.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from _benchmark import infer, measure
from _benchmark.infer import Case, Contestant
from _benchmark.networks import CLASSIFIERS

HELP = "steps of training: data, forward, backward, optimizer"
EXAMPLE = "python tools/benchmark.py train --arch HarDNet39_ds --batch 16 --json t.json"
NEEDS_CONFIG = False
_REFERENCES = (  # kind, package, name
    ("wheel", "paddleclas", "PaddleClas's wheel, as it starts"),
    ("torch", "torch", "PyTorch"),
)
PHASES = ("data", "forward", "backward", "optimizer")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from ppcls.utils.runtime import usable_cores

    parser.set_defaults(turns=3)
    parser.add_argument("--arch", action="append", help=f"of {', '.join(CLASSIFIERS)} (all)")
    parser.add_argument("--size", type=int, nargs="+", default=[224], help="pixels (224)")
    parser.add_argument("--batch", type=int, nargs="+", default=[16], help="images (16)")
    parser.add_argument("--runs", type=int, default=5, help="steps in a turn (5)")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="(all cores)")
    parser.add_argument("--recompute", action="store_true", help="also ours with recompute")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table")


@dataclass
class Trained(Contestant):
    """A contestant whose turns hold steps; a step is the milliseconds of its phases."""

    phases: list[list[list[float]]] = field(default_factory=list)
    script: ClassVar[Path] = Path(__file__).with_name("train_worker.py")

    def take(self, answer: list[list[float]]) -> None:
        self.phases.append(answer)
        super().take([sum(step) for step in answer])

    def result(self, case: Case) -> dict[str, Any]:
        steps = [step for turn in self.phases for step in turn]
        columns = zip(PHASES, zip(*steps, strict=True), strict=True)
        parts = {f"ms_{name}": statistics.median(times) for name, times in columns}
        return {**super().result(case), **parts}


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Time the steps of every contestant of every network, batch and size."""
    infer.check_arguments(args, CLASSIFIERS)
    results: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for network in args.arch or CLASSIFIERS:
        for size in args.size:
            for batch in args.batch:
                case = Case(network, batch, size)
                found = list(contestants(network, args))
                infer.compete(case, found, args)
                results += [contestant.result(case) for contestant in found]
                rows += compare(case, found)
    report = measure.report(rows)
    report["results"] = results
    report["versions"] |= infer.package_versions()
    report["machine"]["threads"] = args.threads
    print(markdown(results))
    if args.markdown:
        args.markdown.write_text(markdown(results) + "\n", encoding="utf-8")
    return report


def contestants(network: str, args: argparse.Namespace) -> Iterator[Trained]:
    threads = {"PPCLS_NUM_THREADS": str(args.threads)}
    for recompute in (False, True) if args.recompute else (False,):
        spec = {"kind": "ours", "recompute": recompute}
        name = "ours, recompute" if recompute else "ours"
        yield Trained(name, True, "float32", spec, environment=threads)
    for kind, package, name in _REFERENCES:
        if importlib.util.find_spec(package) is None:
            print(f"{network}: without {name}: no package {package!r}", flush=True)
            continue
        yield Trained(name, False, "float32", {"kind": kind})


def compare(case: Case, found: list[Trained]) -> Iterator[dict[str, Any]]:
    """Rows: ours against each reference, and each other form of ours against the first."""
    ours, *others = found
    for other in others:
        row = infer.row(case, ours, other)
        for name in ("peak_bytes", "peak_tensor_bytes"):
            mine, its = getattr(ours, name), getattr(other, name)
            if mine and its:
                row[name.replace("bytes", "ratio")] = its / mine
        yield row


def markdown(results: list[dict[str, Any]]) -> str:
    """A table of all contestants, in the order they were measured."""
    lines = [
        "| network | batch | size | what trains it | images/s | ms a step | p5 | p90 | "
        + " | ".join(PHASES)
        + " | peak MiB | of tensors |",
        "|---" * (10 + len(PHASES)) + "|",
    ]
    for r in results:
        name = f"**{r['name']}**" if r["side"] == "ours" else r["name"]
        parts = " | ".join(f"{r[f'ms_{phase}']:.1f}" for phase in PHASES)
        peak, tensors = (
            f"{r[name] / 2**20:.0f}" if r[name] else ""
            for name in ("peak_bytes", "peak_tensor_bytes")
        )
        lines.append(
            f"| {r['network']} | {r['batch']} | {r['size']} | {name} | {r['images_per_s']:.1f} "
            f"| {r['ms_median']:.0f} | {r['ms_p5']:.0f} | {r['ms_p90']:.0f} | {parts} "
            f"| {peak} | {tensors} |"
        )
    return "\n".join(lines)
