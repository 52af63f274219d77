"""The bytes of a request's body: no more than allowed, not for longer than allowed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from ppcls.deploy.serving.budget import Hold
from ppcls.deploy.serving.errors import ClientGone, RequestError

Receive = Callable[[], Awaitable[Mapping[str, Any]]]


async def read_body(
    receive: Receive, headers: Mapping[str, str], hold: Hold, *, max_bytes: int, seconds: float
) -> bytes:
    """Read a body to its end, counting its bytes in `hold` as they arrive.

    Raises:
        RequestError: 413 for more than `max_bytes`, said or found; 415 for a compressed body; 408
            when it did not end in time; 503 when all bodies together are too many bytes.
        ClientGone: the connection was closed before the end.
    """
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise RequestError(415, f"Content-Encoding: expected none, got {encoding[:40]!r}")
    length = headers.get("content-length", "0")
    if length.isdecimal() and int(length) > max_bytes:
        raise _too_large(max_bytes)
    try:
        return await asyncio.wait_for(_read(receive, hold, max_bytes), seconds)
    except asyncio.TimeoutError as error:
        raise RequestError(408, f"expected the body within {seconds:g} s") from error


async def _read(receive: Receive, hold: Hold, max_bytes: int) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk = message.get("body", b"")
        if len(body) + len(chunk) > max_bytes:
            raise _too_large(max_bytes)
        hold.take(len(chunk))
        body += chunk
        if not message.get("more_body", False):
            return bytes(body)


def _too_large(max_bytes: int) -> RequestError:
    return RequestError(413, f"expected a body of at most {max_bytes} bytes, found more")
