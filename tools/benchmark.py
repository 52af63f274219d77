#!/usr/bin/env python3
"""Measure this project side by side with a reference, in one run.

Both sides take turns, so that a machine whose speed drifts treats them alike. A ratio is the median
over turns; above 1, ours is better.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import _bootstrap  # noqa: F401

from ppcls.utils import runtime
from ppcls.utils.cli import make_parser, run
from ppcls.utils.errors import JobError, UserError

EXAMPLE = "python tools/benchmark.py save -c configs/HarDNet/HarDNet39_ds_digits.yaml --json s.json"


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def versions() -> dict[str, str]:
    import cv2
    import numpy
    import paddle

    modules = {"paddle": paddle, "numpy": numpy, "opencv": cv2}
    found = {name: module.__version__ for name, module in modules.items()}
    return {"python": platform.python_version(), **found}


def take_turns(
    ours: Callable[[], float], reference: Callable[[], float], turns: int
) -> list[tuple[float, float]]:
    """Measure both `turns` times, each first in every other turn; the first turn is a warm-up."""
    pairs = []
    for turn in range(turns + 1):
        if turn % 2:
            one, two = ours(), reference()
        else:
            two, one = reference(), ours()
        print(f"turn {turn} of {turns}: {one:.4g} against {two:.4g}", flush=True)
        pairs.append((one, two))
    return pairs[1:]


def row(case: str, sides: tuple[str, str], unit: str, pairs: Sequence) -> dict[str, Any]:
    """A row of the result, of values of which more is better."""
    ratios = sorted(one / two for one, two in pairs)
    return {
        "case": case,
        "ours": sides[0],
        "reference": sides[1],
        "ours_value": statistics.median(one for one, _ in pairs),
        "reference_value": statistics.median(two for _, two in pairs),
        "unit": unit,
        "ratio": statistics.median(ratios),
        "ratio_min": ratios[0],
        "ratio_max": ratios[-1],
    }


def save(args: argparse.Namespace) -> dict[str, Any]:
    """Training with a save every so many steps against training without one."""
    runtime_note = runtime.import_paddle()
    from ppcls.engine import build

    if args.config is None:
        raise UserError("-c: expected the recipe to train by, got none")
    if not 1 <= args.every < args.steps:
        raise UserError(
            f"--every: expected 1 to {args.steps - 1} (below --steps), got {args.every}"
        )
    blocked: list[float] = []

    def measure(*overrides: str) -> float:
        """Images per second, until the last save is on the disk."""
        with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
            common = [f"Global.output_dir={folder}", f"Global.max_steps={args.steps}"]
            quiet = ["Global.eval_during_train=False", f"Global.print_batch_step={args.steps}"]
            settings = [*args.override, *common, *quiet, *overrides]
            trainer = build.build_trainer(build.open_session(args.config, settings, runtime_note))
            if trainer.steps_per_epoch < args.steps:
                raise UserError(f"--steps: expected at most {trainer.steps_per_epoch}, an epoch")
            start = time.perf_counter()
            trainer.train_epoch(0)
            trainer.checkpointer.close()
            seconds = time.perf_counter() - start
            trainer.logbook.close()
        if trainer.checkpointer.saves:
            blocked.append(trainer.checkpointer.blocked / trainer.checkpointer.saves)
        images = sum(trainer.loader.sampler.global_size(step) for step in range(args.steps))
        return images / seconds

    pairs = take_turns(
        lambda: measure(f"Global.save_interval_steps={args.every}"), measure, args.turns
    )
    sides = (f"a save every {args.every} steps", "no save")
    result = row(f"train {args.steps} steps", sides, "images/s", pairs)
    result["blocked_ms_per_save"] = 1000 * statistics.median(blocked)
    return report([result])


def postprocess(args: argparse.Namespace) -> dict[str, Any]:
    """A detector's post-processing against loops over its classes, on one image, 512, 81 classes.

    Raises JobError when the results differ.
    """
    runtime.import_paddle()
    import _postprocess_loops as loops
    import paddle

    from ppcls.arch.detection.postprocess import COCO, PostProcess

    layer = PostProcess(81, COCO)
    rows = []
    with paddle.no_grad():
        for kind in loops.KINDS:
            given = loops.predictions(kind)
            found = layer(*given)[0].numpy()
            for name, loop in loops.LOOPS.items():
                case = f"postprocess {kind}, {len(found)} detections"
                _check_same(case, found, loop(*given, COCO))
                print(f"{case}, {name} loop", flush=True)
                pairs = take_turns(
                    lambda given=given: _calls_per_second(lambda: layer(*given)),
                    lambda given=given, loop=loop: _calls_per_second(lambda: loop(*given, COCO)),
                    args.turns,
                )
                rows.append(row(case, ("PostProcess", f"{name} loop"), "images/s", pairs))
    return report(rows)


def _check_same(case: str, found: Any, wanted: Any) -> None:
    import numpy as np

    same = found.shape == wanted.shape and np.allclose(found, wanted, rtol=0, atol=1e-3)
    if not same or not np.allclose(found[:, :2], wanted[:, :2], rtol=0, atol=1e-6):
        raise JobError(f"{case}: expected the loop's {len(wanted)} detections, found others")


def _calls_per_second(call: Callable[[], Any], seconds: float = 0.3) -> float:
    """The median of the calls that fit into `seconds`, one at least."""
    start, spent = time.perf_counter(), []
    while not spent or time.perf_counter() - start < seconds:
        before = time.perf_counter()
        call()
        spent.append(time.perf_counter() - before)
    return 1 / statistics.median(spent)


def report(rows: list[dict[str, Any]]) -> dict[str, Any]:
    for entry in rows:
        print(
            f"{entry['case']}: {entry['ours']} {entry['ours_value']:.4g} {entry['unit']}, "
            f"{entry['reference']} {entry['reference_value']:.4g}, "
            f"ratio {entry['ratio']:.4f} ({entry['ratio_min']:.4f} to {entry['ratio_max']:.4f})"
        )
        for key in [key for key in entry if key.endswith("per_save")]:
            print(f"  {key}: {entry[key]:.2f}")
    return {"machine": machine(), "versions": versions(), "rows": rows}


CASES = {"save": save, "postprocess": postprocess}


def parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, EXAMPLE, config_required=False)
    parser.add_argument(
        "case",
        choices=list(CASES),
        help="save: what checkpoints cost a training; "
        "postprocess: a detector's, against loops over its classes",
    )
    parser.add_argument(
        "--steps", type=int, default=150, help="save: of a turn (default: %(default)s)"
    )
    parser.add_argument("--every", type=int, default=50, help="save: steps between saves")
    parser.add_argument(
        "--turns", type=int, default=5, help="measured turns (default: %(default)s)"
    )
    return parser


def measure(args: argparse.Namespace) -> dict[str, Any]:
    if args.turns < 1:
        raise UserError(f"--turns: expected 1 or more, got {args.turns}")
    return CASES[args.case](args)


def main(argv: list[str] | None = None) -> int:
    return run(parser(), measure, argv)


if __name__ == "__main__":
    sys.exit(main())
