"""Paddle Inference with oneDNN, for the form "paddle", on the CPU."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ppcls.deploy.package import Manifest
from ppcls.deploy.runtimes.base import Options, check_names, input_names, refused
from ppcls.utils.errors import UserError
from ppcls.utils.runtime import import_paddle, usable_cores

# Paddle 3 runs both. The older one is at least as fast there, and its memory can be optimised;
# Paddle 2 knows no other.
PROGRAM, WEIGHTS = "inference.pdmodel", "inference.pdiparams"
# What of a detector is in bfloat16: Paddle 3.3.1 fails at its post-processing, and the boxes, and
# what is concatenated to them, need all their digits.
_DETECTOR_BFLOAT16 = {"conv2d", "depthwise_conv2d", "fused_conv2d", "pool2d"}
_SHAPES = 16  # input shapes oneDNN keeps kernels for; each costs memory


class PaddleRuntime:
    """A predictor of Paddle Inference, which computes one call of `run` after the other."""

    def __init__(self, form: str, predictor: Any, names: list[str], threads: int) -> None:
        import paddle

        self.name = form
        self.threads, self.streams = threads, 1
        self.versions = {"paddle": paddle.__version__}
        self.predictor = predictor
        self._names = names
        self._lock = threading.Lock()

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        with self._lock:
            for name, array in zip(self._names, inputs, strict=True):
                handle = self.predictor.get_input_handle(name)
                handle.reshape(array.shape)
                handle.copy_from_cpu(array)
            self.predictor.run()
            names = self.predictor.get_output_names()
            return [self.predictor.get_output_handle(name).copy_to_cpu() for name in names]


def load(folder: Path, manifest: Manifest, form: str, options: Options) -> PaddleRuntime:
    """Open a form's files. Raises UserError for files or a precision that cannot be used.

    `hint` changes nothing here. A program that is none at all ends the process, inside Paddle: what
    keeps damaged files away is `check_files`.
    """
    import_paddle()
    import paddle
    from paddle import inference

    if options.precision == "bfloat16" and not paddle.base.core.supports_bfloat16():
        raise UserError(
            "precision: expected a processor that has bfloat16, but Paddle finds none; use float32"
        )
    path, threads = folder / PROGRAM, options.threads or usable_cores()
    config = inference.Config(str(path), str(folder / WEIGHTS))
    config.disable_gpu()
    config.disable_glog_info()
    config.enable_mkldnn()
    config.set_mkldnn_cache_capacity(_SHAPES)
    if options.precision == "bfloat16":
        config.enable_mkldnn_bfloat16()
        if manifest.task == "detection":
            config.set_bfloat16_op(_DETECTOR_BFLOAT16)
    config.enable_memory_optim()
    config.set_cpu_math_library_num_threads(threads)
    try:
        predictor = inference.create_predictor(config)
    except (RuntimeError, ValueError, OSError) as error:
        raise refused(path, "paddle", paddle.__version__, error) from error
    check_names(path, predictor.get_input_names(), manifest)
    return PaddleRuntime(form, predictor, input_names(manifest), threads)
