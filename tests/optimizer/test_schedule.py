"""Schedules against Paddle's classes, composed as PaddleClas composes them, and value tables."""

import math

import paddle
import pytest
from paddle.optimizer import lr as paddle_lr

from ppcls.optimizer import build_schedule
from ppcls.utils.errors import ConfigError

EPOCHS, STEPS = 12, 7
RATE = 0.4


def schedule(epochs=EPOCHS, steps=STEPS, **section):
    return build_schedule(section, "Optimizer.lr", epochs=epochs, steps_per_epoch=steps)


def run_of(scheduler, by_epoch):
    """The rate of each update of a run, stepping the scheduler where PaddleClas does."""
    rates = []
    for _ in range(EPOCHS):
        for _ in range(STEPS):
            rates.append(scheduler())
            if not by_epoch:
                scheduler.step()
        if by_epoch:
            scheduler.step()
    return rates


def paddle_composition(section, by_epoch, warmup_epoch):
    """Return Paddle's scheduler for a section, with units of updates or epochs."""
    epoch = 1 if by_epoch else STEPS
    length = (EPOCHS - warmup_epoch) * epoch
    name = section["name"]
    if name == "Cosine":
        base = paddle_lr.CosineAnnealingDecay(RATE, length, section.get("eta_min", 0))
    elif name == "Linear":
        options = {"end_lr": 0, "power": 1.0} | {
            key: section[key] for key in ("end_lr", "power", "cycle") if key in section
        }
        base = paddle_lr.PolynomialDecay(RATE, length, **options)
    elif name == "Step":
        base = paddle_lr.StepDecay(RATE, section["step_size"] * epoch, section["gamma"])
    elif name == "MultiStepDecay":
        marks = [mark * epoch for mark in section["milestones"]]
        base = paddle_lr.MultiStepDecay(RATE, marks, section["gamma"])
    elif name == "Piecewise":
        marks = [mark * epoch for mark in section["decay_epochs"]]
        base = paddle_lr.PiecewiseDecay(marks, section["values"])
    else:
        base = paddle_lr.LambdaDecay(RATE, lambda _: 1.0)
    if warmup_epoch:
        base = paddle_lr.LinearWarmup(base, warmup_epoch * epoch, 0.01, RATE)
    return base


SECTIONS = [
    {"name": "Cosine"},
    {"name": "Cosine", "eta_min": 0.003},
    {"name": "Linear"},
    {"name": "Linear", "end_lr": 0.001, "power": 2.0},
    {"name": "Linear", "power": 0.5, "cycle": True},
    {"name": "Step", "step_size": 3, "gamma": 0.3},
    {"name": "MultiStepDecay", "milestones": [2, 6, 7], "gamma": 0.5},
    {"name": "Piecewise", "decay_epochs": [3, 6, 9], "values": [RATE, 0.1, 0.05, 0.01]},
    {"name": "ConstLR"},
]


@pytest.mark.parametrize("warmup_epoch", [0, 3])
@pytest.mark.parametrize("by_epoch", [False, True], ids=["by_step", "by_epoch"])
@pytest.mark.parametrize("section", SECTIONS, ids=lambda s: "-".join(str(v) for v in s.values()))
def test_whole_run_equals_paddleclas(section, by_epoch, warmup_epoch):
    ours = schedule(
        **section,
        learning_rate=RATE,
        by_epoch=by_epoch,
        warmup_epoch=warmup_epoch,
        warmup_start_lr=0.01,
    )
    theirs = run_of(paddle_composition(section, by_epoch, warmup_epoch), by_epoch)
    assert [ours.at(step) for step in range(EPOCHS * STEPS)] == pytest.approx(theirs, rel=1e-6)


def test_author_recipe():
    """0.5 * lr0 * (1 + cos(pi * e / E)), constant inside an epoch."""
    ours = schedule(name="Cosine", learning_rate=0.05, by_epoch=True, epochs=150, steps=5)
    for step in range(750):
        epoch = step // 5
        assert ours.at(step) == pytest.approx(
            0.5 * 0.05 * (1 + math.cos(math.pi * epoch / 150)), rel=1e-12
        )
    assert 0 < ours.at(749) < 1e-5


@pytest.mark.parametrize(
    ("section", "table"),
    [
        ({"name": "Piecewise", "decay_epochs": [1, 3]}, [1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01]),
        ({"name": "Piecewise", "decay_epochs": [1], "gamma": 0.5}, [1, 1, 0.5, 0.5]),
        ({"name": "Poly", "power": 2}, [1, 0.765625, 0.5625, 0.390625]),
        ({"name": "Polynomial", "end_lr": 0.5}, [1, 0.9375, 0.875]),
        ({"name": "CosineAnnealing", "end_lr": 0.5}, [1, None, None, None, 0.75]),
        ({"name": "Constant"}, [1, 1, 1]),
        ({}, [1, 1, 1]),
        ({"name": "Step", "step_size": 0.5}, [1, 0.1, 0.01]),
        ({"name": "Constant", "warmup_epoch": 1.5}, [0, 1 / 3, 2 / 3, 1, 1]),
        ({"name": "Constant", "warmup_epoch": 2, "by_epoch": True}, [0, 0, 0.5, 0.5, 1, 1]),
        (
            {"name": "ExponentialWarmup", "warmup_epoch": 1, "decay_epochs": 1, "decay_rate": 0.5},
            [0, 0.5, 1, 1, 0.5, 0.5, 0.25, 0.25],
        ),
    ],
)
def test_value_tables(section, table):
    ours = schedule(epochs=4, steps=2, learning_rate=1, **section)
    for step, value in enumerate(table):
        if value is not None:
            assert ours.at(step) == pytest.approx(value, rel=1e-12), step


def test_rates_after_the_run_stay_at_the_end():
    for name in ("Cosine", "Linear"):
        ours = schedule(name=name, learning_rate=1, end_lr=0.25)
        assert ours.at(EPOCHS * STEPS) == ours.at(10 * EPOCHS * STEPS) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("Cosine", "CosineAnnealing"),
        ("Linear", "Polynomial"),
        ("Constant", "Constant"),
    ],
)
def test_name_in_log_lines(name, printed):
    assert schedule(name=name, learning_rate=0.1).name == printed
    assert schedule(name=name, learning_rate=0.1, warmup_epoch=2).name == printed


@pytest.mark.parametrize("by_epoch", [False, True])
def test_scheduler_drives_an_optimizer_and_resumes(by_epoch):
    def build():
        ours = schedule(name="Cosine", learning_rate=0.1, warmup_epoch=1, by_epoch=by_epoch)
        linear = paddle.nn.Linear(1, 1)
        return ours, paddle.optimizer.SGD(ours.scheduler(), parameters=linear.parameters())

    ours, optimizer = build()
    for step in range(20):
        assert optimizer.get_lr() == ours.at(step)
        ours.scheduler().step()
    state = optimizer.state_dict()

    resumed, other = build()
    other.set_state_dict(state)
    for step in range(20, EPOCHS * STEPS):
        assert other.get_lr() == ours.at(step)
        resumed.scheduler().step()


def test_a_resumed_run_follows_its_own_schedule():
    """A config changed between the runs holds from the first update on."""
    state = schedule(name="Constant", learning_rate=0.1).scheduler().state_dict()
    resumed = schedule(name="Constant", learning_rate=0.2).scheduler()
    resumed.set_state_dict(state)
    assert resumed() == 0.2


COMMON = {"name": "Cosine", "learning_rate": 0.1}
PIECEWISE = {"name": "Piecewise", "decay_epochs": [3, 6]}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"name": "Cosin", "learning_rate": 0.1}, r"lr\.name: unknown .* did you mean 'Cosine'\?"),
        ({"name": "Cosine"}, r"lr: missing key 'learning_rate'"),
        (COMMON | {"learning_rate": "fast"}, r"lr\.learning_rate: expected a number, got 'fast'"),
        (COMMON | {"learning_rate": 0}, r"lr\.learning_rate: expected a number > 0, got 0\.0"),
        (COMMON | {"warmup_epochs": 5}, r"lr: unknown key 'warmup_epochs'.*'warmup_epoch'"),
        (COMMON | {"warmup_epoch": -1}, r"lr\.warmup_epoch: expected a number >= 0, got -1"),
        (
            COMMON | {"warmup_epoch": 12},
            r"lr\.warmup_epoch: expected a number < 12 \(Global\.epochs\), got 12",
        ),
        (
            COMMON | {"warmup_epoch": 1, "warmup_start_lr": 0.2},
            r"lr\.warmup_start_lr: expected a number in \[0, 0\.1\)",
        ),
        (COMMON | {"eta_min": 1}, r"lr\.eta_min: expected a number in \[0, 0\.1\], got 1"),
        (COMMON | {"eta_min": 0.01, "end_lr": 0.02}, r"lr\.end_lr: expected no eta_min too"),
        (COMMON | {"last_epoch": 4}, r"lr\.last_epoch: expected -1"),
        (COMMON | {"by_epoch": "yes"}, r"lr\.by_epoch: expected true or false, got 'yes'"),
        (COMMON | {"name": "Step"}, r"lr: missing key 'step_size'"),
        (COMMON | {"name": "Step", "step_size": 0}, r"lr\.step_size: expected a number of epochs"),
        (COMMON | {"name": "Linear", "power": 0}, r"lr\.power: expected a number > 0"),
        (
            COMMON | {"name": "MultiStepDecay", "milestones": [6, 3]},
            r"lr\.milestones: expected increasing epochs > 0, got \[6\.0, 3\.0\]",
        ),
        (PIECEWISE, r"lr\.values: expected 3 numbers, or a learning_rate"),
        (PIECEWISE | {"values": [1, 2]}, r"lr\.values: expected 3 numbers, got \[1\.0, 2\.0\]"),
        (
            PIECEWISE | {"values": [0.1, 0.01, 0.001], "learning_rate": 0.05},
            r"lr\.learning_rate: expected 0\.1, as values\[0\], got 0\.05",
        ),
        (
            PIECEWISE | {"values": [0.1, 0.01, 0.001], "gamma": 0.1},
            r"lr\.gamma: expected either gamma or values, got 0\.1",
        ),
        (None, r"lr: expected a mapping, got None"),
    ],
)
def test_config_errors(section, message):
    with pytest.raises(ConfigError, match="^Optimizer." + message):
        build_schedule(section, "Optimizer.lr", epochs=EPOCHS, steps_per_epoch=STEPS)
