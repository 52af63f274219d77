from __future__ import annotations

import json
import os
import pickle
import random
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from torch_files import floats, legacy_file, pickled, storage, tensor, zip_file

from ppcls.convert import load_torch_state_dict
from ppcls.utils.errors import UserError
from ppcls.utils.pickle_writer import Call, Name
from ppcls.utils.safe_pickle import UnsafeFileError

ASSETS = Path(__file__).resolve().parents[1] / "assets" / "torch_ckpt"
CONTAINERS = {"zip": zip_file, "legacy": legacy_file}
WANTED = np.arange(6, dtype="f4").reshape(2, 3)


@pytest.fixture(params=CONTAINERS)
def container(request):
    return CONTAINERS[request.param]


@pytest.fixture
def read(tmp_path):
    def read(content: bytes):
        path = tmp_path / "file.pth"
        path.write_bytes(content)
        return load_torch_state_dict(path)

    return read


@pytest.mark.parametrize("name", ["zip", "legacy", "wrapped_legacy"])
def test_files_pytorch_wrote(name):
    expected = np.load(ASSETS / "expected.npz")
    loaded = load_torch_state_dict(ASSETS / f"{name}.pth")
    assert list(loaded) == json.loads(str(expected["__order__"]))
    for key, value in loaded.items():
        assert (value.dtype, value.shape) == (expected[key].dtype, expected[key].shape)
        np.testing.assert_array_equal(value, expected[key])
        assert value.flags.writeable and value.flags.c_contiguous


@pytest.mark.parametrize(
    "wrapper", ["state_dict", "model_state", "model_state_dict", "model", "ema"]
)
def test_wrappers_and_prefixes_are_removed(container, read, wrapper):
    weights = {"module.a": tensor(storage()), "module.b": tensor(storage())}
    loaded = read(container({"epoch": 3, wrapper: weights, "best": 0.5}))
    assert list(loaded) == ["a", "b"]
    np.testing.assert_array_equal(loaded["b"], WANTED)
    assert list(read(container({"model": {wrapper: weights}}))) == ["a", "b"]


def test_a_prefix_that_not_all_share_stays(container, read):
    weights = {"module.a": tensor(storage()), "b": tensor(storage())}
    assert list(read(container(weights))) == ["module.a", "b"]


def test_only_the_chosen_weights_are_read(read):
    """The optimizer's storage is not even in the file."""
    content = {
        "state_dict": {"w": tensor(storage())},
        "optimizer": {
            "state": {0: {"momentum_buffer": tensor(storage("gone", 10**9), 0, (9,), (1,))}}
        },
        "best_acc1": tensor(storage("gone", 10**9), 5, (), ()),
    }
    np.testing.assert_array_equal(read(zip_file(content))["w"], WANTED)


def test_old_spellings(container, read):
    cuda = storage("0", 6, "FloatStorage", "torch.cuda", "cuda:0")
    parameter = Name("torch._utils", "_rebuild_parameter")
    with_state = Name("torch._utils", "_rebuild_parameter_with_state")
    from_type = Name("torch._tensor", "_rebuild_from_type_v2")
    plain = (cuda, 0, (2, 3), (3, 1))
    content = {
        "cuda": tensor(cuda),
        "first": tensor(cuda, function="_rebuild_tensor"),
        "parameter": Call(parameter, (tensor(cuda), True, OrderedDict())),
        "state": Call(with_state, (tensor(cuda), True, OrderedDict(), {"x": 1})),
        "type": Call(
            from_type,
            (Name("torch._utils", "_rebuild_tensor"), Name("torch", "Tensor"), plain, {"x": 1}),
        ),
    }
    for value in read(container(content)).values():
        np.testing.assert_array_equal(value, WANTED)


def test_harmless_things_beside_the_weights(container, read):
    content = {
        "state_dict": {"w": tensor(storage()), "extra": None, 3: "x"},
        "size": Call(Name("torch", "Size"), ((1, 2),)),
        "device": Call(Name("torch", "device"), ("cuda", 0)),
        "dtype": Name("torch", "float32"),
    }
    assert list(read(container(content))) == ["w"]


def test_a_numpy_scalar_beside_the_weights(read):
    weights = pickled({"w": tensor(storage())})[2:-1]
    scalar = pickle.dumps(np.float64(0.5), 2)[2:-1]
    content = (
        b"\x80\x02}(" + b"X\x0b\0\0\0model_state" + weights + b"X\x04\0\0\0best" + scalar + b"u."
    )
    assert list(read(legacy_file(content))) == ["w"]


VIEWS = {
    "transposed": (0, (3, 2), (1, 3)),
    "offset": (2, (2, 2), (2, 1)),
    "overlapping": (0, (4, 3), (1, 1)),
    "expanded": (1, (5, 3), (0, 1)),
    "zero_dim": (5, (), ()),
    "empty": (0, (0, 7), (7, 1)),
    "empty_at_the_end": (6, (3, 0), (1, 1)),
}


@pytest.mark.parametrize("name", VIEWS)
def test_views(container, read, name):
    offset, shape, stride = VIEWS[name]
    loaded = read(container({"w": tensor(storage(), offset, shape, stride)}))["w"]
    wanted = np.empty(shape, "f4")
    for index in np.ndindex(*shape):
        wanted[index] = offset + sum(i * s for i, s in zip(index, stride, strict=True))
    np.testing.assert_array_equal(loaded, wanted)
    assert loaded.dtype == np.float32 and loaded.flags.c_contiguous and loaded.flags.owndata


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("DoubleStorage", "f8"),
        ("HalfStorage", "f2"),
        ("LongStorage", "i8"),
        ("IntStorage", "i4"),
        ("ShortStorage", "i2"),
        ("CharStorage", "i1"),
        ("ByteStorage", "u1"),
        ("BoolStorage", "?"),
        ("ComplexFloatStorage", "c8"),
        ("ComplexDoubleStorage", "c16"),
    ],
)
def test_dtypes(container, read, kind, dtype):
    content = {"w": tensor(storage(kind=kind))}
    loaded = read(container(content, {"0": floats(dtype=dtype)}))["w"]
    assert loaded.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(loaded, WANTED.astype(dtype))


def test_bfloat16_is_widened(container, read):
    bits = (WANTED.view("u4") >> 16).astype("<u2").tobytes()
    loaded = read(container({"w": tensor(storage(kind="BFloat16Storage"))}, {"0": bits}))["w"]
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, WANTED)


def test_dtypes_without_a_storage_class(read):
    untyped = storage("0", 12, "UntypedStorage", "torch.storage")
    function = Name("torch._utils", "_rebuild_tensor_v3")
    for name, works in (("uint16", True), ("float8_e4m3fn", False), ("complex32", False)):
        args = (untyped, 0, (2, 3), (3, 1), False, OrderedDict(), Name("torch", name))
        data = zip_file({"w": Call(function, args)}, {"0": floats(dtype="<u2")})
        if works:
            np.testing.assert_array_equal(read(data)["w"], WANTED.astype("u2"))
        else:
            with pytest.raises(UnsafeFileError, match=name):
                read(data)


def test_byte_order_of_a_big_endian_machine(read):
    content = {"w": tensor(storage())}
    loaded = read(zip_file(content, {"0": floats(dtype=">f4")}, byteorder=b"big"))["w"]
    np.testing.assert_array_equal(loaded, WANTED)
    assert loaded.dtype.isnative
    with pytest.raises(UnsafeFileError, match="byte order b'middle' is unknown"):
        read(zip_file(content, byteorder=b"middle"))


@pytest.mark.parametrize("folder", ["", "a b/", "x/y/", "data/"])
def test_any_folder_name(read, folder):
    np.testing.assert_array_equal(
        read(zip_file({"w": tensor(storage())}, folder=folder))["w"], WANTED
    )


def test_reading_needs_no_paddle():
    program = "import sys, ppcls.convert; sys.exit('paddle' in sys.modules)"
    root = str(Path(__file__).resolve().parents[2])
    environment = os.environ | {"PYTHONPATH": root}
    assert subprocess.run([sys.executable, "-c", program], env=environment).returncode == 0


# What is refused ----------------------------------------------------------------------------------

BAD_TENSORS = {
    "beyond_the_storage": tensor(storage(), 1),
    "offset_beyond": tensor(storage(), 6, (1,), (1,)),
    "negative_offset": tensor(storage(), -1, (1,), (1,)),
    "negative_stride": tensor(storage(), 5, (2,), (-1,)),
    "negative_size": tensor(storage(), 0, (-1,), (1,)),
    "huge_size": tensor(storage(), 0, (2**60,), (1,)),
    "huge_stride": tensor(storage(), 0, (2,), (2**62,)),
    "wrapping_stride": tensor(storage(), 0, (2, 2), (2**63, 2**63)),
    "huge_empty": tensor(storage(), 0, (0, 2**40, 2**40), (1, 1, 1)),
    "other_rank": tensor(storage(), 0, (2, 3), (1,)),
    "many_dimensions": tensor(storage(), 0, (1,) * 40, (1,) * 40),
    "fractional_size": tensor(storage(), 0, (1.0,), (1,)),
    "true_as_size": tensor(storage(), 0, (True,), (1,)),
    "text_as_size": tensor(storage(), 0, "12", "12"),
    "no_storage": tensor(1),
    "storage_as_tensor": Call(Name("torch._utils", "_rebuild_parameter"), (storage(), 1, 2)),
    "other_persistent": tensor(storage()._replace(key=("module", "x"))),
    "persistent_text": tensor(storage()._replace(key="storage")),
    "unknown_storage": tensor(storage()._replace(key=("storage", "FloatStorage", "0", "cpu", 6))),
    "quantized": tensor(storage(kind="QInt8Storage")),
    "negative_count": tensor(storage(count=-6)),
    "fractional_count": tensor(storage(count=6.0)),
    "number_as_key": tensor(storage(key=0)),
    "view_of_a_storage": tensor(storage("0", 6, "FloatStorage", "torch", "cpu", ("0", 0, 6))),
    "sparse": Call(Name("torch._utils", "_rebuild_sparse_tensor"), (1, 2)),
    "tensor_class_called": Call(Name("torch", "Tensor"), ()),
    "storage_class_called": Call(Name("torch", "FloatStorage"), (10**12,)),
    "device_of_a_list": Call(Name("torch", "device"), ([1],)),
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_impossible_tensors_are_refused(container, read, name):
    with pytest.raises(UnsafeFileError, match=r"file.pth: \S"):
        read(container({"good": tensor(storage()), "w": BAD_TENSORS[name]}))


def test_expanding_beyond_reason_is_refused(container, read):
    bomb = {"w": tensor(storage(), 0, (10**4, 10**4, 10), (0, 0, 0))}
    with pytest.raises(
        UnsafeFileError, match="its tensors need 4,000,000,000 bytes, expected at most"
    ):
        read(container(bomb))
    many = {f"w{i}": tensor(storage(), 0, (10**7,), (0,)) for i in range(10)}
    with pytest.raises(UnsafeFileError, match="need 400,000,000 bytes"):
        read(container(many))


def test_storages_of_another_size_are_refused(container, read):
    def options(data):
        return {"counts": {"0": len(data) // 4}} if container is legacy_file else {}

    content = {"w": tensor(storage())}
    for data in (floats(5), floats(7), b""):
        with pytest.raises(UnsafeFileError, match="storage '0'"):
            read(container(content, {"0": data}, **options(data)))
    twice = {"a": tensor(storage()), "b": tensor(storage(count=3), 0, (3,), (1,))}
    with pytest.raises(UnsafeFileError, match="storage '0' has two sizes"):
        read(container(twice))


def test_missing_storages_are_refused(container, read):
    with pytest.raises(UnsafeFileError, match="'data/1'|'archive/data/1'|storage '1'"):
        read(container({"w": tensor(storage("1"))}, {}))


def test_legacy_storage_lists_are_checked(read):
    content = {"w": tensor(storage())}
    for keys in (["1"], ["0", "0"], [0], [["0"]]):
        with pytest.raises(UnsafeFileError, match="is unknown or there twice"):
            read(legacy_file(content, keys=keys))
    for options in ({"keys": {"0": 1}}, {"version": 1002}, {"version": "x"}):
        with pytest.raises(UnsafeFileError, match="unknown version"):
            read(legacy_file(content, **options))
    with pytest.raises(UnsafeFileError, match="cut short in storage '0'"):
        read(legacy_file(content, counts={"0": 2**62}))
    with pytest.raises(UnsafeFileError, match="found another pickle"):
        read(legacy_file(content, magic=1))


class Bomb:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("place", ["content", "system", "keys"])
def test_nothing_in_a_file_runs(tmp_path, read, place):
    sentinel = tmp_path / "sentinel"
    code = f"open({str(sentinel)!r}, 'w')"
    bombs = [
        Bomb(os.system, f"echo > {sentinel}"),
        Bomb(eval, code),
        Bomb(exec, code),
        Bomb(getattr, Bomb(__import__, "os"), "system"),
        Bomb(subprocess.Popen, ["touch", str(sentinel)]),
    ]
    for bomb in bombs:
        data = pickle.dumps({"x": bomb}, 2)
        if place == "content":
            files = [zip_file(data), legacy_file(data)]
        elif place == "system":
            files = [legacy_file({"w": tensor(storage())}, version=data)]
        else:
            files = [legacy_file({"w": tensor(storage())}, keys=data)]
        for file in files:
            with pytest.raises(UnsafeFileError, match="it names '.*', which weights"):
                read(file)
            assert not sentinel.exists()
    pickle.loads(pickle.dumps(bombs[0]))
    assert sentinel.exists()  # the bombs are live


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"param_groups": [], "state": {}}, "an optimizer's state"),
        ({"epoch": 3}, r"a dict without tensors \(keys: 'epoch'\)"),
        ({}, r"a dict without tensors \(keys: none\)"),
        ([1], "a value of type list"),
        (tensor(storage()), "a single tensor"),
        ({"model": {"model": {"model": {"model": {"model": {"w": 1}}}}}}, "a dict without tensors"),
    ],
)
def test_files_without_weights_are_described(container, read, content, words):
    storages = {"0": floats()} if words == "a single tensor" else {}
    with pytest.raises(UserError, match=f"expected a checkpoint with weights, found {words}"):
        read(container(content, storages))


def test_other_files_are_described(tmp_path, read):
    for data, words in (
        (b"hello", "found neither of its containers"),
        (bytes(257) + b"ustar" + bytes(100), "before 0.1.10"),
        (pickle.dumps({"a": 1}, 2), "found another pickle"),
        (zip_file({}).replace(b"data.pkl", b"tada.pkl"), "found another zip archive"),
        (zip_file({"w": 1}, constants__pkl=b"x"), "found a TorchScript program"),
    ):
        with pytest.raises(UnsafeFileError, match=words):
            read(data)
    with pytest.raises(UserError, match="no such file"):
        load_torch_state_dict(tmp_path / "nothing.pth")
    with pytest.raises(UserError, match="found a folder"):
        load_torch_state_dict(tmp_path)


# The zip container --------------------------------------------------------------------------------


def small_zip() -> bytearray:
    return bytearray(zip_file({"w": tensor(storage())}))


def central(data: bytes, name: bytes) -> int:
    """The offset of an entry's record in the central directory."""
    return data.rindex(b"PK\x01\x02", 0, data.rindex(name))


def test_compressed_archives_are_refused(read):
    with pytest.raises(UnsafeFileError, match="is compressed or encrypted"):
        read(zip_file({"w": tensor(storage())}, compression=zipfile.ZIP_DEFLATED))


def test_archives_that_lie_are_refused(read):
    def patched(name: bytes, offset: int, value: bytes) -> bytes:
        data = small_zip()
        start = central(data, name) + offset
        data[start : start + len(value)] = value
        return bytes(data)

    data = small_zip()
    assert list(read(bytes(data))) == ["w"]
    first = struct.unpack_from("<I", data, central(data, b"archive/data.pkl") + 42)[0]
    record = b"archive/data/0"
    cases = {
        "encrypted": patched(record, 8, b"\x01\x00"),
        "compressed": patched(record, 20, struct.pack("<II", 10, 10**9)),
        "overlaps": patched(record, 20, struct.pack("<II", 10**9, 10**9)),
        "do not agree": patched(record, 42, struct.pack("<I", first)),
        "damaged or cut short": patched(record, 42, struct.pack("<I", 0xFFFFFFF0)),
        "does not match its data": patched(record, 16, b"\0\0\0\0"),
        "its directory": patched(record, 0, b"XX"),
    }
    for words, case in cases.items():
        with pytest.raises(UnsafeFileError, match=words):
            read(case)


def test_doubled_and_overlapping_entries_are_refused(read):
    with pytest.warns(UserWarning):
        double = zip_file({"w": tensor(storage())}, **{"data/0": floats()})
    with pytest.raises(UnsafeFileError, match="names an entry twice"):
        read(double)
    # A second entry whose header lies inside the first one's data.
    inner = zip_file({}, {})
    data = bytearray(zip_file({"w": tensor(storage())}, inner=inner))
    start = data.index(b"PK\x03\x04", data.index(b"archive/inner"))
    record = central(data, b"archive/data.pkl")
    data[record + 42 : record + 46] = struct.pack("<I", start)
    with pytest.raises(UnsafeFileError, match="overlaps another entry"):
        read(bytes(data))


def test_zip64_directories_are_read(read):
    """PyTorch writes them for every file; here the sizes really are in the extra field."""
    data = bytes(small_zip())
    end = data.rindex(b"PK\x05\x06")
    count, size, start = struct.unpack_from("<HII", data, end + 10)
    end64 = b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, count, count, size, start)
    locator = b"PK\x06\x07" + struct.pack("<IQI", 0, end, 1)
    last = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 0xFFFF, 0xFFFF, 2**32 - 1, 2**32 - 1, 0)
    np.testing.assert_array_equal(read(data[:end] + end64 + locator + last)["w"], WANTED)
    locator = b"PK\x06\x07" + struct.pack("<IQI", 0, 2**60, 1)
    with pytest.raises(UnsafeFileError, match="zip64 end"):
        read(data[:end] + end64 + locator + last)


def test_directories_of_millions_are_refused(read):
    data = small_zip()
    end = data.rindex(b"PK\x05\x06")
    count, size, start = struct.unpack_from("<HII", data, end + 10)
    end64 = struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 10**7, 10**7, size, start)
    locator = b"PK\x06\x07" + struct.pack("<IQI", 0, end, 1)
    with pytest.raises(UnsafeFileError, match="or too long"):
        read(bytes(data[:end]) + b"PK\x06\x06" + end64 + locator + bytes(data[end:]))


# Damage -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["zip", "legacy", "wrapped_legacy"])
def test_truncated_files_are_refused(read, name):
    data = (ASSETS / f"{name}.pth").read_bytes()
    for size in [*range(1, len(data), 23), len(data) - 1]:
        with pytest.raises(UserError):
            read(data[:size])


@pytest.mark.parametrize("name", ["zip", "wrapped_legacy"])
def test_flipped_bits_give_weights_or_an_error(read, name):
    data = (ASSETS / f"{name}.pth").read_bytes()
    generator = random.Random(1)
    refused = 0
    for _ in range(400):
        damaged = bytearray(data)
        damaged[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        try:
            read(bytes(damaged))
        except UserError:
            refused += 1
    assert refused > 100


GREEDY = """
import resource, sys, time
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
from ppcls.convert.torch_reader import load_torch_state_dict
from ppcls.utils.errors import UserError
from torch_files import *
if sys.argv[1] == "tensors":
    refs = b"".join(pickled(tensor(storage()))[2:-1] for _ in range(33_000))
    data = legacy_file(b"\\x80\\x02](" + refs + b"e.")
elif sys.argv[1] == "expanded":
    data = zip_file({f"w{i}": tensor(storage(), 0, (10**6,), (0,)) for i in range(66)})
elif sys.argv[1] == "entries":
    records = {f"r{i}": b"" for i in range(60_000)}
    data = zip_file({"w": tensor(storage())}, **records)
with open(sys.argv[2], "wb") as file:
    file.write(data)
del data
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.monotonic()
try:
    load_torch_state_dict(sys.argv[2])
except UserError:
    pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, time.monotonic() - start)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux reports it")
@pytest.mark.parametrize("name", ["tensors", "expanded", "entries"])
def test_greedy_files_are_bounded(tmp_path, name):
    here = Path(__file__).resolve()
    path = os.pathsep.join([str(here.parents[2]), str(here.parent)])
    environment = os.environ | {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", GREEDY, name, str(tmp_path / "file.pth")],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    kilobytes, seconds = map(float, done.stdout.split())
    assert kilobytes < 1000 * 1024
    assert seconds < 10


def with_metadata(metadata):
    view = tensor(storage())
    return {"w": Call(view.function, (*view.args, metadata))}


def test_metadata_of_lazy_views(container, read):
    np.testing.assert_array_equal(read(container(with_metadata({"neg": True})))["w"], -WANTED)
    for metadata in (None, {}, {"neg": False, "conj": True}):
        np.testing.assert_array_equal(read(container(with_metadata(metadata)))["w"], WANTED)
    for metadata in ({"zero": True}, {"neg": 1}, [True]):
        with pytest.raises(UnsafeFileError, match="a tensor has (metadata|the unknown property)"):
            read(container(with_metadata(metadata)))


def test_files_of_many_gigabytes_are_refused(tmp_path):
    for name in ("a.pth", "a.safetensors"):
        with open(tmp_path / name, "wb") as file:
            file.truncate((4 << 30) + 1)
        with pytest.raises(UserError, match="expected at most"):
            load_torch_state_dict(tmp_path / name)
