"""Checkpoints: three files, read strictly."""

import os
import pickle
import shutil

import numpy as np
import paddle
import pytest
from paddle import nn
from tiny_run import TinyNet, arrays, tiny_net, trainer

from ppcls.engine.checkpoint import Checkpointer, Progress, state_arrays
from ppcls.engine.precision import Precision
from ppcls.utils.errors import UserError
from ppcls.utils.pdparams import load_paddle_file, load_paddle_state_dict, save_pdparams


@pytest.fixture
def run(tmp_path):
    run = trainer(tmp_path, tiny_net(), eval_during_train=False)
    run.fit()
    return run


def other(folder, model):
    optimizer = paddle.optimizer.Momentum(0.1, parameters=model.parameters())
    checkpointer = Checkpointer(folder, model, optimizer, {})
    checkpointer.register("scaler", Precision(None, "cpu"))
    return checkpointer


def replace(folder, suffix, content):
    """Put `content` into a file of `latest`, whose manifest would otherwise give it away."""
    save_pdparams(folder / f"latest{suffix}", content)
    forget(folder)


def forget(folder):
    """Leave nothing of a run but the three files of `latest`."""
    (folder / "latest.json").unlink()
    shutil.rmtree(folder / "sets")


def test_what_is_in_the_files(run, tmp_path):
    weights = load_paddle_state_dict(tmp_path / "latest.pdparams")
    assert list(weights) == list(arrays(run.model))
    for name, array in arrays(run.model).items():
        np.testing.assert_array_equal(weights[name], array)
    states = load_paddle_file(tmp_path / "latest.pdstates")
    assert (states["schema"], states["epoch"]) == (2, 2)
    assert Progress(**states["progress"]) == run.progress
    assert states["recipe"] == {"Arch": {"name": "Tiny"}}
    optimizer = load_paddle_file(tmp_path / "latest.pdopt")
    assert optimizer["LR_Scheduler"]["last_epoch"] == 8
    assert sum("velocity" in name for name in optimizer) == 8


def test_paddle_reads_the_weights(run, tmp_path):
    """`paddle.load` is how other programs read a `.pdparams` file."""
    state = paddle.load(str(tmp_path / "latest.pdparams"))
    model = tiny_net(seed=9)
    missing, unexpected = model.set_state_dict(state)
    assert (missing, unexpected) == ([], [])
    np.testing.assert_array_equal(model.fc.weight.numpy(), run.model.fc.weight.numpy())


def test_nothing_temporary_is_left(run, tmp_path):
    stems = {path.name.partition(".")[0] for path in tmp_path.iterdir()}
    assert stems == {"latest", "epoch_1", "epoch_2", "metrics", "sets"}
    assert {path.name.partition(".")[0] for path in (tmp_path / "sets").iterdir()} == {
        "save_000001",
        "save_000002",
    }


@pytest.mark.parametrize("suffix", [".pdparams", ".pdopt", ".pdstates"])
def test_a_set_must_be_complete(run, tmp_path, suffix):
    (tmp_path / f"latest{suffix}").unlink()
    forget(tmp_path)
    with pytest.raises(
        UserError, match=rf"Global.checkpoints: expected the files latest.* no latest{suffix}"
    ):
        other(tmp_path, tiny_net()).load(tmp_path / "latest")


@pytest.mark.parametrize("name", ["latest", "latest.pdparams", "latest.pdstates", "epoch_1"])
def test_ways_to_name_a_set(run, tmp_path, name):
    model = tiny_net(seed=9)
    progress, _ = other(tmp_path, model).load(tmp_path / name)
    assert progress.epoch == (1 if name == "epoch_1" else 2)


def test_a_path_with_points_in_its_name(run, tmp_path):
    for suffix in (".pdparams", ".pdopt", ".pdstates"):
        (tmp_path / f"lr0.1{suffix}").write_bytes((tmp_path / f"latest{suffix}").read_bytes())
    assert other(tmp_path, tiny_net()).load(tmp_path / "lr0.1")[0].epoch == 2


def test_another_network_is_refused_and_left_alone(run, tmp_path):
    class Wider(TinyNet):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 9)

    model = Wider()
    before = arrays(model)
    with pytest.raises(UserError, match=r"latest.pdparams: does not fit Wider: 2 wrong shape"):
        other(tmp_path, model).load(tmp_path / "latest")
    for name, array in arrays(model).items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize("content", [{"schema": 1}, {}, [1, 2]])
def test_states_of_another_schema(run, tmp_path, content):
    replace(tmp_path, ".pdstates", content)
    with pytest.raises(UserError, match="latest.pdstates: expected schema 2, found"):
        other(tmp_path, tiny_net()).load(tmp_path / "latest")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optimizer", "AdamW", r"the optimizer Momentum \(Optimizer.name\), found that of AdamW"),
        ("components", None, "expected 'components' to be a dict"),
        ("components", {"ema": {}}, r"the state of \['scaler'\], found that of \['ema'\]"),
        ("ranks", [], "expected the states of ranks, found none"),
        ("ranks", [{"samples": 1}], "rank 0: expected sums, samples, .* found something else"),
        ("parameter_names", {"fc.weight": "linear_0.w_0"}, "expected the parameters of this"),
        ("progress", {"epoch": 1, "steps": 3}, "progress: unknown key 'steps'"),
        ("progress", {"epoch": "two"}, "progress.epoch: expected an integer, got 'two'"),
        ("progress", {"epoch": -5}, r"progress.epoch: expected a number >= 0, got -5"),
    ],
)
def test_states_that_do_not_belong_here(run, tmp_path, key, value, message):
    states = load_paddle_file(tmp_path / "latest.pdstates")
    replace(tmp_path, ".pdstates", {**states, key: value})
    with pytest.raises(UserError, match=message):
        other(tmp_path, tiny_net()).load(tmp_path / "latest")


def _without(key):
    return lambda state: {k: v for k, v in state.items() if key not in k}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: [1], "expected the state of an optimizer, found no mapping"),
        (_without("LR_Scheduler"), "expected LR_Scheduler.last_epoch"),
        (lambda state: {**state, "LR_Scheduler": "x"}, "expected LR_Scheduler.last_epoch"),
        (lambda state: {**state, "LR_Scheduler": {"last_epoch": -1}}, "a number >= 0"),
        (lambda state: {**state, "other_0.w_0_velocity_0": np.ones(1)}, "state of this network"),
        (lambda state: {**state, "master_weights": [1]}, "master_weights to be a mapping"),
        (lambda state: dict.fromkeys(state, "x") | {"LR_Scheduler": state["LR_Scheduler"]}, "got"),
        (lambda state: dict(list(state.items())[1:]), "the same state for every parameter"),
    ],
)
def test_optimizer_states_that_do_not_belong_here(run, tmp_path, change, message):
    state = load_paddle_file(tmp_path / "latest.pdopt")
    replace(tmp_path, ".pdopt", change(state))
    model = tiny_net()
    before = arrays(model)
    with pytest.raises(UserError, match=message):
        other(tmp_path, model).load(tmp_path / "latest")
    for name, array in arrays(model).items():
        np.testing.assert_array_equal(array, before[name])


def test_a_set_can_be_loaded_into_a_run_that_has_begun(run, tmp_path):
    wanted = arrays(run.model)
    velocity = {name: t.numpy() for name, t in run.optimizer.state_dict().items() if "velo" in name}
    again = trainer(tmp_path / "other", tiny_net(seed=4), eval_during_train=False, max_steps=3)
    again.fit()
    again.checkpointer.load(tmp_path / "latest")
    for name, array in arrays(again.model).items():
        np.testing.assert_array_equal(array, wanted[name], name)
    found = {name: t.numpy() for name, t in again.optimizer.state_dict().items() if "velo" in name}
    assert len(found) == len(velocity) == 8
    for one, two in zip(found.values(), velocity.values(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_low_precision_weights_are_stored_wide():
    model = nn.Linear(2, 2)
    model.to(dtype="bfloat16")
    assert {array.dtype for array in state_arrays(model).values()} == {np.dtype("float32")}


class _Call:
    """Unpickled by the usual means, it runs a command."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("suffix", [".pdparams", ".pdopt", ".pdstates"])
def test_no_file_of_a_checkpoint_can_run_code(run, tmp_path, suffix):
    sentinel = tmp_path / "ran"
    content = {"schema": 2, "epoch": 1, "x": _Call(f"touch {sentinel}")}
    (tmp_path / f"latest{suffix}").write_bytes(pickle.dumps(content, protocol=4))
    forget(tmp_path)
    with pytest.raises(UserError, match="os|posix"):
        other(tmp_path, tiny_net()).load(tmp_path / "latest")
    assert not sentinel.exists()
