"""The float32 convolution of oneDNN."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Collection
from ctypes import c_void_p
from dataclasses import dataclass

from ppcls.ops.onednn import (
    GRADIENT,
    SOURCE,
    TARGET,
    TRAINING,
    Library,
    Operand,
    Primitive,
    dims_of,
)

WEIGHT, BIAS = 33, 41  # arguments
_DIRECT = 1  # dnnl_alg_kind_t
_QUERIES = {SOURCE: 129, WEIGHT: 131, TARGET: 133}  # for the layout wanted; +1: of the gradient
_SCRATCH = {SOURCE: "source", WEIGHT: "weight", TARGET: "target", BIAS: ""}
# A 1x1 convolution of larger maps is faster as a product of matrices left as they are than in
# oneDNN's own layout, with tensors brought there and back (measured on AVX-512). Smaller ones are
# slower, and for a single pixel oneDNN has no fast product at all.
_PIXELS_FOR_PRODUCT, _PIXELS_FOR_WEIGHT_PRODUCT = 128, 32


@dataclass(frozen=True)
class Geometry:
    """What a convolution is, in the terms of Paddle's `conv2d`; a pair is (height, width)."""

    source: tuple[int, int, int, int]  # N, C, H, W, whatever the layout
    weight: tuple[int, int, int, int]  # out channels, in channels of a group, kernel
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    has_bias: bool
    channels_last: bool

    @property
    def target(self) -> tuple[int, int, int, int]:
        """N, C, H, W of the result."""
        height, width = (
            (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, pad, dilation in zip(
                self.source[2:],
                self.weight[2:],
                self.stride,
                self.padding,
                self.dilation,
                strict=True,
            )
        )
        return self.source[0], self.weight[0], height, width

    @property
    def target_shape(self) -> list[int]:
        """The result's shape as Paddle says it."""
        count, channels, *size = self.target
        return [count, *size, channels] if self.channels_last else [count, channels, *size]

    @property
    def kernel(self) -> tuple[int, int]:
        return self.weight[2:]

    def is_product(self, pixels: int) -> bool:
        """Whether this is a 1x1 convolution whose result has so many pixels or more."""
        return self.kernel == (1, 1) and self.target[2] * self.target[3] >= pixels

    @property
    def grouped_weight(self) -> tuple[int, ...]:
        """The weight's shape as oneDNN takes it: with an axis of groups in front."""
        out_channels, *rest = self.weight
        if self.groups == 1:
            return self.weight
        return (self.groups, out_channels // self.groups, *rest)


class Convolution:
    """A convolution of one geometry, forward and backward.

    The addresses its methods take are those of dense float32 tensors: of Paddle's own layout.
    Raises OneDNNError when this oneDNN has no such convolution.
    """

    def __init__(self, library: Library, geometry: Geometry) -> None:
        self.onednn, self.geometry = library, geometry
        last = geometry.channels_last
        self._plain = {
            SOURCE: library.describe(geometry.source, channels_last=last),
            WEIGHT: library.describe(geometry.grouped_weight),
            TARGET: library.describe(geometry.target, channels_last=last),
        }
        if geometry.has_bias:
            self._plain[BIAS] = library.describe(geometry.weight[:1])
        self._free = {
            SOURCE: library.describe_any(geometry.source),
            WEIGHT: library.describe_any(geometry.grouped_weight),
            TARGET: library.describe_any(geometry.target),
        }
        self._window = [
            dims_of(geometry.stride),
            dims_of([dilation - 1 for dilation in geometry.dilation]),
            *[dims_of(geometry.padding)] * 2,
        ]
        self._hint = self._describe_primitive("forward", geometry.is_product(_PIXELS_FOR_PRODUCT))
        described = [*self._plain.values(), *self._free.values()]
        weakref.finalize(self, _destroy, library, described, self._hint).atexit = False

    @functools.cached_property
    def forward(self) -> Primitive:
        """Called with the addresses of source, weight, (bias,) and the target it writes."""
        numbers = [SOURCE, WEIGHT, *self._bias, TARGET]
        return self._make(self._hint, numbers, results=[TARGET])

    @functools.cached_property
    def backward_weight(self) -> Primitive:
        """Called with the addresses of source, the target's gradient, and those it writes: the
        gradients of weight (and bias)."""
        is_plain = self.geometry.is_product(_PIXELS_FOR_WEIGHT_PRODUCT)
        made = self._describe_primitive("backward_weights", is_plain, self._hint)
        results = [WEIGHT, *self._bias]
        primitive = self._make(made, [SOURCE, TARGET, *results], results, [TARGET, *results])
        self.onednn.destroy("primitive_desc", made)
        return primitive

    @functools.cached_property
    def backward_source(self) -> Primitive:
        """Called with the addresses of weight, the target's gradient, and the one it writes: the
        source's gradient."""
        is_plain = self.geometry.is_product(_PIXELS_FOR_PRODUCT)
        made = self._describe_primitive("backward_data", is_plain, self._hint)
        primitive = self._make(made, [WEIGHT, TARGET, SOURCE], [SOURCE], [TARGET, SOURCE])
        self.onednn.destroy("primitive_desc", made)
        return primitive

    @property
    def _bias(self) -> list[int]:
        return [BIAS] if self.geometry.has_bias else []

    def _describe_primitive(
        self, kind: str, is_plain: bool, hint: c_void_p | None = None
    ) -> c_void_p:
        """Make a primitive descriptor, which leaves the layouts to oneDNN unless `is_plain`."""
        layouts = self._plain if is_plain else self._free
        bias = [] if kind == "backward_data" else [self._plain.get(BIAS)]
        return self.onednn.make(
            f"convolution_{kind}_primitive_desc",
            self.onednn.engine,
            *([TRAINING] if hint is None else []),
            _DIRECT,
            layouts[SOURCE],
            layouts[WEIGHT],
            *bias,
            layouts[TARGET],
            *self._window,
            *([] if hint is None else [hint]),
            None,
        )

    def _make(
        self,
        made: c_void_p,
        numbers: list[int],
        results: list[int],
        gradients: Collection[int] = (),
    ) -> Primitive:
        operands = [
            Operand(
                self.onednn,
                number + GRADIENT * (number in gradients),
                self._plain[number],
                self._wanted(made, number, number in gradients),
                is_result=number in results,
                scratch=_SCRATCH[number],
            )
            for number in numbers
        ]
        return Primitive(self.onednn, made, operands)

    def _wanted(self, made: c_void_p, number: int, is_gradient: bool) -> c_void_p | None:
        if number == BIAS:
            return None
        query = self.onednn.functions.dnnl_primitive_desc_query_md
        return c_void_p(query(made, _QUERIES[number] + is_gradient, 0))


def _destroy(library: Library, described: list[c_void_p], hint: c_void_p) -> None:
    library.destroy("primitive_desc", hint)
    for description in described:
        library.destroy("memory_desc", description)
