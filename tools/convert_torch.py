#!/usr/bin/env python3
"""Convert HarDNet weights between PyTorch and Paddle, and prove that they compute the same."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import _bootstrap  # noqa: F401
import numpy as np

from ppcls.convert import (
    load_paddle_state_dict,
    load_torch_state_dict,
    paddle_to_torch,
    recognise,
    save_torch_state_dict,
    torch_to_paddle,
)
from ppcls.convert.architectures import candidates, find_architecture
from ppcls.convert.mapping import class_count, closest
from ppcls.convert.verify import (
    DETECTOR_TOLERANCE,
    FLOAT32_TOLERANCE,
    default_tolerance,
    result_name,
    verify,
)
from ppcls.utils import runtime
from ppcls.utils.cli import make_parser, run
from ppcls.utils.errors import JobError, UserError
from ppcls.utils.fileio import atomic_write, map_file
from ppcls.utils.pdparams import save_pdparams, save_safetensors
from ppcls.utils.safe_pickle import MAX_FILE_BYTES

EXAMPLE = "python tools/convert_torch.py hardnet68.pth HarDNet68.pdparams --verify"
SUFFIXES = {"paddle": (".pdparams", ".safetensors"), "torch": (".pth", ".pt", ".safetensors")}


def parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, EXAMPLE, config=False)
    parser.add_argument("source", metavar="IN", type=Path, help=".pth, .pdparams or .safetensors")
    parser.add_argument("target", metavar="OUT", type=Path, help="file to write")
    parser.add_argument(
        "--to",
        choices=sorted(SUFFIXES),
        default="paddle",
        help="default: paddle; for torch num_batches_tracked is 0, as Paddle has no such counter",
    )
    parser.add_argument("--arch", help="network, e.g. HarDNet68 (default: seen from the weights)")
    parser.add_argument(
        "--size", type=int, help="input side of a detector, 300 or 512 (default: seen likewise)"
    )
    parser.add_argument(
        "--class-num",
        type=int,
        metavar="N",
        help="classes, if not 1000; of a detector, background included, seen from the weights",
    )
    parser.add_argument("--verify", action="store_true", help="run both networks and compare")
    parser.add_argument(
        "--tolerance",
        type=float,
        help="largest absolute difference of float32 logits "
        f"(default: {FLOAT32_TOLERANCE:g}, of a detector's outputs {DETECTOR_TOLERANCE:g}; "
        "measured: 7.9e-5 for HarDNet68_ds, at most 1.3e-5 for the other classifiers)",
    )
    parser.add_argument("--report", metavar="FILE", type=Path, help="write the report as JSON")
    return parser


def check_arguments(args: argparse.Namespace) -> None:
    if args.target.suffix not in SUFFIXES[args.to]:
        expected = " or ".join(SUFFIXES[args.to])
        raise UserError(f"OUT: with --to {args.to} expected a {expected} file, got {args.target}")
    if args.class_num is not None and args.class_num < 1:
        raise UserError(f"--class-num: expected 1 or more, got {args.class_num}")
    if args.tolerance is not None and not 0 < args.tolerance < math.inf:
        raise UserError(f"--tolerance: expected a number above 0, got {args.tolerance}")
    check_report(args.report, "--report")
    check_report(args.json, "--json")
    outputs = [path.resolve() for path in (args.target, args.report, args.json) if path]
    if len({*outputs, args.source.resolve()}) <= len(outputs):
        raise UserError("IN, OUT, --report and --json: expected different files")


def check_report(path: Path | None, option: str) -> None:
    if path and path.is_dir():
        raise UserError(f"{option} {path}: expected a file name, found a folder")
    if path and not path.absolute().parent.is_dir():
        raise UserError(f"{option} {path}: expected a folder that exists")


def official_files() -> list[Any]:
    """The authors' PyTorch files among the published weights."""
    from ppcls.arch.weights import PUBLISHED  # imports Paddle, which takes seconds

    return [row for row in PUBLISHED if row.file.endswith(".pth")]


def fingerprint(path: Path) -> dict[str, Any]:
    """Identify a file, and say which official one it is, by either of two checksums."""
    data = map_file(path, MAX_FILE_BYTES)
    sha256 = hashlib.sha256(data).hexdigest()
    blob = hashlib.sha1(b"blob %d\0" % len(data), usedforsecurity=False)
    blob.update(data)
    official = official_files()
    by_sha = [row.file for row in official if row.sha256 and sha256.startswith(row.sha256)]
    by_blob = [row.file for row in official if row.git_blob == blob.hexdigest()]
    return {
        "path": str(path),
        "bytes": len(data),
        "sha256": sha256,
        "git_blob": blob.hexdigest(),
        "official_by_sha256_prefix": by_sha[0] if by_sha else None,
        "official_by_git_blob": by_blob[0] if by_blob else None,
    }


def check_finite(state: Mapping[str, np.ndarray], source: Path) -> None:
    broken = [name for name, value in state.items() if not np.isfinite(value).all()]
    if broken:
        raise UserError(
            f"{source}: {len(broken)} tensors hold values that are not finite, first {broken[0]}"
        )


def statistics(state: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Shape, dtype, mean, population standard deviation and largest magnitude of each tensor."""
    rows = []
    for name, value in state.items():
        wide = value.astype(np.float64)
        numbers = {"mean": wide.mean(), "std": wide.std(), "max_abs": np.abs(wide).max()}
        row = {"name": name, "shape": list(value.shape), "dtype": str(value.dtype)}
        rows.append(row | {key: float(number) for key, number in numbers.items()})
    return rows


def choose(given: Mapping[str, np.ndarray], name: str | None, size: int | None) -> str:
    """Return the row of `ppcls.convert.architectures` these weights are to be those of."""
    if name is None:
        arch = recognise(given)
        return candidates(arch, size)[0]
    return closest(given, candidates(name, size))


def check(args: argparse.Namespace, arch: str, torch_state: dict, paddle_state: dict) -> dict:
    row = find_architecture(arch)
    class_num = args.class_num or class_count(torch_state, row) or row.class_num
    tolerance = args.tolerance or default_tolerance(row)
    result = verify(torch_state, paddle_state, arch, class_num, tolerance=tolerance)
    label = result_name(row)
    for dtype in ("float32", "float64"):
        if dtype in result:
            found = result[dtype]
            print(
                f"{dtype} against {result['reference']}: {label} differ by "
                f"{found[f'{label}_max_abs_error']:.2e} "
                f"({found[f'{label}_relative_error']:.2e} relative, limit {found['limit']:g}): "
                f"{'passed' if found['passed'] else 'FAILED'}"
            )
    return result


def write(path: Path, state: Mapping[str, np.ndarray], to: str) -> None:
    if to == "torch":
        save_torch_state_dict(path, state)
    elif path.suffix == ".safetensors":
        save_safetensors(path, state, {"format": "pd"})
    else:
        save_pdparams(path, state)


def convert(args: argparse.Namespace) -> dict[str, Any]:
    check_arguments(args)
    runtime.import_paddle()
    to_paddle = args.to == "paddle"
    given = (load_torch_state_dict if to_paddle else load_paddle_state_dict)(args.source)
    arch = choose(given, args.arch, args.size)
    result = (torch_to_paddle if to_paddle else paddle_to_torch)(given, arch, args.class_num)
    check_finite(result, args.source)
    print(f"{args.source}: {arch}, {len(given)} tensors -> {len(result)}")
    report: dict[str, Any] = {
        "source": fingerprint(args.source),
        "arch": arch,
        "to": args.to,
        "tensors": {"source": len(given), "result": len(result)},
        "statistics": statistics(result),
        "check": check(args, arch, *((given, result) if to_paddle else (result, given)))
        if args.verify
        else None,
    }
    passed = report["check"] is None or report["check"]["passed"]
    if passed:
        write(args.target, result, args.to)
        report["result"] = fingerprint(args.target)
    if args.report:  # of a failed check too: it says which stage differs first
        text = json.dumps(report, indent=2) + "\n"
        atomic_write(args.report, lambda file: file.write(text.encode("utf-8")))
    if not passed:
        raise JobError(f"{args.source}: the networks differ, {args.target} was not written")
    print(f"written: {args.target}")
    return report


def main(argv: list[str] | None = None) -> int:
    return run(parser(), convert, argv)


if __name__ == "__main__":
    sys.exit(main())
