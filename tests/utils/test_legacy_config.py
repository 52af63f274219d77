"""PaddleClas release/2.0 recipes, translated: each key moves, is dropped, or is an error."""

from pathlib import Path

import pytest
import yaml

from ppcls.data.batch_ops import build_batch_op
from ppcls.engine.config import Recipe, load_recipe
from ppcls.engine.distillation import check_models
from ppcls.loss import build_loss
from ppcls.metric import build_metric
from ppcls.utils import legacy_config
from ppcls.utils.errors import ConfigError

ROOT = Path(__file__).parents[2]

# As release/2.0's own configuration files are written, trailing colon and number styles included.
OLD = """
mode: 'train'
ARCHITECTURE:
    name: 'HarDNet68'

pretrained_model: ""
model_save_dir: "./output/"
classes_num: 1000
total_images: 1281167
save_interval: 1
validate: True
valid_interval: 1
epochs: 120
topk: 5
image_shape: [3, 224, 224]

use_mix: False
ls_epsilon: 0.1
use_distillation: False

LEARNING_RATE:
    function: 'Piecewise'
    params:
        lr: 0.1
        decay_epochs: [30, 60, 90]
        gamma: 0.1

OPTIMIZER:
    function: 'Momentum'
    params:
        momentum: 0.9
    regularizer:
        function: 'L2'
        factor: 0.000100

TRAIN:
    batch_size: 256
    num_workers: 4
    file_list: "./dataset/ILSVRC2012/train_list.txt"
    data_dir: "./dataset/ILSVRC2012/"
    shuffle_seed: 0
    transforms:
        - DecodeImage:
            to_rgb: True
            to_np: False
            channel_first: False
        - RandCropImage:
            size: 224
        - RandFlipImage:
            flip_code: 1
        - NormalizeImage:
            scale: 1./255.
            mean: [0.485, 0.456, 0.406]
            std: [0.229, 0.224, 0.225]
            order: ''
        - ToCHWImage:

VALID:
    batch_size: 64
    num_workers: 4
    file_list: "./dataset/ILSVRC2012/val_list.txt"
    data_dir: "./dataset/ILSVRC2012/"
    shuffle_seed: 0
    transforms:
        - DecodeImage:
            to_rgb: True
            to_np: False
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
"""

# The same recipe in the schema of 2.6.
NEW = """
Global:
  output_dir: ./output/
  save_interval: 1
  eval_during_train: True
  eval_interval: 1
  epochs: 120
  seed: 0
  image_shape: [3, 224, 224]
Arch:
  name: HarDNet68
  class_num: 1000
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
    gamma: 0.1
  regularizer:
    name: L2
    coeff: 0.0001
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
            scale: 1./255.
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
      batch_size: 16
      drop_last: False
      shuffle: False
    loader:
      num_workers: 4
      use_shared_memory: True
Infer:
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
def old_file(tmp_path):
    path = tmp_path / "old.yaml"
    path.write_text(OLD)
    return path


def edited(tmp_path, edit):
    """A file with the old recipe after `edit(mapping)`."""
    mapping = yaml.safe_load(OLD)
    edit(mapping)
    path = tmp_path / "edited.yaml"
    path.write_text(yaml.safe_dump(mapping))
    return path


def translated(tmp_path, edit, world_size=1):
    return load_recipe(edited(tmp_path, edit), (), world_size)[0]


# ---------------------------------------------------------------- equality


def test_both_schemas_give_the_same_recipe(old_file, tmp_path):
    (tmp_path / "new.yaml").write_text(NEW)
    old, lines = load_recipe(old_file, (), 4)
    new, no_lines = load_recipe(tmp_path / "new.yaml", (), 4)
    assert old.to_mapping() == new.to_mapping()
    assert lines and no_lines == []


def test_the_recipe_of_the_repository_in_both_schemas():
    folder = ROOT / "configs" / "HarDNet"
    old, lines = load_recipe(folder / "HarDNet68_best_v2.yaml", (), 4)
    new, _ = load_recipe(folder / "HarDNet68.yaml", (), 4)
    assert lines
    assert old.to_mapping() == new.to_mapping()


@pytest.mark.parametrize("world_size", [1, 4])
def test_a_resolved_recipe_read_again_is_the_same(old_file, tmp_path, world_size):
    recipe, _ = load_recipe(old_file, (), world_size)
    (tmp_path / "resolved.yaml").write_text(recipe.to_yaml())
    again, lines = load_recipe(tmp_path / "resolved.yaml", (), world_size)
    assert again.to_mapping() == recipe.to_mapping() and lines == []


def test_every_old_key_is_told(old_file):
    told = {line.split(" -> ")[0].split(":")[0] for line in load_recipe(old_file)[1]}
    for key in yaml.safe_load(OLD):
        assert key in told or any(line.startswith(f"{key}.") for line in told), key


def test_new_recipes_are_left_alone():
    assert not legacy_config.is_legacy(yaml.safe_load(NEW))
    assert legacy_config.is_legacy(yaml.safe_load(OLD))


# ---------------------------------------------------------------- single keys


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        (
            {"function": "Piecewise", "params": {"lr": 0.1, "decay_epochs": [30], "gamma": 0.1}},
            {"name": "Piecewise", "learning_rate": 0.1, "decay_epochs": [30], "gamma": 0.1},
        ),
        (
            {"function": "Cosine", "params": {"lr": 0.045}},
            {"name": "Cosine", "learning_rate": 0.045},
        ),
        (
            {"function": "CosineWarmup", "params": {"lr": 0.4}},
            {"name": "Cosine", "learning_rate": 0.4, "warmup_epoch": 5},
        ),
        (
            {"function": "CosineWarmup", "params": {"lr": 0.4, "warmup_epoch": 3}},
            {"name": "Cosine", "learning_rate": 0.4, "warmup_epoch": 3},
        ),
        (
            {"function": "Linear", "params": {"lr": 0.5, "end_lr": 0.01}},
            {"name": "Linear", "learning_rate": 0.5, "end_lr": 0.01},
        ),
        (
            {"function": "Linear", "params": {"lr": 0.5}},
            {"name": "Linear", "learning_rate": 0.5, "end_lr": 0.0},
        ),
    ],
    ids=["piecewise", "cosine", "warmup", "warmup3", "linear-end", "linear"],
)
def test_learning_rates(tmp_path, section, expected):
    recipe = translated(tmp_path, lambda old: old.update(LEARNING_RATE=section))
    assert recipe.Optimizer["lr"] == expected


def test_what_is_counted_from_the_data_is_left_out(tmp_path):
    params = {"lr": 0.1, "step_each_epoch": 5004, "epochs": 120}
    section = {"function": "Cosine", "params": params}
    recipe = translated(tmp_path, lambda old: old.update(LEARNING_RATE=section))
    assert recipe.Optimizer["lr"] == {"name": "Cosine", "learning_rate": 0.1}


@pytest.mark.parametrize(
    ("epsilon", "params"), [(0.1, {"weight": 1.0, "epsilon": 0.1}), (-1, None)]
)
def test_label_smoothing(tmp_path, epsilon, params):
    recipe = translated(tmp_path, lambda old: old.update(ls_epsilon=epsilon))
    assert recipe.Loss.Train == [{"CELoss": params or {"weight": 1.0}}]
    assert recipe.Loss.Eval == [{"CELoss": {"weight": 1.0}}]


@pytest.mark.parametrize(("topk", "expected"), [(5, [1, 5]), (3, [1, 3]), (1, [1])])
def test_topk(tmp_path, topk, expected):
    recipe = translated(tmp_path, lambda old: old.update(topk=topk))
    assert recipe.Metric.Eval == [{"TopkAcc": {"topk": expected}}]
    assert recipe.Infer.PostProcess.topk == topk


def test_names_of_classes_belong_to_imagenet_alone(tmp_path):
    assert translated(tmp_path, lambda old: None).Infer.PostProcess.class_id_map_file
    own = translated(tmp_path, lambda old: old.update(classes_num=10))
    assert own.Infer.PostProcess.class_id_map_file is None
    assert own.class_num == 10


def test_an_optimizer_without_decay(tmp_path):
    recipe = translated(tmp_path, lambda old: old["OPTIMIZER"].pop("regularizer"))
    assert recipe.Optimizer["name"] == "Momentum" and "regularizer" not in recipe.Optimizer


def test_architecture_parameters(tmp_path):
    section = {"name": "HarDNet85", "params": {"dropout": 0.2}}
    recipe = translated(tmp_path, lambda old: old.update(ARCHITECTURE=section))
    assert recipe.Arch == {"class_num": 1000, "name": "HarDNet85", "dropout": 0.2}


@pytest.mark.parametrize(("use_gpu", "device"), [(True, "gpu"), (False, "cpu"), (None, "auto")])
def test_device(tmp_path, use_gpu, device):
    edit = (lambda old: None) if use_gpu is None else (lambda old: old.update(use_gpu=use_gpu))
    assert translated(tmp_path, edit).Global.device == device


def test_training_without_validation(tmp_path):
    recipe = translated(tmp_path, lambda old: old.pop("VALID") and old.update(validate=False))
    assert recipe.DataLoader.Eval is None and recipe.Global.eval_during_train is False


def test_the_seed_of_the_order_is_the_seed(tmp_path):
    recipe = translated(tmp_path, lambda old: old["TRAIN"].update(shuffle_seed=7))
    assert recipe.Global.seed == 7


def test_the_mapping_given_is_not_changed():
    old = yaml.safe_load(OLD)
    legacy_config.translate(old, "old.yaml", 4)
    assert old == yaml.safe_load(OLD)


# ---------------------------------------------------------------- many processes


def test_batch_sizes_are_shared_by_the_processes(old_file):
    for world_size, sizes in ((1, (256, 64)), (4, (64, 16))):
        loaders = load_recipe(old_file, (), world_size)[0].DataLoader
        assert (loaders.Train.sampler.batch_size, loaders.Eval.sampler.batch_size) == sizes


@pytest.mark.parametrize(("size", "world_size"), [(256, 3), (2, 4), (0, 1), (-4, 1)])
def test_a_batch_size_nobody_can_share(tmp_path, size, world_size):
    with pytest.raises(ConfigError, match=rf"TRAIN\.batch_size: expected a multiple.*got {size}"):
        translated(tmp_path, lambda old: old["TRAIN"].update(batch_size=size), world_size)


# ---------------------------------------------------------------- mixing and distilling

# As release/2.0 names its networks of two; it has none of HarDNets, whose names fit all the same.
DISTILL = ("use_distillation=True", "ARCHITECTURE.name=HarDNet85_distill_HarDNet68_ds")
MIX = ("use_mix=True", "TRAIN.mix=[MixupOperator]")


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"MixupOperator": {"alpha": 0.4}}, {"MixupOperator": {"alpha": 0.4}}),
        ({"CutmixOperator": None}, {"CutmixOperator": {"alpha": 0.2}}),  # its default, not today's
    ],
)
def test_mixed_images(tmp_path, entry, expected):
    path = edited(
        tmp_path, lambda old: (old.update(use_mix=True), old["TRAIN"].update(mix=[entry]))
    )
    recipe, lines = load_recipe(path)
    assert recipe.DataLoader.Train.dataset["batch_transform_ops"] == [expected]
    assert recipe.Loss.Train == [{"MixCELoss": {"weight": 1.0, "epsilon": 0.1}}]
    assert recipe.Loss.Eval == [{"CELoss": {"weight": 1.0}}]
    assert f"TRAIN.mix -> DataLoader.Train.dataset.batch_transform_ops: {[expected]}" in lines
    assert any(line.startswith("use_mix -> Loss.Train") for line in lines)
    build_batch_op([expected], "D")


def test_a_mix_that_is_off_is_told(old_file):
    recipe, lines = load_recipe(old_file, ["TRAIN.mix=[MixupOperator]"])
    assert "batch_transform_ops" not in recipe.DataLoader.Train.dataset
    assert "TRAIN.mix: dropped (it acts only with use_mix: True, there too)" in lines
    assert "use_mix: dropped (off)" in lines and "use_distillation: dropped (off)" in lines


def test_a_teacher_and_its_student(old_file):
    """Release/2.0 learns from the teacher alone: ls_epsilon has nothing to smooth."""
    overrides = [*DISTILL, "ARCHITECTURE.params.dropout=0.2"]
    overrides += ["pretrained_model=[t/ppcls, s/ppcls]"]
    recipe, lines = load_recipe(old_file, overrides)
    section = recipe.to_mapping()["Arch"]
    common = {"dropout": 0.2, "class_num": 1000}
    assert section == {
        "name": "DistillationModel",
        "freeze_params_list": [True, False],
        "infer_model_name": "Student",
        "models": [
            {"Teacher": {"name": "HarDNet85", "pretrained": "t/ppcls", **common}},
            {"Student": {"name": "HarDNet68_ds", "pretrained": "s/ppcls", **common}},
        ],
    }
    assert recipe.Arch["name"] == "HarDNet68_ds" and recipe.Global.pretrained_model is None
    pairs = {"model_name_pairs": [["Student", "Teacher"]]}
    assert recipe.Loss.Train == [{"DistillationDMLLoss": {"weight": 1.0, **pairs}}]
    assert recipe.Loss.Eval == [{"CELoss": {"weight": 1.0}}]
    loss = build_loss(recipe.Loss.Train, "Loss.Train")
    metric = build_metric(recipe.Metric.Train, "Metric.Train", 1000)
    check_models(recipe.distillation, loss, metric, "Train")
    assert "ls_epsilon: dropped (release/2.0 distils without labels)" in lines
    assert "use_distillation -> Arch.name: 'DistillationModel'" in lines
    assert any(
        line.startswith("ARCHITECTURE, pretrained_model -> Arch.models: [{") for line in lines
    )


@pytest.mark.parametrize("weights", ["t/ppcls", "[t/ppcls]"])
def test_weights_of_the_teacher_alone(old_file, weights):
    recipe, _ = load_recipe(old_file, [*DISTILL, f"pretrained_model={weights}"])
    assert recipe.distillation.network["pretrained"] == "t/ppcls"
    assert "pretrained" not in recipe.Arch


def test_distilling_on_mixed_images(old_file):
    recipe, lines = load_recipe(old_file, [*DISTILL, *MIX])
    assert list(recipe.Loss.Train[0]) == ["DistillationDMLLoss"]
    mixing = recipe.DataLoader.Train.dataset["batch_transform_ops"]
    assert mixing == [{"MixupOperator": {"alpha": 0.2}}]
    assert any(line.startswith("use_mix: both networks see the mixed images") for line in lines)


def test_evaluating_a_student(old_file):
    """Today's key names the student's weights, as with any recipe."""
    recipe, _ = load_recipe(old_file, [*DISTILL, "Global.pretrained_model=s.pdparams"])
    assert recipe.Global.pretrained_model == "s.pdparams"
    assert "pretrained" not in recipe.distillation.network


# ---------------------------------------------------------------- overrides


def test_old_keys_override(old_file):
    overrides = ["TRAIN.batch_size=64", "use_gpu=False", "model_save_dir=x", "epochs=2"]
    overrides += ["ARCHITECTURE.name=HarDNet39_ds", "LEARNING_RATE.params.lr=0.05"]
    overrides += ["TRAIN.transforms.1.RandCropImage.size=160", "pretrained_model=w.pdparams"]
    recipe, _ = load_recipe(old_file, overrides)
    assert recipe.DataLoader.Train.sampler.batch_size == 64
    assert recipe.Global.device == "cpu" and recipe.Global.output_dir == "x"
    assert recipe.Global.epochs == 2 and recipe.Global.pretrained_model == "w.pdparams"
    assert recipe.Arch["name"] == "HarDNet39_ds"
    assert recipe.Optimizer["lr"]["learning_rate"] == 0.05
    train_ops = recipe.DataLoader.Train.dataset["transform_ops"]
    assert train_ops[1] == {"RandCropImage": {"size": 160}}


def test_new_keys_override_an_old_file(old_file):
    overrides = ["Global.max_steps=2", "DataLoader.Train.sampler.batch_size=8", "AMP.use_amp=False"]
    recipe, _ = load_recipe(old_file, [*overrides, "Arch.class_num=10"], 4)
    assert recipe.Global.max_steps == 2
    assert recipe.DataLoader.Train.sampler.batch_size == 8  # today's keys count one process
    assert recipe.AMP.use_amp is False and recipe.class_num == 10


def test_today_s_key_wins_over_the_old_one(old_file):
    recipe, _ = load_recipe(old_file, ["Global.epochs=5", "epochs=3"])
    assert recipe.Global.epochs == 5


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        (["load_static_weights=True"], "load_static_weights: expected False .*got True"),
        (["use_mix=True"], r"TRAIN\.mix: expected one operator with use_mix: True, got none"),
        (["use_mix=1"], "use_mix: expected true or false, got 1"),
        (["use_mix=True", "TRAIN.mix=[FmixOperator]"], r"TRAIN\.mix\[0\]: expected Mixup.*'FmixOp"),
        (
            ["use_mix=True", "TRAIN.mix=[MixupOperator, CutmixOperator]"],
            r"TRAIN\.mix: expected one operator .*got \['MixupOperator', 'CutmixOperator'\]",
        ),
        (["use_mix=True", "TRAIN.mix=mixup"], r"TRAIN\.mix: expected a list, got 'mixup'"),
        (["VALID.mix=[MixupOperator]"], r"VALID\.mix: expected none in evaluation"),
        (
            ["use_distillation=True"],
            r"ARCHITECTURE\.name: expected 'TEACHER_distill_STUDENT' with use_distillation: True, "
            "got 'HarDNet68'",
        ),
        (["use_distillation=True", "ARCHITECTURE.name=_distill_HarDNet68"], "got '_distill_HarDNe"),
        (
            [*DISTILL, "ARCHITECTURE.params.freeze_teacher=False"],
            r"ARCHITECTURE\.params\.freeze_teacher: expected True .*got False",
        ),
        ([*DISTILL, "pretrained_model=[a, b, c]"], "pretrained_model: expected weights of a teach"),
        (["pretrained_model=[a, b]"], r"pretrained_model: expected text, got \['a', 'b'\]"),
        (["epoch=1"], r"old\.yaml: unknown key 'epoch'; did you mean 'epochs'\?"),
        (["TRAIN.batchsize=1"], r"TRAIN: unknown key 'batchsize'; did you mean 'batch_size'\?"),
        (["TRAIN.batch_size=many"], r"TRAIN\.batch_size: expected an integer, got 'many'"),
        (["TRAIN.mix=1"], r"TRAIN\.mix: expected a list, got 1"),
        (["LEARNING_RATE.function=Cosin"], "unknown schedule 'Cosin'; known: Cosine"),
        (["LEARNING_RATE.fun=1"], r"LEARNING_RATE: unknown key 'fun'"),
        (["OPTIMIZER.regulariser=1"], r"OPTIMIZER: unknown key 'regulariser'; did you mean"),
        (["OPTIMIZER.regularizer.coeff=1"], r"OPTIMIZER\.regularizer: unknown key 'coeff'"),
        (["ARCHITECTURE.nam=1"], r"ARCHITECTURE: unknown key 'nam'; did you mean 'name'\?"),
        (["ls_epsilon=low"], "ls_epsilon: expected a number, got 'low'"),
        (["topk=[1,5]"], r"topk: expected an integer, got \[1, 5\]"),
        (["use_gpu=0"], "use_gpu: expected true or false, got 0"),
        (["epochs=many"], r"Global\.epochs: expected an integer, got 'many'"),
        (["Gloabl.epochs=1"], "unknown key 'Gloabl'"),
    ],
)
def test_mistakes(old_file, overrides, match):
    with pytest.raises(ConfigError, match=match):
        load_recipe(old_file, overrides)


def test_static_weights_may_be_declined(old_file):
    recipe, lines = load_recipe(old_file, ["load_static_weights=False"])
    assert isinstance(recipe, Recipe)
    assert any(line.startswith("load_static_weights: dropped") for line in lines)


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ("TRAIN", "file_list"),
        ("VALID", "transforms"),
        ("ARCHITECTURE", "name"),
        ("LEARNING_RATE", "function"),
        ("OPTIMIZER", "function"),
    ],
)
def test_missing_keys(tmp_path, section, key):
    with pytest.raises(ConfigError, match=rf"edited\.yaml: {section}: missing key '{key}'"):
        translated(tmp_path, lambda old: old[section].pop(key))


def test_no_training_section(tmp_path):
    with pytest.raises(ConfigError, match="expected a section TRAIN, found none"):
        translated(tmp_path, lambda old: old.pop("TRAIN"))


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("LEARNING_RATE.params=3", r"LEARNING_RATE\.params: expected a mapping, got 3"),
        ("LEARNING_RATE.params=[1]", r"LEARNING_RATE\.params: expected a mapping, got \[1\]"),
        ("LEARNING_RATE.function=[1]", r"LEARNING_RATE\.function: "),
        ("ARCHITECTURE.params=3", r"ARCHITECTURE\.params: expected a mapping, got 3"),
        ("OPTIMIZER.params=3", r"OPTIMIZER\.params: expected a mapping, got 3"),
        ("OPTIMIZER.regularizer=3", r"OPTIMIZER\.regularizer: expected a mapping, got 3"),
        ("OPTIMIZER.regularizer=L2", r"OPTIMIZER\.regularizer: "),
        ("VALID.transforms=3", r"VALID\.transforms: expected a list.*got 3"),
        ("VALID=3", r"VALID: expected a mapping, got 3"),
    ],
)
def test_sections_of_another_kind(old_file, override, match):
    with pytest.raises(ConfigError, match=match):
        load_recipe(old_file, [override])


def test_exponential_warmup_is_a_schedule_of_release_2_0(tmp_path):
    section = {"function": "ExponentialWarmup", "params": {"lr": 0.032}}
    recipe = translated(tmp_path, lambda old: old.update(LEARNING_RATE=section))
    assert recipe.Optimizer["lr"] == {"name": "ExponentialWarmup", "learning_rate": 0.032}
