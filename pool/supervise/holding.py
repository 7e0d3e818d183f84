"""Jobs in held/: let go when all that they wait for has completed, ended when it never will.

The supervisor looks at out/ only while something is held; what it hears there is a hint, its rescan is the truth.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from pool.constants import MAX_JOB_BYTES
from pool.errors import ProtocolError
from pool.format import codec
from pool.format.names import parse_dead, parse_record
from pool.job import Failure, Job, JobState
from pool.spool import dependencies, fsops
from pool.spool.acceptance import keep_for
from pool.spool.lookup import Location
from pool.spool.placement import let_go
from pool.spool.seizure import Seizer
from pool.spool.store import Spool
from pool.system.watch import Watcher


@dataclass
class _Held:
    """A job that was read once. completed: those of its dependencies that were seen so; waits: those that were not."""

    job: Job
    completed: set[str] = field(default_factory=set)
    waits: tuple[str, ...] = ()


class Holding:
    """Looks after held jobs, in the supervisor."""

    def __init__(self, spool: Spool, seizer: Seizer) -> None:
        self._spool, self._seizer = spool, seizer
        self._held: dict[str, _Held] = {}  # by file name
        self._waiting: dict[str, set[str]] = {}  # id -> file names of those that wait for it
        self._outcomes: Watcher | None = None

    # ---- what it hears

    def fileno(self) -> int | None:
        """Readable when jobs have ended; None while nothing is held."""
        return None if self._outcomes is None else self._outcomes.fileno()

    def hear(self) -> None:
        """Look at those that wait for a job that has just ended."""
        if self._outcomes is None:
            return
        arrivals = self._outcomes.read()
        if arrivals.rescan:
            self.turn()
            return
        ended = {job_id for job_id in map(parse_record, arrivals.names.get("out", ())) if job_id}
        self._look_at({entry for job_id in ended & self._waiting.keys() for entry in self._waiting[job_id]})

    def turn(self) -> None:
        """Look at all of them."""
        there = set(self._spool.list_held())
        for entry in self._held.keys() - there:
            self._forget(entry)
        if there and self._outcomes is None:
            self._outcomes = Watcher({"out": self._spool.root / "out"})
        elif self._outcomes is not None:
            if there:
                self._outcomes.verify()
            else:
                self.close()
        self._look_at(there)

    def arrived(self, entries: Iterable[str]) -> None:
        """Names that are new in held/."""
        if self._outcomes is None:
            self.turn()
        else:
            self._look_at(entries)

    def seek(self) -> None:
        """End those that wait for what is not there any more. Costs a look through the spool; now and then."""
        for entry, held in list(self._held.items()):
            failure = dependencies.gone(self._spool, held.waits)
            if failure is not None:
                self._end(entry, failure)

    def close(self) -> None:
        """Stop watching for results."""
        if self._outcomes is not None:
            self._outcomes.close()
            self._outcomes = None

    # ---- one job

    def _look_at(self, entries: Iterable[str]) -> None:
        for entry in entries:
            if parse_dead(entry) is not None:
                self._consider(entry)

    def _consider(self, entry: str) -> None:
        held = self._held.get(entry)
        if held is None:
            try:
                held = self._read(entry)
            except FileNotFoundError:
                return  # RACE: it has gone meanwhile
            except (OSError, ProtocolError) as error:
                self._end(entry, Failure("infrastructure", f"the job file cannot be read: {error}", "queued"))
                return
            self._held[entry] = held
            for job_id in held.job.depends_on:
                self._waiting.setdefault(job_id, set()).add(entry)
                keep_for(self._spool, job_id, held.job.id)  # it was not synced, or the job is run again
        standing = dependencies.look(self._spool, held.job.depends_on, known=held.completed)
        held.waits = standing.waits
        held.completed = set(held.job.depends_on) - set(standing.waits)
        if standing.failure is not None:
            self._end(entry, standing.failure)
        elif not standing.waits:
            try:
                let_go(self._spool, entry, held.job)
            except FileNotFoundError:
                pass
            self._forget(entry)

    def _read(self, entry: str) -> _Held:
        data = fsops.read_bounded(f"{self._spool.root}/held/{entry}", MAX_JOB_BYTES)
        job = Job.from_map(codec.decode(data, arrays=False))
        parsed = parse_dead(entry)
        if parsed is None or (job.engine, job.id) != (parsed[0], parsed[1].id):
            raise ProtocolError(f"it is named {entry} and holds job {job.id!r}")
        return _Held(job)

    def _end(self, entry: str, failure: Failure) -> None:
        self._forget(entry)
        parsed = parse_dead(entry)
        if parsed is None:
            return
        place = Location(JobState.HELD, parsed[0], f"{self._spool.root}/held/{entry}", parsed[1])
        claim = self._seizer.seize(place)
        if claim is not None:
            self._seizer.end(claim, self._seizer.read(claim), JobState.FAILED, failure)
            self._seizer.tidy()

    def _forget(self, entry: str) -> None:
        held = self._held.pop(entry, None)
        for job_id in held.job.depends_on if held is not None else ():
            entries = self._waiting.get(job_id, set())
            entries.discard(entry)
            if not entries:
                self._waiting.pop(job_id, None)
