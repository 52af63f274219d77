"""Files from the web, each downloaded once into a cache folder, checked and kept.

    ~/.cache/ppcls/NAME          a finished, checked file; PPCLS_HOME names another folder
    ~/.cache/ppcls/hashes.json   SHA-256 of every file at its first use, enforced ever after
    ~/.cache/ppcls/.NAME.part    what has arrived of an unfinished one

PPCLS_MIRROR names a base address that is asked for NAME before the published ones.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ppcls.utils.errors import NotDownloaded, UserError
from ppcls.utils.fileio import atomic_write_text, digest_of, sha256_of
from ppcls.utils.http_file import DownloadError, discard, is_web_address, receive, shown

try:
    import fcntl
except ImportError:  # not a POSIX system: processes there must not download at the same time
    fcntl = None

HOME_VARIABLE, MIRROR_VARIABLE = "PPCLS_HOME", "PPCLS_MIRROR"
RECORDS = "hashes.json"
MAX_BYTES = 2 << 30  # no weights of this project are near it


@dataclass(frozen=True)
class Identity:
    """What is known of a file's content: SHA-256 or its first digits, git's blob id, bytes.

    One of the two digests is enough: a file's name may carry the one, its repository the other.
    """

    sha256: str | None = None
    git_blob: str | None = None
    size: int | None = None

    def problem(self, path: Path) -> str | None:
        """Say what is wrong with the file at `path`, None when it is the one."""
        size = path.stat().st_size
        if self.size is not None and size != self.size:
            return f"expected {self.size:,} bytes, found {size:,}"
        if self.sha256 is None and self.git_blob is None:
            return None
        found = sha256_of(path)
        if self.sha256 is not None and found.startswith(self.sha256.lower()):
            return None
        if self.git_blob is not None and git_blob_of(path) == self.git_blob:
            return None
        expected = f"SHA-256 {self.sha256}" if self.sha256 else f"the git blob {self.git_blob}"
        return f"expected {expected}, found {found}"


def cache_folder() -> Path:
    """PPCLS_HOME, else `ppcls` in XDG_CACHE_HOME, else ~/.cache/ppcls."""
    if os.environ.get(HOME_VARIABLE):
        return Path(os.environ[HOME_VARIABLE]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ppcls"


def fetch(
    urls: str | Sequence[str],
    file_name: str,
    *,
    sha256: str | None,
    git_blob: str | None = None,
    size: int | None = None,
    use_mirror: bool = True,
) -> Path:
    """Return the file called `file_name`, from the cache or from the first address that has it.

    `sha256` is the digest or its first digits; with None, that of the first use is kept. `git_blob`
    is accepted in its place. Processes that ask at the same time share one download. Raises
    UserError: no web address, no connection (it says where to put the file), a wrong content.
    """
    urls = [urls] if isinstance(urls, str) else list(urls)
    addresses = [*_mirror(file_name), *urls] if use_mirror else urls
    for url in addresses:
        if not is_web_address(url):
            raise UserError(f"expected an http or https address, got {shown(url)!r}")
    if not re.fullmatch(r"\w[\w.+-]{0,199}", file_name, re.ASCII):
        raise UserError(f"{file_name!r}: expected a plain file name")
    target = cache_folder() / file_name
    identity = Identity(sha256, git_blob, size)
    if target.is_file() and not os.access(target.parent, os.W_OK):
        return _from_shared_cache(target, identity)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _lock(target):
            identity = _with_record(target, identity)
            is_new = not _is_cached(target, identity)
            if is_new:
                _download(addresses, urls, target, identity)
            if is_new or target.name not in _records(target.parent):
                _record(target)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{target}: cannot be written: {reason}; see {HOME_VARIABLE}") from error
    return target


def _mirror(file_name: str) -> list[str]:
    base = os.environ.get(MIRROR_VARIABLE)
    return [f"{base.rstrip('/')}/{file_name}"] if base else []


def git_blob_of(path: Path) -> str:
    """The id git gives a file's content."""
    header = b"blob %d\0" % path.stat().st_size
    return digest_of(path, hashlib.sha1(header, usedforsecurity=False))


@contextlib.contextmanager
def _lock(target: Path) -> Iterator[None]:
    """Let one process at a time work on `target`; one that dies lets go."""
    with open(target.with_name(f".{target.name}.lock"), "w") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_cached(target: Path, identity: Identity) -> bool:
    if not target.is_file():
        return False
    problem = identity.problem(target)
    if problem:
        print(f"{target}: {problem}; downloading it again", file=sys.stderr)
    return not problem


def _from_shared_cache(target: Path, identity: Identity) -> Path:
    """The file of a folder somebody else fills: checked, but nothing is written there."""
    problem = _with_record(target, identity).problem(target)
    if problem:
        raise UserError(f"{target}: {problem}, and the folder cannot be written")
    return target


def _download(addresses: list[str], urls: list[str], target: Path, identity: Identity) -> None:
    """Put the file at `target`, from the first of `addresses` that has it."""
    part = target.with_name(f".{target.name}.part")
    reasons = []
    for url in addresses:
        try:
            _receive(url, part, target.name, identity)
        except DownloadError as error:
            reasons.append(f"{shown(url)}: {error}" if len(addresses) > 1 else str(error))
        else:
            _move(part, target)
            return
    source = f"get it from {' or '.join(map(shown, urls))} and " if urls else ""
    reason = "; ".join(reasons) or "no program can fetch it"
    raise NotDownloaded(
        f"cannot download {target.name} ({reason}); {source}put it there: {target}"
        + _about_record(target, identity)
    )


def _receive(url: str, part: Path, label: str, identity: Identity) -> None:
    """Fill `part` with the file. A wrong one that was gone on with blindly starts again once."""
    is_checked = identity.sha256 is not None or identity.git_blob is not None
    for _ in range(2):
        is_joined = receive(
            url,
            part,
            size=identity.size,
            max_bytes=MAX_BYTES,
            label=label,
            is_checked=is_checked,
        )
        problem = identity.problem(part)
        if not problem:
            return
        discard(part)
        if not is_joined:
            break
    raise DownloadError(problem)


def _move(part: Path, target: Path) -> None:
    with open(part, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(part, target)
    discard(part)  # the note beside it


# Hashes of the first use --------------------------------------------------------------------------


def _records(folder: Path) -> dict[str, str]:
    path = folder / RECORDS
    try:
        records = json.loads(path.read_text("utf-8")) if path.exists() else {}
        if not all(isinstance(value, str) for value in records.values()):
            raise ValueError("not all values are text")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path}: expected a JSON object of SHA-256 by file name") from error
    return records


def _with_record(target: Path, identity: Identity) -> Identity:
    """Replace a digest not known beforehand, or known in part, by that of the first use."""
    known = _records(target.parent).get(target.name)
    is_open = identity.sha256 is None and identity.git_blob is None
    if known and (is_open or known.startswith((identity.sha256 or "-").lower())):
        return replace(identity, sha256=known)
    return identity


def _record(target: Path) -> None:
    with _lock(target.with_name(RECORDS)):
        records, found = _records(target.parent), sha256_of(target)
        if records.get(target.name) != found:
            text = json.dumps(records | {target.name: found}, indent=2, sort_keys=True)
            atomic_write_text(target.with_name(RECORDS), text + "\n")


def _about_record(target: Path, identity: Identity) -> str:
    path = target.with_name(RECORDS)
    if identity.sha256 is None or _records(target.parent).get(target.name) != identity.sha256:
        return ""
    return (
        f" (its SHA-256 is that of its first use, recorded in {path}; remove it there if need be)"
    )
