"""Small OpenVINO networks, and images, for tests of int8."""

from __future__ import annotations

import numpy as np
from openvino import Model, PartialShape
from openvino import opset13 as ops

CLASSES = 5


def images(count, seed=0, channels=3, size=16):
    """Images of coarse squares, each of its own brightness, [1, C, size, size] float32."""
    rng = np.random.default_rng(seed)
    coarse = rng.standard_normal((count, 1, channels, size // 4, size // 4)).astype(np.float32)
    level = rng.uniform(0.5, 1.0, (count, 1, 1, 1, 1)).astype(np.float32)
    return list((level * coarse).repeat(4, axis=3).repeat(4, axis=4))


def classifier(batch=None, width=8, outlier=0.0):
    """Convolutions with ReLU6, one of them depthwise, a concatenation, pooling, a linear layer.

    outlier: weights of conv2 for a channel that is always 0; int8 has no room for large ones.
    """
    rng = np.random.default_rng(1)
    image = _image(batch)
    x = first = _conv(rng, image, 3, width, "conv1", is_dead=bool(outlier))
    x = _conv(rng, x, width, width, "conv2", outlier=outlier)
    x = _conv(rng, x, width, width, "conv3")
    x = _depthwise(rng, x, width, "depthwise")
    x = _conv(rng, ops.concat([x, first], 1), 2 * width, width, "conv4")
    x = ops.squeeze(ops.reduce_mean(x, np.array([2, 3]), keep_dims=True), np.array([2, 3]))
    weight = rng.standard_normal((width, CLASSES)).astype(np.float32)
    logits = ops.matmul(x, ops.constant(weight), False, False, name="linear")
    logits = ops.add(logits, ops.constant(rng.standard_normal((1, CLASSES)).astype(np.float32)))
    return Model([logits], [image], "classifier")


def narrow():
    """Convolutions down to maps of 1x1, a depthwise one there, and a linear layer."""
    rng = np.random.default_rng(3)
    image = x = _image(None)
    for number, channels in enumerate((3, 16, 16, 16)):
        weight = rng.standard_normal((16, channels, 3, 3)).astype(np.float32) / 4
        strided = ops.convolution(
            x, ops.constant(weight), [2, 2], [1, 1], [1, 1], [1, 1], name=f"conv{number + 1}"
        )
        x = _finish(strided, np.full((1, 16, 1, 1), 0.3, np.float32), True)
    x = _depthwise(rng, x, 16, "depthwise")
    x = ops.squeeze(ops.reduce_mean(x, np.array([2, 3]), keep_dims=True), np.array([2, 3]))
    weight = rng.standard_normal((16, CLASSES)).astype(np.float32)
    return Model([ops.matmul(x, ops.constant(weight), False, False)], [image], "narrow")


def normalized():
    """A convolution, each position of its map scaled to length 1 over the channels, and a head."""
    rng = np.random.default_rng(3)
    image = _image(None)
    x = _conv(rng, image, 3, 16, "conv")
    squares = ops.reduce_sum(ops.multiply(x, x, name="square"), np.array([1]), True, name="sum")
    length = ops.add(ops.sqrt(squares, name="root"), np.float32(1e-10), name="length")
    unit = ops.divide(x, length, name="unit")
    scale = ops.constant(rng.uniform(15, 25, (1, 16, 1, 1)).astype(np.float32))
    scaled = ops.multiply(scale, unit, name="scaled")
    return Model([_conv(rng, scaled, 16, 4, "head", activate=False)], [image], "normalized")


def detector():
    """A head for boxes and one for scores, with decoding and suppression inside the network.

    Takes `image` and `image_sizes`; gives rows [K, 6] and counts [N].
    """
    rng = np.random.default_rng(2)
    image = _image(None)
    sizes = ops.parameter(PartialShape([-1, 2]), np.float32, name="image_sizes")
    sizes.output(0).set_names({"image_sizes"})
    x = _conv(rng, _conv(rng, image, 3, 8, "conv1"), 8, 8, "conv2")
    loc = _rows(_conv(rng, x, 8, 4, "loc", activate=False), 4)
    conf = _rows(_conv(rng, x, 8, 3, "conf", activate=False), 3)
    scale = ops.unsqueeze(ops.concat([sizes, sizes], 1), np.int64(1))
    boxes = ops.multiply(ops.exp(ops.multiply(loc, np.float32(0.1))), scale)
    scores = ops.transpose(ops.softmax(conf, 2), np.array([0, 2, 1]))
    rows, _, counts = ops.multiclass_nms(
        boxes, scores, None, output_type="i32", score_threshold=0.2, background_class=0
    ).outputs()
    return Model([rows, counts], [image, sizes], "detector")


def _image(batch):
    image = ops.parameter(PartialShape([batch or -1, 3, 16, 16]), np.float32, name="image")
    image.output(0).set_names({"image"})
    return image


def _conv(rng, x, before, after, name, *, outlier=0.0, is_dead=False, activate=True):
    weight = rng.standard_normal((after, before, 3, 3)).astype(np.float32) / (3 * before**0.5)
    if outlier:
        weight[:, 0] = outlier
    bias = rng.standard_normal((1, after, 1, 1)).astype(np.float32) / 10
    bias[:, 0] -= 1000 * is_dead
    return _finish(_convolve(ops.convolution, x, weight, name), bias, activate)


def _depthwise(rng, x, channels, name):
    weight = rng.standard_normal((channels, 1, 1, 3, 3)).astype(np.float32) / 3
    bias = rng.standard_normal((1, channels, 1, 1)).astype(np.float32) / 10
    return _finish(_convolve(ops.group_convolution, x, weight, name), bias, False)


def _convolve(kind, x, weight, name):
    return kind(x, ops.constant(weight), [1, 1], [1, 1], [1, 1], [1, 1], name=name)


def _finish(x, bias, activate):
    x = ops.add(x, ops.constant(bias))
    return ops.clamp(x, 0.0, 6.0) if activate else x


def _rows(x, width):
    x = ops.transpose(x, np.array([0, 2, 3, 1]))
    return ops.reshape(x, np.array([0, -1, width]), special_zero=True)
