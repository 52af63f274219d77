from __future__ import annotations

import numpy as np
import paddle
import pytest
from official import ASSETS, weights

from ppcls.arch.backbone.hardnet_plan import VARIANTS
from ppcls.convert import torch_to_paddle, verify
from ppcls.convert.verify import NumpyOps, Reference
from ppcls.utils.errors import UserError

ARCH = "HarDNet39_ds"


@pytest.fixture(scope="module")
def states():
    state = weights(ARCH)
    return state, torch_to_paddle(state, ARCH)


@pytest.fixture
def without_torch(monkeypatch):
    monkeypatch.setattr(verify, "has_torch", lambda: False)


def test_the_reference_gives_the_official_logits(states):
    fixture = np.load(ASSETS / "hardnet39ds.npz")
    images = np.random.default_rng([0, 12345]).standard_normal((1, 3, 224, 224)).astype("f4")
    stages = dict(Reference(VARIANTS[ARCH], states[0], NumpyOps("float64")).stages(images))
    assert list(stages) == [f"base.{n}" for n in range(15)]
    np.testing.assert_allclose(stages["base.14"], fixture["logits_f64"], rtol=0, atol=1e-9)


def test_pooling_of_the_reference_is_paddles():
    x = np.random.default_rng(0).standard_normal((2, 3, 7, 8))
    for kernel, padding in ((3, 1), (2, 0)):
        wanted = paddle.nn.functional.max_pool2d(paddle.to_tensor(x), kernel, 2, padding).numpy()
        np.testing.assert_array_equal(NumpyOps("float64").max_pool(x, kernel, 2, padding), wanted)


def test_converted_weights_pass(states, without_torch):
    before = paddle.get_default_dtype()
    result = verify.verify(*states, ARCH, 1000, size=64)
    assert result["passed"] and result["reference"] == "numpy" and "float32" not in result
    assert len(result["float64"]["stages"]) == 15
    assert 0 < result["float64"]["logits_relative_error"] < 1e-10
    assert paddle.get_default_dtype() == before


def test_a_slip_in_one_tensor_is_found_where_it_is(states, without_torch):
    torch_state, paddle_state = states
    wrong = dict(paddle_state)
    wrong["base.6.layers.3.layer1.norm.bias"] = wrong["base.6.layers.3.layer1.norm.bias"] + 1e-4
    result = verify.verify(torch_state, wrong, ARCH, 1000, size=64)
    assert not result["passed"] and not result["float64"]["passed"]
    errors = {stage["name"]: stage["max_abs_error"] for stage in result["float64"]["stages"]}
    assert errors["base.5"] < 1e-9 < 1e-6 < errors["base.6"]


def test_infinite_weights_do_not_pass(states, without_torch):
    torch_state = dict(states[0])
    torch_state["base.14.3.bias"] = np.full(1000, np.inf, np.float32)
    paddle_state = torch_to_paddle(torch_state, ARCH)
    with pytest.raises(UserError, match="not finite"):
        verify.verify(torch_state, paddle_state, ARCH, 1000, size=64)


def test_only_known_networks(states):
    with pytest.raises(UserError, match="FC_HarDNet70: cannot be verified"):
        verify.verify(*states, "FC_HarDNet70", 19)
