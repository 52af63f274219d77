"""Going on with a run: which checkpoint, and whether the recipe is still the same."""

from __future__ import annotations

import dataclasses
import fnmatch
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ppcls.data.datasets import DetectionDataset
from ppcls.data.loader import Loader
from ppcls.engine import parallel
from ppcls.engine.checkpoint import Checkpoint, newest_checkpoint, open_checkpoint
from ppcls.engine.config import Recipe
from ppcls.utils import distributed, schema
from ppcls.utils.errors import ConfigError, JobError

logger = logging.getLogger("ppcls")

# What may differ from the run that is gone on with: it changes no computed number, or is about what
# follows (`max_steps` counts the epoch it cuts short as done). README.md lists them for users.
MAY_CHANGE = (
    *(f"Global.{key}" for key in ("output_dir", "device", "pretrained_model", "checkpoints")),
    *(f"Global.{key}" for key in ("auto_resume", "max_steps", "print_batch_step", "keep_last")),
    *("Global.save_*", "Global.eval_*", "Global.start_eval_epoch", "Global.use_visualdl"),
    *("Global.on_nonfinite", "Global.max_nonfinite", "Global.check_ranks_interval"),
    *("Global.results_dir", "Global.test_*", "Distributed.*", "EMA.best_by"),
    *("Arch.pretrained", "Arch.models.*.pretrained", "Infer.*", "DataLoader.Eval.*"),
    *("Metric.*", "Loss.Eval*"),
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
    own = "none"
    if checkpoint is not None:
        files = checkpoint.files.manifest.get("files", {})
        digest = str(files.get(".pdstates", {}).get("sha256", "?"))[:12]
        own = f"{checkpoint.files.serial} ({digest})"
    found = {part.decode() for part in parallel.gather_bytes(own.encode())}
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
        f"{key} was {_shown(saved, key)}, is {_shown(wanted, key)}"
        for key in dict.fromkeys([*saved, *wanted])
        if saved.get(key) != wanted.get(key) and not _may_change(key, saved, wanted)
    ]
    limit = "Global.max_steps"
    place = checkpoint.progress
    is_inside = place.cut_short or place.step % recipe.Global.update_freq
    if is_inside and saved.get(limit) != wanted.get(limit):
        differing.append(
            f"{limit} was {_shown(saved, limit)}, is {_shown(wanted, limit)}, where it had cut an "
            "epoch or an update short"
        )
    if differing:
        raise ConfigError(
            f"{recipe.source}: expected the recipe of the run to go on with, "
            f"{checkpoint.files.stem}, but {'; '.join(differing)} (to start anew from its weights: "
            "-o Global.pretrained_model=... and another Global.output_dir)"
        )


def _may_change(key: str, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    if key == "Global.epochs":
        return type(saved.get(key)) is int and wanted.get(key, 0) > saved[key]
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
    elif isinstance(node, str) and schema.parse_number(node) is not None:
        yield path, schema.parse_number(node)  # `1e-3` is text to YAML
    else:
        yield path, node.tolist() if isinstance(node, np.ndarray) else _listed(node)


def _listed(node: Any) -> Any:
    return list(node) if isinstance(node, tuple) else node


def _shown(values: Mapping[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else "absent"


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
    if type(saved) is not int or saved < 1:
        raise ConfigError(f"{checkpoint.files.stem}: expected a global batch, found {saved!r}")
    if own != dict(_flatten(checkpoint.states["recipe"])).get(_BATCH_SIZE):
        raise ConfigError(
            f"{_BATCH_SIZE}: expected {saved} images per step over all processes, as in the run "
            f"to go on with, got {own} on {distributed.world_size()} process(es)"
        )
    logger.info("%d process(es) share the %d images of a step", distributed.world_size(), saved)
    return saved


def data_facts(loader: Loader) -> dict[str, int | str]:
    """What a checkpoint says of the training data."""
    facts: dict[str, int | str] = {
        "global_batch": loader.sampler.global_batch_size,
        "samples": len(loader.dataset),
        "digest": loader.dataset.digest(),
    }
    if isinstance(loader.dataset, DetectionDataset):
        facts["boxes"] = loader.dataset.annotations_digest()
    return facts


def check_same_data(checkpoint: Checkpoint, facts: Mapping[str, int | str]) -> None:
    """Raise ConfigError when the training set, by its `data_facts`, has other samples than before.

    Its files may have moved: names and labels or boxes count, not folders and pixels.
    """
    saved = checkpoint.states["data"]
    known = {
        "samples": "the {} samples",
        "digest": "the samples (SHA-256 {:.12})",
        "boxes": "the boxes and classes (SHA-256 {:.12})",
    }
    for key, words in known.items():
        if saved.get(key) not in (None, facts.get(key)):
            raise ConfigError(
                f"DataLoader.Train.dataset: expected {words.format(saved[key])} of the run to go "
                f"on with, found {facts.get(key, 'none')!s:.12}"
            )


def check_same_teacher(checkpoint: Checkpoint, digest: str) -> None:
    """Raise ConfigError when the teacher's weights, by their SHA-256, are not those of before.

    Their file may have moved.
    """
    saved = checkpoint.states["data"].get("teacher")
    if saved != digest:
        raise ConfigError(
            f"Arch.models: expected the teacher of the run to go on with (weights of SHA-256 "
            f"{saved!s:.12}), found another ({digest:.12})"
        )


def without_pretrained(recipe: Recipe) -> Recipe:
    """The recipe of a run whose weights come from a checkpoint."""
    arch = {key: value for key, value in recipe.Arch.items() if key != "pretrained"}
    plain = dataclasses.replace(recipe.Global, pretrained_model=None)
    return dataclasses.replace(recipe, Global=plain, Arch=arch)
