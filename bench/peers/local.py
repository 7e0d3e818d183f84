"""Peers that live in the caller's process, and filepool."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from bench import harness
from bench.peers import tasks
from bench.peers.peer import ROOT, WORKERS, Future, Handle, Peer, until


class Spawn(Peer):
    """`concurrent.futures` with spawned processes."""

    name, package = "concurrent.futures", "python"
    setting = "spawn"
    caller_is_manager = True

    def start(self) -> None:
        """Start the workers and wait until they are there."""
        self._pool: Any = self._make()
        wait([self._pool.submit(tasks.nap, -n, 0.2, str(self.place)) for n in range(1, WORKERS + 1)])

    def _make(self) -> Any:
        return ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("spawn"))

    def submit(self, task: str, *args: Any) -> Handle:
        """Hand out one task."""
        return Future(self._pool.submit(tasks.TASKS[task], *args))

    def manager(self) -> list[int]:
        """Pids of what hands out the work."""
        return [os.getpid()]

    def stop(self) -> None:
        """End everything that was started."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class Loky(Spawn):
    """loky's reusable executor."""

    name = package = "loky"
    setting = ""

    def _make(self) -> Any:
        import loky

        return loky.ProcessPoolExecutor(WORKERS)

    def stop(self) -> None:
        """End everything that was started."""
        self._pool.shutdown(wait=False, kill_workers=True)


class FilePoolPeer(Peer):
    """filepool without durable writes."""

    name = package = "filepool"
    setting = "durable: false"
    durable = False

    def start(self) -> None:
        """Start the workers and wait until they are there."""
        from pool import FilePool

        engine = {"engine": "bench.peers.tasks:Tasks", "workers": WORKERS, "pythonpath": [str(ROOT)]}
        config = self.place / "config.json"
        document = {"spool": "spool", "min_free_mb": 0, "durable": self.durable, "engines": {"tasks": engine}}
        config.write_text(json.dumps(document))
        self._pool = FilePool(config)
        harness.wait_warm(self._pool.spool.root, WORKERS)

    def submit(self, task: str, *args: Any) -> Handle:
        """Hand out one task."""
        return Value(self._pool.submit("tasks", task=task, args=list(args)))

    def manager(self) -> list[int]:
        """Pids of what hands out the work."""
        pid = harness.supervisor_pid(self._pool.spool.root)
        return [] if pid is None else [pid]

    def restart(self) -> None:
        """A FilePool that started its supervisor replaces it by itself."""
        until(self.manager, "a new supervisor")

    def stop(self) -> None:
        """End everything that was started."""
        self._pool.close()
        harness.end_processes(self.place / "spool")


class DurablePeer(FilePoolPeer):
    """filepool as it comes."""

    name = "filepool, durable"
    setting = "defaults"
    durable = True


class Value(Future):
    """A result of the engine `Tasks`."""

    def result(self, timeout: float) -> Any:
        """The value of the task; raises when there is none in ``timeout`` seconds."""
        return super().result(timeout)["value"]


def python() -> str:
    """This interpreter."""
    return sys.executable


def script(name: str) -> str:
    """A console script beside this interpreter."""
    return str(Path(sys.executable).parent / name)
