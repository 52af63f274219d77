"""Several processes: stopped, killed, diverging, and gone on with by another number of them.

The record of which samples each step saw is written by a wrapper around the tools themselves.
"""

import json
import os
import re
import signal
import textwrap
import time

import numpy as np
import pytest
import running

from ppcls.utils.pdparams import load_paddle_state_dict

TIMING = ("batch_cost", "reader_cost", "ips")
COMMON = ("Global.auto_resume=True", "Global.save_interval_steps=1", "Global.epochs=3")
# What differs by itself between one process and two: each sees its own share of a batch.
ALIKE = ("Arch.dropout=0",)
# Six steps an epoch, of four images each, and updates of two steps.
TWO = ("DataLoader.Train.sampler.batch_size=2", "Global.update_freq=2")


@pytest.fixture(scope="module")
def wrapper(tmp_path_factory):
    """A script that runs a tool, batch norm frozen, and writes `order.RANK.jsonl`.

    `STOP_AFTER=N` sends rank 0 a SIGTERM in step N; `DIVERGE_AT=N` changes a weight of rank 1.
    """
    path = tmp_path_factory.mktemp("wrapper") / "wrapped.py"
    path.write_text(
        textwrap.dedent(f"""\
            import json, os, runpy, signal, sys
            sys.path[:0] = {running.PYTHONPATH!r}
            from ppcls.utils import distributed, runtime
            runtime.import_paddle()
            import frozen_norm
            from ppcls.engine.trainer import Trainer

            if "FROZEN" in os.environ:
                frozen_norm.freeze()
            step = Trainer.train_step
            rank = distributed.rank()

            def recorded(self, batch, group, epoch, number):
                with open(f"order.{{rank}}.jsonl", "a") as file:
                    place = [epoch, number, self.progress.global_step]
                    file.write(json.dumps([*place, batch.indices.tolist()]) + "\\n")
                done = self.progress.global_step + 1
                if done == int(os.environ.get("DIVERGE_AT", -1)) and rank == 1:
                    weight = self.model.parameters()[0]
                    weight.set_value(weight + 1e-3)
                result = step(self, batch, group, epoch, number)
                if done == int(os.environ.get("STOP_AFTER", -1)) and rank == 0:
                    os.kill(os.getpid(), signal.SIGTERM)
                return result

            Trainer.train_step = recorded
            sys.argv = sys.argv[1:]
            runpy.run_path(sys.argv[0], run_name="__main__")
            """)
    )
    return path


def start(workspace, wrapper, short, processes, *overrides, **variables):
    argv = [wrapper, running.TRAIN, "-c", short, "-o", *COMMON, *overrides]
    if processes > 1:
        options = ("--nproc_per_node", processes, "--master", f"127.0.0.1:{running.free_port()}")
        argv = [*running.launcher(*options), *argv]
    return running.start(workspace, *argv, variables={k: str(v) for k, v in variables.items()})


def run_folder(workspace):
    return workspace / "output" / "HarDNet39_ds"


def records(workspace):
    lines = map(json.loads, (run_folder(workspace) / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in TIMING} for line in lines]


def weights(workspace):
    return load_paddle_state_dict(run_folder(workspace) / "latest.pdparams")


def samples(workspace, processes):
    """Per step in order: (epoch, step, samples of all ranks). Clears the record."""
    ranks = []
    for rank in range(processes):
        path = workspace / f"order.{rank}.jsonl"
        ranks.append([json.loads(line) for line in path.read_text().splitlines()])
        path.unlink()
    return [
        (rows[0][0], rows[0][1], sum((row[3] for row in rows), []))
        for rows in zip(*ranks, strict=True)
    ]


def test_on_one_process_then_two_then_one(make_workspace, wrapper, short):
    """The same samples in the same order, each once per epoch; sums are rounded differently."""
    whole, parts = make_workspace("whole"), make_workspace("parts")
    running.succeeded(running.finish(start(whole, wrapper, short, 1, *ALIKE, FROZEN=1)))

    seen = []
    for processes, stop in ((1, 2), (2, 5), (1, -1)):
        process = start(parts, wrapper, short, processes, *ALIKE, FROZEN=1, STOP_AFTER=stop)
        run = running.finish(process)
        assert (run.code == 0) == (stop < 0), str(run)
        seen += samples(parts, processes)
        assert ("2 process(es) share the 8 images of a step" in run.out) == (processes == 2)
    assert seen == samples(whole, 1)
    for epoch in range(3):
        assert sorted(sum((row[2] for row in seen if row[0] == epoch), [])) == list(range(24))
    losses = [
        [record["loss"] for record in records(folder) if record["mode"] == "train"]
        for folder in (whole, parts)
    ]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    expected = weights(whole)
    for name, array in weights(parts).items():
        np.testing.assert_allclose(array, expected[name], rtol=0, atol=1e-4, err_msg=name)


@pytest.fixture(scope="module")
def undisturbed(make_workspace, wrapper, short):
    workspace = make_workspace("undisturbed")
    running.succeeded(running.finish(start(workspace, wrapper, short, 2, *TWO)))
    return weights(workspace), records(workspace)


def assert_same_end(workspace, expected):
    for name, array in weights(workspace).items():
        np.testing.assert_array_equal(array, expected[0][name], name)
    assert records(workspace) == expected[1]


@pytest.mark.slow
def test_averages_and_a_part_that_joins_later(make_workspace, wrapper, short):
    """Ranks keep one set of weights and averages, and stop and go on around the release too."""
    recipe = ("EMA.decay=0.9", "Global.freeze=[backbone]", "Global.unfreeze_epoch=1")
    options = (*TWO, *recipe, "Global.check_ranks_interval=1")
    whole, parts = make_workspace("whole"), make_workspace("parts")
    running.succeeded(running.finish(start(whole, wrapper, short, 2, *options)))
    for stop in (6, 9, -1):
        run = running.finish(start(parts, wrapper, short, 2, *options, STOP_AFTER=stop))
        assert (run.code == 0) == (stop < 0), str(run)
    assert_same_end(parts, (weights(whole), records(whole)))
    averages = load_paddle_state_dict(run_folder(whole) / "latest.ema.pdparams")
    found = load_paddle_state_dict(run_folder(parts) / "latest.ema.pdparams")
    for name, array in averages.items():
        np.testing.assert_array_equal(found[name], array, name)


def test_a_signal_to_one_rank_stops_all_at_the_same_step(workspace, wrapper, short, undisturbed):
    """Here inside an update of two steps, each rank with statistics of its own."""
    process = start(workspace, wrapper, short, 2, *TWO, STOP_AFTER=8)
    run = running.finish(process)
    assert run.code != 0
    logs = [(workspace / "log" / f"workerlog.{rank}").read_text() for rank in range(2)]
    assert "stopped by SIGTERM, epoch 2, after 3 steps" in logs[0]
    assert "stopped by a signal to another rank, epoch 2, after 3 steps" in logs[1]
    process = start(workspace, wrapper, short, 2, *TWO)
    running.succeeded(running.finish(process))
    assert_same_end(workspace, undisturbed)


def test_a_killed_rank_ends_the_job_soon_and_a_restart_goes_on(
    workspace, wrapper, short, undisturbed
):
    argv = [wrapper, running.TRAIN, "-c", short, "-o", *COMMON, *TWO]
    port = running.free_port()
    launch = running.launcher("--nproc_per_node", 2, "--master", f"127.0.0.1:{port}")
    script = running.ROOT / "scripts" / "train_supervised.sh"
    process = running.start_shell(
        workspace, "bash", script, "--backoff", 0, "--", running.PYTHON, *launch, *argv
    )
    kill_rank_one(workspace)
    run = running.finish(process)
    assert run.code == 0, str(run)
    assert "restart 1 of 10" in run.err and "done" in run.err
    assert_same_end(workspace, undisturbed)


def kill_rank_one(workspace):
    """Once the job has trained for some steps."""
    path, end = run_folder(workspace) / "metrics.jsonl", time.monotonic() + running.TIMEOUT
    while not (path.exists() and path.read_text().count("\n") >= 3):
        assert time.monotonic() < end
        time.sleep(0.01)
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/environ", "rb") as file:
                environment = file.read()
            folder = os.readlink(f"/proc/{name}/cwd")
            if b"PADDLE_TRAINER_ID=1\0" in environment and folder == str(workspace):
                os.kill(int(name), signal.SIGKILL)
                return
        except OSError:
            continue
    raise AssertionError("found no rank 1")


def test_ranks_whose_weights_differ_stop_the_run(workspace, wrapper, short):
    process = start(workspace, wrapper, short, 2, "Global.check_ranks_interval=2", DIVERGE_AT=3)
    run = running.finish(process)
    assert run.code != 0
    log = (run_folder(workspace) / "train.log").read_text()
    line = r"error: rank \d: epoch \d, after \d steps: expected the same weights on all 2 ranks, "
    assert re.search(line + r"found different ones in \d+ parameters, first base\.0\.conv", log)
