"""The command `tools/convert_torch.py`."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import os
import pickle
import re
from pathlib import Path

import numpy as np
import paddle
import pytest
from official import weights

from ppcls.arch import create_model
from ppcls.convert import (
    load_paddle_state_dict,
    load_torch_state_dict,
    save_torch_state_dict,
    verify,
)
from ppcls.utils.pdparams import save_safetensors

ARCH = "HarDNet39_ds"
PATH = Path(__file__).resolve().parents[2] / "tools" / "convert_torch.py"
spec = importlib.util.spec_from_file_location("convert_torch", PATH)
convert_torch = importlib.util.module_from_spec(spec)
spec.loader.exec_module(convert_torch)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "hardnet39ds.pth"
    save_torch_state_dict(path, weights(ARCH))
    return path


@pytest.fixture(autouse=True)
def without_torch(monkeypatch):
    """The quicker reference; test_torch_parity.py has the other."""
    monkeypatch.setattr(verify, "has_torch", lambda: False)


def run(*arguments) -> int:
    return convert_torch.main([str(argument) for argument in arguments])


def test_there_and_back_is_the_same_file(tmp_path, source):
    middle, back = tmp_path / "a.pdparams", tmp_path / "b.pth"
    assert run(source, middle) == 0
    assert run(middle, back, "--to", "torch", "--arch", ARCH) == 0
    assert back.read_bytes() == source.read_bytes()
    model = create_model(ARCH)
    missing, unexpected = model.set_state_dict(paddle.load(str(middle)))
    assert not missing and not unexpected
    np.testing.assert_array_equal(
        model.state_dict()["base.0.conv.weight"].numpy(), weights(ARCH)["base.0.conv.weight"]
    )


def test_safetensors_both_ways(tmp_path, source):
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    assert run(source, first) == 0
    assert run(first, second, "--to", "torch") == 0
    loaded = load_torch_state_dict(second)
    for name, value in weights(ARCH).items():
        np.testing.assert_array_equal(loaded[name], value)
    assert list(load_paddle_state_dict(first))[:3] == [
        "base.0.conv.weight",
        "base.0.norm.weight",
        "base.0.norm.bias",
    ]


def test_the_report(tmp_path, source):
    report_path, json_path = tmp_path / "r.json", tmp_path / "j.json"
    out = tmp_path / "a.pdparams"
    assert run(source, out, "--verify", "--report", report_path, "--json", json_path) == 0
    report = json.loads(report_path.read_text())
    assert report == json.loads(json_path.read_text())
    data = source.read_bytes()
    assert report["source"]["sha256"] == hashlib.sha256(data).hexdigest()
    blob = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
    assert report["source"]["git_blob"] == blob
    assert report["source"]["official_by_sha256_prefix"] is None
    assert report["source"]["official_by_git_blob"] is None
    assert report["arch"] == ARCH
    assert report["tensors"] == {"source": 446, "result": 372}
    assert report["check"]["passed"] is True
    assert report["result"]["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    row = report["statistics"][0]
    values = weights(ARCH)["base.0.conv.weight"].astype(np.float64)
    assert (row["name"], row["shape"]) == ("base.0.conv.weight", [24, 3, 3, 3])
    np.testing.assert_allclose([row["mean"], row["std"]], [values.mean(), values.std()], rtol=1e-9)
    assert row["max_abs"] == np.abs(values).max()


def test_official_files_are_recognised_by_their_checksums(tmp_path, monkeypatch, source):
    sha = hashlib.sha256(source.read_bytes()).hexdigest()[:8]
    row = convert_torch.official_files()[0]
    by_sha = dataclasses.replace(row, file="by-sha.pth", sha256=sha, git_blob=None)
    other = dataclasses.replace(row, file="other.pth", sha256="f" * 8, git_blob="f" * 40)
    monkeypatch.setattr(convert_torch, "official_files", lambda: [by_sha, other])
    found = convert_torch.fingerprint(source)
    assert found["official_by_sha256_prefix"] == "by-sha.pth"
    assert found["official_by_git_blob"] is None
    by_blob = dataclasses.replace(other, file="by-blob.pth", git_blob=found["git_blob"])
    monkeypatch.setattr(convert_torch, "official_files", lambda: [by_blob])
    assert convert_torch.fingerprint(source)["official_by_git_blob"] == "by-blob.pth"


def test_a_failed_check_writes_the_report_and_no_weights(tmp_path, monkeypatch, source, capsys):
    real = convert_torch.torch_to_paddle

    def slipping(*arguments):
        state = real(*arguments)
        state["base.0.norm.bias"] += 0.1
        return state

    monkeypatch.setattr(convert_torch, "torch_to_paddle", slipping)
    out = tmp_path / "a.pdparams"
    out.write_bytes(b"old")
    assert run(source, out, "--verify", "--report", tmp_path / "r.json") == 1
    assert out.read_bytes() == b"old"
    assert json.loads((tmp_path / "r.json").read_text())["check"]["passed"] is False
    assert "the networks differ" in capsys.readouterr().err


def test_mistakes_are_one_line_and_leave_nothing(tmp_path, source, capsys):
    out = tmp_path / "out.pdparams"
    evil = tmp_path / "evil.pth"
    evil.write_bytes(pickle.dumps(os.system, 2))
    broken = weights(ARCH)
    broken["base.0.norm.bias"] = broken["base.0.norm.bias"] * np.nan
    save_safetensors(tmp_path / "nan.safetensors", broken)
    resnet = {"layer1.0.conv1.weight": np.zeros(1), "layer4.0.conv1.weight": np.zeros(1)}
    save_torch_state_dict(tmp_path / "resnet.pth", resnet)
    before = sorted(os.listdir(tmp_path))
    cases = {
        "no such file": ("nothing.pth", out),
        "names '.*system'": (evil, out),
        "they look like a ResNet": (tmp_path / "resnet.pth", out),
        "unknown network 'HarDNet86'": (source, out, "--arch", "HarDNet86"),
        "do not fit HarDNet85": (source, out, "--arch", "HarDNet85"),
        "with 10 classes": (source, out, "--class-num", 10),
        "--class-num: expected 1 or more": (source, out, "--class-num", 0),
        "--tolerance: expected": (source, out, "--tolerance", "nan"),
        "expected a .pdparams or .safetensors": (source, tmp_path / "out.pth"),
        "expected a .pth or .pt or .safetensors": (source, out, "--to", "torch"),
        "expected different files": (source, out, "--json", out),
        "not finite, first base.0.norm.bias": (tmp_path / "nan.safetensors", out),
        "--report .*a folder that exists": (source, out, "--report", tmp_path / "no" / "r.json"),
        "--report .*found a folder": (source, out, "--report", tmp_path),
        "--json .*found a folder": (source, out, "--json", tmp_path),
        "cannot be written": (source, tmp_path / "no" / "out.pdparams"),
    }
    for words, arguments in cases.items():
        assert run(*arguments) == 2, words
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert re.search(words, error), words
        assert sorted(os.listdir(tmp_path)) == before


def test_any_spelling_of_the_network(tmp_path, source):
    out = tmp_path / "a.pdparams"
    assert run(source, out, "--arch", "hardnet_39_ds", "--verify", "--json", tmp_path / "j") == 0
    assert json.loads((tmp_path / "j").read_text())["arch"] == ARCH


def test_a_huge_file_is_refused_unread(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(convert_torch, "fingerprint", lambda path: pytest.fail("hashed"))
    for size, words in ((12 << 30, "expected at most"), (3 << 30, "neither of its containers")):
        with open(tmp_path / "a.pth", "wb") as file:
            file.truncate(size)
        assert run(tmp_path / "a.pth", tmp_path / "a.pdparams") == 2
        assert words in capsys.readouterr().err


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as caught:
        run("-h")
    assert caught.value.code == 0
    assert "tools/convert_torch.py hardnet68.pth HarDNet68.pdparams" in capsys.readouterr().out
