"""PaddleClas's wheel: its networks through our front door, and ours through its own."""

import importlib.util
import subprocess
import sys

import numpy as np
import oracle
import paddle
import pytest

from ppcls.arch import build_model, create_model, zoo
from ppcls.arch.backbone import hardnet
from ppcls.arch.backbone.hardnet import HarDNet
from ppcls.arch.build import find_builder
from ppcls.utils.errors import ConfigError, UserError

NAMES = ["HarDNet39_ds", "HarDNet68_ds", "HarDNet68", "HarDNet85"]

needs_wheel = pytest.mark.skipif(
    importlib.util.find_spec("paddleclas") is None, reason="paddleclas is not installed"
)


@pytest.fixture(scope="module")
def wheel():
    """`paddleclas.ppcls.arch` with our networks in it; importing it takes seconds."""
    zoo.register()
    return sys.modules["paddleclas.ppcls.arch"]


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("HarDNet39_ds", "HarDNet39_ds"),
        ("hardnet39ds", "HarDNet39_ds"),
        ("HarDNet39ds", "HarDNet39_ds"),
        ("hardnet_39_ds", "HarDNet39_ds"),
        ("HARDNET39_DS", "HarDNet39_ds"),
        ("hardnet-39-ds", "HarDNet39_ds"),
        ("hardnet68ds", "HarDNet68_ds"),
        ("HarDNet68ds", "HarDNet68_ds"),
        ("hardnet68", "HarDNet68"),
        ("hardnet_68", "HarDNet68"),
        ("hardnet85", "HarDNet85"),
    ],
)
def test_spellings_of_other_ports(spelling, name):
    assert find_builder(spelling) is getattr(hardnet, name)


@pytest.mark.parametrize("name", ["copy", "HarDNet", "HarDBlock", "HarDNet50", "", "build_model"])
def test_a_lookup_never_leaves_the_registry(name):
    with pytest.raises(ConfigError, match="unknown Arch.*known: HarDNet39_ds, HarDNet68"):
        create_model(name)


@pytest.mark.parametrize("name", [None, 68, ["HarDNet68"]])
def test_a_name_is_a_text(name):
    with pytest.raises(ConfigError, match="Arch.name: expected the name of an architecture"):
        build_model({"Arch": {"name": name}})


def test_our_networks_do_not_import_the_wheel():
    program = (
        "import sys, ppcls.arch, ppcls.arch.backbone.hardnet\n"
        "ppcls.arch.create_model('hardnet39ds', class_num=2)\n"
        "assert 'paddleclas' not in sys.modules, 'paddleclas was imported'\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]


def test_without_the_wheel(monkeypatch):
    monkeypatch.setattr(zoo, "is_installed", lambda: False)
    with pytest.raises(ConfigError, match=r"unknown Arch 'ResNet50'.*the extra 'zoo'"):
        create_model("ResNet50")
    with pytest.raises(UserError, match=r"install it with: pip install 'hardnet-paddle\[zoo\]'"):
        zoo.register()


@pytest.mark.zoo
@needs_wheel
def test_register_puts_our_networks_into_the_wheel(wheel):
    own = [getattr(wheel, name) for name in NAMES]
    zoo.register()
    assert [getattr(wheel, name) for name in NAMES] == own
    assert own == [getattr(hardnet, name) for name in NAMES]
    config = {"Arch": {"name": "HarDNet68", "class_num": 10}, "Global": {"save_interval": 1}}
    model = wheel.build_model(config)
    assert isinstance(model, HarDNet)
    model.eval()
    assert model(paddle.zeros([1, 3, 32, 32])).shape == [1, 10]


@pytest.mark.zoo
@needs_wheel
@pytest.mark.parametrize("name", NAMES)
def test_the_same_weights_give_the_wheels_own_logits(wheel, name):
    module = importlib.import_module("paddleclas.ppcls.arch.backbone.model_zoo.hardnet")
    theirs = getattr(module, name)(pretrained=False)
    assert not isinstance(theirs, HarDNet)
    ours = oracle.fill(create_model(name))
    state = ours.state_dict()
    assert list(theirs.state_dict()) == list(state)
    theirs.set_state_dict(state)
    ours.eval()
    theirs.eval()
    x = paddle.to_tensor(oracle.image(0, (1, 3, 96, 96)))
    np.testing.assert_allclose(ours(x).numpy(), theirs(x).numpy(), rtol=0, atol=1e-4)


@pytest.mark.zoo
@needs_wheel
@pytest.mark.parametrize("name", ["ResNet50", "PPLCNet_x0_25"])
def test_the_wheels_networks_by_name(wheel, name):
    model = build_model({"Arch": {"name": name, "class_num": 6}})
    model.eval()
    assert model(paddle.zeros([1, 3, 64, 64])).shape == [1, 6]


@pytest.mark.zoo
@needs_wheel
def test_unknown_names_and_the_closest_known(wheel):
    with pytest.raises(ConfigError, match="unknown Arch 'ResNet51'; did you mean 'ResNet50"):
        create_model("ResNet51")
    with pytest.raises(ConfigError, match="did you mean 'HarDNet68_ds'"):
        create_model("HarDNet68_dz")
    assert not any(name.startswith("HarDNet") for name in zoo.builders())
    assert len(zoo.builders()) > 100
