"""Recipes as users have them, on photographs: ImageNet's, release/2.0's, PaddleClas's zoo."""

import json

import pytest
import running
import yaml

# One process, two images, two steps.
TINY = (
    "Global.max_steps=2",
    "Global.print_batch_step=1",
    "Global.device=cpu",
    "DataLoader.Train.sampler.batch_size=2",
    "DataLoader.Train.loader.num_workers=0",
    "DataLoader.Eval.loader.num_workers=0",
)


def assert_trained(workspace, arch, steps=2, samples=3):
    folder = workspace / "output" / arch
    assert len(running.losses(folder)) == steps
    assert running.records(folder, "eval")[0]["samples"] == samples
    return folder


@pytest.mark.parametrize(
    "arch",
    [
        "HarDNet68",
        pytest.param("HarDNet85", marks=pytest.mark.slow),
        pytest.param("HarDNet39_ds", marks=pytest.mark.slow),
        pytest.param("HarDNet68_ds", marks=pytest.mark.slow),
    ],
)
def test_imagenet_recipes_on_photographs(workspace, arch):
    recipe = running.CONFIGS / f"{arch}.yaml"
    running.succeeded(running.tool(workspace, "train", "-c", recipe, "-o", *TINY))
    folder = assert_trained(workspace, arch)
    assert 4 < running.losses(folder)[0] < 12  # about log(1000)


def test_release_2_0_recipe_with_its_own_overrides(workspace):
    """The schedule is left as it is; the network is the smallest one, for the test's speed."""
    overrides = ("ARCHITECTURE.name=HarDNet39_ds", "classes_num=1000", "use_gpu=False", "epochs=1")
    overrides += ("model_save_dir=saved", "print_interval=1", "TRAIN.num_workers=0")
    overrides += ("TRAIN.batch_size=4", "VALID.batch_size=2", "VALID.num_workers=0")
    recipe = running.CONFIGS / "HarDNet68_best_v2.yaml"
    argv = ("-c", recipe, "-o", *overrides)
    run = running.succeeded(running.tool(workspace, "train", *argv, "--json", "train.json"))
    assert "is of the release/2.0 schema; translated:" in run.out
    assert "TRAIN.batch_size -> DataLoader.Train.sampler: {" in run.out
    result = json.loads((workspace / "train.json").read_text())
    assert result["folder"] == "saved/HarDNet39_ds" and result["global_step"] == 2
    resolved = yaml.safe_load((workspace / "saved" / "HarDNet39_ds" / "config.yaml").read_text())
    assert resolved["DataLoader"]["Train"]["sampler"]["batch_size"] == 4
    weights = ("pretrained_model=saved/HarDNet39_ds/latest", "load_static_weights=False")
    argv = ("-c", recipe, "-o", *overrides, *weights, "--json", "eval.json")
    running.succeeded(running.tool(workspace, "eval", *argv))
    assert json.loads((workspace / "eval.json").read_text())["samples"] == 3


RESNET = """\
# global configs
Global:
  checkpoints: null
  pretrained_model: null
  output_dir: ./output/
  device: cpu
  save_interval: 1
  eval_during_train: True
  eval_interval: 1
  epochs: 1
  print_batch_step: 1
  use_visualdl: False
  # used for static mode and model export
  image_shape: [3, 64, 64]
  save_inference_dir: ./inference

# model architecture
Arch:
  name: ResNet18
  class_num: 1000

# loss function config for traing/eval process
Loss:
  Train:
    - CELoss:
        weight: 1.0
        epsilon: 0.1
  Eval:
    - CELoss:
        weight: 1.0

Optimizer:
  name: Momentum
  momentum: 0.9
  lr:
    name: Piecewise
    learning_rate: 0.1
    decay_epochs: [30, 60, 90]
    values: [0.1, 0.01, 0.001, 0.0001]
  regularizer:
    name: 'L2'
    coeff: 0.0001

# data loader for train and eval
DataLoader:
  Train:
    dataset:
      name: ImageNetDataset
      image_root: ./dataset/ILSVRC2012/
      cls_label_path: ./dataset/ILSVRC2012/train_list.txt
      transform_ops:
        - DecodeImage:
            to_rgb: True
            channel_first: False
        - RandCropImage:
            size: 64
        - RandFlipImage:
            flip_code: 1
        - NormalizeImage:
            scale: 1.0/255.0
            mean: [0.485, 0.456, 0.406]
            std: [0.229, 0.224, 0.225]
            order: ''

    sampler:
      name: DistributedBatchSampler
      batch_size: 3
      drop_last: False
      shuffle: True
    loader:
      num_workers: 2
      use_shared_memory: True

  Eval:
    dataset:
      name: ImageNetDataset
      image_root: ./dataset/ILSVRC2012/
      cls_label_path: ./dataset/ILSVRC2012/val_list.txt
      transform_ops:
        - DecodeImage:
            to_rgb: True
            channel_first: False
        - ResizeImage:
            resize_short: 72
        - CropImage:
            size: 64
        - NormalizeImage:
            scale: 1.0/255.0
            mean: [0.485, 0.456, 0.406]
            std: [0.229, 0.224, 0.225]
            order: ''
    sampler:
      name: DistributedBatchSampler
      batch_size: 64
      drop_last: False
      shuffle: False
    loader:
      num_workers: 2
      use_shared_memory: True

Metric:
  Train:
    - TopkAcc:
        topk: [1, 5]
  Eval:
    - TopkAcc:
        topk: [1, 5]
"""


@pytest.mark.zoo
def test_a_network_of_paddleclas_s_zoo(workspace):
    pytest.importorskip("paddleclas")
    (workspace / "ResNet18.yaml").write_text(RESNET)
    running.succeeded(running.tool(workspace, "train", "-c", "ResNet18.yaml"))
    assert_trained(workspace, "ResNet18")
