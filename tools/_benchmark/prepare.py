"""Write what the case `infer` runs: a network's export folder, and the files of the references.

    python prepare.py FOLDER NETWORK SIZE ours|int8|wheel|torch|comparison...

Its last line of standard output is JSON: the forms in FOLDER/ours, which references are there, and
what was left out and why.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

CLASSES = 1000
COMPARISON = "ResNet50"


def export(model: Any, name: str, folder: Path, size: int, with_int8: bool) -> None:
    """Write an export folder as tools/export_model.py does, and how many bytes each form has."""
    import paddle
    from paddle.static import InputSpec

    from ppcls.deploy.export import WRITERS, Plan
    from ppcls.deploy.export import export as write
    from ppcls.deploy.fuse import fuse
    from ppcls.deploy.graph import Classifier
    from ppcls.deploy.package import InputSpec as ManifestInput
    from ppcls.deploy.package import Manifest
    from ppcls.deploy.verify import Check

    model.eval()
    x = np.random.default_rng(1).standard_normal((1, 3, size, size)).astype(np.float32)
    with paddle.no_grad():
        expected = model(paddle.to_tensor(x)).numpy()
    traced = [InputSpec([None, 3, size, size], "float32", "image")]
    plan = Plan(
        layer=Classifier(fuse(model, traced)),
        inputs=[InputSpec([None, 3, size, size], "float32", "image")],
        manifest=Manifest(
            task="classification",
            arch=name,
            class_num=CLASSES,
            input=ManifestInput(shape=[None, 3, size, size]),
            output="logits",
            transform_ops=[{"DecodeImage": None}, {"ToCHWImage": None}],
        ),
        checks=[Check([x], [expected])],
    )
    forms = [form for form in ("paddle", "onnx", "openvino") if _has(WRITERS[form].packages)]
    manifest = write(plan, folder, forms)
    if with_int8:
        manifest = _quantize(folder, size)
    sizes = {
        form: sum((folder / file).stat().st_size for file in files)
        for form, files in manifest.forms.items()
    }
    (folder / "sizes.json").write_text(json.dumps(sizes))


def _has(packages: tuple[str, ...]) -> bool:
    return all(importlib.util.find_spec(package) is not None for package in packages)


def _quantize(folder: Path, size: int) -> Any:
    """Add int8. Its weights are random, so no score is held: the speed is the same."""
    from ppcls.deploy.nncf_run import QuantizeConfig
    from ppcls.deploy.package import read_manifest, write_manifest
    from ppcls.deploy.quantize import quantize_form

    rng = np.random.default_rng(2)
    images = (rng.standard_normal((1, 3, size, size)).astype(np.float32) for _ in range(8))
    manifest = read_manifest(folder)
    config = QuantizeConfig(subset_size=8, ranges=("minmax",), ranking_images=0)
    quantize_form(folder, manifest, images, lambda infer: 0.0, max_drop=0.0, config=config)
    return write_manifest(folder, manifest, [*manifest.forms, "openvino-int8"])


def wheel(folder: Path, network: str) -> None:
    """The wheel's network as a program for Paddle Inference, in the older format."""
    import paddle
    from paddle.static import InputSpec

    from ppcls.arch import zoo
    from ppcls.deploy.programs import old_ir

    model = zoo.wheel_builder(network)()
    model.eval()
    spec = [InputSpec([None, 3, None, None], "float32", "x")]
    with old_ir():
        paddle.jit.save(model, str(folder / "wheel"), spec)


def twin(folder: Path, network: str, size: int) -> None:
    """The PyTorch twin as ONNX."""
    import torch

    from _benchmark.torch_twin import build
    from ppcls.arch.backbone.hardnet_plan import VARIANTS

    torch.onnx.export(
        build(VARIANTS[network]).eval(),
        (torch.zeros(1, 3, size, size),),
        str(folder / "torch.onnx"),
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "batch", 2: "height", 3: "width"}, "logits": {0: "batch"}},
        dynamo=False,
    )


def build(network: str) -> Any:
    """Build a network with the same random weights in every process."""
    import paddle

    from ppcls.arch import create_model

    paddle.seed(0)
    return create_model(network)


def left_out(wanted: list[str]) -> dict[str, str]:
    """What of `wanted` cannot be made here, and why."""
    needs = {"int8": "nncf", "wheel": "paddleclas", "torch": "torch", "comparison": "paddleclas"}
    missing = {name: needs[name] for name in wanted if name in needs and not _has((needs[name],))}
    return {name: f"the package {package!r} is not installed" for name, package in missing.items()}


def main(argv: list[str]) -> int:
    from ppcls.utils.runtime import import_paddle

    import_paddle()
    from ppcls.deploy.package import read_manifest

    folder, network, size, wanted = Path(argv[0]), argv[1], int(argv[2]), argv[3:]
    folder.mkdir(parents=True, exist_ok=True)
    without = left_out(wanted)
    made = {name: name in wanted and name not in without for name in wanted}
    export(build(network), network, folder / "ours", size, made.get("int8", False))
    if made.get("wheel"):
        wheel(folder, network)
    if made.get("torch"):
        twin(folder, network, size)
    if made.get("comparison"):
        export(build(COMPARISON), COMPARISON, folder / "comparison", size, False)
    forms = list(read_manifest(folder / "ours").forms)
    result = {**made, "forms": forms, "left_out": without, "has_bfloat16": has_bfloat16()}
    print(json.dumps(result))
    return 0


def has_bfloat16() -> bool:
    """Whether this processor computes in bfloat16."""
    import paddle

    return bool(paddle.base.core.supports_bfloat16())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
