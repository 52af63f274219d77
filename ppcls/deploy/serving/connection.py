"""uvicorn's connection, which by itself waits for ever for the headers of a request."""

from __future__ import annotations

import asyncio
import json

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class Connection(H11Protocol):
    """A connection whose client must send headers in time, and of which there are not too many."""

    header_timeout = 10.0  # seconds
    most = 512  # connections at once
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.most:
            self._refuse("503 Service Unavailable", "the server is busy: too many connections")
        else:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        self._watch()

    def send_400_response(self, msg: str) -> None:
        self._refuse("400 Bad Request", "expected an HTTP/1.1 request, found something else")

    def _watch(self) -> None:
        """Let the clock run while headers are awaited."""
        if self.transport.is_closing() or self.conn.their_state is not h11.IDLE:
            self._stop_timer()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.header_timeout, self._expire)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        self._timer = None
        if not self.transport.is_closing() and self.conn.their_state is h11.IDLE:
            self._refuse(
                "408 Request Timeout", f"expected headers within {self.header_timeout:g} s"
            )

    def _refuse(self, status: str, message: str) -> None:
        """Answer without h11, whose state may allow nothing any more, and close."""
        self._stop_timer()
        if self.cycle is None or self.cycle.response_complete:
            body = json.dumps({"error": message}).encode()
            head = (
                f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.transport.close()


def connection_class(header_timeout: float, most: int) -> type[Connection]:
    """uvicorn makes connections itself, so the limits are the class's."""
    return type(
        "LimitedConnection", (Connection,), {"header_timeout": header_timeout, "most": most}
    )
