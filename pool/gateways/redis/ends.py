"""How a job ends for its client: the last message, with ids of the files that were made.

Keeping files takes time (they may go to another machine), so it is done on threads of its own, and tried again for a
while: the job has succeeded, the result is in the spool.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from loguru import logger

from pool.client.future import JobFuture
from pool.errors import JobRefused
from pool.format import codec
from pool.gateways.redis.files import Files, Kept
from pool.gateways.redis.remote import ServiceAway
from pool.gateways.redis.settings import Queue
from pool.gateways.redis.wire import message
from pool.job import JobState, Record

_PAUSE_S, _LONGEST_S, _PATIENCE_S = 0.5, 15.0, 600.0
_THREADS = 4
_MAX_VALUE = 32 * 1024


@dataclass
class Follow:
    """One accepted job and who asked for it. future: None for a job of which nothing is known any more.

    named: the client named the engine, so it is told more than a video. remote: its files came from BASE_URL.
    """

    queue: Queue
    job_id: str
    task_id: str
    session_id: str
    named: bool
    remote: bool
    future: JobFuture | None
    said: tuple[str, float, str] = ("", 0.0, "")
    looked_at: float = 0.0
    missing_since: float = 0.0
    keeping: Future[bytes] | None = None

    def note(self) -> bytes:
        """What Redis remembers of it."""
        known = {"task_id": self.task_id, "session_id": self.session_id, "named": self.named, "remote": self.remote}
        return json.dumps(known).encode()

    @classmethod
    def from_note(cls, queue: Queue, job_id: str, note: bytes, future: JobFuture | None) -> Follow:
        """Raises ValueError, KeyError, TypeError for what is no note."""
        known = json.loads(note)
        return cls(
            queue, job_id, str(known["task_id"]), str(known["session_id"]), known["named"], known["remote"], future
        )


class Ends:
    """Makes the last message of jobs."""

    def __init__(self, files: Files, stop: threading.Event) -> None:
        self._files, self._stop = files, stop
        self._threads = ThreadPoolExecutor(_THREADS, "filepool-redis-keep")

    def close(self) -> None:
        """What is being kept is given up; the next gateway does it."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def end(self, follow: Follow, ready: Callable[[], object]) -> bytes | None:
        """The last message about a job that is over; None while its files are on their way: `ready` is called then."""
        if follow.future is None:
            gone = "its record was removed before its end could be told: it is past its retention, or was purged"
            return self._failed(follow, gone)
        record = follow.future.record
        if record is None or record.state is not JobState.COMPLETED:
            return self._failed(follow, _reason(follow.future, record))
        if follow.keeping is None:
            follow.keeping = self._threads.submit(self._completed, follow, record)
            follow.keeping.add_done_callback(lambda _: ready())
        if not follow.keeping.done() or follow.keeping.cancelled():
            return None
        error = follow.keeping.exception()
        if error is None:
            return follow.keeping.result()
        if isinstance(error, ServiceAway) and self._stop.is_set():
            return None
        return self._failed(follow, f"the result was made and could not be kept: {error or type(error).__name__}")

    def _failed(self, follow: Follow, reason: str) -> bytes:
        return message(follow.task_id, follow.session_id, "failed", follow.said[1], reason, error=reason)

    def _completed(self, follow: Follow, record: Record) -> bytes:
        kept = self._patiently(follow, record)
        video = next((file.file_id for file in kept if file.file_type == "video"), None)
        more: dict[str, Any] = {"video_file_id": video}
        if follow.named:
            more["files"] = [vars(file) for file in kept]
            value = json.loads(codec.to_json(record.value))
            if len(json.dumps(value)) <= _MAX_VALUE:
                more["result"] = value
            else:
                more["result_file_id"] = self._files.keep_value(record).file_id
        return message(follow.task_id, follow.session_id, "completed", 100.0, "completed", **more)

    def _patiently(self, follow: Follow, record: Record) -> list[Kept]:
        pause, deadline = _PAUSE_S, time.monotonic() + _PATIENCE_S
        while True:
            try:
                return self._files.keep(record, remote=follow.remote)
            except FileNotFoundError as error:
                raise JobRefused(f"{error.filename} is gone") from None
            except (ServiceAway, OSError) as error:
                if self._stop.is_set() or time.monotonic() > deadline:
                    raise
                logger.warning("the result of task {} waits to be kept: {}", follow.task_id, error)
            self._stop.wait(pause)
            pause = min(2 * pause, _LONGEST_S)


def _reason(future: JobFuture, record: Record | None) -> str:
    """Never empty."""
    if record is not None and record.failure is not None:
        return record.failure.describe()
    try:
        error = future.exception(0)
    except (CancelledError, TimeoutError):
        return "the job was cancelled"
    return str(error) or type(error).__name__
