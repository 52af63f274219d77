"""CIFAR archives as the official ones are laid out, made here with a few images."""

import gzip
import io
import lzma
import os
import pickle
import tarfile

import numpy as np
import pytest

from ppcls.data.datasets import Cifar10, Cifar100, tar_reader
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


# Archives ---------------------------------------------------------------------------------------

TEST = "cifar-100-python/test"
END = bytes(1024)


def header(name, size=0, kind=b"0", field=None):
    """One header with its checksum; `field` replaces the 12 bytes of the size."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    block[124:136] = field or block[124:136]
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def refuse(path, message, *parts, pack=gzip.compress):
    path.write_bytes(pack(b"".join(parts)))
    with pytest.raises(DataError, match=message) as caught:
        Cifar100(str(path), OPS, mode="test")
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and "\n" not in text and text.isprintable()


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("how", ["w", "w:gz"])
def test_tar_formats(tmp_path, form, how):
    members = members100()
    path = tmp_path / "a.tar"
    with tarfile.open(path, how, format=form, pax_headers={"comment": "global"}) as archive:
        folder = tarfile.TarInfo("./cifar-100-python")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        archive.addfile(tarfile.TarInfo("cifar-100-python/" + "long" * 24))
        for name, content in members.items():
            data = pickle.dumps(content, 2)
            info = tarfile.TarInfo(f"./{name}")
            info.size, info.mtime = len(data), 1.5  # in pax an extended header of its own
            archive.addfile(info, io.BytesIO(data))
    dataset = Cifar100(str(path), OPS, mode="test")
    assert dataset.labels.tolist() == members[TEST]["fine_labels"]


@pytest.mark.parametrize("size", [-512, -1024, 100])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_binary_sizes_are_refused(tmp_path, size, pack):
    sign = b"\xff" if size < 0 else b"\x80"
    field = sign + size.to_bytes(11, "big", signed=True)
    parts = (header("a"), header("b", field=field), header("a"), END)
    refuse(tmp_path / "a.tar", "b: expected a size in octal digits", *parts, pack=pack)
    parts = (header("a"), header("b", field=b"-0000001000\0"), header("a"), END)
    refuse(tmp_path / "a.tar", "b: expected a size in octal digits", *parts, pack=pack)


@pytest.mark.parametrize("kind", [b"x", b"g", b"L"])
def test_large_extended_headers_are_refused(tmp_path, kind):
    message = "expected at most 65,536 bytes, found 3,221,225,472"
    refuse(tmp_path / "a.tar.gz", message, header("x", 3 << 30, kind), bytes(1 << 20))


def test_many_members_are_refused(tmp_path):
    refuse(tmp_path / "a.tar.gz", "at most 64 members", header("a") * 5000, END)
    names = "found a, a, a$"
    refuse(tmp_path / "a.tar.gz", names, header("a") * 64, END)


@pytest.mark.parametrize("name", [TEST, "junk"])
def test_large_members_are_refused(tmp_path, name):
    message = f"{name}: expected at most 209,715,200 bytes, found 524,288,000"
    refuse(tmp_path / "a.tar.gz", message, header(name, 500 << 20), bytes(1 << 20))


def test_large_totals_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_reader, "MAX_TOTAL_BYTES", 9000)
    parts = (header("a", 4096), bytes(4096), header("b", 4096), bytes(4096), END)
    refuse(tmp_path / "a.tar.gz", "at most 9,000 bytes, found 9,216 or more", *parts)
    monkeypatch.setattr(tar_reader, "MAX_MEMBER_BYTES", 600)
    parts = (header(TEST, 512), bytes(512), header("cifar-100-python/meta", 512), bytes(512))
    refuse(tmp_path / "a.tar.gz", "meta: expected at most 600 bytes to read", *parts)
    monkeypatch.setattr(tar_reader, "MAX_ARCHIVE_BYTES", 100)
    refuse(tmp_path / "a.tar.gz", "at most 100 bytes", *parts, pack=bytes)


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"6", b"K", b"S"])
def test_links_and_devices_are_refused(tmp_path, kind):
    refuse(tmp_path / "a.tar.gz", "expected a file or a folder", header("a", kind=kind), END)


def test_names_are_shown_on_one_line(tmp_path):
    refuse(tmp_path / "a.tar.gz", r"found a\\nb\\x1b\[0m$", header("a\nb\x1b[0m"), END)


def test_other_compressions_and_damage(tmp_path):
    path, whole = tmp_path / "a.tar", header("junk", 4096) + os.urandom(4096) + END
    packed = bytearray(lzma.compress(whole))
    packed[len(packed) // 2] ^= 0xFF
    refuse(path, "expected a tar or tar.gz archive", packed, pack=bytes)
    refuse(path, "expected a tar or tar.gz archive", bytes(2048))
    refuse(path, "expected a tar header at byte 4,608", whole[:4608], b"x" * 512)
    refuse(path, "expected 4,096 more bytes, found 488: it is cut short", whole[:1000])
    packed = bytearray(gzip.compress(whole))
    packed[10] ^= 0xFF  # the type of the first block
    refuse(path, "expected gzip data, found Error", packed, pack=bytes)
    empty_blocks = bytes.fromhex("1f8b08000000000000ff") + b"\0\0\0\xff\xff" * 200_000
    refuse(path, "expected gzip data, found 0 bytes in", empty_blocks, pack=bytes)


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path, found in (
        (tmp_path / "fifo", "a regular file"),
        (tmp_path, "a file, found a folder"),
        ("/dev/zero", "a regular file"),
    ):
        with pytest.raises(DataError, match=f"archive: expected {found}"):
            Cifar100(str(path), OPS)
