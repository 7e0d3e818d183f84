"""Claims of jobs that have ended, and those of jobs that have not."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from nats.errors import NoRespondersError

from cluster.rig import Servers, keys
from pool import FilePool
from pool.cluster import wire
from pool.cluster.agent import Agent
from pool.cluster.claims import Claims
from pool.cluster.link import Link
from pool.config.settings import ClusterConfig, parse_config
from pool.spool import layout


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
            return await mine.sweep(), await keys(link.js, wire.CLAIMS)
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


def test_a_node_that_does_not_know_yet_what_it_has_may_have_it(
    server: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else another node takes over what it is about to go on with."""
    engines = {"fake": {"engine": "inference.fake:Fake"}}
    document = {"spool": "spool", "engines": engines, "cluster": {"servers": [server.url], "name": "late"}}
    config = parse_config(document, tmp_path)
    layout.prepare(config.spool)

    async def ask() -> tuple[bytes, bytes]:
        knows = asyncio.Event()
        resume = Agent._resume

        async def resumed(agent: Agent) -> None:
            await knows.wait()
            await resume(agent)

        monkeypatch.setattr(Agent, "_resume", resumed)
        with FilePool(config, start=False) as pool:
            agent, link = Agent(config, pool), await Link(config.cluster, "test").open()
            running = asyncio.create_task(agent.run())

            async def answer() -> bytes:
                while True:
                    try:
                        return (await link.client.request(wire.asking(pool.spool.id), b"a job", timeout=5)).data
                    except NoRespondersError:
                        await asyncio.sleep(0.01)

            try:
                first = await answer()
                knows.set()
                await agent.opened.wait()
                return first, await answer()
            finally:
                await agent.drain(0.0)
                await running
                await link.close()

    assert asyncio.run(ask()) == (b"yes", b"no")
