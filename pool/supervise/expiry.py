"""Jobs that are not worth running any more: those with a term `expires` that no worker has begun by then.

A worker looks at what it claims; the supervisor looks at what waits, by marks in run/expiry/, so that it opens no file
of a job before its time, and a job expires that no worker can take.
"""

from __future__ import annotations

import os
import time

from pool.constants import TURN_S
from pool.errors import UnknownJob
from pool.format.names import parse_expiry
from pool.job import Failure, JobState
from pool.spool import away, fsops, lookup, settlement
from pool.spool.acceptance import in_flight
from pool.spool.lookup import Location
from pool.spool.placement import put_back
from pool.spool.seizure import Seizer
from pool.spool.store import Spool


class Expiry:
    """Ends what waits and is over, in the supervisor. turn_s: seconds after which a turn leaves the rest to the next
    one."""

    def __init__(self, spool: Spool, seizer: Seizer, *, turn_s: float = TURN_S) -> None:
        self._spool, self._seizer, self._turn_s = spool, seizer, turn_s
        self._folder = f"{spool.root}/run/expiry"

    def turn(self) -> int | None:
        """Look at what is due; the spool time of the next one, None when nothing is."""
        now, upcoming = self._spool.now(), None
        due: dict[str, list[str]] = {}
        for entry in sorted(os.listdir(self._folder)):
            parsed = parse_expiry(entry)
            if parsed is None:
                continue
            if parsed[0] > now:
                upcoming = parsed[0]
                break
            due.setdefault(parsed[1], []).append(f"{self._folder}/{entry}")
        if due:  # a job that waits in the cluster expires there: its mark stays until that is decided
            sent = {one.name.id for one in away.waiting(self._spool) if not one.name.attempts}
            due = {job_id: marks for job_id, marks in due.items() if job_id not in sent}
        if due:
            found = lookup.undecided(self._spool)
            places = {place.name.id: place for place in found if place.name and place.name.id in due}
            until = time.monotonic() + self._turn_s
            for job_id, marks in due.items():
                if time.monotonic() > until:
                    upcoming = now
                    break
                if self._settle(job_id, places.get(job_id), marks):
                    for mark in marks:
                        fsops.unlink(mark, missing_ok=True)
            self._seizer.tidy()
        return upcoming

    def _settle(self, job_id: str, place: Location | None, marks: list[str]) -> bool:
        """Whether its marks are no longer needed."""
        if place is None or place.name is None:
            return self._is_gone(job_id, marks)
        if place.name.attempts and place.worker is None:
            return True  # it was begun, and will be again
        if place.worker is not None:
            return place.name.attempts > 1  # else it may yet come back as one that was not begun
        claim = self._seizer.seize(place)
        if claim is None:
            return False  # RACE: a worker was faster, or the port
        job = self._seizer.read(claim)
        if job is None:
            reason: Failure | None = Failure("infrastructure", "it expired, and its file cannot be read", "queued")
        else:
            reason = settlement.too_late(self._spool, job, claim.name)
        if reason is not None:
            self._seizer.end(claim, job, JobState.FAILED, reason)
        elif job is not None:  # the mark was of another submit under this id
            put_back(self._spool, claim, job)
        return True

    def _is_gone(self, job_id: str, marks: list[str]) -> bool:
        if any(in_flight(self._spool, mark) for mark in marks):
            return False
        try:
            return lookup.find(self._spool, job_id, local=True).state.terminal
        except UnknownJob:
            return True
