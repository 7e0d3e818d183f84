"""Futures that wait for records: one thread per FilePool, asleep on out/ while anything is awaited."""

from __future__ import annotations

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
from pool.names import parse_record
from pool.spool import Spool
from pool.watch import Watcher

_RESCAN_S = 1.0
_LIST_FROM = 64  # awaiting more than this, one listing is cheaper than a look per job


class Results:
    """Resolves futures as their records appear. on_look: called about once a second while something is awaited."""

    def __init__(self, spool: Spool, on_look: Callable[[], None]) -> None:
        self._spool, self._on_look = spool, on_look
        self._lock = threading.Lock()
        self._awaited: dict[str, list[JobFuture]] = {}
        self._watcher: Watcher | None = None
        self._work = threading.Event()
        self._closed = False

    def expect(self, future: JobFuture) -> None:
        """Resolve this future when its record appears. Call before the job is submitted."""
        with self._lock:
            if self._watcher is None:
                self._watcher = Watcher({"out": self._spool.root / "out"})
                threading.Thread(target=self._run, name="filepool-results", daemon=True).start()
            self._awaited.setdefault(future.id, []).append(future)
            self._work.set()

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
            if not future.done():
                future.set_exception(reason)

    def _run(self) -> None:
        watcher = self._watcher
        assert watcher is not None
        look_at = time.monotonic() + _RESCAN_S
        while not self._closed:
            if not self._awaited:
                # RACE: cleared before the second look, so an expect() in between sets it again
                self._work.clear()
                if not self._awaited and not self._closed:
                    self._work.wait()
                look_at = time.monotonic() + _RESCAN_S
            if watcher.wait(max(0.0, look_at - time.monotonic())):
                arrivals = watcher.read()
                for name in arrivals.names.get("out", ()):
                    job_id = parse_record(name)
                    if job_id is not None and job_id in self._awaited:
                        self._resolve(job_id)
                if arrivals.rescan:
                    self.look()
            if time.monotonic() >= look_at:
                watcher.verify()
                self.look()
                self._on_look()
                look_at = time.monotonic() + _RESCAN_S
        watcher.close()

    def _resolve(self, job_id: str) -> None:
        try:
            record: Record | Exception = self._spool.read_record(job_id)
        except FileNotFoundError:
            return
        except (ProtocolError, OSError) as error:
            record = error
        with self._lock:
            futures = self._awaited.pop(job_id, [])
        for future in futures:
            _settle(future, record)
        if any(future._consume for future in futures) and isinstance(record, Record):
            self._consume(record)

    def _consume(self, record: Record) -> None:
        """Remove a record that its caller has in hand; mapped arrays stay readable until they are closed."""
        fsops.unlink(self._spool.record_path(record.id), missing_ok=True)
        for attempt in range(1, record.attempt + 1):
            fsops.unlink(partial_path(self._spool, record.id, attempt), missing_ok=True)
        directory = self._spool.files_dir(record.id)
        if directory.is_dir():
            fsops.remove_tree(str(directory))


def _settle(future: JobFuture, record: Record | Exception) -> None:
    if future.done():
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
