"""The command of PaddleClas's own wheel (2.6.0) that runs an export folder.

By itself the wheel cannot run anything exported for the Paddles this project supports. On Paddle 3
it takes the program `.json` and asks for a memory optimisation that exists for `.pdmodel` alone, so
Paddle must be told to prefer that one; on Paddle 2.6 it gives Paddle a folder where that expects a
file. Its way through ONNX Runtime works on both.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from ppcls.data.transforms import (
    CropImage,
    DecodeImage,
    NormalizeImage,
    ResizeImage,
    ToCHWImage,
    build_transforms,
)
from ppcls.deploy.package import LABELS, Manifest

# What the wheel's transforms take; our own take more.
_KEYS = {
    ResizeImage: ("size", "resize_short", "interpolation", "backend"),
    CropImage: ("size",),
    NormalizeImage: ("scale", "mean", "std", "order", "channel_num"),
    ToCHWImage: (),
}


def stock_command(folder: Path, manifest: Manifest) -> str | None:
    """Return the `paddleclas` command that classifies with the form "paddle" as this project does,
    or None when there is none: its input is float32, and it knows few transforms.

    It prints class ids and what the network gives as scores: probabilities only with softmax. With
    the form "onnx" it runs on Paddle 2.6 and 3 (and needs onnxruntime), without on Paddle 3 alone.
    """
    is_its_kind = manifest.task == "classification" and manifest.input.dtype == "float32"
    transforms = _translate(manifest.transform_ops) if is_its_kind else None
    if "paddle" not in manifest.forms or transforms is None:
        return None
    batch = manifest.input.shape[0]
    uses_onnx = "onnx" in manifest.forms
    words = [] if uses_onnx else ["FLAGS_enable_pir_api=0"]
    words += ["paddleclas", f"--inference_model_dir={folder}", "--infer_imgs=IMAGE"]
    words += [f"--topk={manifest.topk}"] if manifest.topk != 5 else []
    words += [f"--batch_size={batch}"] if batch not in (None, 1) else []
    if manifest.class_names is not None:
        words.append(f"--class_id_map_file={folder / LABELS}")
    words += ["-o", "Global.use_onnx=True"] if uses_onnx else []
    words += ["-o", f"PreProcess.transform_ops={json.dumps(transforms)}"]
    return shlex.join(words)


def _translate(entries: list) -> list[dict[str, Any]] | None:
    result: list[dict[str, Any]] = []
    for entry, transform in zip(
        entries, build_transforms(entries, "transform_ops").transforms, strict=True
    ):
        if isinstance(transform, DecodeImage):  # the wheel decodes by itself, with OpenCV
            if not transform.to_rgb or transform.channel_first:
                return None
            continue
        keys = _KEYS.get(type(transform))
        if keys is None:
            return None
        (params,) = entry.values() if isinstance(entry, dict) else (None,)
        known = {key: value for key, value in (params or {}).items() if key in keys}
        if isinstance(transform, NormalizeImage):
            known["scale"] = float(transform.scale)
        # As Python, which the wheel reads values as: JSON's null and booleans are not.
        known = {key: value for key, value in known.items() if value is not None}
        result.append({next(iter(entry)) if isinstance(entry, dict) else entry: known})
    return result
