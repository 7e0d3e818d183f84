"""One spool with a real supervisor, and what a test needs to watch it, hurt it and leave nothing of it behind."""

from __future__ import annotations

import glob
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from pool.client.filepool import FilePool
from pool.constants import Phase
from pool.errors import UnknownJob
from pool.format.names import parse_worker
from pool.job import JobState, Record
from pool.runfiles import heartbeat
from pool.runfiles.heartbeat import Beat
from pool.runfiles.server import supervisor_identity
from pool.system import cgroup, procs
from pool.system.procs import Identity

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 40.0  # for what must happen soon; the machine may be busy with other things

#: Short times, so that what is noticed after minutes in production is noticed after a second here.
ENGINE: dict[str, Any] = {
    "engine": "inference.fake:Fake",
    "max_concurrent_tasks": 2,
    "stall_timeout_s": 60,
    "stop_grace_s": 2,
    "cancel_grace_s": 0.3,
    "backoff_s": 0.05,
    "backoff_max_s": 0.2,
    "bench_s": 600,
}
TOP: dict[str, Any] = {"durable": False, "min_free_mb": 0, "rescan_s": 0.5, "drain_grace_s": 10, "orphan_grace_s": 20}


def remove(path: Path) -> None:
    """`rm -rf`, again until nothing is left of it."""
    while path.exists():  # RACE: what serves it may put another file into a directory before it is removed
        shutil.rmtree(path, ignore_errors=True)


def wait_until(condition: Callable[[], T], what: str = "", seconds: float = PATIENCE_S) -> T:
    """The first true value of `condition`; AssertionError with `what` when there is none in time."""
    deadline = time.monotonic() + seconds
    while True:
        begun = time.thread_time()
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what or condition}")
        cost = time.thread_time() - begun
        time.sleep(min(max(0.01, 10 * cost), 0.05))  # looking must not keep a core from what is waited for


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    identity = procs.identity_of(pid)
    return identity is not None and identity.alive()


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def below(folder: Path) -> Iterator[Path]:
    """Every path below a folder in which others work: what goes while it is walked is left out; ``rglob`` raises."""
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            yield Path(place, name)


class World:
    """A folder with config.json, a spool, and every process that belongs to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "config.json"
        self.spool = folder / "spool"
        self.serving: list[subprocess.Popen[bytes]] = []
        self._pools: list[FilePool] = []

    # ---- set-up

    def configure(self, engines: Mapping[str, Mapping[str, Any]] | None = None, **top: Any) -> World:
        """Write config.json; each engine is ENGINE with the given changes."""
        chosen = engines or {"fake": {}}
        document = {
            "spool": str(self.spool),
            **TOP,
            **top,
            "engines": {name: {**ENGINE, **changes} for name, changes in chosen.items()},
        }
        self.config.write_text(json.dumps(document))
        return self

    def serve(self, *, ready: int | None = None, tied: bool = False) -> subprocess.Popen[bytes]:
        """Start a supervisor; return when it serves and `ready` workers are loaded (None: do not wait at all)."""
        argv = [sys.executable, "-m", "pool", "serve", "--config", str(self.config), *(["--tied"] if tied else [])]
        with open(self.folder / "serve.log", "ab") as log:
            process = subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.serving.append(process)
        if ready is not None:
            self.wait_ready(ready)
        return process

    def wait_ready(self, count: int) -> None:
        """Until a supervisor serves and has said so, and that many workers are idle or busy, spares included."""

        def look() -> bool:
            assert not self.serving or any(p.poll() is None for p in self.serving), self.log()
            return self.supervisor() is not None and len(self.loaded()) >= count and bool(self.status()["slots"])

        wait_until(look, f"{count} loaded workers")

    def pool(self, *, start: bool = False) -> FilePool:
        """A client of this spool, closed at the end of the test."""
        pool = FilePool(self.config, start=start, patience=PATIENCE_S)
        self._pools.append(pool)
        return pool

    # ---- looking

    def supervisor(self) -> Identity | None:
        identity = supervisor_identity(self.spool / "run" / "supervisor.json")
        return identity if identity is not None and identity.alive() else None

    def spool_id(self) -> str:
        return str(json.loads((self.spool / "run" / "spool.json").read_bytes())["id"])

    def status(self) -> dict[str, Any]:
        """run/status.json: what the supervisor says."""
        try:
            found: dict[str, Any] = json.loads((self.spool / "run" / "status.json").read_bytes())
        except FileNotFoundError:
            found = {"slots": []}
        return found

    def slot(self, name: str) -> dict[str, Any]:
        return next((slot for slot in self.status()["slots"] if slot["slot"] == name), {"seat": "", "pid": None})

    def beats(self) -> dict[str, Beat]:
        """Heartbeat of every worker that lives: {"fake-0.3": Beat}."""
        found = {}
        for path in (self.spool / "run" / "heartbeats").glob("*"):
            beat = heartbeat.read(str(path))
            if beat is not None and parse_worker(path.name) is not None and alive(beat.pid):
                found[path.name] = beat
        return found

    def loaded(self) -> dict[str, Beat]:
        return {name: beat for name, beat in self.beats().items() if beat.phase in (Phase.IDLE, Phase.BUSY)}

    def worker_of(self, job_id: str) -> tuple[str, int]:
        """Name and pid of the worker that runs a job now."""

        def look() -> tuple[str, int] | None:
            for name, beat in self.beats().items():
                if beat.job == job_id and beat.phase is Phase.BUSY and beat.stage != "check":
                    return name, beat.pid
            return None

        found = wait_until(look, f"a worker at {job_id}")
        assert found is not None
        return found

    def state(self, job_id: str) -> JobState | None:
        from pool.spool import lookup
        from pool.spool.store import Spool

        try:
            return lookup.find(Spool(self.spool), job_id).state
        except UnknownJob:
            return None

    def record(self, job_id: str) -> Record:
        """The terminal record, waited for."""
        from pool.spool.store import Spool

        spool = Spool(self.spool)
        wait_until(lambda: spool.decided(job_id), f"a record of {job_id}")
        return spool.read_record(job_id)

    def names(self, folder: str) -> list[str]:
        return sorted(os.listdir(self.spool / folder))

    def held(self) -> list[str]:
        """Job files that are somewhere on their way: none when all is decided."""
        found: set[str] = set()
        tops = (("held", 1), ("deferred", 1), ("ready", 2), ("work", 2), ("away", 1))
        for top, depth in tops * 2:  # one empty pass is no evidence
            for folder, _, files in os.walk(self.spool / top):  # directories may go while we look
                inside = Path(folder).relative_to(self.spool)
                if len(inside.parts) == depth:
                    found.update(str(inside / name) for name in files if name.endswith(".msgpack"))
        return sorted(found)

    def log(self) -> str:
        """What the supervisor said, for the message of a failed test."""
        path = self.folder / "serve.log"
        return path.read_text(errors="replace")[-6000:] if path.exists() else ""

    def processes(self) -> dict[int, str]:
        """Every live process with this spool's tag: {pid: worker}. Not the supervisor, which has none."""
        if not (self.spool / "run" / "spool.json").exists():
            return {}
        return {member.identity.pid: member.worker for member in procs.members(self.spool_id())}

    # ---- hurting

    def kill_supervisor(self) -> None:
        """kill -9, reaped: its workers live on."""
        identity = self.supervisor()
        assert identity is not None
        kill(identity.pid)
        wait_until(lambda: not identity.alive(), "death of the supervisor")
        for process in self.serving:
            process.poll()

    def drain(self, seconds: float = PATIENCE_S) -> int:
        """SIGTERM to the supervisor that serves; its exit code."""
        serving = self.supervisor()
        process = next((p for p in self.serving if serving and p.pid == serving.pid), self.serving[-1])
        process.terminate()
        return process.wait(seconds)

    # ---- end

    def close(self) -> None:
        """End everything that belongs to the spool; whatever state the test left it in."""
        for pool in self._pools:
            with suppress(Exception):
                pool.close()
        for _ in range(100):
            found = [*self.processes(), *(p.pid for p in self.serving if p.poll() is None)]
            identity = self.supervisor()
            if identity is not None:
                found.append(identity.pid)
            for pid in found:
                kill(pid)
            for process in self.serving:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(5)
            if not found:
                break
            time.sleep(0.01)
        if (self.spool / "run" / "spool.json").exists():
            for path in glob.glob(f"{cgroup.home() or '/nowhere'}/filepool-{self.spool_id()}-*"):
                cgroup.end(path, self.spool_id())
        for path in Path("/tmp").glob("filepool-fifo-*"):
            if not alive(int(path.name.rpartition("-")[2])):
                path.unlink(missing_ok=True)


@contextmanager
def passing(folder: Path) -> Iterator[World]:
    """A world in an empty folder; nothing of it stays, neither processes nor files."""
    world = World(folder)
    try:
        yield world
    finally:
        world.close()
        shutil.rmtree(folder, ignore_errors=True)


# ---- the witness of Fake: who ran what, when


def history(witness: Path) -> Iterator[tuple[int, int, str, str, int, str]]:
    """(ns, pid, "start" | "end", job, attempt, "ok" | "overlap" | "") in order of time."""
    lines = []
    for path in witness.glob("*.log"):
        for line in path.read_text().splitlines():
            words = line.split()
            lines.append((int(words[0]), int(path.stem), words[1], words[2], int(words[3]), " ".join(words[4:])))
    yield from sorted(lines)


def overlaps(witness: Path) -> list[str]:
    """Jobs that ran twice at one time: by the lock that a run holds, and by the times of what ended well."""
    found = []
    spans: dict[str, list[tuple[int, int]]] = {}
    open_runs: dict[int, tuple[str, int]] = {}  # what each process is at; a new start means that it was cut short
    for at, pid, what, job, attempt, verdict in history(witness):
        if what == "start":
            if verdict == "overlap":
                found.append(f"{job} attempt {attempt}: its lock was held by a living process")
            spans.setdefault(job, []).append((at, at))
            open_runs[pid] = (job, len(spans[job]) - 1)
        elif open_runs.get(pid, ("", 0))[0] == job:
            number = open_runs.pop(pid)[1]
            spans[job][number] = (spans[job][number][0], at)
    for job, times in spans.items():
        for (_, end), (begin, _) in itertools.pairwise(sorted(times)):
            if begin < end:
                found.append(f"{job}: begun at {begin}, the run before ended at {end}")
    return found
