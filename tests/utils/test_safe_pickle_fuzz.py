"""Pickles that no pickler would write: any instructions in any order."""

from __future__ import annotations

import pickle
import struct

import pytest

from ppcls.utils.safe_pickle import UnsafeFileError, restricted_load

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies

SIMPLE = [
    bytes([code]) for code in b"NI()]}\x85\x86\x87\x88\x89\x8ftlduaes20(1Rb\x81\x90\x91\x93\x94"
]
NAMES = [
    (b"collections", b"OrderedDict"),
    (b"builtins", b"set"),
    (b"builtins", b"tuple"),
    (b"builtins", b"bytearray"),
    (b"builtins", b"complex"),
    (b"_codecs", b"encode"),
    (b"numpy", b"dtype"),
    (b"numpy", b"ndarray"),
    (b"numpy.core.multiarray", b"_reconstruct"),
    (b"numpy.core.multiarray", b"scalar"),
    (b"numpy.core.numeric", b"_frombuffer"),
    (b"os", b"system"),
]
instructions = st.one_of(
    st.sampled_from(SIMPLE),
    st.sampled_from(NAMES).map(lambda name: b"c" + name[0] + b"\n" + name[1] + b"\n"),
    st.integers(0, 255).map(lambda number: b"K" + bytes([number])),
    st.integers(0, 5).map(lambda index: b"h" + bytes([index])),
    st.integers(0, 5).map(lambda index: b"q" + bytes([index])),
    st.integers(-(2**63), 2**63 - 1).map(lambda number: b"\x8a\x08" + struct.pack("<q", number)),
    st.floats().map(lambda number: b"G" + struct.pack(">d", number)),
    st.binary(max_size=9).map(lambda raw: b"C" + bytes([len(raw)]) + raw),
    st.sampled_from([b"f4", b"i8", b"S3", b"O8", b"<", b"|", b"latin1", b"C"]).map(
        lambda raw: b"X" + struct.pack("<I", len(raw)) + raw
    ),
    st.binary(min_size=1, max_size=4),
)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@hypothesis.settings(max_examples=500, deadline=None, database=None)
@hypothesis.given(st.lists(instructions, max_size=40))
def test_any_instructions_give_data_or_an_error(parts):
    try:
        result = restricted_load(b"".join(parts) + b".", where="file.pkl")
    except UnsafeFileError as error:
        assert str(error).startswith("file.pkl: ")
    else:
        repr(result)  # what came out can be walked


@hypothesis.settings(max_examples=100, deadline=None, database=None)
@hypothesis.given(values, st.sampled_from([0, 2, 4, 5]))
def test_any_plain_value_survives(value, protocol):
    data = pickle.dumps(value, protocol)
    assert restricted_load(data, where="file.pkl") == value
