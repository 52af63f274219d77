"""Every recipe of the repository parses and builds, and a typo in it is found and named."""

import dataclasses
import io
import pickle
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest

from ppcls.arch import build_model
from ppcls.data.datasets import DATASETS
from ppcls.data.loader import build_eval_loader, build_train_loader
from ppcls.data.transforms import build_box_transforms, build_transforms
from ppcls.engine.build import Session, build_task
from ppcls.engine.config import load_recipe
from ppcls.engine.detection import DetectionTask
from ppcls.engine.distillation import check_models
from ppcls.engine.parts import parameters_by_part
from ppcls.engine.precision import Precision
from ppcls.loss import build_loss
from ppcls.metric import build_metric
from ppcls.metric.detection import build_detection_metrics
from ppcls.optimizer import build_optimizer, build_schedule
from ppcls.utils.errors import ConfigError

FOLDER = Path(__file__).parents[1] / "configs" / "HarDNet"
RECIPES = sorted(FOLDER.glob("*.yaml"))
CLASSIFIERS = [path for path in RECIPES if not path.stem.startswith("SSD")]
DETECTORS = [path for path in RECIPES if path.stem.startswith("SSD")]
NETWORKS = ("HarDNet39_ds", "HarDNet68", "HarDNet68_ds", "HarDNet85")

# PaddleClas 2.6's own recipe of HarDNet68, with the label smoothing many of its recipes have.
STOCK = """\
# global configs
Global:
  checkpoints: null
  pretrained_model: null
  output_dir: ./output/
  device: gpu
  save_interval: 1
  eval_during_train: True
  eval_interval: 1
  epochs: 120
  print_batch_step: 10
  use_visualdl: False
  # used for static mode and model export
  image_shape: [3, 224, 224]
  save_inference_dir: ./inference

# model architecture
Arch:
  name: HarDNet68
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
            size: 224
        - RandFlipImage:
            flip_code: 1
        - NormalizeImage:
            scale: 1.0/255.0
            mean: [0.485, 0.456, 0.406]
            std: [0.229, 0.224, 0.225]
            order: ''

    sampler:
      name: DistributedBatchSampler
      batch_size: 64
      drop_last: False
      shuffle: True
    loader:
      num_workers: 4
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
            resize_short: 256
        - CropImage:
            size: 224
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
      num_workers: 4
      use_shared_memory: True

Infer:
  infer_imgs: docs/images/inference_deployment/whl_demo.jpg
  batch_size: 10
  transforms:
    - DecodeImage:
        to_rgb: True
        channel_first: False
    - ResizeImage:
        resize_short: 256
    - CropImage:
        size: 224
    - NormalizeImage:
        scale: 1.0/255.0
        mean: [0.485, 0.456, 0.406]
        std: [0.229, 0.224, 0.225]
        order: ''
    - ToCHWImage:
  PostProcess:
    name: Topk
    topk: 5
    class_id_map_file: ppcls/utils/imagenet1k_label_list.txt

Metric:
  Train:
    - TopkAcc:
        topk: [1, 5]
  Eval:
    - TopkAcc:
        topk: [1, 5]
"""


@pytest.fixture
def data(tmp_path):
    """Return a function: overrides that point a recipe's data sets to ten images made up here."""
    (tmp_path / "list.txt").write_text("".join(f"{i}.png {i}\n" for i in range(10)))
    _write_cifar100(tmp_path / "cifar.tar.gz")
    files = {
        "ImageNetDataset": {"image_root": tmp_path, "cls_label_path": tmp_path / "list.txt"},
        "Cifar100": {"data_file": tmp_path / "cifar.tar.gz"},
        "ImageFolderDataset": {"image_root": tmp_path / "folder"},
    }
    for name in range(5):
        (tmp_path / "folder" / f"class{name}").mkdir(parents=True)
        for number in range(2):  # opened by nobody here
            (tmp_path / "folder" / f"class{name}" / f"{number}.png").touch()

    def overrides(path):
        sections = load(path).DataLoader
        is_repeated = sections.Train.sampler.name == "RASampler"
        few = ["DataLoader.Train.sampler.selected_round=0"] if is_repeated else []
        return few + [
            f"DataLoader.{phase}.dataset.{key}={file}"
            for phase in ("Train", "Eval")
            for key, file in files[getattr(sections, phase).dataset["name"]].items()
        ]

    return overrides


def _write_cifar100(path):
    half = {"data": np.zeros((10, 3072), np.uint8), "fine_labels": list(range(10))}
    members = {"train": half, "test": half, "meta": {"fine_label_names": ["name"] * 100}}
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(f"cifar-100-python/{name}")
            data = pickle.dumps(content)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def load(path, overrides=()):
    return load_recipe(path, overrides, 1)[0]


def build_all(recipe):
    """Build everything a recipe names; return the model and the two loaders."""
    build_loss(recipe.Loss.Train, "Loss.Train")
    build_loss(recipe.Loss.Eval, "Loss.Eval")
    build_metric(recipe.Metric.Train, "Metric.Train", recipe.class_num)
    build_metric(recipe.Metric.Eval, "Metric.Eval", recipe.class_num)
    sections = recipe.DataLoader
    class_num = recipe.class_num
    train = build_train_loader(sections.Train, "DataLoader.Train", class_num=class_num)
    evaluation = build_eval_loader(sections.Eval, "DataLoader.Eval", class_num=class_num)
    build_transforms(recipe.Infer.transforms, "Infer.transforms")
    epochs = recipe.Global.epochs
    lr = recipe.Optimizer["lr"]
    schedule = build_schedule(lr, "Optimizer.lr", epochs=epochs, steps_per_epoch=2)
    model = build_model({"Arch": {k: v for k, v in recipe.Arch.items() if k != "pretrained"}})
    parts = parameters_by_part(model)
    build_optimizer(recipe.Optimizer, "Optimizer", schedule=schedule, model=model, parts=parts)
    return model, train, evaluation


def test_there_are_recipes():
    assert {path.stem for path in RECIPES} >= {*NETWORKS, "HarDNet39_ds_digits"}


@pytest.mark.parametrize("path", CLASSIFIERS, ids=lambda path: path.stem)
def test_recipes_build(path, data):
    recipe = load(path, data(path))
    model, train, evaluation = build_all(recipe)
    assert type(model).__name__ == "HarDNet"
    assert len(train.dataset) == len(evaluation.dataset) == 10
    assert recipe.Global.device == "auto"
    if recipe.distillation is None:  # a teacher has weights to load
        build_task(Session(recipe, "cpu"), Precision(recipe.AMP, "cpu"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_resolved_recipe_read_again_is_the_same(path, tmp_path):
    recipe = load(path)
    (tmp_path / "resolved.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    assert load(tmp_path / "resolved.yaml").to_mapping() == recipe.to_mapping()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_start_with_a_comment_that_holds_their_command(path):
    text = path.read_text(encoding="utf-8")
    comment = text[: text.index("\n\n")]
    assert all(line.startswith("#") for line in comment.splitlines())
    assert f"tools/train.py -c configs/HarDNet/{path.name}" in comment


@pytest.mark.parametrize("path", DETECTORS, ids=lambda path: path.stem)
def test_detection_recipes_build(path):
    """All but the data sets, whose own transforms are built from their lists."""
    recipe = load(path)
    task = build_task(Session(recipe, "cpu"), Precision(recipe.AMP, "cpu"))
    assert isinstance(task, DetectionTask)
    assert build_detection_metrics(recipe.Metric.Eval, "Metric.Eval")
    for phase in ("Train", "Eval"):
        dataset = getattr(recipe.DataLoader, phase).dataset
        build_box_transforms(dataset["transform_ops"], f"{phase}.transform_ops")
        assert dataset["name"] in DATASETS
    size = recipe.Arch["size"]
    assert recipe.Global.image_shape == [3, size, size]
    schedule = build_schedule(
        recipe.Optimizer["lr"],
        "Optimizer.lr",
        epochs=recipe.Global.epochs,
        steps_per_epoch=2,
    )
    assert 0 < schedule.at(1) <= recipe.Optimizer["lr"]["learning_rate"]


@pytest.mark.parametrize("data", ["coco", "voc"])
def test_detection_recipes_are_the_official(data):
    for path in [p for p in DETECTORS if p.stem.endswith(data)]:
        recipe = load_recipe(path, (), 4)[0]
        epochs = {"coco": 150, "voc": 300}[data]
        assert recipe.Global.epochs == epochs
        assert recipe.DataLoader.Train.sampler.batch_size * 4 == 32
        section = recipe.Optimizer
        assert (section["name"], section["momentum"]) == ("Momentum", 0.9)
        assert not section.get("use_nesterov", False)
        assert section["regularizer"]["coeff"] == {"coco": 1e-4, "voc": 5e-4}[data]
        schedule = build_schedule(section["lr"], "lr", epochs=epochs, steps_per_epoch=10)
        rates = {0.0: 4e-3, 0.59: 4e-3, 0.61: 4e-4, 0.79: 4e-4, 0.81: 4e-5, 0.91: 4e-6}
        for part, rate in rates.items():
            assert schedule.at(round(part * epochs * 10)) == pytest.approx(rate)
        assert recipe.Arch["class_num"] == {"coco": 81, "voc": 21}[data]
        assert recipe.Arch["priors"] == data
        assert recipe.Infer.Detection.per_image == {"coco": 200, "voc": 300}[data]
    assert len([p for p in DETECTORS if p.stem.endswith(data)]) == 4


@pytest.mark.parametrize("name", [*NETWORKS, "HarDNet68_best_v2"])
def test_imagenet_recipes_are_the_author_s(name):
    recipe = load_recipe(FOLDER / f"{name}.yaml", (), 4)[0]
    optimizer = recipe.Optimizer
    assert recipe.Global.epochs == 150 and recipe.class_num == 1000
    assert recipe.DataLoader.Train.sampler.batch_size == 64
    assert optimizer["lr"] == {"name": "Cosine", "learning_rate": 0.05, "by_epoch": True}
    assert (optimizer["momentum"], optimizer["use_nesterov"]) == (0.9, True)
    assert optimizer["regularizer"] == {"name": "L2", "coeff": 6e-5}
    evaluation = recipe.DataLoader.Eval.dataset["transform_ops"]
    assert evaluation[1]["ResizeImage"]["backend"] == "pil"  # worth about a point of accuracy
    assert recipe.Infer.transforms[:-1] == evaluation


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("HarDNet68_ds_distill85", "HarDNet68_ds"),
        ("HarDNet39_ds_digits_distill", "HarDNet39_ds_digits"),
    ],
)
def test_a_distillation_is_the_student_s_recipe_with_a_teacher(name, plain):
    found, own = load(FOLDER / f"{name}.yaml"), load(FOLDER / f"{plain}.yaml")
    for phase in ("Train", "Eval"):
        loss = build_loss(getattr(found.Loss, phase), f"Loss.{phase}")
        metric = build_metric(getattr(found.Metric, phase), f"Metric.{phase}", found.class_num)
        check_models(found.distillation, loss, metric, phase)
    changed = dataclasses.replace(found, Loss=own.Loss, distillation=None, source=own.source)
    assert changed == own


def test_a2_is_the_paper_s():
    """Wightman et al., arXiv 2110.00476, table 2; warm-up and end of the schedule are timm's."""
    recipe = load_recipe(FOLDER / "HarDNet68_a2.yaml", (), 8)[0]
    assert recipe.Global.epochs == 300 and recipe.Arch["dropout"] == 0
    sampler = recipe.DataLoader.Train.sampler
    assert (sampler.batch_size * 8, sampler.name, sampler.num_repeats) == (2048, "RASampler", 3)
    section = recipe.Optimizer
    assert section["name"] == "Lamb" and "regularizer" not in section
    assert (section["weight_decay"], section["clip_norm_global"]) == (0.02, 1.0)
    schedule = build_schedule(section["lr"], "lr", epochs=300, steps_per_epoch=4)
    found = [schedule.at(step) for step in (0, 10, 20, 20 + 590)]
    assert found == pytest.approx([1e-6, 5e-3 / 2, 5e-3, 5e-3 / 2], rel=1e-3)
    loss = build_loss(recipe.Loss.Train, "Loss.Train").losses[0]
    assert (type(loss).__name__, loss.epsilon, loss.target_threshold) == ("BCELoss", 0, 0.2)
    train, evaluation = (
        {name: params for entry in phase.dataset["transform_ops"] for name, params in entry.items()}
        for phase in (recipe.DataLoader.Train, recipe.DataLoader.Eval)
    )
    assert train["TimmAutoAugment"]["config_str"] == "rand-m7-mstd0.5-inc1"
    assert list(train)[1:3] == ["RandCropImage", "RandFlipImage"] and len(train) == 5
    (mixing,) = recipe.DataLoader.Train.dataset["batch_transform_ops"]
    both = mixing["OpSampler"]
    assert both["MixupOperator"] == {"alpha": 0.1, "prob": 0.5}
    assert both["CutmixOperator"] == {"alpha": 1.0, "prob": 0.5}
    assert evaluation["CropImage"]["size"] == train["RandCropImage"]["size"] == 224
    assert evaluation["ResizeImage"]["resize_short"] == int(224 / 0.95)
    assert recipe.Infer.transforms[:-1] == recipe.DataLoader.Eval.dataset["transform_ops"]


TRAIN, EVAL = "DataLoader.Train", "DataLoader.Eval"
OPS = "dataset.transform_ops"

TYPOS = [
    ("Globl.epochs=1", "unknown section 'Globl'; did you mean 'Global'"),
    ("Global.epoch=1", "Global: unknown key 'epoch'; did you mean 'epochs'"),
    ("Global.print_batch_steps=1", "did you mean 'print_batch_step'"),
    ("AMP.use_amps=True", "AMP: unknown key 'use_amps'; did you mean 'use_amp'"),
    ("AMP.level=O3", "AMP.level: expected one of 'O0', 'O1', 'O2', got 'O3'"),
    ("Arch.name=HarDNet69", "unknown Arch 'HarDNet69'; did you mean 'HarDNet6"),
    ("Arch.class_nums=10", "Arch: unknown key 'class_nums'; did you mean 'class_num'"),
    ("AMP.custom_whitelist=[relu]", "'custom_whitelist'; did you mean 'custom_white_list'"),
    ("Distributed.comm_buffer=8", "unknown key 'comm_buffer'; did you mean 'comm_buffer_size'"),
    ("Distributed.comm_buffer_size=0", "comm_buffer_size: expected a number >= 1, got 0"),
    ("Distributed.last_comm_buffer_size=0", "last_comm_buffer_size: expected a number > 0, got 0"),
    ("Loss.Trian=[CELoss]", "Loss: unknown key 'Trian'; did you mean 'Train'"),
    ("Loss.Train=[CELos]", "unknown loss 'CELos'; did you mean 'CELoss'"),
    ("Loss.Train.0.CELoss.epsilonn=0.1", "unknown key 'epsilonn'; did you mean 'epsilon'"),
    ("Loss.Eval.0.CELoss.weigth=1", "unknown key 'weigth'"),
    ("Metric.Eval=[TopkAccs]", "unknown metric 'TopkAccs'; did you mean 'TopkAcc'"),
    ("Metric.Eval.0.TopkAcc.top=1", "unknown key 'top'; did you mean 'topk'"),
    ("Optimizer.name=Momentums", "unknown optimizer 'Momentums'; did you mean 'Momentum'"),
    ("Optimizer.momentun=0.9", "Optimizer: unknown key 'momentun'; did you mean 'momentum'"),
    ("Optimizer.lr.name=Cosin", "unknown learning-rate schedule 'Cosin'; did you mean 'Cosine'"),
    ("Optimizer.lr.warmup_epochs=1", "unknown key 'warmup_epochs'; did you mean 'warmup_epoch'"),
    ("Optimizer.regularizer.coef=1", "unknown key 'coef'; did you mean 'coeff'"),
    ("DataLoader.Trains.sampler=1", "DataLoader: unknown key 'Trains'; did you mean 'Train'"),
    (f"{TRAIN}.datasets.name=x", "unknown key 'datasets'; did you mean 'dataset'"),
    (f"{TRAIN}.dataset.name=ImagenetDataset", "did you mean 'ImageNetDataset'"),
    (f"{TRAIN}.dataset.image_rot=x", "unknown key 'image_rot'; did you mean 'image_root'"),
    (f"{TRAIN}.sampler.batchsize=1", "unknown key 'batchsize'; did you mean 'batch_size'"),
    (f"{EVAL}.loader.num_worker=1", "unknown key 'num_worker'; did you mean 'num_workers'"),
    (f"{TRAIN}.{OPS}.0=DecodeImages", "unknown transform 'DecodeImages'; did you mean 'DecodeIm"),
    (f"{EVAL}.{OPS}.0.DecodeImage.to_rbg=1", "unknown key 'to_rbg'; did you mean 'to_rgb'"),
    ("Infer.infer_img=x", "Infer: unknown key 'infer_img'; did you mean 'infer_imgs'"),
    ("Infer.PostProcess.topks=1", "unknown key 'topks'; did you mean 'topk'"),
    ("Infer.PostProcess.name=TopK", "expected 'Topk', got 'TopK'"),
]


@pytest.mark.parametrize(("override", "message"), TYPOS, ids=[typo[0] for typo in TYPOS])
@pytest.mark.parametrize("name", ["HarDNet68", "HarDNet39_ds_digits"])
def test_a_typo_is_named_with_the_closest_key(name, override, message, data):
    path = FOLDER / f"{name}.yaml"
    with pytest.raises(ConfigError) as error:
        build_all(load(path, [*data(path), override]))
    assert message in str(error.value)


# ---------------------------------------------------------------- PaddleClas's own file


@pytest.fixture
def stock(tmp_path):
    path = tmp_path / "HarDNet68.yaml"
    path.write_text(STOCK)
    return path


def test_a_stock_recipe_builds(stock, data):
    recipe = load(stock)
    assert recipe.Global.device == "gpu" and recipe.Global.epochs == 120
    assert recipe.Infer.infer_imgs.endswith("whl_demo.jpg")
    _, train, _ = build_all(load(stock, data(stock)))
    assert train.sampler.batch_size == 64


def test_a_stock_recipe_follows_its_own_schedule(stock):
    lr = load(stock).Optimizer["lr"]
    schedule = build_schedule(lr, "Optimizer.lr", epochs=120, steps_per_epoch=10)
    values = [schedule.at(epoch * 10) for epoch in (0, 29, 30, 60, 90, 119)]
    assert values == [0.1, 0.1, 0.01, 0.001, 0.0001, 0.0001]


def test_a_stock_recipe_takes_the_usual_overrides(stock):
    overrides = ["Global.device=cpu", f"{TRAIN}.sampler.batch_size=32", "Arch.pretrained=False"]
    overrides += ["Metric.Train.0.TopkAcc.topk=[1,3]", "Optimizer.lr.values=[0.1, 5e-2, 1e-2, 0]"]
    recipe = load(stock, overrides)
    assert recipe.Global.device == "cpu" and recipe.DataLoader.Train.sampler.batch_size == 32
    assert recipe.Metric.Train == [{"TopkAcc": {"topk": [1, 3]}}]
    schedule = build_schedule(recipe.Optimizer["lr"], "lr", epochs=120, steps_per_epoch=1)
    assert [schedule.at(epoch) for epoch in (0, 30, 60, 90)] == [0.1, 0.05, 0.01, 0.0]


def test_the_settings_of_the_page_on_gpus_exist():
    """Each alone, and all of a command together."""
    page = (FOLDER.parents[1] / "docs" / "gpu.md").read_text()
    setting = r"\b[A-Z]\w+(?:\.\w+)+=[^\s`]+"
    found = set(re.findall(setting, page))
    assert {"Arch.data_format=NHWC", "AMP.level=O2", "Global.to_static=True"} <= found
    lines = page.replace("\\\n", " ").splitlines()
    commands = [re.findall(setting, line) for line in lines if "tools/train.py" in line]
    assert len(commands) >= 3
    for overrides in [*([one] for one in sorted(found)), *commands]:
        recipe, _ = load_recipe(FOLDER / "HarDNet39_ds.yaml", overrides)
        if any(text.startswith(("Arch", "Optimizer")) for text in overrides):
            model = build_model({"Arch": {**recipe.Arch, "class_num": 2}})
            schedule = build_schedule(recipe.Optimizer["lr"], "lr", epochs=9, steps_per_epoch=1)
            build_optimizer(recipe.Optimizer, "Optimizer", schedule=schedule, model=model)
