"""One look at the jobs that wait and run, for a list of them: only names are read, but of the jobs that are shown.

Order of the look: work, away, held, deferred, ready, work, away, held, deferred. A job on its way from ready/ to out/
is met in one of them; so is one whose attempt failed and that waits in deferred/. What was in work/ or away/ at first
and is nowhere later was given back to ready/ behind our back, or has ended; its possible names there are looked at one
by one. A job that was claimed and given back while ready/ was read could still be missed, so a queue is read twice,
unless it is so long that reading it is what takes the time.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Collection, Iterator
from operator import itemgetter

from pool.client.index import Index
from pool.errors import ProtocolError
from pool.format.names import JobName, parse_aside, parse_dead, parse_deferred, parse_job
from pool.job import JobState, heads
from pool.job.heads import Head, key_of
from pool.spool import lookup
from pool.spool.lookup import Location

_KEY = itemgetter(slice(4, -10))  # of a job file's name: what Head.key is
_ID = slice(21, -11)
_SENT = frozenset({JobState.QUEUED, JobState.RUNNING})  # what a job in away/ may be
_TRIES = 5
_LONG = 5000  # names


class Live:
    """engines: only these, empty for all; states: which of held, deferred, queued and running to look for. index:
    remembers long queues."""

    def __init__(self, index: Index, engines: Collection[str], states: Collection[JobState]) -> None:
        self._index, self._engines, self._states = index, engines, frozenset(states)
        self._spool = index.spool
        self._ready: dict[str, list[str]] = {}
        self._early: dict[str, Location] = {}
        self._late: dict[str, Location] = {}  # seen after ready/, which it overrules
        self._named: dict[str, tuple[str, str]] = {}  # key -> engine, name of what waits, once it is needed
        before = dict(self._running())
        self._early.update(self._deferred())
        for engine in self._queues() if JobState.QUEUED in states else ():
            self._ready[engine] = self._names(engine)
        self._late.update(self._running())
        self._late.update(self._deferred())
        for key, place in before.items():
            if key not in self._late and (back := self._given_back(place)) is not None:
                self._late[key] = back
        for engine, names in self._ready.items():
            if len(names) < _LONG:
                self._ready[engine] = list({*names, *self._names(engine)})

    def look_again(self, ids: Collection[str]) -> None:
        """Jobs that had ended and may wait again: in ready/ by now, or on the way there."""
        for engine in self._queues():
            for name in self._names(engine):
                if name[_ID] in ids:
                    self._enter(engine, name, f"{self._spool.ready_dir(engine)}/{name}")
        self._late.update(self._running())
        self._late.update(self._deferred())
        folder = f"{self._spool.root}/dead"
        entries = os.listdir(folder)
        aside = {parsed[0] for parsed in map(parse_aside, entries) if parsed is not None} & set(ids)
        for entry in entries if aside else ():
            dead = parse_dead(entry)
            if dead is not None and dead[1].id in aside:
                self._enter(dead[0], str(dead[1]), f"{folder}/{entry}")

    def newest(self, before: str, count: int) -> list[str]:
        """Keys of the newest jobs below a key, "" for all, newest first."""
        found: set[str] = {key for key in (*self._late, *self._early) if not before or key < before}
        for engine, names in self._ready.items():
            if before:
                names = [name for name in names if name[4:-10] < before]
            for name in heapq.nlargest(count, names, key=_KEY):
                key = name[4:-10]
                found.add(key)
                if key not in self._late:
                    self._early[key] = self._place(engine, name)
        return heapq.nlargest(count, found)

    def keys(self) -> set[str]:
        """Of all jobs."""
        if not self._named:
            self._named = {name[4:-10]: (engine, name) for engine, names in self._ready.items() for name in names}
        return {*self._named, *self._early, *self._late}

    def head(self, key: str) -> Head | None:
        """What is to be shown of a job, wherever it is by now; None: it is gone, or not of those looked for."""
        place = self._late.get(key)
        if place is None:
            place = self._place(*self._named[key]) if key in self._named else self._early.get(key)
        if place is None or place.name is None or key_of(place.name.born, place.name.id) != key:
            return None
        job_id = place.name.id
        for _ in range(_TRIES):
            head = self._read(place)
            if head is not None:
                return head
            try:
                return heads.read_record(self._spool.record_path(job_id), job_id)
            except FileNotFoundError:
                moved = dict((*self._running(), *self._deferred())).get(key) or self._given_back(place)
            place = moved or place  # RACE: nowhere for a moment is no evidence
        return None

    def _read(self, place: Location) -> Head | None:
        name = place.name
        assert name is not None
        worker = str(place.worker) if place.worker else ""
        try:
            return heads.read_job(place.path, place.state, name.attempts, worker)
        except FileNotFoundError:
            return None
        except (ProtocolError, OSError) as error:
            what = f"its file cannot be read: {error}"
            return Head(name.id, place.engine, place.state.value, name.born, name.attempts, worker=worker, reason=what)

    # ---- directories

    def _queues(self) -> list[str]:
        return [engine for engine in os.listdir(f"{self._spool.root}/ready") if self._fits(engine)]

    def _fits(self, engine: str) -> bool:
        return not self._engines or engine in self._engines

    def _names(self, engine: str) -> list[str]:
        try:
            return self._index.names(f"ready/{engine}")
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _running(self) -> Iterator[tuple[str, Location]]:
        if JobState.RUNNING in self._states:
            for place in lookup.running(self._spool):
                if place.name is not None and self._fits(place.engine):
                    yield key_of(place.name.born, place.name.id), place
        if self._states & _SENT:
            for place in lookup.sent(self._spool):
                if place.name is not None and self._fits(place.engine) and place.state in self._states:
                    yield key_of(place.name.born, place.name.id), place

    def _deferred(self) -> Iterator[tuple[str, Location]]:
        for entry in self._spool.list_held() if JobState.HELD in self._states else ():
            held = parse_dead(entry)
            if held is not None and self._fits(held[0]):
                place = Location(JobState.HELD, held[0], f"{self._spool.root}/held/{entry}", held[1])
                yield key_of(held[1].born, held[1].id), place
        folder = f"{self._spool.root}/deferred"
        for entry in os.listdir(folder) if JobState.DEFERRED in self._states else ():
            parsed = parse_deferred(entry)
            if parsed is not None and self._fits(parsed[1]):
                due, engine, name = parsed
                place = Location(JobState.DEFERRED, engine, f"{folder}/{entry}", name, due=due)
                yield key_of(name.born, name.id), place

    def _given_back(self, place: Location) -> Location | None:
        """RACE: a job that was released, tried again at once, or came back after ready/ was read."""
        name = place.name
        assert name is not None
        if JobState.QUEUED in self._states:
            for attempts in (name.attempts, name.attempts - 1, name.attempts + 1):
                other = JobName(name.rank, name.born, name.id, max(0, attempts))
                path = f"{self._spool.ready_dir(place.engine)}/{other}"
                if os.path.lexists(path):
                    return Location(JobState.QUEUED, place.engine, path, other)
        return None

    def _enter(self, engine: str, name: str, path: str) -> None:
        if self._fits(engine) and JobState.QUEUED in self._states and (job := parse_job(name)) is not None:
            self._late[key_of(job.born, job.id)] = Location(JobState.QUEUED, engine, path, job)

    def _place(self, engine: str, name: str) -> Location:
        return Location(JobState.QUEUED, engine, f"{self._spool.ready_dir(engine)}/{name}", parse_job(name))
