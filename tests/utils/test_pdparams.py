from __future__ import annotations

import collections
import json
import os
import pickle
import random
import struct

import numpy as np
import paddle
import pytest

from ppcls.utils.errors import UserError
from ppcls.utils.pdparams import (
    load_paddle_file,
    load_paddle_state_dict,
    load_safetensors,
    save_pdparams,
    save_safetensors,
)
from ppcls.utils.safe_pickle import UnsafeFileError


def assert_same(found, wanted) -> None:
    """`wanted` is what paddle.load gives: Tensors where `found` has arrays."""
    if isinstance(wanted, paddle.Tensor):
        wanted = wanted.numpy()
    if isinstance(wanted, dict):
        assert set(found) == set(wanted)
        for key, value in wanted.items():
            assert_same(found[key], value)
    elif isinstance(wanted, (list, tuple)):
        assert len(found) == len(wanted)
        for left, right in zip(found, wanted, strict=True):
            assert_same(left, right)
    elif isinstance(wanted, np.ndarray):
        assert type(found) is np.ndarray
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
        np.testing.assert_array_equal(found, wanted)
    else:
        assert found == wanted and type(found) is type(wanted)


@pytest.fixture(scope="module")
def network():
    paddle.seed(0)
    return paddle.nn.Sequential(
        paddle.nn.Conv2D(3, 4, 3), paddle.nn.BatchNorm2D(4), paddle.nn.Linear(6, 5)
    )


def make_optimizer(name, network):
    lr = paddle.optimizer.lr
    if name == "momentum":
        schedule = lr.CosineAnnealingDecay(0.1, 10)
        return paddle.optimizer.Momentum(schedule, parameters=network.parameters())
    schedule = lr.LinearWarmup(lr.MultiStepDecay(0.1, [3, 5]), 5, 0.0, 0.1)
    return paddle.optimizer.AdamW(schedule, parameters=network.parameters())


def take_step(optimizer, network):
    network(paddle.randn([2, 3, 8, 8])).sum().backward()
    optimizer.step()
    optimizer.clear_grad()


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_reads_what_paddle_saves(tmp_path, network, protocol):
    bfloat16 = paddle.arange(6, dtype="float32").cast("bfloat16")
    things = {
        "net.pdparams": network.state_dict(),
        "tensor.pdparams": bfloat16,
        "nested.pdstates": {
            "epoch": 3,
            "metric": {"best": 0.5, "weight": network[0].weight, "list": [1.5, "x", None, True]},
            "pair": (1, 2),
            "half": [bfloat16],
            "old": network[0].bias.get_tensor(),
            "master_weights": {"w": network[0].weight},
        },
    }
    for name in ("momentum", "adamw"):
        optimizer = make_optimizer(name, network)
        take_step(optimizer, network)
        optimizer._learning_rate.step()
        things[f"{name}.pdopt"] = optimizer.state_dict()
    for name, thing in things.items():
        path = tmp_path / name
        paddle.save(thing, str(path), protocol=protocol)
        assert_same(load_paddle_file(path), paddle.load(str(path)))


def test_state_dicts_widen_bfloat16(tmp_path):
    values = paddle.to_tensor([0.5, -3.0, 1e30], dtype="float32").cast("bfloat16")
    paddle.save({"w": values}, str(tmp_path / "a.pdparams"))
    assert load_paddle_file(tmp_path / "a.pdparams")["w"].dtype == np.uint16
    loaded = load_paddle_state_dict(tmp_path / "a.pdparams")["w"]
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, values.cast("float32").numpy())


def test_the_name_table_is_kept_on_request(tmp_path, network):
    path = tmp_path / "net.pdparams"
    paddle.save(network.state_dict(), str(path))
    table = load_paddle_file(path, keep_name_table=True)["StructuredToParameterName@@"]
    assert table["0.weight"] == network[0].weight.name
    assert "StructuredToParameterName@@" not in load_paddle_file(path)


def split_state():
    """What protocol 2 holds of an array above 2**30 bytes, at a readable size."""
    parts = {f"w@@.{i}": np.arange(i * 5, min(12, i * 5 + 5), dtype="f4") for i in range(3)}
    table = {"w": {"OriginShape": (3, 4), "slices": list(parts)}}
    return {**parts, "b": np.ones(2, "f4"), "UnpackBigParamInfor@@": table}


def test_split_arrays_are_joined(tmp_path):
    path = tmp_path / "big.pdparams"
    path.write_bytes(pickle.dumps(split_state(), 2))
    loaded = load_paddle_state_dict(path)
    assert set(loaded) == {"w", "b"}
    np.testing.assert_array_equal(loaded["w"], np.arange(12, dtype="f4").reshape(3, 4))
    assert_same(loaded, paddle.load(str(path)))


@pytest.mark.parametrize(
    "entry",
    [
        {"OriginShape": (3, 5), "slices": ["w@@.0", "w@@.1", "w@@.2"]},
        {"OriginShape": (-1, -12), "slices": ["w@@.0", "w@@.1", "w@@.2"]},
        {"OriginShape": (5, 2), "slices": ["w@@.0", "w@@.0"]},
        {"OriginShape": (3, 4), "slices": ["w@@.0", "nothing"]},
        {"OriginShape": (3, 4), "slices": [["w@@.0"]]},
        {"OriginShape": (0,), "slices": []},
        {"OriginShape": "x", "slices": ["w@@.0"]},
        {"slices": ["w@@.0"]},
        [],
    ],
)
def test_split_arrays_that_do_not_fit_are_refused(tmp_path, entry):
    state = split_state() | {"UnpackBigParamInfor@@": {"w": entry}}
    (tmp_path / "a.pdparams").write_bytes(pickle.dumps(state, 2))
    with pytest.raises(UnsafeFileError, match="the list of split parameters"):
        load_paddle_file(tmp_path / "a.pdparams")


class Call:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_nothing_in_a_file_runs(tmp_path, protocol):
    sentinel = tmp_path / "sentinel"
    code = f"open({str(sentinel)!r}, 'w')"
    array = np.zeros(2)
    path = tmp_path / "evil.pdparams"
    for bomb in (
        Call(os.system, f"echo > {sentinel}"),
        Call(eval, code),
        Call(eval, code, {"data": array}),
        Call(eval, "data", {"data": array, "x": 1}),
        Call(eval, "data", {"data": [1]}),
        Call(eval, b"data", {"data": array}),
        Call(exec, code),
        Call(getattr, Call(__import__, "os"), "system"),
    ):
        path.write_bytes(pickle.dumps({"w": array, "x": bomb}, protocol))
        with pytest.raises(UnsafeFileError, match="evil.pdparams: .*: it (names|wants)"):
            load_paddle_state_dict(path)
        assert not sentinel.exists()
    pickle.loads(pickle.dumps(Call(os.system, f"echo > {sentinel}"), protocol))
    assert sentinel.exists()  # the bombs are live


def test_wrong_files_are_named(tmp_path):
    path = tmp_path / "a.pdparams"
    for content, words in (
        (b"PK\x03\x04", "a zip archive, as PyTorch writes"),
        (b"hello", "something else"),
        (pickle.dumps(0x1950A86A20F9469CFC6C, 2), "one of PyTorch"),
    ):
        path.write_bytes(content)
        with pytest.raises(UnsafeFileError, match=f"expected a file of paddle.save, found {words}"):
            load_paddle_file(path)
    for content, words in (
        ([1], "expected a state dict, found a value of type list"),
        ({}, "expected a state dict, found an empty dict"),
        ({"LR_Scheduler": {"last_epoch": 1}}, r"'LR_Scheduler' \(an optimizer's file\?\)"),
        ({1: np.zeros(1)}, "expected a state dict of arrays"),
    ):
        path.write_bytes(pickle.dumps(content, 4))
        with pytest.raises(UserError, match=words):
            load_paddle_state_dict(path)
    with pytest.raises(UserError, match="no such file"):
        load_paddle_state_dict(tmp_path / "nothing.pdparams")
    with pytest.raises(UserError, match="found a folder"):
        load_paddle_state_dict(tmp_path)


def test_damaged_files_give_data_or_an_error(tmp_path, network):
    path = tmp_path / "a.pdparams"
    paddle.save(network.state_dict(), str(path))
    data = path.read_bytes()
    generator = random.Random(0)
    for size in [*range(0, 200), *generator.sample(range(200, len(data)), 60)]:
        path.write_bytes(data[:size])
        with pytest.raises(UserError):
            load_paddle_file(path)
    refused = 0
    for _ in range(300):
        damaged = bytearray(data)
        damaged[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        try:
            load_paddle_state_dict(path)
        except UserError:
            refused += 1
    assert refused > 50


def test_paddle_reads_what_we_save(tmp_path, network):
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    extra = {
        "half": np.arange(3, dtype="f2"),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big_endian": np.arange(3, dtype=">i4"),
        "bool": np.array([True, False]),
        "zero_dim": np.array(3),
        "empty": np.zeros((0, 3), "f4"),
        "sliced": np.arange(10.0)[::3],
    }
    path = tmp_path / "a.pdparams"
    save_pdparams(path, state | extra)
    loaded = paddle.load(str(path))
    assert all(isinstance(value, paddle.Tensor) for value in loaded.values())
    for name, value in (state | extra).items():
        np.testing.assert_array_equal(loaded[name].numpy(), value)
    np.testing.assert_array_equal(load_paddle_file(path)["big_endian"], np.arange(3))
    missing, unexpected = network.set_state_dict({name: loaded[name] for name in state})
    assert not missing and not unexpected
    # The spelling that NumPy 1 knows as well.
    assert b"numpy.core.multiarray" in path.read_bytes()
    assert b"numpy._core" not in path.read_bytes()


def test_optimizer_states_survive_our_format(tmp_path, network):
    optimizer = make_optimizer("adamw", network)
    take_step(optimizer, network)
    paddle.save(optimizer.state_dict(), str(tmp_path / "a.pdopt"))
    content = load_paddle_file(tmp_path / "a.pdopt")
    save_pdparams(tmp_path / "b.pdopt", content)
    assert_same(load_paddle_file(tmp_path / "b.pdopt"), content)
    optimizer.set_state_dict(paddle.load(str(tmp_path / "b.pdopt")))


def test_saving_something_else_leaves_no_file(tmp_path):
    for value in (object(), np.array([None]), {1, 2}):
        with pytest.raises(TypeError, match="expected"):
            save_pdparams(tmp_path / "a.pdparams", {"ok": np.zeros(3), "w": value})
    assert os.listdir(tmp_path) == []


# safetensors --------------------------------------------------------------------------------------

TENSORS = collections.OrderedDict(
    z=np.arange(6, dtype="f4").reshape(2, 3).T,
    a=np.arange(3, dtype="f2"),
    i=np.array(-5),
    b=np.array([True, False]),
    e=np.zeros((0, 4)),
    c=np.array([1 + 2j], "c8"),
)


def test_safetensors_survive(tmp_path):
    path = tmp_path / "a.safetensors"
    save_safetensors(path, TENSORS, {"format": "pd"})
    loaded = load_safetensors(path)
    assert list(loaded) == list(TENSORS)
    assert_same(loaded, TENSORS)
    assert_same(load_paddle_state_dict(path), TENSORS)
    assert all(array.flags.writeable for array in loaded.values())


def test_safetensors_agree_with_the_library(tmp_path):
    library = pytest.importorskip("safetensors.numpy")
    tensors = {name: np.ascontiguousarray(value) for name, value in TENSORS.items() if name != "c"}
    tensors["i"] = TENSORS["i"]
    save_safetensors(tmp_path / "ours.safetensors", tensors, {"a": "b"})
    assert_same(library.load_file(tmp_path / "ours.safetensors"), tensors)
    library.save_file(tensors, tmp_path / "theirs.safetensors", {"a": "b"})
    assert_same(load_safetensors(tmp_path / "theirs.safetensors"), tensors)


def safetensors(header, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8), **extra):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **extra}


def test_safetensors_widen_bfloat16(tmp_path):
    bits = (np.array([1.5, -2.0], "f4").view("u4") >> 16).astype("u2")
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors({"w": entry("BF16", (2,), (0, 4))}, bits.tobytes()))
    np.testing.assert_array_equal(load_safetensors(path)["w"], np.array([1.5, -2.0], "f4"))


@pytest.mark.parametrize(
    "header",
    [
        {"w": entry("F8_E4M3", (8,))},
        {"w": entry(shape=(3,))},
        {"w": entry(shape=(-2,))},
        {"w": entry(shape=(2.0,))},
        {"w": entry(shape=(True, 2))},
        {"w": entry(shape=(1,) * 40)},
        {"w": entry(shape=(2**40, 0), offsets=(0, 0))},
        {"w": entry(shape=(2**40, 2**40, 0), offsets=(0, 0))},
        {"w": entry(offsets=(8, 0))},
        {"w": entry(offsets=(8, 16))},
        {"w": entry(offsets=(0, 8, 8))},
        {"w": entry(more=1)},
        {"w": entry(shape=(1,), offsets=(0, 4))},
        {"w": entry(shape=(1,), offsets=(4, 8))},
        {"w": entry(), "v": entry()},
        {"w": entry(), "v": entry(shape=(1,), offsets=(4, 8))},
        {"w": None},
        [],
        b"{",
        b'{"w": ' + b"[" * 100_000,
        b'{"w": 1, "w": 1}',
        b"\xff\xff",
        b'{"w": ' + b"9" * 5000 + b"}",
    ],
)
def test_bad_safetensors_headers_are_refused(tmp_path, header):
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors(header, bytes(8)))
    with pytest.raises(UnsafeFileError, match="a.safetensors: "):
        load_safetensors(path)


def test_safetensors_header_sizes_are_checked(tmp_path):
    path = tmp_path / "a.safetensors"
    for size in (0, 1, 100, 2**40, 2**64 - 1):
        path.write_bytes(struct.pack("<Q", size) + b'{"w":{}}')
        with pytest.raises(UnsafeFileError, match="impossible size"):
            load_safetensors(path)
    path.write_bytes(b"abc")
    with pytest.raises(UnsafeFileError):
        load_safetensors(path)


def test_truncated_safetensors_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    save_safetensors(path, TENSORS)
    data = path.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(UserError):
            load_safetensors(path)
