"""A real redis-server, a real gateway, and a client that knows nothing but the contract."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from scenarios.world import PATIENCE_S, ROOT, World, wait_until

from gateways.file_service import Service
from pool.gateways.tempfiles import Tempfiles
from pool.spool.store import Spool

STATUSES = {"processing", "downloading", "face_detecting", "inference", "merging_audio", "completed", "failed"}
FACE = b"\x89PNG\r\n\x1a\n" + b"\0" * 64


def configure(world: World, *, retry_times: int = 1, lease_s: float = 60.0) -> None:
    """A pool with a stand-in for the portrait engine."""
    talker = {
        "engine": "gateways.talker:Talker",
        "pythonpath": [str(ROOT / "tests")],
        "max_concurrent_tasks": 2,
        "retry_times": retry_times,
        "start_limit": 1000,  # its workers are killed now and then
        "options": {"runs": str(world.folder / "runs.log")},
    }
    echo = {"engine": "inference.fake:Echo", "max_concurrent_tasks": 1}
    engines: dict[str, dict[str, Any]] = {"portrait": talker, "echo": echo, "fake": {"max_concurrent_tasks": 1}}
    world.configure(engines, redis={"lease_s": lease_s})


class Server:
    """redis-server on a free port. more: further options. persistent: a command is in its file before its answer."""

    def __init__(self, folder: Path, *more: str, persistent: bool = True) -> None:
        beside = Path(sys.executable).with_name("redis-server")
        program = str(beside) if beside.exists() else shutil.which("redis-server")
        if program is None:
            pytest.skip("no redis-server: install the extra `dev`, or the system's package")
        folder.mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._argv = [program, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
        self._argv += ["--appendonly", "yes" if persistent else "no", "--appendfsync", "no", *more]
        self._log = folder / "redis.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Server:
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(self._argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_until(self._answers, "a redis-server that answers")
        return self

    def start_after(self, seconds: float) -> None:
        """The outage lasts that long."""
        time.sleep(seconds)
        self.start()

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, socket_timeout=PATIENCE_S)

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(20)

    @property
    def program(self) -> str:
        return self._argv[0]

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()
        with contextlib.suppress(redis.RedisError), self.client() as client:
            return bool(client.ping())
        return False


class RedisGateway:
    """`python -m pool.gateways.redis` of one world."""

    def __init__(self, world: World, server: Server, **env: str) -> None:
        self._world, self._server = world, server
        self._env = {"REDIS_PORT": str(server.port), "REDIS_HOST": "127.0.0.1", **env}
        self._log = world.folder / f"redis-gateway-{uuid.uuid4().hex[:6]}.log"
        self.queue = env.get("TASK_QUEUE_NAME", "task_queue_gpu_0")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, wait: bool = True) -> RedisGateway:
        begun = self._log.stat().st_size if self._log.exists() else 0
        argv = [sys.executable, "-m", "pool.gateways.redis", "--no-start", "--config", str(self._world.config)]
        with open(self._log, "ab") as log:
            self.process = subprocess.Popen(
                argv, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **self._env}
            )

        def serves() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, self.log()
            return b"serving" in self._log.read_bytes()[begun:]

        if wait:
            wait_until(serves, "a gateway that serves")
        return self

    def kill(self) -> None:
        """kill -9."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(20)

    def pause(self) -> None:
        """SIGSTOP, as a machine that hangs."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def log(self) -> str:
        return self._log.read_text(errors="replace")[-6000:] if self._log.exists() else ""


class Caller:
    """A client in the manner of the contract: RPUSH, subscribe, and again when the connection was lost."""

    def __init__(self, server: Server, queue: str = "task_queue_gpu_0", channel: str = "task_progress") -> None:
        self._server, self._queue, self._channel = server, queue, channel
        self.redis = server.client()
        self.heard: dict[str, list[dict[str, Any]]] = {}
        self._news = threading.Condition()
        self._closed = False
        self._listening = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()
        assert self._listening.wait(PATIENCE_S)

    def close(self) -> None:
        self._closed = True

    def push(self, image: str, audio: str, **more: Any) -> str:
        """Ask for a video; the id of the task."""
        task = {"task_id": str(uuid.uuid4()), "session_id": "s-1", "ref_image_id": image, "audio_id": audio, **more}
        self.raw(json.dumps(task))
        return str(task["task_id"])

    def raw(self, text: str | bytes) -> None:
        self.redis.rpush(self._queue, text)

    def end(self, task_id: str, seconds: float = PATIENCE_S, *, count: int = 1) -> dict[str, Any]:
        """The message that says completed or failed, the `count`-th one."""
        return self.until(task_id, lambda m: m["status"] in ("completed", "failed"), seconds=seconds, count=count)

    def until(
        self, task_id: str, wanted: Callable[[dict[str, Any]], bool], *, seconds: float = PATIENCE_S, count: int = 1
    ) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        with self._news:
            while True:
                found = [message for message in self.heard.get(task_id, []) if wanted(message)]
                if len(found) >= count:
                    return found[count - 1]
                left = deadline - time.monotonic()
                assert left > 0, f"nothing of {task_id} in {seconds:g} s: {self.heard.get(task_id)}"
                self._news.wait(left)

    def ends(self, task_id: str) -> list[str]:
        with self._news:
            return [m["status"] for m in self.heard.get(task_id, []) if m["status"] in ("completed", "failed")]

    def _listen(self) -> None:
        while not self._closed:
            try:
                with redis.Redis(port=self._server.port, socket_timeout=0.5) as client, client.pubsub() as channel:
                    channel.subscribe(self._channel)
                    while not self._closed:
                        with contextlib.suppress(redis.TimeoutError):
                            self._hear(channel.get_message(timeout=0.2))
            except redis.RedisError:
                time.sleep(0.05)

    def _hear(self, item: dict[str, Any] | None) -> None:
        if item is not None and item["type"] == "subscribe":
            self._listening.set()
        if item is None or item["type"] != "message":
            return
        message = json.loads(item["data"])
        with self._news:
            self.heard.setdefault(message["task_id"], []).append(message)
            self._news.notify_all()


class Store:
    """The store of the HTTP gateway, filled by hand."""

    def __init__(self, world: World) -> None:
        folder = world.folder / "media" / ".tempfiles"
        folder.mkdir(parents=True, exist_ok=True)
        self._files = Tempfiles(folder, Spool(world.spool).now, 3600)
        self.face = self.put("face.png", FACE, "image")

    def put(self, name: str, content: bytes, kind: str = "audio") -> str:
        part = self._files.part()
        Path(part).write_bytes(content)
        return self._files.keep(part, kind, name).file_id

    def words(self, text: str) -> str:
        """A recording that tells the engine what to do."""
        return self.put("speech.wav", text.encode())

    def read(self, file_id: str) -> bytes:
        return self._files.path(file_id).read_bytes()


class Rig:
    """A pool that serves, a redis-server, and as many gateways as a test wants; all of it ended at the end."""

    def __init__(self, folder: Path, *, server: Server | None = None, **options: Any) -> None:
        folder.mkdir(exist_ok=True)
        self.world = World(folder)
        configure(self.world, **options)
        self._own_server = server is None
        self.server = server or Server(folder / "redis").start()
        self._gateways: list[RedisGateway] = []
        self._callers: list[Caller] = []
        self._more: list[Server | Service] = []

    def serve(self) -> Rig:
        self.world.serve(ready=4)
        self.store = Store(self.world)
        return self

    def gateway(self, server: Server | None = None, **env: str) -> RedisGateway:
        self._gateways.append(RedisGateway(self.world, server or self.server, **env))
        return self._gateways[-1]

    def caller(self, server: Server | None = None, queue: str = "task_queue_gpu_0") -> Caller:
        self._callers.append(Caller(server or self.server, queue))
        return self._callers[-1]

    def another_server(self, *, persistent: bool) -> Server:
        server = Server(self.world.folder / f"redis-{len(self._more)}", persistent=persistent).start()
        self._more.append(server)
        return server

    def service(self) -> Service:
        service = Service()
        self._more.append(service)
        return service

    def runs(self, task_id: str) -> int:
        """How often the engine was at a task."""
        log = self.world.folder / "runs.log"
        return sum(line.startswith(f"{task_id} ") for line in log.read_text().splitlines()) if log.exists() else 0

    def log(self) -> str:
        return "\n".join([gateway.log() for gateway in self._gateways] + [self.world.log()])

    def reset(self) -> None:
        """End what one test has started."""
        for caller in self._callers:
            caller.close()
        for gateway in self._gateways:
            gateway.kill()
        for thing in self._more:
            thing.kill() if isinstance(thing, Server) else thing.close()
        self._callers, self._gateways, self._more = [], [], []

    def close(self) -> None:
        self.reset()
        if self._own_server:
            self.server.kill()
        self.world.close()


def rigs(folder: Path, **options: Any) -> Iterator[Rig]:
    """For fixtures."""
    made = Rig(folder, **options)
    try:
        yield made.serve()
    finally:
        made.close()
        shutil.rmtree(folder, ignore_errors=True)
