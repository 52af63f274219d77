"""The files of a run's checkpoints: the one module that knows their names.

    OUTPUT/ARCH/
      sets/save_000012.{pdparams,pdopt,pdstates,json}   complete sets, which the run never changes
      {latest,best_model,epoch_N}.{pdparams,pdopt,pdstates,json}   names of such sets, for people

A set is four files. Three hold the state; the fourth, its manifest, holds their sizes and SHA-256
and is written last, so that a set without one does not exist. A run with a moving average of its
weights has it in a fifth file, `.ema.pdparams`. The names beside the folder `sets`
are hard links to a set's files (copies where the file system has no links), made after the set is
complete: killed at any moment, a run finds its newest complete set and gives it the names it was
meant to have.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ppcls.utils.errors import JobError, UserError
from ppcls.utils.fileio import (
    atomic_write,
    atomic_write_text,
    replacing,
    sha256_of,
    sync_folder,
)
from ppcls.utils.pickle_writer import PickleWriter

logger = logging.getLogger("ppcls")

SUFFIXES = (".pdparams", ".pdopt", ".pdstates")  # of every set
EMA = ".ema.pdparams"  # of sets with an average
_DATA = (EMA, *SUFFIXES)
MANIFEST = ".json"
_MANIFEST_SCHEMA = 1
_MAX_MANIFEST_BYTES = 1 << 20
_TAG_FILE = re.compile(r"(latest|best_model|epoch_[0-9]+)\.((ema\.)?pdparams|pdopt|pdstates|json)")
_SET_NAME = re.compile(r"save_([0-9]{6,12})\.json")
# What a file system answers that has no hard links, or no more of them.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)


@dataclass(frozen=True)
class SavedSet:
    """A set that can be read: `stem` without a suffix, and what its manifest says (may be {})."""

    stem: Path
    manifest: dict[str, Any] = field(default_factory=dict)

    def file(self, suffix: str) -> Path:
        return add_suffix(self.stem, suffix)

    @property
    def suffixes(self) -> list[str]:
        """Of the files that hold its state; without a manifest, of those that are there."""
        listed = self.manifest.get("files", {})
        has_average = EMA in listed if self.manifest else self.file(EMA).is_file()
        return [*SUFFIXES, *([EMA] if has_average else [])]

    @property
    def serial(self) -> int | None:
        """Its number among the saves of its run; None for a set without a manifest."""
        return self.manifest.get("serial")


class CheckpointStore:
    """The sets of one run in `folder`, of which the `keep_last` newest stay under `sets`.

    One process writes; any process reads.
    """

    def __init__(self, folder: Path, keep_last: int = 2) -> None:
        if keep_last < 1:
            raise ValueError(f"keep_last: expected a number >= 1, got {keep_last!r}")
        self.folder = folder
        self.keep_last = keep_last
        self._own: list[int] = []  # serial numbers of this run's sets, ascending
        self._can_link = True

    # Writing

    def write(
        self, contents: Mapping[str, Any], tags: Sequence[str], place: Mapping[str, Any]
    ) -> Path:
        """Write one set, give it the names `tags`, and remove sets that are no longer kept.

        contents: suffix to what that file holds: all of `SUFFIXES`, and `EMA` if there is an
        average. place: where the run stands, for people who read the manifest. Returns the set's
        stem. Raises JobError when writing fails; the sets before are then as they were.
        """
        serial = 1 + max((*self.serials(), *self._own), default=0)
        stem = self.stem(serial)
        _make_folder(stem.parent)
        try:
            files = {s: _write_hashed(add_suffix(stem, s), contents[s]) for s in contents}
        except UserError as error:  # no file can be made: the recipe was right, the disk is not
            raise JobError(str(error)) from error
        manifest = {
            "schema": _MANIFEST_SCHEMA,
            "serial": serial,
            "tags": list(tags),
            **place,
            "files": files,
        }
        atomic_write_text(add_suffix(stem, MANIFEST), json.dumps(manifest, indent=1) + "\n")
        saved = SavedSet(stem, manifest)
        self._own.append(serial)
        self.name(saved)
        self._prune()
        return stem

    def name(self, saved: SavedSet) -> None:
        """Give a set of this folder the names its manifest lists, the manifest's own last."""
        for tag in saved.manifest["tags"]:
            for suffix in (*saved.suffixes, MANIFEST):
                self._link(saved.file(suffix), add_suffix(self.folder / tag, suffix))
        sync_folder(self.folder)

    def _link(self, source: Path, target: Path) -> None:
        with replacing(target) as temporary:
            if self._can_link:
                try:
                    os.link(source, temporary)
                    return
                except OSError as error:
                    if error.errno not in _NO_LINKS:
                        raise
                    self._can_link = False
                    logger.info("%s: no hard links here (%s), copying", self.folder, error.strerror)
            shutil.copyfile(source, temporary)
            _sync_file(temporary)

    def _prune(self) -> None:
        """Remove what is neither among the newest sets of this run nor unfinished by it."""
        kept = set(self._own[-self.keep_last :])
        for serial in set(self.serials()) - kept:
            self._remove(serial)
        self._own = sorted(kept)

    def _remove(self, serial: int) -> None:
        for suffix in (MANIFEST, *_DATA):  # without a manifest the rest is no set any more
            add_suffix(self.stem(serial), suffix).unlink(missing_ok=True)

    def clean(self) -> None:
        """Remove what a killed writer left: temporary files, and files of sets never finished."""
        sets = self.folder / "sets"
        for path in [*self.folder.glob(".*.tmp"), *sets.glob(".*.tmp")]:
            path.unlink(missing_ok=True)
        finished = {self.stem(serial).name for serial in self.serials()}
        for path in sets.glob("save_*"):
            if path.name.partition(".")[0] not in finished:
                path.unlink(missing_ok=True)

    def retire(self) -> bool:
        """Move an earlier run's checkpoints and records into the folder `earlier`, over what is
        there, so that nothing of them is taken for this run's. Returns whether there were any.
        """
        # The sets first: without them nobody goes on with that run by itself.
        found = [self.folder / "sets", *self._named_files()]
        found = [path for path in found if path.exists()]
        if found:
            self._move_aside([*found, self.folder / "metrics.jsonl"])
        return bool(found)

    def _retire_after(self, serial: int) -> None:
        """Move aside what was saved after a set that is gone on with, and keep its records."""
        sets = [s for s in self.serials() if s > serial]
        found = [add_suffix(self.stem(s), suffix) for s in sets for suffix in (MANIFEST, *_DATA)]
        for path in self._named_files():
            if path.suffix == MANIFEST and _serial_in(path) > serial and path.stem != "latest":
                found += [path, *(path.with_suffix(suffix) for suffix in _DATA)]
        if not found:
            return
        self._move_aside(found)
        records = self.folder / "metrics.jsonl"
        if records.exists():
            shutil.copyfile(records, self.folder / "earlier" / records.name)
        logger.warning("what was saved after %s is now in %s", serial, self.folder / "earlier")

    def _named_files(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if _TAG_FILE.fullmatch(path.name)]

    def _move_aside(self, paths: Iterable[Path]) -> None:
        earlier = self.folder / "earlier"
        try:
            shutil.rmtree(earlier, ignore_errors=True)
            earlier.mkdir()
            for path in paths:
                if path.exists():
                    os.replace(path, earlier / path.name)
        except OSError as error:
            raise JobError(f"{earlier}: writing failed: {error.strerror}") from error

    # Reading

    def newest(self) -> SavedSet | None:
        """Return the newest set of the folder that is complete and undamaged, or None.

        A damaged one is named in the log and the one before it is tried. Raises UserError when
        there are sets and all of them are damaged.
        """
        damaged = ""
        for serial in reversed(self.serials()):
            stem = self.stem(serial)
            complaint, saved = self.check(stem)
            if saved is not None:
                return saved
            damaged = complaint
            logger.warning("%s is damaged (%s); trying the set before it", stem, complaint)
        if damaged:
            raise UserError(
                f"{self.folder}: expected an undamaged checkpoint, found none; {damaged}"
            )
        return None

    def adopt(self, saved: SavedSet) -> bool:
        """Go on after `saved`, if it is one of this folder: give it its names, which a kill may
        have prevented, keep what is older as the fallback, and move what is newer to `earlier`.

        Returns whether it is one of this folder.
        """
        places = (self.folder.resolve(), (self.folder / "sets").resolve())
        if saved.serial is None or saved.stem.parent.resolve() not in places:
            return False
        self._retire_after(saved.serial)
        self._own = [serial for serial in self.serials() if serial <= saved.serial]
        if saved.stem.parent.resolve() == places[1]:
            self.name(saved)
        return True

    def open(self, path: str | Path) -> SavedSet:
        """Return the set a user means: `FOLDER/latest` with or without a suffix, or a run's folder.

        Its files are compared with the manifest, if there is one. When those of `latest` do not
        agree, the run's newest undamaged set is taken, and the log says so. Raises UserError when
        a file is missing or damaged.
        """
        path = Path(path)
        if path.is_dir():
            saved = CheckpointStore(path).newest()
            return saved or self.open(path / "latest")
        stem = _without_suffix(path)
        complaint, saved = self.check(stem)
        if saved is not None:
            return saved
        if stem.name == "latest" and (stem.parent / "sets").is_dir():
            logger.warning("%s is damaged (%s); trying the run's other sets", stem, complaint)
            saved = CheckpointStore(stem.parent).newest()
        if saved is None and not add_suffix(stem, MANIFEST).is_file():
            return self._without_manifest(stem)
        if saved is None:
            raise UserError(f"Global.checkpoints: {complaint}")
        return saved

    def _without_manifest(self, stem: Path) -> SavedSet:
        """A set whose files were copied without their manifest: only reading it will tell."""
        for suffix in SUFFIXES:
            if not add_suffix(stem, suffix).is_file():
                raise UserError(
                    f"Global.checkpoints: expected the files {stem.name}"
                    f"{{{','.join(SUFFIXES)}}} in {stem.parent}, found no {stem.name}{suffix}"
                )
        logger.warning("%s has no manifest %s%s: not checked for damage", stem, stem.name, MANIFEST)
        return SavedSet(stem)

    def check(self, stem: Path) -> tuple[str, SavedSet | None]:
        """Compare a set with its manifest: what is wrong, or the set."""
        try:
            manifest = _read_manifest(add_suffix(stem, MANIFEST))
            saved = SavedSet(stem, manifest)
            for suffix in saved.suffixes:
                _compare(saved.file(suffix), manifest["files"][suffix])
        except (UserError, OSError) as error:
            return str(error), None
        return "", saved

    def stem(self, serial: int) -> Path:
        return self.folder / "sets" / f"save_{serial:06d}"

    def serials(self) -> list[int]:
        """The sets that have a manifest, ascending."""
        names = _names(self.folder / "sets")
        return sorted(int(match[1]) for match in map(_SET_NAME.fullmatch, names) if match)


def _serial_in(manifest: Path) -> int:
    """The serial number in a manifest, -1 in one that cannot be read."""
    try:
        return _read_manifest(manifest)["serial"]
    except UserError:
        return -1


def add_suffix(stem: Path, suffix: str) -> Path:
    """`with_suffix` for stems with points in them, such as `lr0.1`."""
    return stem.with_name(stem.name + suffix)


def _without_suffix(path: Path) -> Path:
    """The stem a user means by one of a set's files, or by the stem itself."""
    suffix = next((s for s in (*_DATA, MANIFEST) if path.name.endswith(s)), "")
    return path.with_name(path.name.removesuffix(suffix))


class _Hashing:
    """A file that also counts and hashes what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._bytes = 0

    def write(self, data: Any) -> int:
        self._digest.update(data)
        self._bytes += memoryview(data).nbytes
        return self._file.write(data)

    def result(self) -> dict[str, Any]:
        return {"bytes": self._bytes, "sha256": self._digest.hexdigest()}


def _write_hashed(path: Path, content: Any) -> dict[str, Any]:
    """Write `content` as `save_pdparams` does; return the size and hash of the file."""
    results = []

    def writer(file: BinaryIO) -> None:
        hashing = _Hashing(file)
        PickleWriter(hashing).dump(content)
        results.append(hashing.result())

    atomic_write(path, writer)
    return results[0]


def _read_manifest(path: Path) -> dict[str, Any]:
    """Read a manifest and check its form. Raises UserError."""
    try:
        with open(path, "rb") as file:
            manifest = json.loads(file.read(_MAX_MANIFEST_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: expected a manifest, but it cannot be read: {error}") from error
    form = {"schema": int, "serial": int, "tags": list, "files": dict}
    if not isinstance(manifest, dict) or any(
        type(manifest.get(k)) is not t for k, t in form.items()
    ):
        raise UserError(f"{path}: expected a manifest with {', '.join(form)}, found something else")
    if manifest["schema"] != _MANIFEST_SCHEMA:
        raise UserError(f"{path}: expected schema {_MANIFEST_SCHEMA}, found {manifest['schema']!r}")
    if not all(_is_plain_name(tag) for tag in manifest["tags"]):
        raise UserError(f"{path}: expected plain names as tags, found {manifest['tags']!r}")
    for suffix in SavedSet(path, manifest).suffixes:
        entry = manifest["files"].get(suffix)
        if not isinstance(entry, dict) or set(entry) != {"bytes", "sha256"}:
            raise UserError(
                f"{path}: expected bytes and sha256 of the {suffix} file, found {entry!r}"
            )
    return manifest


def _is_plain_name(tag: Any) -> bool:
    return isinstance(tag, str) and re.fullmatch(r"latest|best_model|epoch_[0-9]+", tag) is not None


def _compare(path: Path, expected: Mapping[str, Any]) -> None:
    """Raise UserError unless a file has the size and the hash its manifest states."""
    size = path.stat().st_size
    if size != expected["bytes"]:
        raise UserError(f"{path}: expected {expected['bytes']} bytes, found {size}")
    digest = sha256_of(path)
    if digest != expected["sha256"]:
        raise UserError(
            f"{path}: expected SHA-256 {str(expected['sha256'])[:12]}..., found {digest[:12]}..."
        )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise JobError(f"{folder}: cannot be made: {error.strerror}") from error


def _names(folder: Path) -> Iterable[str]:
    return os.listdir(folder) if folder.is_dir() else ()


def _sync_file(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
