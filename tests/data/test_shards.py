"""Shards: made by the script, and by the standard library's tarfile as by any other tool."""

import hashlib
import io
import json
import os
import sys
import tarfile
import threading

import numpy as np
import pytest
from PIL import Image
from test_prepare_scripts import script

from ppcls.data.datasets import ImageFolderDataset, WebDataset, shard_index, shards, web_samples
from ppcls.data.loader import build_eval_loader, build_train_loader
from ppcls.data.sampler import SampleKey
from ppcls.utils.errors import DataError

pytest.importorskip("webdataset")

OPS = [
    {"DecodeImage": {"backend": "pil"}},
    {"RandCropImage": {"size": 16, "scale": [0.3, 1.0], "backend": "pil"}},
    {"RandFlipImage": None},
    {"NormalizeImage": {"order": ""}},
]
CLASSES, EACH = 3, 7
make_shards = script("make_shards")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of three kinds of file in a folder per class."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(CLASSES * EACH):
        path = (
            root / f"class{number % CLASSES}" / f"a.{number}{('.png', '.JPEG', '.bmp')[number % 3]}"
        )
        path.parent.mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (20 + number, 41 - number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return root


@pytest.fixture(scope="module")
def shard_dir(folder):
    """The same images in shards of five."""
    out = folder.parent / f"{folder.name}-shards"
    arguments = [str(out), "--image-folder", str(folder), "--max-samples", "5"]
    assert make_shards.main(arguments) == 0
    return out


def batches(build, section, *, workers=0, rank=0, world_size=1, epoch=2):
    config = {
        "dataset": {**section, "transform_ops": OPS},
        "sampler": {"batch_size": 4, "shuffle": build is build_train_loader},
        "loader": {"num_workers": workers},
    }
    loader = build(config, "D", seed=5, rank=rank, world_size=world_size)
    if build is build_train_loader:
        loader.sampler.set_epoch(epoch)
    return [(b.images.numpy(), b.labels.numpy(), b.indices) for b in loader]


@pytest.mark.parametrize("build", [build_train_loader, build_eval_loader])
@pytest.mark.parametrize("workers", [0, 2])
def test_shards_are_the_folder_bit_for_bit(folder, shard_dir, build, workers):
    """In one process and in each of two; every image once."""
    plain = {"name": "ImageFolderDataset", "image_root": str(folder)}
    sharded = {"name": "WebDataset", "shard_dir": str(shard_dir)}
    for world_size in (1, 2):
        seen = []
        for rank in range(world_size):
            options = {"workers": workers, "rank": rank, "world_size": world_size}
            ours = batches(build, sharded, **options)
            wanted = batches(build, plain, **options)
            assert len(ours) == len(wanted) > 0
            for batch, other in zip(ours, wanted, strict=True):
                assert all(np.array_equal(a, b) for a, b in zip(batch, other, strict=True))
            seen += [index for batch in ours for index in batch[2].tolist()]
        assert sorted(seen) == list(range(CLASSES * EACH))


def test_dataset(folder, shard_dir):
    ours, plain = WebDataset(str(shard_dir), OPS), ImageFolderDataset(str(folder), OPS)
    assert len(ours) == len(plain) == 21 and ours.class_num == 3
    assert ours.class_names == ["class0", "class1", "class2"]
    assert ours.labels.dtype == np.int64 and np.array_equal(ours.labels, plain.labels)
    assert [ours.read(i) for i in range(21)] == [plain.read(i) for i in range(21)]
    assert ours.digest() == plain.digest()  # the same names and labels
    assert ours.describe(6) == f"{shard_dir}/shard-000001.tar: 000000006 (class0/a.9.png)"
    assert WebDataset(str(shard_dir), OPS, class_num=5).class_num == 5
    with pytest.raises(DataError, match="expected at most 2 classes"):
        WebDataset(str(shard_dir), OPS, class_num=2)


def test_many_shards_need_few_open_files(shard_dir, monkeypatch):
    monkeypatch.setattr(shards, "_OPEN_SHARDS", 2)
    dataset = WebDataset(str(shard_dir), OPS)
    wanted = [dataset.read(i) for i in range(21)]
    found = {}
    before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0

    def read(start):
        for i in range(start, 21, 3):
            found[i] = dataset.read(i)

    threads = [threading.Thread(target=read, args=(start,)) for start in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(21)] == wanted
    if sys.platform == "linux":
        assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize("address", ["https://host/a.tar", "s3://bucket/x", "pipe:cat a.tar"])
def test_addresses_are_refused(address):
    message = "D.shard_dir: expected a folder, got the address"
    with pytest.raises(DataError, match=message):
        WebDataset(address, OPS, config_path="D")


def test_missing_library(shard_dir, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "webdataset"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(DataError, match=r"D.name: .* pip install -e '.\[shards\]'"):
        WebDataset(str(shard_dir), OPS, config_path="D")


# Shards of other tools, and damaged ones. tarfile writes them.

PNG = io.BytesIO()
Image.new("RGB", (4, 4)).save(PNG, "PNG")
PNG = PNG.getvalue()


def member(name, content=PNG, **fields):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


def pair(key, label="0", suffix="png"):
    return [member(f"{key}.{suffix}"), member(f"{key}.cls", label.encode())]


def write_tar(path, members, **options):
    with tarfile.open(path, "w", **options) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))


def index_of(folder, capsys):
    """The script's exit code and error line."""
    status = make_shards.main([str(folder), "--index"])
    return status, capsys.readouterr().err


FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


@pytest.mark.parametrize("form", FORMATS)
def test_index_of_other_tools_shards(tmp_path, capsys, form):
    """Names of any length and alphabet, folders and other members, in all formats."""
    long = "x" * (60 if form == tarfile.USTAR_FORMAT else 150)
    keys = ["n01/a", f"d{long}/{long}", "./b", "__c__", "BZhang/1AY"]
    keys += [] if form == tarfile.USTAR_FORMAT else ["猫/é"]
    members = [member("n01", b"", type=tarfile.DIRTYPE)]
    for number, key in enumerate(keys):
        members += pair(key, f"{number}\n", "JPG" if number == 1 else "png")
        members.append(member(f"{key}.seg.png", b"another"))
        members.append(member(f"{key}.pickle", b"cos\nsystem\n(S'false'\ntR."))  # never loaded
    write_tar(tmp_path / "a-0.tar", members[:9], format=form)
    write_tar(tmp_path / "a-1.tar", members[9:], format=form)
    assert index_of(tmp_path, capsys) == (0, "")
    dataset = WebDataset(str(tmp_path), [{"DecodeImage": None}])
    assert dataset.labels.tolist() == list(range(len(keys))) and dataset.class_names is None
    assert all(dataset.read(i) == PNG for i in range(len(keys)))
    assert [dataset.index.keys[i] for i in range(len(keys))] == keys
    assert dataset.describe(0) == f"{tmp_path}/a-0.tar: n01/a"
    assert make_shards.main([str(tmp_path), "--verify"]) == 0


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([member("a.png")], "a.png: expected a.cls beside a.png, found none"),
        ([member("a.cls", b"1")], "a.cls: expected one image of the key 'a', found a.cls"),
        ([*pair("a"), member("a.jpg")], "expected one image of the key 'a', found a.jpg, a.png"),
        ([*pair("a"), *pair("a")], "a.png: expected each member once, found 'a.png' twice"),
        ([*pair("a"), *pair("b"), *pair("a")], "a: expected each key once, found it in"),
        (pair("a", "-1"), "a.cls: expected a class number, found b'-1'"),
        (pair("a", "1.5"), "a.cls: expected a class number"),
        (pair("a", ""), "a.cls: expected a class number"),
        ([member("README", b"x")], "expected a member named KEY.SUFFIX, found 'README'"),
        (pair("../a"), "expected a plain relative name of a member, found '../a.png'"),
        (pair("/a"), "expected a plain relative name of a member, found '/a.png'"),
        (pair("a\n"), "expected a plain relative name of a member"),
        ([member("a.png", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")], "found type b'2'"),
        ([member("a.png", b"", type=tarfile.LNKTYPE, linkname="b")], "found type b'1'"),
        ([member("a.png", b"", type=tarfile.CHRTYPE)], "found type b'3'"),
        ([member(f"a.x{i}", b"") for i in range(99)], "expected at most 64 members of a sample"),
    ],
)
def test_what_an_index_refuses(tmp_path, capsys, members, message):
    write_tar(tmp_path / "s.tar", members)
    status, line = index_of(tmp_path, capsys)
    assert status == 2 and f"{tmp_path}/s.tar" in line and message in line
    assert os.listdir(tmp_path) == ["s.tar"]


def header(name, size_field, kind=b"0"):
    block = bytearray(512)
    block[: len(name)] = name
    block[124 : 124 + len(size_field)] = size_field
    block[156:157], block[257:265] = kind, b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


END = bytes(1024)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header(b"a.png", b"-0000001000\0") + END, "a.png: expected a size in octal digits"),
        (header(b"a.png", b"\xff" * 12) + END, "a.png: expected a size in octal digits"),
        (header(b"a.png", b"77777777777\0") + END, "of 'a.png' from byte 512 on, found 1,024"),
        (header(b"a.png", b"00000000000\0"), "expected the end of the archive"),
        (header(b"a.png", b"0\0") + END + b"more" * 128, "expected zeros from byte 512 to the end"),
        (b"junk" * 256, "expected a tar header at byte 0, found other data"),
        (header(b"x", b"77777777\0", b"x") + END, "expected an extended header of at most 65,536"),
        (header(b"x", b"14\0", b"x") + b"0 path=a.png".ljust(512, b"\0") + END, "expected records"),
        (header(b"x", b"15\0", b"x") + b"13 size=99999\n".ljust(512, b"\0") + END, "a pax header"),
        (header(b"\xff.png", b"0\0") + END, "expected a name in UTF-8"),
        (header(b"BZh91AY&SY", b"0\0") + END, "found a compressed one"),
        (b"\x1f\x8b" + bytes(1022), "found a compressed one"),
    ],
)
def test_hostile_archives_are_refused(tmp_path, capsys, content, message):
    (tmp_path / "s.tar").write_bytes(content)
    status, line = index_of(tmp_path, capsys)
    assert status == 2 and f"error: {tmp_path}/s.tar: " in line and message in line


def two_shards(folder):
    folder.mkdir()
    write_tar(folder / "s-0.tar", pair("a") + pair("b", "1"))
    write_tar(folder / "s-1.tar", pair("c") + pair("d", "1"))
    assert make_shards.main([str(folder), "--index"]) == 0


def edit_index(folder, change):
    path = folder / "index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


def edit_table(folder, old, new):
    """Change the table, and its hash in the index."""
    path = folder / "index.tsv"
    text = path.read_bytes()
    assert old in text
    path.write_bytes(text.replace(old, new, 1))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    edit_index(folder, lambda index: index["table"].update(sha256=digest))


def change_shard(index, **fields):
    index["shardlist"][1].update(fields)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: os.truncate(f / "s-1.tar", 4096),
            r"s-1.tar: expected .* \(index\), found 4,096",
        ),
        (
            lambda f: os.remove(f / "s-1.tar"),
            "s-1.tar: expected a shard of the index, found No such",
        ),
        (lambda f: os.remove(f / "index.json"), r"no such index; .*make_shards.py"),
        (lambda f: os.remove(f / "index.tsv"), "index.tsv: no such file"),
        (lambda f: (f / "index.json").write_text("{"), "expected an index in JSON"),
        (
            lambda f: (f / "index.json").write_text("[1]"),
            "expected an index of shards with wids_ver",
        ),
        (lambda f: (f / "index.tsv").write_text("x"), "expected the SHA-256 of index.json"),
        (lambda f: edit_index(f, lambda i: i.pop("table")), "expected a table .* --index makes an"),
        (
            lambda f: edit_index(f, lambda i: change_shard(i, nsamples=3)),
            "expected 5 samples in its",
        ),
        (
            lambda f: edit_index(f, lambda i: change_shard(i, nsamples="2")),
            "nsamples: expected a num",
        ),
        (lambda f: edit_index(f, lambda i: change_shard(i, url="s-0.tar")), "'s-0.tar' twice"),
        (
            lambda f: edit_index(f, lambda i: change_shard(i, url="../s.tar")),
            "expected a file beside",
        ),
        (lambda f: edit_index(f, lambda i: change_shard(i, url="pipe:rm")), "found the address"),
        (lambda f: edit_index(f, lambda i: i.update(class_num=1)), r"s-0.tar: b: expected a class"),
        (lambda f: edit_table(f, b"\tb\t", b"\ta\t"), "s-0.tar: a .*expected each key once"),
        (
            lambda f: edit_table(f, b"\n2048\t", b"\n1024\t"),
            "s-0.tar: b: expected bytes of the shard",
        ),
        (lambda f: edit_table(f, b"\t2048\t", b"\t1048576\t"), "s-0.tar: a: expected bytes"),
        (lambda f: edit_table(f, b"0\t", b"-1\t"), r"index.tsv:1: expected offset, length, start"),
    ],
)
def test_what_is_wrong_at_start(tmp_path, damage, message):
    folder = tmp_path / "shards"
    two_shards(folder)
    damage(folder)
    with pytest.raises(DataError, match=message):
        WebDataset(str(folder), OPS)


def replace(path, start, content):
    """Overwrite a part of a file: its size stays."""
    with open(path, "r+b") as file:
        file.seek(start)
        file.write(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: replace(f / "s-0.tar", 2048, bytes(512)), "expected a tar header at byte 0"),
        (lambda f: replace(f / "s-0.tar", 2048, header(b"b.png", b"-000001000\0")), "octal digits"),
        (
            lambda f: replace(f / "s-0.tar", 2048 + 1536, b"7"),
            "of class 1 .index., found 'b' of cl",
        ),
        (lambda f: replace(f / "s-0.tar", 2048 + 1536, b"x"), "b.cls: expected a class number"),
        (lambda f: replace(f / "s-0.tar", 2048, header(b"b.png", b"%o\0" % len(PNG))), "CRC-32"),
        (
            lambda f: replace(f / "s-0.tar", 2048 + 1024, header(b"c.cls", b"1\0")),
            "found 'b' and 'c'",
        ),
    ],
)
def test_what_is_wrong_when_read(tmp_path, damage, message):
    """Damage that keeps the size is named with shard and key when the sample is read; the others
    can be read. `--verify` finds it too."""
    folder = tmp_path / "shards"
    two_shards(folder)
    damage(folder)
    dataset = WebDataset(str(folder), [{"DecodeImage": None}], on_error="raise")
    with pytest.raises(DataError, match=rf"s-0.tar: [bz]( \(.*\))?: .*{message}"):
        dataset[SampleKey(0, 1)]
    assert dataset[SampleKey(0, 2)].label == 0
    assert make_shards.main([str(folder), "--verify"]) == 2


@pytest.mark.parametrize(
    ("old", "new"), [(b"\tb\t", b"\tz\t"), (b"\t1\tb\t", b"\t0\tb\t"), (b"\n2048\t2048\t", None)]
)
def test_verifying_finds_what_was_made_up(tmp_path, capsys, old, new):
    """A table that was changed together with its hash."""
    folder = tmp_path / "shards"
    two_shards(folder)
    edit_table(folder, old, new or b"\n2560\t1536\t")
    assert make_shards.main([str(folder), "--verify"]) == 2
    assert "s-0.tar: " in capsys.readouterr().err.splitlines()[0]


def test_a_shard_cut_while_in_use(tmp_path):
    folder = tmp_path / "shards"
    two_shards(folder)
    dataset = WebDataset(str(folder), [{"DecodeImage": None}])
    os.truncate(folder / "s-1.tar", 3000)
    with pytest.raises(DataError, match="s-1.tar: d: expected 2,048 bytes from byte 2,048 on, fou"):
        dataset[SampleKey(0, 3)]


def test_skipping_is_asked_for(tmp_path):
    folder = tmp_path / "shards"
    two_shards(folder)
    replace(folder / "s-0.tar", 2048, bytes(512))
    dataset = WebDataset(str(folder), [{"DecodeImage": None}], on_error="skip")
    assert dataset[1] is None and dataset[2] is not None


def test_no_member_is_decoded():
    """A member that webdataset's decoders would unpickle stays bytes."""
    file = io.BytesIO()
    writer = web_samples.open_writer(file)
    writer.write({"__key__": "a", "png": PNG, "cls": b"3", "pth": b"cos\nabort\n(tR."})
    writer.close()
    assert web_samples.read_sample(file.getvalue()[:3072]) == ("a", "png", PNG, 3)
    file.seek(0)
    assert list(web_samples.stream_samples(file)) == [("a", "png", PNG, 3)]


def test_verifying_compares_with_webdataset(shard_dir, monkeypatch, capsys):
    """Its own reader streams every shard; what is read by the index must be the same."""
    import webdataset.tariterators as library

    real = library.tar_file_iterator

    def other(*arguments, **options):
        for file in real(*arguments, **options):
            yield {**file, "data": file["data"][:-1] + b"?"} if "12.jpeg" in file["fname"] else file

    monkeypatch.setattr(library, "tar_file_iterator", other)
    assert make_shards.main([str(shard_dir), "--verify"]) == 2
    line = "shard-000002.tar: 000000012.cls: expected the sample that webdataset reads"
    assert line in capsys.readouterr().err


def test_webdataset_reads_the_shards(folder, shard_dir):
    """As its own users do."""
    import webdataset

    urls = [str(path) for path in sorted(shard_dir.glob("*.tar"))]
    stream = webdataset.WebDataset(urls, shardshuffle=False)
    plain = ImageFolderDataset(str(folder), OPS)
    found = list(stream)
    assert [int(sample["cls"]) for sample in found] == plain.labels.tolist()
    images = [next(sample[k] for k in ("png", "jpeg", "bmp") if k in sample) for sample in found]
    assert images == [plain.read(i) for i in range(len(plain))]


def test_index_format(shard_dir):
    """Promises: the names of files and keys, and wids' own keys."""
    index = json.loads((shard_dir / "index.json").read_text())
    assert set(index) == {
        *("__kind__", "wids_version", "shardlist", "table", "class_num", "class_names")
    }
    assert index["wids_version"] == 1 and index["__kind__"] == shard_index.KIND
    first = index["shardlist"][0]
    assert (first["url"], first["nsamples"]) == ("shard-000000.tar", 5)
    content = (shard_dir / "shard-000000.tar").read_bytes()
    assert first["filesize"] == len(content)
    assert first["sha256"] == hashlib.sha256(content).hexdigest()
