"""The last message about a job, with the ids of its files.

Storing files takes time (they may be uploaded to another machine), so threads of their own do it, and retry for up to
_PATIENCE_S: the job has completed, and its result is in the spool.
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
    """One accepted job and the task that it belongs to. future: None when the job's record is gone.

    named: the client named the engine, so its last message has all files and the value. remote: an input came from
    BASE_URL, so results are uploaded there. payload: the client's JSON, None in notes of older gateways. said: the
    last progress message. Times: seconds of the monotonic clock.
    """

    queue: Queue
    job_id: str
    task_id: str
    session_id: str
    named: bool
    remote: bool
    future: JobFuture | None
    payload: str | None = None
    said: tuple[str, float, str] = ("", 0.0, "")
    looked_at: float = 0.0
    missing_since: float = 0.0
    keeping: Future[bytes] | None = None

    def note(self) -> bytes:
        """The value of the job in the hash of accepted jobs."""
        names = ("task_id", "session_id", "named", "remote", "payload")
        return json.dumps({name: getattr(self, name) for name in names}).encode()

    @classmethod
    def from_note(cls, queue: Queue, job_id: str, note: bytes, future: JobFuture | None) -> Follow:
        """The inverse of `note`. Raises ValueError, KeyError, TypeError for a malformed note."""
        known = json.loads(note)
        task_id, session_id = str(known["task_id"]), str(known["session_id"])
        return cls(queue, job_id, task_id, session_id, known["named"], known["remote"], future, known.get("payload"))


class Ends:
    """Makes the last messages about jobs."""

    def __init__(self, files: Files, stop: threading.Event, lost: Callable[[], str]) -> None:
        self._files, self._stop, self._lost, self.paths = files, stop, lost, files.paths
        self._threads = ThreadPoolExecutor(_THREADS, "filepool-redis-keep")

    def close(self) -> None:
        """Stop storing files; the next gateway starts again."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def end(self, follow: Follow, ready: Callable[[], object]) -> bytes | None:
        """The last message about a job that is over; None while its files are being stored: `ready` is called then, and
        None when nothing is known of it because the spool is gone."""
        if follow.future is None:
            gone = "its record was removed before it could be published: past its retention, or purged"
            return self._failed(follow, gone)
        record = follow.future.record
        if record is None and self._lost():
            return None
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
        return self._failed(
            follow, f"the job completed; its result could not be stored: {error or type(error).__name__}"
        )

    def _failed(self, follow: Follow, reason: str) -> bytes:
        return message(follow.task_id, follow.session_id, "failed", follow.said[1], reason, error=reason)

    def _completed(self, follow: Follow, record: Record) -> bytes:
        kept = self._keep(follow, record)
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

    def _keep(self, follow: Follow, record: Record) -> list[Kept]:
        pause, deadline = _PAUSE_S, time.monotonic() + _PATIENCE_S
        while True:
            try:
                return self._files.keep(record, remote=follow.remote)
            except FileNotFoundError as error:
                raise JobRefused(f"{error.filename} is gone") from None
            except (ServiceAway, OSError) as error:
                if self._stop.is_set() or time.monotonic() > deadline:
                    raise
                logger.warning("storing the result of task {} failed, trying again: {}", follow.task_id, error)
            self._stop.wait(pause)
            pause = min(2 * pause, _LONGEST_S)


def _reason(future: JobFuture, record: Record | None) -> str:
    """Why a job did not complete; never empty."""
    if record is not None and record.failure is not None:
        return record.failure.describe()
    try:
        error = future.exception(0)
    except (CancelledError, TimeoutError):
        return "the job was cancelled"
    return str(error) or type(error).__name__
