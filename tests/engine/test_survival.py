"""A run that is stopped or killed ends, started again, as if nothing had happened."""

import math
import os
import random
import signal
import threading

import numpy as np
import paddle
import pytest
from paddle import nn
from tiny_run import ADAMW, MOMENTUM, TinyImages, arrays, fit_and_die, records, tiny_net, trainer

from ppcls.data.datasets import Sample
from ppcls.engine import rank_state
from ppcls.engine.checkpoint import newest_checkpoint
from ppcls.engine.checkpoint_store import CheckpointStore
from ppcls.engine.config import AMPConfig
from ppcls.engine.rank_state import RankState
from ppcls.engine.stopping import StopRequest
from ppcls.utils.errors import JobError, Stopped, UserError
from ppcls.utils.pdparams import load_paddle_state_dict

TIMING = ("batch_cost", "reader_cost", "ips")
STEPS = 8  # of two epochs


class Augmented(TinyImages):
    """Images that an augmentation moves."""

    def load(self, key):
        image, label, index = super().load(key)
        rng = np.random.default_rng([self.seed, key.epoch, key.index])
        return Sample(np.roll(image, rng.integers(0, 8), axis=2), label, index)


def everything(folder, model, **options):
    """A run with all that has state: dropout, augmentation, accumulation, and AMP, which on a CPU
    computes in float32."""
    options = {
        "dataset": Augmented(),
        "update_freq": 3,
        "amp": AMPConfig(level="O1", dtype="bfloat16"),
        "on_nonfinite": "skip",
        **options,
    }
    return trainer(folder, model, **options)


def without_timing(folder):
    return [{k: v for k, v in r.items() if k not in TIMING} for r in records(folder)]


def assert_same_end(found, expected):
    folder, model = found
    for name, array in arrays(expected[1]).items():
        np.testing.assert_array_equal(arrays(model)[name], array, name)
    assert without_timing(folder) == without_timing(expected[0])


def stop_after(run, steps):
    """Ask for a stop during step number `steps`, counted from 1 over all epochs."""
    step = run.train_step

    def counting(*args):
        result = step(*args)
        if run.progress.global_step + 1 == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    run.train_step = counting


@pytest.mark.parametrize(
    ("optimizer", "steps"),
    [
        pytest.param(
            optimizer,
            steps,
            id=f"{optimizer['name']}-{steps}",
            marks=[] if (optimizer is ADAMW) == (steps % 2 == 0) else [pytest.mark.slow],
        )
        for optimizer in (MOMENTUM, ADAMW)
        for steps in range(1, STEPS + 1)
    ],
)
def test_stopped_after_any_step_and_started_again(tmp_path, steps, optimizer):
    whole = tiny_net(dropout=0.4)
    everything(tmp_path / "whole", whole, optimizer=optimizer).fit()

    folder = tmp_path / "parts"
    first = everything(folder, tiny_net(dropout=0.4), optimizer=optimizer)
    stop_after(first, steps)
    with pytest.raises(Stopped, match=r"stopped by SIGTERM, epoch \d, after \d steps; the state"):
        first.fit()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    second = tiny_net(seed=77, dropout=0.4)
    run = everything(folder, second, optimizer=optimizer, resume=folder)
    assert run.progress.global_step == steps
    assert run.fit().global_step == STEPS
    assert_same_end((folder, second), (tmp_path / "whole", whole))


@pytest.mark.parametrize(
    ("every", "step"),
    [
        pytest.param(
            every,
            step,
            marks=[] if step % 3 == every - 1 else [pytest.mark.slow],
        )
        for every in (1, 2, 3)
        for step in range(STEPS)
    ],
)
def test_killed_in_any_step_and_started_again(tmp_path, step, every):
    """A kill leaves what was saved last; the records of the steps after it are written again."""
    options = {"save_interval_steps": every, "epochs": 2}
    whole = tiny_net(dropout=0.4)
    everything(tmp_path / "whole", whole, **options).fit()

    folder = tmp_path / "parts"
    first = everything(folder, tiny_net(dropout=0.4), **options)
    fit_and_die(first, step)
    found = newest_checkpoint(folder)
    assert (found is None) == (step < every)
    second = tiny_net(seed=77 if found else 0, dropout=0.4)
    run = everything(folder, second, resume=found, **options)
    assert step - run.progress.global_step < every
    run.fit()
    assert_same_end((folder, second), (tmp_path / "whole", whole))


def test_a_signal_during_an_evaluation_ends_it_and_it_is_done_again(tmp_path):
    whole = tiny_net()
    everything(tmp_path / "whole", whole).fit()
    folder = tmp_path / "parts"
    first = everything(folder, tiny_net())
    evaluate = first.evaluator.evaluate

    def disturbed(model, before_batch):
        os.kill(os.getpid(), signal.SIGINT)
        return evaluate(model, before_batch)

    first.evaluator.evaluate = disturbed
    with pytest.raises(Stopped, match="stopped by SIGINT"):
        first.fit()
    assert records(folder, "eval") == []
    second = tiny_net(seed=5)
    run = everything(folder, second, resume=folder)
    assert run.progress.evaluation_due and run.progress.epoch == 1
    run.fit()
    assert_same_end((folder, second), (tmp_path / "whole", whole))


def test_a_second_signal_ends_the_process():
    request = StopRequest()
    with request.listening():
        os.kill(os.getpid(), signal.SIGINT)
        assert request.agreed() and request.reason == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    child = os.fork()
    if child == 0:
        with StopRequest().listening():
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


def test_under_the_launcher_late_signals_do_no_harm(monkeypatch):
    """It goes on sending SIGTERM while the process already ends."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setenv("PADDLE_TRAINER_ID", "0")
    with StopRequest().listening():
        os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    signal.signal(signal.SIGTERM, before)


def test_a_thread_listens_to_nobody():
    def listen():
        with StopRequest().listening():
            pass

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()


def test_a_failed_save_ends_the_run_with_the_save_before_intact(tmp_path, monkeypatch):
    run = everything(tmp_path, tiny_net(), save_interval_steps=1)
    write = run.checkpointer.store.write
    count = [0]

    def fail(*args):
        count[0] += 1
        if count[0] == 3:
            raise JobError("save_000003.pdopt: writing failed: No space left on device")
        return write(*args)

    monkeypatch.setattr(run.checkpointer.store, "write", fail)
    with pytest.raises(JobError, match="No space left on device"):
        run.fit()
    assert run.progress.global_step <= 5
    assert newest_checkpoint(tmp_path).progress.global_step == 2


# Numbers that are not finite


class Spoiled(nn.Layer):
    """`network`, whose logits are NaN in the forward passes of `bad`, counted from 0."""

    def __init__(self, network, bad):
        super().__init__()
        self.network, self.bad, self.count = network, bad, -1

    def forward(self, x):
        if not self.training:
            return self.network(x)
        self.count += 1
        return self.network(x * math.nan if self.count in self.bad else x)


def test_updates_are_left_out_as_if_their_batches_had_not_been(tmp_path, caplog):
    model = tiny_net()
    run = trainer(
        tmp_path / "a", model, network=Spoiled(model, {2, 5}), on_nonfinite="skip", epochs=2
    )
    progress = run.fit()
    assert progress.skipped_updates == 2 and progress.global_step == STEPS
    assert "epoch 1, step 2: the update is left out" in caplog.text
    assert "epoch 2, step 1: the update is left out" in caplog.text
    assert all(np.isfinite(array).all() for array in arrays(model).values())
    logged = records(tmp_path / "a", "train")
    assert [r["loss"] is None for r in logged] == [i in (2, 5) for i in range(STEPS)]
    assert run.schedule.scheduler().last_epoch == STEPS

    # The same run with these updates taken out by hand.
    other = tiny_net()
    again = trainer(tmp_path / "b", other, epochs=2)
    step, forward = again.precision.step, again.task.forward

    def without(optimizer):
        if again.progress.global_step not in (2, 5):
            step(optimizer)

    def keep_statistics(network, batch):
        before = rank_state.statistics(other)
        result = forward(network, batch)
        if again.progress.global_step in (2, 5):
            rank_state.set_statistics(before, other)
        return result

    again.precision.step, again.task.forward = without, keep_statistics
    again.fit()
    for name, array in arrays(other).items():
        np.testing.assert_array_equal(arrays(model)[name], array, name)


def spoiled(run):
    """Make the images of the second step NaN."""
    forward = run.task.forward

    def forward_spoiled(network, batch):
        is_second = run.progress.global_step == 1
        images = batch.images * math.nan if is_second else batch.images
        return forward(network, batch._replace(images=images))

    run.task.forward = forward_spoiled
    return run


@pytest.mark.parametrize("how", ["saved", "stopped"])
def test_a_save_between_a_spoiled_step_and_its_update(tmp_path, how):
    """Batch norm's statistics are no numbers then; the run goes on as if nobody had saved."""
    options = {"on_nonfinite": "skip", "update_freq": 4, "eval_during_train": False}
    whole = tiny_net()
    spoiled(trainer(tmp_path / "whole", whole, **options)).fit()
    folder, model = tmp_path / "parts", tiny_net()
    every = 1 if how == "saved" else None
    run = spoiled(trainer(folder, model, save_interval_steps=every, **options))
    if how == "stopped":
        stop_after(run, 2)
        with pytest.raises(Stopped):
            run.fit()
        weights = load_paddle_state_dict(folder / "latest.pdparams")
        assert all(np.isfinite(array).all() for array in weights.values())
        model = tiny_net(seed=4)
        run = trainer(folder, model, resume=folder, **options)
    assert run.fit().skipped_updates == 1
    assert_same_end((folder, model), (tmp_path / "whole", whole))


def test_only_so_many_updates_are_left_out(tmp_path):
    model = tiny_net()
    network = Spoiled(model, {1, 2, 3})
    run = trainer(tmp_path, model, network=network, on_nonfinite="skip", max_nonfinite=2)
    match = r"^epoch 1, step 3: expected at most 2 updates left out \(Global.*\), found 3"
    with pytest.raises(JobError, match=match):
        run.fit()


def test_the_count_of_left_out_updates_survives_a_restart(tmp_path):
    model = tiny_net()
    run = trainer(
        tmp_path, model, network=Spoiled(model, {1}), on_nonfinite="skip", save_interval_steps=1
    )
    stop_after(run, 3)
    with pytest.raises(Stopped):
        run.fit()
    assert newest_checkpoint(tmp_path).progress.skipped_updates == 1


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path):
    run = trainer(tmp_path, tiny_net(), eval_during_train=False, save_interval_steps=1)
    backward = run.precision.backward

    def overflow(loss):
        backward(loss)
        if run.progress.global_step == 2:
            run.model.fc.weight.grad = run.model.fc.weight.grad * math.inf

    run.precision.backward = overflow
    with pytest.raises(JobError, match="^epoch 1, step 2: expected a finite gradient, found"):
        run.fit()
    saved = newest_checkpoint(tmp_path)
    assert saved.progress.global_step == 2
    assert CheckpointStore(tmp_path).newest() is not None


# The state of ranks


def state_of(number):
    return RankState(
        sums={"loss": np.float32(number)},
        samples=10 * number,
        skipped=number,
        seen=number,
        gradients={"fc.bias": np.full(4, number, np.float32)},
        statistics={"norm1._mean": np.full(6, number, np.float32)},
        generators=rank_state.generators(),
    )


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_sums_and_gradients_keep_their_total_on_another_number_of_ranks(monkeypatch, world_size):
    model = tiny_net()
    saved = [vars(state_of(n)) for n in (1, 2)]
    monkeypatch.setattr(rank_state.distributed, "world_size", lambda: world_size)
    chosen = []
    for rank in range(world_size):
        monkeypatch.setattr(rank_state.distributed, "rank", lambda rank=rank: rank)
        chosen.append(rank_state.choose(saved, model, "x"))
    for name in ("samples", "skipped", "seen"):
        assert sum(getattr(c, name) for c in chosen) == sum(s[name] for s in saved)
    assert sum(float(c.sums.get("loss", 0)) for c in chosen) == 3
    # Averaged over ranks, as the update does it.
    averages = [sum(c.gradients.get("fc.bias", 0) for c in chosen) / world_size, np.full(4, 1.5)]
    np.testing.assert_array_equal(*averages)
    assert [bool(c.statistics) for c in chosen] == [world_size == 2] * world_size


def test_the_mean_of_equal_statistics_is_exact():
    value = np.random.default_rng(0).standard_normal(50).astype("float32")
    states = [{"statistics": {"norm._mean": value}}] * 3
    np.testing.assert_array_equal(rank_state.mean_statistics(states)["norm._mean"], value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": -1}, "expected samples, skipped, seen to be numbers >= 0"),
        ({"gradients": {"fc.bias": np.ones(3)}}, "gradients: expected tensors of this network"),
        ({"statistics": {"other._mean": np.ones(6)}}, "statistics: expected tensors of this"),
        ({"sums": 3}, "expected .* to be mappings"),
        ({"gradients": {"fc.bias": "x"}}, "gradients: expected tensors"),
        ({"generators": {"numpy": [1]}}, "expected the states of two generators"),
    ],
)
def test_states_of_ranks_that_do_not_belong_here(change, message):
    with pytest.raises(UserError, match=f"x: rank 0: .*{message}"):
        rank_state.choose([{**vars(state_of(1)), **change}], tiny_net(), "x")


def record_draws(run, draws):
    """Draw from the host's generators in every step, as a user's own part may."""
    step = run.train_step

    def drawing(*args):
        draws.append((np.random.rand(), random.random()))
        return step(*args)

    run.train_step = drawing


def test_the_hosts_generators_are_restored(tmp_path):
    whole, parts = [], []
    run = trainer(tmp_path / "whole", tiny_net(), save_interval_steps=1)
    record_draws(run, whole)
    run.fit()

    first = trainer(tmp_path / "parts", tiny_net(), save_interval_steps=1)
    record_draws(first, parts)
    stop_after(first, 3)
    with pytest.raises(Stopped):
        first.fit()
    np.random.seed(0)
    random.seed(0)
    second = trainer(tmp_path / "parts", tiny_net(), resume=tmp_path / "parts")
    record_draws(second, parts)
    second.fit()
    assert whole == parts and len(whole) == STEPS


def test_components_are_saved_and_restored(tmp_path):
    class Counter:
        def __init__(self):
            self.values = np.zeros(3)

        def state_dict(self):
            return {"values": paddle.to_tensor(self.values)}

        def load_state_dict(self, state):
            self.values = state["values"]

    run, counter = trainer(tmp_path, tiny_net(), eval_during_train=False), Counter()
    run.checkpointer.register("counter", counter)
    counter.values = np.arange(3.0)
    run.fit()
    again = trainer(tmp_path / "b", tiny_net()).checkpointer
    restored = Counter()
    with pytest.raises(UserError, match=r"of \['scaler'\], found that of \['counter', 'scaler'\]"):
        again.load(tmp_path / "latest")
    again.register("counter", restored)
    again.load(tmp_path / "latest")
    np.testing.assert_array_equal(restored.values, np.arange(3.0))
    with pytest.raises(ValueError, match="counter: expected a component of a new name"):
        again.register("counter", restored)
