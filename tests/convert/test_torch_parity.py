"""Comparisons with PyTorch itself."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from official import weights

from ppcls.convert import (
    load_paddle_state_dict,
    load_torch_state_dict,
    paddle_to_torch,
    recognise,
    save_torch_state_dict,
    torch_to_paddle,
    verify,
)
from ppcls.utils.pdparams import save_pdparams

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity


def make_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(7, 5)
    )


@pytest.mark.parametrize("new_container", [True, False])
def test_training_checkpoints(tmp_path, new_container):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])
    model(torch.randn(2, 3, 9, 9)).sum().backward()
    optimizer.step()
    content = {
        "epoch": 3,
        "arch": "x",
        "state_dict": torch.nn.DataParallel(model).state_dict(),
        "best_acc1": torch.tensor([71.5]),
        "best_iou": np.float64(0.5),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "size": torch.Size([1, 2]),
        "device": torch.device("cpu"),
        "dtype": torch.float16,
        "parameter": model[0].weight,
    }
    path = tmp_path / "a.pth"
    torch.save(content, path, _use_new_zipfile_serialization=new_container)
    loaded = load_torch_state_dict(path)
    assert list(loaded) == list(model.state_dict())
    for name, value in model.state_dict().items():
        assert loaded[name].shape == tuple(value.shape)
        np.testing.assert_array_equal(loaded[name], value.numpy())


@pytest.mark.parametrize("new_container", [True, False])
@pytest.mark.parametrize(
    "dtype",
    "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64 complex128 "
    "uint16 uint32 uint64".split(),
)
def test_dtypes_and_views(tmp_path, dtype, new_container):
    base = torch.arange(60).reshape(3, 4, 5).to(getattr(torch, dtype))
    views = {
        "plain": base,
        "transposed": base.permute(2, 0, 1),
        "part": base[1:, ::2, 3],
        "expanded": base[0, 0].expand(6, 5),
        "zero_dim": base[2, 3, 4],
        "empty": base[:0],
    }
    if dtype.startswith(("float", "bfloat")):
        views["parameter"] = torch.nn.Parameter(base)
    path = tmp_path / "a.pth"
    torch.save(views, path, _use_new_zipfile_serialization=new_container)
    loaded = load_torch_state_dict(path)
    for name, value in views.items():
        wide = value.detach().float() if dtype == "bfloat16" else value.detach()
        assert loaded[name].dtype == wide.numpy().dtype
        np.testing.assert_array_equal(loaded[name], wide.numpy())


def test_random_views_agree(tmp_path):
    generator = np.random.default_rng(0)
    base = torch.arange(1000.0)
    views = {}
    for index in range(200):
        shape = generator.integers(0, 5, generator.integers(0, 5)).tolist()
        stride = generator.integers(0, 60, len(shape)).tolist()
        views[f"v{index}"] = torch.as_strided(base, shape, stride, int(generator.integers(0, 30)))
    for new_container in (True, False):
        torch.save(views, tmp_path / "a.pth", _use_new_zipfile_serialization=new_container)
        loaded = load_torch_state_dict(tmp_path / "a.pth")
        for name, value in views.items():
            np.testing.assert_array_equal(loaded[name], value.numpy())


@pytest.mark.parametrize("mmap", [False, True])
def test_pytorch_reads_what_we_write(tmp_path, mmap):
    state = {name: value.numpy() for name, value in make_model().state_dict().items()}
    state |= {
        "half": np.arange(3, dtype="f2"),
        "big_endian": np.arange(3, dtype=">f8"),
        "transposed": np.arange(6, dtype="f4").reshape(2, 3).T,
        "bool": np.array([True, False]),
        "complex": np.array([1 + 2j], "c8"),
        "empty": np.zeros((0, 3), "f4"),
    }
    path = tmp_path / "a.pth"
    save_torch_state_dict(path, state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = torch.load(path, weights_only=True, mmap=mmap)
    assert list(loaded) == list(state)
    for name, value in state.items():
        np.testing.assert_array_equal(loaded[name].numpy(), value)
    make_model().load_state_dict({name: loaded[name] for name in make_model().state_dict()})
    torch.save(loaded, tmp_path / "b.pth")
    again = load_torch_state_dict(tmp_path / "b.pth")
    assert all(np.array_equal(again[name], state[name]) for name in state)


def test_verification_with_pytorch():
    state = weights("HarDNet39_ds")
    converted = torch_to_paddle(state, "HarDNet39_ds")
    result = verify.verify(state, converted, "HarDNet39_ds", 1000, size=64)
    assert result["passed"] and result["reference"] == "torch"
    assert result["float32"]["logits_max_abs_error"] < 1e-4
    assert result["float64"]["logits_relative_error"] < 1e-10
    converted["base.14.3.bias"] = converted["base.14.3.bias"] + 2e-3
    result = verify.verify(state, converted, "HarDNet39_ds", 1000, size=64)
    assert not result["float32"]["passed"] and not result["float64"]["passed"]


@pytest.mark.parametrize("new_container", [True, False])
@pytest.mark.parametrize("arch", ["HarDNet39_ds", "HarDNet68_ds", "HarDNet68", "HarDNet85"])
def test_every_network_there_and_back(tmp_path, arch, new_container):
    wanted = {name: torch.from_numpy(value) for name, value in weights(arch, 1).items()}
    wanted["base.0.norm.num_batches_tracked"] = torch.tensor(7)  # Paddle cannot keep it
    torch.save(wanted, tmp_path / "a.pth", _use_new_zipfile_serialization=new_container)
    given = load_torch_state_dict(tmp_path / "a.pth")
    assert recognise(given) == arch
    save_pdparams(tmp_path / "a.pdparams", torch_to_paddle(given, arch))
    converted = load_paddle_state_dict(tmp_path / "a.pdparams")
    if new_container:  # both containers hold the same weights, as is compared below
        result = verify.verify(given, converted, arch, 1000, size=64)
        assert result["passed"] and result["reference"] == "torch"
        assert result["float32"]["limit"] == verify.FLOAT32_TOLERANCE == 1e-4
    save_torch_state_dict(tmp_path / "b.pth", paddle_to_torch(converted, arch))
    found = torch.load(tmp_path / "b.pth", weights_only=True)
    assert list(found) == list(wanted)
    for name, value in found.items():
        if name.endswith("num_batches_tracked"):
            assert value.dtype == torch.int64 and value == 0
        else:
            assert value.numpy().tobytes() == wanted[name].numpy().tobytes(), name


@pytest.mark.parametrize("new_container", [True, False])
def test_lazy_signs_and_conjugates(tmp_path, new_container):
    base = torch.tensor([1 + 2j, 3 - 4j])
    views = {"conj": base.conj(), "neg": base.conj().imag, "both": torch._neg_view(base.conj())}
    assert views["neg"].is_neg() and views["both"].is_conj() and views["both"].is_neg()
    for name, value in views.items():  # PyTorch does not save one storage as two dtypes
        path = tmp_path / f"{name}.pth"
        torch.save({name: value}, path, _use_new_zipfile_serialization=new_container)
        wanted = value.resolve_conj().resolve_neg().numpy()
        np.testing.assert_array_equal(load_torch_state_dict(path)[name], wanted)
