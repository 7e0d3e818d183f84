"""What waiting jobs may expect, each for itself: of its own engine, and of those of the jobs that it waits for.

A job in held/ runs only after others. When one of those, or one that they wait for in turn, can never run as things
are, neither can this one. A job that a living worker holds is well, and so is one that has begun on another machine: it
may end, whatever becomes of its engine.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping

from pool.constants import MAX_JOB_BYTES
from pool.errors import ProtocolError
from pool.format import codec
from pool.format.names import parse_dead, parse_worker
from pool.job import Job
from pool.policy.prospects import Outlook, PoolFacts, Prospect, prospect
from pool.spool import away, fsops, lookup
from pool.spool.store import Spool

_KEPT = 10_000  # jobs whose engine or needs are remembered


class Hopes:
    """Of jobs in one spool. What a job needs and its engine never change: each file is read once."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._needs: dict[str, tuple[str, ...]] = {}
        self._engines: dict[str, str] = {}
        self._labels: dict[str, tuple[str, ...]] = {}

    def learn(self, job_id: str, labels: tuple[str, ...]) -> None:
        """The labels that a job wants, from one who knows: its file need not be read for them."""
        self._labels[job_id] = labels

    def of(self, jobs: Mapping[str, str], facts: PoolFacts) -> dict[str, Prospect]:
        """Job -> what it may expect now. jobs: id -> engine of jobs that are not decided."""
        look = _Look(self._spool, facts, self._labels)
        if facts.away is not None:
            self._learn_of(jobs)
        own = {job_id: look.of(job_id, engine) for job_id, engine in jobs.items()}
        parsed = ((entry, parse_dead(entry)) for entry in self._spool.list_held())
        held = {name[1].id: (entry, name[0]) for entry, name in parsed if name is not None}
        if held.keys().isdisjoint(own) or (facts.away is None and look.all_fine(engine for _, engine in held.values())):
            return own
        needs = self._chains(held, (job_id for job_id, found in own.items() if not found.hopeless))
        if facts.away is not None:
            self._learn_of({other for others in needs.values() for other in others})
        for job_id in needs.keys() & own.keys():
            for other in _behind(job_id, needs):
                found = look.of(other, self._engines[other]) if other in self._engines else None
                if found is not None and found.outlook is not Outlook.FINE:
                    own[job_id] = found.needed_by(other)
                    if found.hopeless:
                        break
        return own

    def _learn_of(self, jobs: Collection[str]) -> None:
        """Read from their files which labels jobs want, as far as that is not known."""
        if len(self._labels) > _KEPT + len(jobs):
            self._labels = {job_id: self._labels[job_id] for job_id in jobs if job_id in self._labels}
        unknown = set(jobs) - self._labels.keys()
        for place in lookup.undecided(self._spool) if unknown else ():
            if place.name is not None and place.name.id in unknown:
                job = _read(place.path)
                if job is not None:
                    self._labels[job.id] = job.terms.labels

    def _chains(self, held: Mapping[str, tuple[str, str]], jobs: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """What jobs in held/ still wait for: these, and those behind them. held: id -> file name, engine."""
        if len(self._needs) + len(self._engines) > _KEPT:
            self._needs.clear()
            self._engines.clear()
        found: dict[str, tuple[str, ...]] = {}
        front = {job_id for job_id in jobs if job_id in held}
        while front:
            for job_id in front:
                entry, self._engines[job_id] = held[job_id]
                needs = self._needs_of(job_id, entry)
                found[job_id] = tuple(other for other in needs if not self._spool.decided(other))
            front = {other for job_id in front for other in found[job_id] if other in held and other not in found}
        unknown = {other for needs in found.values() for other in needs} - self._engines.keys()
        if unknown:  # RACE: one that moves just now is seen by the next look
            for place in lookup.undecided(self._spool):
                if place.name is not None and place.name.id in unknown:
                    self._engines[place.name.id] = place.engine
        return found

    def _needs_of(self, job_id: str, entry: str) -> tuple[str, ...]:
        if job_id not in self._needs:
            job = _read(f"{self._spool.root}/held/{entry}")
            if job is None:
                return ()
            self._needs[job_id] = tuple(job.depends_on)
        return self._needs[job_id]


def _read(path: str) -> Job | None:
    try:
        return Job.from_map(codec.decode(fsops.read_bounded(path, MAX_JOB_BYTES), arrays=False))
    except (OSError, ProtocolError):  # RACE: it just moved on
        return None


class _Look:
    """What holds at one moment. labels: of jobs, as far as they are known."""

    def __init__(self, spool: Spool, facts: PoolFacts, labels: Mapping[str, tuple[str, ...]]) -> None:
        self._spool, self._facts, self._labels = spool, facts, labels
        self._prospects: dict[tuple[str, tuple[str, ...]], Prospect] = {}
        self._held: dict[str, frozenset[str]] = {}  # by engine: jobs that living workers hold, and other machines

    def of(self, job_id: str, engine: str) -> Prospect:
        found = self._prospect(engine, self._labels.get(job_id, ()))
        if found.hopeless:
            if engine not in self._held:
                self._held[engine] = frozenset(self._holds(engine))
            if job_id in self._held[engine]:
                return Prospect(engine, Outlook.FINE)
        return found

    def all_fine(self, more: Iterable[str]) -> bool:
        """Whether all engines serve: those of the pool, those that have a queue, and more."""
        here = {slot.engine for slot in self._facts.slots}.union(self._facts.engines or (), more)
        here.update(one.engine for one in away.waiting(self._spool))
        engines = here.union(os.listdir(f"{self._spool.root}/ready"))
        return all(self._prospect(engine).outlook is Outlook.FINE for engine in engines)

    def _prospect(self, engine: str, labels: tuple[str, ...] = ()) -> Prospect:
        key = (engine, labels)
        if key not in self._prospects:
            self._prospects[key] = prospect(engine, self._facts, labels)
        return self._prospects[key]

    def _holds(self, engine: str) -> Iterator[str]:
        for slot in self._facts.slots:
            worker = parse_worker(slot.worker) if slot.engine == engine else None
            if worker is not None:
                yield from (claim.name.id for claim in self._spool.claims(worker))
        yield from (one.name.id for one in away.waiting(self._spool) if one.engine == engine and one.name.attempts)


def _behind(job_id: str, needs: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    """All that one job waits for, the nearest first."""
    seen, front = {job_id}, [job_id]
    while front:
        front = list(dict.fromkeys(other for one in front for other in needs.get(one, ()) if other not in seen))
        seen.update(front)
        yield from front
