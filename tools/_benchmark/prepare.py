"""Write what the case `infer` runs: a network's export folder, and the files of the references.

    python prepare.py FOLDER NETWORK SIZE ours|int8|program|wheel|torch|comparison...

Its last line of standard output is JSON: the forms in FOLDER/ours, which references are there, and
what was left out and why.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from _benchmark import networks  # noqa: E402

CLASSES = 1000
COMPARISON = "ResNet50"
_CALIBRATION = 8  # images


def export(plan: Any, folder: Path, with_int8: bool) -> None:
    """Write an export folder as tools/export_model.py does, and how many bytes each form has."""
    from ppcls.deploy.export import TOLERANCE, WRITERS
    from ppcls.deploy.export import export as write
    from ppcls.engine import exporting_detector

    is_detector = plan.manifest.task == "detection"
    tolerance = exporting_detector.TOLERANCE if is_detector else TOLERANCE
    forms = [form for form in ("paddle", "onnx", "openvino") if _has(WRITERS[form].packages)]
    manifest = write(plan, folder, forms, tolerance=tolerance)
    if with_int8:
        manifest = _quantize(folder, plan.checks[0].inputs[0].shape[-1])
    sizes = {
        form: sum((folder / file).stat().st_size for file in files)
        for form, files in manifest.forms.items()
    }
    (folder / "sizes.json").write_text(json.dumps(sizes))


def classifier_plan(model: Any, name: str, size: int) -> Any:
    import paddle
    from paddle.static import InputSpec

    from ppcls.deploy.export import Plan
    from ppcls.deploy.fuse import fuse
    from ppcls.deploy.graph import Classifier
    from ppcls.deploy.verify import Check

    given = networks.inputs(name, 1, size)
    with paddle.no_grad():
        expected = model(paddle.to_tensor(given[0])).numpy()
    traced = [InputSpec([None, 3, size, size], "float32", "image")]
    return Plan(
        layer=Classifier(fuse(model, traced)),
        inputs=traced,
        manifest=_manifest("classification", name, CLASSES, size, "logits"),
        checks=[Check(given, [expected])],
    )


def detector_plan(model: Any, name: str, size: int) -> Any:
    import paddle

    from ppcls.deploy.detector import Detector, input_specs
    from ppcls.deploy.export import Plan
    from ppcls.deploy.fuse import fuse
    from ppcls.deploy.verify import Check
    from ppcls.engine.exporting_detector import compare_detections

    given = networks.inputs(name, 1, size)
    with paddle.no_grad():
        expected = [output.numpy() for output in model(*map(paddle.to_tensor, given))]
    specs, post = input_specs(size), model.post
    fused = fuse(model.network, specs[:1])
    return Plan(
        layer=Detector(fused, model.priors.numpy(), post.class_num, post.config),
        inputs=specs,
        manifest=_manifest("detection", name, post.class_num, size, "detections"),
        checks=[Check(given, expected)],
        compare=compare_detections,
    )


def _manifest(task: Any, name: str, class_num: int, size: int, output: Any) -> Any:
    from ppcls.deploy.package import InputSpec, Manifest

    return Manifest(
        task=task,
        arch=name,
        class_num=class_num,
        input=InputSpec(shape=[None, 3, size, size]),
        output=output,
        transform_ops=[{"DecodeImage": None}, {"ToCHWImage": None}],
    )


def _has(packages: tuple[str, ...]) -> bool:
    return all(importlib.util.find_spec(package) is not None for package in packages)


def _quantize(folder: Path, size: int) -> Any:
    """Add int8. Its weights are random, so no score is held: the speed is the same."""
    from ppcls.deploy.nncf_run import QuantizeConfig
    from ppcls.deploy.package import read_manifest, write_manifest
    from ppcls.deploy.quantize import quantize_form

    manifest = read_manifest(folder)
    given = networks.inputs(manifest.arch, _CALIBRATION, size)
    config = QuantizeConfig(subset_size=_CALIBRATION, ranges=("minmax",), ranking_images=0)
    quantize_form(folder, manifest, [given], lambda infer: 0.0, max_drop=0.0, config=config)
    return write_manifest(folder, manifest, [*manifest.forms, "openvino-int8"])


def program(folder: Path, model: Any, size: int) -> list[str]:
    """Write a detector's network, without post-processing, as Paddle itself does; return where."""
    import paddle

    from ppcls.deploy.detector import input_specs

    prefix = folder / "network"
    paddle.jit.save(model.network, str(prefix), input_specs(size)[:1])
    found = (prefix.with_suffix(suffix) for suffix in (".json", ".pdmodel"))
    return [str(next(filter(Path.is_file, found))), f"{prefix}.pdiparams"]


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
    made: dict[str, Any] = {name: name not in without for name in wanted}
    model = networks.build(network)
    make_plan = detector_plan if network in networks.DETECTORS else classifier_plan
    export(make_plan(model, network, size), folder / "ours", made.get("int8", False))
    if made.get("program"):
        made["program"] = program(folder, model, size)
    if made.get("wheel"):
        wheel(folder, network)
    if made.get("torch"):
        twin(folder, network, size)
    if made.get("comparison"):
        other = classifier_plan(networks.build(COMPARISON), COMPARISON, size)
        export(other, folder / "comparison", False)
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
