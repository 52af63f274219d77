"""Where the parts of a network begin and end."""

import paddle
import pytest
from paddle import nn

from ppcls.arch import create_model
from ppcls.engine.parts import parameters_by_part, parts_of


@pytest.mark.parametrize(
    ("name", "blocks", "stem", "head"),
    [
        ("HarDNet39_ds", 4, 3, "base.14.3.weight"),
        ("HarDNet68", 5, 3, "base.16.3.weight"),
        ("SSD_HarDNet68", 4, 3, "conf.0.weight"),
        ("SSD_HarDNet85", 5, 3, "conf.0.weight"),
    ],
)
def test_a_stage_begins_with_its_block(name, blocks, stem, head):
    model = create_model(name, class_num=7)
    parts = parts_of(model)
    assert list(parts) == ["stem", *(f"stage{n}" for n in range(1, blocks + 1)), "head"]
    assert len(parts["stem"]) == stem
    names = parameters_by_part(model)
    assert list(names) == list(parts)
    assert head in names["head"] and "base.0.conv.weight" in names["stem"]
    assert f"base.{stem}.layers.0" in names["stage1"][0]
    every = [parameter for part in names.values() for parameter in part]
    assert sorted(every) == sorted(dict(model.named_parameters()))


def test_another_network_has_no_parts():
    model = nn.Linear(2, 2)
    assert parts_of(model) == {} == parameters_by_part(model)
    assert paddle.is_tensor(model.weight)
