"""Updates against NumPy in float64, decay and clipping rules, and what a config may not say.

Paddle keeps the hyper-parameters in float32, so these are powers of two and the like.
"""

import numpy as np
import paddle
import pytest
from paddle import nn

from ppcls.optimizer import build_optimizer, build_schedule
from ppcls.utils.errors import ConfigError

RATE = 2.0**-7
DECAY = 2.0**-6


class Tiny(nn.Layer):
    """A matrix, a norm's weight and bias, and a frozen vector. `grads` fixes the gradients."""

    def __init__(self, dtype="float64"):
        super().__init__()
        rng = np.random.default_rng(0)
        self.grads = {}
        for name, shape in {"weight": [3, 4], "norm_weight": [4], "bias": [4]}.items():
            parameter = self.create_parameter(shape, dtype=dtype)
            parameter.set_value(rng.standard_normal(shape).astype(dtype))
            self.add_parameter(name, parameter)
            self.grads[name] = rng.standard_normal(shape).astype(dtype)
        self.frozen = self.create_parameter([2], dtype=dtype, is_bias=True)  # zeros
        self.frozen.stop_gradient = True

    def values(self):
        return {name: p.numpy().copy() for name, p in self.named_parameters()}

    def backward(self, scale=1.0):
        by_name = dict(self.named_parameters())
        loss = sum(
            (by_name[name] * paddle.to_tensor(grad * scale)).sum()
            for name, grad in self.grads.items()
        )
        loss.backward()


def build(model, rate=RATE, parts=None, **section):
    schedule = build_schedule({"learning_rate": rate}, "O.lr", epochs=1, steps_per_epoch=100)
    return build_optimizer(section, "O", schedule=schedule, model=model, parts=parts)


def train(model, optimizer, steps=5):
    """Update with the gradients times 1, 2, 3..."""
    for step in range(steps):
        model.backward(step + 1.0)
        optimizer.step()
        optimizer.clear_grad()
    return model.values()


def reference(model, update, steps=5):
    """The same in NumPy: `update(name, parameter, gradient, state, step) -> parameter`."""
    values, states = model.values(), {name: {} for name in model.grads}
    for step in range(1, steps + 1):
        for name, grad in model.grads.items():
            values[name] = update(name, values[name], step * grad, states[name], step)
    return values


def assert_same(found, expected, rtol=1e-12):
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=rtol, atol=0, err_msg=name)


def torch_sgd(momentum, nesterov, decay):
    def update(name, p, g, state, step):
        g = g + decay(name, p)
        state["buf"] = g if step == 1 else momentum * state["buf"] + g
        return p - RATE * (g + momentum * state["buf"] if nesterov else state["buf"])

    return update


EVERYWHERE = {"regularizer": {"name": "L2", "coeff": DECAY}}


@pytest.mark.parametrize("nesterov", [True, False])
def test_momentum_with_coupled_decay_is_pytorch_sgd(nesterov):
    model = Tiny()
    expected = reference(model, torch_sgd(0.875, nesterov, lambda _, p: DECAY * p))
    optimizer = build(model, name="Momentum", momentum=0.875, use_nesterov=nesterov, **EVERYWHERE)
    assert_same(train(model, optimizer), expected)


@pytest.mark.parametrize("name", ["SGD", "Momentum"])
@pytest.mark.parametrize(
    ("exclusion", "left_out"),
    [
        ({"one_dim_param_no_weight_decay": True}, {"norm_weight", "bias"}),
        ({"no_weight_decay_name": "froz norm"}, {"norm_weight"}),
        ({"no_weight_decay_name": "bias", "one_dim_param_no_weight_decay": False}, {"bias"}),
    ],
)
@pytest.mark.parametrize("kind", ["L2", "L1"])
def test_exclusion_from_coupled_decay(name, exclusion, left_out, kind):
    def decay(parameter, p):
        term = p if kind == "L2" else np.sign(p)
        return 0 if parameter in left_out else DECAY * term

    model, momentum = Tiny(), {"Momentum": 0.875, "SGD": 0.0}[name]
    expected = reference(model, torch_sgd(momentum, False, decay))
    own = {"momentum": 0.875} if name == "Momentum" else {}
    regularizer = {"name": kind, "coeff": DECAY}
    optimizer = build(model, name=name, regularizer=regularizer, **own, **exclusion)
    assert_same(train(model, optimizer), expected)


def test_weight_decay_is_another_word_for_l2():
    model, other = Tiny("float32"), Tiny("float32")
    found = train(model, build(model, name="RMSProp", weight_decay=DECAY))
    assert_same(found, train(other, build(other, name="RMSProp", **EVERYWHERE)), rtol=0)


def test_an_exclusion_ends_with_its_optimizer():
    model = Tiny()
    build(model, name="Momentum", one_dim_param_no_weight_decay=True, **EVERYWHERE)
    expected = reference(model, torch_sgd(0.875, False, lambda _, p: DECAY * p))
    optimizer = build(model, name="Momentum", momentum=0.875, **EVERYWHERE)
    assert_same(train(model, optimizer), expected)


def adamw(decays):
    beta1, beta2, epsilon = 0.875, 0.96875, 2.0**-20

    def update(name, p, g, state, step):
        state["m"] = beta1 * state.get("m", 0) + (1 - beta1) * g
        state["v"] = beta2 * state.get("v", 0) + (1 - beta2) * g * g
        m, v = state["m"] / (1 - beta1**step), state["v"] / (1 - beta2**step)
        p = p * (1 - RATE * DECAY) if decays(name) else p
        return p - RATE * m / (np.sqrt(v) + epsilon)

    return update, {"beta1": beta1, "beta2": beta2, "epsilon": epsilon}


@pytest.mark.parametrize("one_dim", [False, True])
def test_adamw(one_dim):
    model = Tiny()
    update, own = adamw(lambda name: name == "weight" or not one_dim)
    expected = reference(model, update)
    options = {"weight_decay": DECAY, "one_dim_param_no_weight_decay": one_dim}
    assert_same(train(model, build(model, name="AdamW", **own, **options)), expected)


def lamb(decays, adapts):
    """You et al. 2020, algorithm 2, with phi(z) = z; `adapts` says who has a trust ratio."""
    beta1, beta2, epsilon = 0.875, 0.96875, 2.0**-20

    def update(name, p, g, state, step):
        state["m"] = beta1 * state.get("m", 0) + (1 - beta1) * g
        state["v"] = beta2 * state.get("v", 0) + (1 - beta2) * g * g
        m, v = state["m"] / (1 - beta1**step), state["v"] / (1 - beta2**step)
        move = m / (np.sqrt(v) + epsilon) + (DECAY * p if decays(name) else 0)
        ratio = np.linalg.norm(p) / np.linalg.norm(move) if adapts(name) else 1.0
        return p - RATE * ratio * move

    return update, {"beta1": beta1, "beta2": beta2, "epsilon": epsilon}


@pytest.mark.parametrize(("one_dim", "always_adapt"), [(False, False), (True, False), (True, True)])
def test_lamb(one_dim, always_adapt):
    def decays(name):
        return name == "weight" or not one_dim

    model = Tiny()
    update, own = lamb(decays, lambda name: decays(name) or always_adapt)
    expected = reference(model, update, steps=10)
    options = {"weight_decay": DECAY, "one_dim_param_no_weight_decay": one_dim}
    optimizer = build(model, name="Lamb", always_adapt=always_adapt, **own, **options)
    assert_same(train(model, optimizer, steps=10), expected, rtol=1e-10)


PARTS = {"stem": ["bias"], "stage1": ["norm_weight", "frozen"], "head": ["weight"]}


def at_rates(update, rates):
    """`update` with other learning rates: the move it makes times what a parameter has."""

    def scaled(name, p, g, state, step):
        return p + rates[name] * (update(name, p, g, state, step) - p)

    return scaled


@pytest.mark.parametrize("name", ["SGD", "Momentum", "AdamW", "Lamb"])
@pytest.mark.parametrize("clipped", [False, True])
def test_layer_decay(name, clipped):
    """The stem at 1/4, the stage at 1/2, the head at 2 times the rate; clipped over all parts."""
    rates = {"bias": 0.25, "norm_weight": 0.5, "weight": 2.0}
    always = {"decays": lambda name: True}
    updates = {
        "SGD": lambda: (torch_sgd(0, False, lambda _, p: DECAY * p), {}),
        "Momentum": lambda: (torch_sgd(0.5, True, lambda _, p: DECAY * p), {"momentum": 0.5}),
        "AdamW": lambda: adamw(**always),
        "Lamb": lambda: lamb(**always, adapts=lambda name: True),
    }
    model = Tiny()
    update, own = updates[name]()
    clipping = {}
    if clipped:
        clipping, norm = {"clip_norm_global": 2.0}, global_norm(model)
        update = with_gradients(update, lambda g, step: g * min(1, 2.0 / (step * norm)))
    expected = reference(model, at_rates(update, rates), steps=10)
    if name == "Momentum":
        own["use_nesterov"] = True
    settings = {"weight_decay": DECAY, "layer_decay": 0.5, "head_lr_mult": 2.0, **clipping}
    optimizer = build(model, name=name, parts=PARTS, **own, **settings)
    assert_same(train(model, optimizer, steps=10), expected, rtol=1e-10)


def global_norm(model):
    return np.sqrt(sum((grad**2).sum() for grad in model.grads.values()))


def with_gradients(update, change):
    def changed(name, p, g, state, step):
        return update(name, p, change(g, step), state, step)

    return changed


@pytest.mark.parametrize("limit", [0.5, 2.0])
def test_clip_value(limit):
    model = Tiny()
    update = with_gradients(
        torch_sgd(0.5, False, lambda _, p: DECAY * p), lambda g, _: g.clip(-limit, limit)
    )
    expected = reference(model, update, steps=10)
    section = {"name": "Momentum", "momentum": 0.5, "weight_decay": DECAY, "clip_value": limit}
    assert_same(train(model, build(model, **section), steps=10), expected, rtol=1e-10)


def test_rates_of_parts_end_with_their_optimizer():
    model = Tiny()
    model.weight.optimize_attr["learning_rate"] = 4.0  # the network's own, which stays
    build(model, name="SGD", parts=PARTS, layer_decay=0.5)
    optimizer = build(model, name="SGD", parts=PARTS, head_lr_mult=0.5)
    rates = {"bias": 1.0, "norm_weight": 1.0, "weight": 2.0}
    expected = reference(model, at_rates(torch_sgd(0, False, lambda *_: 0), rates))
    assert_same(train(model, optimizer), expected)


@pytest.mark.parametrize("section", [{"name": "Momentum"}, {"name": "Adam"}])
def test_rates_of_parts_with_all_tensors_at_once(section):
    plain, at_once = Tiny("float32"), Tiny("float32")
    section = {**section, "layer_decay": 0.5, "head_lr_mult": 4.0, "parts": PARTS}
    expected = train(plain, build(plain, **section))
    found = train(at_once, build(at_once, **section, use_multi_tensor=True))
    assert_same(found, expected, rtol=1e-6)


def test_lamb_exclusion():
    """Without a gradient Lamb moves only what decays."""
    model = Tiny()
    model.grads = {name: np.zeros_like(grad) for name, grad in model.grads.items()}
    before = model.values()
    after = train(
        model, build(model, name="Lamb", weight_decay=0.5, one_dim_param_no_weight_decay=True)
    )
    assert not np.array_equal(after["weight"], before["weight"])
    assert_same(after, {name: before[name] for name in ("norm_weight", "bias")}, rtol=0)


@pytest.mark.parametrize("one_dim", [False, True])
def test_clip_norm_is_global_and_before_the_decay(one_dim):
    """Also with parameters left out of the decay: there is still one norm."""
    model = Tiny()
    total = np.sqrt(sum((grad**2).sum() for grad in model.grads.values()))

    def update(name, p, g, state, step):
        g = g * 2 / max(2, step * total)
        return p - RATE * (g + (0 if one_dim and name != "weight" else DECAY * p))

    expected = reference(model, update)
    options = {"clip_norm_global": 2, "one_dim_param_no_weight_decay": one_dim}
    assert_same(train(model, build(model, name="SGD", **options, **EVERYWHERE)), expected)


def test_other_clipping():
    model, start = Tiny(), Tiny().values()
    found = train(model, build(model, name="SGD", clip_value=0.25), steps=1)
    assert_same(
        found, {n: start[n] - RATE * np.clip(g, -0.25, 0.25) for n, g in model.grads.items()}
    )
    model = Tiny("float32")  # Paddle has no other kernel on a CPU
    found = train(model, build(model, name="SGD", clip_norm=0.5), steps=1)
    assert_same(
        found,
        {n: start[n] - RATE * g * 0.5 / np.linalg.norm(g) for n, g in model.grads.items()},
        rtol=1e-6,
    )


def test_frozen_parameters_stay_out():
    model = Tiny()
    before = model.values()["frozen"]
    optimizer = build(model, name="Momentum", momentum=0.9, **EVERYWHERE)
    np.testing.assert_array_equal(train(model, optimizer)["frozen"], before)
    assert not any(model.frozen.name in key for key in optimizer.state_dict())
    for parameter in model.parameters():
        parameter.stop_gradient = True
    with pytest.raises(ConfigError, match="O: expected a model with parameters that train"):
        build(model, name="SGD")


def test_running_statistics_of_batch_norm_are_no_parameters_here():
    model = nn.BatchNorm2D(3)
    optimizer = build(model, name="SGD", **EVERYWHERE)
    assert len(optimizer._parameter_list) == 2


def test_low_precision_parameters_get_a_float32_copy():
    model = nn.Linear(2, 1, bias_attr=False)
    model.bfloat16()
    for name in ("Momentum", "SGD", "Adam", "AdamW"):
        assert build(model, name=name)._multi_precision
        assert not build(model, name=name, multi_precision=False)._multi_precision


@pytest.mark.parametrize(
    ("section", "tolerance"),
    [
        ({"name": "Momentum", "momentum": 0.875, "use_nesterov": True}, 0),
        ({"name": "Momentum", "regularizer": {"name": "L1", "coeff": DECAY}}, 0),
        ({"name": "Momentum", "clip_norm_global": 0.5, **EVERYWHERE}, 0),
        ({"name": "Momentum", "one_dim_param_no_weight_decay": True, **EVERYWHERE}, 0),
        ({"name": "Adam", "one_dim_param_no_weight_decay": True, **EVERYWHERE}, 1e-6),
    ],
)
def test_all_tensors_at_once_are_updated_the_same(section, tolerance):
    """Also what is saved is the same, to the names; float32, Paddle has no other kernel."""
    results, states = [], []
    for use_multi_tensor in (False, True):
        model = Tiny("float32")
        with paddle.utils.unique_name.guard():
            optimizer = build(model, use_multi_tensor=use_multi_tensor, **section)
        assert optimizer._use_multi_tensor == use_multi_tensor
        results.append(train(model, optimizer))
        names = {p.name: name for name, p in model.named_parameters()}
        state = optimizer.state_dict()
        del state["LR_Scheduler"]
        owner = {key: next(name for name in names if key.startswith(name)) for key in state}
        states.append(
            {key.replace(owner[key], names[owner[key]]): t.numpy() for key, t in state.items()}
        )
    assert_same(results[1], results[0], rtol=tolerance)
    assert list(states[1]) == list(states[0])
    assert_same(states[1], states[0], rtol=tolerance)


def test_schedule_drives_the_optimizer():
    model = Tiny()
    section = {"name": "Cosine", "learning_rate": "5e-2", "by_epoch": True}
    schedule = build_schedule(section, "O.lr", epochs=10, steps_per_epoch=2)
    section = {"name": "Momentum", "momentum": 0.9, "lr": section, **EVERYWHERE}
    optimizer = build_optimizer(section, "O", schedule=schedule, model=model)
    for step in range(20):
        assert optimizer.get_lr() == schedule.at(step)
        schedule.scheduler().step()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"name": "Momentun"}, r"O\.name: unknown optimizer 'Momentun'; did you mean 'Momentum'\?"),
        ({"name": "Optimizer"}, r"O\.name: unknown optimizer 'Optimizer'"),
        ({"name": "copy"}, r"O\.name: unknown optimizer 'copy'"),
        ({"momentum": 0.9}, r"O: expected a mapping with a 'name'"),
        ({"name": "SGD", "momentum": 0.9}, r"O: unknown key 'momentum'"),
        ({"name": "Momentum", "nesterov": True}, r"O: unknown key 'nesterov'.*'use_nesterov'"),
        ({"name": "Momentum", "parameters": []}, r"O: unknown key 'parameters'"),
        ({"name": "Momentum", "regularizers": {}}, r"O: unknown key 'regularizers'.*'regularizer'"),
        ({"name": "Momentum", "momentum": 1}, r"O\.momentum: expected a number in \[0, 1\), got 1"),
        ({"name": "Momentum", "momentum": "x"}, r"O\.momentum: expected a number, got 'x'"),
        (
            {"name": "Momentum", "use_nesterov": 1},
            r"O\.use_nesterov: expected true or false, got 1",
        ),
        (
            {"name": "AdamW", "use_multi_tensor": True},
            r"O\.use_multi_tensor: expected Momentum or Adam, .*got AdamW",
        ),
        ({"name": "Adam", "epsilon": 0}, r"O\.epsilon: expected a number > 0, got 0"),
        (
            {"name": "SGD", "regularizer": {"name": "L3", "coeff": 1}},
            r"O\.regularizer\.name: expec",
        ),
        ({"name": "SGD", "regularizer": {"name": "L2"}}, r"O\.regularizer: missing key 'coeff'"),
        (
            {"name": "SGD", "regularizer": {"name": "L2", "coeff": -1}},
            r"O\.regularizer\.coeff: expected a number >= 0, got -1",
        ),
        (
            {"name": "SGD", "weight_decay": 0.1, "regularizer": {"name": "L2", "coeff": 1}},
            r"O\.weight_decay: expected either weight_decay or regularizer, got both",
        ),
        (
            {"name": "AdamW", "regularizer": {"name": "L2", "coeff": 1}},
            r"O\.regularizer: expected 'weight_decay' instead, since AdamW decays",
        ),
        ({"name": "SGD", "weight_decay": -1}, r"O\.weight_decay: expected a number >= 0, got -1"),
        (
            {"name": "SGD", "clip_norm_global": 0},
            r"O\.clip_norm_global: expected a number > 0, got 0",
        ),
        (
            {"name": "SGD", "clip_norm_global": 1, "clip_value": 1},
            r"O\.clip_value: expected one kind of",
        ),
        (
            {"name": "SGD", "layer_decay": 0},
            r"O\.layer_decay: expected a number in \(0, 1\], got 0",
        ),
        ({"name": "SGD", "layer_decay": 1.5}, r"O\.layer_decay: expected .*, got 1\.5"),
        ({"name": "SGD", "head_lr_mult": -1}, r"O\.head_lr_mult: expected a number > 0, got -1"),
        (
            {"name": "SGD", "no_weight_decay_name": "norm biass"},
            r"O\.no_weight_decay_name: expected parts of the names .* none contains 'biass'",
        ),
        ({"name": "SGD", "head_lr": 2}, r"O: unknown key 'head_lr'; did you mean 'head_lr_mult'"),
        (
            {"name": "SGD", "layer_decay": 0.75},
            r"O\.layer_decay: expected a HarDNet, whose stem, stages and head are known, got 0\.75",
        ),
    ],
)
def test_config_errors(section, message):
    with pytest.raises(ConfigError, match="^" + message):
        build(Tiny(), **section)
