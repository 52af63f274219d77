"""A service that really listens, on a free port of this machine, and a client for it."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ppcls.deploy.serving import ServingConfig
from ppcls.deploy.serving.app import create_app
from ppcls.deploy.serving.server import bind, make_server


class Reply(NamedTuple):
    status: int
    content: Any  # JSON
    headers: dict[str, str]

    @property
    def error(self) -> str:
        return self.content["error"]


class Running(NamedTuple):
    port: int
    service: Any
    engine: Any

    def post(self, body: Any, kind: str, query: str = "", **headers: str) -> Reply:
        return self.ask("POST", f"/predict{query}", body, {"Content-Type": kind, **headers})

    def ask(self, method: str, path: str, body: Any = None, headers: Any = None) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {})
            return read_reply(connection)

    def json(self, content: Any) -> Reply:
        return self.post(json.dumps(content), "application/json")

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)


def read_reply(connection: http.client.HTTPConnection) -> Reply:
    response = connection.getresponse()
    text = response.read()
    is_json = "json" in (response.getheader("Content-Type") or "")
    headers = {key.lower(): value for key, value in response.getheaders()}
    return Reply(response.status, json.loads(text) if is_json else text.decode(), headers)


@contextlib.contextmanager
def running(engine: Any, **config: Any) -> Iterator[Running]:
    """Serve `engine` in a thread; leaving ends the service as SIGTERM would."""
    settings = ServingConfig(**config)
    app = create_app(engine, settings)
    server = make_server(app, settings)
    listener = bind("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    port = listener.getsockname()[1]
    thread.start()
    until(lambda: server.started or not thread.is_alive())
    try:
        yield Running(port, app.state.service, engine)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def until(is_so: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for something that is to happen soon."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def form(*parts: tuple[str, str | None, bytes], boundary: str = "b0undary") -> tuple[bytes, str]:
    """A multipart body of (name, file name, data), and its content type."""
    body = b""
    for name, file_name, data in parts:
        file = "" if file_name is None else f'; filename="{file_name}"'
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
        body += head.encode() + data + b"\r\n"
    return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"
