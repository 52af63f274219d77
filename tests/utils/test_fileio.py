from __future__ import annotations

import json
import os

import pytest

from ppcls.utils.errors import JobError, UserError
from ppcls.utils.fileio import atomic_folder, atomic_write, atomic_write_text, map_file, to_json


def test_writes_and_replaces(tmp_path):
    path = tmp_path / "a.bin"
    for content in (b"one", b"two"):
        atomic_write(path, lambda file, content=content: file.write(content))
        assert path.read_bytes() == content
    atomic_write_text(path, "é")
    assert path.read_bytes() == "é".encode()
    assert os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def writer(file):
        file.write(b"half")
        raise error("stop")

    with pytest.raises(JobError if error is OSError else error):
        atomic_write(path, writer)
    assert os.listdir(tmp_path) == ["a.bin"]
    assert path.read_bytes() == b"old"


def test_places_that_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match="expected a file name, found a folder"):
        atomic_write(tmp_path, lambda file: None)
    with pytest.raises(UserError, match="cannot be written: No such file"):
        atomic_write(tmp_path / "no" / "a.bin", lambda file: None)


def test_a_folder_is_written_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "new" / "set"
    with pytest.raises(KeyError):
        atomic_folder(folder, lambda draft: (draft / "a").touch() or {}["b"])
    assert os.listdir(tmp_path / "new") == []
    folder.mkdir()
    atomic_folder(folder, lambda draft: (draft / "a").touch())
    assert os.listdir(folder) == ["a"] and os.listdir(tmp_path / "new") == ["set"]
    with pytest.raises(UserError, match="expected no such folder, or an empty one"):
        atomic_folder(folder, lambda draft: None)
    with pytest.raises(UserError, match="cannot be written"):
        atomic_folder(folder / "a" / "b", lambda draft: None)


def test_a_folder_is_replaced_when_asked_or_stays(tmp_path, monkeypatch):
    folder = tmp_path / "set"
    atomic_folder(folder, lambda draft: (draft / "old").touch())
    with pytest.raises(KeyError):
        atomic_folder(folder, lambda draft: {}["b"], replace=True)
    real, calls = os.replace, []

    def second_fails(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", second_fails)
        with pytest.raises(UserError, match="set: cannot be written: No space left"):
            atomic_folder(folder, lambda draft: None, replace=True)
    assert os.listdir(folder) == ["old"] and os.listdir(tmp_path) == ["set"]
    (tmp_path / "link").symlink_to(folder)
    atomic_folder(tmp_path / "link", lambda draft: (draft / "new").touch(), replace=True)
    assert os.listdir(folder) == ["new"] and sorted(os.listdir(tmp_path)) == ["link", "set"]
    with pytest.raises(UserError, match="expected no such folder"):
        atomic_folder(folder / "new", lambda draft: None, replace=True)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "small").write_bytes(b"abc")
    with pytest.raises(UserError, match="nothing: no such file"):
        map_file(tmp_path / "nothing")
    with pytest.raises(UserError, match="found a folder"):
        map_file(tmp_path)
    with pytest.raises(UserError, match="the file is empty"):
        map_file(tmp_path / "empty")
    with pytest.raises(UserError, match="cannot be read"):
        map_file(str(tmp_path) + "/\0")
    with pytest.raises(UserError, match="expected at most 2 bytes, found 3"):
        map_file(tmp_path / "small", max_bytes=2)
    assert map_file(tmp_path / "small")[:] == b"abc"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_named_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="expected a regular file"):
        map_file(tmp_path / "pipe")


def test_json_has_no_nan():
    value = {"loss": float("nan"), "tops": [1.0, float("inf")], "name": "ß"}
    assert json.loads(to_json(value)) == {"loss": None, "tops": [1.0, None], "name": "ß"}
