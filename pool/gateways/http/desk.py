"""What all routes of one application share.

The status of the pool is cached for a short time, and all waits for one job share one future. A client that stops
waiting does not affect the job; asyncio.wrap_future would cancel the job with its client.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from anyio import move_on_after, to_thread
from fastapi import Request
from loguru import logger
from starlette.exceptions import HTTPException

from pool.client import browse
from pool.client.filepool import FilePool
from pool.client.future import JobFuture
from pool.client.status import PoolStatus
from pool.config.roots import TEMPFILE, Roots
from pool.errors import ClusterAway, EngineUnavailable, PoolError, UnknownJob
from pool.format.names import is_id
from pool.gateways.downloads import names_of, stem_of
from pool.gateways.http import views
from pool.gateways.http.archive import Archives
from pool.gateways.http.asks import Ask, Asks
from pool.gateways.http.bodies import Form, read_form
from pool.gateways.http.errors import retry_after
from pool.gateways.http.history import History
from pool.gateways.http.ledger import Ledger
from pool.gateways.http.settings import Settings
from pool.gateways.http.shapes import JobView, Outcome
from pool.gateways.paths import PathFilter
from pool.gateways.tempfiles import Tempfiles
from pool.job import JobState, Record
from pool.runfiles.schemas import Schemas, path_keys

T = TypeVar("T")
_FRESH_S = 0.5  # how long a status stays valid
_WAITING = ("held", "queued", "deferred")
_SHARE = 10  # a status that took t to read is not read again before 10 t have passed
_SWEEP_S = 300.0
_TURN_S = 1.0  # between two looks whether a client is there
_HISTORY_S = 60.0
_LEDGER_S = 5.0  # requests in between refresh it, too


@dataclass
class _Wait:
    """The shared wait for one job."""

    future: JobFuture
    awaiting: int = 0  # requests
    awaited_at: float = 0.0  # by the last of them, in seconds of the monotonic clock
    over: asyncio.Event = field(default_factory=asyncio.Event)


class Unanswered(HTTPException):
    """A request ends before its job does; asked again, it waits for the same job."""


class Desk:
    """The pool and what the gateway caches about it. Routes run on one event loop; calls of the pool run on threads."""

    def __init__(self, pool: FilePool, settings: Settings) -> None:
        self.pool, self.settings = pool, settings
        self.tempfiles = Tempfiles(settings.tempfiles, pool.spool.now, settings.tempfile_s, settings.names_s)
        closed = (pool.spool.root, settings.tempfiles)
        self.roots = Roots(settings.roots, closed=closed, tempfile=self.tempfiles.path)
        self.history = History(settings.history / "history.json")
        self.ledger = Ledger(pool.spool, self.history.add)
        self.paths = PathFilter(settings.roots, settings.tempfiles, pool.spool.root, pool.config.root)
        self.archives = Archives()
        self.asks = Asks(settings.asks, pool.spool.now, settings.tempfile_s)
        self.leaving = False
        self._left = asyncio.Event()
        self._schemas = Schemas(pool.spool.root)
        self._waits: dict[str, _Wait] = {}
        self._look = threading.Lock()
        self._status: PoolStatus | None = None
        self._status_until = 0.0

    # ---- the pool

    def status(self) -> PoolStatus:
        """The status of the pool, at most _FRESH_S old; blocks while it is read."""
        with self._look:
            begun = time.monotonic()
            if self._status is None or begun >= self._status_until:
                self._status = self.pool.status()
                took = time.monotonic() - begun
                self._status_until = time.monotonic() + max(_FRESH_S, _SHARE * took)
            return self._status

    def describe(self, engine: str) -> dict[str, Any] | None:
        """{"engine", "schema", "doc"} of an engine; None until one of its workers has started once."""
        return self._schemas.describe(engine)

    def submit(self, engine: str, params: Mapping[str, Any], **options: Any) -> JobFuture:
        """Submit a job after checking every path in `params`.

        Raises what FilePool.submit raises, OutsideRoots, EngineUnavailable.
        """
        self.expect_worker(engine, options.get("id"))
        return self.pool.submit(engine, params=self.inside(engine, params), **options)

    def rerun(self, job_id: str, params: Mapping[str, Any], without: Iterable[str], **options: Any) -> JobFuture:
        """Submit a changed copy of a job after checking every path, the unchanged ones, too: the submitter of the old
        job may have had other rights. Raises what FilePool.rerun raises, OutsideRoots, EngineUnavailable."""
        old = self.pool.origin(job_id)
        self.expect_worker(old.engine)
        whole = {key: self.uploaded(value) for key, value in old.changed(params, without).items()}
        changed = self.inside(old.engine, whole)
        gone = [key for key in (*old.params, *old.left_out) if key not in changed]
        if old.items is not None:
            for item in old.items:
                self.inside(old.engine, item)
        return self.pool.rerun(job_id, params=changed, without=gone, **options)

    def retry(self, job_id: str) -> JobFuture:
        """Run a failed job again, or a new job like a cancelled one, whose file is gone. Raises HTTPException for any
        other, and what FilePool.retry and rerun raise."""
        state = self.pool.state(job_id)
        if state is JobState.CANCELLED:
            return self.rerun(job_id, {}, ())
        if state is not JobState.FAILED:
            raise HTTPException(409, f"job {job_id} neither failed nor was cancelled: it is {state.value}")
        try:
            return self.pool.retry(job_id)
        except FileNotFoundError:  # RACE: another client retries it
            return self.pool.attach(job_id)

    def cancel(self, job_id: str) -> JobState:
        """Ask a job to stop; its state afterwards. Raises HTTPException when it is over, UnknownJob."""
        stands = self.pool.cancel(job_id)
        state = self.pool.state(job_id)
        if not stands:
            raise HTTPException(409, f"job {job_id} is over: it is {state.value}")
        return state

    def uploaded(self, value: Any) -> Any:
        """The `tempfile:<id>` of an uploaded file's path; any other value unchanged."""
        path = Path(value) if isinstance(value, str) else None
        if path is not None and path.parent == Path(os.path.realpath(self.settings.tempfiles)):
            return f"{TEMPFILE}{path.stem}"
        return value

    def inside(self, engine: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters with every path checked and resolved. Raises OutsideRoots, JobRefused."""
        about = self.describe(engine) or {}
        schema = about.get("schema")
        keys = path_keys(schema) if isinstance(schema, dict) else frozenset()
        return self.roots.params(params, keys)

    def lacks(self, engine: str) -> str:
        """Why the pool has no such engine, "" when it has."""
        config = self.pool.config
        if engine in config.engines:
            return ""
        if config.is_branch:
            return self.pool.prospect(engine).sentence() or f"the cluster has not described {engine} yet"
        return f"this pool has no engine {engine!r}: add it to config.json"

    def expect_worker(self, engine: str, job_id: str | None = None) -> None:
        """Raise EngineUnavailable when no worker of an engine can run without an operator's help.

        job_id: of the job to submit; a job that exists already is accepted in any case.
        """
        config = self.pool.config
        if engine not in config.engines and (config.engines or not config.is_branch):
            return  # submit raises UnknownEngine
        expected = self.pool.prospect(engine)
        if not expected.hopeless:
            return
        if job_id is not None and is_id(job_id):
            with contextlib.suppress(UnknownJob, ClusterAway):
                self.pool.state(job_id)
                return
        raise expected.error()

    def look(self, job_id: str) -> JobView:
        """The state of a job and, while it waits, why. Raises UnknownJob, JobRefused."""
        view = views.look(self.pool.spool, job_id)
        if view.state in _WAITING and (why := self.pool.prospect_of(job_id, view.engine).sentence()):
            view.message = f"{view.message} · {why}".strip(" ·")
        return view

    def outcome(self, record: Record, prefix: str) -> Outcome:
        """A job that has ended, with its value and the URLs of its files. prefix: of all paths of the gateway."""
        return views.outcome(record, prefix, self.save_as(record))

    def save_as(self, record: Record) -> dict[str, str]:
        """The name for its client of each file of a job that has ended, by its path."""
        schema = (self.describe(record.engine) or {}).get("schema")
        return names_of(record, schema, self.tempfiles.name_of) if record.files else {}

    def stem(self, record: Record) -> str:
        """The name of what a job was made from, without a suffix; its id when there is none."""
        schema = (self.describe(record.engine) or {}).get("schema")
        return stem_of(record, schema, self.tempfiles.name_of) or record.id

    def produced(self, job_id: str, path: str) -> Path:
        """The path of a file that a record names. It must be in the job's folder in the spool, or under the roots.

        Raises OutsideRoots, JobRefused.
        """
        folder = self.pool.spool.files_dir(job_id)
        inside = (folder / path.rpartition("/")[2]).resolve()
        if str(folder / inside.name) == path and inside.parent == folder.resolve():
            return inside
        return self.roots.readable(path, "file")

    async def receive(self, request: Request) -> Form:
        """Read a multipart body, unless the disk is nearly full. Raises HTTPException, OSError."""
        settings = self.settings
        floor = self.pool.config.min_free_mb << 20
        free = await in_thread(lambda: shutil.disk_usage(settings.tempfiles).free)
        length = request.headers.get("content-length", "")
        if free - (int(length) if length.isdigit() else 0) < floor:
            raise HTTPException(503, f"{free >> 20} MB are free on this disk: not enough for an upload", retry_after())
        limit, timeout_s = settings.max_upload_bytes, settings.upload_timeout_s
        return await read_form(request, self.tempfiles, max_bytes=limit, timeout_s=timeout_s)

    # ---- waiting

    def expect(self, future: JobFuture) -> JobFuture:
        """Register a future for all further waits for its job; returns the one registered first."""
        wait = self._waits.get(future.id)
        if wait is None:
            wait = self._waits[future.id] = _Wait(future)
            loop = asyncio.get_running_loop()
            future.add_done_callback(lambda _: _notify(loop, self._over, wait))
        return wait.future

    async def future(self, job_id: str) -> JobFuture:
        """The future of a job. Raises UnknownJob."""
        wait = self._waits.get(job_id)
        if wait is not None:
            return wait.future
        return self.expect(await in_thread(lambda: self.pool.attach(job_id)))

    def renew(self, future: JobFuture) -> JobFuture:
        """As expect, for a job that had ended and was retried: an older future is dropped."""
        self._waits.pop(future.id, None)
        return self.expect(future)

    async def wait(self, future: JobFuture, timeout_s: float | None) -> bool:
        """Wait until the job is decided, at most `timeout_s` seconds (None: no limit); whether it is."""
        wait = self._waits.get(future.id)
        if wait is not None and wait.future is future and not self.leaving:
            wait.awaiting += 1
            try:
                with move_on_after(timeout_s):
                    await wait.over.wait()
            finally:
                wait.awaiting -= 1
                wait.awaited_at = time.monotonic()
        return future.decided

    async def end_of(self, request: Request, future: JobFuture, key: str = "") -> None:
        """Wait until the job is decided. key: of its entry in `asks`. Raises Unanswered."""
        request.state.job_id = future.id
        turn_s = min(_TURN_S, self.settings.return_s / 4)
        while not await self.wait(future, turn_s):
            if self.leaving:
                message = f"the gateway is being restarted and job {future.id} goes on: send the same request again"
                raise Unanswered(503, message, retry_after())
            if await request.is_disconnected():
                raise Unanswered(408, f"the client has left; job {future.id} goes on")
            if key:
                await in_thread(lambda: self.asks.awaited(key))

    @contextlib.asynccontextmanager
    async def answering(self, key: str) -> AsyncIterator[None]:
        """Forget a request once it is answered, be it with an error; not while its job goes on."""
        try:
            yield
        except (Unanswered, EngineUnavailable):
            raise
        except Exception:
            await in_thread(lambda: self.asks.answered(key))
            raise
        await in_thread(lambda: self.asks.answered(key))

    async def rest(self, seconds: float) -> None:
        """Sleep, until the gateway is asked to end at the latest."""
        with move_on_after(seconds):
            await self._left.wait()

    def leave(self) -> None:
        """End all waits: the gateway is about to end, its jobs go on. Called on the event loop."""
        self.leaving = True
        self._left.set()
        for wait in self._waits.values():
            wait.over.set()

    def _abandon(self) -> None:
        """Cancel the jobs of clients that have left and not returned, and remove their uploads. Raises OSError."""
        for key, ask in self.asks.idle(self.settings.return_s):
            wait = self._waits.get(ask.job)
            followed = wait is not None and (
                wait.awaiting or time.monotonic() - wait.awaited_at < self.settings.return_s
            )
            if not followed:
                with contextlib.suppress(PoolError):  # the next turn tries again
                    self._give_up(key, ask)

    def _give_up(self, key: str, ask: Ask) -> None:
        try:
            over = self.pool.state(ask.job).terminal
        except UnknownJob:
            self.asks.forget(key)
            return
        if ask.alone and not over:
            logger.info("job {}: cancelled, its client has left and not returned", ask.job)
            self.pool.cancel(ask.job)
            self.asks.forget(key)
        if ask.file and (over or ask.alone):
            self.tempfiles.remove(ask.file)

    def _over(self, wait: _Wait) -> None:
        if self._waits.get(wait.future.id) is wait:
            del self._waits[wait.future.id]
        wait.over.set()

    # ---- in the background

    def remember(self) -> None:
        """Count what has ended and keep the history. Raises OSError."""
        now = self.pool.spool.now()
        if self.ledger.turn():
            self.history.save(now)

    async def _complete_index(self) -> None:
        """Read in short turns what the index of jobs lacks, so that the first lists need not."""
        while not self.leaving:
            with contextlib.suppress(Exception):  # lists tell of it
                page = await in_thread(lambda: browse.page(self.pool.spool, limit=1, within_s=_TURN_S / 2))
                if page.trouble or not page.unread:
                    return
            await self.rest(_TURN_S)

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Sweep uploads, refresh the ledger and complete the index of jobs while the application runs."""
        tasks = [
            asyncio.create_task(self._complete_index()),
            asyncio.create_task(_every(_SWEEP_S, self.tempfiles.sweep)),
            asyncio.create_task(_every(_LEDGER_S, self.ledger.refresh)),
            asyncio.create_task(_every(_HISTORY_S, self.remember)),
            asyncio.create_task(_every(self.settings.return_s, self._abandon, at_once=False)),
            asyncio.create_task(_every(_LEDGER_S, lambda: self.ledger.watch_slots(self.status()))),
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            with contextlib.suppress(OSError):  # what is not written is read again from the records
                await in_thread(self.remember)


async def in_thread(call: Callable[[], T]) -> T:
    """Run a blocking call on a thread. It finishes even when the client disconnects, so no submit stops halfway."""
    return await to_thread.run_sync(call)


def _notify(loop: asyncio.AbstractEventLoop, call: Callable[[_Wait], None], wait: _Wait) -> None:
    with contextlib.suppress(RuntimeError):  # the loop was closed while the job went on
        loop.call_soon_threadsafe(call, wait)


async def _every(seconds: float, call: Callable[[], object], *, at_once: bool = True) -> None:
    if not at_once:
        await asyncio.sleep(seconds)
    while True:
        begun = time.monotonic()
        with contextlib.suppress(Exception):  # such as a full disk; the next turn tries again
            await in_thread(call)
        await asyncio.sleep(max(seconds, _SHARE * (time.monotonic() - begun)))
