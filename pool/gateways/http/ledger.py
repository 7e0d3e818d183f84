"""Jobs that ended: the newest ones for lists, outcomes and durations for metrics.

Each record is read once, for a bounded time per turn; later turns cost a listing of names, or nothing when none has
come. Records from before the start of the gateway count, too, so the counters start with the jobs that retention has
kept.
"""

from __future__ import annotations

import bisect
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

from pool.client.status import PoolStatus
from pool.errors import ProtocolError
from pool.format.names import SUFFIX, parse_record
from pool.job import Record
from pool.job.heads import first_line
from pool.spool import reuse
from pool.spool.store import Spool
from pool.system.watch import network_mount

BUCKETS_S = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0)
_KEPT = 10_000  # entries for lists
_TURN_S = 0.2
_FRESH_S = 0.2  # how long the result of a turn stays valid
_STILL_S = 2.5  # a directory whose time is older is known to the last name; FAT counts in 2 s
_WHOLE_S = 60.0  # each file is looked at that often: a mark is lost when the disk is full
_NO_RECORD, _GONE = (0, 0), (0, 1)  # files that are none
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
        self._out = str(spool.root / "out")
        self._known: dict[str, tuple[int, int]] = {}  # name of a record -> its file; a retry makes another file
        self._left: list[str] = []  # of the last listing: still to be read, the newest last
        self._doubted: set[str] = set()  # names whose file is to be replaced
        self._marks = 0  # how far the marks of jobs that run again were read
        self._changed = (0, 0, 0.0)  # the directory: its inode and time, and when that was first seen
        self._still = False  # whether no name can have come since, as long as that time stands
        self._whole_at = 0.0
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
            if not self._left:
                if self._is_current():
                    return True
                self._left = self._new()
            until = time.monotonic() + _TURN_S  # the listing is not of it: it may take longer
            while self._left and time.monotonic() <= until:
                self._read(self._left.pop())
            self.unread = len(self._left)
            return not self._left

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

    def _is_current(self) -> bool:
        """Whether nothing has come or gone since the last listing, as far as times can tell. False: list now."""
        info = os.stat(self._out)
        now, (inode, changed, seen) = time.monotonic(), self._changed
        if (inode, changed) != (info.st_ino, info.st_mtime_ns):
            self._changed, self._still = (info.st_ino, info.st_mtime_ns, now), False
            return False
        if self._still:
            return True
        self._still = now - seen >= _STILL_S and not network_mount(self._out)
        return False

    def _new(self) -> list[str]:
        """Names of records that are still to be read; forgets those that are gone."""
        again, marks_are_whole = self._again()  # RACE: first, for a mark comes before the record that it speaks of goes
        names = set(os.listdir(self._out))
        for name in self._known.keys() - names:
            del self._known[name]
            if (job_id := parse_record(name)) is not None:
                self._kinds.pop(job_id, None)
                self._entries.pop(job_id, None)
        self._doubted = (self._doubted | again) & self._known.keys()
        suspects: Collection[str] = self._doubted
        if not marks_are_whole or time.monotonic() >= self._whole_at:
            self._whole_at = time.monotonic() + _WHOLE_S
            suspects = list(self._known)
        for name in [name for name in suspects if self._known[name] not in (_NO_RECORD, self._file(name))]:
            del self._known[name]
            self._doubted.discard(name)
        return sorted(names - self._known.keys())

    def _again(self) -> tuple[set[str], bool]:
        """Names of records that may be replaced, as marked since the last look; and whether no mark is missing."""
        try:
            ids, self._marks = reuse.marked(self._spool.root, self._marks)
            whole = True
        except ValueError:
            ids, self._marks = reuse.marked(self._spool.root, 0)
            whole = False
        return {f"{job_id}{SUFFIX}" for job_id in ids}, whole

    def _file(self, name: str) -> tuple[int, int]:
        """Inode and time of a record, or _GONE. The inode alone does not do: the next file may get it at once."""
        try:
            info = os.stat(f"{self._out}/{name}")
        except FileNotFoundError:  # RACE: it was consumed, or retried
            return _GONE
        return info.st_ino, info.st_mtime_ns

    def _read(self, name: str) -> None:
        job_id = parse_record(name)
        file = _NO_RECORD if job_id is None else self._file(name)
        if file == _GONE:
            return
        if job_id is not None:
            try:
                self._enter(self._spool.read_record(job_id, arrays=False))
            except FileNotFoundError:
                return
            except (ProtocolError, OSError):
                pass  # damaged: not counted, and not read again
        self._known[name] = file

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
