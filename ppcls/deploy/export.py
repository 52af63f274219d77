"""Writing an export folder: every form of a network, each checked against the network itself.

plan (what is exported) --export--> a hidden folder: write a form, run it, compare ...
                                    --> inference.yml --> the folder's final name
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import paddle
from paddle import nn
from paddle.static import InputSpec

from ppcls.deploy import conversion, programs
from ppcls.deploy.detector import Detector
from ppcls.deploy.detector_onnx import write_onnx
from ppcls.deploy.package import FORMS, LABELS, MANIFEST, Manifest, write_manifest
from ppcls.deploy.verify import Check, Compare, compare_outputs, worst_difference
from ppcls.utils.errors import JobError, UserError, did_you_mean
from ppcls.utils.fileio import atomic_folder

logger = logging.getLogger("ppcls")

TOLERANCE = 1e-4  # of float32 forms, relative to the largest output or 1
STEM = "inference"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is exported.

    layer: takes the inputs that `inputs` describes, fused already (`ppcls.deploy.fuse`).
    manifest: what `layer` computes; its forms, differences and versions are filled in here.
    checks: real inputs, with the outputs of the network it all came from.
    compare: how far outputs are from the expected ones.
    """

    layer: nn.Layer
    inputs: Sequence[InputSpec]
    manifest: Manifest
    checks: Sequence[Check]
    compare: Compare = compare_outputs


@dataclass(frozen=True, kw_only=True)
class Writer:
    """How the files of one form are made.

    write: takes the folder that holds the files of the form `needs`.
    is_exact: whether the tolerance holds for it; the difference of others is only reported.
    packages: which it needs to be written and run.
    """

    write: Callable[[Path, Plan], None]
    needs: str | None = None
    is_exact: bool = True
    packages: tuple[str, ...] = ()


def _write_paddle(folder: Path, plan: Plan) -> None:
    programs.save(plan.layer, plan.inputs, folder, STEM)


def _write_onnx(folder: Path, plan: Plan) -> None:
    target = folder / f"{STEM}.onnx"
    if isinstance(plan.layer, Detector):
        write_onnx(plan.layer, plan.inputs[0], target, conversion.paddle_to_onnx)
    else:
        conversion.paddle_to_onnx(folder / STEM, target)


def _write_openvino(folder: Path, plan: Plan) -> None:
    conversion.onnx_to_openvino(folder / f"{STEM}.onnx", folder / f"{STEM}.xml")


# What runs from another form's files, and how.
_SAME_FILES = {"openvino-bf16": ("openvino", "precision bfloat16")}
# A form that needs more than the plan (such as images to calibrate with) is given to `export`.
WRITERS: dict[str, Writer] = {
    "paddle": Writer(write=_write_paddle),
    "onnx": Writer(
        write=_write_onnx, needs="paddle", packages=("paddle2onnx", "onnx", "onnxruntime")
    ),
    "openvino": Writer(
        write=_write_openvino, needs="onnx", packages=("paddle2onnx", "onnx", "openvino")
    ),
}


def parse_formats(text: str, writers: Mapping[str, Writer] = WRITERS) -> list[str]:
    """Read "paddle,onnx" into forms, each once, in the order in which they are written.

    "openvino-bf16" is "openvino", which computes in bfloat16 when it is told to; the log says so.

    Raises UserError for an unknown form, a package that is missing, or a Paddle that is too old.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for position, name in enumerate(names):
        if name in _SAME_FILES:
            names[position], how = _SAME_FILES[name]
            logger.info("%s: the files of %s; run them with %s", name, names[position], how)
        elif name not in writers:
            hint = did_you_mean(name, writers) or f"; known: {', '.join(writers)}"
            raise UserError(f"--format: unknown format {name!r}{hint}")
    if not names:
        raise UserError(f"--format: expected at least one of {', '.join(writers)}, got {text!r}")
    chosen = [name for name in _order(names, writers) if name in names]
    for name in chosen:
        if "onnx" in _order([name], writers) and not programs.has_pir():
            raise UserError(
                f"--format {name}: expected Paddle 3, whose programs paddle2onnx reads, "
                f"found {paddle.__version__}"
            )
        conversion.check_packages(writers[name].packages, f"--format {name}")
    return chosen


def _order(names: Sequence[str], writers: Mapping[str, Writer]) -> list[str]:
    """Return `names` and all they need, needed ones first."""
    found: list[str] = []

    def add(name: str) -> None:
        needs = writers[name].needs
        if needs is not None:
            add(needs)
        if name not in found:
            found.append(name)

    for name in writers:
        if name in names:
            add(name)
    return found


def export(
    plan: Plan,
    folder: str | Path,
    forms: Sequence[str] = ("paddle",),
    *,
    overwrite: bool = False,
    tolerance: float = TOLERANCE,
    writers: Mapping[str, Writer] = WRITERS,
) -> Manifest:
    """Write `plan` to `folder` in `forms`, and run every form on the plan's checks.

    Returns the manifest. The folder is written whole or not at all. With `overwrite` an earlier
    export of that name is replaced; it stays as it was when anything fails.

    Raises UserError for a folder that is there or cannot be written, or too full a disk, JobError
    when a form cannot be made, or differs by more than `tolerance`.
    """
    folder = Path(folder)
    check_target(folder, overwrite)
    manifest = plan.manifest

    def fill(draft: Path) -> None:
        nonlocal manifest
        _check_space(draft, folder, plan, len(_order(forms, writers)))
        try:
            manifest = _fill(draft, plan, forms, tolerance, writers)
        except JobError as error:
            # Neither Paddle nor the converters say so, and some go on without a word.
            if shutil.disk_usage(draft).free < 1 << 20:
                raise UserError(f"{folder}: cannot be written: the disk is full") from error
            raise

    atomic_folder(folder, fill, replace=overwrite)
    return manifest


def check_target(folder: Path, overwrite: bool) -> None:
    """Raise UserError unless `folder` is free, or an export that may be replaced."""
    if not folder.is_dir() or not any(folder.iterdir()):
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder}: expected a folder to export to, found a file")
        return
    if not overwrite:
        raise UserError(
            f"{folder}: expected no such folder, or an empty one, to export to; "
            "type --overwrite to replace an export"
        )
    known = {MANIFEST, LABELS, f"{STEM}.pdiparams.info", *(n for f in FORMS.values() for n in f)}
    foreign = sorted(entry.name for entry in folder.iterdir() if entry.name not in known)
    if foreign:
        raise UserError(
            f"{folder}: expected a folder with nothing but an export to replace, "
            f"found {foreign[0]!r} in it"
        )


def _check_space(draft: Path, folder: Path, plan: Plan, forms: int) -> None:
    """Raise UserError when the weights of so many forms, and a passing copy, do not fit."""
    tensors = plan.layer.state_dict().values()
    needed = (forms + 1) * sum(tensor.numpy().nbytes for tensor in tensors)
    free = shutil.disk_usage(draft).free
    if free < needed:
        raise UserError(
            f"{folder}: expected {needed / 1e6:.0f} MB of free disk for {forms} forms, "
            f"found {free / 1e6:.0f} MB"
        )


def _fill(
    draft: Path,
    plan: Plan,
    forms: Sequence[str],
    tolerance: float,
    writers: Mapping[str, Writer],
) -> Manifest:
    differences: dict[str, float] = {}
    for form in _order(forms, writers):
        writers[form].write(draft, plan)
        if form in forms:
            limit = tolerance if writers[form].is_exact else None
            difference = _verify(draft, form, plan, limit)
            if math.isfinite(difference):  # a detector in int8 finds other objects
                differences[form] = difference
    keep = {name for form in forms for name in FORMS[form]}
    for name in {name for form in FORMS for name in FORMS[form]} - keep:
        (draft / name).unlink(missing_ok=True)
    if plan.manifest.class_names is not None and plan.manifest.task == "classification":
        lines = [f"{number} {name}\n" for number, name in enumerate(plan.manifest.class_names)]
        (draft / LABELS).write_text("".join(lines), encoding="utf-8")
    filled = dataclasses.replace(plan.manifest, differences=differences, versions=_versions())
    return write_manifest(draft, filled, forms)


def _verify(draft: Path, form: str, plan: Plan, tolerance: float | None) -> float:
    """Run a form, log how far it is from the network, and return that. `tolerance` may be none."""
    found = worst_difference(draft, form, plan.checks, plan.compare)
    images = sum(len(check.inputs[0]) for check in plan.checks)
    text = (
        f"{form}: differs from the network by {found.absolute:.3g} at most, "
        f"{found.relative:.3g} of {found.scale:.4g}, on {images} images"
    )
    if tolerance is not None and not found.relative <= tolerance:
        raise JobError(f"{text}; expected at most {tolerance:g}")
    logger.info("%s%s", text, f" (limit {tolerance:g})" if tolerance is not None else "")
    return found.absolute


def _versions() -> dict[str, str]:
    names = ("hardnet-paddle", "paddlepaddle", "paddlepaddle-gpu", "paddle2onnx", "openvino")
    return {name: importlib.metadata.version(name) for name in names if _installed(name)}


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
