"""Nothing is reported to the makers of a runtime."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not importlib.util.find_spec("onnxruntime"), reason="needs onnxruntime")
def test_onnxruntime_leaves_nothing_in_the_home_folder(tmp_path):
    own = ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME", "CI")
    keep = {key: value for key, value in os.environ.items() if key not in own}
    subprocess.run(
        [sys.executable, "-c", "import ppcls.deploy.runtimes.onnxruntime"],
        env=keep | {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
        check=True,
        timeout=120,
    )
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_what_a_user_says_of_onnxruntime_stays(monkeypatch):
    from ppcls.deploy.telemetry import disable_telemetry

    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    disable_telemetry()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "0"
