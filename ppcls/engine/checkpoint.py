"""Checkpoints: what a run must know to go on as if it had never stopped.

A set (see `checkpoint_store` for its files) holds in

    .pdparams       the raw weights; batch norm's statistics are the mean over ranks
    .ema.pdparams   with the section `EMA`: the average of the weights, in the same form
    .pdopt          the optimizer's state in Paddle's own format, the schedule's included
    .pdstates       the rest: progress, components, each rank's own state, the resolved recipe

Whatever else has state registers as a component: `state_dict()` gives plain data and arrays, and
`load_state_dict` takes them back.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from paddle import nn
from paddle.optimizer import Optimizer

from ppcls.arch.weights import check_state, load_state
from ppcls.engine import rank_state
from ppcls.engine.background import BackgroundWriter
from ppcls.engine.checkpoint_store import EMA, CheckpointStore, SavedSet
from ppcls.engine.ema import ExponentialMovingAverage
from ppcls.engine.optimizer_state import fit_optimizer_state, parameter_names
from ppcls.engine.rank_state import RankState, as_arrays
from ppcls.utils import distributed, schema
from ppcls.utils.errors import UserError
from ppcls.utils.pdparams import load_paddle_file, load_paddle_state_dict

logger = logging.getLogger("ppcls")

SCHEMA = 2


@dataclass
class Progress:
    """Where a run stands."""

    epoch: int = 0  # epochs finished
    step: int = 0  # steps done of the epoch after them
    global_step: int = 0  # steps done in all
    best_metric: float | None = None
    best_epoch: int = 0
    best_name: str = ""  # of the metric
    cut_short: bool = False  # Global.max_steps ended the last epoch before its time
    evaluation_due: bool = False  # the last finished epoch is not evaluated yet
    skipped_updates: int = 0  # left out for gradients that were not finite
    metrics_bytes: int = 0  # length of metrics.jsonl

    def __post_init__(self) -> None:
        counts = {k: v for k, v in dataclasses.asdict(self).items() if type(v) is int}
        schema.at_least(0, **counts)
        if max(counts.values()) >= 2**62:
            raise ValueError(f"expected counts below 2**62, got {max(counts.values())}")


class Stateful(Protocol):
    """A component whose state belongs into every checkpoint."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Checkpoint:
    """A set whose files are undamaged, and what its `.pdstates` says."""

    files: SavedSet
    states: dict[str, Any]
    progress: Progress

    def __str__(self) -> str:
        place = self.progress
        step = f", step {place.step}" if place.step else ""
        return f"{self.files.stem} (epoch {place.epoch + bool(place.step)}{step})"


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Read a set's `.pdstates`, its files checked against their manifest.

    path: `FOLDER/latest` and the like, with or without a suffix, or a run's folder. Raises
    UserError when files are missing or damaged, or of another schema.
    """
    return _read(CheckpointStore(Path(path).parent).open(path))


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the newest undamaged set of a run's folder, or None when it has none.

    Raises UserError when all it has is damaged.
    """
    store = CheckpointStore(folder)
    saved = store.newest()
    if saved is None and any(folder.glob("latest.*")):  # a folder that only its names came to
        saved = store.open(folder / "latest")
    return None if saved is None else _read(saved)


def _read(saved: SavedSet) -> Checkpoint:
    where = saved.file(".pdstates")
    states = load_paddle_file(where)
    if not isinstance(states, dict) or states.get("schema") != SCHEMA:
        found = states.get("schema") if isinstance(states, dict) else type(states).__name__
        raise UserError(f"{where}: expected schema {SCHEMA}, found {found!r}")
    kinds = {
        "progress": dict,
        "components": dict,
        "parameter_names": dict,
        "optimizer": str,
        "ranks": list,
        "recipe": dict,
        "data": dict,
    }
    for key, kind in kinds.items():
        if not isinstance(states.get(key), kind):
            raise UserError(f"{where}: expected {key!r} to be a {kind.__name__}, it is not")
    names, data = states["parameter_names"], states["data"]
    if not all(isinstance(name, str) for name in (*names, *names.values())):
        raise UserError(f"{where}: expected 'parameter_names' to hold texts, found others")
    if not all(isinstance(value, (int, str)) for value in data.values()):
        raise UserError(f"{where}: expected 'data' to hold numbers and texts, found others")
    progress = schema.parse_dataclass(Progress, states["progress"], f"{where}: progress")
    return Checkpoint(saved, states, progress)


class Checkpointer:
    """Saves and loads the state of one run.

    Saving copies the state to host memory; a thread writes it. An error there is raised by the
    next call of `check`, `save` or `close`.

    Args:
        folder: the run's folder, OUTPUT/ARCH.
        recipe: the resolved recipe, kept in every checkpoint.
        data: facts about the data a resumed run must share, such as its global batch.
        keep_last: newest sets to keep, beside those with the names `best_model` and `epoch_N`.
        ema: the moving average of the weights, if the run has one.

    Attributes:
        saves, blocked: number of saves, and seconds the training loop stood still for them.
        before_write: called by the writing thread, for files that a set counts on.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Layer,
        optimizer: Optimizer,
        recipe: Mapping[str, Any],
        *,
        data: Mapping[str, int | str] | None = None,
        keep_last: int = 2,
        ema: ExponentialMovingAverage | None = None,
    ) -> None:
        self.folder = folder
        self.store = CheckpointStore(folder, keep_last)
        self.model = model
        self.optimizer = optimizer
        self.recipe = recipe
        self.data = dict(data or {})
        self.saves, self.blocked = 0, 0.0
        self.before_write: Callable[[], None] = lambda: None
        self.ema = ema
        self._components: dict[str, Stateful] = {} if ema is None else {"ema": ema}
        self._writer = BackgroundWriter()
        self._resumed: SavedSet | None = None
        self._newest: Path | None = None

    def register(self, name: str, component: Stateful) -> None:
        """Save and restore `component` too. Raises ValueError for a name that is taken."""
        if name in self._components:
            raise ValueError(f"{name}: expected a component of a new name, it is registered")
        self._components[name] = component

    def save(self, tags: Sequence[str], progress: Progress, own: RankState | None = None) -> None:
        """Save the state as it is now under the names `tags` (`latest`, `best_model`, `epoch_3`).

        Every rank calls it, with its own state; rank 0 writes. Raises what an earlier save failed
        with.
        """
        start = time.perf_counter()
        ranks = rank_state.gather(own or RankState())
        if distributed.rank() == 0:
            contents = self._contents(progress, ranks)
            place = {"epoch": progress.epoch, "step": progress.step}
            place["global_step"] = progress.global_step
            self._writer.submit(lambda: self._write(contents, tags, place))
        self.saves += 1
        self.blocked += time.perf_counter() - start

    def _contents(self, progress: Progress, ranks: list[dict[str, Any]]) -> dict[str, Any]:
        weights = state_arrays(self.model)
        weights |= rank_state.mean_statistics(ranks)
        components = {name: part.state_dict() for name, part in self._components.items()}
        states = {
            "schema": SCHEMA,
            "epoch": progress.epoch,
            "progress": dataclasses.asdict(progress),
            "optimizer": type(self.optimizer).__name__,
            "parameter_names": parameter_names(self.model),
            "components": as_arrays(components),
            "ranks": ranks,
            "recipe": self.recipe,
            "data": self.data,
        }
        optimizer = as_arrays(self.optimizer.state_dict())
        contents = {".pdparams": weights, ".pdopt": optimizer, ".pdstates": states}
        if self.ema is not None:
            contents[EMA] = self.ema.arrays() | rank_state.mean_averaged(ranks)
        return contents

    def _write(self, contents: Mapping[str, Any], tags: Sequence[str], place: Mapping) -> None:
        self.before_write()
        self._newest = self.store.write(contents, tags, place)

    def check(self) -> None:
        """Raise the error of a save that failed meanwhile."""
        self._writer.check()

    def close(self) -> None:
        """Finish what is being written."""
        self._writer.close()

    def newest(self) -> Path | None:
        """Return the stem of the newest set of this run, or None before the first."""
        self._writer.wait()
        return self._newest

    def load(self, source: Checkpoint | str | Path) -> tuple[Progress, RankState]:
        """Restore everything but what is this rank's own, which is returned for later.

        Raises UserError when a file does not belong to this network; the network is then as it
        was.
        """
        checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source)
        files, states = checkpoint.files, checkpoint.states
        where = str(files.file(".pdstates"))
        self._check(states, where)
        own = rank_state.choose(states["ranks"], self.model, where)
        weights = load_paddle_state_dict(files.file(".pdparams"))
        check_state(self.model, weights, str(files.file(".pdparams")))
        averages = self._averages(files)
        place = str(files.file(".pdopt"))
        optimizer = fit_optimizer_state(
            load_paddle_file(place), states["parameter_names"], self.model, self.optimizer, place
        )
        load_state(self.model, weights, str(files.file(".pdparams")))
        if self.ema is not None:
            self.ema.set_arrays(averages)
        self.optimizer.set_state_dict(optimizer)
        for name, component in self._components.items():
            component.load_state_dict(states["components"][name])
        self._resumed, self._newest = files, files.stem
        return checkpoint.progress, own

    def _averages(self, files: SavedSet) -> dict[str, Any]:
        """Read the averages of a set, checked; none for a run without."""
        if self.ema is None:
            return {}
        path = files.file(EMA)
        averages = load_paddle_state_dict(path)
        check_state(self.model, averages, str(path))
        return averages

    def _check(self, states: Mapping[str, Any], where: str) -> None:
        if set(states["parameter_names"]) != set(parameter_names(self.model)):
            raise UserError(f"{where}: expected the parameters of this network, found others")
        own = type(self.optimizer).__name__
        if states["optimizer"] != own:
            raise UserError(
                f"{where}: expected the state of the optimizer {own} (Optimizer.name), "
                f"found that of {states['optimizer']}"
            )
        wanted, found = sorted(self._components), sorted(states["components"])
        if wanted != found:
            raise UserError(f"{where}: expected the state of {wanted}, found that of {found}")

    def take_over(self) -> bool:
        """Make the folder this run's, for rank 0, once all ranks have loaded.

        Removes what a killed writer left. If the set gone on with is one of this folder, finishes
        its names; else moves what an earlier run left here into the folder `earlier`. Returns which
        of the two.
        """
        self.store.clean()
        if self._resumed is not None and self.store.adopt(self._resumed):
            return True
        if self.store.retire():
            earlier = self.folder / "earlier"
            logger.warning("%s held an earlier run, which is now in %s", self.folder, earlier)
        return False


def state_arrays(model: nn.Layer) -> dict[str, Any]:
    """The state dict as float32 (or its own wider type) arrays on the host."""
    return as_arrays(model.state_dict())
