"""The cost of a network at one input, layer by layer: numbers, without Paddle.

Paper: P. Chao et al., "HarDNet: A Low Memory Traffic Network", ICCV 2019 (arXiv 1909.00948),
section 3: CIO (convolutional input/output) and MoC (MACs over CIO). One MAC is one multiplication
with its addition, two FLOP.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any, Literal

LOW_MOC = 100  # the table over networks counts layers below it

Kind = Literal["conv", "linear", "matmul"]


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """One call of a convolution, a linear layer or a matrix product."""

    name: str  # path of the layer; of a product called as a function, of the layer around it
    call: int  # 1, 2, ... : which call of this name
    op: str  # the layer's class ("Conv2D"), or the operator ("conv2d") called as a function
    kind: Kind  # "linear": by a parameter, "matmul": of two activations
    is_layer: bool  # False: called as a function
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    groups: int
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    macs: int
    cio: int  # elements read and written: input (both inputs of a "matmul") and output
    outputs: int  # elements written
    weights: int  # elements of weight and bias
    itemsize: int  # bytes of an element

    @property
    def moc(self) -> float:
        """MACs for each element of input and output."""
        return self.macs / self.cio

    @property
    def traffic(self) -> int:
        """Bytes of input, output and weights, each moved once."""
        return self.itemsize * (self.cio + self.weights)

    @property
    def intensity(self) -> float:
        """FLOP for each byte of traffic."""
        return 2 * self.macs / self.traffic

    @property
    def is_depthwise(self) -> bool:
        """Whether every output channel reads one input channel."""
        one_channel = self.macs == self.outputs * math.prod(self.kernel)
        return self.kind == "conv" and self.groups > 1 and one_channel

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "call": self.call,
            "op": self.op,
            "kind": self.kind,
            "is_layer": self.is_layer,
            "kernel": list(self.kernel),
            "stride": list(self.stride),
            "groups": self.groups,
            "input_shape": list(self.input_shape),
            "output_shape": list(self.output_shape),
            "macs": self.macs,
            "cio": self.cio,
            "moc": self.moc,
            "weights": self.weights,
            "bytes": self.traffic,
        }


@dataclass(frozen=True, kw_only=True)
class NetworkCost:
    """What one image costs. Totals named `conv`, `cio` and `moc` are over convolutions alone.

    `peak_bytes` is the largest amount of memory in tensors alive at one time in an evaluation
    pass of Paddle's dygraph: the input and every intermediate tensor, views counted once, without
    parameters and buffers. It is read from the allocator after each layer and operator, so the
    working memory a kernel takes and gives back in between is not in it.
    """

    name: str
    input_shape: tuple[int, ...]
    params: int  # trainable ones, each once
    layers: tuple[LayerCost, ...]  # in the order of execution
    peak_bytes: int
    uncounted: tuple[str, ...]  # products that ran and are in no row, one sentence each

    @property
    def convs(self) -> tuple[LayerCost, ...]:
        return tuple(layer for layer in self.layers if layer.kind == "conv")

    def macs(self, kind: Kind) -> int:
        return sum(layer.macs for layer in self.layers if layer.kind == kind)

    @property
    def cio(self) -> int:
        """Elements of input and output, summed over convolutions."""
        return sum(layer.cio for layer in self.convs)

    @property
    def mocs(self) -> list[float]:
        return [layer.moc for layer in self.convs]

    @property
    def activations(self) -> int:
        """Elements of output, summed over all rows."""
        return sum(layer.outputs for layer in self.layers)

    @property
    def activation_bytes(self) -> int:
        return sum(layer.outputs * layer.itemsize for layer in self.layers)

    def below(self, moc: float) -> int:
        """How many convolutions have a lower MoC than this."""
        return sum(value < moc for value in self.mocs)

    def to_dict(self) -> dict[str, Any]:
        mocs = self.mocs
        return {
            "input_shape": list(self.input_shape),
            "params": self.params,
            "macs_conv": self.macs("conv"),
            "macs_linear": self.macs("linear"),
            "macs_matmul": self.macs("matmul"),
            "cio": self.cio,
            "moc_min": min(mocs, default=None),
            "moc_median": statistics.median(mocs) if mocs else None,
            "moc_max": max(mocs, default=None),
            "conv_layers": len(mocs),
            "moc_below_100": self.below(LOW_MOC),
            "activations": self.activations,
            "activation_bytes": self.activation_bytes,
            "peak_bytes": self.peak_bytes,
            "uncounted": list(self.uncounted),
            "layers": [layer.to_dict() for layer in self.layers],
        }
