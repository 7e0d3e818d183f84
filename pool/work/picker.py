"""Which waiting job a worker takes next: names held in memory, filled by events and by listing.

A job that has ended a worker waits behind all that have not. So that it does not starve behind a queue that never
empties, each worker takes one such job first every half minute.

Claiming from memory costs microseconds with 100,000 files waiting; listing the directory for each claim would
cost tens of milliseconds. A name that another worker took is simply gone when the claim comes.
"""

from __future__ import annotations

import bisect
import heapq
import os
import time
from collections.abc import Callable, Iterable, Sequence

from pool.constants import MAX_JOB_BYTES, SERVING, STARTING, Phase
from pool.errors import ProtocolError, SpoolError
from pool.format import codec
from pool.format.names import FIRST_BEHIND, JobName, WorkerName, parse_job, parse_worker
from pool.job import Failure, Job
from pool.policy.retries import Retries, left
from pool.runfiles import heartbeat
from pool.spool import fsops
from pool.spool.store import Claim, Spool

_LISTING_SHARE = 20  # a listing that took t is not repeated before 20 t have passed
_BEHIND_S = 30.0  # between two jobs that have ended a worker, while others wait
_ALIVE = STARTING | SERVING
_YIELD_S = 3.0  # how long a job that failed here is left to other slots


class Picker:
    """Waiting jobs of one engine, best first. siblings: whether the engine has other slots now. retries: of the
    engine; a job may say otherwise. suspect: whether this slot may be sick."""

    def __init__(
        self,
        spool: Spool,
        worker: WorkerName,
        rescan_s: float,
        *,
        siblings: Callable[[], bool],
        retries: Retries,
        suspect: Callable[[], bool],
    ) -> None:
        self._spool, self._worker, self._siblings = spool, worker, siblings
        self._rescan_s, self._retries, self._suspect = rescan_s, retries, suspect
        self._names: list[str] = []  # a heap
        self._behind: list[str] = []  # a heap of those that wait behind all others
        self._behind_at = time.monotonic() + _BEHIND_S
        self._yielded: dict[str, float] = {}
        self._listed = False
        self.rescan_at = 0.0

    def feed(self, names: Iterable[str]) -> None:
        """Add the names of new files, from events."""
        for name in names:
            heapq.heappush(self._behind if name >= FIRST_BEHIND else self._names, name)

    def forget(self) -> None:
        """Some arrivals are not told: the directory is listed before the next job is taken."""
        self._names, self._behind, self._listed, self.rescan_at = [], [], False, 0.0

    def rescan(self) -> None:
        """List the directory, which is right whatever the events said. SpoolError when it is of another spool by now,
        where our name may be that of another worker."""
        if reason := self._spool.lost():
            raise SpoolError(reason)
        begun = time.monotonic()
        names = self._spool.list_ready(self._worker.engine)  # sorted, so each part is a heap
        first_behind = bisect.bisect_left(names, FIRST_BEHIND)
        self._names, self._behind = names[:first_behind], names[first_behind:]
        if self._yielded:  # another slot has taken the rest: no reason to wake for them
            there = set(names)
            self._yielded = {name: until for name, until in self._yielded.items() if name in there}
        now = time.monotonic()
        self._listed = True
        self.rescan_at = now + max(self._rescan_s, _LISTING_SHARE * (now - begun))

    def take(self) -> Claim | None:
        """Claim the best job there is; None when nothing is left in memory. Lists first what waited before the first
        arrival was told: as long as others arrive, nobody would look for it."""
        if not self._listed:
            self.rescan()
        if self._behind and time.monotonic() >= self._behind_at:
            claim = self._take_behind()
            if claim is not None:
                return claim
        claim = self._take(self._names)
        if claim is None and self._behind:
            self.rescan()  # RACE: events come late; no other job may wait for one of these
            claim = self._take(self._names) or self._take_behind()
        return claim

    def _take_behind(self) -> Claim | None:
        claim = self._take(self._behind)
        if claim is not None:
            self._behind_at = time.monotonic() + _BEHIND_S
        return claim

    def _take(self, names: list[str]) -> Claim | None:
        left: list[str] = []
        claim = None
        while names and claim is None:
            text = heapq.heappop(names)
            name = parse_job(text)
            if name is None:
                continue
            if name.attempts and self._siblings() and self._left_to_others(text, name):
                left.append(text)
                continue
            claim = self._spool.claim(self._worker.engine, name, self._worker)
        for text in left:
            heapq.heappush(names, text)
        return claim

    def next_look(self) -> float:
        """Monotonic time of the next rescan, or of the end of a yield."""
        return min([self.rescan_at, *self._yielded.values()])

    def _left_to_others(self, text: str, name: JobName) -> bool:
        """Whether to leave a job to other slots for a moment: its last attempt failed here, and the slot may be sick.

        While another slot serves, even a busy one, this goes on when this slot is a suspect, or when all attempts
        failed here and one is left: the cause may be the job or the slot, and a sick slot must not fail a job. A job
        that has no attempt left waits for a second opinion; for that, a slot that is still starting counts, too.
        """
        now = time.monotonic()
        until = self._yielded.get(text)
        if until is not None and now < until:
            return True
        notes = self._spool.notes(name.id, name.attempts)
        here = [self._is_here(note) for note in notes]
        attempts_left = self._left(text, name.attempts, notes) if all(here) else 2
        if (
            here
            and here[-1]
            and (
                (attempts_left < 1 and (until is None or self._others(_ALIVE)))
                or ((until is None or attempts_left < 2 or self._suspect()) and self._others(SERVING))
            )
        ):
            self._yielded[text] = now + _YIELD_S
            return True
        self._yielded.pop(text, None)
        return False

    def _is_here(self, failure: Failure) -> bool:
        return failure.worker.rpartition(".")[0] == self._worker.slot

    def _left(self, text: str, attempts: int, notes: Sequence[Failure]) -> int:
        """How many attempts are left if the next ones fail as the last one did."""
        retries = self._retries
        path = f"{self._spool.ready_dir(self._worker.engine)}/{text}"
        try:
            terms = Job.from_map(codec.decode(fsops.read_bounded(path, MAX_JOB_BYTES), arrays=False)).terms
            retries = retries.under(terms.retry_times, terms.retry_on)
        except (OSError, ProtocolError):
            pass  # taken by another, or broken: the worker that claims it reports it
        return left(attempts, [note.kind for note in notes], retries)

    def _others(self, phases: frozenset[Phase]) -> bool:
        """Whether a worker of another slot is in one of these phases; spares do not count."""
        folder = f"{self._spool.root}/run/heartbeats"
        for entry in os.listdir(folder):
            worker = parse_worker(entry)
            if worker is None or worker.engine != self._worker.engine or worker.slot == self._worker.slot:
                continue
            beat = heartbeat.read(f"{folder}/{entry}")
            if beat is not None and beat.phase in phases and not beat.standby:
                return True
        return False
