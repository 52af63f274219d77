"""Conversion of detectors: their rows, their files, and the proof that nothing is lost."""

from __future__ import annotations

import json
from dataclasses import replace

import convert_torch
import numpy as np
import oracle
import pytest

from ppcls.arch.backbone.hardnet_plan import Stage
from ppcls.arch.detection import ssd_plan
from ppcls.arch.detection.ssd_plan import SSD_VARIANTS
from ppcls.convert import (
    ConversionError,
    load_paddle_state_dict,
    paddle_to_torch,
    recognise,
    save_torch_state_dict,
    torch_to_paddle,
    verify,
)
from ppcls.convert.architectures import candidates, find_architecture, loadable
from ppcls.convert.mapping import class_count, torch_names
from ppcls.convert.reference import DetectorReference, NumpyOps
from ppcls.utils.errors import ConfigError

ROWS = [f"SSD_HarDNet{n}{kind}" for n in (68, 85) for kind in ("@300", "@512", "_trunk")]
# Entries of the official files; a trunk's are those of `base`.
ENTRIES = dict(zip(ROWS, (425, 433, 384, 527, 535, 474), strict=True))


def paddle_weights(row, class_num=None):
    found = find_architecture(row)
    return oracle.weights(found.shapes(class_num or found.class_num))


@pytest.mark.parametrize("row", ROWS)
def test_there_and_back(row):
    state = paddle_weights(row)
    official = paddle_to_torch(state, row)
    assert len(official) == ENTRIES[row] and list(official) == list(torch_names(row))
    assert recognise(official) == row and recognise(state) == row
    back = torch_to_paddle(official, row)
    assert list(back) == list(state)
    for name, value in state.items():
        np.testing.assert_array_equal(back[name], value)
    bare = {k: v for k, v in official.items() if not k.endswith("num_batches_tracked")}
    assert recognise(bare) == row and list(torch_to_paddle(bare, row)) == list(state)


def test_names_are_the_official_ones_in_order(assets):
    official = json.loads((assets / "ssd_hardnet68_512.names.json").read_text())
    state = paddle_to_torch(paddle_weights("SSD_HarDNet68@512"), "SSD_HarDNet68@512")
    assert [[name, list(value.shape)] for name, value in state.items()] == official


def test_names_in_trunk_files_have_no_prefix():
    assert {"0.conv.weight", "3.layers.0.norm.bias", "13.1.weight"} <= set(
        torch_names("SSD_HarDNet68_trunk")
    )
    assert not [name for name in torch_names("SSD_HarDNet85_trunk") if name.startswith("base")]


@pytest.mark.parametrize("classes", [2, 21, 81])
def test_the_class_count_is_seen_from_the_weights(classes):
    row = "SSD_HarDNet68@512"
    state = paddle_weights(row, classes)
    official = paddle_to_torch(state, row)
    assert class_count(official, find_architecture(row)) == classes
    assert recognise(official) == row
    assert torch_to_paddle(official, row)["conf.0.bias"].shape == (6 * classes,)
    with pytest.raises(ConversionError, match="14 of another shape"):
        torch_to_paddle(official, row, classes + 1)


def test_damaged_detectors_are_still_named():
    state = paddle_to_torch(paddle_weights("SSD_HarDNet85@300"), "SSD_HarDNet85@300")
    del state["bridge.1.conv.weight"]
    assert recognise(state) == "SSD_HarDNet85@300"
    with pytest.raises(ConversionError, match=r"1 missing \(bridge.1.conv.weight\)"):
        torch_to_paddle(state, "SSD_HarDNet85@300")
    with pytest.raises(ConversionError, match="they are those of SSD_HarDNet85@300"):
        torch_to_paddle(state, "SSD_HarDNet68@300")


def test_what_a_name_may_mean():
    assert candidates("ssd-hardnet68") == ROWS[:3]
    assert candidates("ssd_hardnet68", 300) == ["SSD_HarDNet68@300", "SSD_HarDNet68_trunk"]
    assert candidates("SSD_HarDNet68_trunk") == ["SSD_HarDNet68_trunk"]
    assert candidates("hardnet39ds") == ["HarDNet39_ds"]
    assert loadable("SSD_HarDNet85") == [*ROWS[3:], "HarDNet85"]
    assert loadable("HarDNet85") == ["HarDNet85"]
    with pytest.raises(ConfigError, match="size: expected 300 or 512, got 320"):
        candidates("SSD_HarDNet68", 320)
    with pytest.raises(ConfigError, match="size: expected none, this network has no fixed one"):
        candidates("HarDNet68", 300)
    with pytest.raises(ConfigError, match="unknown network 'SSD_HarDNet6'"):
        candidates("SSD_HarDNet6")


# Verification


@pytest.fixture
def tiny(monkeypatch):
    """Both detectors with trunks of a hundredth of the size, under their own names."""
    from ppcls.arch.detection import ssd

    for name, spec in SSD_VARIANTS.items():
        stages = [
            Stage(growth=2, layers=2, out_channels=4, downsample=True, ceil_mode=True),
            Stage(growth=2, layers=4, out_channels=6, downsample=True),
            Stage(growth=2, layers=2, out_channels=8, downsample=False),
        ]
        trunk = replace(spec.trunk, stem=(4, 4), stages=tuple(stages))
        small = replace(spec, trunk=trunk, bridge=(10, 8))
        monkeypatch.setitem(SSD_VARIANTS, name, small)
    monkeypatch.setattr(
        ssd_plan, "_EXTRAS", {s: tuple((4, 6, *r[2:]) for r in rows) for s, rows in EXTRAS.items()}
    )
    from ppcls.convert import architectures

    architectures._rows.cache_clear()
    for name in SSD_VARIANTS:
        monkeypatch.setitem(
            ssd.ARCHITECTURES._entries,
            name,
            lambda class_num=81, size=512, name=name: ssd.SSD(SSD_VARIANTS[name], size, class_num),
        )
    monkeypatch.setattr(verify, "has_torch", lambda: False)
    yield
    architectures._rows.cache_clear()


EXTRAS = dict(ssd_plan._EXTRAS)


@pytest.mark.parametrize("row", ROWS)
def test_converted_weights_pass(tiny, row):
    state = paddle_weights(row, 3)
    result = verify.verify(paddle_to_torch(state, row), state, row, 0 if "trunk" in row else 3)
    assert result["passed"] and result["float64"]["outputs_relative_error"] < 1e-10
    names = [stage["name"] for stage in result["float64"]["stages"]]
    outside = [] if row.endswith("trunk") else ["loc", "conf"]
    bridge = ["bridge"] if "85" in row and outside else []
    assert names == [f"base.{i}" for i in range(len(names) - len(outside + bridge))] + (
        bridge + outside
    )


@pytest.mark.parametrize(
    "slip", ["loc.2.bias", "conf.5.weight", "L2Norm.weight", "extras.3.bias", "base.11.2._mean"]
)
def test_a_slip_is_found(tiny, slip):
    row = "SSD_HarDNet68@300"
    state = paddle_weights(row, 3)
    wrong = dict(state)
    assert slip in wrong, sorted(wrong)
    wrong[slip] = wrong[slip] * 1.001
    result = verify.verify(paddle_to_torch(state, row), wrong, row, 3)
    assert not result["passed"]


@pytest.mark.slow
def test_the_reference_gives_the_official_outputs(assets):
    official = np.load(assets / "ssd_hardnet68_512.npz")
    state = paddle_to_torch(paddle_weights("SSD_HarDNet68@512"), "SSD_HarDNet68@512")
    reference = DetectorReference(SSD_VARIANTS["SSD_HarDNet68"], 512, state, NumpyOps("float32"))
    stages = dict(reference.stages(oracle.image(0, (1, 3, 512, 512))))
    for key in ("loc", "conf"):
        values = stages[key].flatten()[official[f"{key}_idx"]]
        np.testing.assert_allclose(values, official[f"{key}_val"], rtol=0, atol=2e-3)


# The tool


def run(*arguments):
    return convert_torch.main([str(argument) for argument in arguments])


def test_the_tool(tiny, tmp_path, capsys):
    state = paddle_weights("SSD_HarDNet68@512", 5)
    official = paddle_to_torch(state, "SSD_HarDNet68@512")
    source, target, back = (tmp_path / name for name in ("a.pth", "b.pdparams", "c.pth"))
    save_torch_state_dict(source, {f"module.{key}": value for key, value in official.items()})
    size = ("--arch", "SSD_HarDNet68", "--size", 512)
    assert run(source, target, *size, "--verify") == 0
    assert "outputs differ by" in capsys.readouterr().out
    assert list(load_paddle_state_dict(target)) == list(state)
    assert run(source, tmp_path / "seen.pdparams") == 0
    assert "SSD_HarDNet68@512" in capsys.readouterr().out
    assert run(target, back, "--to", "torch") == 0
    assert run(source, target, "--arch", "SSD_HarDNet68", "--size", 300) == 2
    assert "they are those of SSD_HarDNet68@512" in capsys.readouterr().err
    assert run(source, target, "--size", 320) == 2
    assert "size: expected" in capsys.readouterr().err


def test_the_tool_on_a_trunk(tiny, tmp_path, capsys):
    official = paddle_to_torch(paddle_weights("SSD_HarDNet68_trunk"), "SSD_HarDNet68_trunk")
    save_torch_state_dict(tmp_path / "a.pth", official)
    target = tmp_path / "b.pdparams"
    assert run(tmp_path / "a.pth", target, "--arch", "SSD_HarDNet68", "--verify") == 0
    assert all(name.startswith("base.") for name in load_paddle_state_dict(target))
    # A trunk is that of either size, and may have been saved from a DataParallel.
    save_torch_state_dict(tmp_path / "m.pth", {f"module.{k}": v for k, v in official.items()})
    assert run(tmp_path / "m.pth", target, "--arch", "SSD_HarDNet68", "--size", 512) == 0
    assert run(tmp_path / "m.pth", target, "--size", 300) == 0
    capsys.readouterr()
    assert run(tmp_path / "m.pth", target, "--size", 320) == 2
    assert "size: expected 300 or 512, got 320" in capsys.readouterr().err


def test_weights_of_the_smaller_size_are_named(tiny):
    official = paddle_to_torch(paddle_weights("SSD_HarDNet68@300", 5), "SSD_HarDNet68@300")
    with pytest.raises(ConversionError, match="they are those of SSD_HarDNet68@300: 8 missing"):
        torch_to_paddle(official, "SSD_HarDNet68@512")
    damaged = {k: v for k, v in official.items() if k != "extras.1.bias"}
    with pytest.raises(ConversionError, match="fit SSD_HarDNet68@300: 1 missing"):
        torch_to_paddle(damaged, "SSD_HarDNet68@300")
