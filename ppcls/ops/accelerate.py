"""All operators of this package at once."""

from __future__ import annotations

from paddle import nn

from ppcls.ops import batch_norm, conv2d


def accelerate(network: nn.Layer) -> list[str]:
    """Let `network` compute with this package's operators where it can, and say which do what.

    Read `conv2d` for what that asks of the code around the network.
    """
    convolutions = conv2d.accelerate_convolutions(network)
    norms = batch_norm.accelerate_batch_norms(network)
    return [
        f"convolutions: {conv2d.describe()} ({convolutions.count} of {convolutions.total} layers)",
        f"batch norms: {batch_norm.describe()} ({norms.count} of {norms.total} layers)",
    ]
