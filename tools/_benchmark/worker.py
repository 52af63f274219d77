"""One contestant of the case `infer` in a process of its own.

    python worker.py JSON-DESCRIPTION

Its own process gives it the environment it would have alone, and its peak memory. It reads lines
from standard input: a number runs the network so many times and answers with a JSON list of
milliseconds; `end` answers with its peak memory in bytes, and that of Paddle's tensors, and ends.
Before the first line it says that it is ready.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[n]) for n in (1, 2)]

from _benchmark import networks  # noqa: E402
from ppcls.deploy.telemetry import import_quietly  # noqa: E402

Run = Callable[..., Any]  # takes what `networks.inputs` gives


def open_export(spec: dict[str, Any]) -> Run:
    """A form of an export folder, through this project's runtimes."""
    from ppcls.deploy.package import read_manifest
    from ppcls.deploy.runtimes import open_runtime

    folder = Path(spec["folder"])
    opened = open_runtime(
        folder,
        read_manifest(folder),
        spec["form"],
        threads=spec["threads"],
        precision=spec["precision"],
    )
    return lambda *inputs: opened.run(inputs)


def open_dygraph(spec: dict[str, Any]) -> Run:
    """This project's network as its tools run it, a detector with its post-processing."""
    from ppcls.ops.accelerate import accelerate

    model = _build(spec)
    accelerate(model)
    return _dygraph(model)


def _build(spec: dict[str, Any]) -> Any:
    from ppcls.utils.runtime import import_paddle

    import_paddle()
    return networks.build(spec["network"])


def open_wheel(spec: dict[str, Any]) -> Run:
    """The network of PaddleClas's wheel, in the process as the wheel starts it."""
    from ppcls.arch import zoo

    return _dygraph(zoo.wheel_builder(spec["network"])())


def _dygraph(model: Any) -> Run:
    import paddle

    model.eval()

    def run(*inputs: np.ndarray) -> list[np.ndarray]:
        with paddle.no_grad():
            outputs = model(*map(paddle.to_tensor, inputs))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return [output.numpy() for output in outputs]

    return run


def open_dygraph_loop(spec: dict[str, Any]) -> Run:
    """A detector's network as it is built, and post-processing by Paddle, class by class."""
    detector = _build(spec)
    import paddle

    from _benchmark.postprocess_loops import paddle_loop

    return _with_loop(detector, lambda x: detector.network(paddle.to_tensor(x)), paddle_loop)


def open_paddle_loop(spec: dict[str, Any]) -> Run:
    """A detector's network in Paddle Inference, and post-processing by NumPy, class by class."""
    detector = _build(spec)
    import paddle

    from _benchmark.postprocess_loops import numpy_loop

    network = open_paddle(spec)
    return _with_loop(detector, lambda x: map(paddle.to_tensor, network(x)), numpy_loop)


def _with_loop(detector: Any, network: Run, loop: Callable[..., np.ndarray]) -> Run:
    """Run `network`, which gives loc and conf as tensors, then `loop` for image after image."""
    import paddle

    priors, config = detector.priors, detector.post.config

    def run(images: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
        with paddle.no_grad():
            given = [*network(images), paddle.to_tensor(sizes)]
            parts = ([tensor[i : i + 1] for tensor in given] for i in range(len(images)))
            return [loop(loc, conf, priors, size, config) for loc, conf, size in parts]

    return run


def open_paddle(spec: dict[str, Any]) -> Run:
    """A program of Paddle's in Paddle Inference with oneDNN, as PaddleClas's predictor sets it."""
    from paddle import inference

    config = inference.Config(spec["program"], spec["weights"])
    config.disable_gpu()
    config.disable_glog_info()
    config.enable_mkldnn()
    config.set_mkldnn_cache_capacity(10)
    config.set_cpu_math_library_num_threads(spec["threads"])
    predictor = inference.create_predictor(config)
    source = predictor.get_input_handle(predictor.get_input_names()[0])
    targets = [predictor.get_output_handle(name) for name in predictor.get_output_names()]

    def run(x: np.ndarray) -> list[np.ndarray]:
        source.copy_from_cpu(x)
        predictor.run()
        return [target.copy_to_cpu() for target in targets]

    return run


def open_torch(spec: dict[str, Any]) -> Run:
    """The twin in PyTorch, eager."""
    import torch

    from _benchmark.torch_twin import build
    from ppcls.arch.backbone.hardnet_plan import VARIANTS

    torch.set_num_threads(spec["threads"])
    model = build(VARIANTS[spec["network"]]).eval()

    def run(x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.from_numpy(x)).numpy()

    return run


def open_onnx(spec: dict[str, Any]) -> Run:
    """An ONNX file in ONNX Runtime with its own defaults but for the threads."""
    onnxruntime = import_quietly("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = spec["threads"]
    session = onnxruntime.InferenceSession(spec["path"], options, ["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})


def open_openvino(spec: dict[str, Any]) -> Run:
    """An ONNX file in OpenVINO, in float32."""
    openvino = import_quietly("openvino")
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": spec["threads"],
    }
    core = openvino.Core()
    model = core.read_model(spec["path"])
    model.reshape(spec["shape"])  # the best case: one size
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    return lambda x: request.infer([x], share_inputs=True)


OPENERS: dict[str, Callable[[dict[str, Any]], Run]] = {
    "export": open_export,
    "dygraph": open_dygraph,
    "dygraph-loop": open_dygraph_loop,
    "wheel": open_wheel,
    "paddle": open_paddle,
    "paddle-loop": open_paddle_loop,
    "torch": open_torch,
    "onnx": open_onnx,
    "openvino": open_openvino,
}


def serve(spec: dict[str, Any], answers: TextIO, measure: Callable[[], Any]) -> None:
    """Answer the lines of standard input: a number with so many measurements."""
    for _ in range(spec["warmup"]):
        measure()
    print(json.dumps("ready"), file=answers)
    for line in sys.stdin:
        if line.strip() == "end":
            break
        print(json.dumps([measure() for _ in range(int(line))]), file=answers)
    from ppcls.utils.runtime import peak_bytes, peak_tensor_bytes

    print(json.dumps([peak_bytes(), peak_tensor_bytes()]), file=answers)


def answers_alone() -> TextIO:
    """Standard output for the answers; what libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return answers


def main() -> int:
    answers = answers_alone()
    spec = json.loads(sys.argv[1])
    run = OPENERS[spec["kind"]](spec)
    given = networks.inputs(spec["network"], spec["batch"], spec["size"])

    def milliseconds() -> float:
        start = time.perf_counter()
        run(*given)
        return 1000 * (time.perf_counter() - start)

    serve(spec, answers, milliseconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
