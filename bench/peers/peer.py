"""What a measurement needs of a peer."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
WORKERS = 2
START_S = 60.0


class Handle(ABC):
    """One job."""

    @abstractmethod
    def result(self, timeout: float) -> Any:
        """Its value; raises whatever the peer raises."""


class Peer(ABC):
    """Two warm workers and a caller."""

    name: str
    package: str  #: whose version is told
    setting: str = ""  #: what was set beyond the defaults
    caller_is_manager = False  #: the pool dies with the caller

    def __init__(self, place: Path) -> None:
        self.place = place

    @abstractmethod
    def start(self) -> None:
        """Return when both workers can work."""

    @abstractmethod
    def submit(self, task: str, *args: Any) -> Handle:
        """Hand out one task of :data:`bench.peers.tasks.TASKS`."""
        ...

    @abstractmethod
    def manager(self) -> list[int]:
        """Processes that hand out the work and watch over workers."""

    def restart(self) -> None:  # noqa: B027 - most have nothing to do
        """Start the manager again, as whoever operates it would."""

    @abstractmethod
    def stop(self) -> None:
        """End everything that was started."""
        ...

    def processes(self) -> list[int]:
        """All of it, the caller included."""
        found = {os.getpid()}
        for pid in (os.getpid(), *self.manager()):
            with suppress(psutil.NoSuchProcess):
                found |= {pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))}
        return sorted(found)


class Future(Handle):
    """A concurrent.futures.Future, or what looks like one."""

    def __init__(self, future: Any) -> None:
        self._future = future

    def result(self, timeout: float) -> Any:
        """The value of the task; raises when there is none in ``timeout`` seconds."""
        return self._future.result(timeout)


def spawn(command: Sequence[str], log: Path, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    """A server of a peer, in the project's root, its words in a log."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
    with log.open("ab") as out:
        return subprocess.Popen(
            list(command), cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )


def end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """All of them and what they started."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            family = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            for child in family:
                with suppress(psutil.NoSuchProcess):
                    child.kill()
        process.wait()


def kill(pids: Sequence[int]) -> None:
    """SIGKILL to processes, as far as they live."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def free_port() -> int:
    """A TCP port that nothing listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def until(condition: Callable[[], Any], what: str, seconds: float = START_S) -> None:
    """Wait for a condition; TimeoutError naming ``what`` after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(0.02)
