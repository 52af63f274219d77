"""The main path in a minute: for Paddle's oldest and newest supported version.

Needs pytest and the project's own dependencies only: the images are made here.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image

from ppcls.arch import create_model, list_models

ROOT = Path(__file__).parents[2]
CLASSES = ("blue", "green", "red")
RECIPE = """\
Global:
  device: cpu
  epochs: 2
  print_batch_step: 1
  image_shape: [3, 32, 32]
Arch:
  name: HarDNet39_ds
  class_num: 3
Loss:
  Train:
    - CELoss:
        weight: 1.0
Optimizer:
  name: Momentum
  momentum: 0.9
  lr:
    name: Cosine
    learning_rate: 0.01
DataLoader:
  Train:
    dataset: &images
      name: ImageFolderDataset
      image_root: images
      transform_ops:
        - DecodeImage:
            backend: pil
        - NormalizeImage:
            scale: 1.0/255.0
            order: ''
    sampler:
      batch_size: 8
      shuffle: True
    loader:
      num_workers: 1
  Eval:
    dataset: *images
    sampler:
      batch_size: 4
    loader:
      num_workers: 0
Metric:
  Train:
    - TopkAcc:
        topk: [1, 2]
  Eval:
    - TopkAcc:
        topk: [1, 2]
"""


@pytest.mark.parametrize("name", list_models("HarDNet*"))
def test_networks(name):
    model = create_model(name, class_num=10)
    model.eval()
    with paddle.no_grad():
        logits = model(paddle.zeros([2, 3, 32, 32]))
    assert logits.shape == [2, 10] and bool(paddle.isfinite(logits).all())


def test_the_four_are_there():
    assert set(list_models()) >= {"HarDNet39_ds", "HarDNet68_ds", "HarDNet68", "HarDNet85"}


def start(folder, *argv):
    outer = ("PADDLE_", "OMP_")
    env = {key: value for key, value in os.environ.items() if not key.startswith(outer)}
    return subprocess.Popen(
        [sys.executable, *map(str, argv)],
        cwd=folder,
        env=env | {"PPCLS_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, f"{out[-3000:]}\n{err[-3000:]}"
    return out


def command(name, *overrides):
    json_file = f"{name}.json"
    argv = (ROOT / "tools" / f"{name}.py", "-c", "recipe.yaml", "--json", json_file)
    return (*argv, "-o", *overrides) if overrides else argv


def records(folder, mode):
    lines = (folder / "output" / "HarDNet39_ds" / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["mode"] == mode]


@pytest.fixture(scope="module")
def make_folder(tmp_path_factory):
    """Return a function that makes a folder with the recipe and 19 images of three colours."""

    def make(name):
        folder = tmp_path_factory.mktemp(name)
        (folder / "recipe.yaml").write_text(RECIPE)
        rng = np.random.default_rng(0)
        for number in range(19):
            channel = number % 3
            pixels = rng.integers(0, 128, (32, 32, 3), dtype=np.uint8)
            pixels[:, :, 2 - channel] += 100
            path = folder / "images" / CLASSES[channel] / f"{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
        return folder

    return make


@pytest.fixture(scope="module")
def whole(make_folder):
    """Two epochs of three steps in one run."""
    folder = make_folder("whole")
    finish(start(folder, *command("train")))
    return folder


def test_a_run(whole):
    steps = records(whole, "train")
    assert [step["global_step"] for step in steps] == [1, 2, 3, 4, 5, 6]
    assert all(np.isfinite(step["loss"]) for step in steps)
    assert [evaluation["samples"] for evaluation in records(whole, "eval")] == [19, 19]
    result = json.loads((whole / "train.json").read_text())
    assert result["epochs"] == 2 and result["global_step"] == 6


def test_evaluation_of_a_checkpoint(whole):
    overrides = ("Global.pretrained_model=output/HarDNet39_ds/latest",)
    finish(start(whole, *command("eval", *overrides)))
    result = json.loads((whole / "eval.json").read_text())
    last = records(whole, "eval")[-1]
    assert {key: result[key] for key in ("top1", "top2", "loss", "samples")} == {
        key: last[key] for key in ("top1", "top2", "loss", "samples")
    }


def test_a_resumed_run_is_the_same(make_folder, whole):
    folder = make_folder("resumed")
    finish(start(folder, *command("train", "Global.max_steps=3")))
    overrides = ("Global.checkpoints=output/HarDNet39_ds/latest",)
    assert "going on after epoch 1" in finish(start(folder, *command("train", *overrides)))
    losses = [step["loss"] for step in records(folder, "train")]
    assert losses == [step["loss"] for step in records(whole, "train")]


def test_classification(whole):
    overrides = (
        "Global.pretrained_model=output/HarDNet39_ds/best_model",
        "Infer.infer_imgs=images",
    )
    finish(start(whole, *command("infer", *overrides, "Infer.PostProcess.topk=3")))
    images = json.loads((whole / "infer.json").read_text())["images"]
    assert len(images) == 19
    assert all(sorted(image["class_ids"]) == [0, 1, 2] for image in images)


def test_two_processes(make_folder):
    folder = make_folder("two")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        master = f"127.0.0.1:{probe.getsockname()[1]}"
    launcher = ("-m", "paddle.distributed.launch", "--nproc_per_node", 2, "--master", master)
    overrides = ("Global.epochs=1", "DataLoader.Train.sampler.batch_size=4")
    finish(start(folder, *launcher, *command("train", *overrides)))
    assert [step["global_step"] for step in records(folder, "train")] == [1, 2, 3]
    assert records(folder, "eval")[0]["samples"] == 19


def test_a_mistake_is_one_line(make_folder):
    process = start(make_folder("mistake"), *command("train", "Global.epoch=1"))
    _, err = process.communicate(timeout=240)
    assert process.returncode == 2
    assert err.startswith("error: Global: unknown key 'epoch'; did you mean 'epochs'?"), err
    assert err.count("\n") == 1
