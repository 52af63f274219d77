"""One process of many, and the device."""

import numpy as np
import paddle
import pytest
from tiny_run import arrays, tiny_net

from ppcls.engine import parallel
from ppcls.engine.config import DistributedConfig, Recipe
from ppcls.utils.errors import ConfigError, UserError


def test_devices(monkeypatch):
    monkeypatch.setattr(paddle, "is_compiled_with_cuda", lambda: False)
    assert str(parallel.select_device("auto")) == str(parallel.select_device("cpu"))
    with pytest.raises(UserError, match="Global.device: .*got 'gpu'.*is a CPU build"):
        parallel.select_device("gpu")
    for wrong in ("cuda", "gpu:x", "cpu:1", "auto:0", ""):
        with pytest.raises(UserError, match="Global.device: expected auto, cpu, gpu or gpu:N"):
            parallel.select_device(wrong)


def test_a_gpu_this_machine_lacks(monkeypatch):
    monkeypatch.setattr(paddle, "is_compiled_with_cuda", lambda: True)
    monkeypatch.setattr(paddle.device.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=r"got 'gpu:2', but this Paddle sees 2 GPU\(s\)"):
        parallel.select_device("gpu:2")


def test_a_single_process_adds_up_with_nobody():
    values = {"loss": 1.5, "samples": 3}
    assert parallel.sum_over_ranks(values) == values
    model = tiny_net()
    assert parallel.wrap(model, DistributedConfig()) is model
    assert parallel.unwrap(model) is model
    parallel.average_statistics(parallel.statistics_of(model))


def test_options_of_the_gradient_average_reach_it(monkeypatch):
    seen = {}
    monkeypatch.setattr(parallel.distributed, "world_size", lambda: 2)
    monkeypatch.setattr(paddle, "DataParallel", lambda model, **options: seen.update(options))
    parallel.wrap(tiny_net(), DistributedConfig(comm_buffer_size=64, last_comm_buffer_size=0.5))
    assert seen == {
        "comm_buffer_size": 64,
        "last_comm_buffer_size": 0.5,
        "find_unused_parameters": False,
    }


def test_parameters_left_out_of_a_step_do_not_go_with_updates_of_all_at_once():
    sections = {"Arch": {"name": "HarDNet68"}, "Distributed": {"find_unused_parameters": True}}
    Recipe.parse(sections | {"Optimizer": {"name": "Momentum"}}, "a.yaml")
    at_once = {"Optimizer": {"name": "Momentum", "use_multi_tensor": True}}
    with pytest.raises(ConfigError, match=r"^Distributed\.find_unused_parameters: expected False"):
        Recipe.parse(sections | at_once, "a.yaml")


def test_statistics_are_averaged_in_the_network_itself(monkeypatch):
    """Also when the state dict holds copies, as under AMP's O2."""
    monkeypatch.setattr(parallel.distributed, "world_size", lambda: 2)

    def add_another_rank(tensor):
        tensor.set_value(tensor + 1.0)  # the other one had 2.0 everywhere, halved

    monkeypatch.setattr(parallel.dist, "all_reduce", add_another_rank)
    for is_decorated in (False, True):
        model = tiny_net()
        if is_decorated:
            model.register_state_dict_hook(_copies)
        before = arrays(model)
        parallel.average_statistics(parallel.statistics_of(model))
        after = arrays(model)
        np.testing.assert_allclose(after["norm1._mean"], before["norm1._mean"] / 2 + 1)
        np.testing.assert_allclose(after["norm2._variance"], before["norm2._variance"] / 2 + 1)
        np.testing.assert_array_equal(after["conv1.weight"], before["conv1.weight"])


def _copies(state):
    for name, tensor in state.items():
        state[name] = tensor.astype("float32").clone()
