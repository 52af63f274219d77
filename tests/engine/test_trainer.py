"""The training loop: updates, records, checkpoints, and going on after a stop."""

import dataclasses
import logging
import math
import re

import numpy as np
import paddle
import pytest
from paddle import nn
from tiny_run import ADAMW, CLASSES, MOMENTUM, TinyImages, arrays, records, tiny_net, trainer

from ppcls.engine.build import Session, make_fast
from ppcls.engine.config import AMPConfig, GlobalConfig, Recipe
from ppcls.engine.evaluator import EvalResult
from ppcls.engine.trainer import group_of
from ppcls.metric import build_metric
from ppcls.utils.errors import DataError, JobError
from ppcls.utils.pdparams import load_paddle_file, load_paddle_state_dict


def assert_same(found, expected, **tolerance):
    assert list(found) == list(expected)
    for name, array in expected.items():
        if tolerance:
            np.testing.assert_allclose(found[name], array, err_msg=name, **tolerance)
        else:
            np.testing.assert_array_equal(found[name], array, name)


def tags(folder):
    return sorted(path.stem for path in folder.glob("*.pdstates"))


def saved_epoch(folder, tag):
    return load_paddle_file(folder / f"{tag}.pdstates")["epoch"]


# Updates


@pytest.mark.parametrize(
    ("step", "size", "steps", "group"),
    [
        (0, 1, 5, [0]),
        (4, 1, 5, [4]),
        (0, 2, 5, [0, 1]),
        (3, 2, 5, [2, 3]),
        (4, 2, 5, [4]),
        (1, 4, 3, [0, 1, 2]),
    ],
)
def test_groups(step, size, steps, group):
    assert list(group_of(step, size, steps)) == group


@pytest.mark.parametrize("count", [64, 80, 72, 56, pytest.param(40, marks=pytest.mark.slow)])
@pytest.mark.parametrize("optimizer", [MOMENTUM, ADAMW], ids=["Momentum", "AdamW"])
def test_accumulation_is_one_large_batch(tmp_path, count, optimizer):
    """64: whole groups; 80: the last group has one step; the rest: the last batch is smaller."""
    results = []
    for batch_size, update_freq in ((32, 1), (16, 2)):
        model = tiny_net(dtype="float64", frozen=True)
        run = trainer(
            tmp_path / str(update_freq),
            model,
            dataset=TinyImages(count),
            batch_size=batch_size,
            update_freq=update_freq,
            optimizer=optimizer,
            eval_during_train=False,
        )
        run.fit()
        results.append(arrays(model))
        assert run.schedule.scheduler().last_epoch == 2 * -(-count // 32)
    before = arrays(tiny_net(dtype="float64", frozen=True))
    assert np.abs(results[0]["conv1.weight"] - before["conv1.weight"]).max() > 1e-3
    assert_same(results[1], results[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize(("update_freq", "updates"), [(1, 8), (2, 4), (3, 4), (9, 2)])
def test_updates_and_rates(tmp_path, monkeypatch, update_freq, updates):
    """Sixty images in batches of 16 are four steps, the last of them smaller."""
    run = trainer(tmp_path, tiny_net(), update_freq=update_freq, eval_during_train=False)
    used = []
    step = run.precision.step

    def count(optimizer):
        used.append(optimizer.get_lr())
        step(optimizer)

    monkeypatch.setattr(run.precision, "step", count)
    progress = run.fit()
    assert (progress.epoch, progress.global_step) == (2, 8)
    assert used == [run.schedule.at(i) for i in range(updates)]
    assert len(set(used)) == updates
    logged = [record["lr"] for record in records(tmp_path, "train")]
    per_epoch = updates // 2
    assert logged == [
        used[epoch * per_epoch + i // update_freq] for epoch in range(2) for i in range(4)
    ]


def test_each_epoch_has_an_order_of_its_own(tmp_path, monkeypatch):
    run = trainer(tmp_path, tiny_net(), seed=7, eval_during_train=False)
    seen = [[], []]
    step = run.train_step

    def record(batch, group, epoch, number):
        seen[epoch] += batch.indices.tolist()
        return step(batch, group, epoch, number)

    monkeypatch.setattr(run, "train_step", record)
    run.fit()
    assert seen == [run.loader.sampler.order(epoch).tolist() for epoch in (0, 1)]
    assert seen[0] != seen[1]
    assert sorted(seen[0]) == sorted(seen[1]) == list(range(60))


def test_the_gradient_is_cleared_between_updates(tmp_path):
    model = tiny_net()
    trainer(tmp_path, model, eval_during_train=False).fit()
    for parameter in model.parameters():
        if not parameter.stop_gradient:
            assert parameter.grad is None or not parameter.grad.numpy().any()


def test_a_small_network_overfits_eight_images(tmp_path):
    run = trainer(
        tmp_path,
        tiny_net(),
        dataset=TinyImages(8),
        batch_size=8,
        epochs=40,
        eval_interval=40,
        save_interval=40,
    )
    run.fit()
    (result,) = records(tmp_path, "eval")
    assert result["top1"] == 1.0
    assert result["loss"] < 0.1


def test_the_same_seed_gives_the_same_run(tmp_path):
    results = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        model = tiny_net(dropout=0.5)
        trainer(tmp_path / name, model, seed=seed, eval_during_train=False).fit()
        results[name] = arrays(model)
    assert_same(results["b"], results["a"])
    assert np.abs(results["c"]["fc.weight"] - results["a"]["fc.weight"]).max() > 0


# A loss that is not finite


class Poisoned(nn.Layer):
    """`network` until its forward pass number `bad`, counted from 0, which gives NaN."""

    def __init__(self, network, bad):
        super().__init__()
        self.network = network
        self.left = bad

    def forward(self, x):
        logits = self.network(x)
        self.left -= self.training
        return logits * math.nan if self.left == -1 and self.training else logits


@pytest.mark.parametrize("step", [0, 1, 3])
@pytest.mark.parametrize("print_batch_step", [1, 100])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, step, print_batch_step):
    model = tiny_net()
    network = Poisoned(model, bad=4 + step)
    run = trainer(tmp_path, model, network=network, print_batch_step=print_batch_step)
    with pytest.raises(JobError, match=f"^epoch 2, step {step}: expected a finite loss, got nan;"):
        run.fit()
    assert saved_epoch(tmp_path, "latest") == 1
    assert tags(tmp_path) == ["best_model", "epoch_1", "latest"]
    weights = load_paddle_state_dict(tmp_path / "latest.pdparams")
    assert all(np.isfinite(array).all() for array in weights.values())
    assert all(math.isfinite(record["loss"]) for record in records(tmp_path))


def test_no_checkpoint_at_all_if_the_first_epoch_fails(tmp_path):
    model = tiny_net()
    run = trainer(tmp_path, model, network=Poisoned(model, bad=3))
    with pytest.raises(JobError, match="epoch 1, step 3"):
        run.fit()
    assert list(tmp_path.glob("*.pd*")) == []


def test_weights_broken_by_the_last_update_are_not_saved(tmp_path):
    """One update per epoch: no loss of that epoch shows what the update did."""
    run = trainer(tmp_path, tiny_net(), batch_size=60, epochs=3)
    step = run.precision.step

    def explode(optimizer):
        step(optimizer)
        if run.progress.epoch == 1:
            run.model.fc.weight.set_value(run.model.fc.weight * math.inf)

    run.precision.step = explode
    with pytest.raises(JobError, match="^epoch 2, after its last step: expected finite weights"):
        run.fit()
    assert saved_epoch(tmp_path, "latest") == 1
    assert len(records(tmp_path, "eval")) == 1


def test_top1_chooses_the_best_model_wherever_it_stands(tmp_path):
    run = trainer(tmp_path, tiny_net())
    run.evaluator.metric = build_metric([{"TopkAcc": {"topk": [2, 1]}}], "Metric.Eval", CLASSES)
    run.fit()
    assert run.progress.best_metric == max(r["top1"] for r in records(tmp_path, "eval"))


# Evaluation and checkpoints on the way


def scripted(run, monkeypatch, scores):
    """Make evaluations return these top-1 values, one after the other."""
    values = iter(scores)

    def evaluate(model, before_batch):
        top1 = next(values)
        return EvalResult({"loss": 1 - top1}, {"top1": top1}, {"top1": round(60 * top1)}, 60)

    monkeypatch.setattr(run.evaluator, "evaluate", evaluate)


def test_only_a_better_model_is_the_best(tmp_path, monkeypatch, caplog):
    run = trainer(tmp_path, tiny_net(), epochs=5)
    scripted(run, monkeypatch, [0.5, 0.25, 0.5, 0.75, 0.0])
    best = []
    save = run.checkpointer.save

    def record(tags, progress, own):
        if "best_model" in tags:
            best.append(progress.epoch)
        return save(tags, progress, own)

    monkeypatch.setattr(run.checkpointer, "save", record)
    progress = run.fit()
    assert best == [1, 4]
    assert (progress.best_metric, progress.best_epoch) == (0.75, 4)
    assert saved_epoch(tmp_path, "best_model") == 4
    assert saved_epoch(tmp_path, "latest") == 5
    summary = run.summary(progress)
    assert summary.pop("seconds_blocked_by_saves") > 0
    assert summary == {
        "folder": str(tmp_path),
        "epochs": 5,
        "global_step": 20,
        "best_metric": 0.75,
        "best_epoch": 4,
        "skipped_updates": 0,
        "saves": 10,
    }
    assert "best top1: 0.75000 (epoch 4)" in caplog.text


def test_even_a_score_of_zero_is_kept_once(tmp_path, monkeypatch):
    run = trainer(tmp_path, tiny_net())
    scripted(run, monkeypatch, [0.0, 0.0])
    assert run.fit().best_epoch == 1
    assert saved_epoch(tmp_path, "best_model") == 1


def test_the_best_score_survives_a_restart(tmp_path, monkeypatch):
    run = trainer(tmp_path, tiny_net(), epochs=3, max_steps=4)
    scripted(run, monkeypatch, [0.9])
    run.fit()
    again = trainer(tmp_path, tiny_net(), epochs=3, resume=tmp_path / "latest")
    scripted(again, monkeypatch, [0.5, 0.6])
    progress = again.fit()
    assert (progress.best_metric, progress.best_epoch) == (0.9, 1)
    assert saved_epoch(tmp_path, "best_model") == 1


@pytest.mark.parametrize(
    ("settings", "evaluated", "files"),
    [
        ({}, [1, 2, 3, 4, 5], {"epoch_1", "epoch_2", "epoch_3", "epoch_4", "epoch_5"}),
        ({"save_interval": 2}, [1, 2, 3, 4, 5], {"epoch_2", "epoch_4"}),
        ({"eval_interval": 2, "save_interval": 9}, [2, 4, 5], set()),
        ({"eval_interval": 2, "start_eval_epoch": 3, "save_interval": 9}, [4, 5], set()),
        ({"start_eval_epoch": 6, "save_interval": 5}, [], {"epoch_5"}),
        ({"eval_during_train": False, "save_interval": 5}, [], {"epoch_5"}),
        ({"max_steps": 10, "eval_interval": 9, "save_interval": 2}, [3], {"epoch_2"}),
    ],
)
def test_when_it_evaluates_and_saves(tmp_path, settings, evaluated, files):
    trainer(tmp_path, tiny_net(), epochs=5, **settings).fit()
    assert [record["epoch"] for record in records(tmp_path, "eval")] == evaluated
    expected = files | {"latest"} | ({"best_model"} if evaluated else set())
    assert set(tags(tmp_path)) == expected
    written = {path.name for path in tmp_path.iterdir()}
    suffixes = (".pdparams", ".pdopt", ".pdstates", ".json")
    others = {"metrics.jsonl", "sets"}
    assert written == {f"{tag}{s}" for tag in expected for s in suffixes} | others


@pytest.mark.parametrize("max_steps", [1, 4, 6])
def test_max_steps(tmp_path, max_steps):
    run = trainer(tmp_path, tiny_net(), epochs=9, max_steps=max_steps, update_freq=3)
    progress = run.fit()
    assert progress.global_step == max_steps
    assert progress.epoch == -(-max_steps // 4)
    assert len(records(tmp_path, "train")) == max_steps
    updates = {1: 1, 4: 2, 6: 3}[max_steps]  # a group cut short still counts
    assert run.schedule.scheduler().last_epoch == updates


# Going on after a stop


AT_ONCE = {**MOMENTUM, "use_multi_tensor": True}


@pytest.mark.parametrize(
    ("optimizer", "update_freq"),
    [
        (MOMENTUM, 3),
        (AT_ONCE, 1),
        (ADAMW, 3),
        pytest.param(MOMENTUM, 1, marks=pytest.mark.slow),
        pytest.param(AT_ONCE, 3, marks=pytest.mark.slow),
        pytest.param(ADAMW, 1, marks=pytest.mark.slow),
    ],
    ids=lambda value: None if isinstance(value, int) else value["name"],
)
def test_two_epochs_and_two_more_are_four(tmp_path, optimizer, update_freq):
    """Bit for bit on a CPU, dropout and all, although Paddle names each network's parts anew."""
    options = {"epochs": 4, "optimizer": optimizer, "update_freq": update_freq, "seed": 3}
    whole = tiny_net(dropout=0.3)
    trainer(tmp_path / "whole", whole, **options).fit()

    first = tiny_net(dropout=0.3)
    trainer(tmp_path / "parts", first, max_steps=8, **options).fit()
    nn.Sequential(nn.Linear(2, 2), nn.Conv2D(3, 4, 3), nn.BatchNorm2D(4))  # shifts Paddle's names
    second = tiny_net(seed=99, dropout=0.3)
    assert second.conv1.weight.name != first.conv1.weight.name
    run = trainer(tmp_path / "parts", second, resume=tmp_path / "parts" / "latest", **options)
    assert (run.progress.epoch, run.progress.global_step) == (2, 8)
    progress = run.fit()

    assert (progress.epoch, progress.global_step) == (4, 16)
    assert_same(arrays(second), arrays(whole))
    timing = ("batch_cost", "reader_cost", "ips")
    logs = [
        [{k: v for k, v in record.items() if k not in timing} for record in records(folder)]
        for folder in (tmp_path / "whole", tmp_path / "parts")
    ]
    assert logs[0] == logs[1]


def test_a_finished_run_has_nothing_left_to_do(tmp_path):
    trainer(tmp_path, tiny_net()).fit()
    model = tiny_net(seed=5)
    run = trainer(tmp_path, model, resume=tmp_path / "latest.pdparams")
    before = arrays(model)
    assert run.fit().global_step == 8
    assert_same(arrays(model), before)


def test_the_logged_rate_is_the_one_used_after_an_epoch_cut_short(tmp_path, monkeypatch):
    trainer(tmp_path, tiny_net(), epochs=4, max_steps=6, eval_during_train=False).fit()
    latest = tmp_path / "latest"
    run = trainer(tmp_path, tiny_net(), epochs=4, eval_during_train=False, resume=latest)
    used = []
    step = run.precision.step

    def record(optimizer):
        used.append(optimizer.get_lr())
        step(optimizer)

    monkeypatch.setattr(run.precision, "step", record)
    run.fit()
    assert [entry["lr"] for entry in records(tmp_path, "train")][6:] == used


# Mixed precision (a CPU leaves out the casts), static graphs


@pytest.mark.parametrize("level", ["O0", "O1", "O2"])
def test_bfloat16_runs_and_resumes(tmp_path, level):
    amp = AMPConfig(level=level, dtype="bfloat16")
    trainer(tmp_path, tiny_net(), amp=amp, max_steps=4).fit()
    progress = trainer(tmp_path, tiny_net(), amp=amp, resume=tmp_path / "latest").fit()
    assert progress.global_step == 8
    assert all(math.isfinite(record["loss"]) for record in records(tmp_path))
    weights = load_paddle_state_dict(tmp_path / "latest.pdparams")
    assert {array.dtype for array in weights.values()} == {np.dtype("float32")}


def test_all_tensors_at_once_train_the_same(tmp_path):
    results = []
    for name, optimizer in (("plain", MOMENTUM), ("at_once", AT_ONCE)):
        model = tiny_net()
        trainer(tmp_path / name, model, optimizer=optimizer, update_freq=2).fit()
        results.append(arrays(model))
    assert_same(results[1], results[0])


@pytest.mark.parametrize("amp", [None, AMPConfig(dtype="bfloat16")], ids=["float", "AMP"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float64", 1e-12)])
def test_a_static_network_trains_the_same(tmp_path, dtype, tolerance, amp):
    losses = []
    for is_static in (False, True):
        model = tiny_net(dtype=dtype)
        config = GlobalConfig(to_static=is_static, image_shape=[3, 8, 8])
        session = Session(Recipe(Global=config, Arch={"name": "Tiny"}), "cpu")
        network = make_fast(session, model)
        folder = tmp_path / str(is_static)
        options = {"update_freq": 2, "epochs": 3, "amp": amp}
        trainer(folder, model, network=network, **options).fit()
        losses.append([record["loss"] for record in records(folder, "train")])
    assert losses[0][-1] < losses[0][0]
    np.testing.assert_allclose(losses[1], losses[0], rtol=tolerance)


# What is written down


def test_metrics_jsonl(tmp_path):
    trainer(tmp_path, tiny_net(), print_batch_step=3).fit()
    found = records(tmp_path)
    assert [(r["mode"], r["epoch"], r.get("step"), r["global_step"]) for r in found] == [
        ("train", 1, 0, 1),
        ("train", 1, 3, 4),
        ("eval", 1, None, 4),
        ("train", 2, 0, 5),
        ("train", 2, 3, 8),
        ("eval", 2, None, 8),
    ]
    place = ["mode", "epoch", "step", "global_step", "lr"]
    results = ["top1", "top2", "CELoss", "loss"]
    assert list(found[0]) == [*place, *results, "batch_cost", "reader_cost", "ips"]
    assert set(found[2]) == {"mode", "epoch", "global_step", *results, "samples", "skipped"}
    assert (found[2]["samples"], found[2]["skipped"]) == (60, 0)
    for record in found:
        assert record["loss"] == record["CELoss"]
        assert 0 <= record["top1"] <= record["top2"] <= 1
        assert len(repr(record["loss"])) > 10  # full precision
    assert all(r["ips"] > 0 and 0 <= r["reader_cost"] <= r["batch_cost"] for r in found[:2])


def test_a_new_run_replaces_the_records_of_an_old_one(tmp_path):
    for _ in range(2):
        trainer(tmp_path, tiny_net(), eval_during_train=False).fit()
    assert len(records(tmp_path)) == 8


NUMBER = r"\d+\.\d{5}"
TRAIN_LINE = re.compile(
    r"\[Train\]\[Epoch [12]/2\]\[Iter: [0-3]/4\]lr\(CosineAnnealing\): 0\.\d{8}, "
    rf"top1: {NUMBER}, top2: {NUMBER}, CELoss: {NUMBER}, loss: {NUMBER}, "
    rf"batch_cost: {NUMBER}s, reader_cost: {NUMBER}, ips: {NUMBER} samples/s, eta: \d:\d\d:\d\d"
)
TRAIN_AVERAGE = re.compile(
    rf"\[Train\]\[Epoch [12]/2\]\[Avg\]top1: {NUMBER}, top2: {NUMBER}, CELoss: {NUMBER}, "
    rf"loss: {NUMBER}"
)
EVAL_AVERAGE = re.compile(
    rf"\[Eval\]\[Epoch [12]\]\[Avg\]CELoss: {NUMBER}, loss: {NUMBER}, top1: {NUMBER}, "
    rf"top2: {NUMBER}"
)


def test_log_lines(tmp_path, caplog):
    caplog.set_level(logging.INFO, "ppcls")
    trainer(tmp_path, tiny_net()).fit()
    for pattern, count in ((TRAIN_LINE, 8), (TRAIN_AVERAGE, 2), (EVAL_AVERAGE, 2)):
        assert sum(bool(pattern.fullmatch(line)) for line in caplog.messages) == count, pattern
    unknown = [
        line
        for line in caplog.messages
        if not any(p.fullmatch(line) for p in (TRAIN_LINE, TRAIN_AVERAGE, EVAL_AVERAGE))
    ]
    others = ("best model so far: ", "DataLoader: fast pipeline: ", "peak memory: ")
    assert all(line.startswith(others) for line in unknown)


def test_the_average_counts_each_image_once(tmp_path, caplog):
    """A last batch of 12 weighs less than the 16 before it."""
    caplog.set_level(logging.INFO, "ppcls")
    trainer(tmp_path, tiny_net(), epochs=1, eval_during_train=False).fit()
    steps = records(tmp_path, "train")
    (line,) = [line for line in caplog.messages if "[Avg]" in line]
    for name in ("loss", "top1"):
        mean = np.average([step[name] for step in steps], weights=[16, 16, 16, 12])
        assert float(re.search(rf"{name}: ({NUMBER})", line).group(1)) == pytest.approx(
            mean, abs=1e-5
        )


# Images that cannot be used


def test_skipped_images_are_counted(tmp_path, caplog):
    dataset = TinyImages(broken={3, 17, 40}, on_error="skip")
    trainer(tmp_path, tiny_net(), dataset=dataset, epochs=1).fit()
    (line,) = [line for line in caplog.messages if "[Train]" in line and "[Avg]" in line]
    assert any(
        re.search(r"peak memory: \d+ MiB of the host \(\d+ in tensors\)", line)
        for line in caplog.messages
    )
    assert line.endswith(", skipped: 3")
    assert "[Eval][Epoch 1]skipped images: 3" in caplog.messages
    (result,) = records(tmp_path, "eval")
    assert (result["samples"], result["skipped"]) == (57, 3)
    assert caplog.text.count("skipped image 17: damaged") == 2  # training and evaluation


def test_a_batch_without_a_single_image_changes_nothing_but_by_decay(tmp_path):
    dataset = TinyImages(32, broken=set(range(32)), on_error="skip")
    model = tiny_net()
    before = arrays(model)
    plain = {"name": "Momentum", "momentum": 0.0}
    run = trainer(tmp_path, model, dataset=dataset, optimizer=plain, eval_during_train=False)
    assert run.fit().global_step == 4
    assert_same(arrays(model), before)


def test_an_update_averages_over_the_images_it_saw(tmp_path):
    """Leaving out four images of a batch is the same as never having had them."""
    results = []
    for broken, count in (((), 12), ({12, 13, 14, 15}, 16)):
        dataset = TinyImages(16, broken=broken, on_error="skip")
        dataset.labels, dataset.pixels = dataset.labels[:count], dataset.pixels[:count]
        model = tiny_net(dtype="float64", frozen=True)
        run = trainer(
            tmp_path / str(count), model, dataset=dataset, epochs=1, eval_during_train=False
        )
        run.fit()
        results.append(arrays(model))
    assert_same(results[1], results[0], rtol=0, atol=1e-10)


def test_a_broken_image_stops_the_run_by_default(tmp_path):
    with pytest.raises(DataError, match="image 3: damaged"):
        trainer(tmp_path, tiny_net(), dataset=TinyImages(broken={3})).fit()


def test_the_configuration_is_not_changed_by_a_run(tmp_path):
    run = trainer(tmp_path, tiny_net())
    before = dataclasses.asdict(run.config)
    run.fit()
    assert dataclasses.asdict(run.config) == before
    assert run.model.training and paddle.get_default_dtype() == "float32"
