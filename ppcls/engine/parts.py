"""The parts of a network along its depth: stem, stage1, stage2... and head.

A stage is a HarDBlock with the transition and the downsampling after it. The head is a classifier's
last part; of a detector it is all that follows the trunk: bridge, extra layers and predictors.
"""

from __future__ import annotations

from collections.abc import Sequence

from paddle import nn

from ppcls.arch.backbone.hardnet import HarDNet
from ppcls.arch.backbone.hardnet_block import HarDBlock
from ppcls.arch.detection.ssd import SSD

Parts = dict[str, list[nn.Layer]]


def parts_of(model: nn.Layer) -> Parts:
    """Return the layers of each part, from the input to the output; {} for another's network."""
    if isinstance(model, HarDNet):
        return _trunk([*model.stem, *model.stages]) | {"head": [model.head]}
    if isinstance(model, SSD):
        return _trunk([*model.base]) | {
            "head": [layer for layer in model.children() if layer is not model.base]
        }
    return {}


def _trunk(layers: Sequence[nn.Layer]) -> Parts:
    parts: Parts = {"stem": []}
    name = "stem"
    for layer in layers:
        if isinstance(layer, HarDBlock):
            name = f"stage{len(parts)}"
            parts[name] = []
        parts[name].append(layer)
    return parts


def parameters_by_part(model: nn.Layer) -> dict[str, list[str]]:
    """Return the names of each part's parameters, in the order of `parts_of`."""
    owner = {
        id(parameter): part
        for part, layers in parts_of(model).items()
        for layer in layers
        for parameter in layer.parameters()
    }
    names: dict[str, list[str]] = {part: [] for part in dict.fromkeys(owner.values())}
    for name, parameter in model.named_parameters():
        if id(parameter) in owner:
            names[owner[id(parameter)]].append(name)
    return names
