"""What a measurement needs of a system that spreads over nodes."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

from bench.peers.peer import Handle, kill

WORKERS = 2  # of one node
MEDIA_BYTES = 5_000_000
LONG_S = 300.0  # for results that must come


class System(ABC):
    """Servers, nodes and one client."""

    key: str
    title: str
    package: str  #: whose version is told
    setting: str  #: what was set beyond the defaults
    media = "bytes"  #: how the 5 MB are handed over

    def __init__(self, place: Path) -> None:
        self.place = place

    @abstractmethod
    def start(self) -> None:
        """Start servers and client, without any node."""

    @abstractmethod
    def add_node(self) -> None:
        """Start one more node; return when its workers can work."""

    @abstractmethod
    def submit(self, task: str, *args: object) -> Handle:
        """Hand out one task of :data:`bench.peers.tasks.TASKS`."""
        ...

    @abstractmethod
    def burst(self, count: int) -> list[int]:
        """Hand out no-ops at once, as the system does that best; their results."""
        ...

    @abstractmethod
    def nodes(self) -> list[list[int]]:
        """The live processes of each node."""

    @abstractmethod
    def kinds(self) -> dict[str, list[int]]:
        """All processes by what they are, the client included."""

    @abstractmethod
    def stop(self) -> None:
        """End everything that was started."""
        ...

    def witness(self) -> Path:
        """The folder in which naps leave their files."""
        folder = self.place / "naps"
        folder.mkdir(exist_ok=True)
        return folder

    def lose(self, index: int) -> None:
        """kill -9 of every process of a node at once."""
        kill(self.nodes()[index])

    def bring_in(self, content: bytes) -> float:
        """Seconds for a job that reads these bytes."""
        begun = time.perf_counter()
        assert self.submit("take", content).result(LONG_S) == len(content)
        return time.perf_counter() - begun

    def bring_out(self, number: int) -> float:
        """Seconds for a job whose result are 5 MB."""
        begun = time.perf_counter()
        assert len(self.submit("give", number, MEDIA_BYTES).result(LONG_S)) == MEDIA_BYTES
        return time.perf_counter() - begun


def family(pid: int) -> list[int]:
    """A process and all that it has started."""
    with suppress(psutil.NoSuchProcess):
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    return []


def processor_s(pids: Iterable[int]) -> dict[int, float]:
    """Seconds of processor time of each process that lives."""
    found = {}
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            found[pid] = float(sum(psutil.Process(pid).cpu_times()[:2]))
    return found


def resident_mb(pid: int) -> float:
    """Resident memory in MB; 0 when the process has gone."""
    with suppress(psutil.NoSuchProcess):
        return float(psutil.Process(pid).memory_info().rss) / 1e6
    return 0.0


def me() -> list[int]:
    """The client."""
    return [os.getpid()]
