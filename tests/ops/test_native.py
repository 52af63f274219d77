"""The compiled operators are used only where they are those this package calls."""

import logging

import pytest

from ppcls.ops import native


@pytest.mark.skipif(native.load() is None, reason="nothing compiled the operators")
def test_library_of_other_c_is_not_used(monkeypatch, caplog):
    monkeypatch.setattr(native, "VERSION", native.VERSION + 1)
    with caplog.at_level(logging.INFO, logger="ppcls"):
        assert native.load() is None
    assert "expected version" in caplog.text
