"""Frozen parts stay as they are, release in time, and resume exactly."""

import numpy as np
import pytest
from test_survival import assert_same_end, everything, stop_after
from tiny_run import ADAMW, MOMENTUM, arrays, tiny_net, trainer

from ppcls.arch import create_model
from ppcls.engine.checkpoint import newest_checkpoint
from ppcls.engine.config import EMAConfig, Recipe
from ppcls.engine.freezing import build_freezing
from ppcls.optimizer import build_optimizer, build_schedule
from ppcls.utils.errors import ConfigError, Stopped

LAMB = {"name": "Lamb", "weight_decay": 2**-6}
TRUNK = ("conv1", "norm1", "conv2", "norm2")


def trunk_of(model):
    return {name: array for name, array in arrays(model).items() if name.startswith(TRUNK)}


def freezing_run(folder, model, until, **options):
    """A run whose trunk is frozen before epoch number `until`."""
    return trainer(folder, model, frozen_layers=TRUNK, until=until, **options)


@pytest.mark.parametrize("until", [1, None])
def test_a_frozen_part_stays_as_it_is_with_its_statistics(tmp_path, until):
    model = tiny_net(dropout=0.2)
    before, head = trunk_of(model), arrays(model)["fc.weight"]
    run = freezing_run(tmp_path, model, until)
    ends = []
    end_epoch = run._end_epoch

    def ending():
        ends.append(trunk_of(model))
        end_epoch()

    run._end_epoch = ending
    run.fit()
    assert "norm1._mean" in before and "norm2._variance" in before
    for name, array in before.items():
        np.testing.assert_array_equal(ends[0][name], array, name)
        assert np.array_equal(ends[1][name], array) == (until is None), name
    assert not np.array_equal(arrays(model)["fc.weight"], head)


def test_a_step_without_images_leaves_frozen_norms_alone(tmp_path):
    """It evaluates the network for a moment."""
    model = tiny_net()
    run = freezing_run(tmp_path, model, None)
    before = trunk_of(model)
    forward = run.task.forward

    def pretend(network, batch):
        if run.progress.global_step == 1:
            weights = [p for p in model.parameters() if not p.stop_gradient]
            run.task.forward_nothing(network, weights)
            run._set_training_mode()
        assert model.training and not model.norm1.training
        return forward(network, batch)

    run.task.forward = pretend
    run.fit()
    for name, array in before.items():
        np.testing.assert_array_equal(trunk_of(model)[name], array, name)


def test_a_released_network_trains_like_one_that_was_never_frozen(tmp_path):
    """From the same weights, with an optimizer that has no memory."""
    sgd = {"optimizer": {"name": "SGD"}, "lr": {"learning_rate": 2**-4}}
    model = tiny_net()
    run = freezing_run(tmp_path / "a", model, 1, **sgd)
    states = []
    release = run.freezing.release

    def watching(epoch):
        states.append(arrays(model))
        return release(epoch)

    run.freezing.release = watching
    run.fit()
    other = tiny_net(seed=5)
    again = trainer(tmp_path / "b", other, **sgd)
    other.set_state_dict(states[1])
    again.progress.epoch = 1
    again.fit()
    for name, array in arrays(model).items():
        np.testing.assert_array_equal(arrays(other)[name], array, name)


@pytest.mark.parametrize(
    ("steps", "optimizer"),
    [
        (2, LAMB),
        pytest.param(4, MOMENTUM, marks=pytest.mark.slow),
        (4, ADAMW),
        pytest.param(5, ADAMW, marks=pytest.mark.slow),
        pytest.param(6, MOMENTUM, marks=pytest.mark.slow),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else value,
)
def test_stopped_around_the_release_and_started_again(tmp_path, optimizer, steps):
    """After 2 steps inside the frozen epoch, at its end, before and after the first update."""
    options = {
        "frozen_layers": TRUNK,
        "until": 1,
        "optimizer": optimizer,
        "ema": EMAConfig(decay=0.9),
        "update_freq": 2,
    }
    whole, folder = tiny_net(dropout=0.4), tmp_path / "parts"
    everything(tmp_path / "whole", whole, **options).fit()
    first = everything(folder, tiny_net(dropout=0.4), **options)
    stop_after(first, steps)
    with pytest.raises(Stopped):
        first.fit()
    second = tiny_net(seed=77, dropout=0.4)
    run = everything(folder, second, resume=newest_checkpoint(folder), **options)
    assert run.progress.global_step == steps
    run.fit()
    assert_same_end((folder, second), (tmp_path / "whole", whole))


def frozen_hardnet(names, optimizer=(), **settings):
    section = {"name": "Momentum", **dict(optimizer)}
    recipe = Recipe.parse(
        {
            "Global": {"freeze": names, **settings},
            "Arch": {"name": "HarDNet39_ds"},
            "Optimizer": section,
        },
        "a.yaml",
    )
    model = create_model("HarDNet39_ds", class_num=3)
    schedule = build_schedule({"learning_rate": 0.1}, "O.lr", epochs=9, steps_per_epoch=1)
    built = build_optimizer(section, "O", schedule=schedule, model=model)
    return model, build_freezing(recipe, model, built)


@pytest.mark.parametrize(
    ("names", "frozen"),
    [
        (["stem"], {0, 1, 2}),
        (["stage1", "stem"], {0, 1, 2, 3, 4, 5}),
        (["backbone"], set(range(14))),
        (["head"], {14}),
    ],
)
def test_names_of_parts(names, frozen):
    model, freezing = frozen_hardnet(names, unfreeze_epoch=2)

    def trains(number):
        return [name for name in trained if name.startswith(f"base.{number}.")]

    trained = [name for name, p in model.named_parameters() if not p.stop_gradient]
    assert [n for n in range(15) if not trains(n)] == sorted(frozen)
    assert not freezing.release(1) and freezing.release(2) and not freezing.release(3)
    trained = [name for name, p in model.named_parameters() if not p.stop_gradient]
    assert all(trains(n) for n in range(15))
    assert model.base[0].norm._mean.stop_gradient


@pytest.mark.parametrize(
    ("names", "settings", "message"),
    [
        (["stems"], {}, r"Global\.freeze: unknown part 'stems'; did you mean 'stem'\?; known: bac"),
        (["stem", "stage9"], {}, r"Global\.freeze: unknown part 'stage9'"),
        (["backbone", "head"], {}, r"Global\.freeze: expected a part that trains, got backbone, h"),
        (["stem"], {"epochs": 5, "unfreeze_epoch": 5}, r"Global\.unfreeze_epoch: expected a numb"),
        (["stem"], {"epochs": 5, "unfreeze_epoch": 9}, r"Global\.unfreeze_epoch: .* < 5 \(Global"),
        (["stem"], {"unfreeze_epoch": 0}, r"Global\.unfreeze_epoch: expected a number >= 1, got 0"),
        ([], {"unfreeze_epoch": 3}, r"Global\.unfreeze_epoch: expected freeze to name parts"),
        ("stem", {}, r"Global\.freeze: expected a list of text, got 'stem'"),
        (["stem"], {"to_static": True}, r"Global\.freeze: expected none with to_static"),
        (
            ["stem"],
            {"optimizer": {"use_multi_tensor": True}},
            r"Global\.freeze: expected none with Optimizer\.use_multi_tensor",
        ),
    ],
)
def test_config_errors(names, settings, message):
    with pytest.raises(ConfigError, match="^" + message):
        frozen_hardnet(names, **settings)
