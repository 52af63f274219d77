"""Export folders of tiny networks, written with the tools' own functions and nothing of ours."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import paddle
from paddle import nn

from ppcls.arch.backbone.hardnet import HarDNet
from ppcls.arch.backbone.hardnet_plan import HarDNetSpec, Stage
from ppcls.deploy.openvino_packages import openvino_core
from ppcls.deploy.package import InputSpec, Manifest, write_manifest

SIZE = 32
NAMES = ["ant", "bee", "cow", "dog", "eel"]
DECODE = {"DecodeImage": {"backend": "pil"}}
RESIZE = {"ResizeImage": {"size": SIZE, "backend": "pil"}}
NORMALIZE = {
    "NormalizeImage": {"scale": "1.0/255.0", "mean": [0.5] * 3, "std": [0.5] * 3, "order": ""}
}
CLASSIFIER = Manifest(
    task="classification",
    arch="HarDNetTiny",
    class_num=5,
    input=InputSpec(shape=[None, 3, SIZE, SIZE]),
    output="logits",
    transform_ops=[DECODE, RESIZE, NORMALIZE, "ToCHWImage"],
    class_names=NAMES,
    topk=3,
)
DETECTOR = Manifest(
    task="detection",
    arch="BrightHalves",
    class_num=3,
    input=InputSpec(shape=[None, 3, SIZE, SIZE]),
    output="detections",
    transform_ops=[
        {"DecodeImage": {"to_rgb": False}},
        {"Resize": {"target_size": SIZE}},
        {"NormalizeImage": {"scale": "1.0/255.0", "mean": [0] * 3, "std": [1] * 3, "order": "hwc"}},
        "Permute",
    ],
    class_names=["background", "left", "right"],
    threshold=0.75,
)


def tiny_hardnet(seed: int = 0) -> HarDNet:
    """A HarDNet of two small blocks, in evaluation mode, whose logits are of the order of 1."""
    paddle.seed(seed)
    stages = (
        Stage(growth=4, layers=4, out_channels=16, downsample=True),
        Stage(growth=6, layers=2, out_channels=24, downsample=False),
    )
    spec = HarDNetSpec(stem=(6, 12), depthwise=True, multiplier=1.6, dropout=0.1, stages=stages)
    network = HarDNet(spec, len(NAMES))
    norms = [layer for layer in network.sublayers() if isinstance(layer, nn.BatchNorm2D)]
    for norm in norms:
        norm._momentum = 0.0  # the statistics of one batch, and not of none
    pixels = np.random.default_rng(1).uniform(-1, 1, (16, 3, SIZE, SIZE)).astype("float32")
    with paddle.no_grad():
        network(paddle.to_tensor(pixels))
        network.eval()
        head = network.base[-1].sublayers()[-1]
        head.weight.set_value(head.weight / network(paddle.to_tensor(pixels)).std())
    return network


def two_layers(seed: int = 0) -> nn.Sequential:
    """A classifier that is written in no time."""
    paddle.seed(seed)
    network = nn.Sequential(
        nn.Conv2D(3, 4, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2D(1),
        nn.Flatten(),
        nn.Linear(4, len(NAMES), weight_attr=nn.initializer.Normal(0.0, 4.0)),
    )
    network.eval()
    return network


class BrightHalves(nn.Layer):
    """A detector that needs no suppression: the halves of a picture that are bright enough."""

    def __init__(self) -> None:
        super().__init__()
        one = nn.initializer.Constant(1.0)
        self.gain = self.create_parameter([1], default_initializer=one)

    def forward(self, image, image_sizes):
        image = image * self.gain
        left, right = image[:, :, :, : SIZE // 2], image[:, :, :, SIZE // 2 :]
        scores = paddle.stack([left.mean([1, 2, 3]), right.mean([1, 2, 3])], axis=1)  # [N, 2]
        width, height = image_sizes[:, :1], image_sizes[:, 1:]
        zero = paddle.zeros_like(width)
        boxes = paddle.stack(
            [
                paddle.concat([zero, zero, width / 2, height], axis=1),
                paddle.concat([width / 2, zero, width, height], axis=1),
            ],
            axis=1,
        )  # [N, 2, 4]
        labels = paddle.ones_like(scores) * paddle.to_tensor([1.0, 2.0])
        rows = paddle.concat([paddle.stack([labels, scores], axis=2), boxes], axis=2)
        is_found = (scores > 0.5).astype("float32")
        kept = paddle.nonzero(is_found.flatten()).flatten()
        counts = (2 * is_found.mean(axis=1)).astype("int32")  # `sum` traces into PIR alone
        return paddle.gather(rows.reshape([-1, 6]), kept), counts


def write_export(
    folder: Path, network: nn.Layer, manifest: Manifest, forms: tuple[str, ...]
) -> Path:
    """Write `forms` of a network and the manifest; "openvino-int8" holds the float32 network."""
    folder.mkdir(parents=True, exist_ok=True)
    spec = manifest.input
    inputs = [paddle.static.InputSpec(list(spec.shape), spec.dtype, name="image")]
    if manifest.task == "detection":
        inputs.append(paddle.static.InputSpec([spec.shape[0], 2], "float32", name="image_sizes"))
    _save(network, inputs, folder, "paddle" in forms)
    if set(forms) & {"onnx", "openvino", "openvino-int8"}:
        _save_onnx(folder)
    for form, name in (("openvino", "inference.xml"), ("openvino-int8", "inference_int8.xml")):
        if form in forms:
            import openvino

            model = openvino_core().read_model(folder / "inference.onnx")
            openvino.save_model(model, folder / name, compress_to_fp16=False)
    write_manifest(folder, manifest, forms)
    return folder


def _save(network: nn.Layer, inputs: list, folder: Path, with_old: bool) -> None:
    """Write Paddle's programs, which share the file of weights; Paddle 2 has the old one alone."""
    network.eval()

    def save() -> None:
        static = paddle.jit.to_static(network, input_spec=inputs, full_graph=True)
        paddle.jit.save(static, str(folder / "inference"))

    save()
    if with_old and not paddle.__version__.startswith("2."):
        with paddle.pir_utils.OldIrGuard():
            save()


def _save_onnx(folder: Path) -> None:
    import paddle2onnx

    program, weights = folder / "inference.json", folder / "inference.pdiparams"
    target = folder / "inference.onnx"
    # Not its default tool, polygraphy, which would install packages.
    paddle2onnx.export(
        str(program), str(weights), str(target), opset_version=17, optimize_tool="none"
    )
    assert target.is_file()


def installed_forms() -> tuple[str, ...]:
    """The forms that can be written and run here."""
    has = {
        name: importlib.util.find_spec(name) is not None
        for name in ("paddle2onnx", "onnxruntime", "openvino")
    }
    forms = ["paddle"]
    if has["paddle2onnx"] and has["onnxruntime"]:
        forms.append("onnx")
    if has["paddle2onnx"] and has["openvino"]:
        forms += ["openvino", "openvino-int8"]
    return tuple(forms)
