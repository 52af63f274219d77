"""uvicorn, started on a socket of ours and ended without losing a request."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import uvicorn

from ppcls.deploy.serving.config import ServingConfig
from ppcls.deploy.serving.connection import connection_class
from ppcls.utils.errors import JobError, UserError

logger = logging.getLogger("ppcls")

_GRACE_SECONDS = 0.5  # for requests that are on their way on connections that are open


class Server(uvicorn.Server):
    """A server that at SIGTERM takes no new connections and answers every request it has.

    uvicorn by itself closes connections on which a request is just arriving.

    Args:
        drain: called first: the service is no longer ready, and every answer ends its connection.
    """

    def __init__(self, config: uvicorn.Config, drain: Callable[[], None]) -> None:
        super().__init__(config)
        self._drain = drain
        self._is_running = False
        self._early: int | None = None  # a signal that came before

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            logger.info("serving on %s", address(sockets[0]))
        asyncio.get_running_loop().call_soon(self._run)

    def _run(self) -> None:
        self._is_running = True
        if self._early is not None:
            self.handle_exit(self._early, None)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal. Before the first turn of its loop, uvicorn (up to 0.38 at least) would
        end on one without a shutdown; a second one ends the process there."""
        if self._is_running:
            super().handle_exit(sig, frame)
        elif self._early is None:
            self._early = sig
        else:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._drain()
        # Clients have connected whom the loop has not seen yet: to close would reset them.
        late = [client for listener in sockets or [] for client in _accept_all(listener)]
        for listener in [*self.servers, *(sockets or [])]:
            listener.close()
        loop = asyncio.get_running_loop()
        for client in late:
            await loop.connect_accepted_socket(self._make_connection, client)
        await asyncio.sleep(_GRACE_SECONDS)
        await super().shutdown(sockets)

    def _make_connection(self) -> asyncio.Protocol:
        return self.config.http_protocol_class(  # as uvicorn does for those it accepts
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )


def _accept_all(listener: socket.socket) -> Iterator[socket.socket]:
    """Yield the connections that wait at a listening socket that does not block."""
    with contextlib.suppress(OSError):  # BlockingIOError: no more of them
        while True:
            client, _ = listener.accept()
            client.setblocking(False)
            yield client


def bind(host: str, port: int) -> socket.socket:
    """Reserve an address; nothing is accepted before `serve`. Raises UserError when it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--host {host} --port {port}: cannot listen there: {reason}") from error
    return listener


def address(listener: socket.socket) -> str:
    """The URL of a bound socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def make_server(app: Any, config: ServingConfig) -> Server:
    """Return a server for the application of `create_app`; `should_exit = True` ends it."""
    # A line for every garbled request would let a stranger fill the disk.
    for name in ("uvicorn.error", "python_multipart"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return Server(
        uvicorn.Config(
            app,
            http=connection_class(config.header_timeout, config.connections),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=int(2 * config.timeout + 10),
        ),
        app.state.service.drain,
    )


def serve(app: Any, config: ServingConfig, listener: socket.socket) -> None:
    """Run the application of `create_app` until SIGTERM or SIGINT, then answer what is left.

    Raises JobError when the service cannot start.
    """
    server = make_server(app, config)
    # uvicorn raises the signal again once it is done; with this handler that ends nothing.
    before = {}
    if threading.current_thread() is threading.main_thread():
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, server.handle_exit) for number in numbers}
    try:
        with contextlib.suppress(SystemExit):  # newer versions: the application did not start
            server.run(sockets=[listener])
        if not server.started:
            raise JobError("the service did not start; the lines above say why")
    finally:
        listener.close()
        for number, handler in before.items():
            signal.signal(number, handler)
