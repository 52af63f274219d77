"""tools/serve.py as a running program: its address, its mistakes, and how it ends."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")
pytest.importorskip("python_multipart")

import serve
from serving_fakes import picture

from ppcls.deploy import serving
from ppcls.utils.errors import UserError

SERVER = Path(__file__).with_name("fake_server.py")
ROOT = SERVER.parents[3]
IMAGE = {"Content-Type": "image/png"}


@contextlib.contextmanager
def program(*options, ms="0 0"):
    """The running program and its port."""
    process = subprocess.Popen(
        [sys.executable, str(SERVER), "--model", ".", "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, "FAKE_MS": ms},
    )
    try:
        seen = ""
        while not (found := re.search(r"serving on http://127\.0\.0\.1:(\d+)", seen)):
            line = process.stdout.readline()
            assert line, seen
            seen += line
        yield process, int(found[1])
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()


def connect(port):
    return http.client.HTTPConnection("127.0.0.1", port, timeout=20)


def status_of(connection):
    response = connection.getresponse()
    json.loads(response.read())
    return response.status


def test_sigterm_answers_what_was_sent():
    """Requests that are computed, wait, or have just left on connections old and new."""
    with program("--max-batch", "2", ms="300 0") as (process, port):
        kept = [connect(port) for _ in range(4)]
        for connection in kept:
            connection.request("GET", "/healthz")
            assert status_of(connection) == 200
        busy = [connect(port) for _ in range(6)]
        for connection in busy:
            connection.request("POST", "/predict", picture(), IMAGE)
        time.sleep(0.2)
        for connection in [*kept, *(fresh := [connect(port) for _ in range(4)])]:
            connection.request("POST", "/predict", picture(), IMAGE)
        process.send_signal(signal.SIGTERM)
        assert [status_of(connection) for connection in [*busy, *kept, *fresh]] == [200] * 14
        assert process.wait(20) == 0
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", port), 5)
        assert "Traceback" not in process.stdout.read()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_ends_at_once(number):
    with program() as (process, port), socket.create_connection(("127.0.0.1", port)):
        process.send_signal(number)
        started = time.monotonic()
        assert process.wait(20) == 0 and time.monotonic() - started < 10
        assert process.stdout.read() == ""


def test_not_ready_while_it_ends():
    with program("--max-delay-ms", "0", "--max-batch", "1", ms="800 0") as (process, port):
        kept, busy = connect(port), connect(port)
        kept.request("GET", "/healthz")
        assert status_of(kept) == 200
        busy.request("POST", "/predict", picture(), IMAGE)
        threading.Timer(0.3, kept.request, ["GET", "/healthz"]).start()
        process.send_signal(signal.SIGTERM)
        time.sleep(0.4)
        assert status_of(kept) == 503
        assert status_of(busy) == 200 and process.wait(20) == 0


def test_a_signal_while_it_starts():
    """While the network warms up, which takes a second here."""
    paths = [str(SERVER.parent), str(ROOT / "tools")]
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]; import serve, serving_fakes\n"
        "class Engine(serving_fakes.FakeEngine):\n"
        "    def warm_up(self, *sizes):\n"
        "        print('warming up', flush=True)\n"
        "        super().warm_up(*sizes)\n"
        "serve.load = lambda args: Engine(per_batch=0.1)\n"
        "sys.exit(serve.main(['--model', '.', '--port', '0']))"
    )
    command = [sys.executable, "-c", code, *paths]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout.readline() == "warming up\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


# ---------------------------------------------------------------- mistakes


def test_an_address_that_is_taken(capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert serve.main(["--model", ".", "--port", str(port)]) == 2
    err = capsys.readouterr().err
    assert err == (
        f"error: --host 127.0.0.1 --port {port}: cannot listen there: Address already in use\n"
    )


@pytest.mark.parametrize(
    ("option", "value", "match"),
    [
        ("--max-batch", "0", "--max-batch: expected a number >= 1, got 0"),
        ("--queue", "-1", "--queue: expected a number >= 1, got -1"),
        ("--timeout", "nan", "--timeout: expected a number of seconds > 0, got nan"),
        ("--max-delay-ms", "inf", "--max-delay-ms: expected a number of ms from 0, got inf"),
        ("--port", "70000", "--port 70000: cannot listen there"),
        ("--host", "::x", "--host ::x --port 0: cannot listen there"),
    ],
)
def test_wrong_options(capsys, option, value, match):
    assert serve.main(["--model", ".", "--port", "0", f"{option}={value}"]) == 2
    err = capsys.readouterr().err
    assert match in err and err.startswith("error: ") and err.count("\n") == 1


def test_packages_that_are_not_installed(monkeypatch):
    monkeypatch.setitem(serving._PACKAGES, "no_such_package", "no-such-package")
    with pytest.raises(UserError, match=r"found no no-such-package; .*hardnet-paddle\[serve\]"):
        serving.require_packages()


def test_a_network_that_cannot_warm_up_ends_the_program(tmp_path):
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]; import serve, serving_fakes\n"
        "engine = serving_fakes.FakeEngine(broken={128: ValueError('out of order')})\n"
        "serve.load = lambda args: engine\n"
        "sys.exit(serve.main(['--model', '.', '--port', '0']))"
    )
    paths = [str(SERVER.parent), str(ROOT / "tools")]
    done = subprocess.run(
        [sys.executable, "-c", code, *paths], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert done.returncode == 1 and "out of order" in done.stdout + done.stderr
    assert done.stderr.endswith("error: the service did not start; the lines above say why\n")


@pytest.mark.slow
def test_the_load_script(tmp_path):
    few = "--requests 64 --clients 8 --fuzz 26 --turns 1 --batch-requests 32 --ends 1 --growth 200"
    command = [sys.executable, "scripts/load_server.py", "--model", ".", *few.split()]
    command += ["--server", f"{sys.executable} {SERVER}", "--json", str(tmp_path / "load.json")]
    subprocess.run(command, check=True, timeout=200, cwd=ROOT)
    result = json.loads((tmp_path / "load.json").read_text())
    assert result["load"]["statuses"] == {"200": 64} and result["hostile"]["wrong"] == []
    assert result["end"]["rounds"][0]["lost"] == 0 and result["batching"]["ratio"] > 0
