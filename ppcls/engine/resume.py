"""Going on with a run: which checkpoint, and whether the recipe is still the same."""

from __future__ import annotations

import dataclasses
import fnmatch
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ppcls.engine import parallel
from ppcls.engine.checkpoint import Checkpoint, newest_checkpoint, open_checkpoint
from ppcls.engine.config import Recipe
from ppcls.utils import distributed
from ppcls.utils.errors import ConfigError, JobError

logger = logging.getLogger("ppcls")

# What may differ from the run that is gone on with: it changes no computed number, or is about what
# follows (`max_steps` counts the epoch it cuts short as done). README.md lists them for users.
MAY_CHANGE = (
    *(f"Global.{key}" for key in ("output_dir", "device", "pretrained_model", "checkpoints")),
    *(f"Global.{key}" for key in ("auto_resume", "max_steps", "print_batch_step", "keep_last")),
    *("Global.save_*", "Global.eval_*", "Global.start_eval_epoch", "Global.use_visualdl"),
    *("Global.on_nonfinite", "Global.max_nonfinite", "Global.check_ranks_interval"),
    *("Arch.pretrained", "Infer.*", "DataLoader.Eval.*", "Metric.*", "Loss.Eval*"),
    *("DataLoader.Train.loader.*", "DataLoader.Train.dataset.*_root"),
    *("DataLoader.Train.dataset.*_dir", "DataLoader.Train.dataset.*_path"),
)
_BATCH_SIZE = "DataLoader.Train.sampler.batch_size"


def find_checkpoint(recipe: Recipe, folder: Path) -> Checkpoint | None:
    """Return what a run begins with: with `Global.auto_resume` the newest checkpoint of its own
    folder if there is one, else `Global.checkpoints`, else None.

    Raises UserError for one that is damaged, ConfigError for one of another recipe.
    """
    checkpoint = newest_checkpoint(folder) if recipe.Global.auto_resume else None
    if checkpoint is None and recipe.Global.checkpoints:
        checkpoint = open_checkpoint(recipe.Global.checkpoints)
    if checkpoint is not None:
        check_same_recipe(checkpoint, recipe)
    _check_all_see(checkpoint)
    return checkpoint


def _check_all_see(checkpoint: Checkpoint | None) -> None:
    """Ranks on several hosts need one folder, or copies of it that are the same."""
    serial = None if checkpoint is None else checkpoint.files.serial
    found = {part.decode() for part in parallel.gather_bytes(str(serial).encode())}
    if len(found) > 1:
        raise JobError(
            "Global.checkpoints: expected all ranks to find the same checkpoint, found "
            f"{', '.join(sorted(found))}; share Global.output_dir between hosts"
        )


def check_same_recipe(checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Raise ConfigError that lists what a recipe does not share with the run it goes on with."""
    saved = dict(_flatten(checkpoint.states["recipe"]))
    wanted = dict(_flatten(recipe.to_mapping()))
    differing = [
        f"{key} was {saved.get(key)!r}, is {wanted.get(key)!r}"
        for key in dict.fromkeys([*saved, *wanted])
        if saved.get(key) != wanted.get(key) and not _may_change(key, saved, wanted)
    ]
    if differing:
        raise ConfigError(
            f"{recipe.source}: expected the recipe of the run to go on with, "
            f"{checkpoint.files.stem}, but {'; '.join(differing)} (to start anew from its weights: "
            "-o Global.pretrained_model=... and another Global.output_dir)"
        )


def _may_change(key: str, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    if key == "Global.epochs":
        return wanted[key] > saved[key]
    return key == _BATCH_SIZE or any(fnmatch.fnmatchcase(key, pattern) for pattern in MAY_CHANGE)


def _flatten(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings and lists, by their dotted paths."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _flatten(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, (list, tuple)) and any(
        isinstance(item, (Mapping, list)) for item in node
    ):
        for index, item in enumerate(node):
            yield from _flatten(item, f"{path}.{index}")
    else:
        yield path, list(node) if isinstance(node, tuple) else node


def global_batch_size(recipe: Recipe, checkpoint: Checkpoint | None) -> int:
    """Return the images of a step over all processes; that of the run which is gone on with.

    The recipe's batch size is per process: unchanged, on another number of processes, it is shared
    out anew. Raises ConfigError when it was changed to another global batch.
    """
    assert recipe.DataLoader.Train is not None
    own = recipe.DataLoader.Train.sampler.batch_size
    wanted = own * distributed.world_size()
    if checkpoint is None or checkpoint.states["data"].get("global_batch") in (None, wanted):
        return wanted
    saved = checkpoint.states["data"]["global_batch"]
    if own != dict(_flatten(checkpoint.states["recipe"])).get(_BATCH_SIZE):
        raise ConfigError(
            f"{_BATCH_SIZE}: expected {saved} images per step over all processes, as in the run "
            f"to go on with, got {own} on {distributed.world_size()} process(es)"
        )
    logger.info("%d process(es) share the %d images of a step", distributed.world_size(), saved)
    return saved


def check_same_data(checkpoint: Checkpoint, samples: int) -> None:
    """Raise ConfigError when the training set has another number of samples than before."""
    before = checkpoint.states["data"].get("samples")
    if before not in (None, samples):
        raise ConfigError(
            f"DataLoader.Train.dataset: expected the {before} samples of the run to go on with, "
            f"found {samples}"
        )


def without_pretrained(recipe: Recipe) -> Recipe:
    """The recipe of a run whose weights come from a checkpoint."""
    arch = {key: value for key, value in recipe.Arch.items() if key != "pretrained"}
    plain = dataclasses.replace(recipe.Global, pretrained_model=None)
    return dataclasses.replace(recipe, Global=plain, Arch=arch)
