from __future__ import annotations

import collections
import io
import os
import pickle
import random
import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from ppcls.utils.safe_pickle import UnsafeFileError, restricted_load

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def load(data: bytes, **options):
    return restricted_load(data, where="file.pkl", **options)


def assert_same(found, wanted) -> None:
    """Equal values of equal types, in equal order; arrays may have become native-endian."""
    if isinstance(wanted, np.ndarray):
        assert type(found) is np.ndarray
        assert found.dtype.newbyteorder("=") == wanted.dtype.newbyteorder("=")
        np.testing.assert_array_equal(found, wanted, strict=False)
        assert found.shape == wanted.shape
        return
    assert type(found) is type(wanted)
    if isinstance(wanted, dict):
        assert list(found) == list(wanted)
        for key, value in wanted.items():
            assert_same(found[key], value)
    elif isinstance(wanted, (list, tuple)):
        assert len(found) == len(wanted)
        for left, right in zip(found, wanted, strict=True):
            assert_same(left, right)
    else:
        assert found == wanted


PLAIN = {
    "numbers": [0, 1, 255, 256, 65536, -1, 2**31, -(2**70), 2**1000, 1.5, -0.0, float("inf")],
    "words": ["", "é\n", "x" * 70000, b"", b"\xff\x00", bytearray(b"abc"), None, True, False],
    "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, (4,))],
    "sets": [set(), {1, "a"}, frozenset([2])],
    "complex": 1 + 2j,
    "ordered": collections.OrderedDict(b=1, a={"x": [1]}),
    3: "integer key",
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_data_survives(protocol):
    assert_same(load(pickle.dumps(PLAIN, protocol)), PLAIN)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("dtype", "f2 f4 f8 i1 i8 u1 u2 u8 ? c8 c16 >f4 >i2 S5 U7".split())
def test_arrays_survive(dtype, protocol):
    for shape in ((3, 4), (), (0,), (2, 0, 3), (2000,)):
        values = (np.arange(np.prod(shape)) % 100).reshape(shape).astype(dtype)
        for order in "CF":
            array = np.asarray(values, order=order)
            loaded = load(pickle.dumps([array, array.dtype, array.dtype], protocol))
            assert_same(loaded[0], array)
            assert loaded[0].flags.writeable
            assert loaded[1] == loaded[2] == array.dtype


def test_scalars_and_shared_objects_survive():
    shared = [1]
    wanted = {"best": np.float64(0.5), "count": np.int32(3), "a": shared, "b": shared}
    loaded = load(pickle.dumps(wanted, 2))
    assert_same(loaded, wanted)
    assert loaded["a"] is loaded["b"]


def test_shared_dtypes_are_not_touched():
    load(pickle.dumps(np.zeros(3, ">f4"), 2))
    assert np.dtype("f4").isnative and np.dtype("i8").isnative


@pytest.mark.parametrize("module", [b"numpy.core", b"numpy._core"])
def test_both_spellings_of_numpy(module):
    data = pickle.dumps(np.arange(3), 2)
    for spelling in (b"numpy._core", b"numpy.core"):
        data = data.replace(b"c" + spelling + b".multiarray", b"c" + module + b".multiarray")
    assert b"c" + module in data
    np.testing.assert_array_equal(load(data), np.arange(3))


def test_source_may_be_a_stream():
    assert load(io.BytesIO(pickle.dumps([1]))) == [1]


def test_too_large_a_source_is_refused():
    with pytest.raises(UnsafeFileError, match="file.pkl: expected at most 10 bytes"):
        load(io.BytesIO(bytes(11)), max_bytes=10)


def python2_string(text: bytes) -> bytes:
    return b"U" + bytes([len(text)]) + text


def cifar_batch(pixels: bytes, shape: tuple[int, int]) -> bytes:
    """What Python 2's cPickle wrote for a CIFAR batch, protocol 2."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85q\x03"
        + python2_string(b"b")
        + b"q\x04\x87q\x05Rq\x06(K\x01"
        + b"K%cK%c\x86" % shape
        + b"cnumpy\ndtype\nq\x07"
        + python2_string(b"u1")
        + b"K\x00K\x01\x87Rq\x08(K\x03"
        + python2_string(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + python2_string(pixels)
        + b"tb"
    )
    names = b"]q\x09(" + python2_string(b"a.png") + python2_string(b"b\xc3.png") + b"e"
    return (
        b"\x80\x02}q\x00("
        + (python2_string(b"data") + array + python2_string(b"filenames") + names)
        + (python2_string(b"labels") + b"](K\x06K\x09e")
        + b"u."
    )


@pytest.mark.parametrize("encoding", ["bytes", "latin1"])
def test_cifar_batches_of_python_2(encoding):
    pixels = bytes(range(250, 256)) + bytes(range(6))
    data = cifar_batch(pixels, (2, 6))
    wanted = pickle.loads(data, encoding=encoding)
    loaded = load(data, encoding=encoding)
    assert_same(loaded, wanted)
    key = b"data" if encoding == "bytes" else "data"
    assert loaded[key].tobytes() == pixels


def test_python_2_text_needs_an_encoding():
    with pytest.raises(UnsafeFileError):
        load(cifar_batch(bytes([255] * 12), (2, 6)))


# Hostile files ------------------------------------------------------------------------------------


class Bomb:
    """Pickles as a call of `function` on `args`."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def test_the_bombs_are_live(tmp_path):
    """Otherwise the tests below prove nothing."""
    sentinel = tmp_path / "sentinel"
    pickle.loads(pickle.dumps(Bomb(os.system, f"echo > {sentinel}")))
    assert sentinel.exists()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("call", ["system", "eval", "exec", "getattr", "open", "import"])
def test_calls_are_refused(tmp_path, call, protocol):
    sentinel = tmp_path / "sentinel"
    code = f"open({str(sentinel)!r}, 'w')"
    bomb = {
        "system": Bomb(os.system, f"echo > {sentinel}"),
        "eval": Bomb(eval, code),
        "exec": Bomb(exec, code),
        "getattr": Bomb(getattr, Bomb(__import__, "os"), "system"),
        "open": Bomb(open, str(sentinel), "w"),
        "import": Bomb(__import__, "antigravity"),
    }[call]
    names = "posix.system|nt.system|builtins|io.open"
    with pytest.raises(UnsafeFileError, match=f"file.pkl: .*({names})"):
        load(pickle.dumps({"weights": [1, bomb]}, protocol))
    assert not sentinel.exists()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def array_pickle(state: bytes) -> bytes:
    """An empty array, then a BUILD with `state`."""
    return (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
        + state
        + b"b."
    )


def dtype_of(code: str) -> bytes:
    return b"cnumpy\ndtype\n" + text(code) + b"\x89\x88\x87R"


FLOAT32 = dtype_of("f4") + b"(K\x03" + text("<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
DATA = b"\x89C\x04abcdt"  # not in Fortran's order, four bytes, end of the state
HUGE = struct.pack("<q", 2**40)
HUGE_INT = b"\x8a\x08" + HUGE


def laughs(container: bytes, copies: int, rounds: int) -> bytes:
    """A container of copies of a container of copies... of 100 bytes."""
    data = b"C\x64" + b"x" * 100
    for index in range(rounds):
        data += b"q" + bytes([index]) + container % ((b"h" + bytes([index])) * copies)
    return data + b"."


HOSTILE = {
    "stack_global": text("os") + text("system") + b"\x93.",
    "dotted_name": text("collections") + text("OrderedDict.__init__") + b"\x93.",
    "global_with_newline": text("os\nsystem") + text("x") + b"\x93.",
    "name_of_a_class": b"cnumpy\nndarray\n.",
    "call_of_a_name": b"cnumpy\nndarray\n)R.",
    "instance": b"(ios\nsystem\n.",
    "object": b"(cos\nsystem\no.",
    "newobj_ex": b"ccollections\nOrderedDict\n)}\x92.",
    "newobj": b"cbuiltins\nobject\n)\x81.",
    "extension": b"\x82\x01.",
    "persistent": b"K\x01Q.",
    "persistent_text": b"Pabc\n.",
    "next_buffer": b"\x97.",
    "reduce_of_a_number": b"K\x01)R.",
    "reduce_with_a_list": b"ccollections\nOrderedDict\n]R.",
    "too_many_arguments": b"cbuiltins\nset\n(](K\x01e]]]tR.",
    "codecs_of_another_kind": b"c_codecs\nencode\n" + text("a") + text("utf-16") + b"\x86R.",
    "dict_without_pairs": b"ccollections\nOrderedDict\n](K\x01e\x85R.",
    "bytearray_of_a_size": b"cbuiltins\nbytearray\n" + HUGE_INT + b"\x85R.",
    "attributes_of_a_list": b"]}b.",
    "append_to_a_tuple": b")K\x01a.",
    "item_of_a_list": b"]K\x01K\x02s.",
    "add_to_a_list": b"](K\x01\x90.",
    "list_as_key": b"}]K\x01s.",
    "tuple_as_key": b"}K\x01K\x02\x86K\x01s.",
    "huge_integer_as_key": b"}\x8a\x09" + b"\x01" * 9 + b"K\x01s.",
    "list_in_a_set": b"\x8f(]\x90.",
    "odd_items": b"}(K\x01u.",
    "list_in_itself": b"]\x94h\x00a.",
    "dict_in_itself": b"}\x94K\x01h\x00s.",
    "empty": b"",
    "only_stop": b".",
    "unknown_memo": b"h\x07.",
    "mark_missing": b"K\x01t.",
    "protocol_9": b"\x80\x09N.",
    "announced_terabyte": b"B" + b"\xff" * 4 + b"x.",
    "announced_exabyte": b"\x8e" + b"\xff" * 8 + b"x.",
    "announced_exabyte_of_text": b"\x8d" + b"\xff" * 8 + b"x.",
    "announced_exabyte_of_bytearray": b"\x96" + b"\xff" * 8 + b"x.",
    "not_utf8": b"X\x02\0\0\0\xff\xff.",
    "long_integer": b"\x8b" + struct.pack("<I", 300) + b"\x01" * 300 + b".",
    "negative_size_of_integer": b"\x8b\xff\xff\xff\xff.",
    "long_decimal": b"L" + b"9" * 5000 + b"L\n.",
    "integer_that_is_text": b"Iabc\n.",
    "float_that_is_text": b"Fabc\n.",
    "string_without_quotes": b"Sabc\n.",
    "endless_line": b"c" + b"a" * 5000,
    "object_dtype": array_pickle(b"(K\x01)" + dtype_of("O8") + b"\x89]t"),
    "object_scalar": b"cnumpy.core.multiarray\nscalar\n" + dtype_of("O") + b"C\x08abcdefgh\x86R.",
    "void_dtype": dtype_of("V8") + b".",
    "date_dtype": dtype_of("M8") + b".",
    "huge_dtype": dtype_of("S999999") + b".",
    "dtype_of_no_width": dtype_of("S0") + b".",
    "dtype_list": b"cnumpy\ndtype\n]\x85R.",
    "dtype_commas": dtype_of("f4,f4") + b".",
    "dtype_with_fields": dtype_of("f4") + b"(K\x03" + text("<") + b"N(K\x01t}K\x04K\x01K\x00tb.",
    "dtype_without_state": dtype_of("f4") + b".",
    "array_without_state": b"cnumpy.core.multiarray\n_reconstruct\n"
    b"cnumpy\nndarray\nK\x00\x85C\x01b\x87R.",
    "array_of_a_subclass": b"cnumpy.core.multiarray\n_reconstruct\n"
    b"cnumpy\nmatrix\nK\x00\x85C\x01b\x87R.",
    "array_without_bytes": array_pickle(b"(K\x01K\x02\x85" + FLOAT32 + b"\x89C\x00t"),
    "array_of_terabytes": array_pickle(b"(K\x01" + HUGE_INT + b"\x85" + FLOAT32 + DATA),
    "array_of_negative_size": array_pickle(
        b"(K\x01J\xff\xff\xff\xff\x85" + FLOAT32 + DATA
    ),
    "empty_array_of_huge_sides": array_pickle(
        b"(K\x01(K\x00" + HUGE_INT * 4 + b"t" + FLOAT32 + b"\x89C\x00t"
    ),
    "array_of_many_dimensions": array_pickle(b"(K\x01(" + b"K\x01" * 40 + b"t" + FLOAT32 + DATA),
    "array_with_itself_as_dtype": array_pickle(b"2(K\x01)h\x00\x89C\x00t"),
    "array_built_twice": array_pickle(
        b"(K\x01K\x01\x85" + FLOAT32 + DATA + b"b" + b"(K\x01K\x01\x85" + FLOAT32 + DATA
    ),
    "array_from_buffer_of_objects": b"cnumpy.core.numeric\n_frombuffer\n(C\x08abcdefgh"
    + dtype_of("O8")
    + b"K\x01\x85"
    + text("C")
    + b"tR.",
    "deep_lists": b"]" * 1000 + b"a" * 999 + b".",
    "deep_tuples": b")" + b"\x85" * 100_000 + b".",
    "laughs_of_tuples": b")" + b"2\x86" * 200 + b".",
    "laughs_of_lists": laughs(b"](%se", copies=9, rounds=60),
    "laughs_of_tuples_of_bytes": laughs(b"(%st", copies=30, rounds=9),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused(name):
    with pytest.raises(UnsafeFileError) as caught:
        load(HOSTILE[name])
    message = str(caught.value)
    assert message.startswith("file.pkl: ") and "\n" not in message and len(message) < 300


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_truncation_is_refused(protocol):
    data = pickle.dumps({"a": np.arange(5.0), "b": [1, "x", (2.5, b"y")], "c": {1, 2}}, protocol)
    load(data)
    for size in range(len(data)):
        with pytest.raises(UnsafeFileError):
            load(data[:size])


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_flipped_bits_give_data_or_an_error(protocol):
    data = pickle.dumps({"a": np.arange(5.0), "b": [1, "x", (2.5, b"y")], "c": {1, 2}}, protocol)
    generator = random.Random(protocol)
    refused = 0
    for _ in range(1500):
        damaged = bytearray(data)
        for _ in range(generator.randint(1, 3)):
            damaged[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        try:
            load(bytes(damaged))
        except UnsafeFileError:
            refused += 1
    assert refused > 200


# Each writes `data`, the file; run in a process of its own, where memory can be measured.
GREEDY = {
    "sets": r"data = b'\x8f' * 999_000 + b'.'",
    "too_many_instructions": r"data = b']' * 5_000_000",
    "marks": r"data = b'(' * 5_000_000",
    "memo": r"data = b']\x94' * 499_000 + b'.'",
    "memo_indices": "import struct\ndata = b']' + b''.join(b'r' + struct.pack('<I', n * 4000) "
    "for n in range(990_000)) + b'.'",
    "sets_of_one_list": r"data = b'cbuiltins\nset\n\x94(' + b'K\x00' * 500_000 + b'l\x94' "
    r"+ b'h\x00h\x01\x85R' * 300_000 + b'.'",
    "encodings_of_one_text": r"data = b'c_codecs\nencode\n\x940X' + (10**7).to_bytes(4, 'little') "
    r"+ b'a' * 10**7 + b'\x94' + b'X\x06\0\0\0latin1\x940' "
    r"+ b'h\x00h\x01h\x02\x86R' * 100_000 + b'.'",
    "wide_text": r"data = b'X' + (10**7 + 4).to_bytes(4, 'little') + '\U0001F600'.encode() "
    r"+ b'a' * 10**7 + b'.'",
    "deep": r"data = b'(' * 490_000 + b'l' * 490_000 + b'.'",
}

MEASURE = """
import resource, sys, time
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.monotonic()
try:
    restricted_load(data, where="file.pkl")
except UnsafeFileError:
    pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, time.monotonic() - start)
"""


def measure(code: str) -> tuple[float, float]:
    """Run `code` (which defines `data`) and the load; return megabytes and seconds it took."""
    program = (
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))\n"
        "from ppcls.utils.safe_pickle import UnsafeFileError, restricted_load\n" + code + MEASURE
    )
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.returncode == 0, done.stderr
    kilobytes, seconds = map(float, done.stdout.split())
    return kilobytes / 1024, seconds


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux reports it")
@pytest.mark.parametrize("name", GREEDY)
def test_greedy_pickles_are_bounded(name):
    megabytes, seconds = measure(GREEDY[name])
    assert megabytes < 1000
    assert seconds < 10


def test_reading_is_quick_enough_for_data_sets():
    data = pickle.dumps({"names": [f"{n}.png" for n in range(50_000)], "x": bytes(10**7)}, 2)
    start = time.perf_counter()
    assert len(load(data)["names"]) == 50_000
    assert time.perf_counter() - start < 5


def long_texts():
    size = (1 << 24) + 1
    emoji = "\U0001f600".encode() + b"a" * (size - 4)
    lengths = struct.pack("<I", size), struct.pack("<Q", size)
    return {
        "BINUNICODE": b"X" + lengths[0] + emoji,
        "BINUNICODE8": b"\x8d" + lengths[1] + emoji,
        "BINSTRING": b"T" + lengths[0] + b"a" * size,
        "BINBYTES": b"B" + lengths[0] + emoji,
        "BYTEARRAY8": b"\x96" + lengths[1] + emoji,
        "UNICODE": b"V" + b"a" * size + b"\n",
        "STRING": b"S'" + b"a" * size + b"'\n",
        "encoded": b"c_codecs\nencode\nX" + lengths[0] + emoji + b"X\x06\0\0\0latin1\x86R",
    }


@pytest.mark.parametrize("name", long_texts())
def test_long_texts_are_never_decoded(name):
    data = b"\x80\x04" + long_texts()[name] + b"."
    tracemalloc.start()
    with pytest.raises(UnsafeFileError):
        load(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 << 20  # a line is searched for in copies of up to 16 MB


def test_many_long_texts_are_bounded():
    text = "\U0001f600" + "a" * (1 << 23)
    raw = text.encode()
    data = b"\x80\x04]" + 8 * (b"X" + struct.pack("<I", len(raw)) + raw + b"a") + b"."
    with pytest.raises(UnsafeFileError, match="its texts need far more memory"):
        load(data)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_long_arrays_survive(protocol):
    array = np.random.default_rng(0).integers(0, 256, 20 << 20, np.uint8)
    assert_same(load(pickle.dumps(array, protocol)), array)


def test_long_python2_arrays_survive():
    pixels = np.random.default_rng(0).integers(0, 256, 20 << 20, np.uint8).tobytes()
    long, short = b"T" + struct.pack("<I", len(pixels)) + pixels, python2_string(b"x")
    data = cifar_batch(b"x", (1, 1)).replace(b"K\x01K\x01\x86", b"J\0\0\x40\x01\x85")
    assert short in data
    data = long.join(data.rsplit(short, 1))
    for encoding in ("latin1", "bytes"):
        loaded = load(data, encoding=encoding)
        found = next(value for value in loaded.values() if isinstance(value, np.ndarray))
        assert found.tobytes() == pixels
