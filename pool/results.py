"""Futures that wait for records: somebody is asleep on out/ while anything is awaited.

Whoever calls `result()` sleeps there on the caller's own thread, so that a result costs no switch of threads. A
thread of the FilePool takes over as soon as somebody waits in another way (wait, as_completed, a callback, a
second caller), and looks once a second in any case.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from pool import fsops
from pool.context import partial_path
from pool.errors import JobFailed, PoolError, ProtocolError
from pool.future import JobFuture, with_remote_trace
from pool.job import JobState, Record
from pool.names import parse_record, parse_worker
from pool.spool import Spool
from pool.watch import Watcher

_RESCAN_S = 1.0
_TIDY_S = 0.1  # how long a claim may outlive its record
_PASSING = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
_LIST_FROM = 64  # awaiting more than this, one listing is cheaper than a look per job


class Results:
    """Resolves futures as their records appear. on_look: called about once a second while something is awaited."""

    def __init__(self, spool: Spool, on_look: Callable[[], None]) -> None:
        self._spool, self._on_look = spool, on_look
        self._lock = threading.Lock()
        self._awaited: dict[str, list[JobFuture]] = {}
        self._watcher: Watcher | None = None
        self._reading = threading.Lock()  # held by the one who reads the watcher
        self._work = threading.Event()
        self._armed = False  # somebody waits who does not read
        self._dozing = False  # the thread sleeps without end
        self._look_at = 0.0
        self._closed = False

    def expect(self, future: JobFuture) -> None:
        """Resolve this future when its record appears. Call before the job is submitted."""
        with self._lock:
            if self._watcher is None:
                self._watcher = Watcher({"out": self._spool.root / "out"})
                threading.Thread(target=self._run, name="filepool-results", daemon=True).start()
            if not self._awaited:
                self._look_at = time.monotonic() + _RESCAN_S
            self._awaited.setdefault(future.id, []).append(future)
        if self._dozing:
            self._work.set()

    def arm(self) -> None:
        """Somebody waits for a future without reading here: the thread is to read."""
        if not self._armed:
            with self._lock:
                self._armed = True
            self._work.set()

    def read_for(self, future: JobFuture, timeout: float | None) -> float | None:
        """Read on the caller's thread until the future is done or others have to; what is left of `timeout`."""
        if timeout is not None:
            timeout += time.monotonic()
        if self._armed or not self._reading.acquire(blocking=False):
            self.arm()
        else:
            try:
                while not (future.decided or self._closed):
                    if timeout is not None and time.monotonic() >= timeout:
                        break
                    self._read(timeout)
            finally:
                self._reading.release()
        return None if timeout is None else max(0.0, timeout - time.monotonic())

    def forget(self, job_id: str, future: JobFuture) -> None:
        with self._lock:
            futures = self._awaited.get(job_id, [])
            if future in futures:
                futures.remove(future)
            if not futures:
                self._awaited.pop(job_id, None)

    def pending(self) -> list[JobFuture]:
        with self._lock:
            return [future for futures in self._awaited.values() for future in futures]

    def look(self) -> None:
        """Resolve whatever is decided already."""
        with self._lock:
            ids = list(self._awaited)
        if len(ids) > _LIST_FROM:
            there = {parse_record(name) for name in os.listdir(self._spool.root / "out")}
            ids = [job_id for job_id in ids if job_id in there]
        for job_id in ids:
            self._resolve(job_id)

    def close(self, reason: PoolError) -> None:
        with self._lock:
            self._closed = True
            futures = [future for group in self._awaited.values() for future in group]
            self._awaited.clear()
        self._work.set()
        for future in futures:
            if not future.decided:
                future.set_exception(reason)

    def _run(self) -> None:
        while not self._closed:
            with self._lock:
                idle = not self._awaited
                self._armed = self._armed and not idle
            if idle:
                # RACE: told before the second look at what is awaited, so that an expect() in between wakes us
                self._dozing = not self._work.wait(_RESCAN_S)
                if self._dozing and not self._awaited and not self._closed:
                    self._work.wait()
                self._dozing = False
            elif not self._armed:
                self._work.wait(max(0.0, self._look_at - time.monotonic()))
            self._work.clear()
            if self._armed or (self._awaited and time.monotonic() >= self._look_at):
                with self._reading, contextlib.suppress(OSError):  # no descriptors left: the next look may have some
                    if self._awaited and not self._closed:
                        self._read(None if self._armed else 0.0)
        with self._reading:
            if self._watcher is not None:
                self._watcher.close()

    def _read(self, until: float | None) -> None:
        """Sleep until records arrive, at most to the monotonic time `until`; resolve them. Needs `_reading`."""
        watcher = self._watcher
        assert watcher is not None
        end = self._look_at if until is None else min(until, self._look_at)
        if watcher.wait(max(0.0, end - time.monotonic())):
            arrivals = watcher.read()
            for name in arrivals.names.get("out", ()):
                job_id = parse_record(name)
                if job_id is not None and job_id in self._awaited:
                    self._resolve(job_id)
            if arrivals.rescan:
                self.look()
        elif time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + _RESCAN_S
            watcher.verify()
            self.look()
            with contextlib.suppress(PoolError, OSError):  # no supervisor can be started: tried again at the next look
                self._on_look()

    def _resolve(self, job_id: str) -> None:
        try:
            record: Record | Exception = self._spool.read_record(job_id)
        except FileNotFoundError:
            return
        except (ProtocolError, OSError) as error:
            if isinstance(error, OSError) and error.errno in _PASSING:
                return  # the record is good; another look will read it
            record = error
        with self._lock:
            futures = self._awaited.pop(job_id, [])
        for future in futures:
            _settle(future, record)
        if any(future._consume for future in futures) and isinstance(record, Record):
            self._consume(record)

    def _consume(self, record: Record) -> None:
        """Remove a record that its caller has in hand; mapped arrays stay readable until they are closed."""
        deadline = time.monotonic() + _TIDY_S
        while self._claimed(record) and time.monotonic() < deadline:
            time.sleep(0.0002)
        if self._claimed(record):
            return  # its worker died just then: recovery must still find it decided; retention removes it
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


def _settle(future: JobFuture, record: Record | Exception) -> None:
    if future.decided:
        return
    if isinstance(record, Exception):
        future.set_exception(record)
        return
    future._record = record
    if record.state is JobState.COMPLETED:
        future.set_result(record.value)
    elif record.state is JobState.CANCELLED:
        Future.cancel(future)
        future.set_running_or_notify_cancel()
    else:
        failure = record.failure
        assert failure is not None
        error: Any = JobFailed(record.id, failure)
        future.set_exception(with_remote_trace(error, failure))
