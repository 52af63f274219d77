"""What every benchmark shares: the machine, taking turns, and rows of a result."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ppcls.utils.errors import UserError


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
    if turns < 1:
        raise UserError(f"--turns: expected 1 or more, got {turns}")
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
