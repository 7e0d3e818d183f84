"""Ending a job that waits: the supervisor takes it as a worker would, so that no worker can, and publishes its record.

Taken jobs are in work/<engine>-9999.<generation>/. When the supervisor is killed in between, the next one finds them
there (`Recovery`) and puts them where they were.
"""

from __future__ import annotations

from dataclasses import replace

from pool.errors import ProtocolError
from pool.format.names import WorkerName
from pool.job import Failure, Job, JobState
from pool.spool import fsops, settlement
from pool.spool.lookup import Location
from pool.spool.store import Claim, Spool

SEIZER = 9999  # index of the pseudo worker


class Seizer:
    """generation: of this supervisor; never used twice in a spool. `tidy` at the end of each turn."""

    def __init__(self, spool: Spool, generation: int) -> None:
        self._spool, self._generation = spool, generation
        self._made: set[str] = set()  # directories

    def seize(self, place: Location) -> Claim | None:
        """Take a job that waits here; None when a worker was faster, or the cluster."""
        name = place.name
        assert name is not None
        if place.away:
            return None
        worker = WorkerName(place.engine, SEIZER, self._generation)
        directory = self._spool.work_dir(worker)
        if directory not in self._made:
            self._made.add(directory)
            if fsops.make_dir(directory) and self._spool.durable:
                fsops.sync_dir(f"{self._spool.root}/work")  # else a power loss removes the directory with the job
        claim = Claim(f"{directory}/{name}", name, worker)
        try:
            fsops.rename(place.path, claim.path)
        except FileNotFoundError:
            return None
        return claim

    def read(self, claim: Claim) -> Job | None:
        """None when nothing can."""
        try:
            return self._spool.read_claim(claim, arrays=False)
        except (ProtocolError, OSError):
            return None

    def end(self, claim: Claim, job: Job | None, state: JobState, reason: Failure) -> None:
        """Publish the record of a job that was taken, and tidy up."""
        spool, attempts = self._spool, claim.name.attempts
        reason = replace(reason, attempt=attempts, at=spool.now())
        settlement.end(spool, claim, job, state, reason, begun=False)
        spool.forget_notes(claim.name.id, attempts)

    def tidy(self) -> None:
        """Remove the directories of what was taken, if nothing is left in them."""
        self._made = {directory for directory in self._made if not fsops.remove_dir(directory)}
