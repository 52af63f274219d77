"""Threads and MKL's code path, chosen before Paddle is imported."""

import importlib
import os
import subprocess
import sys
import types
from pathlib import Path
from unittest import mock

import pytest

from ppcls.utils import distributed, runtime
from ppcls.utils.errors import UserError

ROOT = Path(__file__).parents[2]

VARIABLES = (
    "PPCLS_NUM_THREADS",
    "OMP_NUM_THREADS",
    "MKL_DEBUG_CPU_TYPE",
    "PADDLE_TRAINER_ID",
    "PADDLE_TRAINERS_NUM",
    "PADDLE_LOCAL_SIZE",
)


@pytest.fixture
def environment(monkeypatch):
    """A machine of 8 cores without any of the variables; returns `monkeypatch.setenv`."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that what the code sets is undone
        monkeypatch.delenv(name)
    monkeypatch.setattr(runtime, "usable_cores", lambda: 8)

    def set_variables(**values):
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return set_variables


@pytest.fixture
def imports(monkeypatch):
    """Record what is imported by name instead of importing it, as if Paddle were not loaded."""
    names = []

    def record(name):
        names.append(name)
        return mock.MagicMock()

    monkeypatch.setattr(importlib, "import_module", record)
    monkeypatch.delitem(sys.modules, "paddle", raising=False)
    return names


def chosen_threads():
    return runtime._choose_threads(), runtime.os.environ.get("OMP_NUM_THREADS")


@pytest.mark.parametrize(
    ("variables", "threads", "note"),
    [
        ({}, "8", "chosen"),
        ({"OMP_NUM_THREADS": "3"}, "3", "as set"),
        ({"OMP_NUM_THREADS": "1"}, "1", "as set"),
        ({"PPCLS_NUM_THREADS": "2"}, "2", "as set"),
        ({"PPCLS_NUM_THREADS": "2", "OMP_NUM_THREADS": "5"}, "2", "as set"),
        ({"PADDLE_TRAINER_ID": "0", "PADDLE_LOCAL_SIZE": "2"}, "4", "chosen"),
        # The launcher's own import of Paddle leaves this 1 behind.
        (
            {"PADDLE_TRAINER_ID": "1", "PADDLE_LOCAL_SIZE": "2", "OMP_NUM_THREADS": "1"},
            "4",
            "chosen",
        ),
        (
            {"PADDLE_TRAINER_ID": "1", "PADDLE_LOCAL_SIZE": "2", "OMP_NUM_THREADS": "3"},
            "3",
            "as set",
        ),
        ({"PADDLE_TRAINER_ID": "0", "PADDLE_LOCAL_SIZE": "16"}, "1", "chosen"),
    ],
)
def test_threads(environment, variables, threads, note):
    environment(**variables)
    text, value = chosen_threads()
    assert value == threads and text == f"OMP_NUM_THREADS={threads} ({note})"


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", ""])
def test_a_wrong_number_of_threads(environment, value):
    environment(PPCLS_NUM_THREADS=value)
    with pytest.raises(UserError, match=f"PPCLS_NUM_THREADS: expected a whole number.*'{value}'"):
        runtime._choose_threads()


@pytest.mark.parametrize(
    ("cpuinfo", "chosen"),
    [
        ("vendor_id\t: AuthenticAMD\nflags\t: fpu avx avx2 sse\n", True),
        ("vendor_id\t: AuthenticAMD\nflags\t: fpu avx sse\n", False),
        ("vendor_id\t: GenuineIntel\nflags\t: fpu avx avx2\n", False),
        (None, False),
    ],
    ids=["amd", "old-amd", "intel", "no-cpuinfo"],
)
def test_mkl_path(environment, monkeypatch, tmp_path, cpuinfo, chosen):
    path = tmp_path / "cpuinfo"
    if cpuinfo is not None:
        path.write_text(cpuinfo)
    monkeypatch.setattr(runtime, "Path", lambda _: path)
    note = runtime._choose_mkl_path()
    assert (runtime.os.environ.get("MKL_DEBUG_CPU_TYPE") == "5") is chosen
    assert ("MKL_DEBUG_CPU_TYPE=5 (chosen" in note) is chosen


def test_mkl_path_as_the_user_set_it(environment):
    environment(MKL_DEBUG_CPU_TYPE="4")
    assert runtime._choose_mkl_path() == "MKL_DEBUG_CPU_TYPE=4 (as set)"


def test_pillow_is_imported_before_paddle(environment, imports):
    environment(OMP_NUM_THREADS="2")
    assert "OMP_NUM_THREADS=2 (as set)" in runtime.import_paddle()
    assert imports == ["PIL.Image", "paddle"]


def test_a_second_call_says_what_is(environment, monkeypatch):
    environment(OMP_NUM_THREADS="2")
    monkeypatch.setitem(sys.modules, "paddle", types.ModuleType("paddle"))
    assert runtime.import_paddle() == "OMP_NUM_THREADS=2 (Paddle was loaded before)"


def failing_import(error):
    def import_module(name):
        if name == "paddle":
            print("No ccache found. Please be aware", file=sys.stderr)
            print("something that matters", file=sys.stderr)
            raise error
        return types.ModuleType(name)

    return import_module


def test_no_paddle_says_what_to_install(environment, imports, monkeypatch, capsys):
    error = ModuleNotFoundError("No module named 'paddle'", name="paddle")
    monkeypatch.setattr(importlib, "import_module", failing_import(error))
    with pytest.raises(UserError, match="pip install paddlepaddle .CPU.*paddlepaddle-gpu"):
        runtime.import_paddle()
    assert capsys.readouterr().err == "something that matters\n"  # known noise is left out


def test_something_paddle_needs_is_missing(environment, imports, monkeypatch):
    error = ModuleNotFoundError("No module named 'setuptools'", name="setuptools")
    monkeypatch.setattr(importlib, "import_module", failing_import(error))
    with pytest.raises(ModuleNotFoundError, match="setuptools"):
        runtime.import_paddle()


def testusable_cores_is_a_count():
    assert 1 <= runtime.usable_cores() <= 4096


def test_a_single_process_is_rank_0_of_1(environment):
    assert (distributed.rank(), distributed.world_size(), distributed.local_size()) == (0, 1, 1)
    assert not distributed.is_launched()


def test_the_launcher_s_words(environment):
    environment(PADDLE_TRAINER_ID="3", PADDLE_TRAINERS_NUM="4", PADDLE_LOCAL_SIZE="2")
    assert (distributed.rank(), distributed.world_size(), distributed.local_size()) == (3, 4, 2)
    assert distributed.is_launched()


def test_utils_do_not_import_paddle():
    """`-h` and a mistake in a recipe must not wait for it."""
    names = ("cli", "config", "distributed", "legacy_config", "logger", "registry", "runtime")
    imports = "; ".join(f"import ppcls.utils.{name}" for name in (*names, "schema", "seeding"))
    code = f"{imports}; import sys; print(*sorted({{'paddle', 'cv2', 'PIL'}} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""


FAULTS = """
import resource, sys
from ppcls.utils import runtime
print(getattr(runtime, sys.argv[1])())
size = 50_000_000
for _ in range(20):
    b"x" * size
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_freed_memory_is_kept_or_returned_unless_the_user_chose():
    def run(what, **environment):
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
        done = subprocess.run(
            [sys.executable, "-c", FAULTS, what],
            capture_output=True,
            text=True,
            check=True,
            env={**clean, **environment},
        )
        was_set, faults = done.stdout.split()
        return was_set, int(faults)

    kept, few = run("keep_freed_memory")
    returned, many = run("return_freed_memory")
    left, _ = run("keep_freed_memory", MALLOC_ARENA_MAX="8")
    assert (kept, returned, left) == ("True", "True", "False")
    assert few + 15 * 50_000_000 / 4096 < many
