"""The networks of the case `infer`, the same in every process, and what they are given."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

CLASSIFIERS = ("HarDNet39_ds", "HarDNet68_ds", "HarDNet68", "HarDNet85")
# A detector's name says how large its images are: its architecture, and their side in pixels.
DETECTORS = {
    f"SSD{size}_{trunk}": (f"SSD_{trunk}", size)
    for trunk in ("HarDNet68", "HarDNet85")
    for size in (300, 512)
}
CANDIDATES = 500  # scores of a detector's first image that are above its threshold
_IMAGE_SIZE = (640, 427)  # of the original images of a detector
_CONTRAST = 60.0  # of a detector's images, whose pixels are not scaled


def inputs(network: str, batch: int, size: int) -> list[np.ndarray]:
    """Return `image` [N, 3, size, size] float32 and, for a detector, `image_sizes` [N, 2].

    The first image does not depend on `batch`.
    """
    images = np.random.default_rng(0).standard_normal((batch, 3, size, size)).astype(np.float32)
    if network not in DETECTORS:
        return [images]
    return [_CONTRAST * images, np.tile(np.array(_IMAGE_SIZE, np.float32), (batch, 1))]


def build(network: str) -> Any:
    """Build a network as `ppcls.arch` or `ppcls.deploy.detector` has it, with random weights."""
    import paddle

    from ppcls.arch import create_model

    paddle.seed(0)
    model = _detector(network) if network in DETECTORS else create_model(network)
    model.eval()
    return model


def _detector(network: str) -> Any:
    from ppcls.arch import create_model
    from ppcls.arch.detection.postprocess import COCO
    from ppcls.deploy.detector import Detector

    name, size = DETECTORS[network]
    model = create_model(name, size=size)
    model.eval()
    _find_a_few(model, inputs(network, 1, size)[0], COCO.score)
    return Detector.from_ssd(model, COCO)


def _find_a_few(model: Any, image: np.ndarray, score: float) -> None:
    """Change the heads of an SSD, so that about CANDIDATES scores are above `score`.

    Untrained, nearly all are: post-processing would take longer than the network.
    """
    import paddle

    with paddle.no_grad():
        loc, conf = (output[0].numpy() for output in model(paddle.to_tensor(image)))
        conf_scale, loc_scale = 2 / conf.std(), 0.5 / loc.std()
        scores = conf_scale * conf
        gaps = np.sort((scores[:, 1:] - scores[:, :1]).ravel())
        rise = gaps[-CANDIDATES] - math.log(score)
        for head, other in zip(model.conf, model.loc, strict=True):
            bias = conf_scale * head.bias.numpy()
            bias[:: model.class_num] += rise
            head.weight.set_value(head.weight * float(conf_scale))
            head.bias.set_value(bias.astype(np.float32))
            other.weight.set_value(other.weight * float(loc_scale))
