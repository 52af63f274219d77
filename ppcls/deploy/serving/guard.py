"""Around every request: what no route should have to think of."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.responses import JSONResponse

from ppcls.deploy.serving.metrics import Metrics

logger = logging.getLogger("ppcls")

Message = MutableMapping[str, Any]
App = Callable[[Message, Callable, Callable], Awaitable[None]]

MAX_HEADERS = 100
CLIENT_GONE = 499  # as nginx counts them; nobody sees it
# After an answer that came before the end of the body, so much of the rest is read and dropped. To
# close at once would reset the connection, and with it the answer the client has not read yet.
_LINGER_SECONDS = 2.0
_LINGER_BYTES = 64 * 2**20
_ALWAYS = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]


def error_response(
    status: int, message: str, headers: dict[str, str] | None = None
) -> JSONResponse:
    """The form of every answer that is no result."""
    return JSONResponse({"error": message}, status_code=status, headers=headers)


class Guard:
    """ASGI middleware: limits headers, counts, answers 500 for a bug, closes connections.

    Args:
        paths: those that are counted by name; a client can invent any number of others.
        is_draining: whether every answer should end its connection.
    """

    def __init__(
        self, app: App, *, metrics: Metrics, paths: set[str], is_draining: Callable[[], bool]
    ) -> None:
        self.app = app
        self._metrics = metrics
        self._paths = paths
        self._is_draining = is_draining

    async def __call__(self, scope: Message, receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        exchange = _Exchange(scope, receive, send, self._is_draining)
        try:
            await self._answer(scope, exchange)
        except Exception:  # a bug of ours: the client is told so, and the server stays up
            logger.exception("%s %s failed", scope["method"], scope["path"])
            if exchange.status is not None:
                raise
            response = error_response(500, "the server failed; its log says why")
            await response(scope, exchange.receive, exchange.send)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.requests.labels(path, exchange.status or CLIENT_GONE).inc()
            self._metrics.seconds.labels(path).observe(time.perf_counter() - started)

    async def _answer(self, scope: Message, exchange: _Exchange) -> None:
        if len(scope["headers"]) > MAX_HEADERS:
            response = error_response(431, f"expected at most {MAX_HEADERS} headers, found more")
            await response(scope, exchange.receive, exchange.send)
        else:
            await self.app(scope, exchange.receive, exchange.send)


class _Exchange:
    """One request and its answer."""

    def __init__(
        self, scope: Message, receive: Callable, send: Callable, is_draining: Callable[[], bool]
    ) -> None:
        headers = dict(scope["headers"])
        self.status: int | None = None
        self._receive = receive
        self._send = send
        self._is_draining = is_draining
        length = headers.get(b"content-length", b"0")
        self._is_read = length == b"0" and b"transfer-encoding" not in headers
        # Whoever waits for "100 Continue" sends no body after a refusal.
        self._is_waiting = b"expect" in headers

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._is_read = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", []), *_ALWAYS]
            if self._is_draining() or not self._is_read:
                headers.append((b"connection", b"close"))
            await self._send({**message, "headers": headers})
        elif self._is_read or message.get("more_body", False):
            await self._send(message)
        else:
            await self._send({**message, "more_body": True})
            if not self._is_waiting:
                await self._drop_the_rest()
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _drop_the_rest(self) -> None:
        try:
            await asyncio.wait_for(self._read_on(), _LINGER_SECONDS)
        except asyncio.TimeoutError:
            pass  # the connection is closed now, whatever else comes

    async def _read_on(self) -> None:
        left = _LINGER_BYTES
        while not self._is_read and left > 0:
            left -= len((await self.receive()).get("body", b""))
