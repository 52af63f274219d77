"""What each rank knows alone in the middle of an epoch, and how to hand it on.

    statistics   batch norm's running statistics, averaged over ranks only when the epoch ends
    averaged     their exponential moving average (the section `EMA`), likewise
    totals       the epoch's sums so far, and the samples and left-out images behind them
    gradients    those of an update that is not complete (`Global.update_freq` above 1), and the
                 statistics before it, in case it is left out
    generators   NumPy's and Python's; Paddle's is seeded anew for every step

A run may go on with another number of ranks: sums are then added up and given to the first rank,
and statistics are the mean that the checkpoint's weights hold.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import paddle
from paddle import nn

from ppcls.engine import parallel
from ppcls.utils import distributed
from ppcls.utils.errors import UserError
from ppcls.utils.pdparams import to_bytes
from ppcls.utils.safe_pickle import PickleReader


@dataclass
class RankState:
    """A rank's own state. Tensors become arrays when it is captured for a checkpoint."""

    sums: dict[str, Any] = field(default_factory=dict)  # of losses and metrics, this epoch
    samples: int = 0  # behind `sums`
    skipped: int = 0  # images left out, this epoch
    seen: int = 0  # samples since the last update
    gradients: dict[str, np.ndarray] = field(default_factory=dict)
    statistics: dict[str, np.ndarray] = field(default_factory=dict)
    averaged: dict[str, np.ndarray] = field(default_factory=dict)  # of the moving average
    backup: dict[str, np.ndarray] = field(default_factory=dict)  # statistics before the update
    generators: dict[str, Any] = field(default_factory=dict)


def pending_gradients(model: nn.Layer) -> dict[str, np.ndarray]:
    """Gradients that wait for the rest of their update."""
    return {
        name: as_arrays(parameter.grad)
        for name, parameter in model.named_parameters()
        if not parameter.stop_gradient and parameter.grad is not None
    }


def statistics(model: nn.Layer) -> dict[str, np.ndarray]:
    return {name: as_arrays(t) for name, t in parallel.statistics_of(model).items()}


def set_statistics(arrays: Mapping[str, np.ndarray], model: nn.Layer) -> None:
    own = parallel.statistics_of(model)
    for name, array in arrays.items():
        own[name].set_value(paddle.to_tensor(array).astype(own[name].dtype))


def mean_statistics(states: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """The mean over ranks; of equal numbers, exactly that number.

    A rank whose statistics a spoiled step has made useless counts with those before the update.
    """
    return _mean([_finite_statistics(state) for state in states])


def mean_averaged(states: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """The mean over ranks of what the moving averages know of statistics."""
    return _mean([state["averaged"] for state in states])


def _mean(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {
        name: np.mean([part[name] for part in parts], axis=0, dtype=np.float64).astype(array.dtype)
        for name, array in parts[0].items()
    }


def _finite_statistics(state: Mapping[str, Any]) -> dict[str, np.ndarray]:
    own, backup = state["statistics"], state.get("backup")
    is_finite = all(np.isfinite(array).all() for array in own.values())
    return own if is_finite or not backup else backup


def generators() -> dict[str, Any]:
    """The state of NumPy's and Python's global generators, as plain data."""
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    version, words, gauss = random.getstate()
    return {
        "numpy": [name, np.array(keys), int(position), int(has_gauss), float(cached)],
        "python": [version, np.array(words, dtype=np.int64), gauss],
    }


def set_generators(state: Mapping[str, Any]) -> None:
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys, position, has_gauss, cached))
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))


def gather(own: RankState) -> list[dict[str, Any]]:
    """Return every rank's state as plain data, in the order of ranks."""
    plain = vars(own)
    if distributed.world_size() == 1:
        return [plain]
    parts = parallel.gather_bytes(to_bytes(plain))
    if distributed.rank() > 0:
        return []
    return [PickleReader(part, f"rank {i}").load() for i, part in enumerate(parts)]


def choose(states: Any, model: nn.Layer, where: str) -> RankState:
    """Return what this rank goes on with, of the states of all ranks that saved.

    Raises UserError, naming `where`, for states that do not belong to this network.
    """
    if not isinstance(states, list) or not states:
        raise UserError(f"{where}: expected the states of ranks, found none")
    parsed = [_parse(state, model, f"{where}: rank {i}") for i, state in enumerate(states)]
    rank, world_size = distributed.rank(), distributed.world_size()
    if len(parsed) == world_size:
        return parsed[rank]
    generators_of_one = parsed[rank % len(parsed)].generators
    return _merge(parsed, world_size) if rank == 0 else RankState(generators=generators_of_one)


def _merge(states: Sequence[RankState], world_size: int) -> RankState:
    """Add up. A gradient is averaged over ranks in the end, whose number has changed."""
    share = world_size / len(states)
    return RankState(
        sums=_add([state.sums for state in states], 1.0),
        samples=sum(state.samples for state in states),
        skipped=sum(state.skipped for state in states),
        seen=sum(state.seen for state in states),
        gradients=_add([state.gradients for state in states], share),
        backup=states[0].backup,
        generators=states[0].generators,
    )


def _add(mappings: Sequence[Mapping[str, np.ndarray]], factor: float) -> dict[str, np.ndarray]:
    names = {name: None for mapping in mappings for name in mapping}
    result = {}
    for name in names:
        arrays = [mapping[name] for mapping in mappings if name in mapping]
        total = np.sum(arrays, axis=0, dtype=np.float64) * factor
        result[name] = np.asarray(total, dtype=arrays[0].dtype)
    return result


def restore_network(state: RankState, model: nn.Layer) -> None:
    """Put statistics and pending gradients back."""
    set_statistics(state.statistics, model)
    parameters = dict(model.named_parameters())
    for name, array in state.gradients.items():
        parameters[name].grad = paddle.to_tensor(array).astype(parameters[name].dtype)


def _parse(state: Any, model: nn.Layer, where: str) -> RankState:
    if isinstance(state, dict):
        state = {"averaged": {}, **state}  # checkpoints from before there was an EMA lack it
    if not isinstance(state, dict) or set(state) != set(vars(RankState())):
        raise UserError(f"{where}: expected {', '.join(vars(RankState()))}, found something else")
    numbers = ("samples", "skipped", "seen")
    if any(type(state[key]) is not int or state[key] < 0 for key in numbers):
        raise UserError(f"{where}: expected {', '.join(numbers)} to be numbers >= 0")
    mappings = ("sums", "gradients", "statistics", "averaged", "backup", "generators")
    if not all(isinstance(state[key], dict) for key in mappings):
        raise UserError(f"{where}: expected {', '.join(mappings)} to be mappings")
    if not all(_is_scalar(value) for value in state["sums"].values()):
        raise UserError(f"{where}: sums: expected numbers, found something else")
    tensors = {**dict(model.named_parameters()), **parallel.statistics_of(model)}
    for key in ("gradients", "statistics", "averaged", "backup"):
        for name, array in state[key].items():
            if name not in tensors or not _has_shape(array, tensors[name].shape):
                raise UserError(f"{where}: {key}: expected tensors of this network, found {name!r}")
    _check_generators(state["generators"], where)
    return RankState(**state)


def _is_scalar(value: Any) -> bool:
    is_array = isinstance(value, (np.ndarray, np.generic))
    return is_array and value.size == 1 and value.dtype.kind in "fiu"


def _has_shape(value: Any, shape: Sequence[int]) -> bool:
    return isinstance(value, np.ndarray) and list(value.shape) == list(shape)


def _check_generators(state: Mapping[str, Any], where: str) -> None:
    """Try a state on generators of our own; none at all is a state too."""
    if not state:
        return
    try:
        name, keys, position, has_gauss, cached = state["numpy"]
        np.random.RandomState().set_state((name, keys, position, has_gauss, cached))
        version, words, gauss = state["python"]
        random.Random().setstate((version, tuple(words.tolist()), gauss))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"{where}: expected the states of two generators: {error}") from error


def as_arrays(node: Any) -> Any:
    """Copy the tensors in nested mappings and lists to the host; bfloat16 becomes float32."""
    if isinstance(node, paddle.Tensor):
        is_bfloat16 = "bfloat16" in str(node.dtype)
        return (node.astype("float32") if is_bfloat16 else node).numpy()
    if isinstance(node, Mapping):
        return {key: as_arrays(value) for key, value in node.items()}
    return [as_arrays(item) for item in node] if isinstance(node, list) else node
