"""The case `postprocess`: a detector's, against loops over its classes."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from _benchmark import measure
from ppcls.utils import runtime
from ppcls.utils.errors import JobError

HELP = "a detector's post-processing against loops over its classes"
EXAMPLE = "python tools/benchmark.py postprocess --json p.json"
NEEDS_CONFIG = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It has none of its own."""


def run(args: argparse.Namespace) -> dict[str, Any]:
    """A detector's post-processing against loops over its classes, on one image, 512, 81 classes.

    Raises JobError when the results differ.
    """
    runtime.import_paddle()
    import paddle

    from _benchmark import postprocess_loops as loops
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
                pairs = measure.take_turns(
                    lambda given=given: _calls_per_second(lambda: layer(*given)),
                    lambda given=given, loop=loop: _calls_per_second(lambda: loop(*given, COCO)),
                    args.turns,
                )
                rows.append(measure.row(case, ("PostProcess", f"{name} loop"), "images/s", pairs))
    return measure.report(rows)


def _check_same(case: str, found: Any, wanted: Any) -> None:
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
