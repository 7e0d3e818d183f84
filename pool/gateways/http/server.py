"""The process: uvicorn around the application, until a signal."""

from __future__ import annotations

import logging
import signal
import socket

import uvicorn

from pool.cli.command import say
from pool.client.filepool import FilePool
from pool.gateways.http.app import make_app
from pool.gateways.http.settings import Settings

_STOP_S = 5  # for requests that are still open; their jobs go on
_BACKLOG = 1024
_CONNECTIONS = 2000  # at a time, all clients together; beyond: 503


class _Server(uvicorn.Server):
    """Says where it listens: with port 0 nobody knows before."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for server in self.servers if self.started else ():
            for listening in server.sockets:
                host, port = listening.getsockname()[:2]
                say(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}", "green")


def run_server(pool: FilePool, settings: Settings, *, access_log: bool = False) -> bool:
    """Serve until SIGINT or SIGTERM; False when the address could not be bound."""
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # what clients get wrong is told to them
    server = _Server(
        uvicorn.Config(
            make_app(pool, settings),
            host=settings.host,
            port=settings.port,
            access_log=access_log,
            log_level="info" if access_log else "warning",
            backlog=_BACKLOG,
            limit_concurrency=_CONNECTIONS,
            timeout_graceful_shutdown=_STOP_S,
            server_header=False,
        )
    )
    # uvicorn ends in peace, and then sends the signal once more to whoever was there before it: us
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run()
    except SystemExit:  # it has logged that the address is taken
        return False
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return server.started
