import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ppcls.data.datasets import ImageFolderDataset, ImageNetDataset

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
OPS = [{"DecodeImage": None}]
WNIDS = ["n00000003", "n00000001", "n00000002"]  # in the order of their ILSVRC ids 1, 2, 3


def script(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# prepare_digits


def tree(folder):
    return {
        path.relative_to(folder): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_digits(tmp_path, capsys):
    datasets = pytest.importorskip("sklearn.datasets")
    digits = script("prepare_digits")
    out = tmp_path / "new" / "digits"
    result = tmp_path / "result.json"
    assert digits.main([str(out), "--json", str(result)]) == 0
    counts = json.loads(result.read_text())
    assert (counts["train"], counts["val"], counts["classes"]) == (1438, 359, 10)
    assert os.listdir(out.parent) == ["digits"]  # no draft left behind
    assert (out / "label_list.txt").read_text().splitlines()[:2] == ["0 zero", "1 one"]

    source = datasets.load_digits()
    numbers = []
    for half in ("train", "val"):
        dataset = ImageNetDataset(str(out), str(out / f"{half}_list.txt"), OPS, class_num=10)
        folder = ImageFolderDataset(str(out / half), OPS)
        assert sorted(folder.labels) == sorted(dataset.labels)
        shares = np.bincount(dataset.labels) / np.bincount(source.target)
        assert np.allclose(shares, {"train": 0.8, "val": 0.2}[half], atol=0.01)
        for index in range(len(dataset)):
            number = int(Path(dataset.describe(index)).stem)
            assert source.target[number] == dataset.labels[index]
            numbers.append(number)
    assert sorted(numbers) == list(range(1797))
    image = dataset[0].image
    assert image.shape == (3, 32, 32) and image.max() > 200
    coarse = image[0].reshape(8, 4, 8, 4).mean(axis=(1, 3)) * 16 / 255
    number = int(Path(dataset.describe(0)).stem)
    assert np.corrcoef(coarse.ravel(), source.images[number].ravel())[0, 1] > 0.95

    before = tree(out)
    capsys.readouterr()
    assert digits.main([str(out)]) == 0
    assert "nothing to do" in capsys.readouterr().out and tree(out) == before


def test_digits_refuses_a_folder_of_something_else(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("keep me")
    assert script("prepare_digits").main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "expected no such folder" in error and error.count("\n") == 1
    assert os.listdir(tmp_path) == ["thesis.txt"]


# prepare_imagenet


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path, "JPEG")


def make_train(root):
    for wnid in WNIDS:
        for i in (10, 9):
            touch(root / "train" / wnid / f"{wnid}_{i}.JPEG")


def make_flat_val(root, ids):
    for number in range(1, len(ids) + 1):
        touch(root / "val" / f"ILSVRC2012_val_{number:08d}.JPEG")
    data = root / "devkit" / "data"
    data.mkdir(parents=True)
    truth = data / "ILSVRC2012_validation_ground_truth.txt"
    truth.write_text("".join(f"{i}\n" for i in ids))
    return truth


def prepare(*args):
    return script("prepare_imagenet").main([str(arg) for arg in args])


def assert_refused(capsys, root, message, *args):
    assert prepare(root, *args) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(root.glob("*list*"))


def test_imagenet_class_folders(tmp_path, capsys):
    make_train(tmp_path)
    for wnid in WNIDS:
        touch(tmp_path / "val" / wnid / "ILSVRC2012_val_00000001.JPEG")
    assert prepare(tmp_path, "--subset") == 0
    assert "6 images" in capsys.readouterr().out
    lines = (tmp_path / "train_list.txt").read_text().splitlines()
    assert lines[0] == "train/n00000001/n00000001_10.JPEG 0" and len(lines) == 6
    assert lines[-1] == "train/n00000003/n00000003_9.JPEG 2"
    dataset = ImageNetDataset(str(tmp_path), str(tmp_path / "val_list.txt"), OPS)
    assert dataset.labels.tolist() == [0, 1, 2] and dataset[2].image.shape == (3, 4, 4)
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_imagenet_flat_val_with_a_text_table(tmp_path):
    make_train(tmp_path)
    truth = make_flat_val(tmp_path, [1, 3, 2, 1])
    synsets = tmp_path / "ids.txt"
    synsets.write_text("".join(f"{i} {wnid} words\n" for i, wnid in enumerate(WNIDS, 1)))
    assert prepare(tmp_path, "--subset", "--ground-truth", truth, "--synsets", synsets) == 0
    # id 1 is n00000003, the last in sorted order: label 2, not 0.
    assert (tmp_path / "val_list.txt").read_text().splitlines() == [
        "val/ILSVRC2012_val_00000001.JPEG 2",
        "val/ILSVRC2012_val_00000002.JPEG 1",
        "val/ILSVRC2012_val_00000003.JPEG 0",
        "val/ILSVRC2012_val_00000004.JPEG 2",
    ]


def test_imagenet_flat_val_with_the_devkit(tmp_path, capsys):
    scipy_io = pytest.importorskip("scipy.io")
    make_train(tmp_path)
    make_flat_val(tmp_path, [2, 1, 3])
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("num_children", "O")]
    rows = [(i, wnid, 0) for i, wnid in enumerate(WNIDS, 1)] + [(4, "n00000009", 3)]
    table = np.array(rows, dtype=kind).reshape(-1, 1)
    scipy_io.savemat(tmp_path / "devkit" / "data" / "meta.mat", {"synsets": table})
    assert prepare(tmp_path, "--subset", "--devkit", tmp_path / "devkit") == 0
    labels = [line[-1] for line in (tmp_path / "val_list.txt").read_text().splitlines()]
    assert labels == ["0", "2", "1"]
    for name in ("train_list.txt", "val_list.txt"):
        (tmp_path / name).unlink()
    data = tmp_path / "devkit" / "data"
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n2\n4\n")  # an inner node
    options = ("--subset", "--devkit", tmp_path / "devkit")
    assert_refused(capsys, tmp_path, "ground_truth.txt:3: expected an ILSVRC id", *options)


def test_imagenet_refuses_nonsense(tmp_path, capsys):
    assert_refused(capsys, tmp_path, "expected a folder, found none")
    make_train(tmp_path)
    (tmp_path / "val").mkdir()
    assert_refused(capsys, tmp_path, "--devkit, or --ground-truth and --synsets, are needed")
    truth = make_flat_val(tmp_path, [1, 2, 3])
    synsets = tmp_path / "devkit" / "ids.txt"
    table = ("--subset", "--ground-truth", truth, "--synsets", synsets)
    synsets.write_text("1 n00000001\n2 cat\n")
    assert_refused(capsys, tmp_path, "ids.txt:2: expected 'id wnid', got '2 cat'", *table)
    synsets.write_text("1 n00000001\n2 n00000002\n")
    assert_refused(capsys, tmp_path, "ground_truth.txt:3: expected an ILSVRC id", *table)
    truth.write_text("1\n2\n")
    assert_refused(capsys, tmp_path, "expected 2 images", *table)
    truth.write_text("1\n2\n1\n")
    assert_refused(capsys, tmp_path, "expected images of class n00000003, found none", *table)
    truth.write_text("1\n2\nx\n")
    assert_refused(capsys, tmp_path, ":3: expected an ILSVRC id, got 'x'", *table)
    (tmp_path / "devkit" / "meta.mat").write_bytes(b"no matlab")
    broken = ("--subset", "--ground-truth", truth, "--synsets", tmp_path / "devkit" / "meta.mat")
    truth.write_text("1\n2\n1\n")
    assert_refused(capsys, tmp_path, "meta.mat", *broken)


def test_imagenet_counts_are_checked(tmp_path, capsys):
    make_train(tmp_path)
    for wnid in WNIDS:
        touch(tmp_path / "val" / wnid / "1.JPEG")
    assert_refused(capsys, tmp_path, "expected 1000 class folders, found 3")
    (tmp_path / "train" / "cats").mkdir()
    assert_refused(capsys, tmp_path, "cats: expected a class folder named like", "--subset")
    (tmp_path / "train" / "cats").rename(tmp_path / "train" / "n00000004")
    assert_refused(capsys, tmp_path, "n00000004: expected images, found none", "--subset")


@pytest.mark.parametrize("name", ["prepare_digits", "prepare_imagenet"])
def test_help_has_an_example(name, capsys):
    with pytest.raises(SystemExit) as caught:
        script(name).main(["-h"])
    assert caught.value.code == 0 and f"python scripts/{name}.py" in capsys.readouterr().out
