"""Futures that wait for records: one thread sleeps on out/ while a record is awaited.

All FilePools of one process on one spool share a `Results`: one watcher, one thread. Whoever calls `result()` sleeps
on out/ on the caller's own thread, so that a result costs no switch of threads. The thread takes over as soon as
a caller waits in another way (wait, as_completed, a callback, a second caller), and looks once a second in any case.

In a forked child nothing of that is left but the futures; the watcher and the thread come again with the first need.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from concurrent.futures import Future, InvalidStateError
from typing import Any

from pool.client.future import Home, JobFuture, with_remote_trace
from pool.errors import JobFailed, PoolClosed, PoolError, ProtocolError, SpoolError, UnknownJob
from pool.format.names import SUFFIX, parse_record, parse_worker
from pool.job import JobState, Record
from pool.spool import fsops, lookup
from pool.spool.attempts import partial_path
from pool.spool.dependencies import is_needed
from pool.spool.store import Spool
from pool.system import limits
from pool.system.forked import renew_in_children
from pool.system.watch import Watcher

_RESCAN_S = 1.0
_TIDY_S = 0.1  # how long a claim may outlive its record
_STARVING_S = 10.0  # records that are there and cannot be read for so long end the waiting
_LIST_FROM = 64  # awaiting more than this, one listing is cheaper than a look per job


class Results:
    """Resolves the futures of this process on one spool as their records appear. `join` makes it, `leave` ends it."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._awaited: dict[str, list[JobFuture]] = {}
        self._settling: set[JobFuture] = set()  # RACE: a fork between the record and the end of its future
        self._read_up: list[Record] = []  # to be consumed once their claims are gone
        self.users = 0
        self._closed = False
        self._watcher: Watcher | None = None
        self.after_fork()
        renew_in_children(self)

    def after_fork(self) -> None:
        """Begin with the futures alone: also how it begins at all."""
        if self._watcher is not None:
            self._watcher.abandon()
            self._watcher = None
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._reading = threading.Lock()  # held by the one who reads the watcher
        self._work = threading.Event()
        self._armed = False  # a caller waits without reading records itself
        self._dozing = False  # the thread sleeps without end
        self._look_at = 0.0
        self._starved_at: float | None = None  # when the first of all later reads failed for want of descriptors
        for future in self._settling:
            self._awaited.setdefault(future.id, []).append(future)
        self._settling.clear()
        self._read_up.clear()  # they are our parent's

    def expect(self, future: JobFuture) -> None:
        """Resolve this future when its record appears. Call before the job is submitted."""
        with self._lock:
            watcher = self._begin()
        if watcher.reason:  # said before anything is awaited: a warning may be made an error
            limits.warn_once(f"results of {self._spool.root} are looked for by polling: {watcher.reason}")
            watcher.hurry()
        with self._lock:
            if not self._awaited:
                self._look_at = time.monotonic() + _RESCAN_S
            self._awaited.setdefault(future.id, []).append(future)
        if self._dozing:
            self._work.set()

    def arm(self) -> None:
        """Somebody waits for a future without reading here: the thread is to read."""
        if not self._armed:
            with self._lock:
                self._begin()
                self._armed = True
            self._work.set()

    def read_for(self, future: JobFuture, timeout: float | None) -> float | None:
        """Read on the caller's thread until the future is done or others have to; what is left of `timeout`."""
        if timeout is not None:
            timeout += time.monotonic()
        reading = self._reading
        if self._armed or not reading.acquire(blocking=False):
            self.arm()
        else:
            try:
                while not (future.decided or self._closed):
                    if timeout is not None and time.monotonic() >= timeout:
                        break
                    self._read(timeout)
            finally:
                reading.release()
        return None if timeout is None else max(0.0, timeout - time.monotonic())

    def forget(self, job_id: str, future: JobFuture) -> None:
        """Stop waiting for the record of a job on behalf of one future."""
        with self._lock:
            futures = self._awaited.get(job_id, [])
            if future in futures:
                futures.remove(future)
            if not futures:
                self._awaited.pop(job_id, None)

    def give_up(self, future: JobFuture, reason: PoolError) -> None:
        """End one future without a record; others of the same job wait on."""
        self.forget(future.id, future)
        _settle(future, reason)

    def pending(self, pool: Home) -> list[JobFuture]:
        """What is awaited through one pool."""
        with self._lock:
            return [future for group in self._awaited.values() for future in group if future.home is pool]

    def look(self, job_id: str) -> None:
        """Resolve a job that may be decided already."""
        if job_id in self._awaited:
            self._resolve(job_id)

    def leave(self, pool: Home, reason: PoolError) -> None:
        """A pool goes: its futures end with the reason, those of the others stay."""
        if _shared.leave(self):
            with self._lock:
                self._closed = True
            self._work.set()
            self._consume_rest()
        for future in self.pending(pool):
            self.forget(future.id, future)
            _settle(future, reason)

    # ---- reading

    def _begin(self) -> Watcher:
        """The watcher, and the thread that looks once a second. Needs `_lock`."""
        if self._closed:
            raise PoolClosed("this pool was closed")
        if self._watcher is None:
            self._watcher = Watcher({"out": self._spool.root / "out"}, wanted=self._wanted)
        if self._thread is None:
            self._thread = limits.start_thread(self._run, "filepool-results")
        return self._watcher

    def _wanted(self) -> list[str]:
        return [f"{job_id}{SUFFIX}" for job_id in list(self._awaited)]

    def _run(self) -> None:
        while not self._closed:
            with self._lock:
                idle = not self._awaited
                self._armed = self._armed and not idle
            if idle:
                # RACE: set before the second look at what is awaited, so that an expect() in between wakes us
                self._dozing = not self._work.wait(_RESCAN_S)
                self._consume_rest()
                if self._dozing and not (self._awaited or self._read_up or self._closed):
                    self._work.wait()
                self._dozing = False
            elif not self._armed:
                self._work.wait(max(0.0, self._look_at - time.monotonic()))
            self._work.clear()
            if self._armed or (self._awaited and time.monotonic() >= self._look_at):
                with self._reading:
                    if self._awaited and not self._closed:
                        try:
                            self._read(None if self._armed else 0.0)
                        except (OSError, PoolError):  # a limit was met: the next look may find it gone
                            time.sleep(_TIDY_S)
        with self._reading:
            if self._watcher is not None:
                self._watcher.close()

    def _read(self, until: float | None) -> None:
        """Sleep until records arrive, at most to the monotonic time `until`; resolve them. Needs `_reading`."""
        watcher = self._watcher
        if watcher is None:
            with self._lock:
                watcher = self._begin()
        end = self._look_at if until is None else min(until, self._look_at)
        if watcher.wait(max(0.0, end - time.monotonic())):
            arrivals = watcher.read()
            for name in arrivals.names.get("out", ()):
                job_id = parse_record(name)
                if job_id is not None and job_id in self._awaited:
                    self._resolve(job_id)
            if arrivals.rescan:
                self._look_at_all()
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + _RESCAN_S
            watcher.verify()
            self._look_at_all()
            self._look_after()

    def _look_at_all(self) -> None:
        """Resolve whatever is decided already."""
        ids = list(self._awaited)
        if len(ids) > _LIST_FROM:
            with contextlib.suppress(OSError):  # no descriptor for a listing: one look per job needs none
                there = {parse_record(name) for name in os.listdir(self._spool.root / "out")}
                ids = [job_id for job_id in ids if job_id in there]
        for job_id in ids:
            self._resolve(job_id)

    def _look_after(self) -> None:
        """Once a second: a spool that is gone, supervisors that died, waits without hope, records that will not come or
        shall go."""
        if reason := self._spool.lost():
            for job_id in list(self._awaited):
                self._settle_all(job_id, SpoolError(reason))
            return
        self._consume_rest()
        with self._lock:
            futures = [future for group in self._awaited.values() for future in group]
        by_pool: dict[Home, list[JobFuture]] = {}
        for future in futures:
            by_pool.setdefault(future.home, []).append(future)
        for pool, mine in by_pool.items():
            with contextlib.suppress(PoolError, OSError):  # no supervisor can be started: tried again at the next look
                pool.on_look(mine)
        for future in futures:
            if future.lent and not future.decided:
                try:
                    lookup.find(self._spool, future.id, local=True)
                except UnknownJob as gone:
                    self._settle_all(future.id, gone)
                except OSError:
                    return  # no descriptors: at the next look

    # ---- the end of a job

    def _resolve(self, job_id: str) -> None:
        try:
            record: Record | PoolError | OSError = self._spool.read_record(job_id)
            self._starved_at = None
        except FileNotFoundError:
            return
        except (ProtocolError, OSError) as error:
            record = error
            if isinstance(error, OSError) and error.errno in limits.STARVED:
                if not self._starved(job_id):
                    return  # the record is good; another look will read it
                record = SpoolError(
                    f"the result is there and could not be read for {_STARVING_S:.0f} s: {limits.sentence(error)}; "
                    f"attach({job_id!r}) reads it then"
                )
        for future in self._settle_all(job_id, record):
            if future.consumes and isinstance(record, Record):
                self._read_up.append(record)
                self._consume_rest(_TIDY_S)
                break

    def _settle_all(self, job_id: str, outcome: Record | PoolError | OSError) -> list[JobFuture]:
        with self._lock:
            futures = self._awaited.pop(job_id, [])
            self._settling.update(futures)
        for future in futures:
            _settle(future, outcome)
        self._settling.difference_update(futures)
        return futures

    def _starved(self, job_id: str) -> bool:
        """Whether a record that cannot be read for want of descriptors is there, and has been for too long."""
        if not self._spool.decided(job_id):
            return False
        if self._starved_at is None:
            self._starved_at = time.monotonic()
        return time.monotonic() - self._starved_at >= _STARVING_S

    def _consume_rest(self, wait_s: float = 0.0) -> None:
        """Consume what was read, but for records whose claims are still there after so many seconds: they are looked at
        once a second."""
        deadline = time.monotonic() + wait_s
        with self._lock:
            records, self._read_up = self._read_up, []
        for record in records:
            with contextlib.suppress(OSError):  # it stays then, until its retention is over
                while self._claimed(record):
                    if time.monotonic() >= deadline:
                        # its worker is slow, or died just then: recovery must still find it decided
                        with self._lock:
                            self._read_up.append(record)
                        break
                    time.sleep(0.0002)
                else:
                    self._consume(record)

    def _consume(self, record: Record) -> None:
        """Remove a record that its caller has in hand; mapped arrays stay readable until they are closed."""
        if is_needed(self._spool, record.id):
            return  # others wait for it; retention removes it
        fsops.unlink(self._spool.record_path(record.id), missing_ok=True)
        for attempt in range(1, record.attempt + 1):
            fsops.unlink(partial_path(self._spool, record.id, attempt), missing_ok=True)
        directory = self._spool.files_dir(record.id)
        if directory.is_dir():
            fsops.remove_tree(str(directory))

    def _claimed(self, record: Record) -> bool:
        """RACE: the record is seen a moment before the claim goes. Without its record that claim would run again."""
        worker = parse_worker(record.worker)
        return worker is not None and any(c.name.id == record.id for c in self._spool.claims(worker))


class _Shared:
    """The Results of this process: one per spool, as long as FilePools use it."""

    def __init__(self) -> None:
        self._of: dict[tuple[str, str], Results] = {}  # by id and place of the spool
        self.after_fork()
        renew_in_children(self)

    def after_fork(self) -> None:
        self._lock = threading.Lock()

    def join(self, spool: Spool) -> Results:
        key = (spool.id, os.path.realpath(spool.root))
        with self._lock:
            found = self._of.get(key)
            if found is None:
                found = self._of[key] = Results(spool)
            found.users += 1
            return found

    def leave(self, results: Results) -> bool:
        """One user less; whether it was the last one."""
        with self._lock:
            results.users -= 1
            if results.users:
                return False
            self._of = {key: other for key, other in self._of.items() if other is not results}
            return True


def join(spool: Spool) -> Results:
    """The Results of this process for a spool, to be left once."""
    return _shared.join(spool)


def _settle(future: JobFuture, outcome: Record | PoolError | OSError) -> None:
    with contextlib.suppress(InvalidStateError):  # RACE: its pool was closed just now, or its record found
        if future.decided:
            return
        if not isinstance(outcome, Record):
            future.set_exception(outcome)
            return
        future._record = outcome
        if outcome.state is JobState.COMPLETED:
            future.set_result(outcome.value)
        elif outcome.state is JobState.CANCELLED:
            Future.cancel(future)
            future.set_running_or_notify_cancel()
        else:
            failure = outcome.failure
            assert failure is not None
            error: Any = JobFailed(outcome.id, failure)
            future.set_exception(with_remote_trace(error, failure))


_shared = _Shared()
