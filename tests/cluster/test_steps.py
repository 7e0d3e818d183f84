"""An agent, or a port, that ends at each of its steps, one after another, and comes back: every job has one result,
nothing of it is left anywhere, and it never runs twice at once."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from nats.js.errors import NotFoundError
from scenarios.world import ROOT, history, wait_until

from cluster.doomed import ENDED
from cluster.machines import LEASE_S, Cluster, Machine
from cluster.rig import Servers
from pool import FilePool, JobFailed
from pool.client.future import JobFuture
from pool.cluster import wire
from pool.job import JobState

LONG_S = 60.0
DOOMED = Path(__file__).with_name("doomed.py")
TALK = b"talk" * 5000


class Stage:
    """A node and a client whose agent and port are doomed in turn, and what their jobs have left."""

    def __init__(self, joined: Cluster, servers: Servers) -> None:
        self.joined, self.servers, self.folder = joined, servers, joined.folder
        self.witness = self.folder / "witness"
        self.witness.mkdir()
        (self.folder / "talk.wav").write_bytes(TALK)
        self.node = Machine(self.folder / "only", "only", joined.url)
        settings = {"servers": [joined.url], "name": "only", "lease_s": LEASE_S, "cold_after_s": 0.0}
        options = {"witness": str(self.witness)}
        self.node.configure({"fake": {"options": options, "max_concurrent_tasks": 2}}, cluster=settings)
        self.node.serve(ready=2)
        self.branch = joined.branch()
        self._lives: dict[str, subprocess.Popen[bytes]] = {}
        for kind in ("node", "port"):
            self.begin(kind)
        self.pool = FilePool(self.branch, start=False, patience=LONG_S)
        joined.wait_nodes("only")

    def begin(self, kind: str, number: int = 0) -> subprocess.Popen[bytes]:
        """A new agent or port, that ends at a step."""
        before = self._lives.get(kind)
        if before is not None and before.poll() is None:
            before.kill()
            before.wait()
        config = self.node.config if kind == "node" else self.branch
        argv = [sys.executable, str(DOOMED), kind, str(config), str(number), str(self.note(kind))]
        self.note(kind, armed=True).unlink(missing_ok=True)
        self.note(kind).unlink(missing_ok=True)
        with open(self.folder / f"{kind}.log", "ab") as log:
            life = subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._lives[kind] = life
        return life

    def note(self, kind: str, *, armed: bool = False) -> Path:
        return self.folder / (f"{kind}.note.armed" if armed else f"{kind}.note")

    def act(self, kind: str, number: int, scene: Callable[[Stage, str], Callable[[], None]]) -> str:
        """A scene whose agent or port ends at a step, and another one comes; where it ended, "" when it did not."""
        life = self.begin(kind, number)
        self.ready(kind, life)
        self.note(kind, armed=True).touch()
        died: list[str] = []

        def come_back() -> None:
            if life.wait() == ENDED:
                died.append(self.note(kind).read_text())
                self.begin(kind)

        watch = threading.Thread(target=come_back)
        watch.start()
        try:
            scene(self, f"{kind}-{scene.__name__}-{number}")()
            wait_until(self.quiet, f"nothing is left of it: {self.left()}", LONG_S)
        except BaseException as error:
            raise AssertionError(f"{error!r}; ended at: {died}\n{self.logs()}") from error
        finally:
            life.kill()
            watch.join()
        return "".join(died)

    def ready(self, kind: str, life: subprocess.Popen[bytes]) -> None:
        """Until the process that has just begun serves."""
        spool = self.node.spool if kind == "node" else self.branch.parent / "spool"
        place = spool / "run" / ("node.json" if kind == "node" else "cluster/port.json")

        def serves() -> bool:
            try:
                return f'"pid": {life.pid}' in place.read_text() or f'"pid":{life.pid}' in place.read_text()
            except OSError:
                return False

        wait_until(serves, f"a {kind} that serves")
        self.joined.wait_nodes("only")

    # ---- what is left

    def left(self) -> list[str]:
        """Jobs in the stream, claims, and files of both spools that a done job does not need."""
        found = asyncio.run(self._on_the_servers())
        for spool in (self.node.spool, self.branch.parent / "spool"):
            for folder in ("ready", "away", "tmp", "work", "run/control", "progress", "cache/cluster-outputs"):
                found += [str(path) for path in (spool / folder).rglob("*") if path.is_file()]
        return found

    async def _on_the_servers(self) -> list[str]:
        async with self.servers.connected() as client:
            js = client.jetstream()
            jobs = (await js.stream_info(wire.JOBS)).state.messages
            found = [f"{jobs} jobs in the stream"] if jobs else []
            info = await js.stream_info(f"KV_{wire.CLAIMS}", subjects_filter=">")
            for subject in info.state.subjects or {}:
                with suppress(NotFoundError):  # its mark went just now
                    message = await js.get_last_msg(f"KV_{wire.CLAIMS}", subject)
                    found += [subject] if message.data else []
        return found

    def quiet(self) -> bool:
        """Whether nothing is left."""
        return not self.left()

    def starts(self, name: str) -> int:
        """How often a job was begun; its runs followed each other."""
        begun, running = 0, 0
        for _, _, what, job, _, verdict in history(self.witness):
            if job.startswith((f"{name}-g", f"{name}-r")):
                assert verdict != "overlap", job
                running += 1 if what == "start" else -1
                begun += what == "start"
                assert running <= 1, f"{job} runs twice at once"
        return begun

    def logs(self) -> str:
        return "\n".join(
            f"--- {kind}\n{(self.folder / f'{kind}.log').read_text(errors='replace')[-4000:]}"
            for kind in ("node", "port")
        )

    def close(self) -> None:
        self.pool.close()
        for life in self._lives.values():
            life.kill()
            life.wait()
        self.node.close()
        for serving in self.node.serving:
            serving.wait()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with Servers(tmp_path / "nats") as servers:
        asyncio.run(servers.ensure(lease_s=LEASE_S))
        joined = Cluster(tmp_path / "machines", servers.url)
        joined.folder.mkdir()
        stage = Stage(joined, servers)
        try:
            yield stage
        finally:
            stage.close()


# ---- scenes: each does something with a job, and returns what has to come of it


def files(stage: Stage, name: str) -> Callable[[], None]:
    """A file in, a file out."""
    film = stage.folder / f"{name}.bin"
    call: dict[str, Any] = {"audio": str(stage.folder / "talk.wav"), "output": str(film), "do": "write", "mb": 1}
    future = stage.pool.submit("fake", id=name, **call)

    def finish() -> None:
        future.result(LONG_S)
        record = future.record
        assert record is not None
        (file,) = record.files
        assert Path(file["path"]) == film
        assert hashlib.sha256(film.read_bytes()).hexdigest() == file["sha256"]
        assert film.stat().st_size == 1 << 20
        assert stage.starts(name) == 1
        assert not [path for path in stage.folder.iterdir() if path.name.startswith(".")]

    return finish


def twice(stage: Stage, name: str) -> Callable[[], None]:
    """An id that is given twice."""
    futures = [stage.pool.submit("fake", id=name, value=name, do="sleep", seconds=0.1) for _ in range(2)]

    def finish() -> None:
        assert [future.result(LONG_S)["value"] for future in futures] == [name, name]
        assert stage.starts(name) == 1

    return finish


def cancelled(stage: Stage, name: str) -> Callable[[], None]:
    """A job that is cancelled while it goes away, or runs."""
    future = stage.pool.submit("fake", id=name, do="sleep", seconds=600)
    future.cancel()

    def finish() -> None:
        wait_until(future.done, "it is over", LONG_S)
        assert stage.pool.state(name) is JobState.CANCELLED
        assert stage.starts(name) <= 1

    return finish


def again(stage: Stage, name: str) -> Callable[[], None]:
    """A job that failed, and is run again."""
    future = stage.pool.submit("fake", id=name, do="raise", value="bad", retry_times=0)

    def finish() -> None:
        assert isinstance(future.exception(LONG_S), JobFailed)
        stage.pool.retry(name)
        once_more: JobFuture = stage.pool.attach(name)
        assert isinstance(once_more.exception(LONG_S), JobFailed)
        assert stage.starts(name) == 2

    return finish


SCENES = [files, twice, cancelled, again]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["node", "port"])
@pytest.mark.parametrize(
    ("scene", "stride"),
    [
        pytest.param(files, 17, id="some-files"),
        *(pytest.param(scene, 1, id=f"all-{scene.__name__}", marks=pytest.mark.slow) for scene in SCENES),
    ],
)
def test_ended_at_every_step(
    stage: Stage, scene: Callable[[Stage, str], Callable[[], None]], kind: str, stride: int
) -> None:
    for number in itertools.count(6, stride) if stride > 1 else itertools.count(1):
        if not stage.act(kind, number, scene):
            assert number > 6, "it came to a step"
            return
