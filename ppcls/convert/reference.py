"""HarDNets written a second time, in plain functions on PyTorch's own names.

With `torch.nn.functional` where PyTorch is installed, in NumPy otherwise. They are driven by the
plan of the network, never by the Paddle layers they are compared with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from ppcls.arch.backbone.hardnet_plan import (
    BlockUnit,
    ConvUnit,
    DepthwiseUnit,
    HarDNetSpec,
    PoolUnit,
    Unit,
    block_layer_units,
    plan_units,
)
from ppcls.arch.detection.ssd_plan import DILATION, SSDSpec, extra_layers, source_unit

EPSILON = 1e-5  # of batch norm
Stages = Iterator[tuple[str, np.ndarray]]


class Ops(Protocol):
    """What a HarDNet is made of, on [N, C, H, W] arrays of one library."""

    def array(self, value: np.ndarray) -> Any: ...
    def numpy(self, x: Any) -> np.ndarray: ...
    def conv(
        self, x: Any, weight: Any, stride: int, padding: int, groups: int = 1, dilation: int = 1
    ) -> Any: ...
    def norm(self, x: Any, weight: Any, bias: Any, mean: Any, variance: Any) -> Any: ...
    def relu(self, x: Any) -> Any: ...
    def relu6(self, x: Any) -> Any: ...
    def max_pool(
        self, x: Any, kernel: int, stride: int, padding: int, ceil_mode: bool = False
    ) -> Any: ...
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
        self,
        x: np.ndarray,
        weight: np.ndarray,
        stride: int,
        padding: int,
        groups: int = 1,
        dilation: int = 1,
    ) -> np.ndarray:
        """Sum over the kernel's positions; `groups` is 1 or the channel count (depthwise)."""
        kernel = weight.shape[2]
        reach = dilation * (kernel - 1)
        height, width = ((n + 2 * padding - reach - 1) // stride + 1 for n in x.shape[2:])
        padded = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
        total = np.zeros((len(x), len(weight), height, width), self.dtype)
        for i in range(kernel):
            for j in range(kernel):
                top, left = i * dilation, j * dilation
                part = padded[
                    :,
                    :,
                    top : top + stride * height : stride,
                    left : left + stride * width : stride,
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

    def relu(self, x: np.ndarray) -> np.ndarray:
        return np.maximum(x, 0)

    def relu6(self, x: np.ndarray) -> np.ndarray:
        return np.clip(x, 0, 6)

    def max_pool(
        self, x: np.ndarray, kernel: int, stride: int, padding: int, ceil_mode: bool = False
    ) -> np.ndarray:
        more = [(kernel - n - 2 * padding) % stride if ceil_mode else 0 for n in x.shape[2:]]
        edges = ((0, 0), (0, 0), *((padding, padding + extra) for extra in more))
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

    def conv(
        self, x: Any, weight: Any, stride: int, padding: int, groups: int = 1, dilation: int = 1
    ) -> Any:
        return self.functional.conv2d(x, weight, None, stride, padding, dilation, groups)

    def norm(self, x: Any, weight: Any, bias: Any, mean: Any, variance: Any) -> Any:
        return self.functional.batch_norm(x, mean, variance, weight, bias, eps=EPSILON)

    def relu(self, x: Any) -> Any:
        return self.functional.relu(x)

    def relu6(self, x: Any) -> Any:
        return self.functional.relu6(x)

    def max_pool(
        self, x: Any, kernel: int, stride: int, padding: int, ceil_mode: bool = False
    ) -> Any:
        return self.functional.max_pool2d(x, kernel, stride, padding, ceil_mode=ceil_mode)

    def concat(self, parts: list) -> Any:
        return self.torch.cat(parts, 1)

    def classify(self, x: Any, weight: Any, bias: Any) -> Any:
        return self.functional.linear(x.mean((2, 3)), weight, bias)


class Reference:
    """The network `spec` as functions of a PyTorch state dict."""

    def __init__(self, spec: HarDNetSpec, state: Mapping[str, np.ndarray], ops: Ops) -> None:
        self.units = plan_units(spec)
        self.ops = ops
        self.activations = {"relu": ops.relu, "relu6": ops.relu6}
        self.state = {
            name: ops.array(value)
            for name, value in state.items()
            if not name.endswith(".num_batches_tracked")
        }

    def stages(self, images: np.ndarray) -> Stages:
        """Yield the output of `base.0`, `base.1`, ... and last the logits."""
        x = None
        for name, x in self._body(self.ops.array(images)):
            yield name, self.ops.numpy(x)
        head = f"base.{len(self.units)}"
        logits = self.ops.classify(x, self.state[f"{head}.3.weight"], self.state[f"{head}.3.bias"])
        yield head, self.ops.numpy(logits)

    def _body(self, x: Any) -> Iterator[tuple[str, Any]]:
        for index, unit in enumerate(self.units):
            x = self._unit(f"base.{index}", unit, x)
            yield f"base.{index}", x

    def _unit(self, prefix: str, unit: Unit, x: Any) -> Any:
        if isinstance(unit, ConvUnit):
            y = self._conv_norm(prefix, "conv", x, unit.stride, 1)
            return self.activations[unit.activation](y)
        if isinstance(unit, DepthwiseUnit):
            return self._conv_norm(prefix, "dwconv", x, unit.stride, unit.channels)
        if isinstance(unit, PoolUnit):
            return self.ops.max_pool(x, unit.kernel, unit.stride, unit.padding, unit.ceil_mode)
        if isinstance(unit, BlockUnit):
            return self._block(prefix, unit, x)
        return x  # dropout does nothing in evaluation

    def _conv_norm(self, prefix: str, conv: str, x: Any, stride: int, groups: int) -> Any:
        weight = self.state[f"{prefix}.{conv}.weight"]
        x = self.ops.conv(x, weight, stride, weight.shape[-1] // 2, groups)
        return self._norm(f"{prefix}.norm", x)

    def _norm(self, prefix: str, x: Any) -> Any:
        names = ("weight", "bias", "running_mean", "running_var")
        return self.ops.norm(x, *(self.state[f"{prefix}.{name}"] for name in names))

    def _block(self, prefix: str, unit: BlockUnit, x: Any) -> Any:
        outputs = [x]
        for index, layer in enumerate(unit.plan.layers):
            y = self.ops.concat([outputs[link] for link in layer.links])
            for name, part in block_layer_units(unit, layer):
                dotted = f".{name}" if name else ""
                y = self._unit(f"{prefix}.layers.{index}{dotted}", part, y)
            outputs.append(y)
        return self.ops.concat([outputs[number] for number in unit.plan.outputs])


class TrunkReference(Reference):
    """A detector's trunk, with the dilated bridge that belongs to it in HarDNet68."""

    def __init__(self, spec: SSDSpec, state: Mapping[str, np.ndarray], ops: Ops) -> None:
        super().__init__(spec.trunk, state, ops)
        self.spec = spec

    def stages(self, images: np.ndarray) -> Stages:
        """Yield the output of `base.0`, `base.1`, ..., the dilated bridge included."""
        for name, x in self._trunk(self.ops.array(images)):
            yield name, self.ops.numpy(x)

    def _trunk(self, x: Any) -> Iterator[tuple[str, Any]]:
        maps = dict(self._body(x))
        yield from maps.items()
        if self.spec.dilated:
            prefix = f"base.{len(self.units)}"
            x = self.ops.max_pool(maps[f"base.{len(self.units) - 1}"], 3, 1, 1)
            weight = self.state[f"{prefix}.1.weight"]
            x = self.ops.conv(x, weight, 1, DILATION, dilation=DILATION)
            x = self.ops.relu(self._norm(f"{prefix}.2", x))
            yield prefix, self.ops.relu(self._conv_norm(f"{prefix}.4", "conv", x, 1, 1))


class DetectorReference(TrunkReference):
    """A whole detector of one input size."""

    def __init__(self, spec: SSDSpec, size: int, state: Mapping[str, np.ndarray], ops: Ops) -> None:
        super().__init__(spec, state, ops)
        self.extras = extra_layers(spec, size)

    def stages(self, images: np.ndarray) -> Stages:
        """Yield the output of `base.0`, `base.1`, ..., of the bridge if it is outside of them, and
        last "loc" [N, P, 4] and "conf" [N, P, C], raw."""
        sources = []
        x = None
        for index, (name, x) in enumerate(self._trunk(self.ops.array(images))):
            yield name, self.ops.numpy(x)
            if index == source_unit(self.units):
                sources.append(self._l2norm(x))
        if not self.spec.dilated:
            x = self.ops.max_pool(x, 3, 1, 1)
            for number in (1, 2):
                x = self.ops.relu(self._conv_norm(f"bridge.{number}", "conv", x, 1, 1))
            yield "bridge", self.ops.numpy(x)
        sources += [x, *self._extra(x)]
        for head, values in (("loc", 4), ("conf", self._class_num())):
            rows = [self._head(f"{head}.{i}", y, values) for i, y in enumerate(sources)]
            yield head, np.concatenate(rows, axis=1)

    def _class_num(self) -> int:
        """The scores of a cell over the offsets of a cell, times the 4 of a box."""
        return 4 * self.state["conf.0.bias"].shape[0] // self.state["loc.0.bias"].shape[0]

    def _l2norm(self, x: Any) -> Any:
        length = (x * x).sum(1)[:, None] ** 0.5 + 1e-10
        return self.state["L2Norm.weight"][:, None, None] * x / length

    def _conv(self, prefix: str, x: Any, stride: int, padding: int) -> Any:
        y = self.ops.conv(x, self.state[f"{prefix}.weight"], stride, padding)
        return y + self.state[f"{prefix}.bias"][:, None, None]

    def _extra(self, x: Any) -> Iterator[Any]:
        for index, layer in enumerate(self.extras):
            x = self.ops.relu(self._conv(f"extras.{index}", x, layer.stride, layer.padding))
            if index % 2:
                yield x

    def _head(self, prefix: str, x: Any, values: int) -> np.ndarray:
        y = self.ops.numpy(self._conv(prefix, x, 1, 1))
        return y.transpose(0, 2, 3, 1).reshape(len(y), -1, values)
