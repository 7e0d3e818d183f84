"""Claims of jobs that have ended, and those of jobs that have not."""

from __future__ import annotations

import asyncio

from cluster.rig import Servers
from pool.cluster import wire
from pool.cluster.claims import Claims
from pool.cluster.link import Link
from pool.config.settings import ClusterConfig


def test_a_claim_of_a_job_that_has_ended_is_swept(server: Servers) -> None:
    """Its node was killed, or the servers had no leader, when it was to be dropped."""
    config = ClusterConfig(servers=(server.url,))
    ended, running = f"{'a' * 32}.ended.0", f"{'a' * 32}.running.0"

    async def sweep() -> tuple[int, list[str]]:
        link = await Link(config, "test").open()
        try:
            claims = await link.bucket(wire.CLAIMS)
            for key in (ended, running):
                await claims.create(key, b"a claim")
            await (await link.bucket(wire.RESULTS)).create(ended, b"an end")
            mine = Claims(link, config, "b" * 32, "node")
            return await mine.sweep(), await claims.keys()
        finally:
            await link.close()

    assert asyncio.run(sweep()) == (1, [running])


def test_a_sweep_of_no_claims(server: Servers) -> None:
    config = ClusterConfig(servers=(server.url,))

    async def sweep() -> int:
        link = await Link(config, "test").open()
        try:
            return await Claims(link, config, "b" * 32, "node").sweep()
        finally:
            await link.close()

    assert asyncio.run(sweep()) == 0
