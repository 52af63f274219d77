"""Sets of files: complete or not there at all, whenever the writer dies."""

import builtins
import errno
import json
import os
import shutil

import numpy as np
import pytest

from ppcls.engine.checkpoint_store import SUFFIXES, CheckpointStore
from ppcls.utils.errors import JobError, UserError
from ppcls.utils.pdparams import load_paddle_file

PLACE = {"epoch": 1, "step": 0, "global_step": 4}
FILES = (*SUFFIXES, ".json")


def contents(number):
    return {suffix: {"x": np.full(300, number + i)} for i, suffix in enumerate(SUFFIXES)}


def write(store, number, tags=("latest",)):
    return store.write(contents(number), tags, PLACE)


def number_in(stem):
    return int(load_paddle_file(stem.with_name(stem.name + ".pdparams"))["x"][0])


def damage(path, position=200):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_a_set_has_its_names(tmp_path):
    store = CheckpointStore(tmp_path)
    write(store, 7, ["latest", "best_model", "epoch_3"])
    for tag in ("latest", "best_model", "epoch_3"):
        saved = store.open(tmp_path / tag)
        assert number_in(saved.stem) == 7
        assert saved.manifest["tags"] == ["latest", "best_model", "epoch_3"]
        assert saved.manifest["epoch"] == 1
    assert (tmp_path / "latest.pdopt").samefile(tmp_path / "best_model.pdopt")


def test_old_sets_go_but_their_names_stay(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=2)
    for number in range(1, 6):
        write(store, number, ["latest", f"epoch_{number}"])
    assert store.serials() == [4, 5]
    assert {path.stem for path in (tmp_path / "sets").iterdir()} == {"save_000004", "save_000005"}
    assert [number_in(store.open(tmp_path / f"epoch_{n}").stem) for n in range(1, 6)] == [
        *range(1, 6)
    ]
    assert number_in(tmp_path / "latest") == 5


class Killed(BaseException):
    """The process ends here."""


def kill_at(monkeypatch, count):
    """Let the process die instead of making its `count`-th change to the file system."""
    left = [count]

    def dying(function, changes=lambda *args: True):
        def call(*args, **kwargs):
            if changes(*args):
                left[0] -= 1
                if left[0] < 0:
                    raise Killed
            return function(*args, **kwargs)

        return call

    for name in ("replace", "link", "unlink", "fsync"):
        monkeypatch.setattr(os, name, dying(getattr(os, name)))
    opens = dying(builtins.open, lambda *args: len(args) > 1 and "x" in args[1])
    monkeypatch.setattr(builtins, "open", opens)
    return left


@pytest.mark.parametrize("links", [True, False])
def test_killed_at_any_change_the_newest_complete_set_is_found(tmp_path, monkeypatch, links):
    before = tmp_path / "before"
    for number in (1, 2):
        write(CheckpointStore(before), number, ["latest", "best_model"])
    found = set()
    for count in range(200):
        folder = tmp_path / str(count)
        shutil.copytree(before, folder, copy_function=os.link)
        with monkeypatch.context() as patch:
            store = CheckpointStore(folder)
            store.adopt(store.newest())
            left = kill_at(patch, count)
            if not links:
                patch.setattr(os, "link", no_links)
            try:
                write(store, 3, ["latest", "best_model"])
            except Killed:
                pass
        again = CheckpointStore(folder)
        again.clean()
        newest = again.newest()
        found.add(number_in(newest.stem))
        assert again.adopt(newest)
        for tag in ("latest", "best_model"):
            saved = again.open(folder / tag)
            assert number_in(saved.stem) == number_in(newest.stem)
        assert not [p for p in folder.rglob("*") if p.name.endswith(".tmp")]
        write(again, 4)
        assert number_in(again.open(folder / "latest").stem) == 4
        if left[0] >= 0:
            break
    assert found == {2, 3} and count > 20


def no_links(*_, **__):
    raise OSError(errno.EPERM, "Operation not permitted")


def test_without_hard_links_files_are_copied(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", no_links)
    store = CheckpointStore(tmp_path)
    write(store, 1, ["latest", "epoch_1"])
    assert number_in(store.open(tmp_path / "epoch_1").stem) == 1
    assert not (tmp_path / "latest.pdopt").samefile(tmp_path / "epoch_1.pdopt")


@pytest.mark.parametrize("suffix", FILES)
@pytest.mark.parametrize("how", ["changed", "cut", "gone"])
def test_a_damaged_newest_set_gives_way_to_the_one_before(tmp_path, suffix, how, caplog):
    store = CheckpointStore(tmp_path)
    write(store, 1)
    stem = write(store, 2)
    path = stem.with_name(stem.name + suffix)
    if how == "gone":
        path.unlink()
        (tmp_path / f"latest{suffix}").unlink()
    elif how == "cut":
        os.truncate(path, 50)
    else:
        damage(path, 5 if suffix == ".json" else 200)
    saved = CheckpointStore(tmp_path).newest()
    assert number_in(saved.stem) == 1
    if (suffix, how) != (".json", "gone"):  # without a manifest there is no set to speak of
        assert f"{stem} is damaged" in caplog.text and "the set before it" in caplog.text
        caplog.clear()
        assert number_in(store.open(tmp_path / "latest").stem) == 1
        assert "latest is damaged" in caplog.text


def test_nothing_undamaged_is_an_error(tmp_path):
    store = CheckpointStore(tmp_path)
    stem = write(store, 1)
    damage(stem.with_suffix(".pdopt"))
    with pytest.raises(
        UserError, match="an undamaged checkpoint, found none; .*pdopt: expected SHA"
    ):
        store.newest()


def test_a_damaged_set_of_another_name_is_an_error(tmp_path):
    store = CheckpointStore(tmp_path)
    write(store, 1, ["latest", "epoch_1"])
    os.truncate(tmp_path / "epoch_1.pdopt", 10)
    with pytest.raises(UserError, match=r"Global.checkpoints: .*epoch_1.pdopt: expected \d+ bytes"):
        store.open(tmp_path / "epoch_1")


def test_an_empty_folder_has_no_set(tmp_path):
    assert CheckpointStore(tmp_path).newest() is None
    with pytest.raises(UserError, match="expected the files latest.* found no latest.pdparams"):
        CheckpointStore(tmp_path).open(tmp_path)


def test_a_folder_means_its_newest_set(tmp_path):
    store = CheckpointStore(tmp_path)
    write(store, 1)
    write(store, 2)
    assert number_in(store.open(tmp_path).stem) == 2


def test_files_copied_elsewhere_are_a_set_too(tmp_path, caplog):
    write(CheckpointStore(tmp_path / "run"), 1)
    for suffix in SUFFIXES:
        shutil.copy(tmp_path / "run" / f"latest{suffix}", tmp_path / f"lr0.1{suffix}")
    saved = CheckpointStore(tmp_path / "x").open(tmp_path / "lr0.1")
    assert number_in(saved.stem) == 1 and saved.serial is None
    assert "no manifest lr0.1.json: not checked for damage" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 9}, "expected schema 1, found 9"),
        ({"tags": ["../elsewhere"]}, "expected plain names as tags"),
        ({"tags": "latest"}, "expected a manifest with"),
        ({"files": {}}, "expected bytes and sha256 of the .pdparams file"),
        ({"serial": None}, "expected a manifest with"),
    ],
)
def test_manifests_that_are_none(tmp_path, change, message, caplog):
    store = CheckpointStore(tmp_path)
    write(store, 1)
    stem = write(store, 2)
    manifest = stem.with_suffix(".json")
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **change}))
    assert number_in(store.newest().stem) == 1
    assert message in caplog.text


def test_a_new_run_moves_an_old_one_aside(tmp_path):
    old = CheckpointStore(tmp_path, keep_last=3)
    for number in (1, 2, 3):
        write(old, number)
    (tmp_path / "metrics.jsonl").write_text("{}")
    new = CheckpointStore(tmp_path, keep_last=3)
    new.clean()
    assert new.retire() and new.newest() is None
    assert {path.name for path in tmp_path.iterdir()} == {"earlier"}
    assert number_in(CheckpointStore(tmp_path / "earlier").newest().stem) == 3
    assert (tmp_path / "earlier" / "metrics.jsonl").exists()
    assert not new.retire()
    write(new, 9)
    assert new.serials() == [1] and number_in(new.newest().stem) == 9


def test_going_on_keeps_the_set_before_as_a_fallback(tmp_path):
    for number in (1, 2):
        write(CheckpointStore(tmp_path), number)
    store = CheckpointStore(tmp_path)
    assert store.adopt(store.newest())
    write(store, 3)
    assert store.serials() == [2, 3]


def test_a_set_of_another_folder_is_not_adopted(tmp_path):
    write(CheckpointStore(tmp_path / "a"), 1)
    saved = CheckpointStore(tmp_path / "a").newest()
    assert not CheckpointStore(tmp_path / "b").adopt(saved)


def test_a_full_disk_leaves_the_set_before(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path)
    write(store, 1)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(JobError, match="save_000002.pdparams: writing failed: No space left"):
        write(store, 2)
    monkeypatch.undo()
    assert number_in(store.newest().stem) == number_in(store.open(tmp_path / "latest").stem) == 1
    assert not list((tmp_path / "sets").glob(".*"))


def test_at_least_one_set_is_kept(tmp_path):
    with pytest.raises(ValueError, match="keep_last: expected a number >= 1, got 0"):
        CheckpointStore(tmp_path, keep_last=0)
