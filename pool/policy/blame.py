"""Who is to blame for failures, the jobs or the slot? Pure policy; times are µs of the spool clock.

A failure by itself says nothing: bad jobs fail everywhere. A slot is accused only by a job that failed in it *and later
completed in another slot*, and a success of its own after that failure clears it. What happened is ordered by the time
at which it happened, as the worker wrote it down, not by when it was noticed.

    accused by 3 different jobs, all of one process                 -> RESTART: the first remedy
    accused by 6, of more than one process, while another serves    -> BENCH: restarting did not cure it

The row of a slot is the number of jobs whose first failure was there since its last success. A worker counts it, its
heartbeat carries it, the next process of the slot goes on from it. From the third one on the slot is a suspect, and
then a job that has failed only there and has no attempts left is run once more, by a peer: the second opinion, without
which a slot that breaks every job could never be told from a row of bad jobs. A job that met a time limit gets none:
it would take that time once more, which no caller asked for.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

from pool.failure import Failure
from pool.format.names import parse_worker

SUSPECT_AFTER = 3  # jobs in a row
RESTART_AFTER = 3  # accusing jobs
BENCH_AFTER = 6
SAYS_NOTHING = frozenset({"input", "cancelled"})  # kinds of failure that are the caller's
NOT_TWICE = SAYS_NOTHING | {"timeout"}  # kinds after which no peer is asked
_REMEMBERED = 100


class Remedy(enum.Enum):
    """What is to be done about a slot."""

    NONE = "none"
    RESTART = "restart"
    BENCH = "bench"


class Blame:
    """What is held against one slot."""

    def __init__(self) -> None:
        self._accused: dict[str, tuple[int, int]] = {}  # job -> when it failed here, generation of the process
        self._succeeded_at = -1

    def accuse(self, job_id: str, failed_at: int, generation: int) -> None:
        """A job that failed here at that time, in that process, has completed in another slot."""
        if failed_at > self._succeeded_at:
            self._accused[job_id] = (failed_at, generation)
            if len(self._accused) > _REMEMBERED:
                del self._accused[next(iter(self._accused))]

    def succeeded(self, at: int) -> None:
        """A job completed here at that time: what failed before says nothing any more."""
        if at > self._succeeded_at:
            self._succeeded_at = at
            self._accused = {job: (when, where) for job, (when, where) in self._accused.items() if when > at}

    def forget(self) -> None:
        """A clean slate."""
        self._accused.clear()

    def count(self) -> int:
        """How many jobs accuse the slot now."""
        return len(self._accused)

    def remedy(self, generation: int, *, others_serve: bool) -> Remedy:
        """What to do now. generation: of the process that is in the slot; others_serve: whether another slot of the
        engine takes jobs. The last one is never benched: a bad worker is better than none."""
        processes = {where for _, where in self._accused.values()}
        if len(self._accused) >= BENCH_AFTER and len(processes) > 1:
            return Remedy.BENCH if others_serve else Remedy.NONE
        if len(self._accused) >= RESTART_AFTER and processes == {generation}:
            return Remedy.RESTART
        return Remedy.NONE  # a process that is gone already is not ended again


def joins_the_row(earlier: Sequence[Failure], kind: str) -> bool:
    """Whether a failure makes the row of its slot longer: the first one of its job, and not the caller's fault."""
    return not earlier and kind not in SAYS_NOTHING


def second_opinion(slot: str, row: int, kind: str, earlier: Sequence[Failure], *, siblings: bool) -> bool:
    """Whether a job that failed in `slot` is to be run once by a peer, beyond the attempts it has.

    row: of the slot, this failure included. kind: of this failure. earlier: why the attempts before failed.
    siblings: there are other slots.
    """
    alone = all(slot_of(failure) == slot for failure in earlier)
    return siblings and row >= SUSPECT_AFTER and kind not in NOT_TWICE and alone


def slot_of(failure: Failure) -> str:
    """The slot in which an attempt failed; '' when it is unknown."""
    worker = parse_worker(failure.worker)
    return worker.slot if worker else ""
