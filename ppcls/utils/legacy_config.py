"""The YAML schema of PaddleClas release/2.0, translated to that of 2.6.

    ARCHITECTURE.name, classes_num, LEARNING_RATE, OPTIMIZER, TRAIN, VALID, ...

Every key is either moved, dropped with a reason, or an error; the caller shows the lines. Batch
sizes count all processes there and one process here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from ppcls.utils import schema
from ppcls.utils.errors import ConfigError

SECTIONS = (
    "Global",
    "Arch",
    "AMP",
    "Distributed",
    "Loss",
    "Optimizer",
    "DataLoader",
    "Infer",
    "Metric",
    "EMA",
)

# Old key -> where it goes, when nothing but the place changes.
_MOVED = {
    "pretrained_model": "Global.pretrained_model",
    "checkpoints": "Global.checkpoints",
    "model_save_dir": "Global.output_dir",
    "save_interval": "Global.save_interval",
    "validate": "Global.eval_during_train",
    "valid_interval": "Global.eval_interval",
    "epochs": "Global.epochs",
    "image_shape": "Global.image_shape",
    "print_interval": "Global.print_batch_step",
    "use_visualdl": "Global.use_visualdl",
    "classes_num": "Arch.class_num",
}
_DROPPED = {
    "total_images": "the list file is counted",
    "last_epoch": "a checkpoint knows its epoch",
    "mode": "the tool decides",
    "load_static_weights": "only dynamic-graph weights exist",
}
_SPECIAL = ("ARCHITECTURE", "LEARNING_RATE", "OPTIMIZER", "TRAIN", "VALID", "topk", "ls_epsilon")
_SWITCHES = ("use_mix", "use_distillation")
_KEYS = {*_MOVED, *_DROPPED, *_SPECIAL, *_SWITCHES, "use_gpu"}
_MARKS = {"ARCHITECTURE", "LEARNING_RATE", "OPTIMIZER", "TRAIN", "VALID", "classes_num"}

# What joins the names of teacher and student in ARCHITECTURE.name, and their names today.
_DISTILL = "_distill_"
_TEACHER, _STUDENT = "Teacher", "Student"
_MIX_ALPHA = 0.2  # of both operators, when they do not say

_IMAGENET_CLASSES = 1000
_IMAGENET_NAMES = "ppcls/utils/imagenet1k_label_list.txt"


def is_legacy(mapping: Mapping) -> bool:
    return bool(_MARKS & mapping.keys()) and "Arch" not in mapping


def is_legacy_key(key: str) -> bool:
    """True for an override such as `TRAIN.batch_size` or `epochs`."""
    return key.split(".")[0].strip() not in SECTIONS


class _Translation:
    """The new mapping as it grows, and one line for each thing done."""

    def __init__(self, old: Mapping, where: str, world_size: int) -> None:
        self.old = copy.deepcopy(dict(old))
        self.where = where
        self.world_size = world_size
        self.new: dict[str, Any] = {}
        self.lines: list[str] = []

    def put(self, old_key: str, new_key: str, value: Any) -> None:
        *sections, last = new_key.split(".")
        node = self.new
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = value
        self.lines.append(f"{old_key} -> {new_key}: {value!r}")

    def note(self, old_key: str, reason: str) -> None:
        self.lines.append(f"{old_key}: dropped ({reason})")

    def take(self, key: str, annotation: Any, default: Any) -> Any:
        if key not in self.old:
            return default
        return schema.coerce(self.old[key], annotation, f"{self.where}: {key}")

    def is_on(self, switch: str) -> bool:
        return self.take(switch, bool, False)

    def part(self, section: Mapping, path: str) -> dict[str, Any]:
        """Return the mapping under the last key of `path`; an absent or empty one is {}."""
        value = section.get(path.rpartition(".")[2])
        return schema.coerce(value or {}, dict, f"{self.where}: {path}")

    def error(self, text: str) -> ConfigError:
        return ConfigError(f"{self.where}: {text}")


def translate(old: Mapping, where: str, world_size: int = 1) -> tuple[dict[str, Any], list[str]]:
    """Return a release/2.0 mapping in the schema of 2.6, and the lines that tell how.

    Raises ConfigError for an unknown key, for `load_static_weights: True`, for mixing or distilling
    that has no counterpart, and for a batch size that `world_size` processes cannot share evenly.
    """
    job = _Translation(old, where, world_size)
    schema.check_keys(job.old, _KEYS, where)
    steps: tuple[Callable[[_Translation], None], ...] = (
        _check_switches,
        _move,
        _networks,
        _loss_and_metric,
        _learning_rate,
        _optimizer,
        _loaders,
        _infer,
    )
    for step in steps:
        step(job)
    return job.new, job.lines


def _check_switches(job: _Translation) -> None:
    if job.take("load_static_weights", bool, False):
        raise job.error(
            "load_static_weights: expected False (weights of static-graph Paddle 1.x are not "
            "readable), got True"
        )
    for key in _SWITCHES:
        if key in job.old and not job.is_on(key):
            job.note(key, "off")


def _move(job: _Translation) -> None:
    of_two = {"pretrained_model"} if job.is_on("use_distillation") else set()
    for key, target in _MOVED.items():
        if key in job.old and key not in of_two:
            # An empty text is how the old schema says "none".
            job.put(key, target, None if job.old[key] == "" else job.old[key])
    for key, reason in _DROPPED.items():
        if key in job.old:
            job.note(key, reason)
    if "use_gpu" in job.old:
        device = "gpu" if job.take("use_gpu", bool, True) else "cpu"
        job.put("use_gpu", "Global.device", device)


def _networks(job: _Translation) -> None:
    section = job.take("ARCHITECTURE", dict, {})
    if "name" not in section:
        raise job.error("ARCHITECTURE: missing key 'name'")
    schema.check_keys(section, ("name", "params"), f"{job.where}: ARCHITECTURE")
    params = job.part(section, "ARCHITECTURE.params")
    if job.is_on("use_distillation"):
        _teacher_and_student(job, section["name"], params)
        return
    job.put("ARCHITECTURE.name", "Arch.name", section["name"])
    for key, value in params.items():
        job.put(f"ARCHITECTURE.params.{key}", f"Arch.{key}", value)


def _teacher_and_student(job: _Translation, name: Any, params: dict[str, Any]) -> None:
    """`A_distill_B`: A, whose parameters are frozen, teaches B; both take all of `params`."""
    names = name.split(_DISTILL) if isinstance(name, str) else []
    if len(names) != 2 or not all(names):
        raise job.error(
            f"ARCHITECTURE.name: expected 'TEACHER{_DISTILL}STUDENT' with use_distillation: True, "
            f"got {name!r}"
        )
    where = "ARCHITECTURE.params.freeze_teacher"
    if not schema.coerce(params.get("freeze_teacher", True), bool, f"{job.where}: {where}"):
        raise job.error(f"{where}: expected True (a teacher does not train here), got False")
    shared = {key: value for key, value in params.items() if key != "freeze_teacher"}
    models = [{"name": own, **copy.deepcopy(shared)} for own in names]
    for model, weights in zip(models, _weights_of_two(job), strict=True):
        if weights:
            model["pretrained"] = weights
    job.put("use_distillation", "Arch.name", "DistillationModel")
    job.put("use_distillation", "Arch.freeze_params_list", [True, False])
    job.put("use_distillation", "Arch.infer_model_name", _STUDENT)
    entries = [{key: model} for key, model in zip((_TEACHER, _STUDENT), models, strict=True)]
    job.put("ARCHITECTURE, pretrained_model", "Arch.models", entries)


def _weights_of_two(job: _Translation) -> list[str | None]:
    """`pretrained_model`: the teacher's weights, or a list of both networks'."""
    found = job.take("pretrained_model", str | list[str] | None, None) or []
    weights = [found] if isinstance(found, str) else list(found)
    if len(weights) > 2:
        raise job.error(
            f"pretrained_model: expected weights of a teacher and a student, got {weights}"
        )
    return [*weights, None, None][:2]


def _loss_and_metric(job: _Translation) -> None:
    epsilon = job.take("ls_epsilon", float, -1.0)
    train: dict[str, Any] = {"weight": 1.0} | ({"epsilon": epsilon} if epsilon > 0 else {})
    if job.is_on("use_distillation"):
        # Its JSDivLoss: both divergences halved, without the 1e-10 that kept its logarithms finite.
        pairs = {"model_name_pairs": [[_STUDENT, _TEACHER]]}
        job.put(
            "use_distillation", "Loss.Train", [{"DistillationDMLLoss": {"weight": 1.0, **pairs}}]
        )
        job.lines.append("use_distillation: Loss.Eval is the student's alone, there the same loss")
        if "ls_epsilon" in job.old:
            job.note("ls_epsilon", "release/2.0 distils without labels")
        if job.is_on("use_mix"):
            job.lines.append("use_mix: both networks see the mixed images, no loss their labels")
    elif job.is_on("use_mix"):
        job.put("use_mix", "Loss.Train", [{"MixCELoss": train}])
    else:
        job.put("ls_epsilon", "Loss.Train", [{"CELoss": train}])
    job.put("ls_epsilon", "Loss.Eval", [{"CELoss": {"weight": 1.0}}])
    topk = job.take("topk", int, 5)
    for part in ("Train", "Eval"):
        job.put("topk", f"Metric.{part}", [{"TopkAcc": {"topk": sorted({1, topk})}}])


def _function(job: _Translation, key: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    section = job.take(key, dict, {})
    if "function" not in section:
        raise job.error(f"{key}: missing key 'function'")
    name = schema.coerce(section["function"], str, f"{job.where}: {key}.function")
    rest = {k: v for k, v in section.items() if k not in ("function", "params")}
    return name, dict(job.part(section, f"{key}.params")), rest


# Old schedule -> its name today and the parameters it implied.
_SCHEDULES: dict[str, tuple[str, dict[str, Any]]] = {
    "Cosine": ("Cosine", {}),
    "CosineWarmup": ("Cosine", {"warmup_epoch": 5}),
    "Piecewise": ("Piecewise", {}),
    "Linear": ("Linear", {"end_lr": 0.0}),
    "Poly": ("Poly", {}),
    "Constant": ("Constant", {}),
    "ExponentialWarmup": ("ExponentialWarmup", {}),
}


def _learning_rate(job: _Translation) -> None:
    name, params, rest = _function(job, "LEARNING_RATE")
    schema.check_keys(rest, (), f"{job.where}: LEARNING_RATE")
    if name not in _SCHEDULES:
        known = ", ".join(_SCHEDULES)
        raise job.error(f"LEARNING_RATE.function: unknown schedule {name!r}; known: {known}")
    new_name, implied = _SCHEDULES[name]
    section = {"name": new_name, **implied, **params}
    if "lr" in section:
        section["learning_rate"] = section.pop("lr")
    for key in ("step_each_epoch", "total_images", "epochs"):
        section.pop(key, None)  # counted from the data
    job.put("LEARNING_RATE", "Optimizer.lr", section)


def _optimizer(job: _Translation) -> None:
    name, params, rest = _function(job, "OPTIMIZER")
    schema.check_keys(rest, ("regularizer",), f"{job.where}: OPTIMIZER")
    lr = job.new["Optimizer"].pop("lr")
    job.put("OPTIMIZER.function", "Optimizer.name", name)
    for key, value in params.items():
        job.put(f"OPTIMIZER.params.{key}", f"Optimizer.{key}", value)
    job.new["Optimizer"]["lr"] = lr
    regularizer = job.part(rest, "OPTIMIZER.regularizer")
    if regularizer:
        where = f"{job.where}: OPTIMIZER.regularizer"
        schema.check_keys(regularizer, ("function", "factor"), where)
        section = {"name": regularizer.get("function"), "coeff": regularizer.get("factor")}
        job.put("OPTIMIZER.regularizer", "Optimizer.regularizer", section)


_LOADER_KEYS = (
    "batch_size",
    "num_workers",
    "file_list",
    "data_dir",
    "shuffle_seed",
    "transforms",
    "mix",
    "use_shared_memory",
)


def _loaders(job: _Translation) -> None:
    for old_name, new_name in (("TRAIN", "Train"), ("VALID", "Eval")):
        if old_name in job.old:
            _loader(job, old_name, new_name)
        elif old_name == "TRAIN":
            raise job.error("expected a section TRAIN, found none")


def _loader(job: _Translation, old_name: str, new_name: str) -> None:
    section = job.take(old_name, dict, {})
    schema.check_keys(section, _LOADER_KEYS, f"{job.where}: {old_name}")
    for key in ("batch_size", "file_list", "data_dir", "transforms"):
        if key not in section:
            raise job.error(f"{old_name}: missing key {key!r}")
    target = f"DataLoader.{new_name}"
    job.put(f"{old_name}.data_dir", f"{target}.dataset.name", "ImageNetDataset")
    job.put(f"{old_name}.data_dir", f"{target}.dataset.image_root", section["data_dir"])
    job.put(f"{old_name}.file_list", f"{target}.dataset.cls_label_path", section["file_list"])
    where = f"{job.where}: {old_name}.transforms"
    transforms = _transforms(schema.coerce(section["transforms"], list, where))
    job.put(f"{old_name}.transforms", f"{target}.dataset.transform_ops", transforms)
    is_train = new_name == "Train"
    if is_train:
        _mixing(job, section)
    elif section.get("mix"):
        raise job.error(f"{old_name}.mix: expected none in evaluation, got {section['mix']!r}")
    sampler = {
        "name": "DistributedBatchSampler",
        "batch_size": _per_process(job, f"{old_name}.batch_size", section["batch_size"]),
        "drop_last": False,
        "shuffle": is_train,
    }
    job.put(f"{old_name}.batch_size", f"{target}.sampler", sampler)
    loader = {"num_workers": section.get("num_workers", 4)}
    loader["use_shared_memory"] = section.get("use_shared_memory", True)
    job.put(f"{old_name}.num_workers", f"{target}.loader", loader)
    if section.get("shuffle_seed") is not None:
        if is_train:
            job.put("TRAIN.shuffle_seed", "Global.seed", section["shuffle_seed"])
        else:
            job.note(f"{old_name}.shuffle_seed", "evaluation keeps the list's order")


def _mixing(job: _Translation, section: Mapping) -> None:
    """`TRAIN.mix`, which acts only with `use_mix: True`."""
    entries = schema.coerce(section.get("mix") or [], list, f"{job.where}: TRAIN.mix")
    if not job.is_on("use_mix"):
        if entries:
            job.note("TRAIN.mix", "it acts only with use_mix: True, there too")
        return
    if len(entries) != 1:
        raise job.error(
            f"TRAIN.mix: expected one operator with use_mix: True, got {entries or 'none'}"
        )
    name, params = schema.split_entry(entries[0], f"{job.where}: TRAIN.mix[0]")
    if name not in ("MixupOperator", "CutmixOperator"):
        raise job.error(f"TRAIN.mix[0]: expected MixupOperator or CutmixOperator, got {name!r}")
    params = schema.coerce(params, dict, f"{job.where}: TRAIN.mix[0].{name}")
    key = "DataLoader.Train.dataset.batch_transform_ops"
    job.put("TRAIN.mix", key, [{name: {"alpha": _MIX_ALPHA, **params}}])
    job.lines.append("TRAIN.mix: each image has its own draw here, there a batch shares one")


def _per_process(job: _Translation, key: str, total: Any) -> int:
    total = schema.coerce(total, int, f"{job.where}: {key}")
    if total < 1 or total % job.world_size:
        raise job.error(
            f"{key}: expected a multiple of the {job.world_size} processes, got {total}"
        )
    return total // job.world_size


def _transforms(entries: list) -> list:
    """Drop what today's data sets do by themselves."""
    kept = [entry for entry in entries if entry not in ("ToCHWImage", {"ToCHWImage": None})]
    for entry in kept:
        if isinstance(entry, dict) and isinstance(entry.get("DecodeImage"), dict):
            entry["DecodeImage"].pop("to_np", None)
    return kept


def _infer(job: _Translation) -> None:
    evaluation = job.new["DataLoader"].get("Eval")
    if evaluation is None:
        return
    transforms = copy.deepcopy(evaluation["dataset"]["transform_ops"])
    job.put("VALID.transforms", "Infer.transforms", [*transforms, {"ToCHWImage": None}])
    post: dict[str, Any] = {"name": "Topk", "topk": job.take("topk", int, 5)}
    if job.new["Arch"].get("class_num", _IMAGENET_CLASSES) == _IMAGENET_CLASSES:
        post["class_id_map_file"] = _IMAGENET_NAMES  # the file its own predictor took
    job.put("topk", "Infer.PostProcess", post)
