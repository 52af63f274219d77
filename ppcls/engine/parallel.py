"""Many processes as one: start, sums over ranks, and one view of batch norm's statistics."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping

import numpy as np
import paddle
import paddle.distributed as dist
from paddle import nn

from ppcls.engine.config import DistributedConfig
from ppcls.utils import distributed
from ppcls.utils.errors import JobError, UserError

_LOST = re.compile(r"gloo|NCCL|TCPStore|TCP (receive|send) error", re.IGNORECASE)


def select_device(name: str) -> str:
    """Set Paddle's device from `Global.device` and return it, such as "cpu" or "gpu:0".

    "auto" takes a GPU if Paddle has one. Raises UserError for a device this machine lacks.
    """
    gpus = paddle.device.cuda.device_count() if paddle.is_compiled_with_cuda() else 0
    kind, _, number = name.partition(":")
    if kind == "auto" and not number:
        kind = "gpu" if gpus else "cpu"
    if kind not in ("cpu", "gpu") or (number and not (kind == "gpu" and number.isdecimal())):
        raise UserError(f"Global.device: expected auto, cpu, gpu or gpu:N, got {name!r}")
    if kind == "gpu" and (gpus == 0 or int(number or 0) >= gpus):
        reason = f"sees {gpus} GPU(s)" if paddle.is_compiled_with_cuda() else "is a CPU build"
        raise UserError(
            f"Global.device: expected a device this machine has, got {name!r}, but this Paddle "
            f"{reason}; type -o Global.device=cpu, or install paddlepaddle-gpu"
        )
    paddle.device.set_device(f"{kind}:{number}" if number else kind)
    return paddle.device.get_device()


def start() -> None:
    """Join the job of `paddle.distributed.launch`; nothing to do in a single process."""
    if distributed.world_size() > 1 and not dist.is_initialized():
        dist.init_parallel_env()


def stop() -> None:
    """Leave the job, once nobody needs anybody any more."""
    if distributed.world_size() > 1 and dist.is_initialized():
        dist.barrier()


def wrap(model: nn.Layer, config: DistributedConfig) -> nn.Layer:
    """Return `model` as it trains on all ranks: gradients are averaged over them."""
    if distributed.world_size() == 1:
        return model
    return paddle.DataParallel(model, **dataclasses.asdict(config))


def unwrap(model: nn.Layer) -> nn.Layer:
    return model._layers if isinstance(model, paddle.DataParallel) else model


@contextlib.contextmanager
def lost_ranks() -> Iterator[None]:
    """Turn what a collective raises when another rank is gone into a JobError."""
    try:
        yield
    except (RuntimeError, SystemError, ValueError) as error:
        words = " ".join(str(error).split())
        if distributed.world_size() == 1 or not _LOST.search(words):
            raise
        raise JobError(
            "another process of the job has ended or does not answer; its log/workerlog.* has the "
            f"reason ({words[-200:]})"
        ) from error


def sum_over_ranks(values: Mapping[str, float]) -> dict[str, float]:
    """Add up the same named numbers of every rank, in float64: whole numbers stay exact."""
    if distributed.world_size() == 1:
        return dict(values)
    tensor = paddle.to_tensor(list(values.values()), dtype="float64")
    dist.all_reduce(tensor)
    return dict(zip(values, tensor.tolist(), strict=True))


def gather_bytes(own: bytes) -> list[bytes]:
    """Return every rank's bytes, in the order of ranks, on every rank."""
    if distributed.world_size() == 1:
        return [own]
    length = paddle.to_tensor([len(own)], dtype="int64")
    lengths: list[paddle.Tensor] = []
    dist.all_gather(lengths, length)
    sizes = [int(size) for size in lengths]
    padded = np.zeros(max(1, *sizes), dtype=np.uint8)  # a gather wants equal, non-empty shapes
    padded[: len(own)] = np.frombuffer(own, dtype=np.uint8)
    parts: list[paddle.Tensor] = []
    dist.all_gather(parts, paddle.to_tensor(padded))
    return [part.numpy()[:size].tobytes() for part, size in zip(parts, sizes, strict=True)]


def statistics_of(model: nn.Layer) -> dict[str, paddle.Tensor]:
    """Batch norm's running statistics, the only part of the state in which ranks may differ."""
    # Without the hooks of AMP's O2, which hand out float32 copies.
    return only_statistics(model.state_dict(use_hook=False))


def only_statistics(state: Mapping[str, paddle.Tensor]) -> dict[str, paddle.Tensor]:
    """Choose batch norm's running statistics, by their names."""
    return {name: t for name, t in state.items() if name.endswith(("._mean", "._variance"))}


def average_statistics(statistics: Mapping[str, paddle.Tensor]) -> None:
    """Give every rank the mean of all ranks' batch-norm statistics, in place.

    Each rank sees its own share of the data; without this, which share rank 0 had would decide an
    evaluation and what is saved.
    """
    world_size = distributed.world_size()
    if world_size == 1:
        return
    for tensor in statistics.values():
        total = tensor.astype("float32") / world_size
        dist.all_reduce(total)
        tensor.set_value(total.astype(tensor.dtype))
