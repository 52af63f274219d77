"""A small HTTP client that keeps many connections busy and counts what becomes of each request."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Tally:
    """What became of the requests of all clients."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)  # of each answered request
    refused: int = 0  # connections the server did not take
    lost: list[float] = field(default_factory=list)  # when a request that got no answer was sent
    elapsed: float = 0.0

    @property
    def answered(self) -> int:
        return len(self.seconds)

    @property
    def throughput(self) -> float:
        """Answers per second."""
        return self.answered / self.elapsed


class Clients:
    """`count` clients that send `request` one after the other, each on a connection it keeps.

    Args:
        total: requests in all; None goes on until the server takes no more.
    """

    def __init__(self, port: int, request: bytes, count: int, total: int | None) -> None:
        self.tally = Tally()
        self._address = ("127.0.0.1", port)
        self._request = request
        self._count = count
        self._left = total

    async def run(self) -> Tally:
        started = time.perf_counter()
        await asyncio.gather(*(self._client() for _ in range(self._count)))
        self.tally.elapsed = time.perf_counter() - started
        return self.tally

    async def _client(self) -> None:
        while self._left is None or self._left > 0:
            try:
                reader, writer = await asyncio.open_connection(*self._address)
            except OSError:
                self.tally.refused += 1
                return
            try:
                await self._use(reader, writer)
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

    async def _use(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Send requests until none is left or the server closes the connection."""
        while self._left is None or self._left > 0:
            if self._left is not None:
                self._left -= 1
            sent = time.perf_counter()
            try:
                writer.write(self._request)
                await writer.drain()
                status, is_last = await _read_answer(reader)
            except (OSError, EOFError):
                self.tally.lost.append(sent)
                return
            self.tally.seconds.append(time.perf_counter() - sent)
            self.tally.statuses[status] += 1
            if is_last:
                return


async def _read_answer(reader: asyncio.StreamReader) -> tuple[int, bool]:
    """Return the status, and whether the connection ends here."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
    await reader.readexactly(int(fields[b"content-length"]))
    return int(head.split(b" ")[1]), fields.get(b"connection") == b"close"
