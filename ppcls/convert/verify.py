"""Proof that converted weights compute the same: both networks on one image, layer by layer.

The reference below is written a second time, in plain functions on PyTorch's own names: with
`torch.nn.functional` where PyTorch is installed, in NumPy otherwise. It is driven by the plan of
the network, never by the Paddle layers it is compared with.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from ppcls.arch.backbone.hardnet_plan import (
    VARIANTS,
    BlockUnit,
    ConvUnit,
    DepthwiseUnit,
    HarDNetSpec,
    PoolUnit,
    Unit,
    block_layer_units,
    plan_units,
)
from ppcls.utils.errors import UserError

EPSILON = 1e-5  # of batch norm
# Absolute, on the logits; measured: at most 7.9e-5 (HarDNet68_ds), 5.7e-6 to 1.3e-5 for the others.
FLOAT32_TOLERANCE = 1e-4
FLOAT64_TOLERANCE = 1e-9  # relative to the largest logit
MAX_FLOAT = float(np.finfo(np.float64).max)
Stages = Iterator[tuple[str, np.ndarray]]


class Ops(Protocol):
    """What a HarDNet is made of, on [N, C, H, W] arrays of one library."""

    def array(self, value: np.ndarray) -> Any: ...
    def numpy(self, x: Any) -> np.ndarray: ...
    def conv(self, x: Any, weight: Any, stride: int, padding: int, groups: int) -> Any: ...
    def norm(self, x: Any, weight: Any, bias: Any, mean: Any, variance: Any) -> Any: ...
    def relu6(self, x: Any) -> Any: ...
    def max_pool(self, x: Any, kernel: int, stride: int, padding: int) -> Any: ...
    def concat(self, parts: list) -> Any: ...
    def classify(self, x: Any, weight: Any, bias: Any) -> Any: ...


class NumpyOps:
    """The operations in NumPy, for want of PyTorch."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype

    def array(self, value: np.ndarray) -> np.ndarray:
        return np.asarray(value, self.dtype)

    def numpy(self, x: np.ndarray) -> np.ndarray:
        return x

    def conv(
        self, x: np.ndarray, weight: np.ndarray, stride: int, padding: int, groups: int
    ) -> np.ndarray:
        """Sum over the kernel's positions; `groups` is 1 or the channel count (depthwise)."""
        kernel = weight.shape[2]
        height, width = ((n + 2 * padding - kernel) // stride + 1 for n in x.shape[2:])
        padded = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
        total = np.zeros((len(x), len(weight), height, width), self.dtype)
        for i in range(kernel):
            for j in range(kernel):
                part = padded[
                    :, :, i : i + stride * height : stride, j : j + stride * width : stride
                ]
                if groups == 1:
                    flat = part.reshape(*part.shape[:2], -1)
                    total += (weight[:, :, i, j] @ flat).reshape(total.shape)
                else:
                    total += weight[:, 0, i, j, None, None] * part
        return total

    def norm(
        self,
        x: np.ndarray,
        weight: np.ndarray,
        bias: np.ndarray,
        mean: np.ndarray,
        variance: np.ndarray,
    ) -> np.ndarray:
        scale = weight / np.sqrt(variance + EPSILON)
        return x * scale[:, None, None] + (bias - mean * scale)[:, None, None]

    def relu6(self, x: np.ndarray) -> np.ndarray:
        return np.clip(x, 0, 6)

    def max_pool(self, x: np.ndarray, kernel: int, stride: int, padding: int) -> np.ndarray:
        edges = ((0, 0), (0, 0), (padding, padding), (padding, padding))
        padded = np.pad(x, edges, constant_values=-np.inf)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), (2, 3))
        return windows[:, :, ::stride, ::stride].max((-2, -1))

    def concat(self, parts: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(parts, 1)

    def classify(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
        return x.mean((2, 3)) @ weight.T + bias


class TorchOps:
    """The operations of PyTorch."""

    def __init__(self, dtype: str) -> None:
        import torch

        self.torch, self.functional = torch, torch.nn.functional
        self.dtype = getattr(torch, dtype)

    def array(self, value: np.ndarray) -> Any:
        return self.torch.from_numpy(np.array(value)).to(self.dtype)

    def numpy(self, x: Any) -> np.ndarray:
        return x.numpy()

    def conv(self, x: Any, weight: Any, stride: int, padding: int, groups: int) -> Any:
        return self.functional.conv2d(x, weight, None, stride, padding, groups=groups)

    def norm(self, x: Any, weight: Any, bias: Any, mean: Any, variance: Any) -> Any:
        return self.functional.batch_norm(x, mean, variance, weight, bias, eps=EPSILON)

    def relu6(self, x: Any) -> Any:
        return self.functional.relu6(x)

    def max_pool(self, x: Any, kernel: int, stride: int, padding: int) -> Any:
        return self.functional.max_pool2d(x, kernel, stride, padding)

    def concat(self, parts: list) -> Any:
        return self.torch.cat(parts, 1)

    def classify(self, x: Any, weight: Any, bias: Any) -> Any:
        return self.functional.linear(x.mean((2, 3)), weight, bias)


class Reference:
    """The network `spec` as functions of a PyTorch state dict."""

    def __init__(self, spec: HarDNetSpec, state: Mapping[str, np.ndarray], ops: Ops) -> None:
        self.units = plan_units(spec)
        self.ops = ops
        self.state = {
            name: ops.array(value)
            for name, value in state.items()
            if not name.endswith(".num_batches_tracked")
        }

    def stages(self, images: np.ndarray) -> Stages:
        """Yield the output of `base.0`, `base.1`, ... and last the logits."""
        x = self.ops.array(images)
        for index, unit in enumerate(self.units):
            x = self._unit(f"base.{index}", unit, x)
            yield f"base.{index}", self.ops.numpy(x)
        head = f"base.{len(self.units)}"
        logits = self.ops.classify(x, self.state[f"{head}.3.weight"], self.state[f"{head}.3.bias"])
        yield head, self.ops.numpy(logits)

    def _unit(self, prefix: str, unit: Unit, x: Any) -> Any:
        if isinstance(unit, ConvUnit):
            return self.ops.relu6(self._conv_norm(prefix, "conv", x, unit.stride, 1))
        if isinstance(unit, DepthwiseUnit):
            return self._conv_norm(prefix, "dwconv", x, unit.stride, unit.channels)
        if isinstance(unit, PoolUnit):
            return self.ops.max_pool(x, unit.kernel, unit.stride, unit.padding)
        if isinstance(unit, BlockUnit):
            return self._block(prefix, unit, x)
        return x  # dropout does nothing in evaluation

    def _conv_norm(self, prefix: str, conv: str, x: Any, stride: int, groups: int) -> Any:
        weight = self.state[f"{prefix}.{conv}.weight"]
        x = self.ops.conv(x, weight, stride, weight.shape[-1] // 2, groups)
        names = ("weight", "bias", "running_mean", "running_var")
        return self.ops.norm(x, *(self.state[f"{prefix}.norm.{name}"] for name in names))

    def _block(self, prefix: str, unit: BlockUnit, x: Any) -> Any:
        outputs = [x]
        for index, layer in enumerate(unit.plan.layers):
            y = self.ops.concat([outputs[link] for link in layer.links])
            for name, part in block_layer_units(unit, layer):
                dotted = f".{name}" if name else ""
                y = self._unit(f"{prefix}.layers.{index}{dotted}", part, y)
            outputs.append(y)
        return self.ops.concat([outputs[number] for number in unit.plan.outputs])


def _paddle_stages(
    arch: str, state: Mapping[str, np.ndarray], class_num: int, images: np.ndarray, dtype: str
) -> Stages:
    import paddle

    from ppcls.arch import create_model
    from ppcls.arch.weights import load_state

    previous = paddle.get_default_dtype()
    paddle.set_default_dtype(dtype)
    try:
        model = create_model(arch, class_num=class_num)
        load_state(model, state, "the converted weights")
    finally:
        paddle.set_default_dtype(previous)
    model.eval()
    x = paddle.to_tensor(images.astype(dtype))
    for index, layer in enumerate(model.base):
        with paddle.no_grad():
            x = layer(x)
        yield f"base.{index}", x.numpy()


def _largest(values: np.ndarray) -> float:
    """The largest magnitude; what is not finite counts as the largest float, which JSON has."""
    return float(np.nan_to_num(np.abs(values), nan=MAX_FLOAT, posinf=MAX_FLOAT).max())


def _compare(reference: Stages, paddle_side: Stages) -> dict[str, Any]:
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
    worst, scale = stages[-1]["max_abs_error"], stages[-1]["max_abs"]
    return {
        "logits_max_abs_error": worst,
        # Infinite logits are wrong, however close the error is to them.
        "logits_relative_error": worst / scale if 0 < scale < MAX_FLOAT else worst,
        "stages": stages,
    }


def has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


def verify(
    torch_state: Mapping[str, np.ndarray],
    paddle_state: Mapping[str, np.ndarray],
    arch: str,
    class_num: int,
    *,
    tolerance: float = FLOAT32_TOLERANCE,
    size: int = 224,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare both networks on one random image [1, 3, size, size], in evaluation mode.

    Returns the largest errors per stage and at the logits, and `passed`: at most `tolerance`
    (absolute, by default 1e-4) in float32, which needs PyTorch, and FLOAT64_TOLERANCE (relative)
    in float64.
    """
    if arch not in VARIANTS:
        raise UserError(f"{arch}: only the classifiers can be verified: {', '.join(VARIANTS)}")
    with_torch = has_torch()
    images = np.random.default_rng([seed, 12345]).standard_normal((1, 3, size, size))
    images = images.astype(np.float32)
    result: dict[str, Any] = {"reference": "torch" if with_torch else "numpy", "seed": seed}
    for dtype in ("float32", "float64") if with_torch else ("float64",):
        ops = TorchOps(dtype) if with_torch else NumpyOps(dtype)
        reference = Reference(VARIANTS[arch], torch_state, ops).stages(images)
        compared = _compare(reference, _paddle_stages(arch, paddle_state, class_num, images, dtype))
        is_single = dtype == "float32"
        kind, limit = ("max_abs", tolerance) if is_single else ("relative", FLOAT64_TOLERANCE)
        passed = compared[f"logits_{kind}_error"] <= limit
        result[dtype] = {**compared, "limit": limit, "passed": passed}
    result["passed"] = all(result[key]["passed"] for key in ("float32", "float64") if key in result)
    return result
