"""The contract every HarDNet keeps, and the official network's numbers."""

import dataclasses
import functools
import json
import math

import numpy as np
import oracle
import paddle
import pytest
from paddle import nn

from ppcls.arch import build_model, create_model, list_models
from ppcls.arch.backbone.hardnet import HarDNet
from ppcls.arch.backbone.hardnet_plan import HarDNetSpec, Stage
from ppcls.engine.config import AMPConfig
from ppcls.engine.precision import Precision
from ppcls.utils.errors import ConfigError, UserError
from ppcls.utils.pdparams import save_pdparams

NAMES = ["HarDNet39_ds", "HarDNet68_ds", "HarDNet68", "HarDNet85"]
PARAMETERS = {
    "HarDNet39_ds": 3_488_228,
    "HarDNet68_ds": 4_180_602,
    "HarDNet68": 17_565_348,
    "HarDNet85": 36_670_212,
}
TINY = HarDNetSpec(
    stem=(4, 8),
    depthwise=False,
    multiplier=1.7,
    dropout=0.1,
    stages=(
        Stage(growth=4, layers=4, out_channels=8, downsample=True),
        Stage(growth=4, layers=2, out_channels=8, downsample=True),
        Stage(growth=4, layers=2, out_channels=8, downsample=True),
        Stage(growth=4, layers=2, out_channels=12, downsample=False, dropout=0.1),
    ),
)


@functools.cache
def network(name):
    """The network with the oracle's weights, for reading only."""
    model = oracle.fill(create_model(name))
    model.eval()
    return model


def images(*shape, seed=0):
    return paddle.to_tensor(oracle.image(seed, shape))


def copy_of(source, target):
    missing, unexpected = target.set_state_dict(source.state_dict())
    assert not missing and not unexpected
    return target


def trainable(model):
    return {name: p for name, p in model.named_parameters() if not p.stop_gradient}


# The official numbers


@pytest.mark.parametrize(("name", "file"), [("HarDNet39_ds", "39ds"), ("HarDNet68", "68")])
def test_logits_and_stages_of_the_official_network(name, file, assets):
    model = network(name)
    with np.load(assets / f"hardnet{file}.npz") as expected, paddle.no_grad():
        x = images(*expected["input_shape"])
        for index, layer in enumerate(model.base):
            x = layer(x)
            key, found = f"base{index:02}", x.numpy()
            assert list(found.shape) == expected[f"{key}_shape"].tolist()
            values = found.flatten()[oracle.sample_indices(found.size, 512)]
            np.testing.assert_allclose(values, expected[f"{key}_values"], rtol=0, atol=5e-3)
            assert abs(found.std(dtype="float64") - expected[f"{key}_std"]) < 1e-3
        np.testing.assert_allclose(x.numpy(), expected["logits"], rtol=0, atol=1e-3)
        logits = model(images(*expected["input_shape"])).numpy()
        np.testing.assert_allclose(logits, x.numpy(), rtol=0, atol=1e-5)


# The contract


def test_the_family():
    assert list_models("HarDNet*") == sorted(NAMES)
    assert list_models("*_DS") == ["HarDNet39_ds", "HarDNet68_ds"]


@pytest.mark.parametrize("name", NAMES)
def test_parameter_count(name):
    assert sum(p.size for p in trainable(network(name)).values()) == PARAMETERS[name]


@pytest.mark.parametrize("name", NAMES)
def test_keys_of_the_state_dict(name, assets):
    pinned = json.loads((assets / "hardnet_state_dicts.json").read_text())[name]
    state = network(name).state_dict()
    assert list(state) == list(pinned)
    assert {key: list(tensor.shape) for key, tensor in state.items()} == pinned


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch", [1, 2])
def test_output_shape(name, batch):
    logits = network(name)(images(batch, 3, 64, 64))
    assert logits.shape == [batch, 1000]
    assert np.isfinite(logits.numpy()).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_gives_each_image_its_own_logits(name):
    x = images(3, 3, 40, 40)
    together = network(name)(x).numpy()
    alone = np.concatenate([network(name)(x[i : i + 1]).numpy() for i in range(3)])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_other_class_counts(name):
    model = create_model(name, class_num=7)
    model.eval()
    assert model(images(1, 3, 32, 32)).shape == [1, 7]
    model = create_model(name, class_num=0)
    model.eval()
    x = images(2, 3, 64, 64)
    pooled = model(x)
    assert pooled.shape == [2, model.num_features]
    mean = model.forward_features(x).mean(axis=[2, 3])
    np.testing.assert_allclose(pooled.numpy(), mean.numpy(), rtol=1e-5, atol=1e-6)
    assert not any(key.startswith(f"base.{len(model.base) - 1}.") for key in model.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_every_trainable_parameter_gets_a_gradient(name):
    paddle.seed(0)
    model = create_model(name, class_num=5)
    loss = nn.functional.cross_entropy(model(images(4, 3, 64, 64)), paddle.to_tensor([0, 1, 2, 3]))
    loss.backward()
    silent = [
        key
        for key, parameter in trainable(model).items()
        if parameter.grad is None or not np.abs(parameter.grad.numpy()).max() > 0
    ]
    assert silent == []
    assert all(np.isfinite(p.grad.numpy()).all() for p in trainable(model).values())


def test_stem_stages_and_head_make_the_network():
    model = network("HarDNet39_ds")
    assert len(model.stem) == 3
    assert [*model.stem, *model.stages, model.head] == list(model.base)
    x = images(1, 3, 64, 64)
    logits = model.forward_head(model.forward_features(x))
    np.testing.assert_array_equal(logits.numpy(), model(x).numpy())


# Sizes


@pytest.mark.parametrize("name", NAMES)
def test_smallest_input(name):
    model = network(name)
    side = 1 if name.endswith("_ds") else 29
    assert model.smallest_input == side
    assert model(images(1, 3, side, side)).shape == [1, 1000]
    assert model(images(1, 3, side, 50)).shape == [1, 1000]
    if side > 1:
        with pytest.raises(ValueError, match=r"x: expected images of at least 29 pixels a side"):
            model(images(1, 3, 50, side - 1))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(64, 96), (97, 33)])
def test_images_need_not_be_square(name, size):
    model = network(name)
    x = images(1, 3, *size)
    assert model(x).shape == [1, 1000]
    maps = model.forward_features(x).shape
    sides = [side // 32 if name in ("HarDNet68", "HarDNet85") else -(-side // 32) for side in size]
    assert maps == [1, model.num_features, *sides]


# Feature extraction


@pytest.mark.parametrize(
    ("name", "modules", "channels"),
    [
        ("HarDNet39_ds", [4, 7, 10, 13], [96, 320, 640, 1024]),
        ("HarDNet68_ds", [4, 9, 12, 15], [128, 320, 640, 1024]),
        ("HarDNet68", [4, 9, 12, 15], [128, 320, 640, 1024]),
        ("HarDNet85", [4, 9, 14, 18], [192, 320, 720, 1280]),
    ],
)
def test_features_only(name, modules, channels):
    model = create_model(name, features_only=True)
    whole = network(name)
    model.set_state_dict(whole.state_dict())
    model.eval()
    info = [
        {"module": f"base.{module}", "num_chs": count, "reduction": stride}
        for module, count, stride in zip(modules, channels, (4, 8, 16, 32), strict=True)
    ]
    assert model.feature_info == info
    assert model.feat_channels == channels
    assert model.feat_strides == [4, 8, 16, 32]
    assert list(model.state_dict()) == list(whole.state_dict())[:-2]
    x = images(1, 3, 64, 64)
    maps = model(x)
    assert [m.shape for m in maps] == [
        [1, count, 64 // stride, 64 // stride]
        for count, stride in zip(channels, (4, 8, 16, 32), strict=True)
    ]
    np.testing.assert_array_equal(maps[-1].numpy(), whole.forward_features(x).numpy())
    for module, found in zip(modules, maps, strict=True):
        assert model.base[module] is dict(model.named_sublayers())[f"base.{module}"]
        np.testing.assert_array_equal(found.numpy(), _run(whole, x, module).numpy())


def _run(model, x, last):
    for layer in list(model.base)[: last + 1]:
        x = layer(x)
    return x


def test_out_indices():
    model = create_model("HarDNet68", features_only=True, out_indices=(1, 3))
    model.eval()
    assert model.feat_strides == [8, 32]
    assert [m.shape[1] for m in model(images(1, 3, 64, 64))] == [320, 1024]
    only = network("HarDNet68").forward_intermediates(images(1, 3, 64, 64))
    assert [m.shape[1] for m in only] == [128, 320, 640, 1024]


def test_a_network_of_your_own_may_have_fewer_strides():
    spec = dataclasses.replace(TINY, stages=TINY.stages[:2])
    model = HarDNet(spec, class_num=3)
    model.eval()
    assert model(images(1, 3, 40, 40)).shape == [1, 3]
    model = HarDNet(spec, features_only=True, out_indices=(0, 1, 2))
    assert model.feat_strides == [4, 8, 16]


@pytest.mark.parametrize("wrong", [(), (1, 0), (0, 0), (4,), (-1,)])
def test_wrong_out_indices(wrong):
    with pytest.raises(ValueError, match="out_indices: expected ascending positions from 0 to 3"):
        HarDNet(TINY, out_indices=wrong)


# Layout


@pytest.mark.parametrize("name", NAMES)
def test_nhwc_computes_the_same(name):
    model = copy_of(network(name), create_model(name, data_format="NHWC"))
    model.eval()
    assert list(model.state_dict()) == list(network(name).state_dict())
    x = images(2, 3, 33, 40)
    expected = network(name)(x).numpy()
    np.testing.assert_allclose(model(x).numpy(), expected, rtol=0, atol=1e-3)
    last = paddle.transpose(x, [0, 2, 3, 1])
    np.testing.assert_allclose(model(last).numpy(), expected, rtol=0, atol=1e-3)
    maps = zip(
        model.forward_intermediates(last), network(name).forward_intermediates(x), strict=True
    )
    for found, wanted in maps:
        transposed = paddle.transpose(found, [0, 3, 1, 2]).numpy()
        np.testing.assert_allclose(transposed, wanted.numpy(), rtol=0, atol=5e-3)


@pytest.mark.parametrize(
    "name", ["HarDNet39_ds", pytest.param("HarDNet68", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-2), ("float64", 1e-11)])
def test_nhwc_trains_the_same(name, dtype, tolerance):
    """Gradients against the largest of them all: some are zero but for rounding, and in float32
    rounding moves a few activations over the edges of ReLU6.
    """
    source = oracle.fill(create_model(name, class_num=5))
    gradients, statistics = [], []
    for data_format in ("NCHW", "NHWC"):
        model = create_model(name, class_num=5, dropout=0.0, data_format=data_format)
        copy_of(source, model).to(dtype=dtype)
        x, label = images(4, 3, 64, 64).astype(dtype), paddle.to_tensor([0, 1, 2, 3])
        nn.functional.cross_entropy(model(x), label).backward()
        gradients.append({key: p.grad.numpy() for key, p in trainable(model).items()})
        assert {g.dtype for g in gradients[-1].values()} == {np.dtype(dtype)}
        statistics.append({k: t.numpy() for k, t in model.state_dict().items() if "._" in k})
    largest = max(np.abs(gradient).max() for gradient in gradients[0].values())
    for key, wanted in gradients[0].items():
        np.testing.assert_allclose(
            gradients[1][key], wanted, rtol=0, atol=tolerance * largest, err_msg=key
        )
    for key, wanted in statistics[0].items():
        np.testing.assert_allclose(
            statistics[1][key], wanted, rtol=tolerance, atol=tolerance, err_msg=key
        )


def test_other_input_channels():
    model = create_model("HarDNet39_ds", class_num=2, in_channels=1)
    model.eval()
    assert model(images(1, 1, 32, 32)).shape == [1, 2]
    with pytest.raises(ValueError, match="x: expected 1 channels"):
        model(images(1, 3, 32, 32))


# Static graphs


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("HarDNet39_ds", [None, 3, 64, 64]),
        ("HarDNet39_ds", [None, 3, None, None]),
        ("HarDNet68", [None, 3, None, None]),
    ],
)
def test_to_static_computes_the_same(name, shape):
    model = copy_of(network(name), create_model(name))
    model.eval()
    spec = [paddle.static.InputSpec(shape, "float32", name="x")]
    static = paddle.jit.to_static(model, input_spec=spec, full_graph=True)
    sizes = [(1, 64, 64)] if shape[2] else [(2, 64, 64), (1, 45, 70)]
    for batch, height, width in sizes:
        x = images(batch, 3, height, width)
        np.testing.assert_allclose(static(x).numpy(), network(name)(x).numpy(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("data_format", ["NCHW", "NHWC"])
def test_a_tiny_network_is_static_in_both_layouts(data_format):
    paddle.seed(0)
    model = HarDNet(TINY, class_num=3, data_format=data_format)
    model.eval()
    x = images(2, 3, 32, 48)
    expected = model(x).numpy()
    spec = [paddle.static.InputSpec([None, 3, None, None], "float32", name="x")]
    static = paddle.jit.to_static(model, input_spec=spec, full_graph=True)
    np.testing.assert_allclose(static(x).numpy(), expected, rtol=0, atol=1e-5)


def test_a_static_feature_extractor():
    paddle.seed(0)
    model = HarDNet(TINY, features_only=True, out_indices=(1, 3))
    model.eval()
    x = images(1, 3, 32, 32)
    expected = [m.numpy() for m in model(x)]
    spec = [paddle.static.InputSpec([None, 3, None, None], "float32", name="x")]
    found = paddle.jit.to_static(model, input_spec=spec, full_graph=True)(x)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.numpy(), other, rtol=0, atol=1e-5)


# Mixed precision. A CPU leaves out the casts: there this checks the calls alone.


@pytest.mark.parametrize("level", ["O1", "O2"])
def test_bfloat16(level):
    paddle.seed(0)
    model = create_model("HarDNet39_ds", class_num=5)
    precision = Precision(AMPConfig(level=level, dtype="bfloat16"), paddle.get_device())
    optimizer = paddle.optimizer.Momentum(
        2**-6, parameters=list(trainable(model).values()), multi_precision=True
    )
    precision.prepare(model, optimizer)
    x, label = images(4, 3, 64, 64), paddle.to_tensor([0, 1, 2, 3])
    losses = []
    for _ in range(4):
        with precision.autocast():
            logits = model(x)
        loss = nn.functional.cross_entropy(logits.astype("float32"), label)
        precision.backward(loss)
        precision.step(optimizer)
        optimizer.clear_grad()
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    assert {str(t.dtype) for t in model.state_dict().values()} == {"paddle.float32"}


# Synchronised batch norm


def test_sync_batch_norm_keeps_the_keys():
    plain = create_model("HarDNet39_ds", class_num=5)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(create_model("HarDNet39_ds", class_num=5))
    assert list(model.state_dict()) == list(plain.state_dict())
    assert not any(isinstance(part, nn.BatchNorm2D) for part in model.sublayers())
    norms = [part for part in model.sublayers() if isinstance(part, nn.SyncBatchNorm)]
    assert len(norms) == 74
    assert {(norm._momentum, norm._epsilon) for norm in norms} == {(0.9, 1e-5)}
    copy_of(plain, model)


def test_sync_batch_norm_on_cpus(monkeypatch, caplog):
    """One process already sees every image of a batch; several cannot be synchronised."""
    section = {"name": "HarDNet39_ds", "class_num": 5}
    config = {"Arch": {**section, "use_sync_bn": True}}
    paddle.seed(0)
    plain = build_model({"Arch": section})
    paddle.seed(0)
    model = build_model(config)
    assert "Arch.use_sync_bn: one process on a CPU" in caplog.text
    assert list(model.state_dict()) == list(plain.state_dict())
    x = images(2, 3, 32, 32)
    np.testing.assert_array_equal(model.forward_features(x), plain.forward_features(x))
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "2")
    with pytest.raises(ConfigError, match="Arch.use_sync_bn: expected False for several processes"):
        build_model(config)


def test_reset_classifier_checks_its_argument():
    with pytest.raises(ValueError, match="class_num: expected 0 or more, got -1"):
        HarDNet(TINY, class_num=4).reset_classifier(-1)


@pytest.mark.gpu  # Paddle has no such kernel for a CPU
@pytest.mark.parametrize("data_format", ["NCHW", "NHWC"])
def test_sync_batch_norm_computes_the_same(data_format):
    model = copy_of(network("HarDNet39_ds"), create_model("HarDNet39_ds", data_format=data_format))
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model.eval()
    x = images(2, 3, 64, 64)
    np.testing.assert_allclose(
        model(x).numpy(), network("HarDNet39_ds")(x).numpy(), rtol=0, atol=2e-3
    )


# Recomputation


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("HarDNet39_ds", {}),
        ("HarDNet39_ds", {"data_format": "NHWC"}),
        ("HarDNet85", {"dropout": 0.3}),
    ],
)
def test_recompute_changes_nothing(name, options):
    paddle.seed(0)
    plain = create_model(name, class_num=5, **options)
    thrifty = copy_of(plain, create_model(name, class_num=5, recompute=True, **options))
    x, label = images(2, 3, 64, 64), paddle.to_tensor([1, 3])
    losses = []
    for model in (plain, thrifty):
        paddle.seed(7)
        for _ in range(2):  # gradients of two batches add up
            loss = nn.functional.cross_entropy(model(x), label)
            loss.backward()
        losses.append(float(loss))
    assert losses[0] == losses[1]
    for key, parameter in trainable(plain).items():
        expected, found = parameter.grad.numpy(), trainable(thrifty)[key].grad.numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6, err_msg=key)
    for key, tensor in plain.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), thrifty.state_dict()[key].numpy(), key)
    norms = [part for part in thrifty.sublayers() if isinstance(part, nn.BatchNorm2D)]
    assert {norm._momentum for norm in norms} == {0.9}


def test_recompute_keeps_less_of_the_forward_pass():
    """The blocks' inner layers run once more in the backward pass."""
    calls = {True: 0, False: 0}
    for recompute in calls:
        model = HarDNet(TINY, class_num=3, recompute=recompute)

        def count(layer, inputs, recompute=recompute):
            calls[recompute] += 1

        for layer in model.base[3].layers:
            layer.register_forward_pre_hook(count)
        model(images(2, 3, 32, 32)).sum().backward()
    assert calls == {False: 4, True: 8}


# Initial weights


@pytest.mark.parametrize("name", NAMES)
def test_initial_weights(name):
    """Xavier normal, also depthwise with a fan-out of 9c; the linear layer uniform."""
    paddle.seed(1)
    model = create_model(name)
    scores = []
    for layer in model.sublayers():
        if isinstance(layer, nn.Conv2D):
            out, fan_in = layer.weight.shape[0], math.prod(layer.weight.shape[1:])
            expected = math.sqrt(2 / (fan_in + out * math.prod(layer.weight.shape[2:])))
            weight = layer.weight.numpy().astype("float64") / expected
            error = math.sqrt(1 / (2 * weight.size))
            assert abs(np.sqrt((weight**2).mean()) - 1) < 6 * error, layer
            scores.append((weight.mean() * math.sqrt(weight.size), weight.max()))
            assert layer.bias is None
        elif isinstance(layer, nn.BatchNorm2D):
            assert (layer.weight.numpy() == 1).all() and (layer.bias.numpy() == 0).all()
            assert (layer._mean.numpy() == 0).all() and (layer._variance.numpy() == 1).all()
            assert (layer._momentum, layer._epsilon) == (0.9, 1e-5)
    assert max(abs(mean) for mean, _ in scores) < 6
    assert max(largest for _, largest in scores) > 3  # a normal distribution, not a uniform one
    linear = model.head[3]
    bound = 1 / math.sqrt(model.num_features)
    weight = linear.weight.numpy()
    assert 0.999 * bound < np.abs(weight).max() <= bound * (1 + 1e-6)
    assert abs(weight.std() * math.sqrt(3) / bound - 1) < 0.01
    assert (linear.bias.numpy() == 0).all()


# Dropout, the classifier, weights


@pytest.mark.parametrize(
    ("name", "rate"),
    [("HarDNet39_ds", 0.05), ("HarDNet68_ds", 0.05), ("HarDNet68", 0.1), ("HarDNet85", 0.2)],
)
def test_dropout(name, rate):
    model = network(name)
    assert model.dropout == model.head[2].p == rate
    inside = [layer.p for layer in model.stages if isinstance(layer, nn.Dropout)]
    assert inside == ([0.1] if name == "HarDNet85" else [])
    assert HarDNet(TINY, dropout=0.0).head[2].p == 0.0


def test_reset_classifier():
    paddle.seed(0)
    model = HarDNet(TINY, class_num=4)
    model.eval()
    before = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    x = images(1, 3, 32, 32)
    features = model.forward_features(x).numpy()
    model.reset_classifier(9)
    model.eval()
    assert model(x).shape == [1, 9]
    assert list(model.state_dict()) == list(before)
    np.testing.assert_array_equal(model.forward_features(x).numpy(), features)
    model.reset_classifier(0)
    assert model(x).shape == [1, 12]
    with pytest.raises(ValueError, match="class_num: .*features_only has no classifier"):
        HarDNet(TINY, features_only=True).reset_classifier(3)


@pytest.mark.parametrize("class_num", [5, 0])
def test_a_new_classifier_is_in_the_mode_of_the_network(class_num):
    model = HarDNet(TINY, class_num=4)
    assert all(layer.training for layer in model.sublayers())
    model.eval()
    model.reset_classifier(class_num)
    assert not any(layer.training for layer in model.sublayers())


@pytest.mark.parametrize("suffix", ["", ".pdparams"])
def test_pretrained_takes_a_path(tmp_path, suffix):
    shapes = {n: tuple(t.shape) for n, t in network("HarDNet39_ds").state_dict().items()}
    save_pdparams(tmp_path / "own.pdparams", oracle.weights(shapes))
    model = create_model("HarDNet39_ds", pretrained=str(tmp_path / f"own{suffix}"))
    model.eval()
    x = images(1, 3, 32, 32)
    np.testing.assert_array_equal(model(x).numpy(), network("HarDNet39_ds")(x).numpy())


def test_a_feature_extractor_takes_a_classifiers_weights(tmp_path):
    shapes = {n: tuple(t.shape) for n, t in network("HarDNet39_ds").state_dict().items()}
    path = tmp_path / "own.pdparams"
    save_pdparams(path, oracle.weights(shapes))
    model = create_model("HarDNet39_ds", features_only=True, pretrained=str(path))
    model.eval()
    x = images(1, 3, 32, 32)
    expected = network("HarDNet39_ds").forward_features(x).numpy()
    np.testing.assert_array_equal(model(x)[-1].numpy(), expected)


def test_pretrained_must_exist_and_fit(tmp_path):
    with pytest.raises(UserError, match="no such weight file"):
        create_model("HarDNet39_ds", pretrained=str(tmp_path / "none"))
    shapes = {n: tuple(t.shape) for n, t in network("HarDNet39_ds").state_dict().items()}
    save_pdparams(tmp_path / "own.pdparams", oracle.weights(shapes))
    with pytest.raises(UserError, match="does not fit HarDNet"):
        create_model("HarDNet68_ds", pretrained=str(tmp_path / "own.pdparams"))


# Mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_num": -1}, "class_num: expected 0 or more, got -1"),
        ({"in_channels": 0}, "in_channels: expected 1 or more, got 0"),
        ({"dropout": 1.0}, r"dropout: expected a number in \[0, 1\), got 1.0"),
        ({"dropout": -0.1}, r"dropout: expected a number in \[0, 1\)"),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        HarDNet(TINY, **options)
    with pytest.raises(ConfigError, match=f"Arch.{message}"):
        build_model({"Arch": {"name": "HarDNet39_ds", **options}})


def test_an_unknown_layout():
    with pytest.raises(ValueError, match="data_format: expected 'NCHW' or 'NHWC', got 'HWC'"):
        HarDNet(TINY, data_format="HWC")


@pytest.mark.parametrize("data_format", ["NCHW", "NHWC"])
def test_images_of_other_channels(data_format):
    model = HarDNet(TINY, data_format=data_format)
    with pytest.raises(ValueError, match=r"x: expected 3 channels, got shape \[1, 4, 32, 32\]"):
        model(images(1, 4, 32, 32))
    with pytest.raises(ValueError, match="x: expected 4 dimensions"):
        model(images(3, 32, 32))


def test_misspelt_arguments():
    with pytest.raises(ConfigError, match="did you mean 'class_num'"):
        build_model({"Arch": {"name": "HarDNet68", "clas_num": 10}})
    with pytest.raises(ConfigError, match="did you mean 'HarDNet85'"):
        build_model({"Arch": {"name": "HarDNet86"}})
    with pytest.raises(ConfigError, match="Arch: expected a mapping with a 'name'"):
        build_model({"Global": {}})
