"""AsyncFilePool: the FilePool for programs on an event loop, which it never blocks.

    async with AsyncFilePool("config.json") as pool:
        future = await pool.submit("transcribe", audio="talk.m4a")
        async for update in future.progress():
            print(update.status, update.percent)
        print((await future)["text"])

Whatever touches the disk (a durable submit waits for it) runs on a few threads of the pool's own; ends of jobs come
from the one thread of the FilePool that reads them, so any number of jobs may be awaited at once. Works on any event
loop; one AsyncFilePool belongs to the loop that opened it, another loop opens its own.

A task that is cancelled stops waiting, the job goes on. One that is cancelled during `submit` never hears whether the
job was accepted: give it an id, and submitting it again is submitting it once.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from pool.client.filepool import FilePool
from pool.client.future import JobFuture
from pool.client.looks import PartialLook, ProgressLook
from pool.client.mapping import Mapped
from pool.config.settings import Config
from pool.constants import PATIENCE_S
from pool.errors import EngineUnavailable, PoolClosed
from pool.job import Progress, Record
from pool.job.references import Referable

if TYPE_CHECKING:
    from typing import Concatenate, ParamSpec

    from pool.client.session import Params, Session

    P = ParamSpec("P")

_THREADS = 4  # more only wait for the same disk
_POLL_S = 0.1

T = TypeVar("T")


def _threaded(
    method: Callable[Concatenate[FilePool, P], T],
) -> Callable[Concatenate[AsyncFilePool, P], Coroutine[Any, Any, T]]:
    """A method of FilePool, on a thread of the pool."""

    @functools.wraps(method)
    async def call(self: AsyncFilePool, /, *args: P.args, **kwargs: P.kwargs) -> T:
        pool = self.pool
        return await self.run(lambda: method(pool, *args, **kwargs))

    return call


def _followed(
    method: Callable[Concatenate[FilePool, P], JobFuture],
) -> Callable[Concatenate[AsyncFilePool, P], Coroutine[Any, Any, AsyncJobFuture]]:
    """A method of FilePool that gives a future, on a thread of the pool."""

    @functools.wraps(method)
    async def call(self: AsyncFilePool, /, *args: P.args, **kwargs: P.kwargs) -> AsyncJobFuture:
        pool = self.pool
        return await self.follow(lambda: method(pool, *args, **kwargs))

    return call


#: Before Python 3.11 that of asyncio and the built-in one are two classes: callers catch either.
_TIMEOUT: type[Exception] = type("TimeoutError", tuple({asyncio.TimeoutError: 0, TimeoutError: 0}), {})


class AsyncFilePool:
    """A FilePool on an event loop: the same methods, awaited. `async with` opens it, waits for its jobs at the end of
    the block, and closes it; after an exception it closes at once.

    Args:
        config: As of FilePool.
        start: As of FilePool.
        patience: As of FilePool.

    Opening raises ConfigError, SpoolError, SupervisorFailed.
    """

    def __init__(
        self, config: Config | Path | str | None = None, *, start: bool = True, patience: float | None = PATIENCE_S
    ) -> None:
        self._make = functools.partial(FilePool, config, start=start, patience=patience)
        self._pool: FilePool | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._threads: ThreadPoolExecutor | None = None

    @property
    def pool(self) -> FilePool:
        """The FilePool behind it. Raises PoolClosed before it is opened and after it was closed."""
        if self._pool is None:
            raise PoolClosed("this pool is not open: use it within `async with`, or await open() first")
        return self._pool

    # ---- begin and end

    async def open(self) -> AsyncFilePool:
        """Attach to the pool, starting a supervisor when none serves; itself."""
        if self._threads is not None:
            raise PoolClosed("this pool was opened before: make another AsyncFilePool")
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="filepool-aio")
        opening = self._threads.submit(self._make)
        try:
            self._pool = await asyncio.wrap_future(opening)
        except BaseException:
            self._threads.shutdown(wait=False)
            opening.add_done_callback(_close_unwanted)
            raise
        return self

    async def close(self, *, wait: bool = False) -> None:
        """Let go of the pool. Jobs that are pending go on in the spool.

        Args:
            wait: Wait for this pool's pending jobs first.
            timeout: Seconds for that.

        Raises EngineUnavailable, once the pool is closed, when one of them could not be waited for.
        """
        if self._pool is None or self._threads is None:
            return
        errors: list[EngineUnavailable] = []
        if wait:
            pending = await self.follow_all(self._pool.pending)
            for future in pending:
                await future.wait()
            errors = [error for future in pending if (error := future.future.unavailable) is not None]
        closing, self._pool = self._threads.submit(self._pool.close), None
        self._threads.shutdown(wait=False)
        await asyncio.shield(asyncio.wrap_future(closing))
        if errors:
            raise errors[0]

    async def __aenter__(self) -> AsyncFilePool:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.close(wait=kind is None)
        finally:
            await self.close()  # the wait was cancelled

    async def run(self, call: Callable[[], T]) -> T:
        """Call something on a thread of this pool, in the caller's context. Raises RuntimeError on another loop."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            raise RuntimeError("this AsyncFilePool was opened on another event loop: open one on this loop")
        self.pool  # noqa: B018 - raises when it is closed
        context = contextvars.copy_context()
        return await loop.run_in_executor(self._threads, context.run, call)

    async def follow(self, make: Callable[[], JobFuture]) -> AsyncJobFuture:
        """The future that `make`, called on a thread of this pool, gives."""
        loop = asyncio.get_running_loop()
        return await self.run(lambda: AsyncJobFuture(self, loop, make()))

    async def follow_all(self, make: Callable[[], Iterable[JobFuture]]) -> list[AsyncJobFuture]:
        """As `follow`, for many."""
        loop = asyncio.get_running_loop()
        return await self.run(lambda: [AsyncJobFuture(self, loop, future) for future in make()])

    async def results(self, begin: Callable[[], Mapped]) -> AsyncIterator[Any]:
        """What a map that is begun on a thread of this pool gives."""
        mapped = await self.run(begin)
        while (head := mapped.head) is not None:
            future = await self.follow(lambda head=head: head)  # type: ignore[misc]
            if not await future.wait(mapped.left()):
                raise _TIMEOUT("the time of the whole map is over")
            await self.run(mapped.take)
            while mapped.ready:
                yield mapped.pop()

    # ---- as of FilePool

    submit = _followed(FilePool.submit)
    attach = _followed(FilePool.attach)
    retry = _followed(FilePool.retry)
    rerun = _followed(FilePool.rerun)
    cancel = _threaded(FilePool.cancel)
    cancel_many = _threaded(FilePool.cancel_many)
    state = _threaded(FilePool.state)
    progress_of = _threaded(FilePool.progress_of)
    status = _threaded(FilePool.status)
    jobs = _threaded(FilePool.jobs)

    async def submit_many(self, engine: str, calls: Iterable[Mapping[str, Any]], **how: Any) -> list[AsyncJobFuture]:
        """As FilePool.submit_many; `calls` is iterated on a thread of the pool."""
        pool = self.pool
        return await self.follow_all(lambda: pool.submit_many(engine, calls, **how))

    def map(self, engine: str, calls: Iterable[Mapping[str, Any]], **how: Any) -> AsyncIterator[Any]:
        """As FilePool.map, for `async for`; `calls` is iterated on a thread of the pool."""
        pool = self.pool
        return self.results(lambda: pool.map(engine, calls, **how))

    def session(self, *, cancel_on_error: bool = False, params: Params | None = None, **terms: Any) -> AsyncSession:
        """As FilePool.session."""
        inner = self.pool.session(params=params, **terms)
        return AsyncSession(self, inner, cancel_on_error=cancel_on_error)


class AsyncSession:
    """A Session whose methods are awaited. `async with` waits for its jobs; after an exception it leaves them alone,
    or cancels what is pending (cancel_on_error)."""

    def __init__(self, pool: AsyncFilePool, session: Session, *, cancel_on_error: bool) -> None:
        self._pool, self._session, self._cancel_on_error = pool, session, cancel_on_error

    def session(self, *, cancel_on_error: bool = False, params: Params | None = None, **terms: Any) -> AsyncSession:
        """A session with these defaults on top of those of this one."""
        inner = self._session.session(params=params, **terms)
        return AsyncSession(self._pool, inner, cancel_on_error=cancel_on_error)

    async def submit(self, engine: str, /, **more: Any) -> AsyncJobFuture:
        """As FilePool.submit."""
        return await self._pool.follow(lambda: self._session.submit(engine, **more))

    async def submit_many(self, engine: str, calls: Iterable[Mapping[str, Any]], **how: Any) -> list[AsyncJobFuture]:
        """As FilePool.submit_many."""
        return await self._pool.follow_all(lambda: self._session.submit_many(engine, calls, **how))

    def map(self, engine: str, calls: Iterable[Mapping[str, Any]], **how: Any) -> AsyncIterator[Any]:
        """As FilePool.map, for `async for`."""
        return self._pool.results(lambda: self._session.map(engine, calls, **how))

    async def cancel(self) -> list[str]:
        """Ask all pending jobs of this session to stop; their ids."""
        return await self._pool.run(self._session.cancel)

    async def __aenter__(self) -> AsyncSession:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            for future in await self._pool.follow_all(self._session.pending):
                await future.wait()
        elif self._cancel_on_error:
            await self.cancel()


class AsyncJobFuture(Referable):
    """A JobFuture on an event loop: `await` gives what the engine returned. `future`: the JobFuture itself."""

    def __init__(self, pool: AsyncFilePool, loop: asyncio.AbstractEventLoop, future: JobFuture) -> None:
        self.future = future
        self.id, self.engine = future.id, future.engine
        self._pool, self._loop = pool, loop
        self._over: asyncio.Future[None] = loop.create_future()
        self._heard = False  # from then on the loop is notified of its end, and its patience counts

    def __repr__(self) -> str:
        return f"<AsyncJobFuture {self.engine} {self.id} {'done' if self.done() else 'pending'}>"

    def __await__(self) -> Generator[Any, None, Any]:
        return self.result().__await__()

    def _hear(self) -> None:
        if not self._heard:
            self._heard = True
            self.future.add_done_callback(self._tell)

    def _tell(self, _: Future[Any]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nothing waits there
            self._loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        if not self._over.done():
            self._over.set_result(None)

    # ---- the end

    async def wait(self, timeout: float | None = None) -> bool:
        """Until the job is done, at most `timeout` seconds; whether it is."""
        if not self.done():
            if not self._heard:
                await self._pool.run(self._hear)
            await asyncio.wait([self._over], timeout=timeout)
        return self.done()

    async def result(self, timeout: float | None = None) -> Any:
        """What the engine returned; `timeout` in seconds.

        Raises JobFailed, TimeoutError, EngineUnavailable when no worker can run the job (see `JobFuture.patience`),
        and, when the job was cancelled (not your task), concurrent.futures.CancelledError.
        """
        await self._ended(timeout)
        return Future.result(self.future, 0)

    async def exception(self, timeout: float | None = None) -> BaseException | None:
        """The JobFailed, or None when the job completed. Raises as `result` does."""
        await self._ended(timeout)
        return Future.exception(self.future, 0)

    async def _ended(self, timeout: float | None) -> None:
        if not await self.wait(timeout):
            raise _TIMEOUT(f"job {self.id} is not done after {timeout:g} s; it goes on")

    def done(self) -> bool:
        """Whether the record is in."""
        return self.future.decided

    def cancelled(self) -> bool:
        """Whether the job ended as cancelled."""
        return self.future.cancelled()

    @property
    def record(self) -> Record | None:
        """The whole terminal record once the job is done."""
        return self.future.record

    async def cancel(self) -> bool:
        """Ask to stop the job, running or not. True: it will end as cancelled, or was; False: it is done."""
        return await self._pool.run(self.future.cancel)

    # ---- on the way

    async def status(self) -> Progress:
        """Status, percent and message at this moment."""
        return await self._pool.run(self.future.status)

    async def running(self) -> bool:
        """Whether a worker is at it now."""
        return await self._pool.run(self.future.running)

    def progress(self, interval: float = _POLL_S) -> AsyncIterator[Progress]:
        """Every change of status, percent or message until the job is done, the last one included."""
        return self._looked(ProgressLook(self.future), interval)

    def partials(self, interval: float = _POLL_S) -> AsyncIterator[Any]:
        """Partial records as the engine sends them. After a failed attempt they begin anew with the next one."""
        return self._looked(self.future.partial_look(), interval)

    async def _looked(self, look: ProgressLook | PartialLook, interval: float) -> AsyncIterator[Any]:
        while not look.over:
            for item in await self._pool.run(look):
                yield item
            if not look.over:
                await self.wait(interval)


def _close_unwanted(opening: Future[FilePool]) -> None:
    """Nobody waits for the pool any more that was being opened."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
