"""Runs uvicorn with the application until a signal."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from pool.cli.command import say
from pool.client.filepool import FilePool
from pool.gateways.http.app import make_app
from pool.gateways.http.settings import Settings

_STOP_S = 5  # for open requests at shutdown; their jobs go on
_BACKLOG = 1024
_HEADERS_S = 10.0  # for the headers of one request
# RACE: a client that sends just when we close its idle connection is cut off. Longer than nginx keeps one to us (60 s),
# and than people who ask every few seconds, or every minute, wait.
_IDLE_S = 75
_CONNECTIONS = 2000  # of all clients at a time; above that: 503


class _Punctual(AutoHTTPProtocol):  # type: ignore[misc,valid-type]
    """Ends a connection whose request has not arrived up to the end of its headers within _HEADERS_S."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._due: asyncio.TimerHandle | None = self.loop.call_later(_HEADERS_S, self._cut)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._answering():
            self._settle()
        elif self._due is None:  # the next request of a connection that is kept alive
            self._due = self.loop.call_later(_HEADERS_S, self._cut)

    def connection_lost(self, exc: Exception | None) -> None:
        self._settle()
        super().connection_lost(exc)

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _settle(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _cut(self) -> None:
        self._due = None
        if not self._answering() and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            self.transport.close()


class _Server(uvicorn.Server):
    """Prints the addresses that it listens on: with port 0 the system chooses the port. leave: called on the event loop
    when the server is asked to end."""

    def __init__(self, config: uvicorn.Config, leave: Callable[[], None]) -> None:
        super().__init__(config)
        self._leave = leave

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        asyncio.get_running_loop().call_soon_threadsafe(self._leave)
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for server in self.servers if self.started else ():
            for listening in server.sockets:
                host, port = listening.getsockname()[:2]
                say(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}", "green")


def run_server(pool: FilePool, settings: Settings, *, access_log: bool = False) -> bool:
    """Serve until SIGINT or SIGTERM; False when the address could not be bound."""
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # clients get these errors in the response
    app = make_app(pool, settings)
    server = _Server(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            http=_Punctual,
            access_log=access_log,
            log_level="info" if access_log else "warning",
            backlog=_BACKLOG,
            limit_concurrency=_CONNECTIONS,
            timeout_graceful_shutdown=_STOP_S,
            timeout_keep_alive=_IDLE_S,
            server_header=False,
            lifespan="on",
        ),
        app.state.leave,
    )
    # uvicorn shuts down, restores the previous handlers and raises the signal again, which would end this process here
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run()
    except SystemExit:  # uvicorn has logged why the address cannot be bound
        return False
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return server.started
