"""What stops a run whose numbers have gone wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import paddle
import paddle.distributed as dist
from paddle import nn

from ppcls.utils import distributed
from ppcls.utils.errors import JobError


def are_finite(tensors: Iterable[paddle.Tensor]) -> paddle.Tensor:
    """Return whether all numbers are finite, as a scalar on the device.

    A sum is not finite as soon as one of its terms is not.
    """
    sums = [tensor.astype("float32").sum() for tensor in tensors]
    return paddle.isfinite(paddle.add_n(sums)) if sums else paddle.to_tensor(True)


def gradients(parameters: Iterable[paddle.Tensor]) -> list[paddle.Tensor]:
    """The gradients that are there."""
    return [p.grad for p in parameters if not p.stop_gradient and p.grad is not None]


@paddle.no_grad()
def check_ranks_agree(model: nn.Layer, where: str) -> None:
    """Raise JobError on every rank when the weights of two ranks differ.

    Compares a checksum of each parameter, its sum and its sum of magnitudes in float64. Batch
    norm's statistics may differ and are left out.
    """
    if distributed.world_size() == 1:
        return
    trained = {name: p for name, p in model.named_parameters() if not p.stop_gradient}
    low, high = _extremes(_checksums(trained))
    # NaN differs from itself, and a weight that is NaN is no agreement either.
    differing = [
        name
        for name, small, large in zip(trained, low.tolist(), high.tolist(), strict=True)
        if small != large
    ]
    if differing:
        raise JobError(
            f"{where}: expected the same weights on all {distributed.world_size()} ranks, found "
            f"different ones in {len(differing)} parameters, first {differing[0]}"
        )


def _checksums(parameters: Mapping[str, paddle.Tensor]) -> paddle.Tensor:
    """[P, 2] float64."""
    wide = [p.astype("float64") for p in parameters.values()]
    return paddle.stack([paddle.stack([p.sum(), p.abs().sum()]) for p in wide])


def _extremes(values: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
    low, high = values.clone(), values.clone()
    dist.all_reduce(low, op=dist.ReduceOp.MIN)
    dist.all_reduce(high, op=dist.ReduceOp.MAX)
    return low, high
