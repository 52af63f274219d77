import pytest

from ppcls.utils.errors import ConfigError, did_you_mean
from ppcls.utils.registry import Registry


@pytest.fixture
def registry():
    registry = Registry("transform")

    @registry.register()
    def DecodeImage():
        return "decoded"

    registry.register("Crop")(lambda: "cropped")
    return registry


def test_names_are_those_given_or_the_functions_own(registry):
    assert registry.names() == list(registry) == ["Crop", "DecodeImage"]
    assert "Crop" in registry and "copy" not in registry
    assert registry.get("DecodeImage")() == "decoded"


def test_register_returns_the_factory(registry):
    def factory():
        return None

    assert registry.register("Other")(factory) is factory
    assert registry.get("Other") is factory


def test_a_name_is_taken_once_and_both_modules_are_named(registry):
    def other():
        return None

    other.__module__ = "somewhere.else"
    with pytest.raises(
        ValueError, match=f"'Crop' is registered twice: by {__name__} and somewhere"
    ):
        registry.register("Crop")(other)
    assert registry.get("Crop")() == "cropped"


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("DecodeImages", r"^Data: unknown transform 'DecodeImages'; did you mean 'DecodeImage'\?"),
        ("decodeimage", r"did you mean 'DecodeImage'\? known: Crop, DecodeImage$"),
        ("xyz", r"^Data: unknown transform 'xyz'; known: Crop, DecodeImage$"),
        (None, r"unknown transform None"),
        (["Crop"], r"unknown transform \['Crop'\]"),
        ("__class__", r"unknown transform '__class__'"),
    ],
)
def test_an_unknown_name_gets_the_closest(registry, name, match):
    with pytest.raises(ConfigError, match=match):
        registry.get(name, "Data")


def test_did_you_mean_ignores_case_and_stays_silent_when_nothing_is_close():
    assert did_you_mean("HARDNET86", ["HarDNet85", "ResNet"]) == "; did you mean 'HarDNet85'?"
    assert did_you_mean("q", ["HarDNet85"]) == ""
    assert did_you_mean("q", []) == ""
