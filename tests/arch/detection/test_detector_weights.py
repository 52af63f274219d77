"""What can be loaded into a detector, and what then starts anew."""

from __future__ import annotations

import logging

import numpy as np
import oracle
import pytest

from ppcls.arch import create_model
from ppcls.arch.backbone.hardnet_plan import VARIANTS, expected_shapes
from ppcls.arch.detection.ssd_plan import SSD_VARIANTS, detector_shapes, trunk_shapes
from ppcls.arch.weights import load_pretrained
from ppcls.convert import paddle_to_torch, save_torch_state_dict
from ppcls.utils.errors import UserError
from ppcls.utils.pdparams import save_pdparams

NEW = ["extras", "L2Norm", "loc", "conf"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Each kind of file under both sides' names; written once."""
    folder = tmp_path_factory.mktemp("weights")
    for number in ("68", "85"):
        name = f"SSD_HarDNet{number}"
        spec = SSD_VARIANTS[name]
        whole = oracle.weights(detector_shapes(spec, 300, 4), seed=1)
        kinds = {
            "whole": (whole, f"{name}@300"),
            "trunk": ({key: whole[key] for key in trunk_shapes(spec)}, f"{name}_trunk"),
            "classifier": (
                oracle.weights(expected_shapes(VARIANTS[spec.classifier], 10), seed=1),
                spec.classifier,
            ),
        }
        for kind, (state, row) in kinds.items():
            save_pdparams(folder / f"{kind}{number}.pdparams", state)
            classes = 10 if kind == "classifier" else None
            official = paddle_to_torch(state, row, classes)
            save_torch_state_dict(folder / f"{kind}{number}.pth", official)
    return folder


def arrays(model):
    return {key: tensor.numpy() for key, tensor in model.state_dict().items()}


def check(model, before, new):
    """What is new is as it was, all else is the file's (`oracle` knows it by name)."""
    shapes = {key: value.shape for key, value in before.items()}
    wanted = oracle.weights(shapes, seed=1)
    for key, value in arrays(model).items():
        is_new = key.startswith(tuple(f"{part}." for part in new))
        np.testing.assert_array_equal(value, before[key] if is_new else wanted[key], err_msg=key)


@pytest.mark.parametrize("ending", ["pdparams", "pth"])
@pytest.mark.parametrize(
    ("kind", "number", "new"),
    [
        ("classifier", "68", ["base.13", *NEW]),
        pytest.param("classifier", "85", ["bridge", *NEW], marks=pytest.mark.slow),
        ("trunk", "68", NEW),
        ("trunk", "85", ["bridge", *NEW]),
        ("whole", "68", []),
        pytest.param("whole", "85", [], marks=pytest.mark.slow),
    ],
)
def test_what_starts_anew(files, caplog, kind, number, new, ending):
    name = f"SSD_HarDNet{number}"
    model = create_model(name, size=300, class_num=4)
    before = arrays(model)
    with caplog.at_level(logging.INFO, logger="ppcls"):
        load_pretrained(model, name, files / f"{kind}{number}.{ending}")
    check(model, before, new)
    assert f"{kind}{number}.{ending}" in caplog.text
    if new:
        assert f"tensors start anew: {', '.join(new)}" in caplog.text
    else:
        assert "anew" not in caplog.text and f"{len(before)} tensors from" in caplog.text


def test_another_class_count_keeps_its_own_scores(files, caplog):
    model = create_model("SSD_HarDNet68", size=300, class_num=7)
    before = arrays(model)
    with caplog.at_level(logging.INFO, logger="ppcls"):
        load_pretrained(model, "SSD_HarDNet68", files / "whole68.pth")
    check(model, before, ["conf"])
    assert "12 tensors start anew: conf" in caplog.text
    with pytest.raises(UserError, match="6 wrong shape|12 wrong shape"):
        load_pretrained(model, "SSD_HarDNet68", files / "whole68.pth", new_head=False)


def test_by_argument(files):
    model = create_model(
        "SSD_HarDNet68", size=300, class_num=4, pretrained=str(files / "whole68.pdparams")
    )
    check(model, arrays(model), [])


def test_what_does_not_fit(files):
    model = create_model("SSD_HarDNet68", size=512, class_num=4)
    before = arrays(model)
    for file, options, message in (
        ("whole68.pdparams", {}, "expected weights of size 512, found size 300"),
        ("whole68.pth", {}, "expected weights of size 512, found size 300"),
        ("whole85.pth", {}, "do not fit SSD_HarDNet68@.*they are those of SSD_HarDNet85@300"),
        ("trunk85.pdparams", {}, "does not fit SSD_HarDNet68: .* wrong shape"),
        ("classifier68.pdparams", {"new_head": False}, "expected the weights of a whole detector"),
    ):
        with pytest.raises(UserError, match=message):
            load_pretrained(model, "SSD_HarDNet68", files / file, **options)
    with pytest.raises(UserError, match="no weights are published for this network"):
        load_pretrained(model, "SSD_HarDNet68", True)
    for key, value in arrays(model).items():
        np.testing.assert_array_equal(value, before[key])


def test_half_a_trunk_is_not_one(tmp_path):
    state = oracle.weights(trunk_shapes(SSD_VARIANTS["SSD_HarDNet68"]))
    for gone in ("base.13.2.bias", "base.4.conv.weight"):
        save_pdparams(tmp_path / "x.pdparams", {k: v for k, v in state.items() if k != gone})
        model = create_model("SSD_HarDNet68", size=300, class_num=2)
        with pytest.raises(UserError, match=rf"1 missing \({gone}\)"):
            load_pretrained(model, "SSD_HarDNet68", tmp_path / "x")


def test_the_official_prefix_of_parallel_training(tmp_path):
    state = oracle.weights(detector_shapes(SSD_VARIANTS["SSD_HarDNet68"], 300, 4), seed=1)
    official = paddle_to_torch(state, "SSD_HarDNet68@300")
    save_torch_state_dict(
        tmp_path / "m.pth", {f"module.{key}": value for key, value in official.items()}
    )
    model = create_model("SSD_HarDNet68", size=300, class_num=4)
    load_pretrained(model, "SSD_HarDNet68", tmp_path / "m.pth")
    check(model, arrays(model), [])
