"""The paper's comparisons, as PaddleClas's zoo has them."""

import pytest

from ppcls.analysis import analyze
from ppcls.arch import create_model, zoo

# The zoo's ResNet50 has its strides in the 3x3 convolutions ("v1.5"). Its MobileNetV2 has, as
# pytorchcv's mobilenetv2_w1, one 1x1 convolution more than the paper's, and a linear layer with a
# bias where that one has a 1x1 convolution without: 3,504,960 + 1,000 parameters.
ZOO = {
    "ResNet50": (25557032, 4087136256, 2048000, 21776384, 32.00, 204.80, 2304.0, 53, 9),
    "DenseNet121": (7978856, 2833137664, 1024000, 21864192, 42.67, 147.23, 341.3, 120, 25),
    "MobileNetV2": (3504960 + 1000, 312339328, 1280000, 14246848, 1.80, 27.43, 256.0, 53, 45),
}


@pytest.mark.zoo
@pytest.mark.skipif(not zoo.is_installed(), reason="paddleclas is not installed")
@pytest.mark.parametrize("name", ZOO)
def test_the_papers_comparisons(name):
    cost = analyze(create_model(name), (1, 3, 224, 224))
    found = cost.to_dict()
    keys = ("params", "macs_conv", "macs_linear", "cio")
    assert tuple(found[key] for key in keys) == ZOO[name][:4]
    assert round(found["moc_min"], 2) == ZOO[name][4]
    assert round(found["moc_median"], 2) == ZOO[name][5]
    assert round(found["moc_max"], 1) == ZOO[name][6]
    assert (found["conv_layers"], found["moc_below_100"]) == ZOO[name][7:]
    assert not cost.uncounted


@pytest.mark.zoo
@pytest.mark.skipif(not zoo.is_installed(), reason="paddleclas is not installed")
def test_attention_is_counted_apart():
    cost = analyze(create_model("LeViT_128S"), (1, 3, 224, 224))
    assert cost.macs("matmul") > 0 and not cost.uncounted
    assert all(not row.is_layer for row in cost.layers if row.kind == "matmul")
