"""The moving average of the weights: its numbers, its file, and what it decides."""

import dataclasses

import numpy as np
import paddle
import pytest
from test_mixed_training import mixing
from test_survival import assert_same_end, everything, stop_after
from tiny_run import arrays, evaluator, fit_and_die, records, tiny_net, trainer

from ppcls.engine.checkpoint import newest_checkpoint
from ppcls.engine.checkpoint_store import CheckpointStore
from ppcls.engine.config import EMAConfig, Recipe
from ppcls.engine.ema import ExponentialMovingAverage
from ppcls.engine.evaluator import EvalResult
from ppcls.utils.errors import ConfigError, JobError, Stopped, UserError
from ppcls.utils.pdparams import load_paddle_state_dict

EMA = EMAConfig(decay=0.9)


def record_weights(run):
    """The state after each update, in the order of updates."""
    states = [arrays(run.model)]
    step = run.precision.step

    def recording(optimizer):
        step(optimizer)
        states.append(arrays(run.model))

    run.precision.step = recording
    return states


def closed_form(states, decays):
    """The sum over n of (1 - d_n) w_n times all later d, and of the first state."""
    shares = [1.0, *(1 - d for d in decays)]
    weights = [share * np.prod(decays[n:]) for n, share in enumerate(shares)]
    assert abs(sum(weights) - 1) < 1e-14
    return {
        name: sum(w * state[name] for w, state in zip(weights, states, strict=True))
        for name in states[0]
    }


def averages(folder, stem="latest"):
    return load_paddle_state_dict(folder / f"{stem}.ema.pdparams")


@pytest.mark.parametrize(
    ("config", "decays"),
    [
        (EMAConfig(decay=0.9, warmup=False), [0.9] * 8),
        (EMAConfig(decay=0.3), [1 / 10, 2 / 11, 3 / 12, 0.3, 0.3, 0.3, 0.3, 0.3]),
        (EMAConfig(decay=0.0), [0.0] * 8),
    ],
    ids=["plain", "warm-up", "none"],
)
def test_the_average_is_the_closed_form(tmp_path, config, decays):
    model = tiny_net(dtype="float64")
    run = trainer(tmp_path, model, ema=config, eval_during_train=False)
    states = record_weights(run)
    run.fit()
    expected, found = closed_form(states, decays), averages(tmp_path)
    assert set(found) == set(arrays(model)) and "norm1._mean" in found
    for name, array in expected.items():
        assert found[name].dtype == np.float64
        np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-13, err_msg=name)


def test_pdparams_holds_the_raw_weights(tmp_path):
    plain, model = tiny_net(), tiny_net()
    trainer(tmp_path / "plain", plain, eval_during_train=True).fit()
    trainer(tmp_path / "ema", model, ema=EMA).fit()
    expected = arrays(plain)
    for stem in ("latest", "epoch_2"):
        raw = load_paddle_state_dict(tmp_path / "ema" / f"{stem}.pdparams")
        for name, array in expected.items():
            np.testing.assert_array_equal(raw[name], array, name)
            np.testing.assert_array_equal(arrays(model)[name], array, name)
    assert np.abs(averages(tmp_path / "ema")["fc.weight"] - expected["fc.weight"]).max() > 1e-3
    assert not [*(tmp_path / "plain").rglob("*.ema.pdparams")]


def test_only_updates_are_averaged(tmp_path):
    """Neither steps of a group nor updates that are left out."""
    run = trainer(tmp_path, tiny_net(), ema=EMA, update_freq=2, on_nonfinite="skip")
    forward = run.task.forward

    def spoil(network, batch):
        factor = float("nan") if run.progress.global_step == 1 else 1.0
        return forward(network, batch._replace(images=batch.images * factor))

    run.task.forward = spoil
    run.fit()
    assert run.progress.skipped_updates == 1
    assert run.ema.updates == 3
    assert all(np.isfinite(array).all() for array in averages(tmp_path).values())


def augmented(folder, model, **options):
    """A run on mixed images with RandAugment, dropout, accumulation and an average."""
    return mixing(folder, model, ema=EMA, update_freq=2, **options)


@pytest.mark.parametrize("step", [pytest.param(2, marks=pytest.mark.slow), 5])
def test_killed_inside_an_epoch_and_started_again(tmp_path, step):
    whole, folder = tiny_net(dropout=0.4), tmp_path / "parts"
    augmented(tmp_path / "whole", whole).fit()
    first = augmented(folder, tiny_net(dropout=0.4), save_interval_steps=1)
    fit_and_die(first, step)
    second = tiny_net(seed=77, dropout=0.4)
    run = augmented(folder, second, resume=newest_checkpoint(folder))
    assert run.progress.global_step == step
    run.fit()
    assert_same_end((folder, second), (tmp_path / "whole", whole))
    for name, array in averages(tmp_path / "whole").items():
        np.testing.assert_array_equal(averages(folder)[name], array, name)


@pytest.mark.parametrize("steps", [pytest.param(1, marks=pytest.mark.slow), 6])
def test_stopped_and_started_again_with_its_evaluations(tmp_path, steps):
    whole, folder = tiny_net(), tmp_path / "parts"
    everything(tmp_path / "whole", whole, ema=EMA).fit()
    first = everything(folder, tiny_net(), ema=EMA)
    stop_after(first, steps)
    with pytest.raises(Stopped):
        first.fit()
    second = tiny_net(seed=77)
    everything(folder, second, ema=EMA, resume=folder).fit()
    assert_same_end((folder, second), (tmp_path / "whole", whole))
    for stem in ("latest", "best_model"):
        for name, array in averages(tmp_path / "whole", stem).items():
            np.testing.assert_array_equal(averages(folder, stem)[name], array, name)


def test_evaluation_reports_both(tmp_path, caplog):
    model = tiny_net()
    run = trainer(tmp_path, model, ema=EMA)
    run.fit()
    raw, averaged = records(tmp_path, "eval"), records(tmp_path, "eval_ema")
    assert [r["epoch"] for r in raw] == [r["epoch"] for r in averaged] == [1, 2]
    assert "[Eval][Epoch 2][Avg]" in caplog.text and "[Eval][Epoch 2][EMA][Avg]" in caplog.text
    for state, record in [(arrays(model), raw[-1]), (averages(tmp_path), averaged[-1])]:
        other = tiny_net(seed=9)
        other.set_state_dict(state)
        assert evaluator(run.loader.dataset).evaluate(other).losses["loss"] == record["loss"]


SCORES = {"raw": [0.3, 0.2, 0.4], "ema": [0.1, 0.5, 0.4]}


@pytest.mark.parametrize(("best_by", "epoch"), [("ema", 2), ("raw", 3)])
def test_the_configured_one_chooses_the_best_model(tmp_path, monkeypatch, best_by, epoch, caplog):
    run = trainer(tmp_path, tiny_net(), ema=EMAConfig(decay=0.9, best_by=best_by), epochs=3)
    scores = iter(np.transpose([SCORES["raw"], SCORES["ema"]]).ravel())

    def evaluate(*_):
        return EvalResult({"loss": 1.0}, {"top1": next(scores)}, {}, 60)

    monkeypatch.setattr(run.evaluator, "evaluate", evaluate)
    progress = run.fit()
    assert (progress.best_epoch, progress.best_metric) == (epoch, SCORES[best_by][epoch - 1])
    assert progress.best_name == {"ema": "EMA top1", "raw": "top1"}[best_by]
    suffix = {"ema": "ema.pdparams", "raw": "pdparams"}[best_by]
    assert f"best model so far: {tmp_path}/best_model.{suffix}" in caplog.text
    for name in (".pdparams", ".ema.pdparams"):
        chosen = (tmp_path / f"best_model{name}").read_bytes()
        assert chosen == (tmp_path / f"epoch_{epoch}{name}").read_bytes()


def test_after_an_evaluation_that_failed_the_weights_are_their_own(tmp_path):
    model = tiny_net()
    average = ExponentialMovingAverage(EMA, model)
    before = arrays(model)
    model.fc.weight.set_value(model.fc.weight + 1)
    with pytest.raises(JobError), average.applied():
        np.testing.assert_array_equal(model.fc.weight.numpy(), before["fc.weight"])
        raise JobError("lost")
    np.testing.assert_allclose(model.fc.weight.numpy(), before["fc.weight"] + 1)


def test_low_precision_weights_have_a_float32_average():
    model = tiny_net()
    model.astype("bfloat16")
    average = ExponentialMovingAverage(EMAConfig(decay=0.75, warmup=False), model)
    before = model.fc.weight.astype("float32").numpy()
    model.fc.weight.set_value(model.fc.weight + paddle.full([1], 2.0**-4, "bfloat16"))
    after = model.fc.weight.astype("float32").numpy()
    average.update()
    found = average.arrays()["fc.weight"]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, before + 0.25 * (after - before), rtol=1e-6)


def test_a_set_without_its_average_or_with_a_damaged_one(tmp_path):
    trainer(tmp_path, tiny_net(), ema=EMA, eval_during_train=False).fit()
    path = tmp_path / "latest.ema.pdparams"
    assert CheckpointStore(tmp_path).open(path).stem == tmp_path / "latest"
    newest = max((tmp_path / "sets").glob("*.ema.pdparams"))
    data = bytearray(newest.read_bytes())  # a hard link: `latest` has it too
    data[200] ^= 1
    newest.write_bytes(data)
    assert newest_checkpoint(tmp_path).progress.epoch == 1
    for file in tmp_path.rglob("*.ema.pdparams"):
        file.unlink()
    with pytest.raises(UserError, match=r"expected an undamaged checkpoint.*ema\.pdparams"):
        newest_checkpoint(tmp_path)


def test_sets_go_with_their_averages(tmp_path):
    trainer(tmp_path, tiny_net(), ema=EMA, eval_during_train=False, epochs=3, keep_last=1).fit()
    names = sorted(path.name for path in (tmp_path / "sets").iterdir())
    suffixes = ("ema.pdparams", "json", "pdopt", "pdparams", "pdstates")
    assert names == [f"save_000003.{suffix}" for suffix in suffixes]
    store = CheckpointStore(tmp_path)
    store.clean()
    assert sorted(path.name for path in (tmp_path / "sets").iterdir()) == names
    store.retire()
    assert [path.name for path in tmp_path.glob("*.pd*")] == []


def test_a_run_without_an_average_does_not_go_on_with_one(tmp_path):
    trainer(tmp_path, tiny_net(), eval_during_train=False).fit()
    with pytest.raises(UserError, match=r"expected the state of \['ema', 'scaler'\], found that"):
        trainer(tmp_path, tiny_net(), ema=EMA, resume=tmp_path)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"decay": 1.5}, r"^EMA\.decay: expected a number in \[0, 1\), got 1\.5 \(a\.yaml\)"),
        ({"decay": -0.1}, r"^EMA\.decay: expected a number in \[0, 1\), got -0\.1"),
        ({"decay": 1}, r"^EMA\.decay: expected a number in \[0, 1\), got 1"),
        ({"dekay": 0.9}, r"^EMA: unknown key 'dekay'; did you mean 'decay'"),
        ({"best_by": "average"}, r"^EMA\.best_by: expected one of 'ema', 'raw', got 'average'"),
        ({"warmup": 5}, r"^EMA\.warmup: expected true or false, got 5"),
    ],
)
def test_config_errors(section, message):
    with pytest.raises(ConfigError, match=message):
        Recipe.parse({"Arch": {"name": "HarDNet68"}, "EMA": section}, "a.yaml")


def test_paddleclas_sections():
    recipe = Recipe.parse({"Arch": {"name": "HarDNet68"}, "EMA": {"decay": "0.9999"}}, "a.yaml")
    assert dataclasses.asdict(recipe.EMA) == {"decay": 0.9999, "warmup": True, "best_by": "ema"}
    assert Recipe.parse({"Arch": {"name": "HarDNet68"}}, "a.yaml").EMA is None
