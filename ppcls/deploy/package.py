"""The export folder: which files it has, what they compute, and whether they are whole.

    DIR/inference.yml            what is here (this module's `Manifest`)
    DIR/label_list.txt           lines of `id name`, for other tools; not checked
    DIR/inference.json           Paddle 3's program (*)     } form "paddle"
    DIR/inference.pdmodel        Paddle 2's program         }
    DIR/inference.pdiparams      the weights of both        }
    DIR/inference.onnx           form "onnx"
    DIR/inference.xml, .bin      form "openvino"
    DIR/inference_int8.xml, .bin form "openvino-int8"

(*) not there when Paddle 2 wrote the folder; Paddle 3 loads Paddle 2's program too.

`inference.yml` keeps PaddleClas's sections `Global`, `PreProcess` and `PostProcess`, which other
Paddle tools read, and adds a section `Deploy`.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from ppcls.utils import config as config_file
from ppcls.utils import schema
from ppcls.utils.errors import UserError
from ppcls.utils.fileio import atomic_write_text, map_file

MANIFEST = "inference.yml"
LABELS = "label_list.txt"
VERSION = 1
# Which one runs when nobody says so: `ppcls.deploy.runtimes.PREFERENCE`.
FORMS: dict[str, tuple[str, ...]] = {
    "openvino": ("inference.xml", "inference.bin"),
    "onnx": ("inference.onnx",),
    "paddle": ("inference.json", "inference.pdmodel", "inference.pdiparams"),
    "openvino-int8": ("inference_int8.xml", "inference_int8.bin"),
}
_OPTIONAL = ("inference.json",)


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """The input called `image`: a batch of images.

    shape: all four sizes, in the order of `layout`; None may be anything. uint8 with NHWC means
    that normalisation is inside the network, float32 with NCHW that `transform_ops` does it.
    """

    shape: list[int | None]
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    dtype: Literal["float32", "uint8"] = "float32"

    def __post_init__(self) -> None:
        if len(self.shape) != 4:
            raise ValueError(f"shape: expected 4 sizes, got {self.shape}")
        if any(size is not None and size < 1 for size in self.shape):
            raise ValueError(f"shape: expected sizes from 1, or null, got {self.shape}")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an export folder computes.

    A classifier has one input `image` and one output [N, class_num] float32, logits or
    probabilities. A detector has a second input `image_sizes` [N, 2] float32, (width, height) of
    the original images in pixels, and two outputs: detections [K, 6] float32 with rows (class,
    score, x1, y1, x2, y2) and how many each image has, [N] int32 (see
    `ppcls.arch.detection.postprocess.PostProcess.forward`).
    """

    task: Literal["classification", "detection"]
    arch: str
    class_num: int  # a detector counts the background too
    input: InputSpec
    output: Literal["logits", "probabilities", "detections"]
    transform_ops: list  # from a file's bytes to the network's input, in PaddleClas's YAML form
    class_names: list[str] | None = None  # of the classes 0 to class_num - 1 (0: the background)
    topk: int = 5  # classes a prediction names
    threshold: float = 0.5  # of detections that are shown
    detection: dict[str, Any] | None = None  # what post-processing keeps, as `Infer.Detection`
    # form -> file name -> SHA-256
    forms: dict[str, dict[str, str]] = field(default_factory=dict)
    # form -> largest difference from the network in dygraph, as measured when it was written
    differences: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)  # of what wrote the folder

    def __post_init__(self) -> None:
        schema.at_least(1, class_num=self.class_num, topk=self.topk)
        if self.class_names is not None and len(self.class_names) != self.class_num:
            raise ValueError(
                f"class_names: expected {self.class_num} names, got {len(self.class_names)}"
            )
        unknown = next((form for form in self.forms if form not in FORMS), None)
        if unknown is not None:
            raise ValueError(f"forms: unknown form {unknown!r}; known: {', '.join(FORMS)}")
        if (self.task == "detection") != (self.output == "detections"):
            raise ValueError(f"output: expected one of a {self.task} network, got {self.output!r}")
        if self.task == "detection" and self.class_num < 2:
            raise ValueError(f"class_num: expected 2 or more of a detector, got {self.class_num}")


class _Dumper(yaml.SafeDumper):
    """Plain YAML: a list that occurs twice is written twice, and not as an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def write_manifest(folder: Path, manifest: Manifest, forms: Iterable[str]) -> Manifest:
    """Write `inference.yml` for the files of `forms` in `folder`, with their SHA-256.

    Returns the manifest with `forms` filled in. Raises UserError when a form's file is missing.
    """
    hashes = {
        form: {
            name: _sha256(folder / name)
            for name in FORMS[form]
            if name not in _OPTIONAL or (folder / name).exists()
        }
        for form in forms
    }
    manifest = dataclasses.replace(manifest, forms=hashes)
    section = {
        key: value
        for key, value in dataclasses.asdict(manifest).items()
        if key not in ("arch", "transform_ops", "topk", "class_names") and value is not None
    }
    post = {"topk": manifest.topk, "label_list": manifest.class_names}
    content = {
        "Global": {"model_name": manifest.arch},
        "PreProcess": {"transform_ops": manifest.transform_ops},
        "PostProcess": {"Topk" if manifest.task == "classification" else "Detection": post},
        "Deploy": {"version": VERSION, **section},
    }
    text = yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    atomic_write_text(folder / MANIFEST, text)
    return manifest


def read_manifest(folder: str | Path) -> Manifest:
    """Read `inference.yml` of an export folder; the other files are not looked at.

    Raises UserError for a folder that is no export of this project.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: expected an export folder, found no folder of that name")
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(
            f"{folder}: expected an export folder with {MANIFEST}, found none; "
            "tools/export_model.py writes one"
        )
    content = config_file.read_mapping(path)  # not of a recipe: `_BASE_` names no file here
    section = content.get("Deploy")
    if not isinstance(section, dict):
        raise UserError(f"{path}: expected a section 'Deploy', found none")
    values = dict(section)
    version = values.pop("version", None)
    if version != VERSION:
        raise UserError(f"{path}: Deploy.version: expected {VERSION}, got {version!r}")
    post = _section(content, "PostProcess", path)
    post = _section(post, next(iter(post), ""), path)
    values["arch"] = _section(content, "Global", path).get("model_name")
    values["transform_ops"] = _section(content, "PreProcess", path).get("transform_ops")
    values["class_names"] = post.get("label_list")
    values["topk"] = post.get("topk", 5)
    try:
        return schema.parse_dataclass(Manifest, values, "Deploy")
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def check_files(folder: str | Path, manifest: Manifest, form: str) -> None:
    """Raise UserError when a file of `form` is missing or is not the one that was exported."""
    folder = Path(folder)
    if form not in manifest.forms:
        there = ", ".join(manifest.forms) or "none"
        raise UserError(f"{folder}: expected the form {form!r}, found {there}")
    listed = manifest.forms[form]
    absent = next((n for n in FORMS[form] if n not in listed and n not in _OPTIONAL), None)
    if absent is not None:
        raise UserError(f"{folder / MANIFEST}: expected a SHA-256 of {absent!r}, found none")
    for name, expected in listed.items():
        if name not in FORMS[form]:
            raise UserError(f"{folder / MANIFEST}: unknown file {name!r} of the form {form!r}")
        found = _sha256(folder / name)
        if found != expected:
            raise UserError(
                f"{folder / name}: expected the exported file with SHA-256 {expected}, "
                f"found {found}; export it anew"
            )


def _section(content: dict, key: str, path: Path) -> dict:
    section = content.get(key)
    if not isinstance(section, dict):
        raise UserError(f"{path}: expected a section {key!r}, found {section!r}")
    return section


def _sha256(path: Path) -> str:
    return hashlib.sha256(map_file(path)).hexdigest()
