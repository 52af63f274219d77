"""scripts/finetune_cifar100.py on a stand-in for CIFAR-100."""

import contextlib
import dataclasses
import importlib
import io
import json
import logging
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from ppcls.data.datasets import Cifar100
from ppcls.data.sampler import SampleKey
from ppcls.utils.pdparams import load_paddle_file, load_paddle_state_dict

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "scripts"
RECIPE = ROOT / "configs" / "HarDNet" / "HarDNet68_cifar100.yaml"
TRAIN_IMAGES, TEST_IMAGES = 100, 100
SMALL = ["--arch", "hardnet39ds", "--weights", "none", "--image-size", "32", "--workers", "0"]
SMALL += ["--batch-size", "34", "--lr", "0.02"]
THREE_EPOCHS = ["--epochs", "3", "--freeze-backbone", "1"]


def script(name):
    """A module of scripts/, which its neighbours import by its plain name."""
    path = list(sys.path)
    sys.path.insert(0, str(SCRIPTS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path[:] = path


@pytest.fixture(scope="module")
def finetune():
    return script("finetune_cifar100")


def run(module, *argv, code=0):
    """Run a script's main; return what it printed."""
    logging.getLogger("ppcls").handlers.clear()  # they hold the output of an earlier run
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        found = module.main([str(word) for word in argv])
    assert found == code, text.getvalue()[-3000:]
    return text.getvalue()


def make_archive(path, per_digit=1):
    pytest.importorskip("sklearn")
    limits = ["--train-per-digit", per_digit, "--test-per-digit", 1]
    run(script("make_digits_cifar100"), path, *limits)
    return path


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return make_archive(tmp_path_factory.mktemp("cifar") / "digits.tar.gz")


@pytest.fixture(scope="module")
def whole(finetune, archive, tmp_path_factory):
    """A run of three epochs, the first of which trains the head alone, with its result."""
    folder = tmp_path_factory.mktemp("whole")
    options = ["--data", archive, *THREE_EPOCHS, "--json", folder / "r.json"]
    log = run(finetune, *SMALL, *options, "--output", folder)
    return folder / "HarDNet39_ds", json.loads((folder / "r.json").read_text()), log


# The archive


def test_digits_archive_is_balanced_and_halves_share_no_picture(archive, tmp_path):
    halves = {mode: Cifar100(str(archive), [], mode=mode) for mode in ("train", "test")}
    for dataset, images in zip(halves.values(), (TRAIN_IMAGES, TEST_IMAGES), strict=True):
        assert len(dataset) == images
        assert np.bincount(dataset.labels).tolist() == [images // 100] * 100
    rows = {mode: {image.tobytes() for image in d.images} for mode, d in halves.items()}
    assert len(rows["train"]) == TRAIN_IMAGES and not rows["train"] & rows["test"]
    assert halves["train"].class_names[17] == "one black on green"
    assert make_archive(tmp_path / "again.tar.gz").read_bytes() == archive.read_bytes()


# The script


def test_finetune_result(whole):
    folder, result, log = whole
    assert result["samples"] == TEST_IMAGES and result["epochs"] == 3
    assert 0 <= result["top1"] <= result["top5"] <= 1
    lines = re.findall(r"\[Eval\]\[Epoch (\d)\]\[Avg\]top1: ([\d.]+)", log)
    assert [int(epoch) for epoch, _ in lines] == [1, 2, 3]
    assert float(lines[-1][1]) == pytest.approx(result["top1"], abs=1e-5)
    assert re.search(r"\[Train\]\[Epoch 3/3\]\[Iter: 2/3\]lr: .*ips: .* samples/s, eta: 0 s", log)
    assert "Warning" not in log
    names = sorted(path.name for path in folder.iterdir())
    tags, suffixes = ("best_model", "latest"), ("json", "pdopt", "pdparams", "pdstates")
    assert names == [*(f"{tag}.{suffix}" for tag in tags for suffix in suffixes), "sets"]


@pytest.mark.parametrize("epoch", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_finetune_stopped_and_resumed_ends_at_the_same_place(
    whole, finetune, archive, tmp_path, monkeypatch, epoch
):
    """Epoch 1 is the last of the head alone."""
    from ppcls.engine import callbacks

    class StoppingSave(callbacks.Save):
        def on_eval_end(self, logs=None):
            super().on_eval_end(logs)
            if self.progress.epoch == epoch:
                raise KeyboardInterrupt

    options = [*SMALL, "--data", archive, *THREE_EPOCHS, "--output", tmp_path, "--resume"]
    with monkeypatch.context() as patched:
        patched.setattr(callbacks, "Save", StoppingSave)
        run(finetune, *options, code=130)
    log = run(finetune, *options, "--json", tmp_path / "r.json")
    assert "[Epoch 3/3]" in log and f"[Epoch {epoch}/3]" not in log
    folder, result, _ = whole
    again = json.loads((tmp_path / "r.json").read_text())
    ignored = {"seconds": 0, "folder": ""}
    assert {**again, **ignored} == {**result, **ignored}
    assert_same_run(folder, tmp_path / "HarDNet39_ds")


def assert_same_run(first, second):
    for suffix in (".pdparams", ".pdopt"):
        one, two = (load_paddle_file(folder / f"latest{suffix}") for folder in (first, second))
        assert len(one) == len(two)
        # Paddle counts layers in the names of the optimizer's state.
        for name, other in zip(one, two, strict=True):
            np.testing.assert_array_equal(one[name], two[other], name)


def test_finetune_resumes_nothing_to_do(whole, finetune, archive):
    folder, result, _ = whole
    options = [*SMALL, "--data", archive, *THREE_EPOCHS, "--output", folder.parent, "--resume"]
    log = run(finetune, *options, "--json", folder.parent / "again.json")
    again = json.loads((folder.parent / "again.json").read_text())
    assert "[Train]" not in log
    assert {**again, "seconds": 0} == {**result, "seconds": 0}


def test_finetune_evaluates_the_saved_file_to_the_same_number(whole, finetune, archive, tmp_path):
    folder, result, _ = whole
    options = [*SMALL, "--data", archive, "--evaluate", "--json", tmp_path / "e.json"]
    for tag, top1 in (("latest", result["top1"]), ("best_model", result["best_top1"])):
        run(finetune, *options, "--weights", folder / tag)
        assert json.loads((tmp_path / "e.json").read_text())["top1"] == top1


def test_finetune_frozen_backbone_stays(finetune, archive, tmp_path):
    options = [*SMALL, "--data", archive, "--epochs", 1, "--freeze-backbone", 1]
    run(finetune, *options, "--output", tmp_path)
    found = load_paddle_state_dict(tmp_path / "HarDNet39_ds" / "latest.pdparams")
    args = finetune.make_parser().parse_args(SMALL)
    before = finetune.make_network(args, "HarDNet39_ds", None).state_dict()
    changed = [name for name in before if not np.array_equal(before[name].numpy(), found[name])]
    assert changed == ["base.14.3.weight", "base.14.3.bias"]


def test_finetune_recipe_has_the_scripts_transforms(finetune):
    recipe = yaml.safe_load(RECIPE.read_text())
    for phase, training in (("Train", True), ("Eval", False)):
        ops = recipe["DataLoader"][phase]["dataset"]["transform_ops"]
        assert ops == finetune.transform_ops(224, training=training)
    args = finetune.make_parser().parse_args([])
    assert recipe["Global"]["epochs"] == args.epochs
    assert recipe["Optimizer"]["lr"]["learning_rate"] == args.lr
    assert recipe["Optimizer"]["regularizer"]["coeff"] == args.weight_decay
    base = yaml.safe_load((RECIPE.parent / "_base_" / "imagenet.yaml").read_text())
    assert base["DataLoader"]["Train"]["sampler"]["batch_size"] == args.batch_size


@pytest.mark.parametrize("size", [32, 224, 160])
def test_finetune_crops_move_and_are_not_resized(finetune, archive, size):
    dataset = Cifar100(str(archive), finetune.transform_ops(size, training=True)[:2])
    plain = Cifar100(str(archive), finetune.transform_ops(size, training=False)[:1])
    larger = plain[0].image
    places = set()
    for epoch in range(12):
        part = dataset.load(SampleKey(epoch, 0)).image
        assert part.shape == (3, size, size)
        limit = larger.shape[1] - size + 1
        places |= {
            (y, x)
            for y in range(limit)
            for x in range(limit)
            if np.array_equal(part, larger[:, y : y + size, x : x + size])
        }
    assert len(places) >= 5


def test_finetune_mistakes_are_one_line(finetune, archive, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for options, words in (
        (["--data", "missing.tar.gz"], "missing.tar.gz: no such file; download https://www.cs.tor"),
        (["--arch", "HarDNet86", "--data", archive], "did you mean 'HarDNet85'"),
        (["--epochs", 0], "--epochs: expected 1 or more, got 0"),
        (["--evaluate", "--data", archive], "--evaluate: expected --weights of a network"),
        (["--data", archive, "--weights", "none", "--amp", "--device", "cpu"], "expected a GPU"),
        (["--data", archive, "--weights", "nowhere.pth"], "nowhere.pth: no such weight file"),
    ):
        log = run(finetune, *options, code=2)
        errors = [line for line in log.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and words in errors[0] and "Traceback" not in log


def test_finetune_writes_visualdl_scalars(finetune, archive, tmp_path):
    pytest.importorskip("visualdl")
    options = ["--data", archive, "--epochs", 1, "--visualdl", "--patience", 1]
    run(finetune, *SMALL, *options, "--output", tmp_path)
    assert list((tmp_path / "HarDNet39_ds" / "vdl").glob("vdlrecords*"))


def start(folder, path, *argv, launcher=()):
    """Run a script as users do, from another folder."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("PADDLE_", "OMP_"))}
    finished = subprocess.run(
        [sys.executable, *launcher, str(path), *map(str, argv)],
        cwd=folder,
        env=variables | {"PPCLS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, (finished.stdout + finished.stderr)[-3000:]


@pytest.mark.slow
def test_finetune_in_two_processes(finetune, archive, tmp_path):
    """What two processes save is what one process evaluates."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        master = f"127.0.0.1:{probe.getsockname()[1]}"
    launcher = ["-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--master", master]
    options = [*SMALL, "--data", archive, "--epochs", 2, "--freeze-backbone", 1]
    path = SCRIPTS / "finetune_cifar100.py"
    start(tmp_path, path, *options, "--output", ".", "--json", "r.json", launcher=launcher)
    result = json.loads((tmp_path / "r.json").read_text())
    options = [*SMALL, "--data", archive, "--evaluate", "--json", tmp_path / "e.json"]
    run(finetune, *options, "--weights", tmp_path / "HarDNet39_ds" / "latest")
    found = json.loads((tmp_path / "e.json").read_text())
    assert (found["top1"], found["top5"]) == (result["top1"], result["top5"])


@pytest.mark.slow
def test_finetune_recipe_evaluates_what_the_script_saved(archive, tmp_path):
    options = ["--arch", "hardnet39ds", "--weights", "none", "--image-size", "224", "--epochs", 1]
    options += ["--data", archive, "--output", ".", "--json", "r.json"]
    start(tmp_path, SCRIPTS / "finetune_cifar100.py", *options)
    overrides = ["Arch.name=HarDNet39_ds", f"DataLoader.Eval.dataset.data_file={archive}"]
    overrides += ["Global.pretrained_model=HarDNet39_ds/latest"]
    overrides += ["DataLoader.Eval.loader.num_workers=0"]
    tool = ROOT / "tools" / "eval.py"
    start(tmp_path, tool, "-c", RECIPE, "-o", *overrides, "--json", "e.json")
    ours = json.loads((tmp_path / "r.json").read_text())
    theirs = json.loads((tmp_path / "e.json").read_text())
    assert (ours["top1"], ours["top5"]) == (theirs["top1"], theirs["top5"])


@pytest.mark.slow
def test_finetune_learns(finetune, tmp_path):
    archive = make_archive(tmp_path / "digits.tar.gz", per_digit=20)
    options = ["--arch", "hardnet39ds", "--weights", "none", "--image-size", "32"]
    options += ["--batch-size", 50, "--lr", 0.05, "--epochs", 4, "--workers", 0]
    run(finetune, *options, "--data", archive, "--output", tmp_path, "--json", tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["top5"] > 0.3


def test_early_stopping_goes_on_waiting_after_a_resume():
    from ppcls.engine.callbacks import EarlyStopping
    from ppcls.engine.checkpoint import Progress

    class Model:
        stop_training = False

    progress = Progress(epoch=5, best_metric=0.5, best_epoch=3)
    stopping = EarlyStopping(dataclasses.replace(progress), patience=3)
    stopping.set_model(Model())
    stopping.on_train_begin()
    stopping.on_eval_end({"acc_top1": 0.4})
    assert stopping.model.stop_training
    stopping = EarlyStopping(progress, patience=3)
    stopping.set_model(Model())
    stopping.on_train_begin()
    stopping.on_eval_end({"acc_top1": 0.6})
    assert not stopping.model.stop_training
