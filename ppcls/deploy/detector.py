"""A detector as it is deployed: its network, and post-processing inside the same graph.

Paddle's forms take `Detector` as it is. Its suppression is an operator that ONNX does not have:
for ONNX, and OpenVINO after it, convert `Detector.network` alone and add post-processing to the
file (`ppcls.deploy.detector_onnx`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import paddle
from paddle import Tensor, nn
from paddle.static import InputSpec

from ppcls.arch.detection.postprocess import PostProcess, PostProcessConfig
from ppcls.arch.detection.ssd import SSD

# A difference of scores counts like one of so many pixels (see `worst_difference`).
SCORE_IN_PIXELS = 100.0


class Detector(nn.Layer):
    """Images to detections.

    network: maps images to loc [N, P, 4] and conf [N, P, class_num], such as an `SSD`.
    priors: [P, 4] float32 centres.
    """

    def __init__(
        self, network: nn.Layer, priors: np.ndarray, class_num: int, config: PostProcessConfig
    ) -> None:
        super().__init__()
        self.network = network
        self.post = PostProcess(class_num, config)
        # Among the weights: as numbers in the graph they would be 131,024 pieces of its text.
        self.register_buffer("priors", paddle.to_tensor(priors))

    @classmethod
    def from_ssd(cls, model: SSD, config: PostProcessConfig) -> Detector:
        """Make the detector of a network that holds its own priors."""
        return cls(model, model.prior_array, model.class_num, config)

    def forward(self, image: Tensor, image_sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Return detections [K, 6] float32 and how many each image has, [N] int32.

        image: [N, 3, H, W] float32. image_sizes: [N, 2] float32, (width, height) of the original
        images in pixels. See `PostProcess.forward` for the rows.
        """
        loc, conf = self.network(image)
        return self.post(loc, conf, self.priors, image_sizes)


def input_specs(size: int, batch: int | None = None) -> list[InputSpec]:
    """Describe the two inputs of a `Detector` for square images; `batch` None may be any."""
    return [
        InputSpec([batch, 3, size, size], "float32", "image"),
        InputSpec([batch, 2], "float32", "image_sizes"),
    ]


def worst_difference(expected: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    """Return how far detections are from the expected ones; both are (rows, counts).

    The largest difference of a coordinate in pixels, or of a score in hundredths, whichever is
    larger; infinite unless every image has the same number of detections of each class. The order
    of rows inside an image does not count, so that equal scores may change places.
    """
    (rows, counts), (other_rows, other_counts) = expected, found
    if counts.shape != other_counts.shape or (counts != other_counts).any():
        return float("inf")
    ends = np.cumsum(counts)[:-1]
    images = zip(np.split(rows, ends), np.split(other_rows, ends), strict=True)
    return max((_image_difference(*image) for image in images), default=0.0)


def _image_difference(expected: np.ndarray, found: np.ndarray) -> float:
    if len(expected) != len(found):
        return float("inf")
    scale = np.array([SCORE_IN_PIXELS, 1, 1, 1, 1])
    worst, free = 0.0, np.ones(len(found), bool)
    for row in expected:
        candidates = np.flatnonzero(free & (found[:, 0] == row[0]))
        if not len(candidates):
            return float("inf")
        gaps = np.abs(found[candidates, 1:].astype(np.float64) - row[1:]) * scale
        gaps = np.nan_to_num(gaps.max(axis=1), nan=np.inf)
        free[candidates[gaps.argmin()]] = False
        worst = max(worst, float(gaps.min()))
    return worst
