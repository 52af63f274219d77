"""scripts/make_shards.py; what its shards give to a network is in test_shards.py."""

import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import test_cifar
from PIL import Image
from test_prepare_scripts import script

from ppcls.data.datasets import Cifar100, WebDataset

pytest.importorskip("webdataset")

make_shards = script("make_shards")


def run(out, *arguments):
    return make_shards.main([str(out), *map(str, arguments)])


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def names(path):
    with tarfile.open(path) as archive:
        return [member.name for member in archive]


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    """Eleven images and a list of them; as arguments."""
    root = tmp_path_factory.mktemp("listed")
    rng = np.random.default_rng(0)
    lines = []
    for number in range(11):
        path = root / f"sub {number % 2}" / f"é{number}.PNG"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(path)
        lines.append(f"sub {number % 2}/é{number}.PNG {number % 4}\n")
    (root / "list.txt").write_text("".join(lines), encoding="utf-8")
    return ["--list", root / "list.txt", "--root", root]


def test_same_bytes_every_time(tmp_path, listed, capsys):
    """Whatever the clock, the files' times and the user are."""
    result = tmp_path / "r.json"
    assert run(tmp_path / "new" / "a", *listed, "--max-samples", 4, "--json", result) == 0
    assert "wrote 3 shards of 0.0 MB with 11 images of 4 classes" in capsys.readouterr().out
    counts = json.loads(result.read_text())
    assert (counts["shards"], counts["samples"], counts["class_num"]) == (3, 11, 4)
    for path in Path(listed[-1]).rglob("*.PNG"):
        os.utime(path, (1, 1))
    assert run(tmp_path / "b", *listed, "--max-samples", 4) == 0
    assert contents(tmp_path / "new" / "a") == contents(tmp_path / "b")
    assert os.listdir(tmp_path / "new") == ["a"]  # no draft is left
    with tarfile.open(tmp_path / "b" / "shard-000002.tar") as archive:  # an independent reader
        found = {m.name: archive.extractfile(m).read() for m in archive}
        assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in archive} == {(0, 0, 0, "", 0o444)}
    root = Path(listed[-1])
    assert found == {
        **{f"{i:09d}.png": (root / f"sub {i % 2}" / f"é{i}.PNG").read_bytes() for i in (8, 9, 10)},
        **{f"{i:09d}.cls": str(i % 4).encode() for i in (8, 9, 10)},
    }
    assert [WebDataset(str(tmp_path / "b"), []).sample_name(i) for i in (0, 10)] == [
        "é0.PNG",
        "é10.PNG",
    ]


def test_limits_prefix_and_names(tmp_path, listed):
    assert run(tmp_path / "a", *listed, "--prefix", "val", "--with-names") == 0
    assert sorted(contents(tmp_path / "a")) == ["index.json", "index.tsv", "val-000000.tar"]
    assert names(tmp_path / "a" / "val-000000.tar")[:3] == [
        f"000000000.{suffix}" for suffix in ("cls", "json", "png")
    ]
    with tarfile.open(tmp_path / "a" / "val-000000.tar") as archive:
        assert json.load(archive.extractfile("000000001.json")) == {"name": "sub 1/é1.PNG"}


def test_bytes_of_a_shard(tmp_path):
    """No shard of several images is larger than --max-mb; a large image has one of its own."""
    rng = np.random.default_rng(0)
    (tmp_path / "images" / "a").mkdir(parents=True)
    for number, side in enumerate((300, 300, 300, 700, 300)):
        pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / "a" / f"{number}.png")
    assert run(tmp_path / "s", "--image-folder", tmp_path / "images", "--max-mb", 1) == 0
    index = json.loads((tmp_path / "s" / "index.json").read_text())
    assert [shard["nsamples"] for shard in index["shardlist"]] == [3, 1, 1]
    assert index["shardlist"][0]["filesize"] <= 10**6 < index["shardlist"][1]["filesize"]
    assert index["class_names"] == ["a"]


def test_shuffling_is_seeded(tmp_path, listed):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert run(tmp_path / name, *listed, "--shuffle-seed", seed) == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    first, other = (WebDataset(str(tmp_path / name), []) for name in "ac")
    order = [first.sample_name(i) for i in range(11)]
    assert sorted(order) == sorted(f"é{i}.PNG" for i in range(11))
    assert order != sorted(order) and order != [other.sample_name(i) for i in range(11)]


def test_pixels_become_png(tmp_path):
    """Pixels as PNG files: the same pixels, class names too."""
    path = test_cifar.write(tmp_path / "cifar-100-python.tar.gz", test_cifar.members100())
    assert run(tmp_path / "s", "--cifar100", path, "--mode", "test") == 0
    ours = WebDataset(str(tmp_path / "s"), [{"DecodeImage": None}])
    source = Cifar100(path, [], mode="test")
    assert np.array_equal(ours.labels, source.labels) and ours.class_names == source.class_names
    assert all(np.array_equal(ours[i].image, source[i].image) for i in range(len(source)))
    assert ours.sample_name(1) == "test_1.png"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--list", "l.txt"], "--list and --root: expected both"),
        (["--image-folder", "none"], "--image-folder: expected a folder, got 'none'"),
        (["--index"], "expected shards (*.tar), found none"),
        (["--verify"], "no such index"),
        (["--index", "--max-mb", "0"], "--max-mb: expected 1 or more, got 0"),
        (["--index", "--prefix", "../a"], "--prefix: expected a file beside the index"),
        (["--index", "--shuffle-seed", "-1"], "--shuffle-seed: expected a number from 0, got -1"),
    ],
)
def test_mistakes(tmp_path, arguments, line, capsys):
    (tmp_path / "s").mkdir()
    assert run(tmp_path / "s", *arguments) == 2
    assert line in capsys.readouterr().err and not list((tmp_path / "s").iterdir())


def test_nothing_is_overwritten_or_left(tmp_path, listed, capsys):
    assert run(tmp_path / "s", *listed) == 0
    before = contents(tmp_path / "s")
    assert run(tmp_path / "s", *listed) == 2
    assert run(tmp_path / "s", "--index") == 2
    assert "expected no index yet" in capsys.readouterr().err and contents(tmp_path / "s") == before
    root = tmp_path / "images"
    (root / "a").mkdir(parents=True)
    (root / "a" / "b.txt").write_text("x")
    (tmp_path / "list.txt").write_text("a/b.txt 0\n")
    assert run(tmp_path / "t", "--list", tmp_path / "list.txt", "--root", root) == 2
    assert "b.txt: expected a name that ends in .jpg" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["images", "list.txt", "s"]


def test_verify_names_every_damaged_shard(tmp_path, listed, capsys):
    assert run(tmp_path / "s", *listed, "--max-samples", 3) == 0
    assert run(tmp_path / "s", "--verify") == 0
    assert "verified 4 shards" in capsys.readouterr().out
    for number in (1, 3):
        path = tmp_path / "s" / f"shard-00000{number}.tar"
        data = bytearray(path.read_bytes())
        data[1600] ^= 1  # inside an image: the size stays
        path.write_bytes(data)
    assert run(tmp_path / "s", "--verify") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and "found 2 damaged; the first: " in lines[2]
    for number, line in zip((1, 3), lines, strict=False):
        assert f"s/shard-00000{number}.tar: expected the SHA-256" in line


def test_progress_has_rate_and_eta(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(make_shards.time, "monotonic", lambda: now[0])
    progress = make_shards.Progress(3000, "images")
    for _ in range(2):
        now[0] += 4
        progress.step(500)
    assert capsys.readouterr().out == "1,000 of 3,000 images, 125 images/s, eta: 16s\n"
