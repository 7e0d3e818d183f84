"""The end of tasks that lose a cancellation, as `wait_for` does before Python 3.12."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from pool.cluster.tasks import ended_all

PATIENCE_S = 30.0


async def deaf(times: int) -> None:
    """Ends when it is cancelled once more than so many times."""
    for _ in range(times):
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(PATIENCE_S)
    await asyncio.sleep(PATIENCE_S)


@pytest.mark.parametrize("times", [0, 2])
def test_all_end(times: int) -> None:
    async def run() -> None:
        task = asyncio.create_task(deaf(times))
        await asyncio.sleep(0)
        await asyncio.wait_for(ended_all([task]), PATIENCE_S)
        assert task.cancelled()

    asyncio.run(run())


@pytest.mark.parametrize("times", [0, 2])
def test_what_a_task_has_begun_ends_when_that_is_ended(times: int) -> None:
    """Who ends others while it is ended leaves none behind: nobody would cancel it again, and the loop waits for it."""
    inner: list[asyncio.Task[None]] = []

    async def outer() -> None:
        inner.append(asyncio.create_task(deaf(times)))
        try:
            await asyncio.sleep(PATIENCE_S)
        finally:
            await ended_all(inner)

    async def run() -> bool:
        task = asyncio.create_task(outer())
        await asyncio.sleep(0)
        await asyncio.wait_for(ended_all([task]), PATIENCE_S)
        assert task.cancelled()
        return inner[0].done()

    assert asyncio.run(run())
