"""An agent, or a port, that ends at each of its steps, one after another, and comes back: every job has one result,
nothing of it is left anywhere, and it never runs twice at once.

node: the agent of the node that has the job. port: of the client that has submitted it. other: the port of another one.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from nats.js.errors import NotFoundError
from scenarios.world import ROOT, alive, below, history, wait_until

from cluster.doomed import ENDED
from cluster.machines import LEASE_S, Cluster, Machine
from cluster.rig import Servers
from pool import ClusterAway, FilePool, JobFailed
from pool.client.future import JobFuture
from pool.cluster import wire
from pool.constants import EXIT_DRAINED
from pool.errors import UnknownJob
from pool.job import JobState

pytestmark = pytest.mark.long

LONG_S = 60.0
DOOMED = Path(__file__).with_name("doomed.py")
TALK = b"talk" * 5000
FOLDERS = (
    "ready",
    "away",
    "tmp",
    "work",
    "run/control",
    "run/cluster/asked",
    "run/cluster/answers",
    "progress",
    "cache/cluster-outputs",
)  # of a spool, in which a job that is done needs no file
KEPT = {".partial"}  # with the record
CLIENTS = {"port": "client", "other": "other"}  # whose ports they are

Scene = Callable[["Stage", str], Iterator[None]]


class Stage:
    """A node and clients whose agent and ports are doomed in turn, and what their jobs have left."""

    def __init__(self, joined: Cluster, servers: Servers) -> None:
        self.joined, self.servers, self.folder = joined, servers, joined.folder
        self.witness = self.folder / "witness"
        self.witness.mkdir()
        (self.folder / "talk.wav").write_bytes(TALK)
        self.engines = {"fake": {"options": {"witness": str(self.witness)}, "max_concurrent_tasks": 2}}
        self.node = Machine(self.folder / "only", "only", joined.url)
        settings = {"servers": [joined.url], "name": "only", "lease_s": LEASE_S, "cold_after_s": 0.0}
        self.node.configure(self.engines, cluster=settings, drain_grace_s=0.3)
        self.node.serve(ready=2)
        self.branches = {kind: joined.branch(name) for kind, name in CLIENTS.items()}
        self.lives: dict[str, subprocess.Popen[bytes]] = {}
        for kind in ("node", "port"):
            self.begin(kind)
        self.pool = FilePool(self.branches["port"], start=False, patience=LONG_S)
        joined.wait_nodes("only")

    def begin(self, kind: str, number: int = 0) -> subprocess.Popen[bytes]:
        """A new agent or port, that ends at a step."""
        self.end(kind)
        config = self.node.config if kind == "node" else self.branches[kind]
        what = "node" if kind == "node" else "port"
        argv = [sys.executable, str(DOOMED), what, str(config), str(number), str(self.note(kind))]
        self.note(kind, armed=True).unlink(missing_ok=True)
        self.note(kind).unlink(missing_ok=True)
        with open(self.folder / f"{kind}.log", "ab") as log:
            life = subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.lives[kind] = life
        return life

    def end(self, kind: str) -> None:
        """kill -9 of an agent or port that lives."""
        life = self.lives.get(kind)
        if life is not None and life.poll() is None:
            life.kill()
            life.wait()

    def note(self, kind: str, *, armed: bool = False) -> Path:
        return self.folder / (f"{kind}.note.armed" if armed else f"{kind}.note")

    def act(self, kind: str, number: int, scene: Scene) -> str:
        """A scene whose agent or port ends at a step, and another one comes; where it ended, "" when it did not."""
        play = scene(self, f"{kind}-{scene.__name__}-{number}")
        next(play)
        life = self.begin(kind, number)
        self.ready(kind, life)
        self.note(kind, armed=True).touch()
        died: list[str] = []

        def come_back() -> None:
            code = life.wait()
            if code == ENDED:
                died.append(self.note(kind).read_text())
            if code in (ENDED, EXIT_DRAINED):
                self.begin(kind)

        watch = threading.Thread(target=come_back)
        watch.start()
        try:
            assert next(play, None) is None
            wait_until(self.quiet, "nothing is left of it", LONG_S)
            assert life.poll() in (None, ENDED, EXIT_DRAINED)
        except BaseException as error:
            raise AssertionError(f"{error!r}; ended at: {died}; left: {self.left()}\n{self.logs()}") from error
        finally:
            life.kill()
            watch.join()
        return "".join(died)

    def ready(self, kind: str, life: subprocess.Popen[bytes]) -> None:
        """Until the process that has just begun serves."""
        spool = self.node.spool if kind == "node" else self.branches[kind].parent / "spool"
        place = spool / "run" / ("node.json" if kind == "node" else "cluster/port.json")

        def serves() -> bool:
            try:
                return f'"pid": {life.pid}' in place.read_text() or f'"pid":{life.pid}' in place.read_text()
            except OSError:
                return False

        wait_until(serves, f"a {kind} that serves")
        self.joined.wait_nodes("only", client=CLIENTS.get(kind, "client"))

    # ---- what is left

    def left(self) -> list[str]:
        """Jobs in the stream, claims, and files of both spools that a done job does not need."""
        found = asyncio.run(self._on_the_servers())
        for spool in (self.node.spool, *(branch.parent / "spool" for branch in self.branches.values())):
            for folder in FOLDERS:
                found += [str(path) for path in below(spool / folder) if path.is_file() and path.suffix not in KEPT]
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
        """How often a job was begun; its runs followed each other, except those of workers that were killed."""
        begun = 0
        running: set[int] = set()
        for _, pid, what, job, _, verdict in history(self.witness):
            if job.startswith((f"{name}-g", f"{name}-r")):
                assert verdict != "overlap", job
                running = {one for one in running if one != pid and alive(one)}
                if what == "start":
                    assert not running, f"{job} runs twice at once"
                    begun += 1
                    running.add(pid)
        return begun

    def logs(self) -> str:
        return "\n".join(
            f"--- {kind}\n{(self.folder / f'{kind}.log').read_text(errors='replace')[-4000:]}" for kind in self.lives
        )

    def close(self) -> None:
        self.pool.close()
        for kind in self.lives:
            self.end(kind)
        for machine in (self.node, *self.joined.machines):
            machine.close()
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


# ---- scenes: what was before the agent or port came that is doomed, a yield, what it does from its first step on, and
# what has to come of it


def files(stage: Stage, name: str) -> Iterator[None]:
    """A file in, a file out."""
    yield
    film = stage.folder / f"{name}.bin"
    call: dict[str, Any] = {"audio": str(stage.folder / "talk.wav"), "output": str(film), "do": "write", "mb": 1}
    future = stage.pool.submit("fake", id=name, **call)
    future.result(LONG_S)
    assert _path(future) == film
    assert stage.starts(name) == 1
    assert not [path for path in stage.folder.iterdir() if path.name.startswith(".")]


def twice(stage: Stage, name: str) -> Iterator[None]:
    """An id that is given twice."""
    yield
    futures = [stage.pool.submit("fake", id=name, value=name, do="sleep", seconds=0.1) for _ in range(2)]
    assert [future.result(LONG_S)["value"] for future in futures] == [name, name]
    assert stage.starts(name) == 1


def cancelled(stage: Stage, name: str) -> Iterator[None]:
    """A job that is cancelled while it goes away."""
    yield
    future = stage.pool.submit("fake", id=name, do="sleep", seconds=600)
    future.cancel()
    wait_until(future.done, "it is over", LONG_S)
    assert stage.pool.state(name) is JobState.CANCELLED
    assert stage.starts(name) <= 1


def stopped(stage: Stage, name: str) -> Iterator[None]:
    """A job that is cancelled while it runs."""
    yield
    future = stage.pool.submit("fake", id=name, do="sleep", seconds=600)
    wait_until(lambda: stage.starts(name), "it was begun", LONG_S)
    future.cancel()
    wait_until(future.done, "it is over", LONG_S)
    assert stage.pool.state(name) is JobState.CANCELLED
    assert stage.starts(name) == 1


def again(stage: Stage, name: str) -> Iterator[None]:
    """A job that failed by its input, which accuses no slot, and is run again."""
    yield
    future = stage.pool.submit("fake", id=name, do="input")
    assert isinstance(future.exception(LONG_S), JobFailed)
    stage.pool.retry(name)
    once_more: JobFuture = stage.pool.attach(name)
    assert isinstance(once_more.exception(LONG_S), JobFailed)
    assert stage.starts(name) == 2


def taken_over(stage: Stage, name: str) -> Iterator[None]:
    """A job that runs, and one that waits, on a node that is gone for good."""
    stage.end("node")
    first = stage.joined.node(f"first-{name}", {"fake": {**stage.engines["fake"], "max_concurrent_tasks": 1}})
    stage.joined.wait_nodes(first.name)
    call: dict[str, Any] = {"audio": str(stage.folder / "talk.wav"), "value": name}
    runs = stage.pool.submit("fake", id=f"{name}-0", do="partials", seconds=0.4, **call)
    wait_until(lambda: stage.starts(runs.id), "one runs")
    first.freeze()
    waits = stage.pool.submit("fake", id=f"{name}-1", **call)
    wait_until(lambda: any(first.names("ready/fake")), "one waits at the node")
    yield
    first.lose()
    for future in (runs, waits):
        assert future.result(LONG_S)["value"] == name
        record = future.record
        assert record is not None
        assert record.worker.startswith("only/")
        assert [f"node {first.name} was lost" in one.message for one in record.attempts] == [True]
    assert (stage.starts(runs.id), stage.starts(waits.id)) == (2, 1)


def drained(stage: Stage, name: str) -> Iterator[None]:
    """A node that is drained while two jobs run and others wait: what it gives back is done when an agent is back."""
    call: dict[str, Any] = {"audio": str(stage.folder / "talk.wav"), "value": name}
    runs = [stage.pool.submit("fake", id=f"{name}-{n}", do="sleep", seconds=3.0, **call) for n in range(2)]
    wait_until(lambda: all(stage.starts(future.id) for future in runs), "two run")
    waits = [stage.pool.submit("fake", id=f"{name}-{n}", **call) for n in range(2, 4)]
    wait_until(lambda: any(stage.node.names("ready/fake")), "one waits at the node")
    yield
    stage.lives["node"].send_signal(signal.SIGTERM)
    for future in (*runs, *waits):
        assert future.result(LONG_S)["value"] == name
        assert future.record is not None
        assert not future.record.attempts
    assert all(1 <= stage.starts(future.id) <= 2 for future in (*runs, *waits))


def attached(stage: Stage, name: str) -> Iterator[None]:
    """Jobs that another client asks for: one that is over, with its file, one that runs, and one that it cancels."""
    over = stage.pool.submit("fake", id=f"{name}-over", do="write", mb=1)
    over.result(LONG_S)
    yield
    runs = stage.pool.submit("fake", id=f"{name}-runs", do="partials", seconds=0.1, value=name)
    endless = stage.pool.submit("fake", id=f"{name}-endless", do="sleep", seconds=600)
    with FilePool(stage.branches["other"], start=False, patience=LONG_S) as other:

        def attach(job_id: str) -> JobFuture | None:
            with suppress(UnknownJob, ClusterAway):  # nobody answers for the cluster just now
                return other.attach(job_id)
            return None

        found = [wait_until(lambda one=one: attach(one.id), "it is known") for one in (over, runs, endless)]  # type: ignore[misc]
        theirs, followed, asked = (future for future in found if future is not None)
        assert other.cancel(asked.id)
        theirs.result(LONG_S)
        assert str(_path(theirs)).startswith(str(stage.branches["other"].parent))
        assert followed.result(LONG_S) == runs.result(LONG_S)
        for future in (asked, endless):
            with pytest.raises(CancelledError):
                future.result(LONG_S)
    assert [stage.starts(one.id) for one in (over, runs)] == [1, 1]
    assert stage.starts(endless.id) <= 1


def _path(future: JobFuture) -> Path:
    """The one file of a job: a megabyte, with the content that its record says."""
    record = future.record
    assert record is not None
    (file,) = record.files
    path = Path(file["path"])
    assert hashlib.sha256(path.read_bytes()).hexdigest() == file["sha256"]
    assert path.stat().st_size == 1 << 20
    return path


BOTH = [(kind, scene) for kind in ("node", "port") for scene in (files, twice, stopped, again)]
SCENES: list[tuple[str, Scene]] = [
    *BOTH,
    ("port", cancelled),
    ("node", taken_over),
    ("node", drained),
    ("other", attached),
]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("kind", "scene", "stride"),
    [
        *(pytest.param(kind, files, 17, id=f"some-files-{kind}") for kind in ("node", "port")),
        *(
            pytest.param(kind, scene, 1, id=f"all-{scene.__name__}-{kind}", marks=pytest.mark.slow)
            for kind, scene in SCENES
        ),
    ],
)
def test_ended_at_every_step(stage: Stage, kind: str, scene: Scene, stride: int) -> None:
    for number in itertools.count(6, stride) if stride > 1 else itertools.count(1):
        if not stage.act(kind, number, scene):
            assert number > 6, "it came to a step"
            return
