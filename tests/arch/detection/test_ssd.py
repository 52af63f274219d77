"""The detectors against outputs of the official code, and what a detector promises."""

from __future__ import annotations

import functools
import json
from dataclasses import replace

import numpy as np
import oracle
import paddle
import pytest

from ppcls.arch import build_model, create_model, list_models
from ppcls.arch.backbone.hardnet_block import ConvBNAct, HarDBlock
from ppcls.arch.detection.ssd import SSD, L2Norm, SSD_HarDNet68
from ppcls.arch.detection.ssd_plan import SSD_VARIANTS, detector_shapes
from ppcls.utils.errors import ConfigError

NAMES = ("SSD_HarDNet68", "SSD_HarDNet85")
# Trainable tensors, by the official code, for 21 and 81 classes.
PARAMETERS = {
    ("SSD_HarDNet68", 300): (17_260_864, 23_967_424),
    ("SSD_HarDNet68", 512): (18_164_054, 25_700_414),
    ("SSD_HarDNet85", 300): (30_083_324, 37_049_084),
    ("SSD_HarDNet85", 512): (30_986_514, 38_782_074),
}
TRUNK_PARAMETERS = {"SSD_HarDNet68": 12_104_928, "SSD_HarDNet85": 17_883_548}
PRIORS = {300: 11620, 512: 32756}
COUNTERS = {"SSD_HarDNet68": 64, "SSD_HarDNet85": 81}  # of the official file, which Paddle lacks
ENTRIES = {
    ("SSD_HarDNet68", 300): 425,
    ("SSD_HarDNet68", 512): 433,
    ("SSD_HarDNet85", 300): 527,
    ("SSD_HarDNet85", 512): 535,
}


@functools.cache
def detector(name="SSD_HarDNet68", size=300, class_num=21):
    model = create_model(name, size=size, class_num=class_num)
    model.eval()
    return model


def size_of(tensors):
    return sum(p.size for p in tensors if not p.stop_gradient)


def official_names(assets):
    rows = json.loads((assets / "ssd_hardnet68_512.names.json").read_text())
    return {name: tuple(shape) for name, shape in rows if not name.endswith("batches_tracked")}


# Against the official code


@paddle.no_grad()
def test_every_stored_value_of_the_official_network(assets):
    official = dict(np.load(assets / "ssd_hardnet68_512.npz"))
    model = oracle.fill(create_model("SSD_HarDNet68", size=512, class_num=81))
    model.eval()
    taps = {}
    for index, layer in enumerate(model.base):
        layer.register_forward_post_hook(
            lambda _, __, out, key=f"tap_base.{index}": taps.update({key: out})
        )
    x = paddle.to_tensor(oracle.image(0, (1, 3, 512, 512)))
    sources = model.forward_features(x)
    for key, found in {**taps, **{f"src{i}": part for i, part in enumerate(sources)}}.items():
        wanted, found = official[f"{key}_val"], found.numpy()
        assert list(found.shape) == official[f"{key}_shape"].tolist()
        values = found.flatten()[oracle.even_indices(found.size, len(wanted))]
        np.testing.assert_allclose(values, wanted, rtol=0, atol=1e-3, err_msg=key)
        check_statistics(found, official[f"{key}_stats"])
    assert {key.rpartition("_")[0] for key in official if key.startswith("tap_")} == set(taps)
    for key, found in zip(("loc", "conf"), model.forward_head(sources), strict=True):
        found = found.numpy()
        assert list(found.shape) == official[f"{key}_shape"].tolist()
        values = found.flatten()[official[f"{key}_idx"]]
        np.testing.assert_allclose(values, official[f"{key}_val"], rtol=0, atol=2e-3)
        check_statistics(found, official[f"{key}_stats"])


def check_statistics(found, wanted):
    wide = found.astype("float64")
    statistics = [wide.mean(), wide.std(), wide.min(), wide.max()]
    np.testing.assert_allclose(statistics, wanted, rtol=0, atol=2e-3)


@pytest.mark.parametrize(("name", "size"), PARAMETERS)
@pytest.mark.parametrize("position", [0, 1])
def test_parameters_priors_and_keys(name, size, position):
    classes = (21, 81)[position]
    model = detector(name, size, classes)
    assert size_of(model.parameters()) == PARAMETERS[name, size][position]
    assert size_of(model.base.parameters()) == TRUNK_PARAMETERS[name]
    assert model.size == size and model.class_num == classes
    assert model.priors.shape == [PRIORS[size], 4] and model.priors.dtype == paddle.float32
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    expected = detector_shapes(SSD_VARIANTS[name], size, classes)
    assert list(shapes.items()) == list(expected.items())
    assert len(shapes) + COUNTERS[name] == ENTRIES[name, size]


def test_keys_are_the_official_ones_in_the_official_order(assets):
    shapes = detector_shapes(SSD_VARIANTS["SSD_HarDNet68"], 512, 81)
    found = {oracle.official_name(key): shape for key, shape in shapes.items()}
    assert list(found.items()) == list(official_names(assets).items())


def test_keys_outside_the_trunk_of_hardnet85():
    shapes = detector_shapes(SSD_VARIANTS["SSD_HarDNet85"], 300, 21)
    names = [key for key in shapes if not key.startswith("base.")]
    assert [key for key in names if key.startswith("bridge.")] == [
        f"bridge.{i}.{key}"
        for i in (1, 2)
        for key in ("conv.weight", *(f"norm.{n}" for n in ("weight", "bias", "_mean", "_variance")))
    ]
    assert shapes["bridge.1.conv.weight"] == (960, 720, 3, 3)
    assert shapes["extras.0.weight"] == (256, 720, 1, 1)
    groups = list(dict.fromkeys(key.partition(".")[0] for key in names))
    assert groups == ["bridge", "extras", "L2Norm", "loc", "conf"]


# How it starts


def test_how_new_layers_start():
    model = detector("SSD_HarDNet85", 300, 21)
    np.testing.assert_array_equal(model.L2Norm.weight.numpy(), 20)
    for layer in [*model.extras, *model.loc, *model.conf]:
        bound = 1 / np.sqrt(np.prod(layer.weight.shape[1:]))
        weight = layer.weight.numpy()
        assert np.abs(weight).max() <= bound * 1.0001
        assert weight.std() == pytest.approx(bound / np.sqrt(3), rel=0.05)
        np.testing.assert_array_equal(layer.bias.numpy(), 0)
    for layer, deviation in zip(list(model.bridge)[1:], (0.01521, 0.05270), strict=True):
        assert layer.conv.weight.numpy().std() == pytest.approx(deviation, rel=0.01)
        np.testing.assert_array_equal(layer.norm.weight.numpy(), 1)
        np.testing.assert_array_equal(layer.norm.bias.numpy(), 0)
    dilated = detector("SSD_HarDNet68").base[13][1]
    assert dilated.weight.numpy().std() == pytest.approx(np.sqrt(2 / (640 * 9)), rel=0.01)


def test_parts_are_those_of_the_classifiers():
    model = detector()
    assert isinstance(model.base[0], ConvBNAct) and isinstance(model.base[3], HarDBlock)
    norms = [part for part in model.sublayers() if isinstance(part, paddle.nn.BatchNorm2D)]
    assert len(norms) == 64
    assert {(norm._epsilon, norm._momentum) for norm in norms} == {(1e-5, 0.9)}


# What it computes


@paddle.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_outputs_at_300(name):
    model = detector(name)
    loc, conf = model(paddle.to_tensor(oracle.image(1, (2, 3, 300, 300))))
    assert loc.shape == [2, 11620, 4] and conf.shape == [2, 11620, 21]
    assert bool(paddle.isfinite(loc).all()) and bool(paddle.isfinite(conf).all())
    sizes = [source.shape[2] for source in model.forward_features(paddle.zeros([1, 3, 300, 300]))]
    assert sizes == [38, 19, 10, 5, 3, 1]


def test_every_parameter_gets_a_gradient_with_and_without_recompute():
    grads = []
    for recompute in (False, True):
        model = create_model("SSD_HarDNet68", size=300, class_num=3, recompute=recompute)
        oracle.fill(model)
        model.train()
        loc, conf = model(paddle.to_tensor(oracle.image(0, (1, 3, 300, 300))))
        (loc.mean() + conf.mean()).backward()
        trained = {name: p for name, p in model.named_parameters() if not p.stop_gradient}
        assert [name for name, p in trained.items() if p.grad is None] == []
        grads.append(trained["base.3.layers.0.conv.weight"].grad.numpy())
    np.testing.assert_allclose(*grads, rtol=1e-4, atol=1e-5)


def test_priors_do_not_follow_the_network_to_half_precision():
    model = create_model("SSD_HarDNet68", size=300, class_num=2)
    model.to(dtype="float16")
    assert model.base[0].conv.weight.dtype == paddle.float16
    assert model.priors.dtype == paddle.float32


def few_channels(name, **options):
    """A detector of the same structure, fast enough for float64."""
    spec = SSD_VARIANTS[name]
    stages = [replace(s, growth=2, layers=2, out_channels=32) for s in spec.trunk.stages]
    trunk = replace(spec.trunk, stem=(4, 8), stages=tuple(stages))
    return SSD(replace(spec, trunk=trunk, bridge=(8, 8)), 300, 3, **options)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-2), ("float64", 1e-11)])
def test_nhwc_trains_the_same(name, dtype, tolerance):
    """Outputs and gradients against the largest of each; the state dict has the same keys."""
    results = []
    source = oracle.fill(few_channels(name))
    for data_format in ("NCHW", "NHWC"):
        model = few_channels(name, data_format=data_format)
        assert list(model.state_dict()) == list(source.state_dict())
        model.set_state_dict(source.state_dict())
        model.to(dtype=dtype)
        loc, conf = model(paddle.to_tensor(oracle.image(0, (2, 3, 300, 300))).astype(dtype))
        (loc.abs().mean() + conf.abs().mean()).backward()
        trained = {key: p for key, p in model.named_parameters() if not p.stop_gradient}
        gradients = {key: p.grad.numpy() for key, p in trained.items()}
        results.append(({"loc": loc.numpy(), "conf": conf.numpy()}, gradients))
    for wanted, found in zip(*results, strict=True):
        largest = max(np.abs(array).max() for array in wanted.values())
        for key, array in wanted.items():
            np.testing.assert_allclose(
                found[key], array, rtol=0, atol=tolerance * largest, err_msg=key
            )


@paddle.no_grad()
def test_nhwc_computes_the_same():
    model = create_model("SSD_HarDNet68", size=300, class_num=21, data_format="NHWC")
    model.set_state_dict(detector().state_dict())
    model.eval()
    x = paddle.to_tensor(oracle.image(1, (1, 3, 300, 300)))
    for found, wanted in zip(model(x), detector()(x), strict=True):
        np.testing.assert_allclose(found.numpy(), wanted.numpy(), rtol=0, atol=1e-3)
    assert [m.shape[3] for m in model.forward_features(x)][:2] == [320, 640]


@pytest.mark.slow
def test_static_graph_of_any_batch(tmp_path):
    model = detector()
    spec = [paddle.static.InputSpec([None, 3, 300, 300], "float32")]
    paddle.jit.save(paddle.jit.to_static(model, input_spec=spec, full_graph=True), f"{tmp_path}/d")
    loaded = paddle.jit.load(f"{tmp_path}/d")
    for batch in (1, 2):
        x = paddle.to_tensor(oracle.image(batch, (batch, 3, 300, 300)))
        for found, wanted in zip(loaded(x), model(x), strict=True):
            np.testing.assert_allclose(found.numpy(), wanted.numpy(), rtol=0, atol=1e-4)


# By name, and mistakes


def test_by_name():
    assert list_models("SSD_*") == sorted(NAMES)
    for spelling in ("ssd_hardnet68", "SSDHarDNet68", "ssd-hardnet-68"):
        assert create_model(spelling, size=300, class_num=2).class_num == 2
    section = {"name": "SSD_HarDNet68", "size": 300, "class_num": 21, "priors": "voc"}
    model = build_model({"Arch": section})
    assert model.prior_array[0, 2] == pytest.approx(30 / 300)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"size": 320}, "create_model.size: expected 300 or 512, got 320"),
        ({"class_num": 1}, "create_model.class_num: expected 2 or more"),
        ({"priors": "pascal"}, "create_model.priors: expected one of 'coco', 'voc', got 'pascal'"),
        ({"sizes": 300}, "unknown key 'sizes'; did you mean 'size'"),
    ],
)
def test_mistakes(params, message):
    with pytest.raises(ConfigError, match=message):
        create_model("SSD_HarDNet68", **params)


def test_arguments_out_of_range_as_a_value_error():
    with pytest.raises(ValueError, match="^size: expected 300 or 512, got 301"):
        SSD_HarDNet68(size=301)
    with pytest.raises(ValueError, match="^priors: expected 'coco' or 'voc', got 'x'"):
        SSD(SSD_VARIANTS["SSD_HarDNet68"], priors="x")
    with pytest.raises(ValueError, match="^data_format: expected 'NCHW' or 'NHWC', got 'CHWN'"):
        SSD_HarDNet68(size=300, data_format="CHWN")


@pytest.mark.parametrize("shape", [(1, 3, 512, 512), (1, 1, 300, 300), (3, 300, 300)])
def test_images_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"x: expected images \[N, 3, 300, 300\], got shape"):
        detector()(paddle.zeros(shape))


def test_a_position_whose_channels_are_all_0_has_a_gradient():
    layer = L2Norm(3)
    x = paddle.to_tensor([[[[0.0, 3.0]], [[0.0, 0.0]], [[0.0, 4.0]]]], stop_gradient=False)
    y = layer(x)
    np.testing.assert_allclose(y.numpy()[0, :, 0], [[0, 12], [0, 0], [0, 16]], rtol=1e-6)
    y.sum().backward()
    assert np.isfinite(x.grad.numpy()).all() and np.isfinite(layer.weight.grad.numpy()).all()
