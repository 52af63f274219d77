"""Files that must survive, and files that may be anything."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import mmap
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ppcls.utils.errors import JobError, UserError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]


# Answers to creating a file that say something of its name or place; others are of the disk.
_NOT_THERE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
_NOT_THERE += (errno.ENAMETOOLONG, errno.EINVAL, errno.ELOOP)
_CHUNK = 1 << 20  # bytes read at once


def sha256_of(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file. Raises OSError."""
    return digest_of(path, hashlib.sha256())


def digest_of(path: str | Path, digest: Any) -> str:
    """Hexadecimal digest of a file by an object of `hashlib`, which it goes on from."""
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def atomic_write(path: str | Path, writer: Callable[[BinaryIO], None]) -> None:
    """Let `writer` fill a temporary file beside `path`, flush it to disk, then rename it.

    On any failure neither the temporary nor a half-written `path` is left; an older file of that
    name stays as it was. Raises UserError when nothing can be created there, JobError when writing
    fails midway (a full disk).
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: expected a file name, found a folder")
    with replacing(path) as temporary:
        try:
            file = open(temporary, "xb")
        except OSError as error:
            if error.errno not in _NOT_THERE:
                raise
            raise UserError(f"{path}: cannot be written: {error.strerror}") from error
        with file:
            writer(file)
            file.flush()
            os.fsync(file.fileno())
    sync_folder(path.parent)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` for the block to make a file of, which then becomes `path`.

    On any failure the temporary is removed and an older `path` stays. An OSError becomes a
    JobError that names `path`.
    """
    temporary = path.with_name(f".{path.name[:100]}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise JobError(f"{path}: writing failed: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)  # still there only after a failure


def atomic_write_text(path: str | Path, text: str) -> None:
    """`atomic_write` for UTF-8 text."""
    atomic_write(path, lambda file: file.write(text.encode("utf-8")))


def atomic_folder(folder: Path, fill: Callable[[Path], None], *, replace: bool = False) -> None:
    """Let `fill` write a temporary folder beside `folder`, then rename it: whole or not at all.

    With `replace` a folder of that name is then removed, whatever it holds; it stays as it was
    when `fill` or the renaming fails.

    Raises UserError when `folder` is there and not empty (without `replace`) or is a file, or
    cannot be written.
    """
    is_taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if is_taken and not (replace and folder.is_dir()):
        raise UserError(f"{folder}: expected no such folder, or an empty one, to write to")
    place = Path(os.path.realpath(folder))  # where a symbolic link leads to
    draft = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
        fill(draft)
        draft.chmod(0o755)
        _move_into_place(draft, place)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror or error}") from error
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)


def _move_into_place(draft: Path, folder: Path) -> None:
    """Rename `draft` to `folder`, moving a folder of that name aside until that is done."""
    if not folder.exists():
        os.replace(draft, folder)
        return
    aside = folder.with_name(f"{draft.name}.old")
    os.replace(folder, aside)
    try:
        os.replace(draft, folder)
    except BaseException:
        os.replace(aside, folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def to_json(value: Any, **options: Any) -> str:
    """Return JSON text; numbers JSON does not have (nan, infinity) become null."""
    return json.dumps(_finite(value), allow_nan=False, ensure_ascii=False, **options)


def _finite(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _finite(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_finite(item) for item in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node


def sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut, where the system has a way to say that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def map_file(path: str | Path, max_bytes: int | None = None) -> mmap.mmap | bytes:
    """Return the content of a regular file, mapped into memory and not yet read.

    Raises UserError when there is no such file, or it is a folder, a device, empty or too large.
    """
    try:
        info = os.stat(path)  # before opening: opening a named pipe would wait for ever
        if stat.S_ISDIR(info.st_mode):
            raise UserError(f"{path}: expected a file, found a folder")
        if not stat.S_ISREG(info.st_mode):
            raise UserError(f"{path}: expected a regular file")
        if info.st_size == 0:
            raise UserError(f"{path}: the file is empty")
        if max_bytes is not None and info.st_size > max_bytes:
            raise UserError(f"{path}: expected at most {max_bytes:,} bytes, found {info.st_size:,}")
        with open(path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read: {reason}") from error


_locked: dict[str, BinaryIO] = {}  # kept open: closing a file gives its lock up


def lock_file(path: Path) -> bool:
    """Lock `path` for this process until it ends, however it ends; False when another has it.

    Processes forked later do not hold the lock. Where there are no such locks nothing is locked.
    """
    key = str(path.resolve())
    if key in _locked or fcntl is None:
        return True
    try:
        file = open(path, "ab")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    _locked[key] = file
    return True
