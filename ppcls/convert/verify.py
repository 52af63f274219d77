"""Proof that converted weights compute the same: both networks on one image, layer by layer."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ppcls.arch.backbone.hardnet_plan import VARIANTS
from ppcls.arch.detection.ssd_plan import SSD_VARIANTS
from ppcls.convert.architectures import Architecture, architectures, find_architecture
from ppcls.convert.reference import (
    DetectorReference,
    NumpyOps,
    Ops,
    Reference,
    Stages,
    TorchOps,
    TrunkReference,
)
from ppcls.utils.errors import UserError

__all__ = ["NumpyOps", "Reference", "TorchOps", "has_torch", "verify"]

# Absolute, on the logits; measured: at most 7.9e-5 (HarDNet68_ds), 5.7e-6 to 1.3e-5 for the others.
FLOAT32_TOLERANCE = 1e-4
# On a detector's raw outputs; measured: 1.1e-4 where their standard deviation is 13.
DETECTOR_TOLERANCE = 1e-3
FLOAT64_TOLERANCE = 1e-9  # relative to the largest logit or output
MAX_FLOAT = float(np.finfo(np.float64).max)


def default_tolerance(row: Architecture) -> float:
    """Return the largest absolute difference in float32 that passes."""
    return FLOAT32_TOLERANCE if row.network in VARIANTS else DETECTOR_TOLERANCE


def _reference(row: Architecture, state: Mapping[str, np.ndarray], ops: Ops) -> Reference:
    if row.network in VARIANTS:
        return Reference(VARIANTS[row.network], state, ops)
    spec = SSD_VARIANTS[row.network]
    if row.size:
        return DetectorReference(spec, row.size, state, ops)
    return TrunkReference(spec, {row.prefix + name: value for name, value in state.items()}, ops)


def _paddle_stages(
    row: Architecture, state: Mapping[str, np.ndarray], class_num: int, images: Any, dtype: str
) -> Stages:
    import paddle

    previous = paddle.get_default_dtype()
    paddle.set_default_dtype(dtype)
    try:
        model = _paddle_network(row, state, class_num)
    finally:
        paddle.set_default_dtype(previous)
    model.eval()
    with paddle.no_grad():
        for name, x in _run(row, model, paddle.to_tensor(images.astype(dtype))):
            yield name, x.numpy()


def _paddle_network(row: Architecture, state: Mapping[str, np.ndarray], class_num: int) -> Any:
    from ppcls.arch import create_model
    from ppcls.arch.weights import load_state

    sized = {"size": row.size} if row.size else {}
    counted = {"class_num": class_num} if class_num else {}
    model = create_model(row.network, **sized, **counted)
    anew = [] if row.class_num else [name for name in model.state_dict() if name not in state]
    load_state(model, state, "the converted weights", anew=anew)
    return model


def _run(row: Architecture, model: Any, x: Any) -> Iterator[tuple[str, Any]]:
    """Yield the same stages as the reference does."""
    images = x
    for index, layer in enumerate(model.base):
        x = layer(x)
        yield f"base.{index}", x
    if row.size:
        if hasattr(model, "bridge"):
            yield "bridge", model.bridge(x)
        yield from zip(("loc", "conf"), model(images), strict=True)


def _largest(values: np.ndarray) -> float:
    """The largest magnitude; what is not finite counts as the largest float, which JSON has."""
    return float(np.nan_to_num(np.abs(values), nan=MAX_FLOAT, posinf=MAX_FLOAT).max())


def _compare(reference: Stages, paddle_side: Stages, row: Architecture) -> dict[str, Any]:
    """Compare all stages; what counts are the logits, a detector's two outputs or a trunk's map."""
    stages = []
    for (name, wanted), (_, found) in zip(reference, paddle_side, strict=True):
        wanted = wanted.astype(np.float64)
        with np.errstate(invalid="ignore"):  # infinite minus infinite is dealt with below
            difference = found - wanted
        stages.append(
            {
                "name": name,
                "max_abs_error": _largest(difference),
                "max_abs": _largest(wanted),
            }
        )
    results = stages[-2:] if row.size else stages[-1:]
    worst = max(stage["max_abs_error"] for stage in results)
    relative = max(_relative_error(stage) for stage in results)
    label = result_name(row)
    return {
        f"{label}_max_abs_error": worst,
        f"{label}_relative_error": relative,
        "stages": stages,
    }


def _relative_error(stage: Mapping[str, Any]) -> float:
    error, scale = stage["max_abs_error"], stage["max_abs"]
    # Infinite outputs are wrong, however close the error is to them.
    return error / scale if 0 < scale < MAX_FLOAT else error


def result_name(row: Architecture) -> str:
    """Return what a result's keys call that which is compared."""
    return "logits" if row.network in VARIANTS else "outputs"


def has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


def verify(
    torch_state: Mapping[str, np.ndarray],
    paddle_state: Mapping[str, np.ndarray],
    arch: str,
    class_num: int,
    *,
    tolerance: float | None = None,
    size: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare both networks on one random image [1, 3, size, size], in evaluation mode.

    `arch` is a row of `architectures()`. `size` is 224 by default; a detector has its own.

    Returns the largest errors per stage and at the logits (of a detector: "outputs", loc and conf;
    of a trunk, its last map), and `passed`: at most `tolerance` (absolute, by default 1e-4, for
    detectors 1e-3) in float32, which needs PyTorch, and FLOAT64_TOLERANCE (relative) in float64.
    """
    if arch not in architectures():
        raise UserError(f"{arch}: cannot be verified, only these can: {', '.join(architectures())}")
    row, with_torch = find_architecture(arch), has_torch()
    side = row.size or size or 224
    images = np.random.default_rng([seed, 12345]).standard_normal((1, 3, side, side))
    images = images.astype(np.float32)
    result: dict[str, Any] = {"reference": "torch" if with_torch else "numpy", "seed": seed}
    for dtype in ("float32", "float64") if with_torch else ("float64",):
        ops = TorchOps(dtype) if with_torch else NumpyOps(dtype)
        reference = _reference(row, torch_state, ops).stages(images)
        paddle_side = _paddle_stages(row, paddle_state, class_num, images, dtype)
        compared = _compare(reference, paddle_side, row)
        absolute = default_tolerance(row) if tolerance is None else tolerance
        is_single = dtype == "float32"
        kind, limit = ("max_abs", absolute) if is_single else ("relative", FLOAT64_TOLERANCE)
        passed = compared[f"{result_name(row)}_{kind}_error"] <= limit
        result[dtype] = {**compared, "limit": limit, "passed": passed}
    result["passed"] = all(result[key]["passed"] for key in ("float32", "float64") if key in result)
    return result
