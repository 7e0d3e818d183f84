"""Jobs that ended: the newest ones for lists, outcomes and durations for metrics.

Each record is read once, for a bounded time per turn. Records from before the start of the gateway count, too, so
the counters start with the jobs that retention has kept.
"""

from __future__ import annotations

import bisect
import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

from pool.client.status import PoolStatus
from pool.errors import ProtocolError
from pool.format.names import parse_record
from pool.job import Record
from pool.job.heads import first_line
from pool.spool.store import Spool

BUCKETS_S = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0)
_KEPT = 10_000  # entries for lists
_TURN_S = 0.2
_FRESH_S = 0.2  # how long the result of a turn stays valid
_SHARE = 5  # a turn that took t is not repeated before 5 t have passed


@dataclass(frozen=True)
class Entry:
    """One job that ended. Times in µs of the spool clock. message, kind, reason: of its failure, else ""; the reason is
    one line."""

    id: str
    engine: str
    state: str
    attempt: int
    created: int
    started: int
    finished: int
    message: str = ""
    kind: str = ""
    reason: str = ""


@dataclass
class Histogram:
    """Counts per bucket of BUCKETS_S and above the last one, and the sum, in seconds."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    total_s: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect.bisect_left(BUCKETS_S, seconds)] += 1
        self.total_s += seconds

    def cumulative(self) -> Iterator[tuple[str, float]]:
        """(upper bound, count up to it) per bucket, the format of Prometheus."""
        running = 0
        for bound, count in zip((*map(str, BUCKETS_S), "+Inf"), self.counts, strict=True):
            running += count
            yield bound, running


class Ledger:
    """Counters over terminal records and worker restarts. Safe to use from several threads. ended: called with each
    job that has ended, also with those from before."""

    def __init__(self, spool: Spool, ended: Callable[[Entry], None] = lambda _: None) -> None:
        self._spool, self._ended = spool, ended
        self._lock = threading.Lock()
        self._fresh_until = 0.0
        self.unread = 1  # records that were there at the last turn and have still to be read; 1 before the first
        self._known: dict[str, tuple[int, int]] = {}  # id -> file of its record; a retry makes another file
        self._kinds: dict[str, tuple[str, str]] = {}  # id -> engine and state
        self._entries: dict[str, Entry] = {}
        self._slots: dict[str, Mapping[str, int]] = {}  # slot -> restarts by reason, as last read
        self._supervisor = 0  # start time of the supervisor that counts them
        self.outcomes: Counter[tuple[str, str, str]] = Counter()  # engine, state, kind of failure
        self.durations: dict[str, Histogram] = {}
        self.waits: dict[str, Histogram] = {}
        self.restarts: Counter[tuple[str, str]] = Counter()  # engine, reason

    def refresh(self) -> None:
        """Do a turn, unless the last one is still fresh."""
        if time.monotonic() >= self._fresh_until:
            begun = time.monotonic()
            self.turn()
            took = time.monotonic() - begun
            self._fresh_until = time.monotonic() + max(_FRESH_S, _SHARE * took)

    def turn(self) -> bool:
        """Read new records for at most _TURN_S; False when some are left for the next turn."""
        with self._lock:
            there = dict(self._there())
            until = time.monotonic() + _TURN_S  # the listing alone takes longer for 100,000 records
            for job_id in self._known.keys() - there.keys():
                del self._known[job_id]
                self._kinds.pop(job_id, None)
                self._entries.pop(job_id, None)
            new = [(job_id, file) for job_id, file in there.items() if self._known.get(job_id) != file]
            for at, (job_id, file) in enumerate(new):
                if time.monotonic() > until:
                    self.unread = len(new) - at
                    return False
                try:
                    self._enter(self._spool.read_record(job_id, arrays=False))
                except FileNotFoundError:
                    continue
                except (ProtocolError, OSError):
                    pass  # damaged: not counted, and not read again
                self._known[job_id] = file
            self.unread = 0
            return True

    def newest(self) -> list[Entry]:
        """Jobs that ended, the latest first."""
        self.refresh()
        with self._lock:
            return sorted(self._entries.values(), key=lambda entry: entry.finished, reverse=True)

    def count(self, states: Collection[str], engine: str | None, without: Collection[str]) -> int:
        """How many jobs have ended, in these states (empty: any) and of this engine (None: any), except some ids."""
        with self._lock:
            kinds = Counter(self._kinds.values())
            for job_id in without:
                if job_id in self._kinds:
                    kinds[self._kinds[job_id]] -= 1
        return sum(
            number
            for (its_engine, state), number in kinds.items()
            if engine in (None, its_engine) and (not states or state in states)
        )

    def watch_slots(self, status: PoolStatus) -> None:
        """Count the restarts since the last call by the reason why the previous process ended."""
        if status.supervisor is None:
            return
        with self._lock:
            if status.supervisor.started != self._supervisor:
                self._supervisor = status.supervisor.started
                self._slots.clear()
            for slot in status.slots:
                if slot.node:
                    continue
                before = self._slots.get(slot.slot, {})
                for reason, count in slot.restarts_by.items():
                    seen = before.get(reason, 0)
                    # fewer than before: the slot was removed and added again, so its count starts over
                    self.restarts[slot.engine, reason] += count - seen if count >= seen else count
                self._slots[slot.slot] = slot.restarts_by or before

    def _there(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """(id, (inode, mtime)) of every record. The inode alone is not enough: the next file may get it at once."""
        with os.scandir(self._spool.root / "out") as entries:
            for entry in entries:
                job_id = parse_record(entry.name)
                if job_id is not None:
                    with contextlib.suppress(FileNotFoundError):  # RACE: it was consumed, or retried
                        yield job_id, (entry.inode(), entry.stat().st_mtime_ns)

    def _enter(self, record: Record) -> None:
        failure = record.failure
        state = record.state.value
        self._kinds[record.id] = (record.engine, state)
        entry = Entry(
            record.id,
            record.engine,
            state,
            record.attempt,
            record.created,
            record.started,
            record.finished,
            failure.describe()[:1000] if failure else "",
            failure.kind if failure else "",
            first_line(failure.message) if failure else "",
        )
        self._entries[record.id] = entry
        self._ended(entry)
        if len(self._entries) > 2 * _KEPT:
            oldest = sorted(self._entries.values(), key=lambda entry: entry.finished)[:_KEPT]
            for one in oldest:
                del self._entries[one.id]
        self.outcomes[record.engine, state, failure.kind if failure else ""] += 1
        if record.started:
            self.durations.setdefault(record.engine, Histogram()).add(_seconds(record.finished - record.started))
            self.waits.setdefault(record.engine, Histogram()).add(_seconds(record.started - record.created))


def _seconds(microseconds: int) -> float:
    return max(0.0, microseconds / 1e6)
