"""The connection's helpers."""

from __future__ import annotations

import asyncio

from pool.cluster.link import ended_all


def test_a_task_that_lost_its_cancellation_is_cancelled_again() -> None:
    async def stubborn() -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            await asyncio.sleep(3600)

    async def broken() -> None:
        raise ValueError

    async def steps() -> None:
        tasks = [asyncio.create_task(stubborn()), asyncio.create_task(broken())]
        await asyncio.sleep(0)
        await ended_all(tasks)
        assert tasks[0].cancelled()

    asyncio.run(steps())
