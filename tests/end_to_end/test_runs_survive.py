"""Real processes that are stopped, killed, starved or fed with nonsense, and started again."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import running

from ppcls.utils.pdparams import load_paddle_state_dict

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")
AUTO = ("Global.auto_resume=True", "Global.save_interval_steps=1")
TIMING = ("batch_cost", "reader_cost", "ips")
EPOCHS = ("Global.epochs=3", "Global.update_freq=2", "Arch.dropout=0.3")


def run_folder(workspace):
    return workspace / "output" / "HarDNet39_ds"


def train(workspace, short, *overrides):
    return running.start(workspace, running.TRAIN, "-c", short, "-o", *EPOCHS, *AUTO, *overrides)


def finished(process):
    return running.succeeded(running.finish(process))


def end_of(workspace):
    """The weights and records of a run, timing apart."""
    folder = run_folder(workspace)
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    kept = [{k: v for k, v in line.items() if k not in TIMING} for line in lines]
    return load_paddle_state_dict(folder / "latest.pdparams"), kept


def assert_same_end(workspace, expected):
    weights, records = end_of(workspace)
    for name, array in expected[0].items():
        np.testing.assert_array_equal(weights[name], array, name)
    assert records == expected[1]


def wait_for_records(workspace, count, process):
    path = run_folder(workspace) / "metrics.jsonl"
    end = time.monotonic() + running.TIMEOUT
    while process.poll() is None and time.monotonic() < end:
        if path.exists() and path.read_text().count("\n") >= count:
            return
        time.sleep(0.005)


@pytest.fixture(scope="module")
def undisturbed(make_workspace, short):
    workspace = make_workspace("undisturbed")
    finished(train(workspace, short))
    return end_of(workspace)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_saves_and_says_so_with_its_exit_code(
    workspace, short, undisturbed, number
):
    process = train(workspace, short)
    wait_for_records(workspace, 4, process)
    process.send_signal(number)
    run = running.finish(process)
    assert run.code == 75, str(run)
    name = signal.Signals(number).name
    assert re.search(rf"^stopped by {name}, epoch \d, after \d steps; the state is in .*", run.err)
    assert "Traceback" not in run.err
    run = finished(train(workspace, short))
    assert "going on after epoch" in run.out
    assert_same_end(workspace, undisturbed)


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(workspace, short, undisturbed):
    process = train(workspace, short)
    wait_for_records(workspace, 5, process)
    process.kill()
    process.communicate()
    sets = sorted((run_folder(workspace) / "sets").glob("*.json"))
    assert len(sets) in (2, 3)  # three when the kill came before the oldest had gone
    broken = sets[-1].with_suffix(".pdopt")
    data = bytearray(broken.read_bytes())
    data[len(data) // 2] ^= 255
    broken.write_bytes(data)
    run = finished(train(workspace, short))
    assert f"{sets[-1].stem} is damaged" in run.out and "trying the set before it" in run.out
    assert f"{sets[-2].stem}" in run.out
    assert_same_end(workspace, undisturbed)


def test_another_recipe_is_refused_with_what_differs(workspace, short):
    finished(train(workspace, short, "Global.epochs=2"))
    before = (run_folder(workspace) / "metrics.jsonl").read_bytes()
    run = running.finish(train(workspace, short, "Optimizer.lr.learning_rate=0.5"))
    assert run.code == 2
    assert run.err.count("\n") == 1 and "Optimizer.lr.learning_rate was 0.05, is 0.5" in run.err
    assert (run_folder(workspace) / "metrics.jsonl").read_bytes() == before


@LINUX
def test_a_killed_data_worker(workspace, short, undisturbed):
    workers = ("DataLoader.Train.loader.num_workers=1", "DataLoader.Train.loader.timeout=1")
    process = train(workspace, short, *workers)
    wait_for_records(workspace, 2, process)
    killed = kill_children(process.pid)
    run = running.finish(process)
    if killed and run.code:  # the worker may have given its last batch already
        assert run.code == 1, str(run)
        assert re.search(r"^error: data loading stopped.*: a worker process died", run.err, re.M)
        assert "Traceback" not in run.err
        finished(train(workspace, short, *workers))
    assert_same_end(workspace, undisturbed)


def kill_children(pid):
    children = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                if int(file.read().rpartition(")")[2].split()[1]) == pid:
                    children.append(int(name))
        except OSError:
            pass
    for child in children:
        os.kill(child, signal.SIGKILL)
    return children


def test_an_image_that_never_comes(workspace, short, undisturbed):
    """A pipe nobody writes to stands for a server that does not answer."""
    images = workspace / "dataset" / "digits"
    copy = workspace / "images"
    shutil.copytree(images / "train", copy / "train")
    lines = (images / "train_24.txt").read_text().splitlines()
    stalling = copy / lines[11].split()[0]
    content = stalling.read_bytes()
    stalling.unlink()
    os.mkfifo(stalling)
    argv = ("DataLoader.Train.dataset.image_root=images", "DataLoader.Train.loader.read_timeout=1")
    run = running.finish(train(workspace, short, *argv))
    assert run.code == 1, str(run)
    line = rf"^error: images/{lines[11].split()[0]}: expected an answer within 1 s, got none"
    assert re.search(line, run.err, re.M) and "Traceback" not in run.err
    stalling.unlink()
    stalling.write_bytes(content)
    finished(train(workspace, short, *argv))
    assert_same_end(workspace, undisturbed)


def test_a_loss_that_is_not_finite(workspace, short):
    argv = ("Optimizer.lr.learning_rate=1e30", "Global.update_freq=1")
    run = running.finish(train(workspace, short, *argv))
    assert run.code == 1
    assert re.search(r"^error: epoch \d, .*: expected .*finite", run.err, re.M)
    weights = run_folder(workspace) / "latest.pdparams"
    if weights.exists():
        state = load_paddle_state_dict(weights)
        assert all(np.isfinite(array).all() for array in state.values())


def mounts_are_allowed():
    if not sys.platform.startswith("linux") or shutil.which("unshare") is None:
        return False
    probe = ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"]
    return subprocess.run(probe, capture_output=True).returncode == 0


MOUNTS = pytest.mark.skipif(not mounts_are_allowed(), reason="needs the right to mount a tmpfs")


def run_mounted(workspace, short, script):
    """Run a shell script in mounts of its own; `train ARG...` in it is the training."""
    command = [sys.executable, running.TRAIN, "-c", short, "-o", *EPOCHS, *AUTO]
    function = f'train() {{ {" ".join(map(str, command))} "$@"; echo "exit $?"; }}\n'
    run = subprocess.run(
        ["unshare", "-m", "bash", "-c", function + script],
        cwd=workspace,
        env=running.environment(),
        capture_output=True,
        text=True,
        timeout=running.TIMEOUT,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run


@MOUNTS
def test_a_full_disk_during_a_save(workspace, short, undisturbed):
    """A set takes 28 MB: the second does not fit beside the first, and there is room later."""
    script = """
        mkdir output && mount -t tmpfs -o size=45m none output || exit 9
        train
        mount -o remount,size=400m output || exit 9
        train
        cp -r output kept"""
    run = run_mounted(workspace, short, script)
    assert re.findall(r"^exit (\d+)", run.stdout, re.M) == ["1", "0"]
    errors = [line for line in run.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert re.search(r"sets/save_\d+\.pd\w+: writing failed: No space left on device", errors[0])
    assert "Traceback" not in run.stderr
    assert "going on after epoch 0, step" in run.stdout
    (workspace / "output").rmdir()
    (workspace / "kept").rename(workspace / "output")
    assert_same_end(workspace, undisturbed)


@MOUNTS
def test_a_folder_that_becomes_read_only(workspace, short):
    script = """
        mkdir output && mount -t tmpfs none output || exit 9
        train Global.epochs=2
        mount -o remount,ro output || exit 9
        train"""
    run = run_mounted(workspace, short, script)
    assert re.findall(r"^exit (\d+)", run.stdout, re.M) == ["0", "2"]
    (error,) = [line for line in run.stderr.splitlines() if line.startswith("error:")]
    assert error.startswith("error: Global.output_dir: expected a folder that can be written, but")
    assert "Traceback" not in run.stderr


@MOUNTS
def test_too_little_shared_memory(workspace, short):
    script = """
        mount -t tmpfs -o size=64k none /dev/shm || exit 9
        train DataLoader.Train.loader.num_workers=1"""
    run = run_mounted(workspace, short, script)
    assert re.findall(r"^exit (\d+)", run.stdout, re.M) == ["1"]
    (error,) = re.findall(r"\berror: .*", run.stderr)  # after Paddle's own words
    assert "a worker process died, often for lack of memory or of space in /dev/shm" in error


@LINUX
def test_a_small_soak(tmp_path):
    script = running.ROOT / "scripts" / "soak.py"
    options = ("--kills", 4, "--inside-saves", 1, "--images", 48, "--epochs", 2, "--batch-size", 8)
    argv = (script, *options, "--longest-life", 2, "--json", "soak.json", "--work", "work")
    finished(running.start(tmp_path, *argv))
    result = json.loads((tmp_path / "soak.json").read_text())
    assert result["kills"] >= 4 and result["kills_inside_a_save"] >= 1 and result["rounds"] >= 1
    failures = ("unreadable_states", "lost_saves", "rounds_with_other_weights")
    assert [result[name] for name in (*failures, "rounds_with_other_records")] == [0] * 4
