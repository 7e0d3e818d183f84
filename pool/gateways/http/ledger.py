"""What has ended, remembered: the newest jobs for lists, outcomes and durations for metrics.

Each record is read once, a bounded time per turn. What was there before the gateway started is counted, too, so the
counters begin with the jobs that retention has kept.
"""

from __future__ import annotations

import bisect
import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from pool.client.status import PoolStatus
from pool.errors import ProtocolError
from pool.format.names import parse_record
from pool.job import Record
from pool.spool.store import Spool

BUCKETS_S = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0)
_KEPT = 10_000  # entries for lists
_TURN_S = 0.2
_BELIEVED_S = 0.2  # how long a turn is believed
_SHARE = 5  # one that took t is not repeated before 5 t have passed


@dataclass(frozen=True)
class Entry:
    """One job that ended. Times in µs of the spool clock. reason: of a failure, one line."""

    id: str
    engine: str
    state: str
    attempt: int
    created: int
    started: int
    finished: int
    reason: str


@dataclass
class Histogram:
    """Counts per bucket of BUCKETS_S and beyond, and the sum, in seconds."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    total_s: float = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect.bisect_left(BUCKETS_S, seconds)] += 1
        self.total_s += seconds

    def cumulative(self) -> Iterator[tuple[str, float]]:
        """(upper bound, count up to it), as Prometheus wants them."""
        running = 0
        for bound, count in zip((*map(str, BUCKETS_S), "+Inf"), self.counts, strict=True):
            running += count
            yield bound, running


class Ledger:
    """What is known about terminal records and restarts. Safe to use from several threads."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._lock = threading.Lock()
        self._fresh_until = 0.0
        self._known: dict[str, tuple[int, int]] = {}  # id -> its record's file: another one after a retry
        self._entries: dict[str, Entry] = {}
        self._slots: dict[str, Mapping[str, int]] = {}  # restarts by reason at the last look
        self._supervisor = 0  # who counts them, by when it was started
        self.outcomes: Counter[tuple[str, str, str]] = Counter()  # engine, state, kind of failure
        self.durations: dict[str, Histogram] = {}
        self.waits: dict[str, Histogram] = {}
        self.restarts: Counter[tuple[str, str]] = Counter()  # engine, reason

    def refresh(self) -> None:
        """A turn, unless one was a moment ago."""
        if time.monotonic() >= self._fresh_until:
            begun = time.monotonic()
            self.turn()
            took = time.monotonic() - begun
            self._fresh_until = time.monotonic() + max(_BELIEVED_S, _SHARE * took)

    def turn(self) -> bool:
        """Read what is new; False when there is more for another turn."""
        with self._lock:
            until = time.monotonic() + _TURN_S
            there = dict(self._there())
            for job_id in self._known.keys() - there.keys():
                del self._known[job_id]
                self._entries.pop(job_id, None)
            for job_id, file in there.items():
                if self._known.get(job_id) == file:
                    continue
                if time.monotonic() > until:
                    return False
                try:
                    self._enter(self._spool.read_record(job_id, arrays=False))
                except FileNotFoundError:
                    continue
                except (ProtocolError, OSError):
                    pass  # damaged: counted nowhere, and not read again
                self._known[job_id] = file
            return True

    def newest(self) -> list[Entry]:
        """Jobs that ended, the last one first."""
        self.refresh()
        with self._lock:
            return sorted(self._entries.values(), key=lambda entry: entry.finished, reverse=True)

    def watch_slots(self, status: PoolStatus) -> None:
        """Count restarts by what the process before died of, each of them, however many came since the last look."""
        if status.supervisor is None:
            return
        with self._lock:
            if status.supervisor.started != self._supervisor:
                self._supervisor = status.supervisor.started
                self._slots.clear()
            for slot in status.slots:
                before = self._slots.get(slot.slot, {})
                for reason, count in slot.restarts_by.items():
                    seen = before.get(reason, 0)
                    # less than before: its slot was taken out and is there again, and counts anew
                    self.restarts[slot.engine, reason] += count - seen if count >= seen else count
                self._slots[slot.slot] = slot.restarts_by or before

    def _there(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Ids of records, and which file each is; the number alone may be given to the next file at once."""
        with os.scandir(self._spool.root / "out") as entries:
            for entry in entries:
                job_id = parse_record(entry.name)
                if job_id is not None:
                    with contextlib.suppress(FileNotFoundError):  # RACE: it was consumed, or retried
                        yield job_id, (entry.inode(), entry.stat().st_mtime_ns)

    def _enter(self, record: Record) -> None:
        failure = record.failure
        reason = failure.describe()[:1000] if failure else ""
        state = record.state.value
        self._entries[record.id] = Entry(
            record.id, record.engine, state, record.attempt, record.created, record.started, record.finished, reason
        )
        if len(self._entries) > 2 * _KEPT:
            oldest = sorted(self._entries.values(), key=lambda entry: entry.finished)[:_KEPT]
            for entry in oldest:
                del self._entries[entry.id]
        self.outcomes[record.engine, state, failure.kind if failure else ""] += 1
        if record.started:
            self.durations.setdefault(record.engine, Histogram()).add(_seconds(record.finished - record.started))
            self.waits.setdefault(record.engine, Histogram()).add(_seconds(record.started - record.created))


def _seconds(microseconds: int) -> float:
    return max(0.0, microseconds / 1e6)
