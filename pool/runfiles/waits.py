"""Jobs that wait for jobs: what workers' processes say of their blocking waits, and whether such a wait can ever end.

A process inside a worker that has waited for about a second leaves run/waits/<worker>.<pid>.<number>.json: which job
its worker runs, and which jobs it waits for. It is removed when the wait ends. A note counts only while its process
lives and its worker still holds that job, so one that was left behind says nothing.

    a job ends      when it is decided; or a worker that can go on holds it; or it waits for an engine of which a
                    worker can go on, or another one may come
    a worker goes on    unless it waits; else when one of the jobs that it waits for ends

What follows from these two rules and nothing else will end. The rest is a deadlock. "One of the jobs" leaves the
benefit of the doubt: a worker that waits for several is found as soon as those that end have ended.
"""

from __future__ import annotations

import itertools
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pool.constants import ENV_SPOOL, ENV_WORKER
from pool.errors import NestedDeadlock
from pool.format.names import parse_worker
from pool.policy.prospects import PoolFacts
from pool.runfiles import heartbeat
from pool.spool import fsops
from pool.spool.store import Spool
from pool.system import procs
from pool.system.forked import renew_in_children
from pool.system.procs import Identity

_MAX_NOTE_BYTES = 1024 * 1024
_numbers = itertools.count()  # several FilePools of one process
_CHAIN = 8  # links that an error names


@dataclass(frozen=True)
class Wait:
    """One worker that waits. job: what it runs. awaits: id -> engine of the jobs that it waits for."""

    worker: str
    job: str
    awaits: Mapping[str, str]


@dataclass(frozen=True)
class Scene:
    """What is known at one moment. held: job -> worker. serving: engine -> workers that take its jobs. opening:
    engines for which another worker may come. decided: jobs with a record."""

    waits: Sequence[Wait]
    held: Mapping[str, str] = field(default_factory=dict)
    serving: Mapping[str, Sequence[str]] = field(default_factory=dict)
    opening: frozenset[str] = frozenset()
    decided: frozenset[str] = frozenset()

    def stuck(self) -> dict[str, str]:
        """Jobs that will never end as things are, with their engines."""
        jobs = {job: engine for wait in self.waits for job, engine in wait.awaits.items()}
        ending: set[str] = set()
        while True:
            moving = [wait for wait in self.waits if not ending.isdisjoint(wait.awaits)]
            blocked = {wait.worker for wait in self.waits} - {wait.worker for wait in moving}
            more = {job for job, engine in jobs.items() if job not in ending and self._ends(job, engine, blocked)}
            if not more:
                return {job: engine for job, engine in jobs.items() if job not in ending}
            ending |= more

    def _ends(self, job: str, engine: str, blocked: set[str]) -> bool:
        if job in self.decided:
            return True
        if job in self.held:
            return self.held[job] not in blocked
        return engine in self.opening or any(worker not in blocked for worker in self.serving.get(engine, ()))

    def chain(self, wait: Wait, stuck: Mapping[str, str]) -> list[tuple[str, str, str]]:
        """(job, worker, awaited job) from one wait on, along those that it hangs on."""
        by_worker: dict[str, list[Wait]] = {}
        for other in self.waits:
            by_worker.setdefault(other.worker, []).append(other)
        links: list[tuple[str, str, str]] = []
        waiting, seen = [wait], {wait.worker}
        while waiting and len(links) < _CHAIN:
            current = waiting.pop(0)
            for job in sorted(stuck.keys() & current.awaits.keys()):
                links.append((current.job, current.worker, job))
                behind = [self.held[job]] if job in self.held else self.serving.get(stuck[job], ())
                for worker in behind:
                    if worker not in seen:
                        seen.add(worker)
                        waiting += by_worker.get(worker, ())
        return links


class Inside:
    """This process as part of a worker: says what it waits for, and finds waits that cannot end."""

    def __init__(self, spool: Spool, worker: str) -> None:
        self._spool, self._worker = spool, worker
        self._number = next(_numbers)
        self._lock = threading.Lock()
        self._told: tuple[str, str, dict[str, str]] = ("", "", {})  # path, job, what it waits for
        self._suspected: frozenset[str] = frozenset()
        renew_in_children(self)

    def after_fork(self) -> None:
        """A child says for itself what it waits for, and leaves its parent's note alone."""
        self._lock = threading.Lock()
        self._told = ("", "", {})

    def deadlocks(self, awaits: Mapping[str, str], facts: PoolFacts) -> Iterator[tuple[NestedDeadlock, bool]]:
        """Waits of this process that never end, with whether this one is to give way, of all that are in it the last
        one. awaits: id -> engine of what it waits for now. RACE: a wait that ends while we look; only what was seen
        twice in a row is believed."""
        with self._lock:
            job = self._tell(awaits)
        mine = Wait(self._worker, job, awaits)
        found = frozenset[str]()
        if job and facts.served and not facts.draining:
            scene = read_scene(self._spool, facts)
            stuck = scene.stuck()
            found = frozenset(other for other in mine.awaits if other in stuck and other not in scene.held)
            last = max((wait.job for wait in scene.waits if _asks(wait, scene, stuck)), default="")
            for other in sorted(found & self._suspected):
                yield NestedDeadlock(stuck[other], other, scene.chain(mine, stuck)), job == last
        self._suspected = found

    def over(self) -> None:
        """Nothing is waited for any more."""
        if self._told[0]:
            with self._lock:
                self._forget()

    def _tell(self, awaits: Mapping[str, str]) -> str:
        """Leave the note; the job that this worker runs, "" when it runs none."""
        beat = heartbeat.read(f"{self._spool.root}/run/heartbeats/{self._worker}")
        job = beat.job if beat is not None else ""
        me = procs.identity_of(os.getpid())
        if not (job and awaits and me is not None):
            self._forget()
            return ""
        path = f"{self._spool.root}/run/waits/{self._worker}.{me.pid}.{self._number}.json"
        if self._told != (path, job, awaits):
            body = {"worker": self._worker, "job": job, "identity": me.to_map(), "awaits": dict(awaits)}
            temp = self._spool.temp()
            fsops.write_new(temp, [json.dumps(body).encode()], sync=False)
            fsops.replace(temp, path)
            self._told = (path, job, dict(awaits))
        return job

    def _forget(self) -> None:
        path, self._told = self._told[0], ("", "", {})
        if path:
            fsops.unlink(path, missing_ok=True)


def inside(spool: Spool) -> Inside | None:
    """This process as part of a worker of that very spool, else None."""
    worker = os.environ.get(ENV_WORKER, "")
    if os.environ.get(ENV_SPOOL) != spool.id or parse_worker(worker) is None:
        return None
    return Inside(spool, worker)


def read_scene(spool: Spool, facts: PoolFacts) -> Scene:
    """What is known now of all waits inside workers."""
    held: dict[str, str] = {}
    serving: dict[str, list[str]] = {}
    opening: set[str] = set()
    for slot in facts.slots:
        worker = parse_worker(slot.worker)
        if worker is not None:
            held.update((claim.name.id, slot.worker) for claim in spool.claims(worker))
        if slot.serving:
            serving.setdefault(slot.engine, []).append(slot.worker)
        elif not slot.spare and slot.seat not in ("benched", "off"):
            opening.add(slot.engine)
    waits = [wait for wait in read_notes(spool) if held.get(wait.job) == wait.worker]
    decided = frozenset(job for wait in waits for job in wait.awaits if spool.decided(job))
    return Scene(waits, held, serving, frozenset(opening), decided)


def read_notes(spool: Spool) -> Iterator[Wait]:
    """What the living have said. Notes of the dead are removed."""
    folder = f"{spool.root}/run/waits"
    for name in os.listdir(folder):
        try:
            value = json.loads(fsops.read_bounded(f"{folder}/{name}", _MAX_NOTE_BYTES))
            awaits = {str(job): str(engine) for job, engine in value["awaits"].items()}
            wait, identity = Wait(str(value["worker"]), str(value["job"]), awaits), Identity.from_map(value["identity"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # RACE: it was removed; or it is not ours
        if identity.alive():
            yield wait
        else:
            fsops.unlink(f"{folder}/{name}", missing_ok=True)


def sweep(spool: Spool) -> None:
    """Remove the notes of the dead."""
    for _ in read_notes(spool):
        pass


def _asks(wait: Wait, scene: Scene, stuck: Mapping[str, str]) -> bool:
    """Whether it waits for a job that waits in a queue: those are the ones that can give way."""
    return any(job in stuck and job not in scene.held for job in wait.awaits)
