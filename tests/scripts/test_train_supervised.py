"""scripts/train_supervised.sh on tiny commands; `sleep` is replaced, so no test waits long."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "train_supervised.sh"
RESUMES = "Global.auto_resume=True"
LIMIT = 30  # seconds, far more than any test takes

# Appends a line to `runs` and acts by the number of lines: `exits` gives the code of each run.
COUNTED = """\
import os, sys
with open("runs", "a") as file:
    file.write("run\\n")
exits = [int(code) for code in sys.argv[1].split(",")]
sys.exit(exits[min(len(open("runs").readlines()), len(exits)) - 1])
"""
# Says that it is ready, and on a signal takes its time to save before it exits with 75.
SAVES = """\
import signal, sys, time
def save(number, frame):
    print("got", number, flush=True)
    time.sleep(0.3)
    print("saved", flush=True)
    sys.exit(75)
for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(name, save)
print("ready", flush=True)
time.sleep(60)
"""
DEAF = """\
import signal, time
for name in (signal.SIGTERM, signal.SIGINT):
    signal.signal(name, lambda number, frame: print("got", number, flush=True))
print("ready", flush=True)
end = time.time() + 60
while time.time() < end:
    time.sleep(1)
"""
# As the launcher does: a process in a session of its own, which outlives its parent's SIGKILL.
ABANDONS = """\
import os, signal, subprocess, sys, time
if os.path.exists("orphan"):
    sys.exit(0)
orphan = subprocess.Popen([sys.executable, "-c", sys.argv[1]], start_new_session=True)
while not os.path.exists("orphan"):
    time.sleep(0.01)
os.kill(os.getpid(), signal.SIGKILL)
"""
ORPHAN = """\
import os, signal, sys, time
def save(number, frame):
    open("saved", "w").close()
    sys.exit(0)
signal.signal(signal.SIGTERM, {})
with open("writing", "w") as file:
    file.write(str(os.getpid()))
os.rename("writing", "orphan")
time.sleep(60)
"""


@pytest.fixture
def supervisor(tmp_path):
    """Return a function that starts the script in `tmp_path`; whatever is left is killed."""
    stub = tmp_path / "bin" / "sleep"
    stub.parent.mkdir()
    stub.write_text(
        f'#!/bin/sh\n[ "$1" = 0.2 ] || echo "$1" >>{tmp_path}/sleeps\nexec /bin/sleep 0.02\n'
    )
    stub.chmod(0o755)
    started = []

    def start(*argv, real_sleep=False, **options):
        path = os.environ["PATH"] if real_sleep else f"{stub.parent}:{os.environ['PATH']}"
        process = subprocess.Popen(
            ["bash", str(SCRIPT), *map(str, argv)],
            cwd=tmp_path,
            env={**os.environ, "PATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **options,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=LIMIT)


@pytest.fixture
def run(supervisor):
    """Return a function: arguments -> (exit code, standard output, standard error)."""

    def run_to_end(*argv, **options):
        process = supervisor(*argv, **options)
        out, err = process.communicate(timeout=LIMIT)
        return process.returncode, out, err

    return run_to_end


def counted(exits, *options):
    return (*options, "--", sys.executable, "-c", COUNTED, exits, RESUMES)


def count(tmp_path):
    return len((tmp_path / "runs").read_text().splitlines())


def sleeps(tmp_path):
    file = tmp_path / "sleeps"
    return [int(line) for line in file.read_text().splitlines()] if file.exists() else []


def is_alive(pid):
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


def test_success_is_not_repeated(run, tmp_path):
    code, _, err = run(*counted("0"))
    assert code == 0 and count(tmp_path) == 1
    assert "exit code 0" in err and "warning" not in err


def test_failures_are_repeated_until_success(run, tmp_path):
    code, _, err = run(*counted("75,1,0"))
    assert code == 0 and count(tmp_path) == 3
    assert "run 1: exit code 75" in err and "restart 2 of 10 in 10 s" in err


def test_gives_up_after_the_restarts_with_the_command_s_code(run, tmp_path):
    code, _, err = run(*counted("1,75", "--max-restarts", 2))
    assert code == 75 and count(tmp_path) == 3
    assert "giving up: 2 restarts" in err


def test_gives_up_after_quick_failures_in_a_row(run, tmp_path):
    code, _, err = run(*counted("241", "--max-quick", 3))
    assert code == 241 and count(tmp_path) == 3
    assert "(a process of it was killed by SIGTERM)" in err and "giving up: 3 runs" in err


@pytest.mark.parametrize("code", [2, 127])
def test_a_mistake_is_not_repeated(run, tmp_path, code):
    assert run(*counted(str(code)))[0] == code
    assert count(tmp_path) == 1


def test_backoff_doubles_up_to_a_limit(run, tmp_path):
    code, _, _ = run(*counted("1", "--max-restarts", 4, "--max-quick", 0, "--backoff", 50))
    assert code == 1 and sleeps(tmp_path) == [50, 100, 200, 300]


def test_backoff_starts_over_after_a_long_run(run, tmp_path):
    options = ("--max-restarts", 3, "--max-quick", 1, "--stable", 0, "--backoff", 7)
    assert run(*counted("1", *options))[0] == 1
    assert sleeps(tmp_path) == [7, 7, 7]


def test_arguments_and_streams_are_the_command_s(run, tmp_path):
    """Spaces, quotes, stars and empty arguments arrive; relative paths are the caller's."""
    (tmp_path / "show.py").write_text("import sys; print(sys.argv[1:], repr(sys.stdin.read()))")
    arguments = ["a b", "", "*", "it's", '"$HOME"', "--", "-h", "--patience"]
    code, out, err = run(sys.executable, "show.py", *arguments)
    assert code == 0 and out == f"{arguments} ''\n"
    assert err.count(f"warning: no {RESUMES}") == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "expected a command"),
        (("--backoff", "soon", "true"), "--backoff: expected a whole number from 0, got 'soon'"),
        (("--backoff", "08", "true"), "--backoff: expected a whole number from 0, got '08'"),
        (("--backof", "1", "true"), "unknown option --backof"),
        (("--patience",), "--patience: expected a value"),
        (("no such program",), "no such program: no such program"),
    ],
)
def test_a_wrong_call_is_one_line(run, argv, message):
    code, out, err = run(*argv)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1


def test_help(run):
    code, out, err = run("-h")
    assert (code, err) == (0, "") and "--max-restarts" in out and "set -e" not in out


@pytest.mark.parametrize(("name", "passed"), [("TERM", 15), ("INT", 2), ("HUP", 15)])
def test_a_signal_lets_the_command_save_and_ends_it(supervisor, name, passed):
    process = supervisor(sys.executable, "-c", SAVES, RESUMES)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(getattr(signal, f"SIG{name}"))
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 75 and out == f"got {passed}\nsaved\n"
    assert f"no restart: stopped by SIG{name}" in err


def test_a_deaf_command_is_killed(supervisor):
    process = supervisor("--patience", 1, sys.executable, "-c", DEAF, RESUMES)
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.stdout.readline() == "got 15\n"
    process.terminate()  # a second one is passed on too
    assert process.stdout.readline() == "got 15\n"
    _, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 137 and "still running, killing it" in err
    assert "Killed" not in err


def test_a_signal_during_the_backoff_ends_it(supervisor):
    argv = counted("3", "--backoff", 60)
    process = supervisor(*argv, real_sleep=True)
    while "restart 1" not in process.stderr.readline():
        pass
    process.terminate()
    process.communicate(timeout=LIMIT)
    assert process.returncode == 3


@pytest.mark.skipif(not os.path.exists("/proc/self/environ"), reason="Linux only")
@pytest.mark.parametrize("is_deaf", [False, True])
def test_no_process_outlives_its_run(run, tmp_path, is_deaf):
    orphan = ORPHAN.format("signal.SIG_IGN" if is_deaf else "save")
    argv = ("--patience", 1 if is_deaf else 60, sys.executable, "-c", ABANDONS, orphan, RESUMES)
    code, _, err = run(*argv)
    pid = int((tmp_path / "orphan").read_text())
    assert code == 0 and not is_alive(pid)
    assert "exit code 137 (killed by SIGKILL)" in err and f"ending them: {pid}" in err
    assert (tmp_path / "saved").exists() is not is_deaf


def test_a_closed_terminal_leaves_nothing_running(supervisor):
    """Nobody reads its output any more when the signal comes."""
    process = supervisor("--patience", 1, sys.executable, "-c", DEAF, RESUMES)
    pid = int(process.stderr.readline().rpartition(" ")[2])
    assert process.stdout.readline() == "ready\n"
    process.stdout.close()
    process.stderr.close()
    process.send_signal(signal.SIGHUP)
    process.wait(timeout=LIMIT)
    assert not is_alive(pid)
