"""The classifiers in PyTorch, built from the same plan: what a PyTorch user would run."""

from __future__ import annotations

import torch
from torch import nn

from ppcls.arch.backbone.hardnet_plan import (
    BlockUnit,
    ConvUnit,
    DepthwiseUnit,
    DropoutUnit,
    HarDNetSpec,
    PoolUnit,
    Unit,
    block_layer_units,
    plan_units,
)

_ACTIVATIONS = {"relu": nn.ReLU, "relu6": nn.ReLU6}


class Block(nn.Module):
    """A Harmonic Dense Block (see `ppcls.arch.backbone.hardnet_block.HarDBlock`)."""

    def __init__(self, unit: BlockUnit) -> None:
        super().__init__()
        self.plan = unit.plan
        self.layers = nn.ModuleList(
            nn.Sequential(*(make_unit(part) for _, part in block_layer_units(unit, layer)))
            for layer in unit.plan.layers
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs = [x]
        for plan, layer in zip(self.plan.layers, self.layers, strict=True):
            inputs = [outputs[link] for link in plan.links]
            outputs.append(layer(inputs[0] if len(inputs) == 1 else torch.cat(inputs, 1)))
        return torch.cat([outputs[number] for number in self.plan.outputs], 1)


def make_unit(unit: Unit) -> nn.Module:
    if isinstance(unit, BlockUnit):
        return Block(unit)
    if isinstance(unit, ConvUnit):
        return nn.Sequential(
            nn.Conv2d(
                unit.in_channels,
                unit.out_channels,
                unit.kernel,
                unit.stride,
                unit.kernel // 2,
                bias=False,
            ),
            nn.BatchNorm2d(unit.out_channels),
            _ACTIVATIONS[unit.activation](inplace=True),
        )
    if isinstance(unit, DepthwiseUnit):
        width = unit.channels
        return nn.Sequential(
            nn.Conv2d(width, width, 3, unit.stride, 1, groups=width, bias=False),
            nn.BatchNorm2d(width),
        )
    if isinstance(unit, PoolUnit):
        return nn.MaxPool2d(unit.kernel, unit.stride, unit.padding, ceil_mode=unit.ceil_mode)
    assert isinstance(unit, DropoutUnit), unit
    return nn.Dropout(unit.p)


def build(spec: HarDNetSpec, class_num: int = 1000) -> nn.Module:
    """Return the classifier of `spec`, with PyTorch's own initial weights."""
    units = plan_units(spec)
    return nn.Sequential(
        *(make_unit(unit) for unit in units),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(spec.dropout),
        nn.Linear(units[-1].out_channels, class_num),
    )
