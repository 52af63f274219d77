from __future__ import annotations

import numpy as np
import pytest
from official import FILES, names_and_shapes, weights

from ppcls.convert import ConversionError, paddle_to_torch, recognise, torch_to_paddle
from ppcls.convert.mapping import (
    architectures,
    canonical_name,
    describe,
    find_architecture,
    torch_names,
)
from ppcls.utils.errors import ConfigError

ARCHS = ("HarDNet39_ds", "HarDNet68_ds", "HarDNet68", "HarDNet85")


def empty_weights(arch: str, class_num: int | None = None) -> dict[str, np.ndarray]:
    """Zeros of the right shapes under PyTorch's names, without the memory."""
    row = find_architecture(arch)
    shapes = row.shapes(class_num or row.class_num)
    zero = np.zeros((), np.float32)
    return {
        name: np.zeros((), np.int64)
        if source is None
        else np.broadcast_to(zero, shapes[source][::-1] if source in row.linear else shapes[source])
        for name, source in torch_names(arch, class_num).items()
    }


def test_all_four_networks_are_there():
    assert tuple(architectures())[:4] == ARCHS
    with pytest.raises(ConfigError, match="unknown network 'HarDNet86'; did you mean 'HarDNet85'"):
        torch_to_paddle({}, "HarDNet86")


@pytest.mark.parametrize("arch", FILES)
def test_names_order_and_shapes_are_the_official_ones(arch):
    official = names_and_shapes(arch)
    ours = {name: np.shape(value) for name, value in empty_weights(arch).items()}
    assert list(ours) == list(official)
    assert ours == official


@pytest.mark.parametrize(("arch", "entries"), list(zip(ARCHS, (446, 788, 404, 506), strict=True)))
def test_number_of_tensors(arch, entries):
    state = empty_weights(arch)
    assert len(state) == entries
    assert recognise(state) == arch


def test_conversion_there_and_back():
    state = weights("HarDNet39_ds")
    converted = torch_to_paddle(state, "HarDNet39_ds")
    assert not [name for name in converted if "running" in name or "tracked" in name]
    np.testing.assert_array_equal(
        converted["base.3.layers.0.layer2.norm._variance"],
        state["base.3.layers.0.layer2.norm.running_var"],
    )
    np.testing.assert_array_equal(converted["base.14.3.weight"], state["base.14.3.weight"].T)
    assert recognise(converted) == "HarDNet39_ds"
    back = paddle_to_torch(converted, "HarDNet39_ds")
    assert list(back) == list(state)
    for name, value in state.items():
        assert back[name].dtype == value.dtype and back[name].flags.c_contiguous
        np.testing.assert_array_equal(back[name], value)


def test_counters_may_be_absent_and_half_precision_is_widened():
    state = {
        name: value.astype(np.float16)
        for name, value in weights("HarDNet39_ds").items()
        if not name.endswith("num_batches_tracked")
    }
    converted = torch_to_paddle(state, "HarDNet39_ds")
    assert {value.dtype for value in converted.values()} == {np.dtype(np.float32)}
    assert recognise(state) == "HarDNet39_ds"


def test_another_class_count_must_be_asked_for():
    state = empty_weights("HarDNet68", 10)
    assert recognise(state) == "HarDNet68"
    with pytest.raises(
        ConversionError, match="with 1000 classes .they have 10: pass --class-num 10"
    ) as caught:
        torch_to_paddle(state, "HarDNet68")
    assert len(caught.value.wrong_shape) == 2 and not caught.value.missing
    converted = torch_to_paddle(state, "HarDNet68", class_num=10)
    assert converted["base.16.3.weight"].shape == (1024, 10)
    assert paddle_to_torch(converted, "HarDNet68", 10)["base.16.3.weight"].shape == (10, 1024)


def test_what_does_not_fit_is_listed_at_once():
    state = empty_weights("HarDNet68")
    del state["base.0.conv.weight"], state["base.1.norm.running_var"]
    state["base.99.x"] = state["base.0.num_batches_tracked"] = np.zeros(1, np.float32)
    state["base.4.conv.weight"] = np.zeros((128, 124), np.float32)
    state["base.4.norm.bias"] = np.zeros(128, np.int64)
    with pytest.raises(ConversionError) as caught:
        torch_to_paddle(state, "HarDNet68")
    assert caught.value.missing == ["base.0.conv.weight", "base.1.norm.running_var"]
    assert caught.value.unexpected == ["base.99.x", "base.0.num_batches_tracked"]
    assert caught.value.wrong_shape == [
        "base.4.conv.weight [128, 124] for [128, 124, 1, 1]",
        "base.4.norm.bias [128] int64 for [128]",
    ]
    assert "2 missing (base.0.conv.weight, base.1.norm.running_var); 2 unexpected" in str(
        caught.value
    )


def test_the_wrong_network_or_direction_is_said():
    state = empty_weights("HarDNet39_ds")
    with pytest.raises(
        ConversionError, match="do not fit HarDNet85, they are those of HarDNet39_ds"
    ):
        torch_to_paddle(state, "HarDNet85")
    with pytest.raises(ConversionError, match="their names are still PyTorch's"):
        paddle_to_torch(state, "HarDNet39_ds")
    converted = torch_to_paddle(state, "HarDNet39_ds")
    with pytest.raises(ConversionError, match="their names are already Paddle's"):
        torch_to_paddle(converted, "HarDNet39_ds")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("base.0.conv.weight extras.0.weight loc.0.weight conf.0.weight", "an SSD-HarDNet"),
        ("base.0.conv.weight denseBlocksUp.0.x hm.0.weight wh.0.weight", "a CenterNet-HarDNet"),
        ("base.0.conv.weight denseBlocksUp.0.x finalConv.weight", "an FC-HarDNet"),
        ("conv1.weight layer1.0.conv1.weight layer4.0.conv1.weight", "a ResNet"),
        ("features.denseblock1.denselayer1.norm1.weight", "a DenseNet"),
        ("batch_norm_0.b_0_velocity_0", "a Paddle optimizer's state"),
        ("linear_1.w_0_moment1_0", "a Paddle optimizer's state"),
        ("state param_groups", "a PyTorch optimizer's state"),
    ],
)
def test_other_files_are_named(names, words):
    state = {name: np.zeros(1, np.float32) for name in names.split()}
    assert describe(state).startswith(words)
    with pytest.raises(ConversionError, match=f"of none of HarDNet39_ds, .*they look like {words}"):
        recognise(state)
    with pytest.raises(ConversionError, match=f"do not fit HarDNet68, they look like {words}"):
        torch_to_paddle(state, "HarDNet68")


def test_a_detector_on_a_whole_classifier_body_is_not_taken_for_it():
    state = empty_weights("HarDNet85")
    state |= {name: np.zeros(1, np.float32) for name in ("denseBlocksUp.0.x", "hm.0.x", "wh.0.x")}
    with pytest.raises(ConversionError, match="they look like a CenterNet-HarDNet detector"):
        recognise(state)


def test_unknown_things_are_refused_too():
    for state in ({}, {"x": np.zeros(3)}):
        with pytest.raises(ConversionError, match=f"{len(state)} tensors of something else"):
            recognise(state)
    assert describe(["x", 3]) is None


@pytest.mark.parametrize("name", ["hardnet39ds", "hardnet_39_ds", "HARDNET39-DS", "HarDNet39_ds"])
def test_any_spelling_of_a_network(name):
    assert canonical_name(name) == "HarDNet39_ds"
    assert find_architecture(name) is architectures()["HarDNet39_ds"]


def test_names_from_a_file_are_escaped_and_cut():
    error = ConversionError("no", unexpected=["\x1b[2J\n", "x" * 10**6])
    text = str(error)
    assert text.isprintable() and len(text) < 200 and "\\x1b[2J" in text
