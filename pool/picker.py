"""Which waiting job a worker takes next: names held in memory, filled by events and by listing.

Claiming from memory costs microseconds with 100,000 files waiting; listing the directory for each claim would
cost tens of milliseconds. A name that another worker took is simply gone when the claim comes.
"""

from __future__ import annotations

import heapq
import time

from pool.job import Failure
from pool.names import WorkerName, parse_job
from pool.spool import Claim, Spool

_LISTING_SHARE = 20  # a listing that took t is not repeated before 20 t have passed
_YIELD_S = 3.0  # how long a job that failed here is left to other slots


class Picker:
    """Waiting jobs of one engine, best first. siblings: whether other slots serve the same engine."""

    def __init__(self, spool: Spool, worker: WorkerName, rescan_s: float, *, siblings: bool) -> None:
        self._spool, self._worker, self._siblings = spool, worker, siblings
        self._rescan_s = rescan_s
        self._names: list[str] = []
        self._yielded: dict[str, float] = {}
        self.rescan_at = 0.0

    def feed(self, names: list[str]) -> None:
        """Names that events told of."""
        for name in names:
            heapq.heappush(self._names, name)

    def rescan(self) -> None:
        """List the directory: the truth, whatever events said."""
        begun = time.monotonic()
        self._names = self._spool.list_ready(self._worker.engine)
        now = time.monotonic()
        self.rescan_at = now + max(self._rescan_s, _LISTING_SHARE * (now - begun))

    def take(self) -> Claim | None:
        """Claim the best job there is; None when nothing is left in memory."""
        left: list[str] = []
        claim = None
        while self._names and claim is None:
            text = heapq.heappop(self._names)
            name = parse_job(text)
            if name is None:
                continue
            if name.attempts and self._siblings and self._failed_here(text, name.id, name.attempts):
                left.append(text)
                continue
            claim = self._spool.claim(self._worker.engine, name, self._worker)
        for text in left:
            heapq.heappush(self._names, text)
        return claim

    def next_look(self) -> float:
        """Monotonic time of the next rescan, or of the end of a yield."""
        return min([self.rescan_at, *self._yielded.values()])

    def _failed_here(self, text: str, job_id: str, attempt: int) -> bool:
        """A job whose last attempt failed in this slot is left to the others for a moment: the slot may be sick."""
        now = time.monotonic()
        until = self._yielded.get(text)
        if until is None:
            last = self._spool.notes(job_id, attempt)[-1:]
            if not last or not _same_slot(last[0], self._worker):
                return False
            self._yielded = {k: v for k, v in self._yielded.items() if v > now}
            self._yielded[text] = now + _YIELD_S
            return True
        if now < until:
            return True
        del self._yielded[text]
        return False


def _same_slot(failure: Failure, worker: WorkerName) -> bool:
    return failure.worker.rpartition(".")[0] == worker.slot
