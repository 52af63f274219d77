"""Values by declared type, dataclasses, and factories checked against their signatures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from ppcls.utils import schema
from ppcls.utils.errors import ConfigError
from ppcls.utils.registry import Registry


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1e-3", 1e-3),
        ("1E+3", 1000.0),
        (".5", 0.5),
        ("-2", -2.0),
        ("1.0/255.0", 1.0 / 255.0),
        ("1./255.", 1.0 / 255.0),
        (" 3 / 4 ", 0.75),
        ("1/0", None),
        ("1/2/3", None),
        ("1e", None),
        ("nan", None),
        ("inf", None),
        ("0x10", None),
        ("1_000", None),
        ("1+1", None),
        ("", None),
    ],
)
def test_parse_number(text, number):
    assert schema.parse_number(text) == number


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        ("1e-3", float, 1e-3),
        ("1.0/255.0", float, 1.0 / 255.0),
        (1, float, 1.0),
        ("64", int, 64),
        (64.0, int, 64),
        ("1e2", int, 100),
        (True, bool, True),
        ("cpu", str, "cpu"),
        (None, int | None, None),
        (3, int | float, 3),
        ("3", str | float, "3"),
        ("1e-3", float | None, 1e-3),
        ([1, "2"], list[int], [1, 2]),
        ([1, 2], tuple[float, ...], (1.0, 2.0)),
        (["3.0/4.0", 1], list[float], [0.75, 1.0]),
        ([1, "a"], tuple[int, str], (1, "a")),
        ({"a": "1"}, dict[str, int], {"a": 1}),
        ("O1", Literal["O0", "O1"], "O1"),
        (object, Any, object),
    ],
)
def test_coerce(value, annotation, expected):
    found = schema.coerce(value, annotation, "A.b")
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "annotation", "match"),
    [
        ("fast", float, r"^A\.b: expected a number, got 'fast'$"),
        (True, int, "expected an integer, got True"),
        (False, float, "expected a number, got False"),
        (1.5, int, r"expected an integer, got 1\.5"),
        (float("nan"), float, "expected a number, got nan"),
        (float("inf"), float, "expected a number, got inf"),
        ("1e999", float, "expected a number, got '1e999'"),
        ("True", bool, "expected true or false, got 'True'"),
        (1, bool, "expected true or false, got 1"),
        (1, str, "expected text, got 1"),
        (None, int, "expected an integer, got None"),
        ("1,2", list[int], r"expected a list of an integer, got '1,2'"),
        ([1, "x"], list[int], r"^A\.b\[1\]: expected an integer, got 'x'$"),
        ([1], tuple[int, int], r"expected a list of 2 \(an integer, an integer\), got \[1\]"),
        ([1], dict, r"expected a mapping, got \[1\]"),
        ({"k": "x"}, dict[str, int], r"^A\.b\.k: expected an integer"),
        ("x", int | float | None, "expected an integer or a number or null, got 'x'"),
        ("x", int | None, r"^A\.b: expected an integer, got 'x'$"),
        ("O3", Literal["O0", "O1"], "expected one of 'O0', 'O1', got 'O3'"),
        (True, Literal[1, 2], "expected one of 1, 2, got True"),
        (0, None.__class__, "expected null, got 0"),
    ],
)
def test_coerce_names_place_expectation_and_value(value, annotation, match):
    with pytest.raises(ConfigError, match=match):
        schema.coerce(value, annotation, "A.b")


@pytest.mark.parametrize("annotation", [int, float])
def test_an_integer_beyond_every_float(annotation):
    with pytest.raises(ConfigError, match=r"^A\.b: expected "):
        schema.coerce(10**400, annotation, "A.b")


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Outer:
    epochs: int
    inner: Inner = field(default_factory=Inner)
    tags: list[str] = field(default_factory=list)

    def __post_init__(self):
        if self.epochs < 1:
            raise ValueError(f"epochs: expected 1 or more, got {self.epochs}")


def test_parse_dataclass_fills_defaults():
    outer = schema.parse_dataclass(Outer, {"epochs": "3", "inner": {"rate": "1e-3"}}, "Global")
    assert outer == Outer(epochs=3, inner=Inner(rate=1e-3))


@pytest.mark.parametrize(
    ("mapping", "match"),
    [
        ({}, r"^Global: missing key 'epochs'$"),
        ({"epochs": 0}, r"^Global\.epochs: expected 1 or more, got 0$"),
        ({"epoch": 1}, r"^Global: unknown key 'epoch'; did you mean 'epochs'\?$"),
        ({"zzz": 1}, r"^Global: unknown key 'zzz'; known: epochs, inner, tags$"),
        ({"epochs": 1, "inner": {"rat": 1}}, r"^Global\.inner: unknown key 'rat'; did you mean"),
        ({"epochs": 1, "inner": 5}, r"^Global\.inner: expected a mapping, got 5$"),
        ({"epochs": "many"}, r"^Global\.epochs: expected an integer, got 'many'$"),
        ([1], r"^Global: expected a mapping, got \[1\]$"),
    ],
)
def test_parse_dataclass_errors(mapping, match):
    with pytest.raises(ConfigError, match=match):
        schema.parse_dataclass(Outer, mapping, "Global")


def resize(size: int, ratio: float = 1.0, *, class_num: int | None = None):
    if size < 1:
        raise ValueError(f"size: expected 1 or more, got {size}")
    return size, ratio, class_num


def open_ended(size: int = 1, **options):
    if "odd" in options:
        raise TypeError("unexpected keyword argument 'odd'")
    return size, options


def test_build_coerces_and_supplies_what_the_program_knows():
    built = schema.build(resize, {"size": "8", "ratio": "1/4"}, "T", class_num=10, seed=1)
    assert built == (8, 0.25, 10)
    assert schema.build(open_ended, {"size": "2", "free": "3"}, "T") == (2, {"free": "3"})
    assert schema.build(open_ended, None, "T") == (1, {})


@pytest.mark.parametrize(
    ("factory", "params", "match"),
    [
        (resize, {"siz": 1}, r"^T: unknown key 'siz'; did you mean 'size'\?$"),
        (resize, {"size": 1, "class_num": 3}, r"^T: unknown key 'class_num'"),
        (resize, {}, r"^T: missing key 'size'$"),
        (resize, None, r"^T: missing key 'size'$"),
        (resize, {"size": 0}, r"^T\.size: expected 1 or more, got 0$"),
        (resize, {"size": "big"}, r"^T\.size: expected an integer, got 'big'$"),
        (resize, [1], r"^T: expected a mapping of parameters, got \[1\]$"),
        (open_ended, {"odd": 1}, r"^T: unexpected keyword argument 'odd'$"),
    ],
)
def test_build_errors(factory, params, match):
    with pytest.raises(ConfigError, match=match):
        schema.build(factory, params, "T", class_num=10)


def test_a_bug_in_a_factory_is_not_blamed_on_the_user():
    def broken(size: int = 1):
        return size + "text"

    with pytest.raises(TypeError):
        schema.build(broken, {}, "T")


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("Flip", ("Flip", {})),
        ({"Flip": None}, ("Flip", {})),
        ({"Flip": {"prob": 1}}, ("Flip", {"prob": 1})),
    ],
)
def test_split_entry(entry, expected):
    assert schema.split_entry(entry, "T[0]") == expected


@pytest.mark.parametrize("entry", [None, 3, [], {}, {"A": 1, "B": 2}])
def test_split_entry_errors(entry):
    with pytest.raises(ConfigError, match=r"^T\[0\]: expected 'Name' or 'Name: \{parameters\}'"):
        schema.split_entry(entry, "T[0]")


def test_build_from_a_registry():
    registry = Registry("transform")
    registry.register("Resize")(resize)
    assert schema.build_entry(registry, {"Resize": {"size": 3}}, "T[0]") == (3, 1.0, None)
    assert schema.build_named(registry, {"name": "Resize", "size": 3}, "T") == (3, 1.0, None)
    with pytest.raises(ConfigError, match=r"^T\[0\]\.Resize: unknown key 'sise'"):
        schema.build_entry(registry, {"Resize": {"sise": 3}}, "T[0]")
    with pytest.raises(ConfigError, match=r"^T\.name: unknown transform 'Resise'; did you mean"):
        schema.build_named(registry, {"name": "Resise"}, "T")
    for section in (None, {"size": 3}, "Resize"):
        with pytest.raises(ConfigError, match="^T: expected a mapping with a 'name'"):
            schema.build_named(registry, section, "T")
