"""celery and dask.distributed over nodes, with the settings that their documentation names for work that should
survive a crash; the servers and the tasks are those of bench.peers."""

from __future__ import annotations

import os
import subprocess
from typing import Any

from bench.cluster.system import LONG_S, WORKERS, System, family, me
from bench.peers import tasks
from bench.peers.local import script
from bench.peers.peer import Future, Handle, end, free_port, spawn, until
from bench.peers.served import CeleryResult, Redis


class CeleryCluster(System):
    """Celery: each node is one worker with two processes."""

    key, title, package = "celery", "celery", "celery"
    setting = "one Redis with appendonly, prefork -c 2, acks_late, reject_on_worker_lost, prefetch 1"

    def start(self) -> None:
        """Start Redis."""
        self._nodes: list[subprocess.Popen[bytes]] = []
        self._redis = Redis(self.place)
        os.environ["PEERS_REDIS"] = self._redis.url
        from bench.peers import celery_app

        self._app = celery_app.make(self._redis.url)

    def add_node(self) -> None:
        """Start a worker and wait until it answers."""
        name = f"node{len(self._nodes)}@bench"
        options = ["worker", "-c", str(WORKERS), "-n", name, "-l", "ERROR"]
        env = {"PEERS_REDIS": self._redis.url, "C_FORCE_ROOT": "1"}
        command = [script("celery"), "-A", "bench.peers.celery_app:app", *options]
        self._nodes.append(spawn(command, self.place / f"{name}.log", env))
        until(lambda: self._app.control.ping(destination=[name], timeout=0.5), name)

    def submit(self, task: str, *args: object) -> Handle:
        """Hand out one task."""
        return CeleryResult(self._app.send_task(task, args))

    def burst(self, count: int) -> list[int]:
        """As a group."""
        from celery import group

        found: Any = group(self._app.signature("echo", args=(number,)) for number in range(count)).apply_async()
        return list(found.get(timeout=LONG_S))

    def nodes(self) -> list[list[int]]:
        """The live processes of each node."""
        return [family(node.pid) for node in self._nodes]

    def kinds(self) -> dict[str, list[int]]:
        """All processes by what they are. Its beat is for tasks at fixed times, of which there are none."""
        return {
            "client": me(),
            "redis": [self._redis.process.pid],
            "worker": [node.pid for node in self._nodes if node.poll() is None],
            "worker's process": [pid for node in self._nodes for pid in family(node.pid)[1:]],
        }

    def stop(self) -> None:
        """End everything that was started."""
        end([*self._nodes, self._redis.process])


class DaskCluster(System):
    """dask.distributed: each node is one command with two workers and their nannies."""

    key, title, package = "dask", "dask.distributed", "distributed"
    setting = "one scheduler, two workers of one thread with nannies"

    def start(self) -> None:
        """Start the scheduler."""
        from distributed import Client

        self._nodes: list[subprocess.Popen[bytes]] = []
        self._address = f"tcp://127.0.0.1:{(port := free_port())}"
        options = ["--no-dashboard", "--host", "127.0.0.1", "--port", str(port)]
        self._scheduler = spawn([script("dask"), "scheduler", *options], self.place / "scheduler.log")
        connect: Any = Client  # it has no types
        self._client = connect(self._address, timeout=60)

    def add_node(self) -> None:
        """Start two workers and wait for them."""
        name = f"node{len(self._nodes)}"
        options = ["--nworkers", str(WORKERS), "--nthreads", "1", "--no-dashboard", "--local-directory"]
        command = [script("dask"), "worker", self._address, *options, str(self.place / name)]
        self._nodes.append(spawn(command, self.place / f"{name}.log"))
        self._client.wait_for_workers(WORKERS * len(self._nodes), timeout=60)

    def submit(self, task: str, *args: object) -> Handle:
        """Hand out one task."""
        return Future(self._client.submit(tasks.TASKS[task], *args, pure=False))

    def burst(self, count: int) -> list[int]:
        """With map and gather."""
        return list(self._client.gather(self._client.map(tasks.echo, range(count), pure=False)))

    def nodes(self) -> list[list[int]]:
        """The live processes of each node."""
        return [family(node.pid) for node in self._nodes]

    def kinds(self) -> dict[str, list[int]]:
        """All processes by what they are."""
        return {
            "client": me(),
            "scheduler": [self._scheduler.pid],
            "nanny": [node.pid for node in self._nodes if node.poll() is None],
            "worker": [pid for node in self._nodes for pid in family(node.pid)[1:]],
        }

    def stop(self) -> None:
        """End everything that was started."""
        end([*self._nodes, self._scheduler])
