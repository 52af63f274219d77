"""Two processes, and two launchers as if on two hosts: CPU, gloo.

The record of which samples each step saw is written by a wrapper around the tools themselves.
"""

import json
import re
import textwrap

import numpy as np
import pytest
import running

from ppcls.utils.pdparams import load_paddle_state_dict


@pytest.fixture(scope="module")
def recorder(tmp_path_factory):
    """A script that runs a tool and writes `order.RANK.jsonl`: kind of sampler, indices."""
    path = tmp_path_factory.mktemp("recorder") / "record.py"
    path.write_text(
        textwrap.dedent(f"""\
            import json, runpy, sys
            sys.path[:0] = {running.PYTHONPATH!r}
            from ppcls.utils import distributed, runtime
            runtime.import_paddle()
            from ppcls.data.loader import Loader
            original = Loader.__iter__

            def recorded(self):
                kind = type(self.sampler).__name__
                with open(f"order.{{distributed.rank()}}.jsonl", "a") as file:
                    for batch in original(self):
                        file.write(json.dumps([kind, batch.indices.tolist()]) + "\\n")
                        yield batch

            Loader.__iter__ = recorded
            sys.argv = sys.argv[1:]
            runpy.run_path(sys.argv[0], run_name="__main__")
            """)
    )
    return path


def order(folder, rank, kind):
    lines = (folder / f"order.{rank}.jsonl").read_text().splitlines()
    return [indices for name, indices in map(json.loads, lines) if name == kind]


def run_folder(workspace):
    return workspace / "output" / "HarDNet39_ds"


# 17 samples in batches of 8: of the last batch the second process gets nothing.
COMMON = ("Global.seed=5", "DataLoader.Train.dataset.cls_label_path=train_17.txt")
STATIC = "Global.to_static=True"
HALF = (*COMMON, "DataLoader.Train.sampler.batch_size=4", "DataLoader.Eval.sampler.batch_size=2")


def prepared(workspace):
    lines = (workspace / "dataset/digits/train_24.txt").read_text().splitlines()
    (workspace / "train_17.txt").write_text("\n".join(lines[:17]))
    return workspace


def on_two(*argv):
    options = ("--nproc_per_node", 2, "--master", f"127.0.0.1:{running.free_port()}")
    return [[*running.launcher(*options), *argv]]


def on_two_hosts(*argv):
    options = ("--nproc_per_node", 1, "--master", f"127.0.0.1:{running.free_port()}")
    return [
        [*running.launcher("--nnodes", 2, *options), "--rank", n, "--log_dir", f"log{n}", *argv]
        for n in range(2)
    ]


@pytest.fixture(scope="module")
def started(make_workspace, short, recorder, frozen, weights):
    """Name -> (folder, its processes). All at once: launchers mostly sleep."""

    def training(name, how, overrides, script=recorder):
        folder = prepared(make_workspace(name))
        argv = (script, running.TRAIN, "-c", short, "-o", *overrides, "--json", "train.json")
        return folder, [running.start(folder, *command) for command in how(*argv)]

    def evaluation(name, how, size):
        folder = make_workspace(name)
        list_file = f"DataLoader.Eval.dataset.cls_label_path=dataset/digits/val_{size}.txt"
        overrides = ("-o", f"Global.pretrained_model={weights}", list_file)
        argv = (running.EVAL, "-c", short, *overrides, "--json", "eval.json")
        return folder, [running.start(folder, *command) for command in how(*argv)]

    def alone(*argv):
        return [argv]

    twice = ("Global.update_freq=2", "Arch.dropout=0")
    missing = "DataLoader.Train.dataset.cls_label_path=nowhere.txt"
    return {
        "two": training("two", on_two, HALF),
        "two_hosts": training("two_hosts", on_two_hosts, HALF),
        "mistake": training("mistake", on_two, (missing,)),
        "both19": evaluation("both19", on_two, 19),
        "both1": evaluation("both1", on_two, 1),
        "one": training("one", alone, COMMON),
        "frozen_one": training("frozen_one", alone, (*COMMON, *twice), frozen),
        "frozen_two": training("frozen_two", on_two, (*HALF, *twice), frozen),
        "static_two": training("static_two", on_two, (*HALF, *twice, STATIC), frozen),
        "single19": evaluation("single19", alone, 19),
        "single1": evaluation("single1", alone, 1),
    }


@pytest.fixture(scope="module")
def finished(started):
    """Name -> (folder, finished runs)."""
    return {
        name: (folder, [running.finish(process) for process in processes])
        for name, (folder, processes) in started.items()
    }


@pytest.fixture(scope="module")
def folder_of(finished):
    """Return a function: the folder of a run, which must have succeeded."""

    def folder_of_run(name):
        folder, runs = finished[name]
        for run in runs:
            running.succeeded(run)
        return folder

    return folder_of_run


@pytest.fixture
def one(folder_of):
    return folder_of("one")


@pytest.fixture
def two(folder_of):
    return folder_of("two")


@pytest.fixture
def two_hosts(folder_of):
    return folder_of("two_hosts")


@pytest.fixture(params=["two", "two_hosts"])
def many(request, folder_of):
    return folder_of(request.param)


def test_each_step_sees_the_same_samples(one, many):
    first, second = (order(many, rank, "GlobalBatchSampler") for rank in range(2))
    joined = [a + b for a, b in zip(first, second, strict=True)]
    assert joined == order(one, 0, "GlobalBatchSampler")
    assert [len(batch) for batch in joined] == [8, 8, 1]
    assert [len(batch) for batch in first] == [4, 4, 1]
    assert sorted(sum(joined, [])) == list(range(17))


def test_each_image_is_evaluated_once(one, many):
    seen = [order(many, rank, "EvalSampler") for rank in range(2)]
    assert sorted(sum(sum(seen, []), [])) == list(range(19))
    assert running.records(run_folder(many), "eval")[0]["samples"] == 19


def test_losses_are_close_to_those_of_one_process(one, many):
    """Batch norm sees half the batch on each rank, so equality is not to be had."""
    single, several = (running.records(run_folder(folder), "train") for folder in (one, many))
    assert [r["global_step"] for r in several] == [r["global_step"] for r in single]
    assert [r["lr"] for r in several] == [r["lr"] for r in single]
    assert several[0]["loss"] == pytest.approx(single[0]["loss"], abs=0.5)


def test_gradients_are_averaged_over_the_samples_of_all_ranks(folder_of):
    """Also of two accumulated steps, and of a last batch of which one rank has nothing."""
    states = [
        load_paddle_state_dict(run_folder(folder_of(name)) / "latest.pdparams")
        for name in ("frozen_one", "frozen_two")
    ]
    for name, value in states[0].items():
        np.testing.assert_allclose(states[1][name], value, rtol=0, atol=1e-6, err_msg=name)


def test_a_compiled_network_trains_with_an_idle_rank(folder_of):
    """Other operators round otherwise, and batch norms of four samples would make it large."""
    compiled, plain = (
        running.losses(run_folder(folder_of(name))) for name in ("static_two", "frozen_two")
    )
    assert compiled == pytest.approx(plain, rel=1e-3)


def test_two_hosts_compute_what_two_processes_do(two, two_hosts):
    assert running.losses(run_folder(two)) == running.losses(run_folder(two_hosts))


def test_files_are_written_once(many, one):
    names = {path.name for path in run_folder(many).iterdir()}
    assert names == {path.name for path in run_folder(one).iterdir()}
    assert len(running.records(run_folder(many), "train")) == 3
    assert len(running.records(run_folder(many), "eval")) == 1
    log = (run_folder(many) / "train.log").read_text()
    assert log.count("[Eval][Epoch 1][Avg]") == log.count("[Train][Epoch 1/1][Avg]") == 1


def test_only_the_first_process_speaks(two):
    first, second = ((two / "log" / f"workerlog.{rank}").read_text() for rank in range(2))
    assert "[Train][Epoch 1/1][Iter: 0/3]" in first and "process 0 of 2" in first
    assert "ppcls INFO" not in second


def test_the_summary_is_the_job_s(two):
    summary = json.loads((two / "train.json").read_text())
    best = running.records(run_folder(two), "eval")[0]["top1"]
    assert summary["global_step"] == 3 and summary["best_metric"] == best


@pytest.mark.parametrize("size", [19, 1])
def test_evaluation_counts_what_one_process_counts(folder_of, size):
    """With one image, the second process has none."""
    single, both = (
        json.loads((folder_of(f"{name}{size}") / "eval.json").read_text())
        for name in ("single", "both")
    )
    for key in ("samples", "skipped", "correct", "top1", "top5"):
        assert single[key] == both[key], key
    assert single["samples"] == size
    # Batches are cut differently, and float32 sums round differently.
    assert single["loss"] == pytest.approx(both["loss"], rel=1e-5)


def test_a_mistake_ends_every_process_with_one_line_each(finished):
    folder, (run,) = finished["mistake"]
    assert run.code != 0
    first = (folder / "log" / "workerlog.0").read_text()
    assert (
        len(re.findall(r"^error: rank 0: nowhere\.txt: cannot read the list file", first, re.M))
        == 1
    )
    for rank in range(2):
        assert "Traceback" not in (folder / "log" / f"workerlog.{rank}").read_text()
    assert not (folder / "output").exists()
