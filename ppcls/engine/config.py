"""A recipe with types: the YAML sections of PaddleClas 2.6 as frozen dataclasses.

    YAML --utils.config.load--> mapping --Recipe.parse--> Recipe --engine.build--> objects

Sections that name a component (`Arch`, `Loss`, `Optimizer`, `dataset`...) stay mappings here; they
are checked against the component's own signature when it is built.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from ppcls.arch.detection.postprocess import PostProcessConfig as DetectionConfig
from ppcls.arch.distillation import DISTILLATION_MODEL, Distillation, split_section
from ppcls.data.loader import DataLoaderConfig
from ppcls.data.progressive import SMALLEST, ProgressiveConfig
from ppcls.utils import config as config_file
from ppcls.utils import schema
from ppcls.utils.errors import ConfigError
from ppcls.utils.legacy_config import SECTIONS


@dataclass(frozen=True, kw_only=True)
class GlobalConfig:
    """The section `Global`. "Steps" are batches, "updates" are optimizer updates."""

    data_dir: str | None = None  # a folder of own images: a folder per class, or train and val
    val_fraction: float = 0.2  # of data_dir: what is held out of each class when it has no val
    val_seed: int = 0  # which images these are
    output_dir: str = "./output/"  # the run's folder is OUTPUT_DIR/ARCH
    device: str = "auto"  # auto, cpu, gpu, or gpu:N
    epochs: int = 120
    seed: int = 0  # of the samples' order, augmentation, initial weights and dropout
    pretrained_model: str | None = None  # weights to start from; another class count: a new head
    checkpoints: str | None = None  # a run to go on with: a path without its suffix, or its folder
    auto_resume: bool = False  # go on with the run in OUTPUT_DIR/ARCH, if there is one
    update_freq: int = 1  # steps per update; their gradients are those of one large batch
    max_steps: int | None = None  # for smoke runs: stop after so many, as if the epoch ended
    freeze: list[str] | None = None  # parts that do not train: stem, stage1..., backbone, head
    unfreeze_epoch: int | None = None  # epochs after which they do; never when absent
    save_interval: int = 1  # epochs between epoch_N checkpoints
    save_interval_steps: int | None = None  # steps between saves inside an epoch
    keep_last: int = 2  # newest checkpoints kept, the one before the newest as its fallback
    on_nonfinite: Literal["stop", "skip"] = "stop"  # a loss or gradient that is not finite
    max_nonfinite: int = 20  # updates that may be left out (by a loss scaler: in a row)
    check_ranks_interval: int = 100  # steps between comparisons of the ranks' weights; 0: never
    eval_during_train: bool = True
    eval_interval: int = 1  # epochs
    start_eval_epoch: int = 0  # no evaluation before this epoch
    print_batch_step: int = 10  # steps between log lines
    use_visualdl: bool = False  # scalars for VisualDL in OUTPUT_DIR/ARCH/vdl
    to_static: bool = False  # compile the network with paddle.jit.to_static
    image_shape: list[int] = field(default_factory=lambda: [3, 224, 224])  # C, H, W
    save_inference_dir: str = "./inference"  # where an export goes
    test_size: int | None = None  # side of the images tested, instead of the transforms' own
    test_crop_ratio: float | None = None  # test_size over the resized shorter side
    test_flip: bool = False  # average the logits of an image and its mirror image in testing
    results_dir: str | None = None  # detection: where an evaluation writes what it found
    eval_mode: Literal["classification", "detection"] = "classification"
    task: Literal["classification", "detection"] = "classification"
    use_dali: Literal[False] = False  # PaddleClas's key; this project has no DALI pipeline

    def __post_init__(self) -> None:
        schema.at_least(
            0,
            seed=self.seed,
            val_seed=self.val_seed,
            start_eval_epoch=self.start_eval_epoch,
            max_nonfinite=self.max_nonfinite,
            check_ranks_interval=self.check_ranks_interval,
        )
        schema.at_least(
            1,
            epochs=self.epochs,
            update_freq=self.update_freq,
            max_steps=self.max_steps,
            unfreeze_epoch=self.unfreeze_epoch,
            save_interval=self.save_interval,
            save_interval_steps=self.save_interval_steps,
            keep_last=self.keep_last,
            eval_interval=self.eval_interval,
            print_batch_step=self.print_batch_step,
        )
        if self.unfreeze_epoch is not None:
            self._check_unfreezing(self.unfreeze_epoch)
        self._check_testing()
        if self.freeze and self.to_static:
            raise ValueError("freeze: expected none with to_static, whose programs do not change")
        if not 0 < self.val_fraction < 1:
            raise ValueError(
                f"val_fraction: expected a number in (0, 1), got {self.val_fraction!r}"
            )
        if len(self.image_shape) != 3 or min(self.image_shape) < 1:
            raise ValueError(f"image_shape: expected [C, H, W] above 0, got {self.image_shape}")

    def _check_testing(self) -> None:
        schema.at_least(SMALLEST, test_size=self.test_size)
        ratio = self.test_crop_ratio
        if ratio is not None and not 0 < ratio <= 1:
            raise ValueError(f"test_crop_ratio: expected a number in (0, 1], got {ratio:g}")
        if ratio is not None and self.test_size is None:
            raise ValueError("test_crop_ratio: expected test_size beside it, found none")
        if self.task == "detection":
            given = [key for key in ("test_size", "test_flip") if getattr(self, key)]
            if given:
                raise ValueError(f"{given[0]}: expected none with task: detection")

    def _check_unfreezing(self, epoch: int) -> None:
        if not self.freeze:
            raise ValueError("unfreeze_epoch: expected freeze to name parts, found none")
        if epoch >= self.epochs:
            raise ValueError(
                f"unfreeze_epoch: expected a number < {self.epochs} (Global.epochs), got {epoch}"
            )


@dataclass(frozen=True, kw_only=True)
class AMPConfig:
    """The section `AMP`: mixed precision in training and in the evaluation during it."""

    use_amp: bool = True
    level: Literal["O0", "O1", "O2"] = "O1"
    dtype: Literal["float16", "bfloat16"] = "float16"
    scale_loss: float = 65536.0  # the initial scale with float16
    use_dynamic_loss_scaling: bool = True
    use_promote: bool = False
    custom_white_list: list[str] | None = None  # operators also cast
    custom_black_list: list[str] | None = None  # operators kept in float32
    use_fp16_test: bool = False  # PaddleClas's key: evaluation follows `level` here

    def __post_init__(self) -> None:
        if self.scale_loss <= 0:
            raise ValueError(f"scale_loss: expected a number > 0, got {self.scale_loss}")
        both = sorted({*(self.custom_white_list or ())} & {*(self.custom_black_list or ())})
        if both:
            raise ValueError(
                f"custom_white_list: expected none of custom_black_list, got {', '.join(both)}"
            )


@dataclass(frozen=True, kw_only=True)
class EMAConfig:
    """The section `EMA`: an exponential moving average of the weights beside them.

    Update number n, from 0, moves the average by 1 - min(decay, (1 + n) / (10 + n)) of the way to
    the weights. Without the warm-up, the second term, it is 1 - decay from the start, as in
    PaddleClas, and a short run's average is mostly its initial weights.
    """

    decay: float = 0.9999
    warmup: bool = True
    best_by: Literal["ema", "raw"] = "ema"  # whose evaluation chooses best_model

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay: expected a number in [0, 1), got {self.decay:g}")


@dataclass(frozen=True, kw_only=True)
class DistributedConfig:
    """The section `Distributed`: how processes average gradients, `paddle.DataParallel`'s options.

    Gradients travel in buckets, each as soon as the backward pass has filled it.
    """

    comm_buffer_size: int = 25  # MB of a bucket
    last_comm_buffer_size: float = 1.0  # MB of the bucket that is full last, the first layers'
    find_unused_parameters: bool = False  # needed when a step leaves parameters out; slower

    def __post_init__(self) -> None:
        schema.at_least(1, comm_buffer_size=self.comm_buffer_size)
        if self.last_comm_buffer_size <= 0:
            raise ValueError(
                f"last_comm_buffer_size: expected a number > 0, got {self.last_comm_buffer_size}"
            )


@dataclass(frozen=True, kw_only=True)
class PhaseConfig:
    """A section with one list for training and one for evaluation."""

    Train: list | None = None
    Eval: list | None = None


@dataclass(frozen=True, kw_only=True)
class LoaderSections:
    """The section `DataLoader`."""

    Train: DataLoaderConfig | None = None
    Eval: DataLoaderConfig | None = None


@dataclass(frozen=True, kw_only=True)
class PostProcessConfig:
    """The section `Infer.PostProcess`."""

    name: Literal["Topk"] = "Topk"
    topk: int = 5
    class_id_map_file: str | None = None  # lines of `id name`
    delimiter: str | None = None  # between id and name; white space when absent
    class_names: list[str] | None = None  # the names themselves, instead of the file

    def __post_init__(self) -> None:
        schema.at_least(1, topk=self.topk)
        if self.class_names is not None and self.class_id_map_file is not None:
            raise ValueError("class_names: expected either this or class_id_map_file, got both")


@dataclass(frozen=True, kw_only=True)
class InferConfig:
    """The section `Infer`."""

    infer_imgs: str | None = None  # an image, a text file that lists images, or a folder
    batch_size: int = 10
    transforms: list | None = None
    PostProcess: PostProcessConfig = field(default_factory=PostProcessConfig)
    Detection: DetectionConfig = field(default_factory=DetectionConfig)  # which boxes are kept
    threshold: float = 0.5  # detection: scores from which boxes are drawn and logged
    label_list: str | None = None  # detection: names of the labels 1, 2..., one a line
    output_dir: str = "./output/infer"  # detection: where pictures with boxes go

    def __post_init__(self) -> None:
        schema.at_least(1, batch_size=self.batch_size)
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold: expected a number from 0 to 1, got {self.threshold}")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole recipe. `source` is the file it came from, for messages.

    `Arch` is about the network that trains, is saved and used: of a distillation, the student.
    """

    Global: GlobalConfig
    Arch: dict[str, Any]
    AMP: AMPConfig | None = None
    Distributed: DistributedConfig = field(default_factory=DistributedConfig)
    Loss: PhaseConfig = field(default_factory=PhaseConfig)
    Optimizer: dict[str, Any] = field(default_factory=dict)
    DataLoader: LoaderSections = field(default_factory=LoaderSections)
    Infer: InferConfig = field(default_factory=InferConfig)
    Metric: PhaseConfig = field(default_factory=PhaseConfig)
    EMA: EMAConfig | None = None
    distillation: Distillation | None = None  # what `Arch.name: DistillationModel` adds
    source: str = ""

    def __post_init__(self) -> None:
        if self.distillation is not None and self.Global.task != "classification":
            raise ConfigError(
                f"Global.task: expected classification with Arch.name: {DISTILLATION_MODEL}, whose "
                f"losses compare logits of classes, got {self.Global.task}"
            )
        # A parameter whose first gradient comes after the first update makes Paddle fail.
        if self.Distributed.find_unused_parameters and self.Optimizer.get("use_multi_tensor"):
            raise ConfigError(
                "Distributed.find_unused_parameters: expected False with "
                "Optimizer.use_multi_tensor, whose first update fixes the parameters, got True"
            )
        if self.DataLoader.Train is not None and self.DataLoader.Train.progressive is not None:
            self._check_progressive(self.DataLoader.Train.progressive)

    def _check_progressive(self, sizes: ProgressiveConfig) -> None:
        where = "DataLoader.Train.progressive"
        if self.Global.task == "detection":
            raise ConfigError(f"{where}: expected none with Global.task: detection, got sizes")
        if self.Global.to_static:
            raise ConfigError(
                f"{where}: expected none with Global.to_static, whose network takes one size"
            )
        if sizes.end_epoch > self.Global.epochs:
            raise ConfigError(
                f"{where}.end_epoch: expected at most {self.Global.epochs} (Global.epochs), "
                f"got {sizes.end_epoch}"
            )

    @classmethod
    def parse(cls, mapping: Mapping[str, Any], source: str) -> Recipe:
        """Check a mapping in the schema of PaddleClas 2.6 and give it types.

        Raises ConfigError, ending in the file's name, for an unknown key or a wrong value.
        """
        try:
            schema.check_keys(mapping, SECTIONS, "the recipe")
            present = {key: value for key, value in mapping.items() if value is not None}
            values = {"Global": {}, **present}
            fields = {f.name: f for f in dataclasses.fields(cls)}
            if "Arch" not in values:
                raise ConfigError("Arch: expected a section with a 'name', found none")
            typed = {
                key: schema.coerce(value, _section_types()[key], key)
                for key, value in values.items()
                if key in fields
            }
            if typed["Arch"].get("name") == DISTILLATION_MODEL:
                typed["distillation"], typed["Arch"] = split_section(typed["Arch"])
            return cls(source=source, **typed)
        except ConfigError as error:
            raise ConfigError(f"{error} ({source})") from error

    @property
    def arch_name(self) -> Any:
        """`Arch.name` as it is written."""
        return self.Arch.get("name") if self.distillation is None else DISTILLATION_MODEL

    @property
    def arch_where(self) -> str:
        """Where what is in `Arch` is written, for messages."""
        return "Arch" if self.distillation is None else self.distillation.student_where

    @property
    def class_num(self) -> int:
        """Classes of the network; a detector counts the background too."""
        default = {"classification": 1000, "detection": 81}[self.Global.task]
        where = f"{self.arch_where}.class_num"
        return schema.coerce(self.Arch.get("class_num", default), int, where)

    def to_mapping(self) -> dict[str, Any]:
        """Return the recipe with every default filled in, as plain values a YAML file can hold."""
        mapping = dataclasses.asdict(self)
        if self.distillation is not None:
            mapping["Arch"] = self.distillation.joined(mapping["Arch"])
        del mapping["source"], mapping["distillation"]
        return _without_none(mapping)

    def to_yaml(self) -> str:
        return yaml.safe_dump(
            self.to_mapping(), sort_keys=False, default_flow_style=None, allow_unicode=True
        )


def _section_types() -> dict[str, Any]:
    return {
        "Global": GlobalConfig,
        "Arch": dict[str, Any],
        "AMP": AMPConfig,
        "Distributed": DistributedConfig,
        "Loss": PhaseConfig,
        "Optimizer": dict[str, Any],
        "DataLoader": LoaderSections,
        "Infer": InferConfig,
        "Metric": PhaseConfig,
        "EMA": EMAConfig,
    }


def _without_none(node: Any) -> Any:
    """Drop absent values; a transform without parameters keeps its null."""
    if isinstance(node, dict):
        return {k: _without_none(v) for k, v in node.items() if v is not None or len(node) == 1}
    return [_without_none(item) for item in node] if isinstance(node, (list, tuple)) else node


def load_recipe(
    path: str | Path, overrides: Sequence[str] = (), world_size: int = 1
) -> tuple[Recipe, list[str]]:
    """Read a recipe file with its overrides; see `ppcls.utils.config.load`.

    Returns the recipe and, for a release/2.0 file, the lines that tell its translation.
    """
    mapping, lines = config_file.load(path, overrides, world_size)
    return Recipe.parse(mapping, str(path)), lines
