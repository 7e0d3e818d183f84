"""Work on an event loop that must outlive errors: loops that never end, tasks beside them, their end; and waiting for
what changes on disk."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Mapping
from pathlib import Path
from typing import Any

from loguru import logger

from pool.errors import OperatorError
from pool.system.watch import Watcher

_FAULT_S = 2.0

Loop = Callable[[], Awaitable[None]]


class Tasks:
    """Tasks that nobody awaits. An error of one is logged with `complaint`, and `failed` is called."""

    def __init__(self, complaint: str, failed: Callable[[], None] = lambda: None) -> None:
        self._complaint, self._failed = complaint, failed
        self._running: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Begin one."""
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._done)

    async def end(self) -> None:
        """Cancel them all, and wait until they are done."""
        await ended_all(self._running)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            say(self._complaint, error)
            self._failed()


async def run_until(stop: asyncio.Event, loops: Iterable[Loop]) -> None:
    """Run loops side by side until the event is set."""
    tasks = [asyncio.create_task(lasting(loop)) for loop in loops]
    stopping = asyncio.create_task(_wait(stop))
    try:
        done, _ = await asyncio.wait([stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        await ended_all([stopping, *tasks])


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


async def lasting(loop: Loop) -> None:
    """Run what never ends, and again when it ends with an error that nobody has foreseen."""
    while True:
        try:
            await loop()
            return
        except Exception as error:
            say("a fault; it goes on", error)
        await asyncio.sleep(_FAULT_S)


def say(complaint: str, error: BaseException) -> None:
    """Log an error that ends nothing."""
    if isinstance(error, OperatorError):  # it says what is wrong, and is not ours
        logger.error("{}: {}", complaint, error)
    else:
        logger.opt(exception=error).error("{}", complaint)


async def ended_all(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel these until all are done, also when the caller is cancelled meanwhile. RACE: before Python 3.12 `wait_for`
    loses a cancellation that comes with what it waits for."""
    left, asked = set(tasks), False
    while left:
        for task in left:
            task.cancel()
        try:
            done, left = await asyncio.wait(left, timeout=0.5)
        except asyncio.CancelledError:
            asked = True  # one that nobody cancels again might never end
            continue
        for task in done:
            task.cancelled() or task.exception()  # seen
    if asked:
        raise asyncio.CancelledError


async def changes(
    directories: Mapping[str, Path], stirred: asyncio.Event, every_s: float
) -> AsyncGenerator[None, None]:
    """Once at first, then whenever a name may have come into one of the directories, the event is set, or so many
    seconds have gone; ends when the watch has to be made anew. directories: by a key of the caller's."""
    with Watcher(directories) as watcher:
        loop, handle = asyncio.get_running_loop(), watcher.fileno()
        loop.add_reader(handle, stirred.set)
        try:
            while True:
                stirred.clear()
                watcher.read()
                yield
                with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
                    await asyncio.wait_for(stirred.wait(), every_s)
                if watcher.verify() or watcher.fileno() != handle:
                    return
        finally:
            loop.remove_reader(handle)
