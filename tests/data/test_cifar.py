"""CIFAR archives as the official ones are laid out, made here with a few images."""

import io
import os
import pickle
import tarfile

import numpy as np
import pytest

from ppcls.data.datasets import Cifar10, Cifar100
from ppcls.utils.errors import DataError

OPS = [{"DecodeImage": None}]
ROWS = 4


def batch(seed, classes, key, **changes):
    rng = np.random.default_rng(seed)
    content = {
        "data": rng.integers(0, 256, (ROWS, 3072), dtype=np.uint8),
        key: rng.integers(0, classes, ROWS).tolist(),
        "filenames": [f"{i}.png" for i in range(ROWS)],
    }
    return {name: item for name, item in {**content, **changes}.items() if item is not None}


def members10(**changes):
    members = {f"data_batch_{i}": batch(i, 10, "labels", **changes) for i in range(1, 6)}
    members["test_batch"] = batch(9, 10, "labels", **changes)
    members["batches.meta"] = {"label_names": [f"name{i}" for i in range(10)]}
    return {f"cifar-10-batches-py/{name}": item for name, item in members.items()}


def members100():
    coarse = {"coarse_labels": [0] * ROWS}
    return {
        "cifar-100-python/train": batch(1, 100, "fine_labels", **coarse),
        "cifar-100-python/test": batch(2, 100, "fine_labels", **coarse),
        "cifar-100-python/meta": {"fine_label_names": [f"fine{i}" for i in range(100)]},
    }


def write(path, members, protocol=2):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            data = content if isinstance(content, bytes) else pickle.dumps(content, protocol)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return str(path)


def test_cifar10(tmp_path):
    members = members10()
    path = write(tmp_path / "cifar-10-python.tar.gz", members)
    train, test = (Cifar10(path, OPS, mode=mode) for mode in ("train", "test"))
    assert (len(train), len(test), train.class_num) == (5 * ROWS, ROWS, 10)
    assert train.class_names[3] == "name3"
    source = members["cifar-10-batches-py/data_batch_2"]
    image, label, index = train[ROWS + 1]
    assert np.array_equal(image, source["data"][1].reshape(3, 32, 32)) and index == ROWS + 1
    assert label == source["labels"][1] and image.dtype == np.float32
    assert train.describe(ROWS + 1) == f"{path}: cifar-10-batches-py/data_batch_2 #1"
    assert os.listdir(tmp_path) == ["cifar-10-python.tar.gz"]  # nothing was unpacked


def test_cifar100_fine_labels(tmp_path):
    members = members100()
    path = write(tmp_path / "cifar-100-python.tar.gz", members)
    dataset = Cifar100(path, OPS, mode="test", class_num=1000)
    assert dataset.labels.tolist() == members["cifar-100-python/test"]["fine_labels"]
    assert (dataset.class_num, dataset.class_names[99]) == (1000, "fine99")


def test_python2_pickles_are_read(tmp_path):
    """The official archives were written by Python 2: str for keys and for the arrays' bytes."""
    rows = np.arange(3072, dtype=np.uint8).reshape(1, 3072)
    text = rows.tobytes()
    pickled = (
        b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b"
        b"\x87R(K\x01K\x01M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ"
        b"\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T" + len(text).to_bytes(4, "little") + text
    ) + b"tbU\x06labels](K\x07eu."
    members = members10()
    members["cifar-10-batches-py/test_batch"] = pickled
    dataset = Cifar10(write(tmp_path / "a.tar.gz", members), OPS, mode="test")
    assert np.array_equal(dataset[0].image, rows[0].reshape(3, 32, 32)) and dataset[0].label == 7


def test_wrong_set_and_missing_members(tmp_path):
    path = write(tmp_path / "a.tar.gz", members100())
    with pytest.raises(DataError, match="expected the CIFAR-10 archive with .*cifar-100-python"):
        Cifar10(path, OPS)
    path = write(tmp_path / "b.tar.gz", members10())
    with pytest.raises(DataError, match="expected the CIFAR-100 archive with .*cifar-10-batches"):
        Cifar100(path, OPS)
    with pytest.raises(DataError, match="at most 5 classes"):
        Cifar10(path, OPS, class_num=5)


def test_missing_or_truncated_archive(tmp_path):
    with pytest.raises(DataError, match="none.tar.gz: cannot read the CIFAR-10 archive: No such"):
        Cifar10(str(tmp_path / "none.tar.gz"), OPS)
    path = write(tmp_path / "a.tar.gz", members10())
    whole = open(path, "rb").read()
    for length in (0, 5, len(whole) // 2):
        with open(path, "wb") as file:
            file.write(whole[:length])
        with pytest.raises(DataError, match="a.tar.gz: "):
            Cifar10(path, OPS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": np.zeros((ROWS, 3071), np.uint8)}, r"expected 'data' of uint8 \[n, 3072\]"),
        ({"data": np.zeros((ROWS, 3072), np.int32)}, "expected 'data' of uint8"),
        ({"data": [1, 2]}, "expected 'data' of uint8"),
        ({"data": None}, "expected the key 'data'"),
        ({"labels": [0] * (ROWS - 1)}, "expected 4 labels, found 3"),
        ({"labels": [0, 0, 0, 10]}, "expected labels from 0 to 9, found 0 to 10"),
        ({"labels": "0123"}, "'labels' to be a list of whole numbers"),
    ],
)
def test_contents_are_checked(tmp_path, changes, message):
    path = write(tmp_path / "a.tar.gz", members10(**changes))
    with pytest.raises(DataError, match=f"data_batch_1: .*{message}"):
        Cifar10(path, OPS)


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_hostile_pickle_runs_nothing(tmp_path):
    trap = tmp_path / "trap"
    members = members10()
    members["cifar-10-batches-py/data_batch_3"] = {"data": Hostile(str(trap)), "labels": []}
    path = write(tmp_path / "a.tar.gz", members)
    with pytest.raises(DataError, match="data_batch_3"):
        Cifar10(path, OPS)
    assert not trap.exists()
