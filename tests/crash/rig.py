"""A spool, and the programs around it in processes of their own that can be killed at any operation on the disk.

The supervisor is the real one with nobody in its seats, for a few turns; the worker is the real one until its queue
is empty. Both are forked from here, so that a crash point costs milliseconds and not the start of interpreters.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import watchdog.observers.inotify_c  # noqa: F401 - so that no fork needs to
from steps import in_child

import inference.fake  # noqa: F401
from pool.client.filepool import FilePool
from pool.config.settings import parse_config
from pool.format import codec
from pool.format.names import WorkerName, parse_deferred, parse_job
from pool.job import Failure, JobState, Progress, Record
from pool.job.references import ResultRef
from pool.policy import backoff
from pool.runfiles.launch import Launch
from pool.spool import away, fsops
from pool.spool.attempts import cancel_path
from pool.spool.store import Spool
from pool.supervise.supervisor import Supervisor
from pool.system.watch import Watcher
from pool.work.picker import Picker
from pool.work.worker import Worker

from .checker import Report, Spoolview, Told, check
from .points import At, kill_at

ENGINES = {"fake": "inference.fake:Fake", "echo": "inference.fake:Echo"}


class Unmanned(Supervisor):
    """The supervisor with nobody in its seats: start, `turns` turns in which every chore is due, drain."""

    turns = 2

    def _wait(self, watcher: Watcher) -> None:
        for slot in self._fleet.slots:
            slot.policy.retire()
        self._due = dict.fromkeys(self._due, 0.0)
        self._intake.arrived(os.listdir(self.spool.root / "in"))  # whoever wrote them has closed them
        self.turns -= 1
        if self.turns < 0:
            self._drain(time.monotonic(), "the turns are over")


class Temp(Worker):
    """A worker that drains when nothing waits."""

    def _wait(self, picker: Picker, watcher: Watcher) -> None:
        picker.rescan()
        if not self._spool.list_ready(self._name.engine):
            self._draining = True


class Port:
    """Takes what waits to another machine that does it at once. Jobs whose value is "bad" fail there."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool

    def run(self, *, back: bool = False) -> None:
        """Until nothing is away. back: what waits goes and comes back once before."""
        if back:
            self._send()
            for sent in away.waiting(self._spool):
                away.come_back(self._spool, sent)
        self._send()
        for sent in away.waiting(self._spool):
            self._end(sent if self._spool.decided(sent.name.id) else away.begin(self._spool, sent, 1))

    def _send(self) -> None:
        for engine in os.listdir(self._spool.root / "ready"):
            for name in filter(None, map(parse_job, self._spool.list_ready(engine))):
                away.send(self._spool, engine, name)

    def _end(self, sent: away.Away) -> None:
        job, now = away.read(self._spool, sent), self._spool.now()
        state, failure = JobState.COMPLETED, None
        if os.path.lexists(cancel_path(self._spool, job.id)):
            state, failure = JobState.CANCELLED, Failure("cancelled", "cancelled by request", "queued", 1)
        elif job.params["value"] == "bad":
            state, failure = JobState.FAILED, Failure("input", "it is bad", "run", 1)
        if failure is not None:
            failure = replace(failure, attempts=(failure,))
        record = Record(job.id, job.engine, state, 1, job.created, now, now, "node", job.params, failure)
        word = Progress("inference", 50.0, "", 1).to_bytes()
        fsops.put(self._spool.temp(), self._spool.progress_path(job.id), [word], sync=False)
        away.finish(self._spool, sent, record)


class History:
    """What a client does and hears: a line per event, out of its hands before it goes on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(mode=0o700, exist_ok=True)

    def say(self, what: str, **facts: Any) -> None:
        line = json.dumps({"what": what, **facts}).encode() + b"\n"
        fd = os.open(self.folder / f"{os.getpid()}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(fd, line)
        finally:
            os.close(fd)

    def heard(self, pid: int) -> bool:
        """Whether that process has said anything yet."""
        return (self.folder / f"{pid}.jsonl").exists()

    def told(self) -> Told:
        return told_of(self._lines())

    def _lines(self) -> Iterator[str]:
        for path in sorted(self.folder.iterdir()):
            yield from path.read_text().splitlines()


def told_of(lines: Iterable[str]) -> Told:
    """What the lines of a history say."""
    told = Told()
    sets = {one.name: getattr(told, one.name) for one in fields(told) if one.name not in ("values", "read")}
    for line in lines:
        event = json.loads(line)
        if event["what"] in sets and event.get("id"):
            sets[event["what"]].add(event["id"])
        if event.get("value") is not None:
            told.values.add(event["value"])
        if event["what"] == "read":
            told.read[event["id"]] = event["sha256"]
    return told


class Client:
    """A FilePool whose every offer and answer is on record."""

    def __init__(self, rig: Rig) -> None:
        self._history = rig.history
        self.pool = FilePool(rig.config, start=False)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.close()

    def submit(self, id: str | None = None, *, engine: str = "fake", value: Any = None, **more: Any) -> str:
        value = id if value is None else value
        self._history.say("offered", id=id, value=id if isinstance(value, ResultRef) else value)
        if engine == "fake":
            more = {"value": value, **more}
        future = self.pool.submit(engine, id=id, **more)
        self._history.say("accepted", id=future.id)
        return future.id

    def submit_many(self, values: list[str]) -> list[str]:
        for value in values:
            self._history.say("offered", value=value)
        futures = self.pool.submit_many("fake", [{"value": value} for value in values])
        for future in futures:
            self._history.say("accepted", id=future.id)
        return [future.id for future in futures]

    def cancel(self, job_id: str) -> None:
        self._history.say("cancelled", id=job_id)
        self.pool.cancel(job_id)
        self._history.say("stands", id=job_id)

    def retry(self, job_id: str) -> None:
        self._history.say("requeued", id=job_id)
        self.pool.retry(job_id)
        self._history.say("stands", id=job_id)

    def consume(self, job_id: str) -> Any:
        """Read the result, and remove it."""
        self._history.say("removed", id=job_id)
        value = self.pool.attach(job_id, consume=True).result(30)
        self._history.say("result", id=job_id)
        return value

    def read(self, job_id: str) -> None:
        """Look at a record that is there."""
        data = Path(self.pool.spool.record_path(job_id)).read_bytes()
        self._history.say("read", id=job_id, sha256=hashlib.sha256(data).hexdigest())


class Rig:
    """One spool with its surroundings in a folder of its own."""

    def __init__(
        self, folder: Path, *, durable: bool = True, retry_times: int = 5, generation: int = 0, **top: Any
    ) -> None:
        self.folder, self.root = folder, folder / "spool"
        self.witness, self.media = folder / "witness", folder / "media"
        for path in (folder, self.witness, self.media):
            path.mkdir(mode=0o700, exist_ok=True)
        self.durable, self.retry_times = durable, retry_times
        self.options = {"witness": str(self.witness)}
        engines = {
            name: {"engine": spec, "options": self.options, "retry_times": retry_times}
            for name, spec in ENGINES.items()
        }
        document = {"spool": str(self.root), "durable": durable, "min_free_mb": 0, "engines": engines, **top}
        self.config = parse_config(document, folder)
        self.spool = Spool.create(self.root, durable=durable)
        self.history = History(folder / "history")
        self._generation = generation  # of the last worker
        self.died = ""  # the operation at which the last process was killed

    # ---- processes

    def run(self, action: Callable[[Any], object], at: At = 0, begin: Callable[[], object] = lambda: None) -> bool:
        """Do `action(begin())` in a process of its own that is killed when `action` comes to durable operation `at`.
        Whether it came through."""
        note = self.folder / "died"
        note.unlink(missing_ok=True)

        def life() -> None:
            impatient()
            _say_into(self.folder / "stderr")
            begun = begin()
            kill_at(at, note)
            action(begun)

        code = in_child(life)
        self.died = note.read_text() if note.exists() else ""
        if code not in (0, -signal.SIGKILL):
            raise AssertionError(f"it ended with {code}:\n{(self.folder / 'stderr').read_text()[-3000:]}")
        return code == 0

    def client(self, action: Callable[[Client], object], at: At = 0) -> bool:
        """A client does something."""
        return self.run(action, at, lambda: Client(self))

    def serve(self, at: At = 0) -> bool:
        """A supervisor comes, does what there is to do, and drains."""

        return self.run(lambda supervisor: supervisor.run(), at, lambda: Unmanned(self.config))

    def port(self, at: At = 0, *, back: bool = False) -> bool:
        """A port comes, and another machine that does what waits."""
        return self.run(lambda port: port.run(back=back), at, lambda: Port(Spool(self.root, durable=self.durable)))

    def seat(self, engine: str = "fake") -> WorkerName:
        """Name of a new worker, with its directory."""
        self._generation += 1
        worker = WorkerName(engine, 0, self._generation)
        fsops.make_dir(self.spool.work_dir(worker))
        return worker

    def launch(self, engine: str = "fake") -> Launch:
        """What a new worker is told."""
        return Launch(
            spool=str(self.root),
            worker=str(self.seat(engine)),
            spec=ENGINES[engine],
            options=self.options,
            durable=self.durable,
            retry_times=self.retry_times,
            media_roots=tuple(os.path.realpath(root) for root in self.config.media_roots),
        )

    def work(self, at: At = 0, engine: str = "fake") -> bool:
        """A new worker comes and runs what waits."""
        launch = self.launch(engine)
        return self.run(lambda worker: worker.run(), at, lambda: Temp(launch))

    def drop(self, name: str, job: dict[str, Any], job_id: str = "") -> None:
        """Into the drop box, where it has its name at once. job_id: what it shall become; '': refused."""
        encoded = codec.encode(job) if name.endswith(".msgpack") else json.dumps(job).encode()
        (self.folder / "drop").write_bytes(encoded)
        if job_id:
            self.history.say("offered", id=job_id)
        os.rename(self.folder / "drop", self.root / "in" / name)
        if job_id:
            self.history.say("dropped", id=job_id)

    # ---- end

    def finish(self, rounds: int = 12) -> None:
        """Serve and work in turn until nothing waits; the last one is the supervisor, which tidies up."""
        for _ in range(rounds):
            assert self.serve()
            waiting = {sighting.path.parent.name for found in Spoolview(self.root).held.values() for sighting in found}
            if not waiting:
                break
            if "away" in waiting:
                assert self.port()
            for engine in sorted(waiting & ENGINES.keys()):
                assert self.work(engine=engine)
            due = [parsed[0] for parsed in map(parse_deferred, os.listdir(self.root / "deferred")) if parsed]
            time.sleep(max(0.002, (max(due, default=0) - self.spool.now()) / 1e6))

    def check(self, **how: Any) -> Report:
        return check(self.root, self.history.told(), self.witness, **how)

    def verify(self, **how: Any) -> Report:
        """Check, and fail with every fault."""
        report = self.check(**how)
        if report.faults():
            raise AssertionError(f"{report.faults()}; killed at: {self.died or 'nothing'}")
        return report


def impatient() -> None:
    """Retries are due at once."""
    backoff.RETRY_FIRST_S = backoff.RESOURCE_FIRST_S = 0.0005


def _say_into(path: Path) -> None:
    """What this process says goes into a file."""
    with open(path, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    from loguru import logger

    logger.remove()
    logger.add(sys.stderr, level="WARNING")
