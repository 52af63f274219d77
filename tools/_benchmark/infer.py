"""The case `infer`: every runtime and precision that is installed, and the references.

Each contestant has a process of its own (see `worker`) and all take turns: in a turn each is warmed
up and timed alone while the others sleep.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from _benchmark import measure
from _benchmark.networks import CLASSIFIERS, DETECTORS
from ppcls.utils.errors import JobError, UserError

HELP = "every runtime and precision that is installed, and what others would run"
EXAMPLE = "python tools/benchmark.py infer --arch HarDNet68 --plot infer.png --json i.json"
NEEDS_CONFIG = False

NETWORKS = (*CLASSIFIERS, *DETECTORS)
COMPARISON = "ResNet50"  # the paper's
REFERENCES = ("wheel", "torch", "comparison")  # of classifiers, as prepare.py calls them
WARMUP = 3  # runs at the start
_WORKER = Path(__file__).with_name("worker.py")
# What a process chose at its start belongs to it, not to the ones it starts.
_CHOSEN = ("OMP_NUM_THREADS", "MKL_DEBUG_CPU_TYPE")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from ppcls.utils.runtime import usable_cores

    parser.set_defaults(turns=10)
    parser.add_argument(
        "--arch", action="append", help=f"of {', '.join(NETWORKS)} (all classifiers)"
    )
    parser.add_argument(
        "--size", type=int, nargs="+", default=[224], help="pixels of a classifier's images (224)"
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="images at once (1)")
    parser.add_argument("--runs", type=int, default=10, help="runs in a turn (10)")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="(all cores)")
    parser.add_argument("--int8", action="store_true", help="quantise too: minutes a network")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="write a picture of it")


class Case(NamedTuple):
    """A network, images at once, and pixels of their side."""

    network: str
    batch: int
    size: int

    def __str__(self) -> str:
        return f"{self.network}, batch {self.batch}, {self.size}x{self.size}"


@dataclass
class Contestant:
    """What runs a network, and the milliseconds of its runs, a list per turn."""

    name: str
    is_ours: bool
    precision: str
    spec: dict[str, Any]
    file_bytes: int | None = None
    environment: dict[str, str] = field(default_factory=dict)
    turns: list[list[float]] = field(default_factory=list)
    peak_bytes: int | None = None
    peak_tensor_bytes: int | None = None
    script: ClassVar[Path] = _WORKER

    def take(self, answer: list) -> None:
        """Keep what its process answered in a turn."""
        self.turns.append(answer)

    @property
    def medians(self) -> list[float]:
        return [statistics.median(turn) for turn in self.turns]

    def result(self, case: Case) -> dict[str, Any]:
        times = np.array([time for turn in self.turns for time in turn])
        median = float(np.median(times))
        return {
            "network": case.network,
            "batch": case.batch,
            "size": case.size,
            "name": self.name,
            "side": "ours" if self.is_ours else "reference",
            "precision": self.precision,
            "runs": len(times),
            "ms_median": median,
            **{f"ms_p{p}": float(np.percentile(times, p)) for p in (5, 90, 99)},
            "images_per_s": 1000 * case.batch / median,
            "peak_bytes": self.peak_bytes,
            "peak_tensor_bytes": self.peak_tensor_bytes,
            "file_bytes": self.file_bytes,
        }


class Worker:
    """The process of a contestant."""

    def __init__(self, contestant: Contestant, threads: int, case: Case) -> None:
        self.contestant = contestant
        shape = [case.batch, 3, case.size, case.size]
        place = {**case._asdict(), "shape": shape, "threads": threads, "warmup": WARMUP}
        spec = {**place, **contestant.spec}
        environment = {k: v for k, v in os.environ.items() if k not in _CHOSEN}
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [sys.executable, str(contestant.script), json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env={**environment, **contestant.environment},
        )

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            last = self.log.read().strip().splitlines()[-1:]
            raise JobError(f"{self.contestant.name} ended: {''.join(last)[:300] or 'no message'}")
        return json.loads(line)

    def ask(self, line: str) -> Any:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `answer` says what became of it
            self.process.stdin.write(f"{line}\n")
            self.process.stdin.flush()
        return self.answer()

    def turn(self, runs: int) -> None:
        self.ask("1")  # caches, and a processor that woke up
        self.contestant.take(self.ask(str(runs)))

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.log.close()


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Time every contestant of every network, batch and size."""
    check_arguments(args, NETWORKS)
    if args.plot and importlib.util.find_spec("matplotlib") is None:
        raise UserError(
            "--plot: expected the package 'matplotlib', found none; "
            "install it with: pip install 'hardnet-paddle[analysis]'"
        )
    results: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        for network in args.arch or CLASSIFIERS:
            for size in [DETECTORS[network][1]] if network in DETECTORS else args.size:
                prepared = Preparation(Path(folder) / f"{network}-{size}", network, size, args)
                for batch in args.batch:
                    case = Case(network, batch, size)
                    contestants = prepared.contestants()
                    compete(case, contestants, args)
                    results += [contestant.result(case) for contestant in contestants]
                    rows += compare(case, contestants)
    report = measure.report(rows)
    report["results"] = results
    report["versions"] |= package_versions()
    print(markdown(results))
    if args.markdown:
        args.markdown.write_text(markdown(results) + "\n", encoding="utf-8")
    if args.plot:
        plot(results, args.plot)
    return report


def check_arguments(args: argparse.Namespace, known: Sequence[str]) -> None:
    """Raise UserError for what no case that takes turns can do; `known` are its networks."""
    for name in ("turns", "runs", "threads"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name}: expected 1 or more, got {getattr(args, name)}")
    for name in ("batch", "size"):
        if min(getattr(args, name)) < 1:
            raise UserError(f"--{name}: expected numbers from 1, got {getattr(args, name)}")
    for name in args.arch or ():
        if name not in known:
            raise UserError(f"--arch: expected one of {', '.join(known)}, got {name!r}")


class Preparation:
    """The files of a network, written by child processes so that this one stays small."""

    def __init__(self, folder: Path, network: str, size: int, args: argparse.Namespace) -> None:
        self.network, self.folder = network, folder
        self.is_detector = network in DETECTORS
        self.wanted = ["ours", *(["program"] if self.is_detector else REFERENCES)]
        if args.int8:
            self.wanted.append("int8")
        options = [str(folder), network, str(size), *self.wanted]
        command = [sys.executable, str(_WORKER.with_name("prepare.py")), *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = "\n".join(done.stderr.strip().splitlines()[-3:])
            raise JobError(f"{network}: its files cannot be made: {last}")
        self.made = json.loads(done.stdout.strip().splitlines()[-1])
        for name, reason in self.made["left_out"].items():
            print(f"{network}: without {name}: {reason}", flush=True)

    def contestants(self) -> list[Contestant]:
        return [*self._ours(), *(self._loops() if self.is_detector else self._references())]

    def _ours(self) -> Iterator[Contestant]:
        yield Contestant("dygraph", True, "float32", {"kind": "dygraph"})
        for form in self.made["forms"]:
            precision = "int8" if form == "openvino-int8" else "float32"
            yield self._form(self.folder / "ours", form, form, precision, "float32")
        if self.made["has_bfloat16"]:
            for form in ("openvino", "paddle"):
                if form in self.made["forms"]:
                    name = f"{form} in bfloat16"
                    yield self._form(self.folder / "ours", form, name, "bfloat16", "bfloat16")

    def _form(
        self, folder: Path, form: str, name: str, label: str, precision: str, is_ours: bool = True
    ) -> Contestant:
        spec = {"kind": "export", "folder": str(folder), "form": form, "precision": precision}
        files = json.loads((folder / "sizes.json").read_text())[form]
        return Contestant(name, is_ours, label, spec, files)

    def _loops(self) -> Iterator[Contestant]:
        """What a detector's user has otherwise: its network, and a loop over its classes."""
        name = "dygraph, a loop over the classes in Paddle"
        yield Contestant(name, False, "float32", {"kind": "dygraph-loop"})
        program, weights = (Path(path) for path in self.made["program"])
        spec = {"kind": "paddle-loop", "program": str(program), "weights": str(weights)}
        name = "the network in Paddle Inference, a loop over the classes in NumPy"
        size = program.stat().st_size + weights.stat().st_size
        yield Contestant(name, False, "float32", spec, size)

    def _references(self) -> Iterator[Contestant]:
        files = self.folder
        if self.made["wheel"]:
            yield Contestant(
                "PaddleClas's wheel, dygraph, as it starts",
                False,
                "float32",
                {"kind": "wheel"},
            )
            program, weights = files / "wheel.pdmodel", files / "wheel.pdiparams"
            yield Contestant(
                "PaddleClas's wheel, Paddle Inference",
                False,
                "float32",
                {"kind": "paddle", "program": str(program), "weights": str(weights)},
                program.stat().st_size + weights.stat().st_size,
            )
        if self.made["torch"]:
            yield Contestant("PyTorch, eager", False, "float32", {"kind": "torch"})
            path = files / "torch.onnx"
            for kind, name in (("onnx", "ONNX Runtime"), ("openvino", "OpenVINO")):
                spec = {"kind": kind, "path": str(path)}
                name = f"ONNX from PyTorch, {name}"
                yield Contestant(name, False, "float32", spec, path.stat().st_size)
        if self.made["comparison"]:
            folder = files / "comparison"
            name = f"{COMPARISON}, exported likewise, openvino"
            yield self._form(folder, "openvino", name, "float32", "float32", is_ours=False)


def compete(case: Case, contestants: Sequence[Contestant], args: argparse.Namespace) -> None:
    """Let the contestants of a case take turns."""
    workers: list[Worker] = []
    try:
        for contestant in contestants:
            workers.append(Worker(contestant, args.threads, case))
            workers[-1].answer()
        for turn in range(args.turns):
            first = turn % len(workers)
            for worker in workers[first:] + workers[:first]:
                worker.turn(args.runs)
            print(f"{case}: turn {turn + 1} of {args.turns}", flush=True)
        for worker in workers:
            found = worker.contestant
            found.peak_bytes, found.peak_tensor_bytes = worker.ask("end")
    finally:
        for worker in workers:
            worker.close()


def compare(case: Case, contestants: list[Contestant]) -> Iterator[dict[str, Any]]:
    """Rows: the form `Predictor` takes by itself, and int8, against each reference."""
    ours = {c.name: c for c in contestants if c.is_ours}
    default = next(ours[form] for form in ("openvino", "onnx", "paddle") if form in ours)
    same = [c for c in contestants if not c.is_ours and not c.name.startswith(COMPARISON)]
    for reference in [c for c in contestants if not c.is_ours]:
        yield row(case, default, reference)
    if same:
        fastest = min(same, key=lambda c: statistics.median(c.medians))
        yield row(case, default, fastest, " (the fastest reference)")
    if "openvino-int8" in ours:
        floats = [c for c in [*same, *ours.values()] if c.precision == "float32"]
        fastest = min(floats, key=lambda c: statistics.median(c.medians))
        yield row(case, ours["openvino-int8"], fastest, " (the fastest in float32)")


def row(case: Case, ours: Contestant, reference: Contestant, note: str = "") -> dict[str, Any]:
    """A row of the result: images per second of both, turn by turn."""
    pairs = [
        (1000 * case.batch / one, 1000 * case.batch / two)
        for one, two in zip(ours.medians, reference.medians, strict=True)
    ]
    return measure.row(str(case), (ours.name, reference.name + note), "images/s", pairs)


def package_versions() -> dict[str, str]:
    from importlib import metadata

    names = ("openvino", "onnxruntime", "nncf", "paddle2onnx", "paddleclas", "torch")
    return {n: metadata.version(n) for n in names if importlib.util.find_spec(n) is not None}


def markdown(results: list[dict[str, Any]]) -> str:
    """A table of all contestants, the fastest of a case first."""
    lines = [
        "| network | batch | size | what runs it | precision | ms median | p90 | p99 | images/s "
        "| peak MiB | file MB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    order = {(r["network"], r["batch"], r["size"]): i for i, r in reversed([*enumerate(results)])}

    def key(r: dict[str, Any]) -> tuple[int, float]:
        return order[r["network"], r["batch"], r["size"]], r["ms_median"]

    for r in sorted(results, key=key):
        peak = f"{r['peak_bytes'] / 2**20:.0f}" if r["peak_bytes"] else ""
        size = f"{r['file_bytes'] / 1e6:.1f}" if r["file_bytes"] else ""
        name = f"**{r['name']}**" if r["side"] == "ours" else r["name"]
        lines.append(
            f"| {r['network']} | {r['batch']} | {r['size']} | {name} | {r['precision']} "
            f"| {r['ms_median']:.2f} | {r['ms_p90']:.2f} | {r['ms_p99']:.2f} "
            f"| {r['images_per_s']:.1f} | {peak} | {size} |"
        )
    return "\n".join(lines)


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Bars of the median latency with its 5th to 90th percentile, a panel per case."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cases = list(dict.fromkeys((r["network"], r["batch"], r["size"]) for r in results))
    figure, panels = pyplot.subplots(
        len(cases), 1, figsize=(9, 3.4 * len(cases)), squeeze=False, layout="constrained"
    )
    for case, panel in zip(cases, panels[:, 0], strict=True):
        rows = [r for r in results if (r["network"], r["batch"], r["size"]) == case]
        rows.sort(key=lambda r: -r["ms_median"])
        middle = [r["ms_median"] for r in rows]
        spread = [
            [r["ms_median"] - r["ms_p5"] for r in rows],
            [max(0.0, r["ms_p90"] - r["ms_median"]) for r in rows],
        ]
        colours = ["#0072B2" if r["side"] == "ours" else "#999999" for r in rows]
        labels = [f"{r['name']} ({r['precision']})" for r in rows]
        panel.barh(labels, middle, xerr=spread, color=colours, ecolor="#333333")
        for number, value in enumerate(middle):
            end = value + spread[1][number]
            panel.annotate(f" {value:.1f}", (end, number), va="center", fontsize=8)
        panel.margins(x=0.12)  # for the last label
        panel.set_title("{}, batch {}, {}x{} pixels".format(*case, case[-1]))
        panel.set_xlabel("milliseconds, median (5th to 90th percentile)")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
