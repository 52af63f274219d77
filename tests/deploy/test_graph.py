"""Normalisation inside the network, and what of the transforms is left outside."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from tiny_nets import CLASSES, tiny_hardnet

from ppcls.data.transforms import NormalizeImage
from ppcls.deploy.graph import Classifier, Normalization, split_normalization, with_chw
from ppcls.utils.errors import ConfigError

NORMALIZE = {"NormalizeImage": {"scale": "1.0/255.0", "order": ""}}
RESIZE = {"ResizeImage": {"size": 16}}


def test_it_normalises_as_the_transform_does():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
    entries = [RESIZE, NORMALIZE, {"ToCHWImage": None}]
    kept, layer = split_normalization(entries, "Infer.transforms")
    assert kept == [RESIZE] and entries[-1] == {"ToCHWImage": None}
    transform = NormalizeImage(order="hwc")
    wanted = [transform(image, None).transpose(2, 0, 1) for image in pixels]
    found = layer(paddle.to_tensor(pixels)).numpy()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.stack(wanted), atol=1e-6)


def test_probabilities_of_pixels():
    network = tiny_hardnet()
    layer = Classifier(network, Normalization(1 / 255, [0.5] * 3, [0.5] * 3), softmax=True)
    pixels = np.random.default_rng(1).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    found = layer(paddle.to_tensor(pixels)).numpy()
    x = (pixels.astype("float32") / 255 - 0.5) / 0.5
    logits = network(paddle.to_tensor(np.ascontiguousarray(x.transpose(0, 3, 1, 2))))
    wanted = paddle.nn.functional.softmax(logits).numpy()
    assert found.shape == (2, CLASSES)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize(
    "entries",
    [
        [RESIZE],
        [NORMALIZE, RESIZE],
        [NORMALIZE, NORMALIZE],
        [{"NormalizeImage": {"order": "chw"}}],
        [{"NormalizeImage": {"order": "", "channel_num": 4}}],
        [{"NormalizeImage": {"order": "", "output_fp16": True}}],
        [],
    ],
)
def test_transforms_that_cannot_be_baked_in(entries):
    with pytest.raises(ConfigError, match=r"^Infer\.transforms: expected NormalizeImage"):
        split_normalization(entries, "Infer.transforms")


def test_the_layout_is_written_out():
    assert with_chw([NORMALIZE], "here") == [NORMALIZE, {"ToCHWImage": None}]
    assert with_chw([{"ToCHWImage": None}], "here") == [{"ToCHWImage": None}]
