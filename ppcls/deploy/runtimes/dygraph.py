"""Paddle as it trains: a network in memory, to compare the exported forms with."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

import numpy as np
import paddle
from paddle import nn

from ppcls.arch.detection.postprocess import PostProcess, PostProcessConfig
from ppcls.arch.detection.ssd import SSD
from ppcls.deploy.package import Manifest
from ppcls.utils import schema

NAME = "dygraph"


class DygraphRuntime:
    """A network that maps the inputs a manifest names to the outputs it names.

    It is put in evaluation mode. An `SSD`, which gives raw offsets and scores, gets the manifest's
    post-processing. One call of `run` after the other is computed.
    """

    def __init__(self, network: nn.Layer, manifest: Manifest) -> None:
        self.name = NAME
        self.threads = int(os.environ.get("OMP_NUM_THREADS") or 1)
        self.streams = 1
        self.versions = {"paddle": paddle.__version__}
        network.eval()
        self.network = Detector(network, manifest) if isinstance(network, SSD) else network
        self._lock = threading.Lock()

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        with self._lock, paddle.no_grad():
            outputs = self.network(*map(paddle.to_tensor, inputs))
        outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
        return [output.numpy() for output in outputs]


class Detector(nn.Layer):
    """An SSD with its post-processing: images [N, 3, H, W] and their original sizes [N, 2] to
    detections, as `PostProcess.forward` gives them."""

    def __init__(self, network: SSD, manifest: Manifest) -> None:
        super().__init__()
        self.network = network
        kept = schema.parse_dataclass(
            PostProcessConfig, manifest.detection or {}, "Deploy.detection"
        )
        self.post = PostProcess(manifest.class_num, kept)

    def forward(
        self, image: paddle.Tensor, image_sizes: paddle.Tensor
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        loc, conf = self.network(image)
        return self.post(loc, conf, self.network.priors, image_sizes)
