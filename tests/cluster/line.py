"""A line to a server that can be cut: a process of its own passes what comes, and is stopped while the line is cut.

python line.py PORT TARGET    pass connections to PORT on loopback on to TARGET there
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from types import TracebackType

HOST = "127.0.0.1"


class Line:
    """From a port of its own to another one on loopback. Cut, its connections stay open and nothing comes through."""

    def __init__(self, target: int) -> None:
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            self.port = int(probe.getsockname()[1])
        self._process = subprocess.Popen(
            [sys.executable, os.path.abspath(__file__), str(self.port), str(target)], stdin=subprocess.DEVNULL
        )

    def __enter__(self) -> Line:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def url(self) -> str:
        """The server at its other end."""
        return f"nats://{HOST}:{self.port}"

    def cut(self) -> None:
        """Nothing comes through."""
        self._process.send_signal(signal.SIGSTOP)

    def join(self) -> None:
        """What was on its way comes now."""
        self._process.send_signal(signal.SIGCONT)


async def _pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(1 << 16):
            sink.write(data)
            await sink.drain()
    sink.close()


async def _serve(port: int, target: int) -> None:
    async def accept(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            there = await asyncio.open_connection(HOST, target)
        except OSError:
            sink.close()
            return
        await asyncio.gather(_pass_on(source, there[1]), _pass_on(there[0], sink))

    async with await asyncio.start_server(accept, HOST, port) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(*map(int, sys.argv[1:])))
