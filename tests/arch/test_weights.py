"""Weights fit, or the error says what does not and nothing has changed."""

import numpy as np
import oracle
import paddle
import pytest
from paddle import nn

from ppcls.arch import create_model
from ppcls.arch.backbone.hardnet import HarDNet
from ppcls.arch.backbone.hardnet_plan import VARIANTS, HarDNetSpec, Stage, expected_shapes
from ppcls.arch.weights import load_state, weights_file
from ppcls.utils.errors import UserError
from ppcls.utils.pdparams import save_pdparams

SPEC = HarDNetSpec(
    stem=(4, 8),
    depthwise=True,
    multiplier=1.6,
    dropout=0.0,
    stages=(Stage(growth=4, layers=2, out_channels=8, downsample=True),) * 4,
)


HEAD = tuple(expected_shapes(SPEC, 4))[-2:]
HEAD_68 = tuple(expected_shapes(VARIANTS["HarDNet68"], 1000))[-2:]


def tiny(class_num=4):
    return HarDNet(SPEC, class_num=class_num)


def state_of(class_num=4, seed=0):
    return oracle.weights(expected_shapes(SPEC, class_num), seed)


def arrays(model):
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, name)


def test_a_state_that_fits():
    model = tiny()
    assert load_state(model, state_of(), "file") == []
    assert_same(arrays(model), state_of())


def test_floats_take_the_dtype_of_the_network():
    model = tiny()
    wide = {name: array.astype("float64") for name, array in state_of().items()}
    load_state(model, wide, "file")
    assert_same(arrays(model), state_of())
    assert model.base[0].conv.weight.dtype == paddle.float32


def test_what_does_not_fit_is_listed_and_nothing_changes():
    model = tiny()
    before = arrays(model)
    state = state_of(seed=1)
    del state["base.0.norm.bias"], state["base.0.norm._mean"]
    state["extra"] = np.zeros(3, "float32")
    state["base.0.conv.weight"] = np.zeros([4, 3, 5, 5], "float32")
    with pytest.raises(UserError) as raised:
        load_state(model, state, "my.pdparams")
    assert str(raised.value) == (
        "my.pdparams: does not fit HarDNet: "
        "2 missing (base.0.norm.bias, base.0.norm._mean); "
        "1 unexpected (extra); "
        "1 wrong shape (base.0.conv.weight [4, 3, 5, 5] for [4, 3, 3, 3])"
    )
    assert_same(arrays(model), before)


def test_long_lists_are_cut():
    with pytest.raises(UserError, match=r"missing \(base.0.conv.weight, .*, \.\.\.\)"):
        load_state(tiny(), {}, "file")


def test_hardnet85_does_not_fit_hardnet68():
    model = create_model("HarDNet68")
    before = arrays(model)
    state = oracle.weights(expected_shapes(VARIANTS["HarDNet85"], 1000))
    for new_head in ((), HEAD_68):
        with pytest.raises(UserError, match=r"missing.*unexpected.*wrong shape"):
            load_state(model, state, "file", new_head=new_head)
    assert_same(arrays(model), before)


def test_another_class_count_is_an_error_unless_the_head_is_new():
    model = tiny(class_num=7)
    before = arrays(model)
    with pytest.raises(UserError, match=r"2 wrong shape \(base\.\d+\.3\.weight \[8, 4\] for "):
        load_state(model, state_of(class_num=4), "file")
    assert_same(arrays(model), before)
    kept = load_state(model, state_of(class_num=4), "file", new_head=HEAD)
    assert kept == list(before)[-2:]
    expected = {**state_of(class_num=4), **{name: before[name] for name in kept}}
    assert_same(arrays(model), {name: expected[name] for name in before})


def test_a_new_head_excuses_nothing_else():
    model = tiny(class_num=7)
    before = arrays(model)
    state = state_of(class_num=4)
    del state["base.0.norm.bias"]
    with pytest.raises(UserError, match=r"1 missing \(base.0.norm.bias\)"):
        load_state(model, state, "file", new_head=HEAD)
    headless = state_of(class_num=0)
    with pytest.raises(UserError, match="2 missing"):
        load_state(model, headless, "file", new_head=HEAD)
    assert_same(arrays(model), before)


@pytest.mark.parametrize("shapes", [([8, 4], [7]), ([8, 7], [4]), ([7, 4], [4]), ([8], [4])])
def test_a_new_head_replaces_a_whole_classifier_or_nothing(shapes):
    state = state_of()
    for name, shape in zip(HEAD, shapes, strict=True):
        state[name] = np.zeros(shape, "float32")
    with pytest.raises(UserError, match="wrong shape"):
        load_state(tiny(class_num=7), state, "file", new_head=HEAD)


@pytest.mark.parametrize("options", [{"class_num": 0}, {"features_only": True}])
def test_a_network_without_classifier_takes_nothing_of_another_shape(tmp_path, options):
    shapes = expected_shapes(VARIANTS["HarDNet39_ds"], 10)
    state = oracle.weights(shapes)
    last = list(state)[-3]
    state[last] = np.zeros(999, "float32")
    save_pdparams(tmp_path / "x.pdparams", state)
    with pytest.raises(UserError, match=f"1 wrong shape .{last}"):
        create_model("HarDNet39_ds", pretrained=str(tmp_path / "x.pdparams"), **options)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.full([4], 1 + 2j, "complex64"), "1 of another kind of number"),
        (np.ones([4], "int64"), "1 of another kind of number"),
        (np.ones([4], "bool"), "1 of another kind of number"),
        (np.full([4], "x"), "1 of another kind of number"),
        (np.full([4], np.nan, "float32"), "1 not finite"),
    ],
)
def test_weights_are_finite_floating_numbers(value, message):
    model = tiny()
    before = arrays(model)
    with pytest.raises(UserError, match=message):
        load_state(model, {**state_of(), "base.0.norm.bias": value}, "file")
    assert_same(arrays(model), before)


def test_a_new_head_of_the_same_size_is_loaded():
    model = tiny()
    assert load_state(model, state_of(), "file", new_head=HEAD) == []
    assert_same(arrays(model), state_of())


def test_a_low_precision_network_is_loaded():
    """What AMP's O2 makes of a network: bfloat16 tensors behind a state dict of float32 copies."""
    model = nn.Linear(2, 3)
    model.to(dtype="bfloat16")

    def widen(state):
        for name, tensor in state.items():
            state[name] = tensor.astype("float32")

    model.register_state_dict_hook(widen)
    state = {"weight": np.full([2, 3], 0.5, "float32"), "bias": np.ones(3, "float32")}
    load_state(model, state, "file")
    assert model.weight.dtype == paddle.bfloat16
    assert_same(arrays(model), state)


def test_weights_file(tmp_path):
    (tmp_path / "a.pdparams").write_bytes(b"")
    (tmp_path / "b.safetensors").write_bytes(b"")
    assert weights_file(tmp_path / "a") == tmp_path / "a.pdparams"
    assert weights_file(tmp_path / "a.pdparams") == tmp_path / "a.pdparams"
    assert weights_file(tmp_path / "b.safetensors") == tmp_path / "b.safetensors"
    with pytest.raises(UserError, match=r"no such weight file \(nor c.pdparams beside it\)"):
        weights_file(tmp_path / "c")
